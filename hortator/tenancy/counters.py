"""Who counts: the interface of the two counters, and the one that counts in this process's memory.

`budgets.py` reserves before a call and settles after it. A reservation is all or nothing: it is counted against every limit, or
against none. Windows are whole buckets of the epoch (C-23), so all replicas agree on them. `redis_counters.py` is the other
counter, for many replicas, with the same meaning. Nothing here knows prices or HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import msgspec

from hortator.call import Limit, TenantId
from hortator.tenancy.limits import window
from hortator.tenancy.spending import ReadSpending, StoreSilent

RETRY_SECONDS = 1.0
"""How often a store that did not say what was spent is asked again."""


class Verdict(msgspec.Struct, gc=False):
    """What the counter said: whether the call fits; and, in the order of the limits, what was used before it and when it ends."""

    fits: bool
    used: list[int]
    ends: list[float]
    """Seconds until the window is over."""


class Hold:
    """What one call has reserved, until it is settled."""

    __slots__ = ("id", "limits", "needs", "parts", "tenant_id", "uncertain")

    def __init__(self, id: str, tenant_id: TenantId, limits: tuple[Limit, ...], needs: list[int]) -> None:
        """`id`: unique among all replicas; empty = the counter gives it one where it needs one."""
        self.id = id
        self.tenant_id = tenant_id
        self.limits = limits
        self.needs = needs
        """How much of each limit, in their order."""
        self.parts: list[Counter] | None = None
        """In memory: where it was counted."""
        self.uncertain = False
        """On Redis: the counter may hold something for this call, so it must be settled."""


class Used(msgspec.Struct, frozen=True, gc=False):
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
    calls: int = 0
    """Batches that Redis has answered."""
    call_seconds: float = 0.0
    """How long they took, together."""
    rebuilt: int = 0
    """How often counts that were lost were made anew from the usage records."""


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
    """What was used in one window of one limit. The next window has another one, so late settlements reach the old one."""

    __slots__ = ("end", "used")

    def __init__(self, end: float, used: int = 0) -> None:
        self.end = end
        self.used = used


class MemoryCounters:
    """Counts in this process: for one replica. With `spending`, what was used before the process began is counted too."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        max_scopes: int = 100_000,
        spending: ReadSpending | None = None,
    ) -> None:
        """`clock`: Unix time. `max_scopes`: most counters kept; beyond it callers that are not counted yet get no verdict.
        `spending`: what the ledger knows; until it has been read there is no verdict.
        """
        self._clock = clock
        self._max_scopes = max_scopes
        self._counters: dict[str, Counter] = {}
        self._full = False
        self._spending = spending
        self._before: dict[tuple[str, float], int] = {}
        self._reading: asyncio.Task[None] | None = None

    async def reserve(self, hold: Hold) -> Verdict | None:
        """See `Counters`."""
        now = self._clock()
        limits, needs = hold.limits, hold.needs
        if len(self._counters) + len(limits) > self._max_scopes and not self._room(hold, now):
            return None
        counters = self._counters
        if self._spending is not None:
            return None
        fits = True
        used: list[int] = []
        ends: list[float] = []
        parts: list[Counter] = []
        for place, limit in enumerate(limits):
            counter = counters.get(limit.key)
            if counter is None or now >= counter.end:
                counter = counters[limit.key] = self._begin(limit, now)
            taken = counter.used
            if taken + needs[place] > limit.amount:
                fits = False
            used.append(taken)
            ends.append(counter.end - now)
            parts.append(counter)
        if fits:
            for place, counter in enumerate(parts):
                counter.used += needs[place]
            hold.parts = parts
        return Verdict(fits, used, ends)

    def settle(self, hold: Hold, used: Used) -> None:
        """See `Counters`. A finished call is no longer concurrent."""
        parts = hold.parts
        if parts is None:
            return
        hold.parts = None
        needs = hold.needs
        for place, limit in enumerate(hold.limits):
            kind = limit.kind
            if kind == "requests":
                actual = used.requests
            elif kind == "tokens":
                actual = used.tokens
            else:
                actual = used.money if kind == "money" else 0
            parts[place].used += actual - needs[place]

    async def start(self) -> None:
        """Read what was spent before; when the store does not answer, go on asking beside requests."""
        if not await self._read():
            self._reading = asyncio.create_task(self._read_later(), name="limits-spending")

    async def close(self) -> None:
        """Stop asking."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait((self._reading,))

    async def _read(self) -> bool:
        """Keep what was spent until its counters are made. Says whether the store answered."""
        if self._spending is None:
            return True
        try:
            spent = await self._spending(self._clock())
        except StoreSilent:
            return False
        self._before = {(one.key, one.end): one.used for one in spent}
        self._spending = None
        return True

    async def _read_later(self) -> None:
        done = False
        while not done:
            await asyncio.sleep(RETRY_SECONDS)
            done = await self._read()

    def _begin(self, limit: Limit, now: float) -> Counter:
        """The counter of the window that runs now; when the process has just begun, from what was spent in it before."""
        end = window(limit.window, now)[1]
        return Counter(end, self._before.pop((limit.key, end), 0) if self._before else 0)

    @property
    def gauges(self) -> CounterGauges:
        """See `Counters`."""
        degraded = self._full or self._spending is not None
        return CounterGauges(degraded=degraded, scopes=len(self._counters), unsettled=0, dropped=0)

    def _room(self, hold: Hold, now: float) -> bool:
        """Make room for the counters of a call: those whose window is over, or that hold nothing, go. Says whether there is any."""
        self._counters = {key: one for key, one in self._counters.items() if one.used and one.end > now}
        new = sum(limit.key not in self._counters for limit in hold.limits)
        self._full = len(self._counters) + new > self._max_scopes
        return not self._full
