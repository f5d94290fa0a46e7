"""Tenants, keys and the audit log, page by page, for those who administer. Every statement starts from a scope.

`tenancy/administration.py` calls these with the scope that the caller's permissions allow: `TenantScope` adds the tenant filter,
`OperatorScope` says that none is meant. Pages are cut by key (keyset), so one far away costs no more than the first.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Table, and_, or_

from hortator.call import KeyHash, TenantId
from hortator.store.audit import Actor, write
from hortator.store.database import Database
from hortator.store.queries import ApiKey, OperatorScope, Tenant, TenantScope, as_key, as_tenant
from hortator.store.tables import api_keys, audit, tenants

Scope = TenantScope | OperatorScope


class Place(NamedTuple):
    """A row's place in a list, oldest first; what a cursor holds."""

    created_at: datetime
    id: str


async def tenants_page(
    database: Database, scope: Scope, limit: int, after: Place | None, namespace: str | None
) -> list[Tenant]:
    """Return up to `limit` tenants after a place."""
    statement = scope.rows(tenants)
    if namespace is not None:
        statement = statement.where(tenants.c.namespace == namespace)
    if after is not None:
        statement = statement.where(_beyond(tenants, "id", after))
    async with database.read() as connection:
        rows = await connection.execute(statement.order_by(tenants.c.created_at, tenants.c.id).limit(limit))
        return [as_tenant(row) for row in rows]


async def tenant(database: Database, scope: Scope, id: TenantId) -> Tenant | None:
    """Return one tenant, None when there is none in this scope."""
    async with database.read() as connection:
        row = (await connection.execute(scope.rows(tenants).where(tenants.c.id == id))).first()
    return None if row is None else as_tenant(row)


async def keys_page(
    database: Database, scope: Scope, limit: int, after: Place | None, tenant_id: TenantId | None
) -> list[ApiKey]:
    """Return up to `limit` keys after a place, of one tenant or of all in the scope."""
    statement = scope.rows(api_keys)
    if tenant_id is not None:
        statement = statement.where(api_keys.c.tenant_id == tenant_id)
    if after is not None:
        statement = statement.where(_beyond(api_keys, "key_hash", after))
    async with database.read() as connection:
        rows = await connection.execute(statement.order_by(api_keys.c.created_at, api_keys.c.key_hash).limit(limit))
        return [as_key(row) for row in rows]


async def key(database: Database, scope: Scope, key_hash: KeyHash) -> ApiKey | None:
    """Return one key, None when there is none in this scope."""
    async with database.read() as connection:
        row = (await connection.execute(scope.rows(api_keys).where(api_keys.c.key_hash == key_hash))).first()
    return None if row is None else as_key(row)


async def audit_page(
    database: Database, scope: Scope, limit: int, before: int | None, tenant_id: TenantId | None, action: str | None
) -> list[dict[str, Any]]:
    """Return up to `limit` entries, newest first; `before` is the last id of the page before."""
    statement = scope.rows(audit)
    if tenant_id is not None:
        statement = statement.where(audit.c.tenant_id == tenant_id)
    if action is not None:
        statement = statement.where(audit.c.action == action)
    if before is not None:
        statement = statement.where(audit.c.id < before)
    async with database.read() as connection:
        rows = await connection.execute(statement.order_by(audit.c.id.desc()).limit(limit))
        return [dict(row._mapping) for row in rows]


async def note_look(database: Database, by: Actor, action: str, target: str, tenant_id: TenantId | None) -> None:
    """Record that somebody looked at what is not its own tenant's."""
    async with database.write() as connection:
        await write(connection, by, action, target, tenant_id, {})


def _beyond(table: Table, id: str, place: Place) -> Any:
    created, own = table.c.created_at, table.c[id]
    return or_(created > place.created_at, and_(created == place.created_at, own > place.id))
