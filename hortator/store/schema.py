"""Bring the database to this release's tables: forward only, under a lock, cheap when nothing is to be done.

Called at every start by the composition root and by `hortator migrate`. The version check is one query; Alembic, which
takes longer to import than everything else in here, is loaded only when there is something to migrate.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncConnection

from hortator.errors import ConfigError, Unavailable
from hortator.store.database import RETRY_AFTER, Database

VERSIONS = Path(__file__).parent / "migrations" / "versions"
LOCK_ID = 0x68727431
"""Postgres advisory lock that replicas starting together take in turn."""
LOCK_WAIT = 120.0
"""Seconds to wait for another process that is migrating."""

known = tuple(sorted(path.stem.partition("_")[0] for path in VERSIONS.glob("[0-9]*.py")))
"""Revisions of this release, oldest first; a file is named `NNNN_title.py` after its revision."""
head = known[-1]


async def version(database: Database) -> str | None:
    """The database's revision, None when it is empty. Raises Unavailable."""
    async with database.read() as connection:
        return await _version(connection)


async def is_current(database: Database) -> bool:
    """True when `migrate` has nothing to do. Raises Unavailable, and ConfigError for a database of a newer release."""
    return _checked(await version(database)) == head


async def migrate(database: Database) -> bool:
    """Bring the database to `head`; True when something was done. Safe to call from many processes at once.

    Raises Unavailable when the store does not answer or another process holds the lock for two minutes, ConfigError when a
    newer release made the database.
    """
    if await is_current(database):
        return False
    async with _locked(database):
        if await is_current(database):
            return False
        upgrade = importlib.import_module("hortator.store.migrations.upgrade").upgrade
        async with database.write(deadline=LOCK_WAIT) as connection:
            await connection.run_sync(upgrade)
    return True


async def _version(connection: AsyncConnection) -> str | None:
    """Read the revision; an absent table means an empty database."""
    if not await connection.run_sync(lambda sync: sqlalchemy.inspect(sync).has_table("alembic_version")):
        return None
    found: str | None = (await connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version"))).scalar()
    return found


def _checked(found: str | None) -> str | None:
    """Refuse a database that a newer release migrated: this one cannot know what its tables mean."""
    if found is not None and found not in known:
        raise ConfigError(
            f"store.url: the database is at schema {found}, this release knows {head}; run a newer release"
        )
    return found


@asynccontextmanager
async def _locked(database: Database) -> AsyncIterator[None]:
    """Hold the migration lock: a file beside a SQLite database, an advisory lock on Postgres."""
    if database.is_sqlite:
        descriptor = os.open(f"{database.url.database}.migrating", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            await _poll_lock(descriptor)
            yield
        finally:
            os.close(descriptor)
        return
    async with database.read(deadline=LOCK_WAIT) as connection:
        # It stands idle while another connection migrates, which may take as long as it takes.
        await connection.execute(sqlalchemy.text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        await connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:id)"), {"id": LOCK_ID})
        try:
            yield
        finally:
            await connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:id)"), {"id": LOCK_ID})


async def _poll_lock(descriptor: int) -> None:
    """Take the file lock without blocking the event loop."""
    for _ in range(int(LOCK_WAIT / 0.05)):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await asyncio.sleep(0.05)
        else:
            return
    raise Unavailable("another process is migrating the store", code="store_unavailable", retry_after=RETRY_AFTER)
