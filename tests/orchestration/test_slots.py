"""Places for trees: priority high first, a tenth kept for it, tenants in turn, nothing lost when one who waits leaves."""

from __future__ import annotations

import asyncio

import pytest

from hortator.call import Priority, TenantId
from hortator.errors import Overloaded
from hortator.orchestration.slots import Slots

A, B, C = TenantId("a"), TenantId("b"), TenantId("c")


class Trees:
    """Trees that hold places until they are ended."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.order: list[str] = []
        self._running: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Event] = {}

    async def begin(self, name: str, tenant: TenantId = A, priority: Priority = "standard") -> None:
        self._ends[name] = asyncio.Event()
        self._running[name] = asyncio.create_task(self._work(name, tenant, priority))
        await asyncio.sleep(0)

    async def _work(self, name: str, tenant: TenantId, priority: Priority) -> None:
        async with self.slots.hold(tenant, priority):
            self.order.append(name)
            await self._ends[name].wait()

    async def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
            await self._running[name]
        await asyncio.sleep(0)

    async def leave(self, name: str) -> None:
        self._running[name].cancel()
        await asyncio.gather(self._running[name], return_exceptions=True)
        await asyncio.sleep(0)


async def test_a_tenth_of_the_places_is_kept_for_priority_high() -> None:
    """R-000-41."""
    trees = Trees(Slots(20))
    for number in range(25):
        await trees.begin(str(number))
    assert (len(trees.order), trees.slots.free, trees.slots.waiting) == (18, 2, 7)
    for name in ("h1", "h2", "h3"):
        await trees.begin(name, B, "high")
    assert trees.order[18:] == ["h1", "h2"]
    await trees.end("0")
    assert trees.order[20:] == ["h3"]
    await trees.end("h1", "h2", "h3")
    assert (len(trees.order), trees.slots.free) == (22, 2)
    await trees.end("1")
    assert len(trees.order) == 23


async def test_who_waits_goes_in_by_priority_and_tenants_take_turns() -> None:
    trees = Trees(Slots(2))
    await trees.begin("first", C)
    for name, tenant, priority in (
        ("low", C, "low"),
        ("a1", A, "standard"),
        ("a2", A, "standard"),
        ("a3", A, "standard"),
        ("b1", B, "standard"),
        ("b2", B, "standard"),
    ):
        await trees.begin(name, tenant, priority)  # type: ignore[arg-type]
    for name in ("first", "a1", "b1", "a2", "b2", "a3"):
        await trees.end(name)
    assert trees.order == ["first", "a1", "b1", "a2", "b2", "a3", "low"]


async def test_a_tenant_with_less_at_work_goes_first() -> None:
    trees = Trees(Slots(4))
    for name, tenant in (("a1", A), ("a2", A), ("c1", C)):
        await trees.begin(name, tenant)
    for name, tenant in (("a3", A), ("b1", B)):
        await trees.begin(name, tenant)
    await trees.end("c1")
    await trees.end("a1")
    assert trees.order == ["a1", "a2", "c1", "b1", "a3"]


async def test_one_who_leaves_gives_up_its_turn_and_its_place() -> None:
    trees = Trees(Slots(2))
    for name in ("1", "2", "3"):
        await trees.begin(name)
    await trees.leave("2")
    await trees.leave("1")
    assert trees.order == ["1", "3"]
    # Let in and cancelled in one step: the place goes to the next.
    await trees.begin("4")
    await trees.begin("5")
    trees._ends["3"].set()
    await trees._running["3"]
    await trees.leave("4")
    assert trees.order[-1] == "5"
    await trees.end("5")
    assert (trees.slots.free, trees.slots.waiting) == (2, 0)


async def test_a_single_place_is_anybodys_and_waiting_is_bounded() -> None:
    trees = Trees(Slots(1, most_waiting=1))
    await trees.begin("1", A, "low")
    await trees.begin("2", A, "low")
    with pytest.raises(Overloaded):
        async with trees.slots.hold(B, "high"):
            pass
    await trees.end("1", "2")
    assert trees.order == ["1", "2"]
