"""The circuit breaker of one deployment: how long it is left alone after failures, and how it gets back to work.

`balance.py` keeps one for each deployment and asks it before choosing. It only says whether a deployment *should* be asked;
that the last candidate is asked all the same is the balance's rule. Times are `time.monotonic()` seconds, given by the caller.
"""

from __future__ import annotations

import asyncio
from typing import Literal, NamedTuple

from hortator.errors import ClientGone, HortatorError, RequestError, TotalTimeout, UpstreamRefused

State = Literal["closed", "open", "half-open"]
Verdict = Literal["alive", "failed", "unknown"]

_OURS = frozenset({"upstream_pool_full", "superseded"})
"""Errors of the gateway's own making."""
_FAILED = frozenset({401, 402, 408})
"""Client-error statuses of a deployment that cannot answer anybody: no credentials, no credit, too slow."""


class Limits(NamedTuple):
    """How much a deployment may fail."""

    failures: int = 5
    """Consecutive failures that open the breaker (R-001-8); 0 = it never opens."""
    open_seconds: float = 60.0
    """How long it stays open before one request may probe."""
    max_pause_seconds: float = 60.0
    """Most seconds that a Retry-After is obeyed for; 0 = not at all."""


class Breaker:
    """Closed: asked. Open: left alone. Half-open: one request probes, and its end opens or closes it."""

    __slots__ = ("failures", "limits", "open_until", "paused_until", "probing")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.failures = 0
        """Consecutive ones."""
        self.open_until = 0.0
        """When it becomes half-open; 0 = it is closed."""
        self.paused_until = 0.0
        """When the Retry-After of its last refusal is over. A deployment that is only busy has not failed."""
        self.probing = False

    def state(self, now: float) -> State:
        """Return what it is at `now`."""
        if not self.open_until:
            return "closed"
        return "open" if now < self.open_until else "half-open"

    def lets(self, now: float) -> bool:
        """Whether the deployment should be asked."""
        if not self.open_until:
            return self.paused_until <= now
        return now >= self.open_until and now >= self.paused_until and not self.probing

    @property
    def ready_at(self) -> float:
        """When it will let the next request through, as far as is known."""
        return max(self.open_until, self.paused_until)

    def begin(self, now: float) -> bool:
        """A request starts; return whether it is the probe."""
        if not self.open_until or now < self.open_until or self.probing:
            return False
        self.probing = True
        return True

    def answered(self) -> None:
        """The deployment answers: whatever was wrong is over."""
        self.open_until = 0.0
        self.probing = False

    def end(self, verdict: Verdict, now: float, *, probe: bool, pause: float = 0.0) -> None:
        """A request has ended; it asked to be left alone for `pause` seconds.

        While the breaker is open, only the probe's failure counts: requests that began before it opened say nothing new.
        """
        if probe:
            self.probing = False
        if pause:
            self.paused_until = max(self.paused_until, now + min(pause, self.limits.max_pause_seconds))
        if verdict == "alive":
            self.failures = 0
            self.answered()
        elif verdict == "failed" and (probe or not self.open_until):
            self.failures += 1
            if self.open_until or 0 < self.limits.failures <= self.failures:
                self.open_until = now + self.limits.open_seconds


def judge(error: BaseException | None) -> Verdict:
    """Say what the end of an attempt tells about its deployment. None = it answered.

    Failed: no connection, time-outs, broken replies, 5xx, and 401, 402 and 408, which say that it cannot answer anybody.
    Alive: every other answer, 429 included; its Retry-After makes a pause and no failure. Unknown: the client hung up, the
    whole request's time was over, the gateway itself was too busy or could not say the request in the provider's dialect.
    """
    if error is None:
        return "alive"
    if isinstance(error, UpstreamRefused):
        failed = error.upstream_status >= 500 or error.upstream_status in _FAILED
        return "failed" if failed else "alive"
    if isinstance(error, asyncio.CancelledError | ClientGone | TotalTimeout | RequestError):
        return "unknown"
    if not isinstance(error, HortatorError) or error.code in _OURS:
        return "unknown"
    return "failed"
