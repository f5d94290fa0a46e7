"""The audit log's one writing statement (R-000-89): who did what to whom, in the transaction that does it.

`queries.py` calls `write` beside every change of a tenant or a key, so that there is no change without a record and no record
of a change that failed; `pages.py` reads them. An entry never holds a key, only its hash and name.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from hortator.call import KeyHash, RequestId, TenantId
from hortator.store.tables import audit

_NAME_LENGTH = 255


class Actor(NamedTuple):
    """Who administers: a caller of the admin API, the command line, or the gateway itself."""

    name: str
    """The key's name, `command line (user)`, or `gateway`."""
    key_hash: KeyHash | None = None
    tenant_id: TenantId | None = None
    request_id: RequestId | None = None


GATEWAY = Actor("gateway")
"""What nobody asked for: the default tenant and the first key."""


async def write(
    connection: AsyncConnection,
    by: Actor,
    action: str,
    target: str,
    tenant_id: TenantId | None,
    detail: Mapping[str, Any],
) -> None:
    """Add an entry. `target`: the hash of a key or the id of a tenant; `tenant_id`: whose it is, None = everyone's."""
    await connection.execute(
        insert(audit).values(
            at=datetime.now(UTC),
            actor_name=by.name[:_NAME_LENGTH],
            actor_key_hash=by.key_hash,
            actor_tenant_id=by.tenant_id,
            action=action,
            target=target,
            tenant_id=tenant_id,
            request_id=by.request_id,
            detail=_plain(detail),
        )
    )


def _plain(detail: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON can hold."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else list(value) if isinstance(value, tuple) else value
        for name, value in detail.items()
    }
