"""What holders of administrative permissions may do with tenants, keys and the audit log. Decides whose; changes nothing itself.

The admin API (`api/administration.py`) calls it; the changes are those of `keys.py` and `tenants.py`, which the command line uses
too. `admin` is for operators: every tenant. `admin:keys` and `admin:tenants` are for the caller's own tenant: its keys, and its
name and retention; the rest of a tenant's terms is the operator's to set. Nobody hands out or touches what is above itself.
Every change leaves an audit entry, and so does every look of an operator (R-000-89).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from hortator.call import Caller, KeyHash, RequestId, TenantId
from hortator.errors import Forbidden, InvalidRequest, NotFound
from hortator.store import pages
from hortator.store.audit import Actor
from hortator.store.database import Database
from hortator.store.queries import ApiKey, OperatorScope, Tenant, TenantScope
from hortator.tenancy.identity import Identity
from hortator.tenancy.keys import (
    NewKey,
    Rotation,
    change_key,
    check_key_name,
    checked_permissions,
    create_key,
    create_tenant,
    revoke_key,
    rotate_key,
)
from hortator.tenancy.tenants import change_tenant

OPERATOR = "admin"
KEYS = "admin:keys"
TENANTS = "admin:tenants"
_OWN_FIELDS = frozenset({"data_retention"})
"""Terms of a tenant that its own administrator may set."""
_UUID = re.compile(r"[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}")
_HASH = re.compile(r"[0-9a-f]{64}")
EVERYTHING = "*"
"""The audit log's target of a list."""


class Administrator(NamedTuple):
    """A caller with an administrative permission, in one request."""

    caller: Caller
    request_id: RequestId

    @property
    def operates(self) -> bool:
        """Whether every tenant is open to it."""
        return OPERATOR in self.caller.permissions

    @property
    def actor(self) -> Actor:
        """Who the audit log says it was."""
        return Actor(self.caller.key_name, self.caller.key_hash, self.caller.tenant_id, self.request_id)


class Listed(NamedTuple):
    """One page of a list, and the cursor of the next one."""

    items: Sequence[Any]
    next_cursor: str | None


class KeyOrder(NamedTuple):
    """A key to be made. `tenant`: id or namespace, None = the administrator's own."""

    name: str
    tenant: str | None = None
    models: Sequence[str] = ("*",)
    permissions: Sequence[str] = ()
    expires_at: datetime | None = None
    limits: Sequence[str] = ()
    priority: str | None = None
    data_retention: str | None = None


