"""One database, SQLite or Postgres: the engine, its transactions, its deadline, and errors that say nothing of the database.

The files of statements ask for `read()`, `write()`, `work()` or `bulk()`; the composition root opens and closes it.
SQLite: WAL, synchronous=NORMAL, 30 s busy timeout, and BEGIN IMMEDIATE for every writing transaction, because a transaction
that reads before it writes fails at once, whatever the timeout, when another one wrote meanwhile.
Everything that goes wrong in here leaves as `Unavailable(code="store_unavailable")`; SQL and driver text never do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import SingletonThreadPool

from hortator.errors import ConfigError, Unavailable
from hortator.settings import Settings

log = logging.getLogger("hortator.store")

T = TypeVar("T")

RETRY_AFTER = 2.0
"""Seconds after which a caller who met a dead store may try again."""

# The driver looks for an adapter for every value that is not plainly a number or text; finding none costs it 2,500 instructions.
sqlite3.register_adapter(bool, int)
sqlite3.register_adapter(type(None), lambda nothing: nothing)

IDLE_TRANSACTION_MS = 30_000

_POSTGRES = frozenset({"postgres", "postgresql", "postgresql+asyncpg", "postgresql+psycopg", "postgresql+psycopg2"})
_POSTGRES_OPTIONS = frozenset({"ssl", "prepared_statement_cache_size"})
"""`prepared_statement_cache_size=0` is for a pooler that hands out server connections by transaction (PgBouncer)."""
_SQLITE = frozenset({"sqlite", "sqlite+aiosqlite"})


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite+aiosqlite:///{path}"


def configured(settings: Settings) -> Database:
    """Return the configured store: a file in the home folder where no URL is given."""
    url = settings.store.url
    return Database(sqlite_url(settings.home / "hortator.db") if url is None else url.reveal())


def normalise_url(url: str) -> URL:
    """Return `url` with the asynchronous driver of its database.

    Takes `postgres://`, `postgresql://` and `sqlite:///file`; libpq's `sslmode` becomes asyncpg's `ssl`.
    Raises ConfigError for every other database and for SQLite in memory, which has no file to share between connections.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise ConfigError("store.url: not a database URL; expected postgresql://... or sqlite:///...") from error
    if parsed.drivername in _POSTGRES:
        query = {"ssl" if name == "sslmode" else name: value for name, value in parsed.query.items()}
        unknown = sorted(query.keys() - _POSTGRES_OPTIONS)
        if unknown:
            raise ConfigError(
                f"store.url: unknown option {unknown[0]}; known are sslmode and prepared_statement_cache_size"
            )
        return parsed.set(drivername="postgresql+asyncpg", query=query)
    if parsed.drivername in _SQLITE:
        if parsed.database in (None, "", ":memory:"):
            raise ConfigError("store.url: SQLite needs a file, e.g. sqlite:////var/lib/hortator/hortator.db")
        return parsed.set(drivername="sqlite+aiosqlite")
    raise ConfigError(f"store.url: {parsed.drivername} is not supported; use postgresql:// or sqlite:///")


class Refused(Exception):
    """The database works, but does not take these values: a constraint, a type or a range. Stays inside the store."""


