"""Every statement on tasks, their steps, events and files. What belongs to a tenant is reached through `TaskScope`, which adds the filter.

Called by `orchestration/`. A change of a task and the events that tell of it are one transaction; an event's `seq` is taken from its
root's row in that transaction, so that a reader who asks for what follows a `seq` misses nothing. After the commit the events are told
to `told`. Everything is written so that doing it twice does it once: workers run again what a dead one had begun.
Whoever changes a tree holds its root's row first, so that its writers come one after another and never wait for each other in a ring.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, and_, bindparam, delete, func, insert, or_, select, update

from hortator.store.database import Database
from hortator.store.queries import prepared
from hortator.store.tables import task_events, task_files, task_steps, tasks, tenants
from hortator.store.task_files import TaskFileScope, file_row
from hortator.store.task_rows import (
    MESSAGE_CHARACTERS,
    UNFINISHED,
    Added,
    Ended,
    File,
    Filter,
    Grant,
    Level,
    NewEvent,
    NewFile,
    Outline,
    Place,
    Step,
    Task,
    Told,
    Took,
    Want,
    as_task,
    now,
    plain,
    text,
)
from hortator.store.task_steps import StepScope
from hortator.wire.events import Event

__all__ = [
    "UNFINISHED",
    "Added",
    "Ended",
    "File",
    "Filter",
    "Grant",
    "NewEvent",
    "NewFile",
    "Outline",
    "Place",
    "State",
    "Step",
    "Task",
    "TaskScope",
    "Told",
    "Took",
    "Want",
    "cancelled_since",
    "find_work",
    "forget_trees",
    "states",
    "unfinished_roots",
]

_NOTHING = Decimal(0)
_JSON = frozenset({"request", "config", "results", "error"})


class TaskScope(StepScope, TaskFileScope):
    """The tasks of one tenant."""

    async def add(
        self, root: Task, files: Sequence[NewFile], events: Sequence[NewEvent], unfinished: int
    ) -> Added | None:
        """Keep a new root with its input files; None where the tenant has `unfinished` roots that have not ended. Raises Unavailable."""
        column = tasks.c
        kept = as_kept(root)._replace(tenant_id=self.tenant_id)

        def act(connection: Connection) -> tuple[Added | None, list[Event]]:
            # Two orders with one key, or for the last free place, come one after another.
            connection.execute(self._rows(tenants, tenants.c.id).with_for_update(key_share=True))
            if root.idempotency_key is not None:
                known = self._rows(tasks).where(column.idempotency_key == root.idempotency_key)
                row = connection.execute(known).first()
                if row is not None:
                    found = as_task(row)
                    return Added(found, created=False, same=found.fingerprint == root.fingerprint), []
            open_ = self._rows(tasks, column.id).where(column.parent_task_id.is_(None), column.status.in_(UNFINISHED))
            found_open = open_.limit(unfinished).subquery()
            counted = found_open.select().with_only_columns(func.count(found_open.c.id))
            if connection.execute(counted).scalar_one() >= unfinished:
                return None, []
            connection.execute(insert(tasks).values({**kept._asdict(), "tenant_id": self.tenant_id}))
            self._put_all(connection, [(kept, file) for file in files])
            told = self._append(connection, root.id, events)
            return Added(kept._replace(last_seq=kept.last_seq + len(told)), created=True, same=True), told

        added, told = await self._database.work(act)
        self._tell(told)
        return added

    def _put_all(self, connection: Connection, files: Sequence[tuple[Task, NewFile]]) -> None:
        """Insert the files of new tasks."""
        rows = [{**file_row(task, file), "tenant_id": self.tenant_id} for task, file in files]
        if rows:
            connection.execute(insert(task_files), [{**row, "tenant_id": self.tenant_id} for row in rows])

    async def find(self, id: str) -> Task | None:
        """The task of that id. Raises Unavailable."""
        rows = await self._database.rows(self._one_task(), {"this": id})
        return Task._make(rows[0]) if rows else None

    @prepared
    def _one_task(self) -> Select[Any]:
        return self._rows(tasks, *(tasks.c[name] for name in Task._fields)).where(tasks.c.id == bindparam("this"))

    @prepared
    def _places(self) -> Select[Any]:
        return self._rows(tasks, *(tasks.c[name] for name in Place._fields)).where(tasks.c.id == bindparam("this"))

    @prepared
    def _trees(self) -> Select[Any]:
        column = tasks.c
        statement = self._rows(tasks, *(column[name] for name in Task._fields)).where(
            column.root_id == bindparam("root")
        )
        return statement.order_by(column.depth, column.position, column.created_at, column.id)

    async def page(self, chosen: Filter, after: str | None, limit: int) -> list[Task]:
        """At most `limit` tasks older than the one of id `after`, newest first; none where that is none of theirs. Raises Unavailable."""
        column = tasks.c
        statement = self._rows(tasks).order_by(column.created_at.desc(), column.id.desc()).limit(limit)
        if chosen.roots:
            statement = statement.where(column.parent_task_id.is_(None))
        for name in ("status", "task_type", "model", "source", "pattern"):
            wanted = getattr(chosen, name)
            if wanted is not None:
                statement = statement.where(column[name] == wanted)
        async with self._database.read() as connection:
            if after is not None:
                place = self._rows(tasks, column.created_at).where(column.id == after)
                at = (await connection.execute(place)).scalar()
                if at is None:
                    return []
                statement = statement.where(
                    column.created_at <= at,
                    or_(column.created_at < at, and_(column.created_at == at, column.id < after)),
                )
            return [as_task(row) for row in await connection.execute(statement)]

    async def tree(self, root_id: str) -> list[Task]:
        """All tasks of a tree, parents before children, siblings by position. Raises Unavailable."""
        return [Task._make(row) for row in await self._database.rows(self._trees(), {"root": root_id})]

    async def outline(self, root_id: str) -> list[Outline]:
        """How far the tasks of a tree are, in the order of `tree`. Raises Unavailable."""
        return [Outline._make(row) for row in await self._database.rows(self._outlines(), {"root": root_id})]

    @prepared
    def _outlines(self) -> Select[Any]:
        column = tasks.c
        statement = self._rows(tasks, *(column[name] for name in Outline._fields))
        statement = statement.where(column.root_id == bindparam("root"))
        return statement.order_by(column.depth, column.position, column.created_at, column.id)

    async def counted(self, root_ids: Sequence[str]) -> dict[str, dict[str, int]]:
        """How many tasks each of these trees has, by status. Raises Unavailable."""
        column = tasks.c
        statement = self._rows(tasks, column.root_id, column.status, func.count()).where(column.root_id.in_(root_ids))
        found: dict[str, dict[str, int]] = {id: {} for id in root_ids}
        async with self._database.read() as connection:
            rows = await connection.execute(statement.group_by(column.root_id, column.status).order_by(column.status))
            for root_id, status, count in rows:
                found[root_id][status] = count
        return found

    async def spawn(
        self,
        parent: Task,
        children: Sequence[Task],
        files: Sequence[tuple[str, NewFile]],
        events: Sequence[NewEvent],
        most: int,
    ) -> bool:
        """Add children that are not there yet, with files (by child id). Their share of the parent's budget is checked by who made them.

        False, and nothing is added, where the parent has ended or the tree would have more than `most` tasks. Events about children
        that are there already are left out. Raises Unavailable.
        """
        column = tasks.c

        def act(connection: Connection) -> tuple[bool, list[Event]]:
            self._lock(connection, parent.root_id)
            status = connection.execute(self._rows(tasks, column.status).where(column.id == parent.id)).scalar()
            there = self._rows(tasks, column.id).where(column.root_id == parent.root_id)
            known = {id for (id,) in connection.execute(there)}
            new = {each.id: as_kept(each) for each in children if each.id not in known}
            if children and not new:
                return True, []
            if status not in UNFINISHED or len(known) + len(new) > most:
                return False, []
            rows = [each._asdict() for each in new.values()]
            if rows:
                connection.execute(insert(tasks), [{**row, "tenant_id": self.tenant_id} for row in rows])
            self._put_all(connection, [(new[id], file) for id, file in files if id in new])
            old = {each.id for each in children} - new.keys()
            told = self._append(connection, parent.root_id, [each for each in events if each.task_id not in old])
            return True, told

        added, told = await self._database.work(act)
        self._tell(told)
        return added

    async def change(
        self,
        id: str,
        to: str,
        *,
        of: Sequence[str],
        values: Mapping[str, Any],
        events: Sequence[NewEvent],
        place: Task | Place | None = None,
    ) -> bool:
        """Move a task to the phase `to` if it is in one of `of`, with other columns and events; False (and no event) otherwise.

        A terminal phase sets `completed_at` and releases what the task's own steps hold; nothing leaves one. `place`: where the task is,
        if the caller knows; it never changes. Raises Unavailable.
        """
        ends = to not in UNFINISHED
        new = {"completed_at": now(), **_clean(values)} if ends else _clean(values)

        def act(connection: Connection) -> list[Event] | None:
            path = self._path_of(connection, id) if place is None else self._path(connection, place)
            task = path[-1] if path else None
            if task is None or task.id != id or task.status not in of or task.status not in UNFINISHED:
                return None
            return self._change(connection, path, {**new, "status": to}, events)

        told = await self._database.work(act)
        self._tell(told or (), [id] if ends and told is not None else [])
        return told is not None

    def _change(
        self, connection: Connection, path: Sequence[Level], values: Mapping[str, Any], events: Sequence[NewEvent]
    ) -> list[Event]:
        """Change the last of a path that is held, and append to its tree's log."""
        root, task = path[0], path[-1]
        ended = root.status not in UNFINISHED
        if ended and events and self._ended(connection, root.id, root.last_seq):
            events = ()
        last_seq = root.last_seq + len(events)
        own = {"last_seq": last_seq} if root is task else {}
        connection.execute(self._changes(), {**values, **own, "this": task.id})
        ends = values["status"] not in UNFINISHED
        if ends and task.held_tokens:
            self._release(connection, path)
        if not events:
            return []
        if root is not task:
            connection.execute(self._changes(), {"this": root.id, "last_seq": last_seq})
        return self._write_events(connection, root.id, root.last_seq, ended or (root is task and ends), events)

    def _path_of(self, connection: Connection, id: str) -> list[Level]:
        """A task of that id and all above it, root first, locked; nothing where there is none."""
        row = connection.execute(self._places(), {"this": id}).first()
        return [] if row is None else self._path(connection, Place._make(row))

    def _release(self, connection: Connection, path: Sequence[Level]) -> None:
        """Release what the last task's own steps hold, in it and in all above."""
        step, column = task_steps.c, tasks.c
        own = self._rows(task_steps, func.sum(step.held_tokens), func.sum(step.held_cost))
        sums = (connection.execute(own.where(step.task_id == path[-1].id, step.status == "running"))).one()
        tokens, cost = sums
        if not tokens:
            return
        freed = update(task_steps).where(self._where(task_steps), step.task_id == path[-1].id, step.status == "running")
        connection.execute(freed.values(held_tokens=0, held_cost=_NOTHING))
        released = update(tasks).where(self._where(tasks), column.id.in_([each.id for each in path]))
        connection.execute(released.values(held_tokens=column.held_tokens - tokens, held_cost=column.held_cost - cost))

    def _below(self, id: str) -> Select[Any]:
        """Ids of a task and all below it."""
        column = tasks.c
        start = self._rows(tasks, column.id).where(column.id == id).cte("below", recursive=True)
        whole = start.union_all(self._rows(tasks, column.id).where(column.parent_task_id == start.c.id))
        return whole.select()

    async def cancel(self, id: str, message: str) -> list[str]:
        """Cancel a task and all below it that have not ended; returns their ids. One transaction. Raises Unavailable.

        What they hold is released: a call that is still running is charged all the same when it ends.
        """
        ids, told = await self._database.work(lambda connection: self._cancel(connection, id, message))
        self._tell(told, ids)
        return ids

    def _cancel(self, connection: Connection, id: str, message: str) -> tuple[list[str], list[Event]]:
        column = tasks.c
        path = self._path_of(connection, id)
        if not path:
            return [], []
        below = [each for (each,) in connection.execute(self._below(id))]
        ended = [task for task in self._locked(connection, below) if task.status in UNFINISHED]
        if not ended:
            return [], []
        ids = [task.id for task in ended]
        shown = text(message)[:MESSAGE_CHARACTERS]
        changed = update(tasks).where(self._where(tasks), column.id.in_(ids))
        error = {"code": "task_cancelled", "message": shown}
        connection.execute(changed.values(status="Cancelled", completed_at=now(), message=shown, error=error))
        freed = update(task_steps).where(self._where(task_steps), task_steps.c.task_id.in_(below))
        connection.execute(freed.where(task_steps.c.status == "running").values(held_tokens=0, held_cost=_NOTHING))
        emptied = update(tasks).where(self._where(tasks), column.id.in_(below))
        connection.execute(emptied.values(held_tokens=0, held_cost=_NOTHING))
        held = path[-1]
        if len(path) > 1 and held.held_tokens:
            above = update(tasks).where(self._where(tasks), column.id.in_([each.id for each in path[:-1]]))
            connection.execute(
                above.values(
                    held_tokens=column.held_tokens - held.held_tokens, held_cost=column.held_cost - held.held_cost
                )
            )
        return ids, self._append(connection, path[0].id, _cancelled(ended, shown))


