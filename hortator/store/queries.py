"""Every statement on tenants, keys, tasks and usage. The one place that adds the tenant filter.

What belongs to a tenant is read and changed through `TenantScope(database, tenant_id)`, whose statements all start from
`_rows` or `_where`; a test walks the source and fails when a tenant's table is used elsewhere. Where the operator may see
all tenants, `OperatorScope` says so out loud. The two reads that cannot have a
tenant, because they find out whose a key is, are `find_keys` and `match_keys`. Called by tenancy and by the command line.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import uuid_utils
from sqlalchemy import ColumnElement, Row, Select, Table, func, insert, or_, select, update

from hortator.call import KeyHash, TenantId
from hortator.errors import InvalidRequest, NotFound
from hortator.store.audit import GATEWAY, Actor, write
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
    disabled_at: datetime | None = None
    """Set: none of its keys is good."""


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
    """`limits`, `priority`, `data_retention`: the key's own."""


class FoundKey(NamedTuple):
    """A key, and what counts of its tenant."""

    key: ApiKey
    tenant_config: Mapping[str, Any]
    namespace: str
    tenant_disabled: bool = False


@dataclass(frozen=True, slots=True)
class UsageTotal:
    """What one model did for a tenant in a period. Costs are US dollars; `unpriced` counts the records without one."""

    model: str | None
    requests: int
    input_tokens: int
    output_tokens: int
    cost: Decimal
    unpriced: int


def as_key(row: Row[*tuple[Any, ...]]) -> ApiKey:
    """Return the key that a row of `api_keys` describes."""
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


def as_tenant(row: Row[Any]) -> Tenant:
    """Return the tenant that a row of `tenants` describes."""
    return Tenant(**{**row._mapping, "config": _config(row.config)})


def _values(key: ApiKey) -> dict[str, Any]:
    """A key as columns."""
    values = {name: getattr(key, name) for name in ApiKey.__dataclass_fields__}
    return values | {"permissions": list(key.permissions), "allowed_models": list(key.allowed_models)}


def _described(key: ApiKey) -> dict[str, Any]:
    """What the audit log says of a new key."""
    told = {name: getattr(key, name) for name in ("name", "prefix", "permissions", "allowed_models", "expires_at")}
    return {**told, **key.config}


def _merged(stored: object, config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**_config(stored), **config}.items() if value is not None}


R = TypeVar("R", bound="TenantRows")
S = TypeVar("S")
_PREPARED = 64
"""Tenants whose statements are kept; with more, all are built anew."""


def prepared(build: Callable[[R], S]) -> Callable[[R], S]:
    """Build a statement once for each tenant, filter and all: SQLAlchemy spends more time on building one than on running it.

    What changes from call to call is a `bindparam`. Its names are none of the table's columns.
    """
    kept: dict[TenantId, S] = {}

    @functools.wraps(build)
    def statement(scope: R) -> S:
        found = kept.get(scope.tenant_id)
        if found is None:
            if len(kept) >= _PREPARED:
                kept.clear()
            found = kept[scope.tenant_id] = build(scope)
        return found

    return statement


class TenantRows:
    """What the statements of one tenant start from."""

    def __init__(self, database: Database, tenant_id: TenantId) -> None:
        self._database = database
        self.tenant_id = tenant_id

    def _where(self, table: Table) -> ColumnElement[bool]:
        """The tenant filter."""
        return (table.c.id if table is tenants else table.c.tenant_id) == self.tenant_id

    def _rows(self, table: Table, *columns: ColumnElement[Any]) -> Select[Any]:
        """Select from a tenant's table."""
        return select(*(columns or table.columns)).where(self._where(table))

    def rows(self, table: Table, *columns: ColumnElement[Any]) -> Select[Any]:
        """Select from a tenant's table, for `reports.py`."""
        return self._rows(table, *columns)