class Administration:
    """One per process."""

    def __init__(self, database: Database, identity: Identity) -> None:
        self._database = database
        self._identity = identity

    async def admit(self, token: bytes, request_id: RequestId) -> Administrator:
        """Say who administers. Raises Unauthenticated, Unavailable, and Forbidden without any administrative permission."""
        who = Administrator(await self._identity.authenticate(token), request_id)
        if not who.caller.permissions & {OPERATOR, KEYS, TENANTS}:
            raise _forbidden(OPERATOR, KEYS, TENANTS)
        return who

    # Tenants.

    async def tenants(
        self, who: Administrator, limit: int, cursor: str | None = None, namespace: str | None = None
    ) -> Listed:
        """Return a page of the tenants that the administrator sees, oldest first."""
        place = None if cursor is None else _place(cursor, _UUID)
        found = await pages.tenants_page(self._database, self._scope(who), limit + 1, place, namespace)
        await self._looked(who, "tenant.list", EVERYTHING, None)
        last = found[limit - 1] if len(found) > limit else None
        return Listed(found[:limit], None if last is None else _cursor(pages.Place(last.created_at, last.id)))

    async def tenant(self, who: Administrator, which: str) -> Tenant:
        """Return one tenant by id or namespace. Raises NotFound."""
        found = await self._tenant(who, which)
        await self._looked(who, "tenant.read", found.id, found.id)
        return found

    async def create_tenant(self, who: Administrator, name: str, namespace: str, config: Mapping[str, Any]) -> Tenant:
        """Make a tenant; for operators. Raises Forbidden, InvalidRequest."""
        if not who.operates:
            raise _forbidden(OPERATOR)
        return await create_tenant(self._database, name, namespace, config, who.actor)

    async def change_tenant(
        self, who: Administrator, which: str, config: Mapping[str, Any], name: str | None, disabled: bool | None
    ) -> Tenant:
        """Set what is given of a tenant; None in `config` takes a part out. Raises Forbidden, InvalidRequest, NotFound."""
        _need(who, TENANTS)
        if not who.operates and (disabled is not None or not config.keys() <= _OWN_FIELDS):
            raise Forbidden(
                f"Only the permission `{OPERATOR}` may change a tenant's limits, models, priority or state.",
                code="permission_required",
            )
        tenant = await self._tenant(who, which)
        if disabled and tenant.id == who.caller.tenant_id:
            raise InvalidRequest("You cannot disable your own tenant.", code="own_tenant", param="disabled")
        changed = await change_tenant(self._database, tenant, config, name=name, disabled=disabled, by=who.actor)
        self._identity.forget(tenant_id=tenant.id)
        return changed

    # Keys.

    async def keys(
        self, who: Administrator, limit: int, cursor: str | None = None, tenant: str | None = None
    ) -> Listed:
        """Return a page of the keys that the administrator sees, oldest first."""
        _need(who, KEYS)
        place = None if cursor is None else _place(cursor, _HASH)
        owner = None if tenant is None else (await self._tenant(who, tenant)).id
        found = await pages.keys_page(self._database, self._scope(who), limit + 1, place, owner)
        await self._looked(who, "key.list", owner or EVERYTHING, owner)
        last = found[limit - 1] if len(found) > limit else None
        return Listed(found[:limit], None if last is None else _cursor(pages.Place(last.created_at, last.key_hash)))

    async def key(self, who: Administrator, id: str) -> ApiKey:
        """Return one key by its hash. Raises NotFound."""
        found = await self._key(who, id)
        await self._looked(who, "key.read", found.key_hash, found.tenant_id)
        return found

    async def create_key(self, who: Administrator, order: KeyOrder) -> NewKey:
        """Make a key; its token is known now and never again. Raises Forbidden, InvalidRequest, NotFound."""
        _need(who, KEYS)
        permissions = checked_permissions(order.permissions)
        _not_above(who, permissions)
        owner = await self._tenant(who, order.tenant or who.caller.tenant_id)
        return await create_key(
            self._database,
            name=order.name,
            tenant=owner.namespace,
            models=order.models,
            permissions=permissions,
            expires_at=order.expires_at,
            limits=order.limits,
            priority=order.priority,
            data_retention=order.data_retention,
            by=who.actor,
        )

    async def change_key(
        self, who: Administrator, id: str, values: Mapping[str, Any], config: Mapping[str, Any]
    ) -> ApiKey:
        """Set columns of a key and parts of its `config`; None takes a part out. Raises Forbidden, InvalidRequest, NotFound."""
        key = await self._key(who, id)
        if "name" in values:
            check_key_name(values["name"])
        _not_above(who, key.permissions)
        _not_above(who, values.get("permissions", ()))
        expires_at = values.get("expires_at")
        if expires_at is not None and expires_at <= datetime.now(UTC):
            raise InvalidRequest("A key must expire in the future.", code="invalid_expiry", param="expires_at")
        if "expires_at" in values and key.replaced_by is not None:
            raise InvalidRequest("The key was replaced; it ends with its overlap.", code="key_not_active")
        changed = await change_key(self._database, key, values, config, who.actor)
        self._identity.forget(key_hash=key.key_hash)
        return changed

    async def revoke_key(self, who: Administrator, id: str) -> ApiKey:
        """Revoke a key; one that is revoked stays so. Raises Forbidden, NotFound."""
        key = await self._key(who, id)
        _not_above(who, key.permissions)
        revoked = await revoke_key(self._database, key, who.actor)
        self._identity.forget(key_hash=key.key_hash)
        return revoked

    async def rotate_key(self, who: Administrator, id: str, overlap: timedelta) -> Rotation:
        """Put a new key in the place of one. Raises Forbidden, InvalidRequest, NotFound."""
        key = await self._key(who, id)
        _not_above(who, key.permissions)
        rotation = await rotate_key(self._database, key, overlap, who.actor)
        self._identity.forget(key_hash=key.key_hash)
        return rotation

    # The audit log.

    async def audit(
        self,
        who: Administrator,
        limit: int,
        cursor: str | None = None,
        tenant: str | None = None,
        action: str | None = None,
    ) -> Listed:
        """Return a page of the audit log, newest first: of every tenant, or of what was done to the administrator's own."""
        if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
            raise _bad_cursor()
        owner = None if tenant is None else (await self._tenant(who, tenant)).id
        before = None if cursor is None else int(cursor)
        found = await pages.audit_page(self._database, self._scope(who), limit + 1, before, owner, action)
        await self._looked(who, "audit.list", owner or EVERYTHING, owner)
        return Listed(found[:limit], str(found[limit - 1]["id"]) if len(found) > limit else None)

    def _scope(self, who: Administrator) -> pages.Scope:
        """The one place that says whose data an administrator reaches."""
        return OperatorScope() if who.operates else TenantScope(self._database, who.caller.tenant_id)

    async def _looked(self, who: Administrator, action: str, target: str, tenant_id: TenantId | None) -> None:
        """Record a look that could go beyond the administrator's own tenant."""
        if who.operates and tenant_id != who.caller.tenant_id:
            await pages.note_look(self._database, who.actor, action, target, tenant_id)

    async def _tenant(self, who: Administrator, which: str) -> Tenant:
        """One tenant of the administrator's scope, by id or namespace; what is outside does not exist."""
        found = None
        if _UUID.fullmatch(which):
            digits = which.replace("-", "").lower()
            parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
            found = await pages.tenant(self._database, self._scope(who), TenantId("-".join(parts)))
        elif listed := await pages.tenants_page(self._database, self._scope(who), 1, None, which):
            found = listed[0]
        if found is None:
            raise NotFound("No such tenant.", code="tenant_not_found")
        return found

    async def _key(self, who: Administrator, id: str) -> ApiKey:
        """One key of the administrator's scope."""
        _need(who, KEYS)
        found = None
        if _HASH.fullmatch(id):
            found = await pages.key(self._database, self._scope(who), KeyHash(id))
        if found is None:
            raise NotFound("No such key.", code="key_not_found")
        return found


