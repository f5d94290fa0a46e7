"""Every statement on kept responses. What belongs to a tenant is reached through `ResponseScope`, which adds the tenant filter.

Called by `archive/`: batches of finished responses, single reads and chains for clients, and the background work. The statements
that see every tenant say so: writing a batch, finding work that nobody does, and deleting what is too old.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Row, delete, func, insert, literal, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from hortator.call import KeyHash, TenantId
from hortator.store.database import Database, Refused
from hortator.store.queries import TenantScope
from hortator.store.tables import responses

UNFINISHED = ("queued", "in_progress")


class Kept(NamedTuple):
    """A row of `responses`."""

    tenant_id: TenantId
    id: str
    created_at: datetime
    status: str
    previous_id: str | None
    input: bytes
    """A JSON array: the items of this request alone."""
    response: bytes
    """The response object, as its client got it."""
    background: bool
    key_hash: KeyHash
    request: bytes | None = None
    """The request's body, for as long as the response is not finished."""
    attempts: int = 0
    """How often the work was begun."""
    held_until: datetime | None = None
    """Until then a process is at work on it."""


def _kept(row: Row[Any]) -> Kept:
    return Kept(*(row._mapping[name] for name in Kept._fields))


class ResponseScope(TenantScope):
    """The kept responses of one tenant."""

    async def add(self, kept: Kept) -> None:
        """Keep a response from now on, durably when this returns. Raises Unavailable."""
        values = {**kept._asdict(), "tenant_id": self.tenant_id}
        async with self._database.write() as connection:
            await connection.execute(insert(responses).values(values))

    async def find(self, id: str) -> Kept | None:
        """The response of that id. Raises Unavailable."""
        async with self._database.read() as connection:
            row = (await connection.execute(self._rows(responses).where(responses.c.id == id))).first()
        return None if row is None else _kept(row)

    async def chain(self, id: str, depth: int) -> list[Kept]:
        """The response of that id, the one before it and so on, at most `depth`. Raises Unavailable."""
        found = self._rows(responses, *responses.columns, literal(0).label("place"))
        start = found.where(responses.c.id == id).cte("chain", recursive=True)
        older = self._rows(responses, *responses.columns, start.c.place + 1).where(
            responses.c.id == start.c.previous_id, start.c.place < depth - 1
        )
        whole = start.union_all(older)
        async with self._database.read() as connection:
            rows = await connection.execute(whole.select().order_by(whole.c.place))
            return [_kept(row) for row in rows]

    async def remove(self, id: str) -> bool:
        """Delete the response of that id; False when there is none. Raises Unavailable."""
        statement = delete(responses).where(self._where(responses), responses.c.id == id)
        async with self._database.write() as connection:
            return bool((await connection.execute(statement)).rowcount)

    async def unfinished(self) -> int:
        """How many background responses wait or are worked on. Raises Unavailable."""
        statement = self._rows(responses, func.count()).where(responses.c.status.in_(UNFINISHED))
        async with self._database.read() as connection:
            count: int = (await connection.execute(statement)).scalar_one()
        return count

    async def progress(self, id: str, held_until: datetime | None, **values: Any) -> bool:
        """Change an unfinished response; False when it is finished or gone. `held_until`: None = nobody works on it now."""
        statement = (
            update(responses)
            .where(self._where(responses), responses.c.id == id, responses.c.status.in_(UNFINISHED))
            .values(held_until=held_until, **values)
        )
        async with self._database.write() as connection:
            return bool((await connection.execute(statement)).rowcount)


async def keep_all(database: Database, batch: Sequence[Kept]) -> None:
    """Write finished responses of any tenants; one that is there already stays. Raises Unavailable.

    A response that the database refuses is left out, so that it cannot keep the others from being written.
    """
    dialect = sqlite if database.is_sqlite else postgresql
    statement = dialect.insert(responses).on_conflict_do_nothing()
    try:
        async with database.write() as connection:
            await connection.execute(statement, [kept._asdict() for kept in batch])
    except Refused:
        if len(batch) > 1:
            middle = len(batch) // 2
            await keep_all(database, batch[:middle])
            await keep_all(database, batch[middle:])


async def idle_work(database: Database, now: datetime, limit: int) -> list[Kept]:
    """Background responses of any tenant that are not finished and that nobody works on, oldest first. Raises Unavailable."""
    column = responses.c
    statement = (
        select(responses)
        .where(column.status.in_(UNFINISHED), or_(column.held_until.is_(None), column.held_until < now))
        .order_by(column.created_at)
        .limit(limit)
    )
    async with database.read() as connection:
        return [_kept(row) for row in await connection.execute(statement)]


async def take_work(database: Database, work: Kept, now: datetime, until: datetime) -> bool:
    """Begin to work on it; False when somebody else did. Raises Unavailable."""
    column = responses.c
    statement = (
        update(responses)
        .where(column.tenant_id == work.tenant_id, column.id == work.id, column.status.in_(UNFINISHED))
        .where(column.attempts == work.attempts, or_(column.held_until.is_(None), column.held_until < now))
        .values(held_until=until, attempts=work.attempts + 1)
    )
    async with database.write() as connection:
        return bool((await connection.execute(statement)).rowcount)


async def forget_before(database: Database, moment: datetime, limit: int) -> int:
    """Delete responses of any tenant that are older, at most `limit`; return how many were. Raises Unavailable."""
    column = responses.c
    old = select(column.tenant_id, column.id).where(column.created_at < moment).limit(limit)
    async with database.write() as connection:
        found = (await connection.execute(old)).all()
        for tenant_id, id in found:
            await connection.execute(delete(responses).where(column.tenant_id == tenant_id, column.id == id))
    return len(found)
