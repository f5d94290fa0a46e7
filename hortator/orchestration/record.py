"""How the end of a step is written down, and read again: JSON text, `v` before a value, `e` before an error of ours.

Called by `engine.py`, which keeps the text with the engine. An error must come back as what it was, or a handler that runs again would
take another way than before. What is not an error of ours becomes `internal_error`: its text may say anything and is not kept. Pure.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from hortator import errors
from hortator.errors import HortatorError

ERRORS = {
    each.__name__: each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, HortatorError)
}


class _Error(Struct, frozen=True):
    name: str
    message: str
    code: str
    param: str | None
    retry_after: float | None
    status: int
    type: str
    upstream_status: int | None


_encode = msgspec.json.encode
_error = msgspec.json.Decoder(_Error)


def returned(value: Any) -> str:
    """Return what is kept of a step that ended well. Raises TypeError for what is not JSON."""
    return "v" + _encode(value).decode()


def raised(error: Exception) -> str:
    """Return what is kept of a step that failed."""
    if not isinstance(error, HortatorError):
        error = HortatorError("A step of the task failed unexpectedly.")
    upstream = getattr(error, "upstream_status", None)
    name = type(error).__name__
    kept = _Error(name, error.message, error.code, error.param, error.retry_after, error.status, error.type, upstream)
    return "e" + _encode(kept).decode()


def outcome(kept: str) -> Any:
    """Return the value, or raise the error."""
    if kept.startswith("v"):
        return msgspec.json.decode(kept[1:])
    told = _error.decode(kept[1:])
    error = HortatorError.__new__(ERRORS.get(told.name, HortatorError), told.message)
    HortatorError.__init__(error, told.message, code=told.code, param=told.param, retry_after=told.retry_after)
    error.status, error.type = told.status, told.type
    if told.upstream_status is not None:
        error.upstream_status = told.upstream_status  # type: ignore[attr-defined]
    raise error