class TenantScope(TenantRows):
    """The data of one tenant. Nothing reachable from here belongs to another one."""

    async def keys(self) -> list[ApiKey]:
        """Every key of the tenant, oldest first."""
        async with self._database.read() as connection:
            rows = await connection.execute(self._rows(api_keys).order_by(api_keys.c.created_at, api_keys.c.key_hash))
            return [as_key(row) for row in rows]

    async def add_key(self, key: ApiKey, by: Actor) -> None:
        """Store a new key of this tenant."""
        async with self._database.write() as connection:
            await connection.execute(insert(api_keys).values(_values(key) | {"tenant_id": self.tenant_id}))
            await write(connection, by, "key.create", key.key_hash, self.tenant_id, _described(key))

    async def revoke_key(self, key_hash: KeyHash, at: datetime, by: Actor) -> None:
        """Mark the key revoked at `at`; one that already is keeps its moment."""
        async with self._database.write() as connection:
            changed = await connection.execute(
                update(api_keys)
                .where(self._where(api_keys), api_keys.c.key_hash == key_hash, api_keys.c.revoked_at.is_(None))
                .values(revoked_at=at)
            )
            if changed.rowcount == 1:
                await write(connection, by, "key.revoke", key_hash, self.tenant_id, {})

    async def change_key(
        self, key_hash: KeyHash, values: Mapping[str, Any], config: Mapping[str, Any], by: Actor
    ) -> ApiKey:
        """Set columns of the key and parts of its `config`, where None takes a part out; return it. Raises NotFound."""
        async with self._database.write() as connection:
            mine = self._rows(api_keys).where(api_keys.c.key_hash == key_hash).with_for_update()
            row = (await connection.execute(mine)).first()
            if row is None:
                raise NotFound("no such key", code="key_not_found")
            changed = replace(as_key(row), **values, config=_merged(row.config, config))
            await connection.execute(
                update(api_keys)
                .where(self._where(api_keys), api_keys.c.key_hash == key_hash)
                .values(_values(changed) | {"tenant_id": self.tenant_id})
            )
            await write(connection, by, "key.change", key_hash, self.tenant_id, {**values, **config})
        return changed

    async def replace_key(self, old: KeyHash, new: ApiKey, expires_at: datetime, by: Actor) -> None:
        """Store `new` and let `old` expire at `expires_at`, in one transaction. Raises InvalidRequest when it was replaced."""
        async with self._database.write() as connection:
            await connection.execute(insert(api_keys).values(_values(new) | {"tenant_id": self.tenant_id}))
            changed = await connection.execute(
                update(api_keys)
                .where(self._where(api_keys), api_keys.c.key_hash == old)
                .where(api_keys.c.replaced_by.is_(None), api_keys.c.revoked_at.is_(None))
                .values(replaced_by=new.key_hash, expires_at=expires_at)
            )
            if changed.rowcount != 1:
                raise InvalidRequest("the key was replaced or revoked already", code="key_not_active")
            detail = {"replaced_by": new.key_hash, "expires_at": expires_at}
            await write(connection, by, "key.rotate", old, self.tenant_id, detail)

    async def change(self, values: Mapping[str, Any], config: Mapping[str, Any], by: Actor) -> Tenant:
        """Set columns of the tenant and parts of its `config`, where None takes a part out; return it. Raises NotFound."""
        async with self._database.write() as connection:
            row = (await connection.execute(self._rows(tenants).with_for_update())).first()
            if row is None:
                raise NotFound("no such tenant", code="tenant_not_found")
            changed = replace(as_tenant(row), **values, config=_merged(row.config, config))
            stored = {name: getattr(changed, name) for name in ("name", "config", "disabled_at")}
            await connection.execute(update(tenants).where(self._where(tenants)).values(stored))
            await write(connection, by, "tenant.change", self.tenant_id, self.tenant_id, {**values, **config})
        return changed

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
        of_tenant = (
            tenants.c.config.label("tenant_config"),
            tenants.c.namespace,
            tenants.c.disabled_at.label("tenant_disabled_at"),
        )
        statement = select(*api_keys.c, *of_tenant).join(tenants)
        rows = await connection.execute(statement.where(api_keys.c.key_hash.in_(hashes)))
        return [
            FoundKey(as_key(row), _config(row.tenant_config), row.namespace, row.tenant_disabled_at is not None)
            for row in rows
        ]


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
        return [as_key(row) for row in rows]


async def touch_keys(database: Database, hashes: Iterable[str], at: datetime) -> None:
    """Note that these keys were used. Batched by tenancy, at most once a minute."""
    async with database.write() as connection:
        await connection.execute(update(api_keys).where(api_keys.c.key_hash.in_(list(hashes))).values(last_used_at=at))


async def add_tenant(
    database: Database,
    name: str,
    namespace: str,
    at: datetime,
    config: Mapping[str, Any] | None = None,
    by: Actor = GATEWAY,
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
            detail = {"name": name, "namespace": namespace, **tenant.config}
            await write(connection, by, "tenant.create", tenant.id, tenant.id, detail)
    except Refused:
        raise InvalidRequest(f"the namespace {namespace} is taken", code="namespace_taken", param="namespace") from None
    return tenant


async def list_tenants(database: Database) -> list[Tenant]:
    """Every tenant, oldest first."""
    async with database.read() as connection:
        rows = await connection.execute(select(tenants).order_by(tenants.c.created_at, tenants.c.id))
        return [as_tenant(row) for row in rows]


async def tenant_by_namespace(database: Database, namespace: str) -> Tenant:
    """The tenant of that namespace. Raises NotFound."""
    async with database.read() as connection:
        row = (await connection.execute(select(tenants).where(tenants.c.namespace == namespace))).first()
    if row is None:
        raise NotFound(f"no tenant has the namespace {namespace}", code="tenant_not_found")
    return as_tenant(row)


async def find_tenant(database: Database, name: str, deadline: float) -> Tenant | None:
    """The tenant with that id or namespace, None when there is none. Raises Unavailable."""
    matches = tenants.c.namespace == name
    with contextlib.suppress(ValueError):
        matches = or_(matches, tenants.c.id == str(UUID(name)))
    async with database.read(deadline) as connection:
        row = (await connection.execute(select(tenants).where(matches))).first()
    return None if row is None else as_tenant(row)
