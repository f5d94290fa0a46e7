"""Every statement on tenants, keys, tasks and usage. The one place that adds the tenant filter.

What belongs to a tenant is read and changed through `TenantScope(database, tenant_id)`, whose statements all start from
`_rows` or `_where`; a test walks the source and fails when a tenant's table is used elsewhere. Where the operator may see
all tenants, `OperatorScope` says so out loud. The two reads that cannot have a
tenant, because they find out whose a key is, are `find_keys` and `match_keys`. Called by tenancy and by the command line.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import uuid_utils
from sqlalchemy import ColumnElement, Row, Select, Table, func, insert, or_, select, update

from hortator.call import KeyHash, TenantId
from hortator.errors import InvalidRequest, NotFound
from hortator.store.database import Database, Refused
from hortator.store.tables import api_keys, tenants, usage_events


@dataclass(frozen=True, slots=True)
class Tenant:
    """A row of `tenants`."""

    id: TenantId
    name: str
    namespace: str
    created_at: datetime
    config: Mapping[str, Any] = field(default_factory=dict)
    """`limits`, `allowed_models`, `priority`, `data_retention`: what was set."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A row of `api_keys`: never the key itself."""

    key_hash: KeyHash
    tenant_id: TenantId
    name: str
    prefix: str
    permissions: tuple[str, ...]
    allowed_models: tuple[str, ...]
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None
    replaced_by: KeyHash | None
    config: Mapping[str, Any] = field(default_factory=dict)
    """`limits`: the key's own."""


class FoundKey(NamedTuple):
    """A key, and its tenant's `config` and namespace."""

    key: ApiKey
    tenant_config: Mapping[str, Any]
    namespace: str


@dataclass(frozen=True, slots=True)
class UsageTotal:
    """What one model did for a tenant in a period. Costs are US dollars; `unpriced` counts the records without one."""

    model: str | None
    requests: int
    input_tokens: int
    output_tokens: int
    cost: Decimal
    unpriced: int


def _api_key(row: Row[*tuple[Any, ...]]) -> ApiKey:
    values = {name: row._mapping[name] for name in ApiKey.__dataclass_fields__}
    values["permissions"] = _names(values["permissions"])
    values["allowed_models"] = _names(values["allowed_models"])
    values["config"] = _config(values["config"])
    return ApiKey(**values)


def _names(value: object) -> tuple[str, ...]:
    """A JSON list of names. Anything else, put there by hand, gives no right at all."""
    return tuple(name for name in value if isinstance(name, str)) if isinstance(value, list) else ()


def _config(value: object) -> Mapping[str, Any]:
    """A JSON object. Anything else, put there by hand, is a limit that cannot be read and so gives no right at all."""
    return value if isinstance(value, dict) else {"limits": ["unreadable"], "allowed_models": []}


def _tenant(row: Row[Any]) -> Tenant:
    return Tenant(**{**row._mapping, "config": _config(row.config)})


class TenantScope:
    """The data of one tenant. Nothing reachable from here belongs to another one."""

    def __init__(self, database: Database, tenant_id: TenantId) -> None:
        self._database = database
        self.tenant_id = tenant_id

    def _where(self, table: Table) -> ColumnElement[bool]:
        """The tenant filter."""
        return table.c.tenant_id == self.tenant_id

    def _rows(self, table: Table, *columns: ColumnElement[Any]) -> Select[Any]:
        """Select from a tenant's table."""
        return select(*(columns or table.columns)).where(self._where(table))

    def rows(self, table: Table, *columns: ColumnElement[Any]) -> Select[Any]:
        """Select from a tenant's table, for `reports.py`."""
        return self._rows(table, *columns)

    async def keys(self) -> list[ApiKey]:
        """Every key of the tenant, oldest first."""
        async with self._database.read() as connection:
            rows = await connection.execute(self._rows(api_keys).order_by(api_keys.c.created_at, api_keys.c.key_hash))
            return [_api_key(row) for row in rows]

    async def add_key(self, key: ApiKey) -> None:
        """Store a new key of this tenant."""
        values = {name: getattr(key, name) for name in ApiKey.__dataclass_fields__}
        values |= {
            "tenant_id": self.tenant_id,
            "permissions": list(key.permissions),
            "allowed_models": list(key.allowed_models),
        }
        async with self._database.write() as connection:
            await connection.execute(insert(api_keys).values(values))

    async def revoke_key(self, key_hash: KeyHash, at: datetime) -> None:
        """Mark the key revoked at `at`; one that already is keeps its moment."""
        async with self._database.write() as connection:
            await connection.execute(
                update(api_keys)
                .where(self._where(api_keys), api_keys.c.key_hash == key_hash, api_keys.c.revoked_at.is_(None))
                .values(revoked_at=at)
            )

    async def change_key(self, key_hash: KeyHash, config: Mapping[str, Any]) -> None:
        """Set the key's `config`."""
        async with self._database.write() as connection:
            await connection.execute(
                update(api_keys)
                .where(self._where(api_keys), api_keys.c.key_hash == key_hash)
                .values(config=dict(config))
            )

    async def replace_key(self, old: KeyHash, new: ApiKey, expires_at: datetime) -> None:
        """Store `new` and let `old` expire at `expires_at`, in one transaction. Raises InvalidRequest when it was replaced."""
        values = {name: getattr(new, name) for name in ApiKey.__dataclass_fields__}
        values |= {
            "tenant_id": self.tenant_id,
            "permissions": list(new.permissions),
            "allowed_models": list(new.allowed_models),
        }
        async with self._database.write() as connection:
            await connection.execute(insert(api_keys).values(values))
            changed = await connection.execute(
                update(api_keys)
                .where(self._where(api_keys), api_keys.c.key_hash == old)
                .where(api_keys.c.replaced_by.is_(None), api_keys.c.revoked_at.is_(None))
                .values(replaced_by=new.key_hash, expires_at=expires_at)
            )
            if changed.rowcount != 1:
                raise InvalidRequest("the key was replaced or revoked already", code="key_not_active")

    async def usage_totals(self, since: datetime, until: datetime) -> list[UsageTotal]:
        """What was used from `since` to before `until`, a line per model served."""
        column = usage_events.c
        statement = (
            self._rows(
                usage_events,
                column.model_served,
                func.count(),
                func.coalesce(func.sum(column.input_tokens), 0),
                func.coalesce(func.sum(column.output_tokens), 0),
                func.sum(column.cost, type_=column.cost.type),
                func.count().filter(column.cost.is_(None)),
            )
            .where(column.timestamp >= since, column.timestamp < until)
            .group_by(column.model_served)
            .order_by(column.model_served)
        )
        async with self._database.read() as connection:
            rows = (await connection.execute(statement)).all()
        return [UsageTotal(model, n, int(i), int(o), cost or Decimal(0), free) for model, n, i, o, cost, free in rows]

    async def usage(self, since: datetime, until: datetime, limit: int = 100) -> list[dict[str, Any]]:
        """The records from `since` to before `until`, newest first, at most `limit` (1 to 1,000)."""
        column = usage_events.c
        statement = (
            self._rows(usage_events)
            .where(column.timestamp >= since, column.timestamp < until)
            .order_by(column.timestamp.desc(), column.id.desc())
            .limit(max(1, min(limit, 1000)))
        )
        async with self._database.read() as connection:
            return [dict(row._mapping) for row in await connection.execute(statement)]


