"""The room's door: what is asked of teams of agents, and what is told of them.

Doors (`api/tasks.py`, `api/orchestrations.py`, `api/socket.py`, the chat doors on `hortator/*`, Harpoon's) come here with a `Caller` that
the corridor has admitted; everything they see and touch is that caller's tenant's. The work itself is `tree.py`'s, run by the engine.
An order is kept first and begun after that: what a crash left between the two is begun by the sweep.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from random import random
from typing import Protocol

import uuid_utils

from hortator.call import Caller, TenantId
from hortator.errors import Conflict, Gone, InvalidRequest, NotFound, Overloaded, RateLimited, TooLarge, Unavailable
from hortator.orchestration import orders
from hortator.orchestration.events import Hub
from hortator.orchestration.orders import Order
from hortator.orchestration.ports import Engine
from hortator.orchestration.roles import Roles
from hortator.orchestration.slots import Slots
from hortator.settings import Orchestration
from hortator.store.database import Database
from hortator.store.tasks import File, Filter, NewEvent, Step, Task, TaskScope, forget_trees, unfinished_roots
from hortator.wire.events import Delta, Event
from hortator.wire.tasks import TERMINAL

__all__ = ["KIND", "Callbacks", "Order", "Teams"]

log = logging.getLogger("hortator.orchestration")

KIND = "task"
"""The kind of the engine's handlers that work on tasks."""
SWEEP_SECONDS = 30.0
FORGET_SECONDS = 3600.0
MESSAGE_CHARACTERS = 100_000
"""Longest message to a running tree."""
EVENTS = 1_000
_PAGE = 100
_BEGUN = 100_000
"""Most roots that a process remembers to have begun."""
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Callbacks(Protocol):
    """Calls to clients; `webhooks.py` makes them."""

    async def check(self, caller: Caller, url: str, events: Sequence[str] | None) -> None:
        """Say whether an order's callback can be taken. Raises InvalidRequest, RateLimited, Unavailable."""

    async def begin(self, tenant_id: TenantId, root_id: str, url: str, events: Sequence[str] | None) -> None:
        """Have the log of a tree sent, durably. A second time does nothing. Raises Unavailable."""


