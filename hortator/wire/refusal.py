"""What a provider says when it refuses: the error objects of all dialects we meet, read into one shape.

Dispatch reads error replies and in-stream error objects here. Texts are bounded and stripped of control characters; taking
secrets out is the adapter's work, because only it knows them.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec

MAX_MESSAGE = 2_000
_WORD = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]+")


class Refusal(NamedTuple):
    """An upstream's error, cleaned. None = the upstream did not say, or said it in an unusable form."""

    message: str | None
    type: str | None = None
    code: str | None = None
    param: str | None = None
    status: int | None = None
    """An HTTP status inside the error object, as in-stream errors carry."""


def read(body: bytes) -> Refusal:
    """Read the body of an error reply: OpenAI `{"error": {...}}`, Ollama `{"error": "..."}`, Cloudflare `{"errors": [...]}`,
    FastAPI `{"detail": ...}`, plain `{"message": ...}`. Anything else (HTML, empty) says nothing."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Refusal(None)
    if isinstance(document, list) and document:
        document = document[0]
    if not isinstance(document, dict):
        return Refusal(None)
    errors = document.get("errors")
    error = document.get("error") or (errors[0] if isinstance(errors, list) and errors else None)
    return read_object(error if error is not None else document)


def read_object(error: Any) -> Refusal:
    """Read the error object itself, wherever it stood."""
    if isinstance(error, str):
        return Refusal(_clean(error))
    if not isinstance(error, dict):
        return Refusal(None)
    status = error.get("status") if isinstance(error.get("status"), int) else error.get("code")
    message = error.get("message") or error.get("detail")
    return Refusal(
        message=_clean(message) if isinstance(message, str) else None,
        type=_word(error.get("type")),
        code=_word(error.get("code")),
        param=_clean(error["param"])[:200] if isinstance(error.get("param"), str) else None,
        status=status if isinstance(status, int) and 400 <= status <= 599 else None,
    )


def _clean(text: str) -> str:
    text = _CONTROL.sub(" ", text).strip()
    return text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + " [cut]"


def _word(value: object) -> str | None:
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None
