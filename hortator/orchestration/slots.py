"""Places for trees at work in this process: who waits goes in by priority, and among those of a priority tenants take turns.

`tree.py` holds one from a tree's first step to its last; children work in their root's. A tenth of the places is kept for tenants of priority
high (R-000-41, R-000-72). No I/O.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hortator.call import Priority, TenantId
from hortator.errors import Overloaded

WAITING = 100_000
"""Most trees that wait."""
_ORDER: tuple[Priority, ...] = ("high", "standard", "low")

_Turn = asyncio.Future[None]


class Slots:
    """One per process, for one event loop."""

    def __init__(self, places: int, most_waiting: int = WAITING) -> None:
        """`places`: trees at work at once, at least 1."""
        self._free = places
        self._reserved = max(1, places // 10) if places > 1 else 0
        """Places that only priority high takes."""
        self._most_waiting = most_waiting
        self._held: dict[TenantId, int] = {}
        self._waiting: dict[Priority, dict[TenantId, deque[_Turn]]] = {each: {} for each in _ORDER}
        self._count = 0

    @property
    def free(self) -> int:
        """Places that nobody has."""
        return self._free

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return self._count

    @asynccontextmanager
    async def hold(self, tenant_id: TenantId, priority: Priority) -> AsyncIterator[None]:
        """Wait for a place and have it until the end of the block. Raises Overloaded where too many wait."""
        await self._take(tenant_id, priority)
        try:
            yield
        finally:
            self._give_back(tenant_id)

    def _open_to(self, priority: Priority) -> bool:
        return self._free > (0 if priority == "high" else self._reserved)

    async def _take(self, tenant_id: TenantId, priority: Priority) -> None:
        if self._open_to(priority) and not any(self._waiting[each] for each in _ORDER[: _ORDER.index(priority) + 1]):
            self._grant(tenant_id)
            return
        if self._count >= self._most_waiting:
            raise Overloaded("Too many tasks wait for a place; try again.", retry_after=5.0)
        turn: _Turn = asyncio.get_running_loop().create_future()
        queue = self._waiting[priority].setdefault(tenant_id, deque())
        queue.append(turn)
        self._count += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back(tenant_id)
            else:
                self._leave(tenant_id, priority, turn)
            raise

    def _leave(self, tenant_id: TenantId, priority: Priority, turn: _Turn) -> None:
        """Wait no longer."""
        queue = self._waiting[priority].get(tenant_id)
        if queue is None or turn not in queue:  # its turn came in the moment that it left
            return
        queue.remove(turn)
        self._count -= 1
        if not queue:
            del self._waiting[priority][tenant_id]

    def _grant(self, tenant_id: TenantId) -> None:
        self._free -= 1
        self._held[tenant_id] = self._held.get(tenant_id, 0) + 1

    def _give_back(self, tenant_id: TenantId) -> None:
        self._free += 1
        self._held[tenant_id] -= 1
        if not self._held[tenant_id]:
            del self._held[tenant_id]
        self._admit()

    def _admit(self) -> None:
        """Let in whoever is next, as long as there is room."""
        for priority in _ORDER:
            tenants = self._waiting[priority]
            while tenants and self._open_to(priority):
                # The one with the fewest trees at work; of those, the one whose last turn is longest ago.
                tenant_id = min(tenants, key=lambda each: self._held.get(each, 0))
                queue = tenants.pop(tenant_id)
                turn = queue.popleft()
                self._count -= 1
                if queue:
                    tenants[tenant_id] = queue  # to the end of the row
                if not turn.cancelled():
                    self._grant(tenant_id)
                    turn.set_result(None)
