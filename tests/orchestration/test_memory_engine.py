"""The engine of the other tests keeps the port's promises too."""

from __future__ import annotations

import asyncio

import pytest

from tests.orchestration.memory_engine import MemoryEngine


async def test_a_finished_step_is_not_run_again_after_a_crash_in_a_later_one() -> None:
    engine, seen = MemoryEngine(), []

    async def act() -> str:
        return "once"

    async def handler(id: str) -> None:
        seen.append([await engine.step("a", act), await engine.step("b", act)])

    engine.dies_in = {"b"}
    await engine.start({"tree": handler})
    await engine.begin("tree", "t1", tenant_id="acme")
    await asyncio.wait_for(engine.died.wait(), 5)
    await engine.crash()
    assert seen == []
    await engine.start({"tree": handler})
    await engine.begin("tree", "t1", tenant_id="acme")
    await engine.settled()
    work = engine.work["tree", "t1"]
    assert seen == [["once", "once"]]
    assert work.acts == ["a", "b", "b"]
    assert (work.runs, work.finished) == (2, True)


async def test_a_step_outside_of_a_handler_fails() -> None:
    async def act() -> None:
        return None

    with pytest.raises(RuntimeError, match="outside"):
        await MemoryEngine().step("a", act)


async def test_steps_in_another_order_fail_the_test() -> None:
    engine, keys = MemoryEngine(), iter(["a", "b", "b", "a"])

    async def act() -> None:
        return None

    async def handler(id: str) -> None:
        await engine.step(next(keys), act)
        await engine.step(next(keys), act)

    engine.dies_in = {"b"}
    await engine.start({"tree": handler})
    await engine.begin("tree", "t1", tenant_id="acme")
    await asyncio.wait_for(engine.died.wait(), 5)
    await engine.crash()
    await engine.start({"tree": handler})
    with pytest.raises(AssertionError, match="step 0"):
        await engine.settled()
