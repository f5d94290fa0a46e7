"""Deleting what is kept no longer: usage records, outcomes of routing, sums, the audit log; a bounded number of rows a transaction.

`tenancy/retention.py` says how old is too old. Deleting again what is deleted does nothing, and on Postgres an advisory lock makes
replicas take turns, so that they never wait for each other's rows. Every statement starts from a scope.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from zlib import crc32

import sqlalchemy
from sqlalchemy import ColumnElement, Table, delete, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from hortator.call import KeyHash
from hortator.store.database import Database
from hortator.store.queries import OperatorScope, TenantScope
from hortator.store.tables import audit, routing_outcomes, tenants, usage_events, usage_rollups

Scope = TenantScope | OperatorScope

BATCH = 1000
"""Most rows of a transaction, so that nobody who writes waits long."""
_SUMS_STEP = timedelta(days=7)
LOCK_ID = 0x68727432
"""With a table's digest below it: who goes on to another table does not take its turn from who still deletes there."""


async def delete_records(database: Database, scope: Scope, before: datetime, key_hash: KeyHash | None = None) -> int:
    """Delete up to `BATCH` of the oldest records from before a moment, of one key or of all; return how many. Raises Unavailable.

    The operator's scope means the records of tenants that are no more.
    """
    return await _delete_old(database, scope, usage_events, usage_events.c.timestamp, before, key_hash)


async def delete_outcomes(database: Database, scope: Scope, before: datetime, key_hash: KeyHash | None = None) -> int:
    """The same with outcomes of routing."""
    return await _delete_old(database, scope, routing_outcomes, routing_outcomes.c.at, before, key_hash)


async def _delete_old(
    database: Database,
    scope: Scope,
    table: Table,
    when: ColumnElement[datetime],
    before: datetime,
    key_hash: KeyHash | None,
) -> int:
    column = table.c
    old = scope.rows(table, column.id).where(when < before)
    if isinstance(scope, OperatorScope):
        old = old.where(column.tenant_id.not_in(select(tenants.c.id)))
    if key_hash is not None:
        old = old.where(column.key_hash == key_hash)
    ids = old.order_by(when).limit(BATCH)
    return await _delete(database, table, delete(table).where(column.id.in_(ids)))


async def delete_sums(database: Database, scope: Scope, before: datetime) -> int:
    """Delete the oldest week of sums from before a moment; return how many rows. Raises Unavailable.

    The operator's scope means those of tenants that are no more.
    """
    column = usage_rollups.c
    whose = column.tenant_id.not_in(select(tenants.c.id)) if isinstance(scope, OperatorScope) else sqlalchemy.true()
    async with database.read() as connection:
        first = scope.rows(usage_rollups, func.min(column.hour)).where(whose)
        oldest: datetime | None = (await connection.execute(first)).scalar()
    if oldest is None or oldest >= before:
        return 0
    key = tuple(usage_rollups.primary_key)
    old = scope.rows(usage_rollups, *key).where(whose, column.hour < min(before, oldest + _SUMS_STEP))
    return await _delete(database, usage_rollups, delete(usage_rollups).where(tuple_(*key).in_(old)))


async def delete_audit(database: Database, scope: OperatorScope, before: datetime) -> int:
    """Delete up to `BATCH` of the oldest entries of the audit log from before a moment; return how many. Raises Unavailable."""
    ids = scope.rows(audit, audit.c.id).where(audit.c.at < before).order_by(audit.c.at).limit(BATCH)
    return await _delete(database, audit, delete(audit).where(audit.c.id.in_(ids)))


async def _delete(database: Database, table: Table, statement: sqlalchemy.Delete) -> int:
    async with database.write() as connection:
        if not await _our_turn(database, table, connection):
            return 0
        result: Any = await connection.execute(statement)
        return max(0, int(result.rowcount))


async def _our_turn(database: Database, table: Table, connection: AsyncConnection) -> bool:
    """Whether no other replica deletes from the table now."""
    if database.is_sqlite:
        return True
    lock = sqlalchemy.text("SELECT pg_try_advisory_xact_lock(:id)")
    id = LOCK_ID << 32 | crc32(table.name.encode())
    return bool((await connection.execute(lock, {"id": id})).scalar())
