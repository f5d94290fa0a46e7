"""What clients say to routing, in headers or in the body's metadata (R-003-3), taken out of what is sent to providers.

The doors for model calls come here before they make a `Call`. Where both speak, the header's task type counts; `force_local` holds if
either asks for it. It decides nothing.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Raw

from hortator.call import NO_WISH, Preferences, Wish
from hortator.errors import InvalidRequest
from hortator.wire.body import Object

_TASK_TYPE, _FORCE_LOCAL = b"x-hortator-task-type", b"x-hortator-force-local"
_PREFERENCES = "hortator_preferences"
_OURS = ("task_type", "force_local", "tenant_id")
_SANE = re.compile(r"[A-Za-z0-9._-]{1,64}").fullmatch
_BOUNDS = {"maxCost": "max_cost", "maxLatency": "max_latency", "minQuality": "min_quality"}


def take_wish(headers: dict[bytes, bytes], body: Object) -> Wish:
    """Return what a request says to routing, and take it out of `body`. Raises InvalidRequest."""
    if (
        "metadata" not in body
        and _PREFERENCES not in body
        and _TASK_TYPE not in headers
        and _FORCE_LOCAL not in headers
    ):
        return NO_WISH
    metadata = _take_metadata(body)
    task_type: Any = metadata.get("task_type")
    if _TASK_TYPE in headers:
        task_type = headers[_TASK_TYPE].decode("latin-1")
    if task_type is not None and (not isinstance(task_type, str) or not _SANE(task_type)):
        raise _invalid("metadata.task_type", "expected up to 64 letters, digits, `.`, `_`, `-`")
    tenant: Any = metadata.get("tenant_id")
    if tenant is not None and (not isinstance(tenant, str) or not 0 < len(tenant) <= 255):
        raise _invalid("metadata.tenant_id", "expected a tenant's id or namespace")
    local = _truth("X-Hortator-Force-Local", headers.get(_FORCE_LOCAL, b"false").decode("latin-1"))
    local = _truth("metadata.force_local", metadata.get("force_local")) or local
    wish = Wish(
        task_type=task_type,
        force_local=local,
        tenant_id=tenant,
        preferences=preferences(msgspec.json.decode(body.pop(_PREFERENCES))) if _PREFERENCES in body else None,
    )
    return NO_WISH if wish == NO_WISH else wish


def preferences(given: object, param: str = _PREFERENCES) -> Preferences | None:
    """Return `{maxCost, maxLatency, minQuality}` (R-002-7), checked; None for none. Raises InvalidRequest naming `param`."""
    if given is None or given == {}:
        return None
    if not isinstance(given, dict):
        raise _invalid(param, "expected an object", "invalid_type")
    bounds: dict[str, float | None] = {}
    for name, value in given.items():
        if name not in _BOUNDS:
            raise _invalid(f"{param}.{str(name)[:100]}", f"unknown; known here: {', '.join(_BOUNDS)}")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
            raise _invalid(f"{param}.{name}", "expected a number from 0 on", "invalid_type")
        bounds[_BOUNDS[name]] = value
    return Preferences(**bounds)


def _take_metadata(body: Object) -> dict[str, Any]:
    """Return the body's metadata; what is ours is taken out of it, and the rest made text, as its API has it (C-3)."""
    raw = body.get("metadata")
    metadata = None if raw is None else msgspec.json.decode(raw)
    if not isinstance(metadata, dict):
        return {}
    rest = {name: value for name, value in metadata.items() if name not in _OURS}
    if len(rest) < len(metadata) or not all(isinstance(value, str) for value in rest.values()):
        if rest or not metadata:
            body["metadata"] = Raw(msgspec.json.encode({name: _text(value) for name, value in rest.items()}))
        else:
            del body["metadata"]
    return metadata


def _text(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


def _truth(param: str, value: object) -> bool:
    """True or false, also as text (C-3)."""
    if value is None or value is False:
        return False
    if value is True:
        return True
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise _invalid(param, "expected true or false")


def _invalid(param: str, expected: str, code: str = "invalid_value") -> InvalidRequest:
    return InvalidRequest(f"Invalid '{param}': {expected}.", code=code, param=param)
