"""Fixtures for tests that need a store: each runs on SQLite and on a real Postgres, in a database of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg  # type: ignore[import-untyped]
import pytest
from sqlalchemy.engine import make_url

from hortator.store import Database, migrate, sqlite_url


def aside(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` in an event loop of its own, so that a synchronous fixture may use it."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()


async def execute(server: str, statement: str) -> None:
    """Run one statement on the Postgres server."""
    connection = await asyncpg.connect(server)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture
def postgres_database_url(postgres_url: str) -> Iterator[str]:
    """An empty Postgres database, dropped after the test."""
    server = make_url(postgres_url).set(drivername="postgresql")
    name = f"hortator_{uuid4().hex}"
    aside(execute(server.render_as_string(hide_password=False), f"CREATE DATABASE {name}"))
    yield server.set(database=name).render_as_string(hide_password=False)
    aside(execute(server.render_as_string(hide_password=False), f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "store.db")
    url: str = request.getfixturevalue("postgres_database_url")
    return url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A migrated database of each kind."""
    opened = Database(database_url)
    await migrate(opened)
    yield opened
    await opened.close()
