"""What happened to one call so far: written by dispatch while it works, read by the gateway when it records.

The only mutable value of a walk. It survives every way a call can end, so that failures and hang-ups are recorded too.
"""

from __future__ import annotations

import asyncio

from hortator.call import UNKNOWN_USAGE, Attempt, Deployment, Usage
from hortator.errors import ClientGone, HortatorError, Unavailable
from hortator.tracing import Tracing


class Trace:
    """Attempts, usage and times of one call. Times are `time.monotonic()` seconds (a loop's own clock may be coarser)."""

    __slots__ = (
        "attempts",
        "begun",
        "complete",
        "deployment",
        "first_byte_at",
        "headers",
        "hung_up",
        "response_model",
        "route",
        "status",
        "tracing",
        "tries",
        "usage",
        "waited",
    )

    def __init__(self) -> None:
        self.begun = 0.0
        """When the current attempt began."""
        self.attempts: list[Attempt] = []
        self.tries = 0
        """Attempts begun, the running one included."""
        self.deployment: Deployment | None = None
        """The one being tried, or the one that answered."""
        self.status: int | None = None
        """The upstream's HTTP status in the current attempt, None while there is none."""
        self.response_model: str | None = None
        """Of the current attempt, like `usage`."""
        self.usage: Usage = UNKNOWN_USAGE
        self.waited = 0.0
        """Seconds spent waiting for upstreams (of a stream: until its first content)."""
        self.first_byte_at: float | None = None
        """When the answer's first content was there."""
        self.headers: list[tuple[bytes, bytes]] = []
        """Upstream headers that the client gets: rate limits and the like."""
        self.route: tuple[tuple[bytes, bytes], ...] = ()
        """Headers that tell how the call was routed; the gateway sets them."""
        self.hung_up = False
        """The client is gone: a cancellation means that, and not that the server stops."""
        self.tracing: Tracing | None = None
        """The call's own, if traces are on."""
        self.complete = False
        """The upstream's whole answer was taken in."""

    def hang_up(self) -> None:
        """The client has hung up; the call is about to be cancelled."""
        self.hung_up = True

    def begin(self, deployment: Deployment, now: float) -> None:
        """An attempt at `deployment` starts."""
        self.begun = now
        self.tries += 1
        self.deployment = deployment
        self.status = None
        if self.attempts:
            self.usage = UNKNOWN_USAGE
            self.response_model = None
        if self.tracing is not None:
            self.tracing.attempt(deployment.id, now)

    def end(self, error: BaseException | None, now: float) -> None:
        """The attempt has ended; `error` is None when it answered."""
        assert self.deployment is not None
        self.attempts.append(
            Attempt(
                deployment=self.deployment.id,
                provider=self.deployment.provider,
                status=self.status,
                code=None if error is None else self.failure(error).code,
                duration_ms=(now - self.begun) * 1000,
                usage=self.usage,
                response_model=self.response_model,
            )
        )

    def adopt(self, other: Trace) -> None:
        """The running attempt of `other` is the one that answers this call."""
        self.begun = other.begun
        self.deployment = other.deployment
        self.status = other.status
        self.response_model = other.response_model
        self.usage = other.usage
        self.first_byte_at = other.first_byte_at
        self.headers = other.headers
        self.complete = other.complete

    def failure(self, error: BaseException) -> HortatorError:
        """Return what any end of the call is called in its record."""
        if isinstance(error, HortatorError):
            return error
        if not isinstance(error, asyncio.CancelledError):
            return HortatorError("The gateway failed to handle this request.")
        return ClientGone("The client hung up.") if self.hung_up else draining()


def draining() -> Unavailable:
    """Return the error of a call that the server's end cut off."""
    return Unavailable("The gateway is stopping; send the request again.", code="draining", retry_after=1)