class Teams:
    """One per process."""

    def __init__(
        self,
        database: Database,
        engine: Engine,
        hub: Hub,
        roles: Roles,
        settings: Orchestration,
        *,
        callbacks: Callbacks | None = None,
        slots: Slots | None = None,
        ordered: Callable[[], None] = lambda: None,
        served: Callable[[str], bool] = lambda _: True,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`callbacks`: None = orders with a `callback_url` are refused. `slots`: the places of trees in this process, to say when it is full. `ordered` is told of each order.

        `served`: whether there is a model that an order names for its agents.
        """
        self._database = database
        self._engine = engine
        self._hub = hub
        self._roles = roles
        self._settings = settings
        self._callbacks = callbacks
        self._slots = slots
        self._ordered = ordered
        self._served = served
        self._clock = clock
        self._begun: dict[str, None] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def roles(self) -> Roles:
        """Who agents may be."""
        return self._roles

    async def start(self) -> None:
        """Begin what was kept and not begun, now and then every half minute; forget old trees every hour."""
        self._tasks = [
            asyncio.create_task(self._sweeps(), name="teams sweep"),
            asyncio.create_task(self._forgets(), name="teams retention"),
        ]

    async def stop(self) -> None:
        """Do nothing more of one's own accord."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks = []

    # Orders.

    async def submit(self, caller: Caller, order: Order, *, id: str | None = None) -> Task:
        """Take an order, durably, and have it worked on; returns the root, which is an earlier one where its idempotency key is known.

        `id`: the id (a UUID of version 7) that a new root gets; None = any. Another one is returned: the order was known.

        Raises InvalidRequest (unknown role, bad domain parameters, budget above the caller's own), NotFound (`model_not_found`, of the chat
        doors), Forbidden (a model or capability that the key may not use), TooLarge (files), RateLimited (`too_many_tasks`), Conflict
        (`idempotency_key_reused`), Overloaded, Unavailable.
        """
        known, at = id or str(uuid_utils.uuid7()), self._clock()
        new = orders.root(caller, order, self._roles, self._settings, at, known, self._served)
        if order.callback_url is not None:
            if self._callbacks is None:
                raise InvalidRequest("Nobody is called here.", code="url_not_allowed", param="callback_url")
            await self._callbacks.check(caller, order.callback_url, order.callback_events)
        if order.interactive and self._slots is not None and self._slots.waiting >= self._settings.max_trees:
            raise Overloaded("Too many tasks wait for a place; try again.", retry_after=5.0)
        most = self._settings.tenant_unfinished
        added = await self._hub.scope(caller.tenant_id).add(new.task, new.files, new.events, most)
        if added is None:
            raise RateLimited(f"{most} tasks of this tenant have not ended.", code="too_many_tasks")
        if not added.same:
            text = "That Idempotency-Key was used for another order."
            raise Conflict(text, code="idempotency_key_reused", param="idempotency_key")
        if added.task.status not in TERMINAL:
            self._ordered()
            try:
                await self._begin(added.task, here=order.interactive)
            except Unavailable:
                log.warning("a task is kept but could not be begun; it is tried again")
        return added.task

    async def _begin(self, root: Task, *, here: bool) -> None:
        """Have a root worked on; a second time does nothing. Raises Unavailable."""
        url = root.request.get("callback_url")
        if url is not None and self._callbacks is not None:
            await self._callbacks.begin(root.tenant_id, root.id, url, root.request.get("callback_events"))
        await self._engine.begin(KIND, root.id, tenant_id=root.tenant_id, priority=root.priority, here=here)
        self._begun[root.id] = None
        while len(self._begun) > _BEGUN:
            del self._begun[next(iter(self._begun))]

    async def counted(self, caller: Caller, ids: Sequence[str]) -> dict[str, dict[str, int]]:
        """How many tasks the trees of these roots have, by status."""
        return await self._scope(caller).counted(ids)

    async def cancel(self, caller: Caller, id: str) -> Task:
        """Cancel a task and all below it; running calls end within a second. One that has ended is left as it is. Raises NotFound."""
        task = await self.find(caller, id)
        if task.status not in TERMINAL:
            await self._scope(caller).cancel(task.id, "The task was cancelled")
            task = await self.find(caller, id)
        return task

    async def say(self, caller: Caller, id: str, text: str) -> Event:
        """Send a message to a running tree: its agents read it before their next model call.

        Raises NotFound, Conflict (`task_not_running`), InvalidRequest, TooLarge.
        """
        if not text.strip():
            raise InvalidRequest("'content' is empty.", code="invalid_value", param="content")
        if len(text) > MESSAGE_CHARACTERS:
            raise TooLarge(f"A message has at most {MESSAGE_CHARACTERS} characters.", param="content")
        task = await self.find(caller, id)
        told: list[Event] = []
        if task.status not in TERMINAL:
            message = NewEvent(type="user_message", task_id=task.id, fields={"content": text, "task": task.name})
            told = await self._scope(caller).emit(task.root_id, [message])
        if not told:
            raise Conflict("The task has ended.", code="task_not_running")
        return told[0]

    # Views.

    def _scope(self, caller: Caller) -> TaskScope:
        return self._hub.scope(caller.tenant_id)

    async def find(self, caller: Caller, id: str) -> Task:
        """A task, root or not. Raises NotFound (`task_not_found`; also for other tenants' and for what is no id), Unavailable."""
        task = await self._scope(caller).find(_known(id))
        if task is None:
            raise _missing()
        return task

    async def page(self, caller: Caller, chosen: Filter, after: str | None, limit: int) -> list[Task]:
        """At most `limit` tasks, newest first, older than the one of id `after`. Raises NotFound where that is no id."""
        return await self._scope(caller).page(chosen, None if after is None else _known(after), limit)

    async def tree(self, caller: Caller, id: str) -> list[Task]:
        """The task and all below it, parents first. Raises NotFound."""
        task = await self.find(caller, id)
        found = await self._scope(caller).tree(task.root_id)
        below = {task.id}
        for each in found:
            if each.parent_task_id in below:
                below.add(each.id)
        return [each for each in found if each.id in below]

    async def steps(self, caller: Caller, id: str) -> list[Step]:
        """Every model and tool call of the task and of all below it, in order. Raises NotFound."""
        tree = await self.tree(caller, id)
        below = {each.id for each in tree}
        return [each for each in await self._scope(caller).steps(tree[0].root_id) if each.task_id in below]

    async def files(self, caller: Caller, id: str, prefix: str = "outbox/") -> list[File]:
        """Files of the task and all below it (a child's keep its task id). Raises NotFound."""
        return await self._scope(caller).files([each.id for each in await self.tree(caller, id)], prefix)

    async def file(self, caller: Caller, id: str, path: str) -> tuple[File, bytes]:
        """A file of the task, or of the first task below it that has one of that path. Raises NotFound (`artifact_not_found`)."""
        scope = self._scope(caller)
        places = {each.id: at for at, each in enumerate(await self.tree(caller, id))}
        having = [each for each in await scope.files(list(places), path) if each.path == path]
        if having:
            found = await scope.file(min(having, key=lambda each: places[each.task_id]).task_id, path)
            if found is not None:
                return found
        raise NotFound("There is no such file.", code="artifact_not_found")

    async def events(self, caller: Caller, id: str, after: int, limit: int) -> list[Event]:
        """The log of the tree the task belongs to, behind `after`; at most 1,000 at once. Raises NotFound."""
        task = await self.find(caller, id)
        return await self._scope(caller).events(task.root_id, after, min(limit, EVENTS))

    async def follow(
        self, caller: Caller, id: str, after: int = 0, *, deltas: bool = False
    ) -> AsyncIterator[Event | Delta]:
        """The log behind `after`, then live, until the event that ends the tree. `deltas`: also the answer's text while it is written.

        Raises, at its first step, NotFound and Gone (`events_expired`: what follows `after` is not kept any more). However many follow,
        here they cost the database one small read every two seconds.
        """
        task = await self.find(caller, id)
        floor = await self._scope(caller).floor(task.root_id)
        if (floor is None and after < task.last_seq) or (floor is not None and after + 1 < floor):
            raise Gone("The events behind that one are not kept any more.", code="events_expired")
        async with contextlib.aclosing(self._hub.follow(caller.tenant_id, task.root_id, after, deltas)) as items:
            async for item in items:
                yield item

    async def finished(self, caller: Caller, id: str, timeout: float | None = None) -> Task:
        """The task once it has ended, or as it is after `timeout` seconds. Raises NotFound."""
        task = await self._hub.wait(caller.tenant_id, _known(id), timeout)
        if task is None:
            raise _missing()
        return task

    # What nobody asks for.

    async def _sweeps(self) -> None:
        first = True
        while True:
            try:
                await self.sweep(all=first)
                first = False
            except Unavailable:
                log.warning("tasks that were not begun cannot be looked for; it is tried again")
            await asyncio.sleep(SWEEP_SECONDS)

    async def _forgets(self) -> None:
        while True:
            await asyncio.sleep(60 + 60 * random())  # not all replicas at once
            with contextlib.suppress(Unavailable):
                await self.forget_old()
            await asyncio.sleep(FORGET_SECONDS - 120)

    async def sweep(self, *, all: bool = False) -> int:
        """Begin roots that were kept and not begun: by a process that died between the two, or while the engine was away. Returns how many.

        `all`: also those that are at work, for a process that starts.
        """
        before = self._clock() - timedelta(seconds=SWEEP_SECONDS)
        after, begun = None, 0
        while roots := await unfinished_roots(self._database, after, _PAGE):
            for root in roots:
                if root.id not in self._begun and (all or (root.status == "Pending" and root.created_at < before)):
                    await self._begin(root, here=False)
                    begun += 1
            after = roots[-1].id
        return begun

    async def forget_old(self) -> int:
        """Delete trees that ended before `orchestration.retention_days`. Returns how many."""
        before = self._clock() - timedelta(days=self._settings.retention_days)
        forgotten = 0
        while ids := await forget_trees(self._database, before, _PAGE):
            forgotten += len(ids)
            await asyncio.sleep(0)
        return forgotten


def _known(id: str) -> str:
    """An id as the store takes it. Raises NotFound."""
    if not _ID.fullmatch(id.lower()):
        raise _missing()
    return id.lower()


def _missing() -> NotFound:
    return NotFound("There is no such task.", code="task_not_found")
