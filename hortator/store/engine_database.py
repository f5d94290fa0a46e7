"""The durable engine's own database: a SQLite file of its own, or the schema `dbos` of the application's Postgres.

`orchestration/engine.py` has it made and gives it to the engine, which works on it synchronously in threads of its own. Its tables are the
engine's: nothing of ours reads or writes them but the two statements here and the one of `workers.py`, and our migrations never see them.
"""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO, Any

import sqlalchemy
from sqlalchemy import event

from hortator.errors import Unavailable
from hortator.store.database import IDLE_TRANSACTION_MS, normalise_url

POOL = 10
"""Connections of the engine in one process. Each is held for one short transaction; waiting handlers hold none."""
CONNECT_SECONDS = 5

_FORGIVE = (
    "UPDATE {table} SET recovery_attempts = recovery_attempts - 1"
    " WHERE status = 'PENDING' AND executor_id = :executor AND recovery_attempts > 0"
)


def claim(path: Path) -> IO[bytes]:
    """Return a lock on a SQLite file that ends with its being closed, or with the process. Raises Unavailable while another has it.

    A second process on the same file would take what the first is doing for what a dead one left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(path.name + ".lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise Unavailable("another process works on the same tasks", code="store_unavailable") from None
    return lock


def engine_file(path: Path) -> sqlalchemy.Engine:
    """Return the database in a SQLite file, made if need be, in a folder that is there.

    WAL and synchronous=NORMAL as in `database.py`: what is committed survives the process, the last moment may not survive the machine.
    The driver opens every writing transaction with BEGIN IMMEDIATE, so that none fails for having read first.
    """
    made = sqlalchemy.create_engine(
        f"sqlite:///{path}", pool_size=POOL, max_overflow=0, pool_timeout=60, hide_parameters=True
    )
    event.listen(made, "connect", _prepare)
    return made


def _prepare(connection: Any, _record: Any) -> None:
    connection.isolation_level = "IMMEDIATE"
    for pragma in ("busy_timeout=30000", "journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def engine_postgres(url: str) -> sqlalchemy.Engine:
    """Return the database in the application's Postgres, by the URL the application uses. Connects lazily. Raises ConfigError."""
    parsed = normalise_url(url)
    tls = parsed.query.get("ssl")
    query = {} if tls is None else {"sslmode": tls}
    options: dict[str, Any] = {
        "application_name": "hortator-engine",
        "connect_timeout": CONNECT_SECONDS,
        # A server that is gone without a word is noticed within half a minute, not after the system's quarter of an hour.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
    }
    if parsed.query.get("prepared_statement_cache_size") == "0":
        options["prepare_threshold"] = None
    made = sqlalchemy.create_engine(
        parsed.set(drivername="postgresql+psycopg", query=query),
        pool_size=POOL,
        max_overflow=0,
        pool_timeout=60,
        pool_recycle=1800,
        hide_parameters=True,
        connect_args=options,
    )
    event.listen(made, "connect", _bound)
    return made


def _bound(connection: Any, _record: Any) -> None:
    """A transaction of a process that is stopped in it must not hold its locks for ever."""
    connection.execute(f"SET idle_in_transaction_session_timeout = {IDLE_TRANSACTION_MS}")
    connection.commit()


def reachable(database: sqlalchemy.Engine) -> None:
    """Return when the database answers. Raises Unavailable."""
    try:
        with database.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT 1"))
    except sqlalchemy.exc.SQLAlchemyError:
        raise Unavailable("the store is not available; try again", code="store_unavailable", retry_after=2.0) from None


def forgive(database: sqlalchemy.Engine, executor: str) -> None:
    """Take back one run of everything a process has begun: it ends in good order, and that is not its work's fault."""
    table = "workflow_status" if database.dialect.name == "sqlite" else "dbos.workflow_status"
    with database.begin() as connection:
        connection.execute(sqlalchemy.text(_FORGIVE.format(table=table)), {"executor": executor})
