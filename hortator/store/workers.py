"""Which processes run durable handlers, when each was last heard of, and which of them are dead. Postgres only.

`orchestration/heart.py` beats and asks who is dead. A dead process's work is found by its id in the engine's own tables (`dbos`
schema), also where its row here is gone. All times are the database's: clocks of machines need not agree. Nothing here is a tenant's.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import NamedTuple

from sqlalchemy import delete, func, select, text
from sqlalchemy.dialects.postgresql import insert

from hortator.store.database import Database
from hortator.store.tables import engine_workers

REAPING = 0x68727432
"""Postgres advisory lock of the one process that looks for dead ones."""
REAPING_MS = 5_000
BEAT_SECONDS = 2.0
"""Longest a beat may take: a database that is slower than that is taken for one that does not answer."""

# An executor that has work and no row: it left without handing over, or was forgotten by a reaper that died meanwhile.
_ABSENT = text(
    "SELECT DISTINCT executor_id FROM dbos.workflow_status"
    " WHERE status = 'PENDING' AND executor_id IS NOT NULL"
    " AND NOT EXISTS (SELECT 1 FROM engine_workers WHERE engine_workers.id = executor_id)"
)


class Worker(NamedTuple):
    """A process that runs handlers."""

    id: str
    """Its executor id: host and a UUID."""
    kind: str
    """`alone`, `server` or `worker`."""
    version: str
    """Of Hortator."""


async def beat(database: Database, worker: Worker) -> None:
    """Say that the process lives; the first time it also comes into being. Raises Unavailable."""
    now = func.clock_timestamp()
    row = insert(engine_workers).values(**worker._asdict(), started_at=now, beat_at=now)
    async with database.write(BEAT_SECONDS) as connection:
        await connection.execute(row.on_conflict_do_update(index_elements=["id"], set_={"beat_at": now}))


async def leave(database: Database, id: str) -> None:
    """Forget a process that ends; what it still has is then free for others. Raises Unavailable."""
    async with database.write(BEAT_SECONDS) as connection:
        await connection.execute(delete(engine_workers).where(engine_workers.c.id == id))


@contextlib.asynccontextmanager
async def dead(database: Database, after: float) -> AsyncIterator[list[str]]:
    """Yield the ids of processes that were not heard of for `after` seconds, or have work and are not known; afterwards forget them.

    Empty where another process looks just now. Raises Unavailable.
    """
    column = engine_workers.c
    async with database.write() as connection:
        # A process that is halted, or a machine that is gone, in the middle of this must not keep the others from finding the dead.
        await connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = {REAPING_MS}"))
        if not (await connection.execute(select(func.pg_try_advisory_xact_lock(REAPING)))).scalar():
            yield []
            return
        silent = func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, after)
        rows = (await connection.execute(select(column.id).where(column.beat_at < silent))).scalars()
        gone = sorted({*rows, *(await connection.execute(_ABSENT)).scalars()})
        yield gone
        if gone:
            # Not one that has beaten again meanwhile: without its row, what it now works on would be taken from it.
            await connection.execute(delete(engine_workers).where(column.id.in_(gone), column.beat_at < silent))
