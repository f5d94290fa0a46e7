"""Who may run when not everybody can: a bounded number of calls at once, and a short queue by priority (R-000-72).

The gateway calls `enter` for every call, `wait` when that says no, and `leave` once for every call that got a place, a stream at its
end. Nothing here knows callers or HTTP. A call never waits past its deadline or `max_wait`; then it gets 503 and may come again.

The order: `high` before `standard` before `low`, first come first served within a class. So that a flood of one class cannot hold
all places, `low` takes none of the last tenth of them by itself and `standard` none of the last twentieth. So that nobody waits
forever for those before them, every eighth place that goes to the queue goes to the call that has waited longest. A full queue
turns away the newest call of the lowest class, if that is lower than the newcomer's, else the newcomer.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from typing import NamedTuple

from hortator.call import Priority
from hortator.errors import Overloaded

CLASSES: tuple[Priority, ...] = ("high", "standard", "low")
"""In the order in which they go."""
AGING = 8
"""Every so many places that go to the queue, one goes to the call that has waited longest."""

_Waiter = asyncio.Future[bool]
"""True = it has a place, False = it was turned away."""


class AdmissionGauges(NamedTuple):
    """State, for metrics."""

    running: int
    limit: int
    queued: Mapping[Priority, int]
    refused: Mapping[Priority, int]
    """Calls that got 503, since the start."""


class Admission:
    """One per process."""

    def __init__(self, *, max_concurrent: int, max_queue: int, max_wait: float) -> None:
        """`max_concurrent`: calls that run at once. `max_queue`: calls that wait. `max_wait`: seconds each may wait."""
        self._limit = max_concurrent
        self._shares: dict[Priority, int] = {
            "high": max_concurrent,
            "standard": max_concurrent - max_concurrent // 20,
            "low": max_concurrent - max_concurrent // 10,
        }
        self._max_queue = max_queue
        self._max_wait = max_wait
        self._queues: dict[Priority, dict[_Waiter, float]] = {name: {} for name in CLASSES}
        self._running = 0
        self._waiting = 0
        self._turn = 0
        self._refused: dict[Priority, int] = dict.fromkeys(CLASSES, 0)

    @property
    def gauges(self) -> AdmissionGauges:
        """The state now."""
        queued = {name: len(queue) for name, queue in self._queues.items()}
        return AdmissionGauges(self._running, self._limit, queued, self._refused)

    def enter(self, priority: Priority) -> bool:
        """Take a place if there is one and nobody waits; False = ask `wait`."""
        if self._waiting or self._running >= self._shares[priority]:
            return False
        self._running += 1
        return True

    async def wait(self, priority: Priority, deadline: float) -> None:
        """Return with a place. `deadline`: of the call, `time.monotonic()`. Raises Overloaded."""
        now = time.monotonic()
        if self._waiting >= self._max_queue and not self._turn_away_below(priority):
            raise self._overloaded(priority)
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        self._queues[priority][waiter] = now
        self._waiting += 1
        self._give()
        try:
            async with asyncio.timeout(min(self._max_wait, deadline - now)):
                placed = await waiter
        except TimeoutError:
            self._abandon(priority, waiter)
            raise self._overloaded(priority) from None
        except BaseException:
            self._abandon(priority, waiter)
            raise
        if not placed:
            raise self._overloaded(priority)

    def leave(self) -> None:
        """Give a place back; whoever is next gets it."""
        self._running -= 1
        if self._waiting:
            self._give()

    def _give(self) -> None:
        """Give the free places to those who wait."""
        while self._waiting and self._running < self._limit:
            priority = self._next()
            if priority is None:
                return
            waiter = next(iter(self._queues[priority]))
            self._remove(priority, waiter)
            if not waiter.done():
                self._turn += 1
                self._running += 1
                waiter.set_result(True)

    def _next(self) -> Priority | None:
        """The class whose first call is next; None when those who wait have had their share of the places."""
        waiting = [name for name in CLASSES if self._queues[name]]
        if self._turn % AGING == AGING - 1:
            return min(waiting, key=lambda name: next(iter(self._queues[name].values())))
        return next((name for name in waiting if self._running < self._shares[name]), None)

    def _turn_away_below(self, priority: Priority) -> bool:
        """Turn away the newest call of the lowest class below `priority`; False when there is none."""
        for lower in reversed(CLASSES[CLASSES.index(priority) + 1 :]):
            for waiter in reversed(self._queues[lower]):
                self._remove(lower, waiter)
                if not waiter.done():
                    waiter.set_result(False)
                return True
        return False

    def _remove(self, priority: Priority, waiter: _Waiter) -> None:
        if self._queues[priority].pop(waiter, None) is not None:
            self._waiting -= 1

    def _abandon(self, priority: Priority, waiter: _Waiter) -> None:
        """A call no longer waits; the place that it may have got at the last moment goes on."""
        self._remove(priority, waiter)
        if not waiter.cancelled() and waiter.done() and waiter.result():
            self.leave()

    def _overloaded(self, priority: Priority) -> Overloaded:
        self._refused[priority] += 1
        return Overloaded(
            "Too many requests are being answered now; try again.", retry_after=max(1, math.ceil(self._max_wait))
        )
