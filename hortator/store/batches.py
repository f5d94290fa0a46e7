"""Every statement on batches and their lines. What belongs to a tenant is reached through `BatchScope`, which adds the tenant filter.

Called by `batches/`. The work itself is shared by all processes: `idle_batches` and `hold` see every tenant's, and whoever holds a
batch's lease works on it. Everything that changes a batch's progress names the holder, so that one who lost the lease changes
nothing. Leases are measured by the database's clock, which all replicas share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Row, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from hortator.call import KeyHash, TenantId, Usage
from hortator.store.database import Database
from hortator.store.files import UNFINISHED, File
from hortator.store.queries import TenantScope
from hortator.store.tables import batch_lines, batches, files


class Batch(NamedTuple):
    """A row of `batches`, its lease left out."""

    id: str
    tenant_id: TenantId
    key_hash: KeyHash
    endpoint: str
    input_file_id: str
    created_at: datetime
    expires_at: datetime
    status: str = "validating"
    metadata: Mapping[str, str] | None = None
    output_seconds: int | None = None
    """How long its files are kept. None = until they are deleted."""
    model: str | None = None
    """The model of all its lines, None where they differ."""
    errors: Sequence[Mapping[str, Any]] | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: datetime | None = None
    finalizing_at: datetime | None = None
    completed_at: datetime | None = None
    failed_at: datetime | None = None
    expired_at: datetime | None = None
    cancelling_at: datetime | None = None
    cancelled_at: datetime | None = None


class LineResult(NamedTuple):
    """What became of one line."""

    line: int
    succeeded: bool
    result: bytes
    """A line of the output or error file, without its line end."""
    usage: Usage


class Result(NamedTuple):
    """A finished line, as kept."""

    line: int
    result: bytes


def _batch(row: Row[Any]) -> Batch:
    return Batch(*(row._mapping[name] for name in Batch._fields))


class BatchScope(TenantScope):
    """The batches of one tenant."""

    async def add(self, batch: Batch, limit: int) -> bool:
        """Keep a new batch; False where the tenant has `limit` that are not finished. Raises Unavailable."""
        column = batches.c
        async with self._database.write() as connection:
            unfinished = self._rows(batches, func.count()).where(column.status.in_(UNFINISHED))
            if (await connection.execute(unfinished)).scalar_one() >= limit:
                return False
            await connection.execute(insert(batches).values(**{**batch._asdict(), "tenant_id": self.tenant_id}))
            return True

    async def find(self, id: str) -> Batch | None:
        """The batch of that id. Raises Unavailable."""
        async with self._database.read() as connection:
            row = (await connection.execute(self._rows(batches).where(batches.c.id == id))).first()
        return None if row is None else _batch(row)

    async def page(self, after: str | None, limit: int) -> list[Batch]:
        """At most `limit` batches older than the one of id `after`, newest first. Raises Unavailable."""
        statement = self._rows(batches).order_by(batches.c.id.desc()).limit(limit)
        if after is not None:
            statement = statement.where(batches.c.id < after)
        async with self._database.read() as connection:
            return [_batch(row) for row in await connection.execute(statement)]

    async def cancel(self, id: str, now: datetime) -> bool:
        """Ask for an end; False where there is nothing to end. Raises Unavailable."""
        statement = (
            update(batches)
            .where(self._where(batches), batches.c.id == id, batches.c.status.in_(("validating", "in_progress")))
            .values(status="cancelling", cancelling_at=now)
        )
        async with self._database.write() as connection:
            return bool((await connection.execute(statement)).rowcount)


class HeldBatch(TenantScope):
    """One batch, as the process that holds its lease changes it. A change returns False when the lease has passed to another."""

    def __init__(self, database: Database, batch: Batch, owner: str) -> None:
        super().__init__(database, batch.tenant_id)
        self._id = batch.id
        self._owner = owner

    def _held(self) -> ColumnElement[bool]:
        return (batches.c.id == self._id) & (batches.c.lease_owner == self._owner)

    async def _change(self, connection: AsyncConnection, values: Mapping[str, Any], *states: str) -> bool:
        statement = update(batches).where(self._where(batches), self._held())
        if states:
            statement = statement.where(batches.c.status.in_(states))
        return bool((await connection.execute(statement.values(values))).rowcount)

    async def advance(self, values: Mapping[str, Any], *states: str) -> bool:
        """Change the batch, if it is in one of these states where any are given. Raises Unavailable."""
        async with self._database.write() as connection:
            return await self._change(connection, values, *states)

    async def renew(self, seconds: float) -> str | None:
        """Keep the lease for so long from now; return the batch's status, None when the lease is lost. Raises Unavailable."""
        async with self._database.write() as connection:
            if not await self._change(connection, {"lease_until": _from_now(self._database, seconds)}):
                return None
            statement = self._rows(batches, batches.c.status).where(batches.c.id == self._id)
            status: str = (await connection.execute(statement)).scalar_one()
            return status

    async def status(self) -> str | None:
        """The batch's status, None when the lease is lost. Raises Unavailable."""
        async with self._database.read() as connection:
            statement = self._rows(batches, batches.c.status).where(self._held())
            found: str | None = (await connection.execute(statement)).scalar()
        return found

    async def fresh(self) -> Batch | None:
        """The batch as it is now, None when the lease is lost. Raises Unavailable."""
        async with self._database.read() as connection:
            row = (await connection.execute(self._rows(batches).where(self._held()))).first()
        return None if row is None else _batch(row)

    async def release(self) -> None:
        """Let any process go on with it. Raises Unavailable."""
        async with self._database.write() as connection:
            await self._change(connection, {"lease_owner": None, "lease_until": None})

    async def keep(self, results: Sequence[LineResult]) -> bool:
        """Write down what became of lines, and count them, in one transaction. Those that are there already stay. Raises Unavailable."""
        async with self._database.write() as connection:
            numbers = [each.line for each in results]
            there = self._rows(batch_lines, batch_lines.c.line).where(
                batch_lines.c.batch_id == self._id, batch_lines.c.line.in_(numbers)
            )
            known = {number for (number,) in await connection.execute(there)}
            new = [each for each in results if each.line not in known]
            if not await self._change(connection, _counted(new)):
                return False
            rows = [
                {"batch_id": self._id, "line": each.line, "succeeded": each.succeeded, "result": each.result}
                for each in new
            ]
            if rows:
                await connection.execute(insert(batch_lines), [{**row, "tenant_id": self.tenant_id} for row in rows])
            return True

    async def finished_lines(self) -> set[int]:
        """Numbers of the lines that are written down. Raises Unavailable."""
        statement = self._rows(batch_lines, batch_lines.c.line).where(batch_lines.c.batch_id == self._id)
        async with self._database.read() as connection:
            return {number for (number,) in await connection.execute(statement)}

    async def results(self, succeeded: bool, after: int, limit: int) -> list[Result]:
        """At most `limit` finished lines behind line `after`, in order. Raises Unavailable."""
        column = batch_lines.c
        statement = (
            self._rows(batch_lines, column.line, column.result)
            .where(column.batch_id == self._id, column.line > after, column.succeeded == succeeded)
            .order_by(column.line)
            .limit(limit)
        )
        async with self._database.read() as connection:
            return [Result(line, bytes(result)) for line, result in await connection.execute(statement)]

    async def finish(self, values: Mapping[str, Any], written: Sequence[File]) -> bool:
        """End the batch: its files are shown, its lines are forgotten. Raises Unavailable."""
        async with self._database.write() as connection:
            if not await self._change(connection, {**values, "lease_owner": None, "lease_until": None}):
                return False
            for file in written:
                statement = update(files).where(self._where(files), files.c.id == file.id)
                await connection.execute(statement.values(state="ready", bytes=file.bytes))
            lines = batch_lines.c.batch_id == self._id
            await connection.execute(delete(batch_lines).where(self._where(batch_lines), lines))
            return True


