"""When a deployment that failed may be asked again: the delays, what Retry-After asks for, and how much is too much.

`attempts.py` asks after each failure. Time and randomness come from the caller; nothing here waits.
"""

from __future__ import annotations

import re
from random import Random
from typing import NamedTuple

from hortator.errors import (
    ConnectFailed,
    ConnectionLost,
    ConnectTimeout,
    FirstByteTimeout,
    HortatorError,
    RateLimited,
    UpstreamRefused,
)

WINDOW_SECONDS = 10
"""The global ratio looks at this many seconds, the current one included."""

_AGAIN = (ConnectFailed, ConnectTimeout, FirstByteTimeout, ConnectionLost, RateLimited)
_USELESS = frozenset({"upstream_pool_full", "insufficient_quota"})
"""Codes after which a moment's wait does not help."""
_TOO_LONG = re.compile(r"context.?(length|window)|maximum context|prompt is too long", re.IGNORECASE).search
_FILTERED = frozenset({"content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation"})


class Limits(NamedTuple):
    """How often and how long."""

    max_retries: int = 3
    """Attempts of one request after its first, over all deployments and models (R-001-9)."""
    delay: float = 0.1
    """Seconds before a deployment is asked for the second time; doubles each time."""
    max_wait: float = 5.0
    """Most seconds that a Retry-After is waited for."""
    ratio: float = 0.1
    """Share of all requests that may be sent to the same deployment again."""
    floor: int = 10
    """That many in ten seconds always may."""


class Budget:
    """The global retry ratio: an outage must not be multiplied. Counts requests and second tries over the last ten seconds.

    The current second is counted in plain numbers, the nine before it in lists: a request costs a comparison and a sum.
    """

    __slots__ = ("_requests", "_retries", "_second", "ends", "limits", "requests", "retries")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._second = 0
        self.ends = 0.0
        """When the current second is over."""
        self.requests = 0
        """In the current second."""
        self.retries = 0
        self._requests = [0] * WINDOW_SECONDS
        self._retries = [0] * WINDOW_SECONDS

    def request(self, now: float) -> None:
        """Count a request."""
        if now >= self.ends:
            self.turn(now)
        self.requests += 1

    def take(self, now: float) -> bool:
        """Count a second try if there is room for it; return whether there was."""
        if now >= self.ends:
            self.turn(now)
        room = max(self.limits.floor, self.limits.ratio * (sum(self._requests) + self.requests))
        if sum(self._retries) + self.retries + 1 > room:
            return False
        self.retries += 1
        return True

    def turn(self, now: float) -> None:
        """Begin another second: keep the counts of the last one, forget those that have left the window."""
        second = int(now)
        place = self._second % WINDOW_SECONDS
        self._requests[place], self._retries[place] = self.requests, self.retries
        self.requests = self.retries = 0
        for past in range(max(self._second, second - WINDOW_SECONDS) + 1, second + 1):
            self._requests[past % WINDOW_SECONDS] = self._retries[past % WINDOW_SECONDS] = 0
        self._second = second
        self.ends = second + 1.0


class Retry:
    """The policy and its budget, shared by all calls."""

    def __init__(
        self, limits: Limits | None = None, random: Random | None = None, budget: Budget | None = None
    ) -> None:
        """`budget`: one that has counted already and goes on counting."""
        self.limits = limits or Limits()
        self.budget = budget or Budget(self.limits)
        self._random = random or Random()

    def delay(self, number: int) -> float:
        """Return the seconds before the `number`th (from 0) second try: 0.1, 0.2, 0.4, a quarter more or less."""
        return self.limits.delay * 2.0**number * (0.75 + self._random.random() / 2)


def may_repeat(error: HortatorError) -> bool:
    """Whether the same deployment may do better in a moment: no connection, no first byte in time, 408, 429, 5xx."""
    if error.code in _USELESS:
        return False
    if isinstance(error, UpstreamRefused):
        return error.upstream_status in (408, 429) or error.upstream_status >= 500
    return isinstance(error, _AGAIN)


def is_too_long(error: HortatorError) -> bool:
    """Whether a provider refused a request because it does not fit into the model's context. Providers word it differently."""
    if not isinstance(error, UpstreamRefused) or error.upstream_status not in (400, 413, 422):
        return False
    return error.code == "context_length_exceeded" or _TOO_LONG(error.message) is not None


def is_filtered(error: HortatorError) -> bool:
    """Whether a provider's content filter refused a request."""
    return isinstance(error, UpstreamRefused) and error.upstream_status in (400, 403, 422) and error.code in _FILTERED
