"""Who runs when not everybody can."""

from __future__ import annotations

import asyncio
import time

import pytest

from hortator.call import Priority
from hortator.errors import Overloaded
from hortator.tenancy.admission import AGING, Admission

PATIENCE = 20.0


def later() -> float:
    return time.monotonic() + PATIENCE


def admission(places: int = 1, queue: int = 100, wait: float = PATIENCE) -> Admission:
    return Admission(max_concurrent=places, max_queue=queue, max_wait=wait)


async def queued(room: Admission, *names: Priority, order: list[str]) -> list[asyncio.Task[None]]:
    """Let calls of these classes wait, in this order; each notes in `order` when it gets its place, and keeps it."""

    async def one(place: int, name: Priority) -> None:
        await room.wait(name, later())
        order.append(f"{name}{place}")

    tasks = []
    for place, name in enumerate(names):
        waiting = sum(room.gauges.queued.values())
        tasks.append(asyncio.create_task(one(place, name)))
        async with asyncio.timeout(PATIENCE):
            while sum(room.gauges.queued.values()) == waiting:
                await asyncio.sleep(0)
    return tasks


async def leave_all(room: Admission, tasks: list[asyncio.Task[None]]) -> None:
    """Give places back, one after the other, until nobody waits."""
    async with asyncio.timeout(PATIENCE):
        for _ in tasks:
            done = sum(task.done() for task in tasks)
            room.leave()
            while sum(task.done() for task in tasks) == done:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)


async def test_higher_classes_go_first_and_within_a_class_the_first_come() -> None:
    """R-000-72."""
    room, order = admission(), list[str]()
    assert room.enter("low")
    tasks = await queued(room, "low", "standard", "high", "standard", "high", order=order)
    assert not room.enter("high")
    await leave_all(room, tasks)
    assert order == ["high2", "high4", "standard1", "standard3", "low0"]
    assert room.gauges.running == 1


async def test_a_low_call_does_not_wait_forever_behind_high_ones() -> None:
    room, order = admission(), list[str]()
    assert room.enter("high")
    highs: list[Priority] = ["high"] * (2 * AGING)
    await leave_all(room, await queued(room, "low", *highs, order=order))
    assert order.index("low0") == AGING - 1


async def test_low_calls_leave_places_for_standard_and_standard_for_high() -> None:
    room = admission(places=100)
    assert sum(room.enter("low") for _ in range(200)) == 90
    assert sum(room.enter("standard") for _ in range(200)) == 5
    assert sum(room.enter("high") for _ in range(200)) == 5
    assert room.gauges.running == 100


async def test_a_queue_that_is_full_turns_away_the_newest_of_the_lowest_class_for_a_higher_one() -> None:
    room, order = admission(queue=2), list[str]()
    assert room.enter("standard")
    tasks = await queued(room, "low", "low", order=order)
    with pytest.raises(Overloaded) as refused:
        await room.wait("low", later())
    assert refused.value.code == "overloaded"
    assert refused.value.retry_after == PATIENCE
    more = asyncio.create_task(room.wait("high", later()))
    with pytest.raises(Overloaded):
        await tasks[1]
    assert room.gauges.queued == {"high": 1, "standard": 0, "low": 1}
    assert room.gauges.refused == {"high": 0, "standard": 0, "low": 2}
    room.leave()
    await more
    room.leave()
    await tasks[0]


@pytest.mark.parametrize(("max_wait", "until_deadline"), [(0.01, PATIENCE), (PATIENCE, 0.01), (PATIENCE, -1.0)])
async def test_nobody_waits_past_the_longest_wait_or_its_own_deadline(max_wait: float, until_deadline: float) -> None:
    room = admission(wait=max_wait)
    assert room.enter("high")
    async with asyncio.timeout(PATIENCE / 2):
        with pytest.raises(Overloaded):
            await room.wait("high", time.monotonic() + until_deadline)
    assert room.gauges.queued["high"] == 0
    room.leave()
    assert room.enter("high")


async def test_a_call_that_is_cancelled_leaves_the_queue_and_passes_on_the_place_it_just_got() -> None:
    room, order = admission(), list[str]()
    assert room.enter("high")
    first, second, third = await queued(room, "high", "high", "high", order=order)
    second.cancel()
    await asyncio.wait((second,))
    assert room.gauges.queued["high"] == 2
    room.leave()  # the place goes to the first, which is cancelled before it knows
    first.cancel()
    await asyncio.wait((first,))
    async with asyncio.timeout(PATIENCE):
        await third
    assert order == ["high2"]
    assert room.gauges.running == 1


async def test_of_a_thousand_calls_at_once_never_more_run_than_there_are_places() -> None:
    room = admission(places=7, queue=1000)
    most = 0

    async def one(name: Priority) -> None:
        nonlocal most
        if not room.enter(name):
            await room.wait(name, later())
        most = max(most, room.gauges.running)
        try:
            for _ in range(3):
                await asyncio.sleep(0)
        finally:
            room.leave()

    names: list[Priority] = ["low", "high", "standard", "high"]
    tasks = [asyncio.create_task(one(names[place % 4])) for place in range(1000)]
    for task in tasks[::10]:
        asyncio.get_running_loop().call_soon(task.cancel)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 7
    assert room.gauges.running == 0
    assert sum(room.gauges.queued.values()) == 0