class OperatorScope:
    """The data of every tenant: for the admin listener and the operator's commands, and for nobody else."""

    def rows(self, table: Table, *columns: ColumnElement[Any]) -> Select[Any]:
        """Select from a tenant's table, whoever's it is."""
        return select(*(columns or table.columns))


async def find_keys(database: Database, hashes: Sequence[str], deadline: float) -> list[FoundKey]:
    """The keys with these hashes, of any tenant: authentication asks whose they are. Raises Unavailable."""
    async with database.read(deadline) as connection:
        statement = select(*api_keys.c, tenants.c.config.label("tenant_config"), tenants.c.namespace).join(tenants)
        rows = await connection.execute(statement.where(api_keys.c.key_hash.in_(hashes)))
        return [FoundKey(_api_key(row), _config(row.tenant_config), row.namespace) for row in rows]


async def match_keys(database: Database, text: str) -> list[ApiKey]:
    """The keys whose name is `text`, or whose prefix or hash starts with it; for the operator's commands."""
    like = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
    async with database.read() as connection:
        rows = await connection.execute(
            select(api_keys).where(
                or_(
                    api_keys.c.name == text,
                    api_keys.c.prefix.like(like, escape="\\"),
                    api_keys.c.key_hash.like(like, escape="\\"),
                )
            )
        )
        return [_api_key(row) for row in rows]


async def touch_keys(database: Database, hashes: Iterable[str], at: datetime) -> None:
    """Note that these keys were used. Batched by tenancy, at most once a minute."""
    async with database.write() as connection:
        await connection.execute(update(api_keys).where(api_keys.c.key_hash.in_(list(hashes))).values(last_used_at=at))


async def add_tenant(
    database: Database, name: str, namespace: str, at: datetime, config: Mapping[str, Any] | None = None
) -> Tenant:
    """Store a new tenant. Raises InvalidRequest when the namespace is taken."""
    tenant = Tenant(TenantId(str(uuid_utils.uuid7())), name, namespace, at, dict(config or {}))
    try:
        async with database.write() as connection:
            await connection.execute(
                insert(tenants).values(
                    id=tenant.id, name=name, namespace=namespace, created_at=at, config=tenant.config
                )
            )
    except Refused:
        raise InvalidRequest(f"the namespace {namespace} is taken", code="namespace_taken", param="namespace") from None
    return tenant


async def list_tenants(database: Database) -> list[Tenant]:
    """Every tenant, oldest first."""
    async with database.read() as connection:
        rows = await connection.execute(select(tenants).order_by(tenants.c.created_at, tenants.c.id))
        return [_tenant(row) for row in rows]


async def tenant_by_namespace(database: Database, namespace: str) -> Tenant:
    """The tenant of that namespace. Raises NotFound."""
    async with database.read() as connection:
        row = (await connection.execute(select(tenants).where(tenants.c.namespace == namespace))).first()
    if row is None:
        raise NotFound(f"no tenant has the namespace {namespace}", code="tenant_not_found")
    return _tenant(row)


async def find_tenant(database: Database, name: str, deadline: float) -> Tenant | None:
    """The tenant with that id or namespace, None when there is none. Raises Unavailable."""
    matches = tenants.c.namespace == name
    with contextlib.suppress(ValueError):
        matches = or_(matches, tenants.c.id == str(UUID(name)))
    async with database.read(deadline) as connection:
        row = (await connection.execute(select(tenants).where(matches))).first()
    return None if row is None else _tenant(row)


async def change_tenant(database: Database, tenant_id: TenantId, config: Mapping[str, Any]) -> None:
    """Set a tenant's `config`."""
    async with database.write() as connection:
        await connection.execute(update(tenants).where(tenants.c.id == tenant_id).values(config=dict(config)))
