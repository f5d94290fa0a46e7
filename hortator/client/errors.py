"""What can go wrong for a client: one tree, each error with the server's `status`, `code`, `message` and `request_id`.

    HortatorError
     +-- HortatorConnectionError     no answer: refused, broken, not HTTP
     |    +-- HortatorTimeout        nothing came in time
     +-- InvalidRequestError         400, 405, 413, 415 and other 4xx
     |    +-- AuthenticationError    401
     |    +-- PermissionDeniedError  403
     |    +-- NotFoundError          404
     |    +-- ConflictError          409, 410
     |    +-- RateLimitError         429; `retry_after`
     +-- ServerError                 5xx
     +-- TaskError                   a team ended without an answer; `phase`, `task_id`

`hortator.errors` is the server's own tree; this one is made from what it says over HTTP. No I/O.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import msgspec

MAX_TEXT = 300
"""Characters of a reply that is no error object which are quoted."""
PHASES = {
    "task_failed": "Failed",
    "task_cancelled": "Cancelled",
    "task_budget_exceeded": "BudgetExceeded",
    "task_timed_out": "TimedOut",
}
"""How a tree ended, by the error's code."""


class HortatorError(Exception):
    """Root of the tree. `status` is None where there was no reply."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        again: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.request_id = request_id
        self.retry_after = retry_after
        """Seconds after which it may work, where the server said so."""
        self.again = again
        """Nothing was done: the same request may be sent again, whatever it is."""

    def __str__(self) -> str:
        said = " ".join(str(part) for part in (self.status, self.code) if part)
        return f"{said}: {self.message}" if said else self.message


class HortatorConnectionError(HortatorError):
    """The server was not reached, or the connection broke before the reply was complete."""


class HortatorTimeout(HortatorConnectionError):
    """Nothing came within the time that the caller gave."""


class InvalidRequestError(HortatorError):
    """The request cannot be served as it is; `param` names the field where one is meant."""


class AuthenticationError(InvalidRequestError):
    """No key, or one that is not good."""


class PermissionDeniedError(InvalidRequestError):
    """A good key that may not do this."""


class NotFoundError(InvalidRequestError):
    """There is no such task, file, model or address for this key."""


class ConflictError(InvalidRequestError):
    """It does not fit the state of what it is asked of, or that is not kept any more."""


class RateLimitError(InvalidRequestError):
    """A limit of the key, its tenant or the provider is reached."""


class ServerError(HortatorError):
    """The server, or a provider behind it, failed."""


class TaskError(HortatorError):
    """A tree ended without a result: `phase` is Failed, Cancelled, BudgetExceeded or TimedOut."""

    def __init__(self, message: str, *, phase: str, task_id: str | None = None, **rest: Any) -> None:
        super().__init__(message, **rest)
        self.phase = phase
        self.task_id = task_id


_BY_STATUS: dict[int, type[HortatorError]] = {
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    410: ConflictError,
    429: RateLimitError,
}


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> HortatorError:
    """Return what a reply that is no success means. `headers` have names in small letters."""
    error: Any = None
    with contextlib.suppress(msgspec.DecodeError):
        found = msgspec.json.decode(body)
        error = found.get("error") if isinstance(found, dict) else None
    if not isinstance(error, dict):
        text = error if isinstance(error, str) else " ".join(body.decode("utf-8", "replace").split())
        error = {"message": text[:MAX_TEXT] or f"The server answered {status} without a reason."}
    rest = {
        "request_id": headers.get("x-request-id"),
        "retry_after": _seconds(headers.get("retry-after")),
        "again": status in (429, 503) and headers.get("x-should-retry") != "false",
    }
    return told(error, status, headers.get("x-hortator-task-id"), **rest)


def told(error: Mapping[str, Any], status: int | None, task_id: str | None = None, **rest: Any) -> HortatorError:
    """Return the error that an error object means: of a reply, or (status None) in a stream."""
    message = str(error.get("message") or "The server gave no reason.")
    code = error.get("code")
    rest |= {"status": status, "code": None if code is None else str(code), "param": error.get("param")}
    if code in PHASES:
        return TaskError(message, phase=PHASES[code], task_id=task_id, **rest)
    if status is not None and status in _BY_STATUS:
        return _BY_STATUS[status](message, **rest)
    if status is not None and 400 <= status < 500:
        return InvalidRequestError(message, **rest)
    return ServerError(message, **rest)


def _seconds(value: str | None) -> float | None:
    """Read Retry-After; its form as a date is as good as none."""
    try:
        seconds = float(value or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < 1e9 else None
