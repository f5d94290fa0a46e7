"""The admin API: tenants, keys and the audit log under `/api/v1/admin`, for keys with an administrative permission.

The shell mounts it. It reads requests, asks `tenancy.Administration`, and writes answers; whose tenant somebody may touch is
decided there, not here. A key itself is in one reply only, that to its making. Errors are OpenAI objects (C-4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from msgspec import UNSET, Meta, Struct, UnsetType, field

from hortator.api.query import number, only, read_query
from hortator.api.reading import bearer
from hortator.api.routes import JsonRoute, answer, described, id_of, raw_headers, read_json
from hortator.call import Priority
from hortator.errors import InvalidRequest
from hortator.store.queries import ApiKey, Tenant
from hortator.tenancy.administration import Administration, Administrator, KeyOrder, Listed
from hortator.tenancy.keys import OVERLAP, KeyState, checked_permissions, state
from hortator.tenancy.limits import priority_of
from hortator.tenancy.terms import checked_models, key_config, tenant_config

PREFIX = "/api/v1/admin"
MAX_BODY = 262_144
DEFAULT_LIMIT = 50
MAX_LIMIT = 200
MAX_OVERLAP_SECONDS = 31_536_000
_ERRORS = (401, 403, 503)
_LIST = (400, *_ERRORS)
_ONE = (*_ERRORS, 404)
_WRITE = (400, *_ONE, 408, 413, 415)

_ID = ("id",)

Texts = Annotated[list[str], Meta(max_length=256)]


class NewTenant(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A tenant to be made."""

    name: str
    namespace: str
    limits: Texts = []
    allowed_models: Texts = field(default_factory=lambda: ["*"])
    priority: Priority | None = None
    data_retention: str | None = None


