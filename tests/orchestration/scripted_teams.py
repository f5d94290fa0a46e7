"""Teams that do what a test says: for doors, which only see what `Teams` tells them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import uuid_utils

from hortator.call import Caller
from hortator.errors import HortatorError
from hortator.orchestration.teams import Order, Teams
from hortator.store.tasks import Task
from hortator.wire.events import ENDS, Delta, Event

PHASES = {
    "completed": "Completed",
    "failed": "Failed",
    "cancelled": "Cancelled",
    "budget_exceeded": "BudgetExceeded",
    "timed_out": "TimedOut",
}
AT = "2026-11-21T12:00:00.000Z"


@dataclass
class Run:
    """One tree: what happens in it, in order. A string is a gate: nothing more happens until it is opened."""

    items: Sequence[Event | Delta | str] = ()
    results: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    usage: tuple[int, int] = (0, 0)
    refusal: HortatorError | None = None
    """What submitting raises."""
    slow: str | None = None
    """Submitting waits for this gate."""
    task: Task | None = None
    order: Order | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    reached: dict[str, asyncio.Event] = field(default_factory=dict)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)

    def gate(self, name: str) -> asyncio.Event:
        """The gate of that name."""
        return self.gates.setdefault(name, asyncio.Event())

    def at(self, name: str) -> asyncio.Event:
        """Set when somebody waits at the gate of that name."""
        return self.reached.setdefault(name, asyncio.Event())

    async def wait(self, name: str) -> None:
        self.at(name).set()
        await self.gate(name).wait()


def event(seq: int, type: str, **fields: Any) -> Event:
    """An event of a tree whose id does not matter."""
    return Event(seq=seq, task_id="root", type=type, timestamp=AT, **fields)


def words(*texts: str, run: int = 1) -> list[Delta]:
    """The deltas of these texts, one after the other."""
    starts = [sum(len(text) for text in texts[:place]) for place in range(len(texts))]
    return [Delta(task_id="root", run=run, offset=start, text=text) for start, text in zip(starts, texts, strict=True)]


class ScriptedTeams(Teams):
    """Each order plays the next run that was planned."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.planned: list[Run] = []
        self.runs: dict[str, Run] = {}
        self.cancelled: list[str] = []
        self.orders: list[Order] = []
        self.callers: list[Caller] = []
        self.followers = 0

    def plan(self, run: Run) -> Run:
        """Have the next order play this."""
        self.planned.append(run)
        return run

    async def submit(self, caller: Caller, order: Order, *, id: str | None = None) -> Task:
        run = self.planned.pop(0)
        self.orders.append(order)
        self.callers.append(caller)
        run.order = order
        if run.slow is not None:
            await run.wait(run.slow)
        if run.refusal is not None:
            raise run.refusal
        id = id or str(uuid_utils.uuid7())
        run.task = Task(
            id=id,
            tenant_id=caller.tenant_id,
            root_id=id,
            parent_task_id=None,
            key_hash=caller.key_hash,
            name="scripted",
            status="Pending",
            task_type=order.task_type,
            model=order.model,
            role="generalist",
            tier="tribune",
            pattern=order.pattern,
            source=order.source,
            priority="standard",
            depth=0,
            position=0,
            created_at=datetime.now(UTC),
            request={},
        )
        self.runs[id] = run
        return run.task

    async def find(self, caller: Caller, id: str) -> Task:
        task = self.runs[id].task
        assert task is not None
        return task

    async def cancel(self, caller: Caller, id: str) -> Task:
        self.cancelled.append(id)
        return await self.find(caller, id)

    async def finished(self, caller: Caller, id: str, timeout: float | None = None) -> Task:
        async for _ in self.follow(caller, id):
            pass
        return await self.find(caller, id)

    async def follow(
        self, caller: Caller, id: str, after: int = 0, *, deltas: bool = False
    ) -> AsyncIterator[Event | Delta]:
        run = self.runs[id]
        self.followers += 1
        try:
            for item in run.items:
                if isinstance(item, str):
                    await run.wait(item)
                    continue
                if isinstance(item, Event) and item.type in ENDS:
                    self._end(run, item)
                if deltas or isinstance(item, Event):
                    yield item
        finally:
            self.followers -= 1

    def _end(self, run: Run, last: Event) -> None:
        assert run.task is not None
        run.task = run.task._replace(
            status=PHASES[last.type],
            results=run.results,
            error=run.error,
            message=last.message,
            input_tokens=run.usage[0],
            output_tokens=run.usage[1],
        )
