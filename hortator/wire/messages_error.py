"""Errors as the messages dialect tells them: one envelope, types by status.

The messages door and the streams of `messages_stream.py` use it; nothing here chooses a status.
"""

from __future__ import annotations

from typing import Any

import msgspec

from hortator.errors import HortatorError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_BILLING = frozenset({"budget_exceeded", "insufficient_quota"})
_STATUSES = {
    "authentication_error": 401,
    "billing_error": 402,
    "invalid_request_error": 400,
    "not_found_error": 404,
    "overloaded_error": 529,
    "permission_error": 403,
    "rate_limit_error": 429,
    "timeout_error": 504,
}


def error_type(status: int, code: str) -> str:
    """Return the type of an error with this status and code of ours."""
    if code in _BILLING:
        return "billing_error"
    return _TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")


def error_body(error: HortatorError, request_id: str) -> bytes:
    """Return the error object. `code`, `param` and `attempts` are ours, beside the dialect's own fields."""
    told: dict[str, Any] = {"type": error_type(error.status, error.code), "message": error.message, "code": error.code}
    if error.param is not None:
        told["param"] = error.param
    if error.attempts:
        told["attempts"] = [{"model": model, "status": status, "code": code} for model, status, code in error.attempts]
    return msgspec.json.encode({"type": "error", "error": told, "request_id": request_id})


def error_event(error: HortatorError, request_id: str) -> bytes:
    """Return the event that ends a stream which failed."""
    return b"event: error\ndata: " + error_body(error, request_id) + b"\n\n"


def with_status(error: Any) -> Any:
    """Return a provider's error object with the HTTP status that its type stands for, as events come without one."""
    if not isinstance(error, dict) or not isinstance(error.get("type"), str) or error["type"] not in _STATUSES:
        return error
    return {"status": _STATUSES[error["type"]], **error}