class TenantChange(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to be different; what is left out stays, null goes back to the default."""

    name: str | UnsetType = UNSET
    limits: Texts | UnsetType | None = UNSET
    allowed_models: Texts | UnsetType | None = UNSET
    priority: Priority | UnsetType | None = UNSET
    data_retention: str | UnsetType | None = UNSET
    disabled: bool | UnsetType = UNSET


class TenantView(Struct, frozen=True, kw_only=True):
    """A tenant."""

    object: str = "tenant"
    id: str
    name: str
    namespace: str
    created_at: datetime
    disabled_at: datetime | None
    limits: list[str]
    allowed_models: list[str]
    priority: Priority
    data_retention: str | None
    """None = `ledger.retention_days` counts."""


class NewKeyOrder(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A key to be made."""

    name: str
    tenant: str | None = None
    """Id or namespace. None = the caller's own."""
    permissions: Texts = []
    allowed_models: Texts = field(default_factory=lambda: ["*"])
    limits: Texts = []
    priority: Priority | None = None
    data_retention: str | None = None
    expires_at: datetime | None = None


class KeyChange(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to be different; what is left out stays, null goes back to the default."""

    name: str | UnsetType = UNSET
    permissions: Texts | UnsetType = UNSET
    allowed_models: Texts | UnsetType = UNSET
    limits: Texts | UnsetType | None = UNSET
    priority: Priority | UnsetType | None = UNSET
    data_retention: str | UnsetType | None = UNSET
    expires_at: datetime | UnsetType | None = UNSET


class RotationOrder(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long the old key stays good."""

    overlap_seconds: Annotated[int, Meta(ge=0, le=MAX_OVERLAP_SECONDS)] = int(OVERLAP.total_seconds())


class KeyView(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """A key, never the key itself."""

    object: str = "key"
    id: str
    """The key's SHA-256."""
    prefix: str
    name: str
    tenant_id: str
    state: KeyState
    permissions: list[str]
    allowed_models: list[str]
    limits: list[str]
    priority: Priority | None
    """None = the tenant's."""
    data_retention: str | None
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None
    replaced_by: str | None


class CreatedKey(KeyView, frozen=True, kw_only=True):
    """A key, this once with the key itself."""

    key: str


class RotatedKey(Struct, frozen=True, kw_only=True):
    """The new key, this once with the key itself, and the old one."""

    new: CreatedKey
    old: KeyView


class AuditEntry(Struct, frozen=True, kw_only=True):
    """Who did what to whom."""

    object: str = "audit_entry"
    id: int
    at: datetime
    actor_name: str
    actor_key_hash: str | None
    actor_tenant_id: str | None
    action: str
    target: str
    tenant_id: str | None
    request_id: str | None
    detail: dict[str, Any]


class TenantList(Struct, frozen=True, kw_only=True):
    """A page of tenants."""

    object: str = "list"
    data: list[TenantView]
    next_cursor: str | None


class KeyList(Struct, frozen=True, kw_only=True):
    """A page of keys."""

    object: str = "list"
    data: list[KeyView]
    next_cursor: str | None


class AuditList(Struct, frozen=True, kw_only=True):
    """A page of the audit log."""

    object: str = "list"
    data: list[AuditEntry]
    next_cursor: str | None


SCHEMAS: tuple[type[Struct], ...] = (
    NewTenant, TenantChange, TenantView, TenantList, NewKeyOrder, KeyChange, KeyView, KeyList, CreatedKey, RotationOrder,
    RotatedKey, AuditList,
)  # fmt: skip
_PAGE = {"limit": f"1 to {MAX_LIMIT}, {DEFAULT_LIMIT} by default", "cursor": "`next_cursor` of the page before"}
_TENANT = {"tenant": "Id or namespace of one tenant"}

Handler = Callable[[Request], Any]


class AdministrationDoor:
    """The handlers. `administration` is asked for at each request, as it is made after the routes."""

    def __init__(self, administration: Callable[[], Administration]) -> None:
        self._administration = administration

    def router(self) -> APIRouter:
        """Return the routes."""
        routes = APIRouter(prefix=PREFIX, tags=["administration"], route_class=JsonRoute)

        def add(method: str, path: str, name: str, handler: Handler, extra: dict[str, Any]) -> None:
            routes.add_api_route(
                path, handler, methods=[method], operation_id=name, openapi_extra=extra, response_class=Response
            )

        listed = {**_PAGE, "namespace": "One tenant's namespace"}
        add("GET", "/tenants", "listTenants", self.list_tenants, described("TenantList", query=listed, errors=_LIST))
        made = described("TenantView", body="NewTenant", errors=_WRITE, status=201)
        add("POST", "/tenants", "createTenant", self.create_tenant, made)
        add("GET", "/tenants/{id}", "getTenant", self.get_tenant, described("TenantView", path=_ID, errors=_ONE))
        change = described("TenantView", body="TenantChange", path=_ID, errors=_WRITE)
        add("PATCH", "/tenants/{id}", "changeTenant", self.change_tenant, change)
        add(
            "DELETE",
            "/tenants/{id}",
            "disableTenant",
            self.disable_tenant,
            described("TenantView", path=_ID, errors=_WRITE),
        )
        query = {**_PAGE, **_TENANT}
        add("GET", "/keys", "listKeys", self.list_keys, described("KeyList", query=query, errors=(*_LIST, 404)))
        made = described("CreatedKey", body="NewKeyOrder", errors=_WRITE, status=201)
        add("POST", "/keys", "createKey", self.create_key, made)
        add("GET", "/keys/{id}", "getKey", self.get_key, described("KeyView", path=_ID, errors=_ONE))
        add(
            "PATCH",
            "/keys/{id}",
            "changeKey",
            self.change_key,
            described("KeyView", body="KeyChange", path=_ID, errors=_WRITE),
        )
        add("DELETE", "/keys/{id}", "deleteKey", self.revoke_key, described("KeyView", path=_ID, errors=_ONE))
        add("POST", "/keys/{id}/revoke", "revokeKey", self.revoke_key, described("KeyView", path=_ID, errors=_ONE))
        rotated = described("RotatedKey", body="RotationOrder", path=_ID, errors=_WRITE)
        add("POST", "/keys/{id}/rotate", "rotateKey", self.rotate_key, rotated)
        query = {**query, "action": "One kind of action, such as `key.rotate`"}
        add("GET", "/audit", "listAudit", self.list_audit, described("AuditList", query=query, errors=(*_LIST, 404)))
        return routes

    async def list_tenants(self, request: Request) -> Response:
        """List tenants, oldest first: all for `admin`, else the key's own."""
        who, query = await self._admit(request), read_query(request.scope["query_string"])
        only(query, "limit", "cursor", "namespace")
        page = await self._administration().tenants(who, _limit(query), query.get("cursor"), query.get("namespace"))
        return answer(TenantList(data=[_tenant(one) for one in page.items], next_cursor=page.next_cursor))

    async def create_tenant(self, request: Request) -> Response:
        """Make a tenant. Needs `admin`."""
        who = await self._admit(request)
        order = await read_json(request, NewTenant, MAX_BODY)
        config = tenant_config(
            limits=order.limits or None,
            models=None if order.allowed_models == ["*"] else order.allowed_models,
            priority=order.priority,
            data_retention=order.data_retention,
        )
        return answer(
            _tenant(await self._administration().create_tenant(who, order.name, order.namespace, config)), 201
        )

    async def get_tenant(self, request: Request) -> Response:
        """Describe one tenant, by id or namespace."""
        who = await self._admit(request)
        return answer(_tenant(await self._administration().tenant(who, _id(request))))

    async def change_tenant(self, request: Request) -> Response:
        """Change what is given. With `admin:tenants` only the name and the retention of the key's own tenant."""
        who = await self._admit(request)
        change = await read_json(request, TenantChange, MAX_BODY)
        config = tenant_config(
            limits=_given(change.limits),
            models=_given(change.allowed_models),
            priority=_given(change.priority),
            data_retention=_given(change.data_retention),
        ) | _cleared(change, "limits", "allowed_models", "priority", "data_retention")
        name, disabled = _given(change.name), _given(change.disabled)
        return answer(_tenant(await self._administration().change_tenant(who, _id(request), config, name, disabled)))

    async def disable_tenant(self, request: Request) -> Response:
        """Refuse all keys of a tenant; its records stay. `{"disabled": false}` admits them again. Needs `admin`."""
        who = await self._admit(request)
        return answer(_tenant(await self._administration().change_tenant(who, _id(request), {}, None, True)))

    async def list_keys(self, request: Request) -> Response:
        """List keys, oldest first: all for `admin`, else those of the key's own tenant."""
        who, query = await self._admit(request), read_query(request.scope["query_string"])
        only(query, "limit", "cursor", "tenant")
        page = await self._administration().keys(who, _limit(query), query.get("cursor"), query.get("tenant"))
        return answer(KeyList(data=[_key(one) for one in page.items], next_cursor=page.next_cursor))

    async def create_key(self, request: Request) -> Response:
        """Make a key; `key` is in this reply and never shown again."""
        who = await self._admit(request)
        order = await read_json(request, NewKeyOrder, MAX_BODY)
        new = await self._administration().create_key(
            who,
            KeyOrder(
                name=order.name,
                tenant=order.tenant,
                models=order.allowed_models,
                permissions=order.permissions,
                expires_at=_moment(order.expires_at),
                limits=order.limits,
                priority=order.priority,
                data_retention=order.data_retention,
            ),
        )
        return answer(_created(new.record, new.token.reveal()), 201)

    async def get_key(self, request: Request) -> Response:
        """Describe one key, by its id."""
        who = await self._admit(request)
        return answer(_key(await self._administration().key(who, _id(request))))

    async def change_key(self, request: Request) -> Response:
        """Change what is given."""
        who = await self._admit(request)
        change = await read_json(request, KeyChange, MAX_BODY)
        values: dict[str, Any] = {}
        if change.name is not UNSET:
            values["name"] = change.name
        if change.permissions is not UNSET:
            values["permissions"] = checked_permissions(change.permissions)
        if change.allowed_models is not UNSET:
            values["allowed_models"] = checked_models(change.allowed_models)
        if change.expires_at is not UNSET:
            values["expires_at"] = _moment(change.expires_at)
        config = key_config(
            limits=_given(change.limits),
            priority=_given(change.priority),
            data_retention=_given(change.data_retention),
        ) | _cleared(change, "limits", "priority", "data_retention")
        return answer(_key(await self._administration().change_key(who, _id(request), values, config)))

    async def revoke_key(self, request: Request) -> Response:
        """Revoke a key: at once in this process, within 5 s on every replica. It stays in the list."""
        who = await self._admit(request)
        return answer(_key(await self._administration().revoke_key(who, _id(request))))

    async def rotate_key(self, request: Request) -> Response:
        """Put a new key with the same rights in the place of one, which stays good for the overlap."""
        who = await self._admit(request)
        order = await read_json(request, RotationOrder, MAX_BODY)
        overlap = timedelta(seconds=order.overlap_seconds)
        rotation = await self._administration().rotate_key(who, _id(request), overlap)
        new = _created(rotation.new.record, rotation.new.token.reveal())
        return answer(RotatedKey(new=new, old=_key(rotation.old)))

    async def list_audit(self, request: Request) -> Response:
        """List what was administered, newest first: everywhere for `admin`, else in the key's own tenant."""
        who, query = await self._admit(request), read_query(request.scope["query_string"])
        only(query, "limit", "cursor", "tenant", "action")
        page: Listed = await self._administration().audit(
            who, _limit(query), query.get("cursor"), query.get("tenant"), query.get("action")
        )
        return answer(AuditList(data=[AuditEntry(**one) for one in page.items], next_cursor=page.next_cursor))

    async def _admit(self, request: Request) -> Administrator:
        return await self._administration().admit(bearer(raw_headers(request)), id_of(request))


def _limit(query: Any) -> int:
    return number(query, "limit", DEFAULT_LIMIT, 1, MAX_LIMIT)


def _id(request: Request) -> str:
    found: str = request.path_params["id"]
    return found


def _given(value: Any) -> Any:
    """What was given, None for what was left out or is null."""
    return None if value is UNSET else value


def _cleared(change: Struct, *names: str) -> dict[str, None]:
    """The terms that are null: they go back to their default."""
    return {name: None for name in names if getattr(change, name) is None}


def _moment(value: datetime | None) -> datetime | None:
    """A moment with its zone. Raises InvalidRequest."""
    if value is None:
        return None
    if value.tzinfo is None:
        raise InvalidRequest("A moment needs a zone, such as Z.", code="invalid_value", param="expires_at")
    return value.astimezone(UTC)


def _tenant(tenant: Tenant) -> TenantView:
    return TenantView(
        id=tenant.id,
        name=tenant.name,
        namespace=tenant.namespace,
        created_at=tenant.created_at,
        disabled_at=tenant.disabled_at,
        limits=_texts(tenant.config.get("limits", [])),
        allowed_models=_texts(tenant.config.get("allowed_models", ["*"])),
        priority=priority_of(tenant.config, {}),
        data_retention=tenant.config.get("data_retention"),
    )


def _described(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.key_hash,
        "prefix": key.prefix,
        "name": key.name,
        "tenant_id": key.tenant_id,
        "state": state(key),
        "permissions": list(key.permissions),
        "allowed_models": list(key.allowed_models),
        "limits": _texts(key.config.get("limits", [])),
        "priority": key.config.get("priority"),
        "data_retention": key.config.get("data_retention"),
        "created_at": key.created_at,
        "last_used_at": key.last_used_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "replaced_by": key.replaced_by,
    }


def _key(key: ApiKey) -> KeyView:
    return KeyView(**_described(key))


def _created(key: ApiKey, token: str) -> CreatedKey:
    return CreatedKey(**_described(key), key=token)


def _texts(stored: Iterable[Any]) -> list[str]:
    return [str(one) for one in stored]
