"""A room of teams in memory, for tests of the doors in front of it: tasks are what the test says, and events come when it says so."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from msgspec.structs import asdict

from hortator.call import Caller
from hortator.errors import Conflict, Gone, NotFound
from hortator.orchestration.teams import Order, Teams
from hortator.store.tasks import File, Filter, Step, Task
from hortator.wire.events import ENDS, Delta, Event
from hortator.wire.tasks import TERMINAL

AT = datetime(2026, 11, 21, 12, tzinfo=UTC)
MISSING = NotFound("There is no such task.", code="task_not_found")


class FakeTeams(Teams):
    """Its tasks are in `tasks`, its files in `kept`; `orders` are those it was given."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.orders: list[Order] = []
        self.kept: dict[tuple[str, str], bytes] = {}
        self.logs: dict[str, list[Event]] = {}
        self.deltas: dict[str, list[Delta]] = {}
        """What whoever asks for text sees before the log."""
        self.done: list[Step] = []
        self.floor = 1
        self.views = 0
        self.given = 0
        """Files that were read."""
        self._news = asyncio.Condition()
        self._keys: dict[str, tuple[str, object]] = {}

    def root(self, caller: Caller, id: str, **fields: Any) -> Task:
        """A new root."""
        task = Task(
            id=id,
            tenant_id=caller.tenant_id,
            root_id=id,
            parent_task_id=None,
            key_hash=caller.key_hash,
            name="A task",
            status="Running",
            task_type="chat",
            model="hortator/default",
            role="default",
            tier="tribune",
            pattern="team",
            source="tasks",
            priority="standard",
            depth=0,
            position=0,
            created_at=AT,
            request={"messages": []},
        )
        self.tasks[id] = task._replace(**fields)
        return self.tasks[id]

    def child(self, parent: Task, **fields: Any) -> Task:
        """A task below another."""
        id = str(uuid.uuid4())
        own = {"id": id, "parent_task_id": parent.id, "depth": parent.depth + 1, **fields}
        self.tasks[id] = parent._replace(**own)
        return self.tasks[id]

    async def tell(self, root: str, *types: str, **fields: Any) -> None:
        """Append events to a log."""
        log = self.logs.setdefault(root, [])
        async with self._news:
            for type in types:
                log.append(
                    Event(seq=len(log) + 1, task_id=root, type=type, timestamp="2026-11-21T12:00:00.000Z", **fields)
                )
                if type in ENDS:
                    self.tasks[root] = self.tasks[root]._replace(status="Completed")
            self._news.notify_all()

    async def submit(self, caller: Caller, order: Order, *, id: str | None = None) -> Task:
        said = asdict(order)
        key = said.pop("idempotency_key")
        await asyncio.sleep(0)
        if key in self._keys:
            known, before = self._keys[key]
            if before != said:
                raise Conflict("The key belongs to another order.", code="idempotency_key_reused")
            return self.tasks[known]
        task = self.root(caller, id or str(uuid.uuid4()), source=order.source, task_type=order.task_type)
        if key is not None:
            self._keys[key] = (task.id, said)
        self.orders.append(order)
        return task

    async def find(self, caller: Caller, id: str) -> Task:
        task = self.tasks.get(id)
        if task is None or task.tenant_id != caller.tenant_id:
            raise MISSING
        return task

    async def page(self, caller: Caller, chosen: Filter, after: str | None, limit: int) -> list[Task]:
        found = [task for task in self.tasks.values() if task.tenant_id == caller.tenant_id]
        if chosen.roots:
            found = [task for task in found if task.depth == 0]
        if chosen.status is not None:
            found = [task for task in found if task.status == chosen.status]
        found.reverse()
        start = next((at + 1 for at, task in enumerate(found) if task.id == after), 0)
        return found[start : start + limit]

    async def tree(self, caller: Caller, id: str) -> list[Task]:
        found = [await self.find(caller, id)]
        for task in found:
            found += (each for each in self.tasks.values() if each.parent_task_id == task.id)
        return found

    async def counted(self, caller: Caller, ids: Sequence[str]) -> dict[str, dict[str, int]]:
        return {id: dict(Counter(task.status for task in await self.tree(caller, id))) for id in ids}

    async def cancel(self, caller: Caller, id: str) -> Task:
        task = await self.find(caller, id)
        if task.status not in TERMINAL:
            await self.tell(task.root_id, "cancelled")
            self.tasks[id] = task._replace(status="Cancelled")
        return self.tasks[id]

    async def say(self, caller: Caller, id: str, text: str) -> Event:
        task = await self.find(caller, id)
        if task.status in TERMINAL:
            raise Conflict("The task has ended.", code="task_not_running")
        await self.tell(task.root_id, "user_message", content=text)
        return self.logs[task.root_id][-1]

    async def steps(self, caller: Caller, id: str) -> list[Step]:
        ids = {task.id for task in await self.tree(caller, id)}
        return [step for step in self.done if step.task_id in ids]

    async def files(self, caller: Caller, id: str, prefix: str = "outbox/") -> list[File]:
        ids = [task.id for task in await self.tree(caller, id)]
        found = sorted(self.kept.items(), key=lambda item: (ids.index(item[0][0]), item[0][1]))
        return [_file(*key, content) for key, content in found if key[0] in ids and key[1].startswith(prefix)]

    async def file(self, caller: Caller, id: str, path: str) -> tuple[File, bytes]:
        for task in await self.tree(caller, id):
            if (task.id, path) in self.kept:
                content = self.kept[task.id, path]
                self.given += 1
                return _file(task.id, path, content), content
        raise NotFound("There is no such artifact.", code="artifact_not_found")

    async def events(self, caller: Caller, id: str, after: int, limit: int) -> list[Event]:
        task = await self.find(caller, id)
        return self.logs.get(task.root_id, [])[after : after + limit]

    async def follow(
        self, caller: Caller, id: str, after: int = 0, *, deltas: bool = False
    ) -> AsyncIterator[Event | Delta]:
        task = await self.find(caller, id)
        if after + 1 < self.floor:
            raise Gone("Those events are not kept.", code="events_expired")
        self.views += 1
        try:
            for delta in self.deltas.get(task.root_id, ()) if deltas else ():
                yield delta
            log = self.logs.setdefault(task.root_id, [])
            ended = bool(log) and log[-1].type in ENDS and after >= len(log)
            while not ended:
                async with self._news:
                    while len(log) <= after:
                        await self._news.wait()
                for event in log[after:]:
                    after = event.seq
                    yield event
                    ended = event.type in ENDS
        finally:
            self.views -= 1

    async def finished(self, caller: Caller, id: str, timeout: float | None = None) -> Task:
        await self.find(caller, id)
        try:
            async with asyncio.timeout(timeout), self._news:
                await self._news.wait_for(lambda: self.tasks[id].status in TERMINAL)
        except TimeoutError:
            pass
        return self.tasks[id]


def _file(task_id: str, path: str, content: bytes) -> File:
    return File(task_id, path, len(content), "text/plain", hashlib.sha256(content).hexdigest(), AT)


def step(task: Task, key: str, cost: str | None, tokens: int) -> Step:
    """A model call that has ended."""
    charged = None if cost is None else Decimal(cost)
    return Step(task.id, key, task.root_id, "model", "one/m", "finished", 1, AT, AT, input_tokens=tokens, cost=charged)


__all__: Sequence[str] = ("AT", "FakeTeams", "step")