def _counted(results: Sequence[LineResult]) -> dict[str, Any]:
    """What these results add to their batch."""
    column = batches.c
    good = sum(each.succeeded for each in results)
    added = {
        column.completed: good,
        column.failed: len(results) - good,
        column.input_tokens: sum(each.usage.input or 0 for each in results),
        column.cached_tokens: sum(each.usage.cached or 0 for each in results),
        column.output_tokens: sum(each.usage.output or 0 for each in results),
        column.reasoning_tokens: sum(each.usage.reasoning or 0 for each in results),
    }
    return {each.name: each + number for each, number in added.items()}


def _now(database: Database) -> ColumnElement[Any] | datetime:
    """Now, by a clock that all who share the database share."""
    return datetime.now(UTC) if database.is_sqlite else func.clock_timestamp()


def _from_now(database: Database, seconds: float) -> Any:
    return _now(database) + (
        timedelta(seconds=seconds) if database.is_sqlite else func.make_interval(0, 0, 0, 0, 0, 0, seconds)
    )


def _idle(database: Database) -> ColumnElement[bool]:
    column = batches.c
    return column.status.in_(UNFINISHED) & or_(column.lease_until.is_(None), column.lease_until < _now(database))


async def idle_batches(database: Database, limit: int) -> list[Batch]:
    """Batches of any tenant that have something to do and that nobody works on, oldest first. Raises Unavailable."""
    statement = select(batches).where(_idle(database)).order_by(batches.c.id).limit(limit)
    async with database.read() as connection:
        return [_batch(row) for row in await connection.execute(statement)]


async def hold(database: Database, batch: Batch, owner: str, seconds: float) -> Batch | None:
    """Take the lease of a batch of any tenant; return it as it is then, None when somebody else did. Raises Unavailable."""
    lease = {"lease_owner": owner, "lease_until": _from_now(database, seconds)}
    async with database.write() as connection:
        taken = await connection.execute(update(batches).where(batches.c.id == batch.id, _idle(database)).values(lease))
        if not taken.rowcount:
            return None
        return _batch((await connection.execute(select(batches).where(batches.c.id == batch.id))).one())
