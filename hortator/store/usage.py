"""Usage records as the database takes them: one struct a record, one statement a batch, never twice the same record.

The ledger's writer builds `UsageRow`s (they are also the lines of its journal) and calls `insert_usage`; reading is in
`queries.py`. Rows are told apart by `event_id`, which the writer makes: inserting a row again does nothing. The same
transaction adds the new ones to the sums of `rollups.py`.
On SQLite many rows a statement cost 7 microseconds a row; one row a statement costs 8, and 17 beside a busy thread, because the
driver gives up the interpreter lock at every statement.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

import msgspec

from hortator.store import rollups
from hortator.store.database import Database, Refused

log = logging.getLogger("hortator.store")

MAX_ROWS = 8192
"""Rows a transaction."""
_CHUNK = 256
"""Rows a statement on SQLite; 256 x 34 values are below its limit of 32,766."""


class UsageRow(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One record of `usage_events`, in column order. See `docs/data-schema.md` for the meaning of each column.

    Ids are 32 hex digits, `timestamp` is UTC text `YYYY-MM-DD HH:MM:SS.ffffff`, `cost` is in 1e-10 US dollars, `price` and
    `metadata` are JSON text. A journal of an older release may lack newer fields: they need defaults.
    """

    event_id: str
    tenant_id: str
    event_type: str
    timestamp: str
    request_id: str
    key_hash: str
    operation: str
    model_asked: str
    usage_source: str
    price_state: str
    latency_ms: float
    overhead_ms: float
    status: int
    attempts: int
    stream: bool
    complete: bool
    task_id: str | None = None
    token_count: int | None = None
    compute_seconds: float | None = None
    metadata: str | None = None
    model_served: str | None = None
    provider: str | None = None
    deployment: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    cache_write_tokens: int | None = None
    price: str | None = None
    cost: int | None = None
    first_byte_ms: float | None = None
    error_code: str | None = None
    task_type: str | None = None
    local_fallback: bool = False


COLUMNS = UsageRow.__struct_fields__
_NAMES = ", ".join(f'"{name}"' for name in COLUMNS)
_PLACES = "(" + ", ".join("?" * len(COLUMNS)) + ")"

_ARRAYS = {"str": "text", "int": "bigint", "float": "float8", "bool": "bool"}
_CASTS = {
    "event_id": "{}::uuid",
    "tenant_id": "{}::uuid",
    "task_id": "{}::uuid",
    "timestamp": "({} || 'Z')::timestamptz",
    "metadata": "{}::jsonb",
    "price": "{}::jsonb",
    "cost": "{}::numeric / 10000000000",
}


def _postgres_insert() -> str:
    """One statement for any number of rows: an array a column. Faster than VALUES and, unlike COPY, needs no temporary table."""
    kinds = (_ARRAYS[annotation.partition(" ")[0]] for annotation in UsageRow.__annotations__.values())
    arrays = ", ".join(f"${place}::{kind}[]" for place, kind in enumerate(kinds, 1))
    values = ", ".join(_CASTS.get(name, "{}").format(f'row."{name}"') for name in COLUMNS)
    return (
        f"WITH new AS (INSERT INTO usage_events ({_NAMES}) SELECT {values} FROM unnest({arrays}) AS row({_NAMES}) "  # noqa: S608 - constants
        f"ON CONFLICT (event_id) DO NOTHING RETURNING {rollups.POSTGRES_COLUMNS}), "
        f"sums AS ({rollups.POSTGRES}), keys AS ({rollups.POSTGRES_KEYS}) SELECT count(*) FROM new"
    )


_POSTGRES_INSERT = _postgres_insert()
_SQLITE_INSERT, _SQLITE_INSERT_CHUNK = (
    f"INSERT INTO usage_events ({_NAMES}) VALUES {', '.join([_PLACES] * rows)} ON CONFLICT (event_id) DO NOTHING"  # noqa: S608 - constants
    for rows in (1, _CHUNK)
)


class Inserted(NamedTuple):
    """What became of a batch; the rest of its rows was there already."""

    new: int
    refused: int
    """Rows that the database refuses for what is in them; 0 unless something is wrong with us."""


async def insert_usage(database: Database, rows: Sequence[UsageRow]) -> Inserted:
    """Insert `rows` (at most `MAX_ROWS`) in one transaction; those already there stay as they are.

    Refused rows are logged and left out, so that one of them cannot keep the others from being written.
    Raises Unavailable when the store does not answer.
    """
    try:
        return Inserted(await _insert(database, rows), 0)
    except Refused as error:
        if len(rows) == 1:
            log.error("usage record %s refused: %s", rows[0].event_id, error)
            return Inserted(0, 1)
    middle = len(rows) // 2
    first, second = await insert_usage(database, rows[:middle]), await insert_usage(database, rows[middle:])
    return Inserted(first.new + second.new, first.refused + second.refused)


async def _insert(database: Database, rows: Sequence[UsageRow]) -> int:
    """Insert and count the new ones."""
    if database.is_sqlite:
        return await database.bulk(partial(_insert_sqlite, rows))
    async with database.write() as connection:
        columns = tuple(zip(*map(msgspec.structs.astuple, rows), strict=True))
        new: int = (await connection.exec_driver_sql(_POSTGRES_INSERT, columns)).scalar_one()
        return new


def _insert_sqlite(rows: Sequence[UsageRow], connection: sqlite3.Connection) -> int:
    values = list(map(msgspec.structs.astuple, rows))
    whole = len(values) - len(values) % _CHUNK
    new = 0
    (last,) = connection.execute(rollups.LAST).fetchone()
    for start in range(0, whole, _CHUNK):
        new += connection.execute(
            _SQLITE_INSERT_CHUNK, list(chain.from_iterable(values[start : start + _CHUNK]))
        ).rowcount
    if whole < len(values):
        new += connection.executemany(_SQLITE_INSERT, values[whole:]).rowcount
    if new:
        connection.execute(rollups.SQLITE, (last,))
        connection.execute(rollups.SQLITE_KEYS, (last,))
    return new
