"""What webhooks are tested with: a log of a tree that the test writes, and a receiver that notes every call and answers as planned."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec
import uuid_utils
from sqlalchemy import insert

from hortator.call import TenantId
from hortator.errors import HortatorError
from hortator.store import Database
from hortator.store.tables import tasks
from hortator.wire.events import ENDS, Delta, Event


class Log:
    """The logs of trees, as the hub shows them."""

    def __init__(self) -> None:
        self.events: dict[str, list[Event]] = {}
        self._more = asyncio.Condition()
        self._shut = 0

    async def shut(self) -> None:
        """End every view, as the hub does when it stops."""
        async with self._more:
            self._shut += 1
            self._more.notify_all()

    async def tell(self, root_id: str, type: str, **fields: Any) -> Event:
        """Append an event."""
        known = self.events.setdefault(root_id, [])
        at = f"2026-11-21T12:00:{len(known):02d}.000Z"
        event = Event(seq=len(known) + 1, task_id=root_id, type=type, timestamp=at, **fields)
        async with self._more:
            known.append(event)
            self._more.notify_all()
        return event

    async def follow(self, _: TenantId, root_id: str, after: int) -> AsyncGenerator[Event | Delta, None]:
        """Like the hub's."""
        known, before = self.events.setdefault(root_id, []), self._shut
        while True:
            async with self._more:
                while len(known) <= after and self._shut == before:
                    await self._more.wait()
            if self._shut != before:
                return
            event = known[after]
            after += 1
            yield event
            if event.type in ENDS:
                return


class Got(NamedTuple):
    """A call."""

    url: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def seq(self) -> int:
        """Of the event it tells of."""
        seq: int = self.json["event"]["seq"]
        return seq


class Reply(NamedTuple):
    """An answer."""

    status: int


class Receiver:
    """Stands in for the guarded client and whoever it reaches. `plan`: statuses, errors, or events to wait for before a 200."""

    def __init__(self) -> None:
        self.calls: list[Got] = []
        self.plan: deque[int | HortatorError | asyncio.Event] = deque()
        self.usual: int = 200
        self.refuses: HortatorError | None = None
        self.running = 0
        self.most = 0

    def check(self, _: str) -> None:
        """The client's."""
        if self.refuses is not None:
            raise self.refuses

    async def request(
        self,
        method: str,
        url: str,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes,
        *,
        timeout: float,
        max_bytes: int,
    ) -> Reply:
        """The client's."""
        assert method == "POST"
        self.calls.append(Got(url, {name.decode(): value.decode() for name, value in headers}, body))
        planned = self.plan.popleft() if self.plan else self.usual
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if isinstance(planned, HortatorError):
                raise planned
            if isinstance(planned, asyncio.Event):
                await planned.wait()
                return Reply(200)
            return Reply(planned)
        finally:
            self.running -= 1


async def add_root(database: Database, tenant_id: TenantId) -> str:
    """A tree without anything in it."""
    id = str(uuid_utils.uuid7())
    values = {
        "id": id,
        "tenant_id": tenant_id,
        "root_id": id,
        "key_hash": "0" * 64,
        "name": "a task",
        "status": "Running",
        "task_type": "chat",
        "role": "default",
        "tier": "tribune",
        "pattern": "team",
        "source": "tasks",
        "priority": "standard",
        "created_at": datetime.now(UTC),
        "request": {},
        "message": "",
        "held_cost": Decimal(0),
        "cost": Decimal(0),
    }
    numbers = "depth position progress held_tokens input_tokens output_tokens attempts last_seq".split()
    async with database.write() as connection:
        await connection.execute(insert(tasks).values(**values, **dict.fromkeys(numbers, 0)))
    return id