def _need(who: Administrator, permission: str) -> None:
    if not who.caller.permissions & {OPERATOR, permission}:
        raise _forbidden(OPERATOR, permission)


def _not_above(who: Administrator, permissions: Sequence[str]) -> None:
    """Raise Forbidden when somebody who is no operator handles a key with permissions that its own lacks."""
    for permission in permissions:
        if not who.operates and permission not in who.caller.permissions:
            raise Forbidden(f"Your own key lacks the permission `{permission}`.", code="permission_required")


def _forbidden(*permissions: str) -> Forbidden:
    names = " or ".join(f"`{name}`" for name in permissions)
    return Forbidden(f"This key lacks the permission {names}.", code="permission_required")


def _cursor(place: pages.Place) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def _place(cursor: str, id: re.Pattern[str]) -> pages.Place:
    """Read a cursor. Raises InvalidRequest."""
    try:
        data = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        place = msgspec.json.decode(data, type=pages.Place)
    except (binascii.Error, ValueError, msgspec.DecodeError):
        place = None
    if place is None or place.created_at.tzinfo is None or id.fullmatch(place.id) is None:
        raise _bad_cursor()
    return place


def _bad_cursor() -> InvalidRequest:
    return InvalidRequest("not a cursor of this list", code="invalid_value", param="cursor")