class Database:
    """The store. One per process; bounded pool; safe for concurrent tasks of one event loop."""

    def __init__(self, url: str, *, pool_size: int = 5, deadline: float = 10.0) -> None:
        """`deadline` bounds a transaction in seconds, waiting for a connection included. Connects lazily."""
        self.url = normalise_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.deadline = deadline
        self._failing = False
        self._bulk_thread = ThreadPoolExecutor(1, "store")
        self._bulk_connection: sqlite3.Connection | None = None
        self._work_engine: sqlalchemy.Engine | None = None
        self._look_thread = ThreadPoolExecutor(1, "store-reads")
        self._look_engine: sqlalchemy.Engine | None = None
        if self.is_sqlite:
            arguments: dict[str, Any] = {"timeout": 30.0}
        else:
            arguments = {"timeout": 5.0, "server_settings": {"application_name": "hortator"}}
        self.engine: AsyncEngine = create_async_engine(
            self.url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=deadline,
            pool_pre_ping=False,
            pool_recycle=1800,
            hide_parameters=True,
            connect_args=arguments,
        )
        if self.is_sqlite:
            event.listen(self.engine.sync_engine, "connect", _prepare_sqlite)
            event.listen(self.engine.sync_engine, "begin", _begin_sqlite)
        else:
            event.listen(self.engine.sync_engine, "connect", _prepare_postgres)

    def __repr__(self) -> str:
        return f"Database({self.url.get_backend_name()})"

    @contextlib.asynccontextmanager
    async def read(self, deadline: float | None = None) -> AsyncIterator[AsyncConnection]:
        """A connection in a reading transaction. Raises Unavailable."""
        async with self._connection(deadline) as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def write(self, deadline: float | None = None) -> AsyncIterator[AsyncConnection]:
        """A connection in a writing transaction, committed at the end. Raises Unavailable, Refused."""
        async with self._connection(deadline) as connection:
            if self.is_sqlite:
                await connection.execution_options(hortator_writes=True)
            async with connection.begin():
                yield connection

    async def bulk(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """SQLite only: run `work` in a writing transaction on a connection and a thread of its own. Raises Unavailable, Refused.

        For the one high-rate table: it costs one change of thread a transaction, where the pool costs one a statement.
        """
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._bulk_thread, self._bulk, work)
        except (sqlite3.Error, OverflowError, UnicodeError) as error:
            if isinstance(error, sqlite3.IntegrityError | sqlite3.DataError) or not isinstance(error, sqlite3.Error):
                raise Refused(type(error).__name__) from None
            raise self._unavailable(error) from None
        self._answered()
        return result

    async def work(self, act: Callable[[sqlalchemy.Connection], T]) -> T:
        """Run `act`, statement after statement, in a writing transaction. Raises Unavailable, Refused.

        On SQLite in the thread of `bulk`, so that writers queue there and a transaction costs one change of thread instead of four a
        statement; one that has begun ends even when its caller is cancelled.
        """
        if not self.is_sqlite:
            async with self.write() as connection:
                return await connection.run_sync(act)
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._bulk_thread, self._work, act)
        except (SQLAlchemyError, OSError, OverflowError, UnicodeError) as error:
            if _is_refusal(error):
                raise Refused(type(error).__name__) from None
            raise self._unavailable(error) from None
        self._answered()
        return result

    async def rows(
        self, statement: sqlalchemy.Select[*tuple[Any, ...]], given: Mapping[str, Any] | None = None
    ) -> Sequence[sqlalchemy.Row[*tuple[Any, ...]]]:
        """Return what a statement reads with the parameters `given`. Raises Unavailable.

        On SQLite in a thread of its own: for short reads that come often, which would spend most of their time changing threads.
        """
        if not self.is_sqlite:
            async with self.read() as connection:
                return (await connection.execute(statement, given)).all()
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._look_thread, self._look, statement, given)
        except (SQLAlchemyError, OSError, OverflowError, UnicodeError) as error:
            raise self._unavailable(error) from None
        self._answered()
        return found

    def _look(
        self, statement: sqlalchemy.Select[*tuple[Any, ...]], given: Mapping[str, Any] | None
    ) -> Sequence[sqlalchemy.Row[*tuple[Any, ...]]]:
        """In the thread: open the connection at first use."""
        if self._look_engine is None:
            self._look_engine = self._in_thread(writes=False)
        with self._look_engine.connect() as connection:
            return connection.execute(statement, given).all()

    def _in_thread(self, *, writes: bool) -> sqlalchemy.Engine:
        """Return an engine for SQLite in the thread that calls. What only reads needs no transaction: it makes one statement at a time."""
        engine = sqlalchemy.create_engine(
            self.url.set(drivername="sqlite+pysqlite"),
            poolclass=SingletonThreadPool,
            hide_parameters=True,
            connect_args={"timeout": self.deadline},
            execution_options={"hortator_writes": writes},
        )
        event.listen(engine, "connect", _prepare_sqlite)
        if writes:
            event.listen(engine, "begin", _begin_sqlite)
        return engine

    def _work(self, act: Callable[[sqlalchemy.Connection], T]) -> T:
        """In the thread: open the connection at first use."""
        if self._work_engine is None:
            self._work_engine = self._in_thread(writes=True)
        with self._work_engine.begin() as connection:
            return act(connection)

    def _bulk(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """In the thread: open the connection at first use; leave no transaction behind."""
        if self._bulk_connection is None:
            connection = sqlite3.connect(
                str(self.url.database), timeout=self.deadline, isolation_level=None, check_same_thread=False
            )
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute(
                "PRAGMA wal_autocheckpoint=8000"
            )  # 32 MB: a sixth less work a row than at the default 4 MB
            self._bulk_connection = connection
        connection = self._bulk_connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(connection)
            connection.execute("COMMIT")
        except BaseException:
            connection.rollback()
            raise
        return result

    def _close_bulk(self) -> None:
        """In the thread, after whatever it was doing."""
        if self._bulk_connection is not None:
            self._bulk_connection.close()
            self._bulk_connection = None
        if self._work_engine is not None:
            self._work_engine.dispose()
            self._work_engine = None

    def _close_look(self) -> None:
        """In the thread."""
        if self._look_engine is not None:
            self._look_engine.dispose()
            self._look_engine = None

    @contextlib.asynccontextmanager
    async def _connection(self, deadline: float | None) -> AsyncIterator[AsyncConnection]:
        """Check a connection out, under the deadline, and translate what goes wrong.

        A broken pooled connection (the server restarted) invalidates the pool: the next attempt connects anew.
        """
        try:
            async with (
                asyncio.timeout(self.deadline if deadline is None else deadline),
                self.engine.connect() as connection,
            ):
                yield connection
            self._answered()
        except (SQLAlchemyError, OSError, TimeoutError, OverflowError, UnicodeError) as error:
            if _is_refusal(error):
                raise Refused(type(error).__name__) from None
            raise self._unavailable(error) from None

    def _answered(self) -> None:
        if self._failing:
            self._failing = False
            log.warning("the store answers again")

    def _unavailable(self, error: BaseException) -> Unavailable:
        """What callers see of a database error. The log gets its kind, never its text, and once until the store answers."""
        if not self._failing:
            self._failing = True
            kind = type(error.orig if isinstance(error, DBAPIError) and error.orig is not None else error).__name__
            log.warning("the store does not answer: %s", kind)
        return Unavailable("the store is not available; try again", code="store_unavailable", retry_after=RETRY_AFTER)

    async def ping(self, deadline: float = 1.0) -> None:
        """Return when the store answers; raises Unavailable. For `/ready`."""
        async with self.read(deadline) as connection:
            await connection.execute(sqlalchemy.text("SELECT 1"))

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._bulk_thread, self._close_bulk)
        await loop.run_in_executor(self._look_thread, self._close_look)
        self._bulk_thread.shutdown()
        self._look_thread.shutdown()


