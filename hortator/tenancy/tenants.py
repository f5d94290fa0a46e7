"""Changing tenants: one by one, or from the file of R-000-66.

Called by `cli/tenants.py` and `administration.py`; never on the request path. Everything is checked before anything is written.
The statements are the store's; running servers notice within 5 s, as they look their callers up again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import yaml

from hortator.errors import InvalidRequest, NotFound
from hortator.store.audit import GATEWAY, Actor
from hortator.store.database import Database
from hortator.store.queries import Tenant, TenantScope, tenant_by_namespace
from hortator.tenancy.keys import KEY_PREFIX, check_tenant, create_tenant
from hortator.tenancy.terms import PRIORITIES, tenant_config

MAPPING = "tenant-mapping.yaml"
"""The entry of the ConfigMap that holds the tenants (R-000-66)."""
MAX_TENANTS = 10_000
_FIELDS = frozenset({"namespace", "budget_limit", "allowed_models", "data_retention", "priority"})
_WORD = re.compile(r"[a-z][a-z-]{0,30}")


class Imported(NamedTuple):
    """What became of one tenant of a file."""

    namespace: str
    created: bool


async def change_tenant(
    database: Database,
    tenant: Tenant,
    config: Mapping[str, Any],
    *,
    name: str | None = None,
    disabled: bool | None = None,
    by: Actor = GATEWAY,
) -> Tenant:
    """Replace the given parts of a tenant (`terms.tenant_config`; None takes one out); return it as it is then.

    None of a disabled tenant's keys is good. Raises InvalidRequest, NotFound.
    """
    values: dict[str, Any] = {}
    if name is not None:
        check_tenant(name, tenant.namespace)
        values["name"] = name
    if disabled is not None and disabled != (tenant.disabled_at is not None):
        values["disabled_at"] = datetime.now(UTC) if disabled else None
    return await TenantScope(database, tenant.id).change(values, config, by)


async def import_tenants(database: Database, text: str, by: Actor = GATEWAY) -> list[Imported]:
    """Make or change the tenants of a file: a ConfigMap with `tenant-mapping.yaml`, or that entry alone (R-000-66, R-000-67).

    A tenant is found by its namespace; what the file does not say of it stays. Raises InvalidRequest, having changed nothing.
    """
    imported = []
    for name, namespace, config in [_read(name, fields) for name, fields in _mapping(text).items()]:
        try:
            tenant = await tenant_by_namespace(database, namespace)
        except NotFound:
            await create_tenant(database, name, namespace, config, by)
            imported.append(Imported(namespace, True))
        else:
            await change_tenant(database, tenant, config, by=by)
            imported.append(Imported(namespace, False))
    return imported


def _mapping(text: str) -> Mapping[str, Any]:
    """The `tenants` of a file."""
    try:
        document = yaml.safe_load(text)
        if isinstance(document, dict) and isinstance(document.get("data"), dict) and MAPPING in document["data"]:
            document = yaml.safe_load(str(document["data"][MAPPING]))
    except yaml.YAMLError as error:
        raise _bad("not YAML") from error
    tenants = document.get("tenants") if isinstance(document, dict) else None
    if not isinstance(tenants, dict) or not 0 < len(tenants) <= MAX_TENANTS:
        raise _bad(f"expected `tenants`, a mapping, at the top or in the entry {MAPPING} of a ConfigMap's `data`")
    namespaces = Counter(str(fields.get("namespace")) for fields in tenants.values() if isinstance(fields, dict))
    for namespace, times in namespaces.most_common(1):
        if times > 1:
            raise _bad(f"two tenants have the namespace {namespace[:100]}")
    return tenants


def _read(name: object, fields: object) -> tuple[str, str, dict[str, Any]]:
    """The name, the namespace and the `config` of one tenant."""
    name = str(name)
    if name.startswith(KEY_PREFIX):
        raise _bad("a tenant is named by an API key: name it otherwise and make keys with `hortator keys create`")
    if not isinstance(fields, dict) or not isinstance(fields.get("namespace"), str):
        raise _bad(f"{name[:100]}: expected a namespace")
    unknown = sorted(set(map(str, fields)) - _FIELDS)
    if unknown:
        raise _bad(f"{name[:100]}: unknown field {unknown[0][:100]}")
    budget, models = fields.get("budget_limit"), fields.get("allowed_models")
    if models is not None and not (isinstance(models, list) and all(isinstance(one, str) for one in models)):
        raise _bad(f"{name[:100]}: expected a list of models")
    check_tenant(name, fields["namespace"])
    try:
        config = tenant_config(
            limits=None if budget is None else [str(budget)],
            models=models,
            priority=_priority(fields.get("priority")),
            data_retention=None if fields.get("data_retention") is None else str(fields["data_retention"]),
        )
    except InvalidRequest as error:
        raise InvalidRequest(f"{name[:100]}: {error.message}", code=error.code, param=error.param) from None
    return name, fields["namespace"], config


def _priority(word: object) -> str | None:
    """`high` and `standard` mean themselves; another word means less (R-000-72)."""
    if word is None:
        return None
    if not isinstance(word, str) or _WORD.fullmatch(word) is None:
        raise InvalidRequest("a priority is a word", code="invalid_priority", param="priority")
    return word if word in PRIORITIES else "low"


def _bad(what: str) -> InvalidRequest:
    return InvalidRequest(what, code="invalid_tenants_file")
