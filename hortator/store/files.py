"""Every statement on files. What belongs to a tenant is reached through `FileScope`, which adds the tenant filter.

Called by `batches/`. A row is `pending` while its content is being written and `deleting` while it is being removed; only `ready`
ones are seen by clients, so that a content without a row, or the reverse, cannot outlive a crash: `leftovers` finds both.
Contents are in `blobs.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Row, and_, delete, exists, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from hortator.call import TenantId
from hortator.store.database import Database
from hortator.store.queries import TenantScope
from hortator.store.tables import batches, files, tenants

UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")
"""States of a batch that still has something to do."""


class File(NamedTuple):
    """A row of `files`."""

    id: str
    tenant_id: TenantId
    filename: str
    purpose: str
    bytes: int
    created_at: datetime
    expires_at: datetime | None


def _file(row: Row[Any]) -> File:
    return File(*(row._mapping[name] for name in File._fields))


class FileScope(TenantScope):
    """The files of one tenant."""

    def _seen(self, now: datetime) -> ColumnElement[bool]:
        """What clients may see."""
        return and_(files.c.state == "ready", or_(files.c.expires_at.is_(None), files.c.expires_at > now))

    async def begin(self, file: File) -> None:
        """Note that a content is about to be written. Raises Unavailable."""
        async with self._database.write() as connection:
            await connection.execute(
                insert(files).values(**{**file._asdict(), "tenant_id": self.tenant_id, "state": "pending"})
            )

    async def complete(self, file: File, limit: int | None) -> bool:
        """Show a file whose content is there; False, and not shown, where the tenant's files would take more than `limit` bytes.

        Raises Unavailable.
        """
        async with self._database.write() as connection:
            if limit is not None:
                await _in_turn(connection, self)
                if await self._taken(connection) + file.bytes > limit:
                    return False
            statement = update(files).where(self._where(files), files.c.id == file.id)
            changed = await connection.execute(statement.values(state="ready", bytes=file.bytes, **_described(file)))
            return bool(changed.rowcount)

    async def _taken(self, connection: AsyncConnection) -> int:
        statement = self._rows(files, func.coalesce(func.sum(files.c.bytes), 0))
        return int((await connection.execute(statement)).scalar_one())

    async def taken(self) -> int:
        """Bytes of the tenant's files together. Raises Unavailable."""
        async with self._database.read() as connection:
            return await self._taken(connection)

    async def find(self, id: str, now: datetime) -> File | None:
        """The file of that id. Raises Unavailable."""
        statement = self._rows(files).where(files.c.id == id, self._seen(now))
        async with self._database.read() as connection:
            row = (await connection.execute(statement)).first()
        return None if row is None else _file(row)

    async def page(
        self, now: datetime, after: str | None, limit: int, ascending: bool, purpose: str | None
    ) -> list[File]:
        """At most `limit` files behind the one of id `after`, in the order of their making. Raises Unavailable."""
        column = files.c.id
        statement = self._rows(files).where(self._seen(now)).order_by(column if ascending else column.desc())
        if after is not None:
            statement = statement.where(column > after if ascending else column < after)
        if purpose is not None:
            statement = statement.where(files.c.purpose == purpose)
        async with self._database.read() as connection:
            return [_file(row) for row in await connection.execute(statement.limit(limit))]

    async def used(self, id: str) -> bool:
        """Whether a batch that is not finished reads this file. Raises Unavailable."""
        statement = self._rows(batches, batches.c.id).where(
            batches.c.input_file_id == id, batches.c.status.in_(UNFINISHED)
        )
        async with self._database.read() as connection:
            return (await connection.execute(statement.limit(1))).first() is not None

    async def hide(self, id: str) -> bool:
        """Begin to delete: nobody sees the file any more. False when there is none. Raises Unavailable."""
        statement = update(files).where(self._where(files), files.c.id == id, files.c.state != "deleting")
        async with self._database.write() as connection:
            return bool((await connection.execute(statement.values(state="deleting"))).rowcount)

    async def forget(self, id: str) -> None:
        """Delete the row of a file whose content is gone. Raises Unavailable."""
        async with self._database.write() as connection:
            await connection.execute(delete(files).where(self._where(files), files.c.id == id))


async def _in_turn(connection: AsyncConnection, scope: TenantScope) -> None:
    """Let the transactions that count a tenant's bytes wait for each other."""
    await connection.execute(select(tenants.c.id).where(tenants.c.id == scope.tenant_id).with_for_update())


def _described(file: File) -> dict[str, Any]:
    """What an upload may say only after its content."""
    return {"filename": file.filename, "purpose": file.purpose, "expires_at": file.expires_at}


async def leftovers(database: Database, now: datetime, abandoned: datetime, limit: int) -> Sequence[File]:
    """Files of any tenant that are to be deleted: expired, half deleted, or begun before `abandoned`. Raises Unavailable.

    A file that an unfinished batch reads is spared.
    """
    column = files.c
    reading = exists().where(batches.c.input_file_id == column.id, batches.c.status.in_(UNFINISHED))
    statement = (
        select(files)
        .where(
            or_(
                and_(column.state == "ready", column.expires_at <= now, ~reading),
                and_(column.state == "deleting", column.created_at < now),
                and_(column.state == "pending", column.created_at < abandoned),
            )
        )
        .limit(limit)
    )
    async with database.read() as connection:
        return [_file(row) for row in await connection.execute(statement)]