def _is_refusal(error: BaseException) -> bool:
    """Whether trying again cannot help: SQLSTATE class 22 (data) or 23 (constraint), also where SQLAlchemy does not sort it."""
    if isinstance(error, IntegrityError | DataError | OverflowError | UnicodeError):
        return True
    state = getattr(error.orig, "sqlstate", None) if isinstance(error, DBAPIError) else None
    return isinstance(state, str) and state[:2] in ("22", "23")


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    """Settings of a new SQLite connection; transactions are ours to open (see `_begin_sqlite`).

    The journal mode is a property of the file. Changing it fails at once when another process is busy with a new file; that
    process is changing it too, or the next connection will.
    """
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("busy_timeout=30000", "synchronous=NORMAL", "foreign_keys=ON", "cache_size=-8000"):
        cursor.execute(f"PRAGMA {pragma}")
    with contextlib.suppress(sqlite3.OperationalError):
        cursor.execute("PRAGMA journal_mode=WAL")
    cursor.close()


def _prepare_postgres(connection: Any, _record: Any) -> None:
    """A process that is halted, or a machine that is gone, in the middle of a transaction must not hold its locks for ever.

    Said as a statement: a pooler refuses connections that ask for it when they are opened.
    """
    cursor = connection.cursor()
    cursor.execute(f"SET idle_in_transaction_session_timeout = {IDLE_TRANSACTION_MS}")
    cursor.close()
    connection.commit()


def _begin_sqlite(connection: sqlalchemy.Connection) -> None:
    """Open the transaction that SQLAlchemy thinks the driver opened."""
    writes = connection.get_execution_options().get("hortator_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
