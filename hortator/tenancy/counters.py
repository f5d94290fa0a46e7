"""Who counts: the interface of the two counters, and the one that counts in this process's memory.

`budgets.py` reserves before a call and settles after it. A reservation is all or nothing: it is counted against every limit, or
against none. Windows are whole buckets of the epoch (C-23), so all replicas agree on them. `redis_counters.py` is the other
counter, for many replicas, with the same meaning. Nothing here knows prices or HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

from hortator.call import Limit, TenantId
from hortator.tenancy.limits import MONTH


class Verdict(NamedTuple):
    """What the counter said: whether the call fits; and, in the order of the limits, what was used before it and when it ends."""

    fits: bool
    used: list[int]
    ends: list[float]
    """Seconds until the window is over."""


class Hold:
    """What one call has reserved, until it is settled."""

    __slots__ = ("id", "limits", "needs", "parts", "tenant_id", "uncertain")

    def __init__(self, id: str, tenant_id: TenantId, limits: tuple[Limit, ...], needs: list[int]) -> None:
        self.id = id
        self.tenant_id = tenant_id
        self.limits = limits
        self.needs = needs
        """How much of each limit, in their order."""
        self.parts: list[tuple[Counter, float, int]] = []
        """In memory: what was counted where, and in which window."""
        self.uncertain = False
        """On Redis: the counter may hold something for this call, so it must be settled."""


class Used(NamedTuple):
    """What a call has used in the end."""

    requests: int
    tokens: int
    money: int
    """Billionths of a US dollar."""


class CounterGauges(NamedTuple):
    """State of a counter, for metrics."""

    degraded: bool
    """The counter does not answer; limits hold as `limits.on_failure` says."""
    scopes: int
    """Counters in memory."""
    unsettled: int
    """Settlements waiting to be written."""
    dropped: int
    """Settlements given up because too many waited; what they held returns when it expires."""


class Counters(Protocol):
    """Counts what is used against limits, exactly, however many calls ask at once."""

    async def reserve(self, hold: Hold) -> Verdict | None:
        """Count the call against all its limits, or against none. None = the counter cannot tell."""

    def settle(self, hold: Hold, used: Used) -> None:
        """Replace what was reserved by what was used. A second time changes nothing. Never waits."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    @property
    def gauges(self) -> CounterGauges: ...


class Counter:
    """What was used in one window of one limit."""

    __slots__ = ("end", "start", "used")

    def __init__(self) -> None:
        self.start = 0.0
        self.end = float("-inf")
        self.used = 0


class MemoryCounters:
    """Counts in this process: for one replica. What was used is forgotten when the process ends."""

    def __init__(self, *, clock: Callable[[], float] = time.time, max_scopes: int = 100_000) -> None:
        """`clock`: Unix time. `max_scopes`: most counters kept; beyond it callers that are not counted yet get no verdict."""
        self._clock = clock
        self._max_scopes = max_scopes
        self._counters: dict[str, Counter] = {}
        self._degraded = False

    async def reserve(self, hold: Hold) -> Verdict | None:
        """See `Counters`."""
        now = self._clock()
        if len(self._counters) + len(hold.limits) > self._max_scopes and not self._room(hold, now):
            return None
        fits = True
        used: list[int] = []
        ends: list[float] = []
        parts: list[tuple[Counter, float, int]] = []
        for limit, need in zip(hold.limits, hold.needs, strict=True):
            counter = self._counters.get(limit.key)
            if counter is None:
                counter = self._counters[limit.key] = Counter()
            if now >= counter.end:
                counter.start, counter.end = window(limit.window, now)
                counter.used = 0
            if counter.used + need > limit.amount:
                fits = False
            used.append(counter.used)
            ends.append(counter.end - now)
            parts.append((counter, counter.start, need))
        if fits:
            for counter, _, need in parts:
                counter.used += need
            hold.parts = parts
        return Verdict(fits, used, ends)

    def settle(self, hold: Hold, used: Used) -> None:
        """See `Counters`. A window that is over is left alone."""
        parts, hold.parts = hold.parts, []
        for limit, (counter, start, need) in zip(hold.limits, parts, strict=False):
            if counter.start == start:
                counter.used = max(0, counter.used - need + used_of(limit, used))

    async def start(self) -> None:
        """Nothing to start."""

    async def close(self) -> None:
        """Nothing to end."""

    @property
    def gauges(self) -> CounterGauges:
        """See `Counters`."""
        return CounterGauges(degraded=self._degraded, scopes=len(self._counters), unsettled=0, dropped=0)

    def _room(self, hold: Hold, now: float) -> bool:
        """Make room for the counters of a call: those whose window is over, or that hold nothing, go. Says whether there is any."""
        self._counters = {key: one for key, one in self._counters.items() if one.used and one.end > now}
        new = sum(limit.key not in self._counters for limit in hold.limits)
        self._degraded = len(self._counters) + new > self._max_scopes
        return not self._degraded


def used_of(limit: Limit, used: Used) -> int:
    """Return the part of what was used that counts against a limit; a finished call is no longer concurrent."""
    if limit.kind == "tokens":
        return used.tokens
    if limit.kind == "requests":
        return used.requests
    return used.money if limit.kind == "money" else 0


def window(seconds: int, now: float) -> tuple[float, float]:
    """Return the window that holds the moment `now`, from and to, Unix time. 0 seconds: one without end."""
    if seconds == 0:
        return 0.0, float("inf")
    if seconds == MONTH:
        moment = datetime.fromtimestamp(now, UTC)
        start = datetime(moment.year, moment.month, 1, tzinfo=UTC)
        end = datetime(moment.year + moment.month // 12, moment.month % 12 + 1, 1, tzinfo=UTC)
        return start.timestamp(), end.timestamp()
    start_second = int(now) // seconds * seconds
    return float(start_second), float(start_second + seconds)
