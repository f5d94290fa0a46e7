"""Every statement on the log of a tree, `task_events`, and the lock that all writers of a tree take first: its root's row.

`TaskScope` (`tasks.py`) is this and more; the hub reads with it. An event's `seq` comes from its root's row in the transaction that
inserts it, so whoever waits for the row also waits for the events before: a reader who asks for what follows a `seq` misses nothing.
Nothing is appended behind the event that ended a tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, Integer, Row, Select, Update, bindparam, case, func, insert, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import ReturningUpdate

from hortator.call import TenantId
from hortator.store.database import Database
from hortator.store.queries import TenantRows, prepared
from hortator.store.tables import task_events, task_steps, tasks
from hortator.store.task_rows import UNFINISHED, Ended, Level, NewEvent, Told, as_event, now, plain
from hortator.wire.events import ENDS, Event

_KEY = 100


class EventScope(TenantRows):
    """The logs of one tenant's trees."""

    def __init__(self, database: Database, tenant_id: TenantId, told: Told, ended: Ended | None = None) -> None:
        """`told` is called with new events, `ended` with ids of tasks that ended, after their commit."""
        super().__init__(database, tenant_id)
        self._told = told
        self._over = ended

    def _tell(self, events: Sequence[Event], ended: Sequence[str] = ()) -> None:
        """After the commit."""
        if events:
            self._told(self.tenant_id, events)
        if ended and self._over is not None:
            self._over(self.tenant_id, ended)

    def _locked(self, connection: Connection, ids: Iterable[str]) -> list[Level]:
        """Tasks of one tree, root first, theirs to change until the end of the transaction. The ids contain the root's."""
        return [Level._make(row) for row in connection.execute(self._levels(), {"those": list(ids)})]

    @prepared
    def _levels(self) -> Select[Any]:
        chosen = tasks.c.id.in_(bindparam("those", expanding=True))
        columns = [tasks.c[name] for name in Level._fields]
        return self._rows(tasks, *columns).where(chosen).order_by(tasks.c.depth).with_for_update()

    @prepared
    def _lasts(self) -> Select[Any]:
        statement = self._rows(tasks, tasks.c.status, tasks.c.last_seq).where(tasks.c.id == bindparam("this"))
        return statement.with_for_update()

    def _lock(self, connection: Connection, root_id: str) -> Row[Any] | None:
        """Hold the tree: `status`, `last_seq` of its root, None where there is none."""
        row: Row[Any] | None = connection.execute(self._lasts(), {"this": root_id}).first()
        return row

    def _ended(self, connection: Connection, root_id: str, last_seq: int) -> bool:
        """Whether the last event of a log is an end."""
        last = self._rows(task_events, task_events.c.type).where(
            task_events.c.root_id == root_id, task_events.c.seq == last_seq
        )
        return connection.execute(last).scalar() in ENDS

    @prepared
    def _changes(self) -> Update:
        """Change one task; the values come as parameters."""
        return update(tasks).where(self._where(tasks), tasks.c.id == bindparam("this"))

    @prepared
    def _takes(self) -> ReturningUpdate[Any]:
        """Take numbers for events."""
        column = tasks.c
        taken = update(tasks).where(self._where(tasks), column.id == bindparam("this"))
        count = bindparam("count", type_=column.last_seq.type)
        return taken.values(last_seq=column.last_seq + count).returning(column.last_seq, column.status)

    def _append(self, connection: Connection, root_id: str, events: Sequence[NewEvent]) -> list[Event]:
        """Take numbers and insert; what is in the same transaction happens with it."""
        if not events:
            return []
        row = connection.execute(self._takes(), {"this": root_id, "count": len(events)}).first()
        if row is None:
            return []
        last, status = row
        if status not in UNFINISHED and self._ended(connection, root_id, last - len(events)):
            connection.execute(self._changes(), {"this": root_id, "last_seq": last - len(events)})
            return []
        return self._write_events(connection, root_id, last - len(events), status not in UNFINISHED, events)

    def _write_events(
        self, connection: Connection, root_id: str, last_seq: int, ended: bool, events: Sequence[NewEvent]
    ) -> list[Event]:
        """Insert events under the numbers behind `last_seq`, which the caller has taken."""
        if any(each.type in ENDS for each in (events[:-1] if ended else events)):
            raise ValueError("the event that ends a tree is its last, in or after the transaction that ends its root")
        at = now()
        rows: list[dict[str, Any]] = [
            {
                "root_id": root_id,
                "seq": seq,
                "task_id": each.task_id,
                "type": each.type,
                "payload": _payload(root_id, each),
                "at": at,
            }
            for seq, each in enumerate(events, last_seq + 1)
        ]
        connection.execute(insert(task_events), [{**row, "tenant_id": self.tenant_id} for row in rows])
        return [as_event(root_id, row["seq"], row["type"], row["payload"], at) for row in rows]

    async def emit(self, root_id: str, events: Sequence[NewEvent], *, once: str | None = None) -> list[Event]:
        """Append events to a tree's log; none after the event that ended it. `once`: a name in the root's log that makes a second
        call do nothing. Raises Unavailable.
        """

        def act(connection: Connection) -> list[Event]:
            if once is None or self._first(connection, root_id, once):
                return self._append(connection, root_id, events)
            return []

        told = await self._database.work(act)
        self._tell(told)
        return told

    def _first(self, connection: Connection, root_id: str, name: str) -> bool:
        """Write down that something was told; False where it was before. A row among the steps, whose keys are unique."""
        key = f"once.{name}"
        if len(key) > _KEY:
            key = f"once.{sha256(name.encode()).hexdigest()}"
        at = now()
        row = {
            "task_id": root_id,
            "key": key,
            "root_id": root_id,
            "kind": "once",
            "name": "",
            "status": "finished",
            "runs": 1,
            "started_at": at,
            "finished_at": at,
            "held_tokens": 0,
            "held_cost": Decimal(0),
            "input_tokens": 0,
            "output_tokens": 0,
        }
        dialect = sqlite if self._database.is_sqlite else postgresql
        new = dialect.insert(task_steps).on_conflict_do_nothing()
        return bool(connection.execute(new, {**row, "tenant_id": self.tenant_id}).rowcount)

    async def events(self, root_id: str, after: int, limit: int, types: Sequence[str] | None = None) -> list[Event]:
        """At most `limit` events behind `after`, in order. Raises Unavailable."""
        given: dict[str, Any] = {"root": root_id, "after": after, "most": limit}
        statement = self._behind()
        if types is not None:
            statement, given = self._behind_of_types(), {**given, "types": list(types)}
        return [as_event(root_id, *row) for row in await self._database.rows(statement, given)]

    @prepared
    def _behind(self) -> Select[Any]:
        column = task_events.c
        return (
            self._rows(task_events, column.seq, column.type, column.payload, column.at)
            .where(column.root_id == bindparam("root"), column.seq > bindparam("after"))
            .order_by(column.seq)
            .limit(bindparam("most", type_=Integer()))
        )

    @prepared
    def _behind_of_types(self) -> Select[Any]:
        return self._behind().where(task_events.c.type.in_(bindparam("types", expanding=True)))

    async def tail(self, root_id: str, limit: int) -> list[Event]:
        """The last `limit` events, in order. Raises Unavailable."""
        column = task_events.c
        statement = (
            self._rows(task_events, column.seq, column.type, column.payload, column.at)
            .where(column.root_id == root_id)
            .order_by(column.seq.desc())
            .limit(limit)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(statement)).all()
        return [as_event(root_id, *row) for row in reversed(rows)]

    async def floor(self, root_id: str) -> int | None:
        """The lowest `seq` that is still kept, None when there is none. Raises Unavailable."""
        statement = self._rows(task_events, func.min(task_events.c.seq)).where(task_events.c.root_id == root_id)
        async with self._database.read() as connection:
            lowest: int | None = (await connection.execute(statement)).scalar()
        return lowest


def numbered() -> Any:
    """The new value of `last_seq` in a change of several tasks of a tree; parameters `root`, its id, and `count`, of events."""
    last = tasks.c.last_seq
    return case((tasks.c.id == bindparam("root"), last + bindparam("count", type_=last.type)), else_=last)


def _payload(root_id: str, event: NewEvent) -> dict[str, Any]:
    """What `payload` holds: all of an event but what has a column."""
    payload: dict[str, Any] = plain(event.fields)
    if event.task_id != root_id:
        payload["agent_id"] = event.task_id
    return payload
