"""What an operator sets for a tenant: limits, models, priority, retention; one by one or from the file of R-000-66.

Called by `cli/tenants.py`; never on the request path. Everything is checked before anything is written. The statements are the
store's; running servers notice within 5 s, as they look their callers up again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from hortator.errors import InvalidRequest, NotFound
from hortator.store.database import Database
from hortator.store.queries import Tenant, change_tenant, tenant_by_namespace
from hortator.tenancy.keys import KEY_PREFIX, check_tenant, create_tenant
from hortator.tenancy.limits import checked

MAPPING = "tenant-mapping.yaml"
"""The entry of the ConfigMap that holds the tenants (R-000-66)."""
MAX_TENANTS = 10_000
MAX_MODELS = 256
_FIELDS = frozenset({"namespace", "budget_limit", "allowed_models", "data_retention", "priority"})
_PRIORITY = re.compile(r"[a-z][a-z-]{0,30}")
_RETENTION = re.compile(r"[1-9]\d{0,4} (day|week|month|year)s?")


class Imported(NamedTuple):
    """What became of one tenant of a file."""

    namespace: str
    created: bool


def tenant_config(
    *,
    limits: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    priority: str | None = None,
    data_retention: str | None = None,
) -> dict[str, Any]:
    """Return the part of a tenant's `config` that is given; None = not given. Raises InvalidRequest.

    `limits`: as in `limits.py`; `models`: globs over model ids, which its keys are confined to; `priority`: `high`, `standard`, or
    another word for less (R-000-72); `data_retention`: such as `7 years`.
    """
    config: dict[str, Any] = {}
    if limits is not None:
        config["limits"] = checked(limits)
    if models is not None:
        if not models or len(models) > MAX_MODELS or not all(0 < len(glob) <= 512 for glob in models):
            raise InvalidRequest(
                f"expected 1 to {MAX_MODELS} names or globs of models", code="invalid_models", param="models"
            )
        config["allowed_models"] = list(models)
    if priority is not None:
        if _PRIORITY.fullmatch(priority) is None:
            raise InvalidRequest(
                "a priority is high, standard or another word", code="invalid_priority", param="priority"
            )
        config["priority"] = priority
    if data_retention is not None:
        if _RETENTION.fullmatch(data_retention) is None:
            raise InvalidRequest(
                "a retention is a number of days, weeks, months or years, such as '7 years'",
                code="invalid_retention",
                param="data_retention",
            )
        config["data_retention"] = data_retention
    return config


async def set_tenant(database: Database, namespace: str, config: Mapping[str, Any]) -> Tenant:
    """Replace the given parts of a tenant's `config`; return the tenant as it is then. Raises NotFound."""
    tenant = await tenant_by_namespace(database, namespace)
    return await _changed(database, tenant, config)


async def import_tenants(database: Database, text: str) -> list[Imported]:
    """Make or change the tenants of a file: a ConfigMap with `tenant-mapping.yaml`, or that entry alone (R-000-66, R-000-67).

    A tenant is found by its namespace; what the file does not say of it stays. Raises InvalidRequest, having changed nothing.
    """
    imported = []
    for name, namespace, config in [_read(name, fields) for name, fields in _mapping(text).items()]:
        try:
            tenant = await tenant_by_namespace(database, namespace)
        except NotFound:
            await create_tenant(database, name, namespace, config)
            imported.append(Imported(namespace, True))
        else:
            await _changed(database, tenant, config)
            imported.append(Imported(namespace, False))
    return imported


async def _changed(database: Database, tenant: Tenant, config: Mapping[str, Any]) -> Tenant:
    merged = {**tenant.config, **config}
    await change_tenant(database, tenant.id, merged)
    return Tenant(tenant.id, tenant.name, tenant.namespace, tenant.created_at, merged)


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
            priority=None if fields.get("priority") is None else str(fields["priority"]),
            data_retention=None if fields.get("data_retention") is None else str(fields["data_retention"]),
        )
    except InvalidRequest as error:
        raise InvalidRequest(f"{name[:100]}: {error.message}", code=error.code, param=error.param) from None
    return name, fields["namespace"], config


def _bad(what: str) -> InvalidRequest:
    return InvalidRequest(what, code="invalid_tenants_file")
