"""Issuing keys and tenants: what the operator's commands, the admin API and the first start do. Never on the request path.

A key is `hrt_sk_` and 43 random characters; it is given out once and stored as its SHA-256 (R-000-77). Called by `cli/keys.py`,
`administration.py` and the composition root; the statements are the store's, and each writes its audit entry.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Literal

from hortator.call import KeyHash, TenantId
from hortator.errors import InvalidRequest, NotFound
from hortator.settings.secret import Secret
from hortator.store.audit import GATEWAY, Actor
from hortator.store.database import Database
from hortator.store.queries import (
    ApiKey,
    Tenant,
    TenantScope,
    add_tenant,
    list_tenants,
    match_keys,
    tenant_by_namespace,
)
from hortator.tenancy.terms import checked_models, key_config

KeyState = Literal["active", "replaced", "expired", "revoked"]

KEY_PREFIX = "hrt_sk_"
DEFAULT_TENANT = "default"
OVERLAP = timedelta(hours=24)
"""How long a rotated key stays valid."""
_SHOWN = 12
"""First characters of a key that are stored in clear, to tell keys apart: the prefix and 5 of 43 random ones."""
MAX_PERMISSIONS = 64
_PERMISSION = re.compile(r"[a-z][a-z0-9_.:-]{0,63}")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key at the only moment it is known."""

    token: Secret
    record: ApiKey


@dataclass(frozen=True, slots=True)
class Rotation:
    """A new key in the place of `old`, which works until `old_valid_until`."""

    new: NewKey
    old: ApiKey
    old_valid_until: datetime


def check_tenant(name: str, namespace: str) -> None:
    """Raise InvalidRequest for a name or a namespace that a tenant cannot have."""
    if _LABEL.fullmatch(namespace) is None:
        raise InvalidRequest(
            "a namespace is 1 to 63 lower-case letters, digits and inner hyphens",
            code="invalid_namespace",
            param="namespace",
        )
    if not 0 < len(name) <= 255 or not name.isprintable():
        raise InvalidRequest("a tenant's name is 1 to 255 printable characters", code="invalid_name", param="name")


async def create_tenant(
    database: Database, name: str, namespace: str, config: Mapping[str, Any] | None = None, by: Actor = GATEWAY
) -> Tenant:
    """Make a tenant. `namespace` is a DNS label of at most 63 characters; `config`: see `tenants.py`. Raises InvalidRequest."""
    check_tenant(name, namespace)
    return await add_tenant(database, name, namespace, datetime.now(UTC), config, by)


async def ensure_default_tenant(database: Database) -> Tenant:
    """The tenant `default`, made when there is none. Safe to call from several processes at once."""
    try:
        return await tenant_by_namespace(database, DEFAULT_TENANT)
    except NotFound:
        pass
    try:
        return await create_tenant(database, "Default", DEFAULT_TENANT)
    except InvalidRequest:
        return await tenant_by_namespace(database, DEFAULT_TENANT)


async def first_key(database: Database) -> NewKey | None:
    """At the very first start: a key of the default tenant, so that the product can be tried. None when there are keys."""
    tenant = await ensure_default_tenant(database)
    for other in await list_tenants(database):
        if await TenantScope(database, other.id).keys():
            return None
    return await create_key(database, tenant=tenant.namespace, name="first")


def checked_permissions(permissions: Iterable[str]) -> tuple[str, ...]:
    """Return permissions as they are stored. Raises InvalidRequest."""
    found = tuple(sorted(set(permissions)))
    if len(found) > MAX_PERMISSIONS or not all(map(_PERMISSION.fullmatch, found)):
        raise InvalidRequest(
            "a permission is 1 to 64 small letters, digits and `_.:-`", code="invalid_permission", param="permissions"
        )
    return found


def state(key: ApiKey) -> KeyState:
    """Whether a key is good now. `replaced`: good until its overlap ends. Its tenant may be disabled all the same."""
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is not None and key.expires_at <= datetime.now(UTC):
        return "expired"
    return "replaced" if key.replaced_by is not None else "active"


def check_key_name(name: str) -> None:
    """Raise InvalidRequest for a name that a key cannot have."""
    if not 0 < len(name) <= 255 or not name.isprintable():
        raise InvalidRequest("a key's name is 1 to 255 printable characters", code="invalid_name", param="name")


