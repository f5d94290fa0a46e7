"""Reading usage for people and invoices: sums from the rollups, and single records page by page. Never a day of records.

The ledger's reports call these with a scope: `TenantScope` adds the tenant filter, `OperatorScope` says that none is meant.
Every statement starts from the scope's `rows`, so nothing here can forget it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, func, or_

from hortator.call import KeyHash, TenantId
from hortator.store.database import Database
from hortator.store.queries import OperatorScope, TenantScope
from hortator.store.tables import key_rollups, usage_events, usage_rollups

Scope = TenantScope | OperatorScope
TOKENS = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens", "cache_write_tokens")
COUNTS = ("requests", "unpriced", "local_fallbacks", *TOKENS)
RECORD = (
    "id timestamp request_id tenant_id operation model_asked model_served provider deployment attempts input_tokens "
    "output_tokens cached_tokens reasoning_tokens cache_write_tokens usage_source price_state cost latency_ms first_byte_ms "
    "overhead_ms status error_code stream complete task_type local_fallback"
).split()
"""What a report shows of a record: everything but key hashes, prices and attempts."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Everything in a period. Costs are US dollars, of the requests that have a price."""

    requests: int
    unpriced: int
    local_fallbacks: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cache_write_tokens: int
    cost: Decimal
    latency_us: int


class KeySums(NamedTuple):
    """What a key has used since some hour. The cost is US dollars, of the requests that have a price."""

    tenant_id: TenantId
    key_hash: KeyHash
    requests: int
    tokens: int
    cost: Decimal


class Place(NamedTuple):
    """A record's place in the order, newest first; what a cursor holds."""

    timestamp: datetime
    id: int


class Only(NamedTuple):
    """What a report is confined to; None = to nothing."""

    model: str | None = None
    """A deployment's id; for records also what was asked for."""
    task_type: str | None = None
    """Empty = requests without one."""


ALL = Only()


async def sums(database: Database, scope: Scope, since: datetime, until: datetime, only: Only = ALL) -> Sums:
    """Add up the hours from `since` to before `until`, both at the full hour."""
    statement = _hours(scope, since, until, only, *_added((*COUNTS, "latency_us")), _cost())
    async with database.read() as connection:
        *counts, latency, cost = (await connection.execute(statement)).one()
    values = dict(zip(COUNTS, map(int, counts), strict=True))
    return Sums(**values, latency_us=int(latency), cost=cost or Decimal(0))


async def key_sums(database: Database, scope: Scope, since: datetime, limit: int) -> list[KeySums]:
    """Return what keys have used in the hours from `since` on, at most `limit` keys."""
    column = key_rollups.c
    added = (func.sum(column[name]) for name in ("requests", "tokens"))
    statement = (
        scope.rows(
            key_rollups, column.tenant_id, column.key_hash, *added, func.sum(column.cost, type_=column.cost.type)
        )
        .where(column.hour >= since)
        .group_by(column.tenant_id, column.key_hash)
        .limit(limit)
    )
    async with database.read() as connection:
        rows = (await connection.execute(statement)).all()
    return [KeySums(tenant, key, int(requests), int(tokens), cost) for tenant, key, requests, tokens, cost in rows]


async def lines(
    database: Database, scope: Scope, since: datetime, until: datetime, limit: int, only: Only = ALL
) -> list[dict[str, Any]]:
    """Return sums by tenant, provider, model and task type, at most `limit`."""
    column = usage_rollups.c
    names = (column.tenant_id, column.provider, column.model, column.task_type)
    statement = (
        _hours(scope, since, until, only, *names, *_added(COUNTS), _cost())
        .group_by(*names)
        .order_by(*names)
        .limit(limit)
    )
    async with database.read() as connection:
        rows = (await connection.execute(statement)).all()
    found = []
    for tenant, provider, name, task_type, *counts, cost in rows:
        values: dict[str, Any] = {"tenant_id": tenant, "provider": provider, "model": name, "task_type": task_type}
        values |= dict(zip(COUNTS, map(int, counts), strict=True))
        found.append(values | {"cost": cost or Decimal(0)})
    return found


async def records(
    database: Database,
    scope: Scope,
    since: datetime,
    until: datetime,
    *,
    limit: int,
    only: Only = ALL,
    offset: int = 0,
    after: Place | None = None,
) -> list[dict[str, Any]]:
    """Return records from `since` to before `until`, newest first; `after` is the last one of the page before."""
    column = usage_events.c
    statement = scope.rows(usage_events, *(column[name] for name in RECORD)).where(
        column.timestamp >= since, column.timestamp < until
    )
    if only.model is not None:
        statement = statement.where(or_(column.deployment == only.model, column.model_asked == only.model))
    if only.task_type is not None:
        statement = statement.where(func.coalesce(column.task_type, "") == only.task_type)
    if after is not None:
        statement = statement.where(
            column.timestamp <= after.timestamp,
            or_(column.timestamp < after.timestamp, and_(column.timestamp == after.timestamp, column.id < after.id)),
        )
    statement = statement.order_by(column.timestamp.desc(), column.id.desc()).limit(limit).offset(offset)
    async with database.read() as connection:
        return [dict(row._mapping) for row in await connection.execute(statement)]


def _hours(scope: Scope, since: datetime, until: datetime, only: Only, *columns: ColumnElement[Any]) -> Select[Any]:
    column = usage_rollups.c
    statement = scope.rows(usage_rollups, *columns).where(column.hour >= since, column.hour < until)
    if only.model is not None:
        statement = statement.where(column.model == only.model)
    return statement if only.task_type is None else statement.where(column.task_type == only.task_type)


def _added(names: tuple[str, ...]) -> list[ColumnElement[Any]]:
    return [func.coalesce(func.sum(usage_rollups.c[name]), 0) for name in names]


def _cost() -> ColumnElement[Any]:
    return func.sum(usage_rollups.c.cost, type_=usage_rollups.c.cost.type)