def as_kept(task: Task) -> Task:
    """Return a task as both databases take it."""
    return task._replace(
        name=text(task.name)[:200],
        message=text(task.message)[:MESSAGE_CHARACTERS],
        request=plain(task.request),
        config=plain(task.config),
        results=plain(task.results),
        error=plain(task.error),
    )


def _clean(values: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of a change, as both databases take them."""
    cleaned = {name: plain(value) if name in _JSON else value for name, value in values.items()}
    if "message" in cleaned:
        cleaned["message"] = text(cleaned["message"])[:MESSAGE_CHARACTERS]
    return cleaned


def _cancelled(ended: Sequence[Level], message: str) -> list[NewEvent]:
    """What is told of tasks that were cancelled, parents first in `ended`: the tree's own end comes last."""
    told = [
        NewEvent(type="agent_cancelled", task_id=task.id, fields={"task": task.name, "message": message})
        for task in reversed(ended)
        if task.depth
    ]
    root = next((task for task in ended if not task.depth), None)
    if root is not None:
        fields = {"message": message, "details": {"code": "task_cancelled"}}
        told.append(NewEvent(type="cancelled", task_id=root.id, fields=fields))
    return told


@functools.cache
def _any_task() -> Select[Any]:
    return select(*(tasks.c[name] for name in Task._fields)).where(tasks.c.id == bindparam("this"))


async def find_work(database: Database, id: str) -> Task | None:
    """A task of any tenant, for who works on it. Raises Unavailable."""
    rows = await database.rows(_any_task(), {"this": id})
    return Task._make(rows[0]) if rows else None


async def unfinished_roots(database: Database, after: str | None, limit: int) -> list[Task]:
    """Roots of any tenant that have not ended, oldest first, behind the one of id `after`: for who makes sure that they are worked on."""
    column = tasks.c
    statement = select(tasks).where(column.status.in_(UNFINISHED), column.parent_task_id.is_(None))
    if after is not None:
        statement = statement.where(column.id > after)
    async with database.read() as connection:
        return [as_task(row) for row in await connection.execute(statement.order_by(column.id).limit(limit))]


class State(NamedTuple):
    """How far a task is."""

    status: str
    last_seq: int


async def states(database: Database, ids: Sequence[str]) -> dict[str, State]:
    """How far tasks of any tenants are, for who shows and waits for them; those that are no more are missing. Raises Unavailable."""
    column = tasks.c
    found: dict[str, State] = {}
    for start in range(0, len(ids), 500):
        some = select(column.id, column.status, column.last_seq).where(column.id.in_(ids[start : start + 500]))
        found |= {id: State(status, last) for id, status, last in await database.rows(some)}
    return found


async def cancelled_since(database: Database, moment: datetime) -> list[str]:
    """Ids of tasks of any tenant that were cancelled from that moment on, for who works on them. Raises Unavailable."""
    column = tasks.c
    statement = select(column.id).where(column.status == "Cancelled", column.completed_at >= moment)
    async with database.read() as connection:
        return [id for (id,) in await connection.execute(statement)]


async def forget_trees(database: Database, before: datetime, limit: int) -> list[str]:
    """Delete at most `limit` trees that ended before that moment, with everything of theirs; returns the roots' ids. Raises Unavailable.

    A task of theirs that has not ended goes with them.
    """
    column = tasks.c
    old = select(column.id).where(
        column.parent_task_id.is_(None), column.status.not_in(UNFINISHED), column.completed_at < before
    )
    async with database.write() as connection:
        # Replicas that delete at the same time take different ones.
        chosen = old.order_by(column.completed_at).limit(limit).with_for_update(skip_locked=True)
        ids = [id for (id,) in await connection.execute(chosen)]
        for table in (task_events, task_files, task_steps, tasks) if ids else ():
            await connection.execute(delete(table).where(table.c.root_id.in_(ids)))
    return ids
