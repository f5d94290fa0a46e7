"""The only place where errors become HTTP: OpenAI error objects, and Harpoon's flat ones on its addresses (C-4).

Doors catch `HortatorError` and send `body` or `flat`; anything else that reaches the outermost edge becomes
`internal_error` without a word of what it was.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from hortator.errors import HortatorError, MethodNotAllowed, RateLimited

Headers = list[tuple[bytes, bytes]]

PATIENCE_SECONDS = 120
JSON = (b"content-type", b"application/json")


def content(error: HortatorError) -> dict[str, Any]:
    """Return what an error says, as it stands in every dialect of ours. Where several attempts failed it lists them."""
    said: dict[str, Any] = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    if error.attempts:
        tries = [{"model": model, "status": status, "code": code} for model, status, code in error.attempts]
        said["attempts"] = tries
    return said


def body(error: HortatorError) -> bytes:
    """Return the OpenAI error object of an error."""
    return msgspec.json.encode({"error": content(error)})


def flat(error: HortatorError, request_id: str) -> bytes:
    """Return the error as clients of Harpoon read it: `error` is the message itself."""
    return msgspec.json.encode({"success": False, "error": error.message, "code": error.code, "request_id": request_id})


def headers(error: HortatorError) -> Headers:
    """Return the headers that belong to an error: what the upstream said about retrying, or what we say."""
    found: Headers = list(error.headers)
    if error.retry_after is not None and not any(name == b"retry-after" for name, _ in found):
        found.append((b"retry-after", str(math.ceil(error.retry_after)).encode()))
    if isinstance(error, MethodNotAllowed):
        found.append((b"allow", ", ".join(error.allowed).encode()))
    if isinstance(error, RateLimited) and _waiting_is_vain(error):
        found.append((b"x-should-retry", b"false"))
    return found


def _waiting_is_vain(error: RateLimited) -> bool:
    """Whether a client should not try again by itself: waiting does not help, or not within the two minutes clients wait."""
    return error.retry_after is None or error.retry_after > PATIENCE_SECONDS or error.code == "budget_exceeded"


def event(error: HortatorError) -> bytes:
    """Return the in-stream error event: what a client gets when the status line has gone out already."""
    return b"data: " + body(error) + b"\n\n"
