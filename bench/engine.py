"""How much the durable engine costs: `python bench/engine.py [POSTGRES_URL]` (else SQLite in a temporary folder).

Prints the time of a step whose work takes none, one after another and with many handlers at once; how long 200 handlers of 7 children each take; how
long the event loop was away meanwhile; and what an engine costs that has nothing to do.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from hortator.orchestration.engine import DurableEngine
from hortator.store import Database, migrate

STEPS = 300
TREES, CHILDREN, CHILD_STEPS = 200, 7, 3
IDLE_SECONDS = 5.0


class Loop:
    """How long the event loop was away."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            at = time.perf_counter()
            await asyncio.sleep(0.001)
            self.times.append(time.perf_counter() - at - 0.001)

    def told(self) -> str:
        self._task.cancel()
        self.times.sort()
        return f"loop away p99 {self.times[len(self.times) * 99 // 100] * 1000:.1f} ms, most {self.times[-1] * 1000:.0f} ms"


async def act() -> dict[str, str]:
    """A step without work."""
    return {"text": "x" * 500}


async def measure(engine: DurableEngine) -> None:
    """Print the numbers."""
    done: dict[str, float] = {}
    ends = 0
    over = asyncio.Event()

    async def sequence(id: str) -> None:
        at = time.perf_counter()
        for n in range(STEPS):
            await engine.step(f"s{n}", act)
        done[id] = time.perf_counter() - at
        over.set()

    async def tree(id: str) -> None:
        await engine.step("plan", act)
        for n in range(CHILDREN):
            await engine.begin("task", f"{id}.{n}", tenant_id="bench")
        await engine.step("synthesis", act)
        count()

    async def task(id: str) -> None:
        for n in range(CHILD_STEPS):
            await engine.step(f"turn.{n}", act)
        count()

    def count() -> None:
        nonlocal ends
        ends += 1
        if ends == TREES * (CHILDREN + 1):
            over.set()

    at = time.perf_counter()
    await engine.start({"sequence": sequence, "tree": tree, "task": task})
    print(f"start {(time.perf_counter() - at) * 1000:.0f} ms")
    loop = Loop()
    await engine.begin("sequence", f"s{at}", tenant_id="bench")
    await over.wait()
    print(f"step, one after another: {done[f's{at}'] / STEPS * 1000:.2f} ms; {loop.told()}")
    over.clear()
    loop = Loop()
    at, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(engine.begin("tree", f"t{n}-{at}", tenant_id="bench") for n in range(TREES)))
    await over.wait()
    took, spent = time.perf_counter() - at, time.process_time() - cpu
    steps = TREES * (2 + CHILDREN * CHILD_STEPS)
    print(
        f"{TREES} trees of {CHILDREN} children, {steps} steps: {took:.1f} s, {took / steps * 1000:.2f} ms a step,"
        f" {spent / steps * 1000:.2f} ms CPU a step; {loop.told()}"
    )
    cpu = time.process_time()
    await asyncio.sleep(IDLE_SECONDS)
    print(f"idle: {(time.process_time() - cpu) / IDLE_SECONDS * 100:.1f} % of a CPU")
    at = time.perf_counter()
    await engine.stop()
    print(f"stop {(time.perf_counter() - at) * 1000:.0f} ms")


async def main(url: str | None) -> None:
    """Measure on what was asked for."""
    if url is None:
        with tempfile.TemporaryDirectory() as folder:
            await measure(DurableEngine(file=Path(folder) / "engine.db"))
        return
    database = Database(url)
    await migrate(database)
    await measure(DurableEngine(url=url, database=database, role="worker"))
    await database.close()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
