"""One database: its settings, its transactions, and errors that give nothing away."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
import sqlalchemy

from hortator.errors import ConfigError, Unavailable
from hortator.store import Database, sqlite_url
from hortator.store.database import normalise_url
from tests.cable import cable


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg", "postgresql+psycopg"])
def test_every_spelling_of_a_postgres_url_is_taken(scheme: str) -> None:
    url = normalise_url(f"{scheme}://me:secret@db:5432/hortator?sslmode=require")
    assert url.render_as_string(hide_password=False) == "postgresql+asyncpg://me:secret@db:5432/hortator?ssl=require"


@pytest.mark.parametrize(
    "url", ["mysql://db/x", "not a url", "sqlite://", "sqlite:///:memory:", "", "postgres://db/x?shark=1"]
)
def test_what_is_not_supported_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigError):
        normalise_url(url)


async def test_sqlite_runs_with_the_settings_that_survive_concurrent_writers(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path / "store.db"))
    expected = {"journal_mode": "wal", "synchronous": 1, "busy_timeout": 30_000, "foreign_keys": 1}
    async with database.read() as connection:
        for pragma, value in expected.items():
            assert (await connection.exec_driver_sql(f"PRAGMA {pragma}")).scalar() == value
    await database.close()


async def test_writers_that_read_first_all_succeed(database: Database) -> None:
    """A deferred transaction would fail at once here on SQLite, whatever the busy timeout."""
    async with database.write() as connection:
        await connection.exec_driver_sql("CREATE TABLE counter (n INTEGER)")
        await connection.exec_driver_sql("INSERT INTO counter VALUES (0)")
    lock = "" if database.is_sqlite else " FOR UPDATE"

    async def increment() -> None:
        async with database.write() as connection:
            n = (await connection.exec_driver_sql(f"SELECT n FROM counter{lock}")).scalar_one()
            await asyncio.sleep(0)
            await connection.execute(sqlalchemy.text("UPDATE counter SET n = :n"), {"n": n + 1})

    await asyncio.gather(*(increment() for _ in range(40)))
    async with database.read() as connection:
        assert (await connection.exec_driver_sql("SELECT n FROM counter")).scalar() == 40


async def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    async with database.write() as connection:
        await connection.exec_driver_sql("CREATE TABLE t (n INTEGER)")

    async def insert_and_fail() -> None:
        async with database.write() as connection:
            await connection.exec_driver_sql("INSERT INTO t VALUES (1)")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await insert_and_fail()
    async with database.read() as connection:
        assert (await connection.exec_driver_sql("SELECT count(*) FROM t")).scalar() == 0


async def test_an_error_tells_neither_sql_nor_address(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """R-003-9."""
    caplog.set_level(logging.DEBUG, "hortator")
    with pytest.raises(Unavailable) as caught:
        async with database.read() as connection:
            await connection.exec_driver_sql("SELECT planted_secret FROM nowhere")
    told = caught.value.message + repr(caught.value) + repr(database) + caplog.text
    assert "planted_secret" not in told
    assert "nowhere" not in told
    assert caught.value.code == "store_unavailable"
    assert caught.value.retry_after is not None
    assert caught.value.__cause__ is None


async def test_a_store_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "noise.db").write_bytes(b"this is not a database" * 100)
    for url in ("postgresql://me@127.0.0.1:1/x", sqlite_url(tmp_path / "noise.db")):
        database = Database(url)
        with pytest.raises(Unavailable):
            await database.ping(deadline=10)
        await database.close()


async def test_a_broken_connection_is_replaced(postgres_database: str) -> None:
    url = normalise_url(postgres_database)
    async with cable(url.host or "", url.port or 5432) as line:
        database = Database(
            url.set(host="127.0.0.1", port=line.port).render_as_string(hide_password=False), pool_size=1
        )
        await database.ping(deadline=10)
        await line.cut()
        with pytest.raises(Unavailable):
            await database.ping(deadline=10)
        await line.mend()
        await database.ping(deadline=10)
        line.block()
        with pytest.raises(Unavailable):
            await database.ping(deadline=0.2)
        await line.mend()
        await database.ping(deadline=10)
        await database.close()


async def test_a_transaction_of_a_halted_process_holds_its_locks_for_a_while_only(postgres_database: str) -> None:
    opened = Database(postgres_database)
    for _ in range(2):
        async with opened.read() as connection:
            bound = await connection.execute(sqlalchemy.text("SHOW idle_in_transaction_session_timeout"))
            assert bound.scalar() == "30s"
    await opened.close()