async def create_key(
    database: Database,
    *,
    name: str,
    tenant: str = DEFAULT_TENANT,
    models: Sequence[str] = ("*",),
    permissions: Sequence[str] = (),
    expires_in: timedelta | None = None,
    expires_at: datetime | None = None,
    limits: Sequence[str] = (),
    priority: str | None = None,
    data_retention: str | None = None,
    by: Actor = GATEWAY,
) -> NewKey:
    """Make a key for the tenant with that namespace. `models`: globs over model ids; `limits`: see `limits.py`.

    It ends `expires_in` from now or `expires_at`; by default never. Raises InvalidRequest, NotFound.
    """
    check_key_name(name)
    now = datetime.now(UTC)
    if expires_in is not None:
        expires_at = now + expires_in
    if expires_at is not None and expires_at <= now:
        raise InvalidRequest("a key must expire in the future", code="invalid_expiry", param="expires_at")
    config = key_config(limits=limits or None, priority=priority, data_retention=data_retention)
    models, permissions = checked_models(models or ("*",)), checked_permissions(permissions)
    owner = await (
        ensure_default_tenant(database) if tenant == DEFAULT_TENANT else tenant_by_namespace(database, tenant)
    )
    new = _new_key(owner.id, name, models, permissions, expires_at, config)
    await TenantScope(database, owner.id).add_key(new.record, by)
    return new


async def list_keys(database: Database, tenant: str | None = None) -> list[tuple[Tenant, ApiKey]]:
    """Every key with its tenant, of one tenant or of all. Raises NotFound."""
    owners = await list_tenants(database) if tenant is None else [await tenant_by_namespace(database, tenant)]
    return [(owner, key) for owner in owners for key in await TenantScope(database, owner.id).keys()]


async def find_key(database: Database, which: str) -> ApiKey:
    """The key with that name, prefix or hash (or the key itself) that is not revoked. Raises NotFound; InvalidRequest when several match."""
    return _only([key for key in await _matching(database, which) if key.revoked_at is None])


async def find_key_to_rotate(database: Database, which: str) -> ApiKey:
    """As `find_key`, passing over keys that were replaced already."""
    matches = await _matching(database, which)
    return _only([key for key in matches if key.revoked_at is None and key.replaced_by is None])


async def change_key(
    database: Database, key: ApiKey, values: Mapping[str, Any], config: Mapping[str, Any], by: Actor = GATEWAY
) -> ApiKey:
    """Set columns of a key and parts of its `config` (`key_config`); None takes a part out. Raises InvalidRequest for a revoked one."""
    if key.revoked_at is not None:
        raise InvalidRequest("the key is revoked", code="key_not_active")
    return await TenantScope(database, key.tenant_id).change_key(key.key_hash, values, config, by)


async def revoke_key(database: Database, key: ApiKey, by: Actor = GATEWAY) -> ApiKey:
    """Revoke a key, at once; return it as it is then. One that is revoked stays as it is."""
    now = datetime.now(UTC)
    await TenantScope(database, key.tenant_id).revoke_key(key.key_hash, now, by)
    return key if key.revoked_at is not None else replace(key, revoked_at=now)


async def rotate_key(database: Database, old: ApiKey, overlap: timedelta = OVERLAP, by: Actor = GATEWAY) -> Rotation:
    """Replace a key by a new one with the same rights.

    The old key works until `overlap` from now, or its own expiry if that is earlier. The new key has no expiry.
    Raises InvalidRequest for a key that was revoked or replaced.
    """
    until = datetime.now(UTC) + max(overlap, timedelta(0))
    if old.expires_at is not None:
        until = min(until, old.expires_at)
    new = _new_key(old.tenant_id, old.name, old.allowed_models, old.permissions, None, old.config)
    await TenantScope(database, old.tenant_id).replace_key(old.key_hash, new.record, until, by)
    return Rotation(new, replace(old, expires_at=until, replaced_by=new.record.key_hash), until)


def _new_key(
    tenant_id: TenantId,
    name: str,
    models: tuple[str, ...],
    permissions: tuple[str, ...],
    expires_at: datetime | None,
    config: Mapping[str, Any],
) -> NewKey:
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    now = datetime.now(UTC)
    record = ApiKey(
        key_hash=KeyHash(sha256(key.encode()).hexdigest()),
        tenant_id=tenant_id,
        name=name,
        prefix=key[:_SHOWN],
        permissions=permissions,
        allowed_models=models,
        created_at=now,
        last_used_at=None,
        expires_at=expires_at,
        revoked_at=None,
        replaced_by=None,
        config=config,
    )
    return NewKey(Secret(key), record)


async def _matching(database: Database, which: str) -> list[ApiKey]:
    """The keys that `which` may mean: a name, a prefix, a hash, or a whole key."""
    found = await match_keys(database, which)
    return found or await match_keys(database, sha256(which.encode()).hexdigest())


def _only(keys: list[ApiKey]) -> ApiKey:
    """The one key that matches. The text is not repeated in errors: it may be a whole key, given by mistake."""
    if not keys:
        raise NotFound("no active key has that name, prefix or hash", code="key_not_found")
    if len(keys) > 1:
        found = ", ".join(key.prefix for key in keys)
        raise InvalidRequest(f"several keys match: {found}; give the prefix of one", code="ambiguous_key")
    return keys[0]
