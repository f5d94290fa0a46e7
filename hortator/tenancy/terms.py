"""The terms on which a tenant or a key is served, as their `config` holds them: limits, models, priority, retention.

`keys.py` and `tenants.py` check what operators give with these; never on the request path. A key can only narrow what its tenant
may: fewer models, further limits, a lower priority, a shorter retention.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, get_args

from hortator.call import Priority
from hortator.errors import InvalidRequest
from hortator.tenancy.limits import checked

PRIORITIES: tuple[Priority, ...] = get_args(Priority)
MAX_MODELS = 256
_RETENTION = re.compile(r"([1-9]\d{0,4}) (day|week|month|year)s?")
_EARLIEST = 1970


def checked_models(models: Sequence[str]) -> tuple[str, ...]:
    """Return globs over model ids as they are stored. Raises InvalidRequest."""
    if not 0 < len(models) <= MAX_MODELS or not all(0 < len(glob) <= 512 and glob.isprintable() for glob in models):
        raise InvalidRequest(
            f"expected 1 to {MAX_MODELS} names or globs of models", code="invalid_models", param="allowed_models"
        )
    return tuple(models)


def key_config(
    *, limits: Sequence[str] | None = None, priority: str | None = None, data_retention: str | None = None
) -> dict[str, Any]:
    """Return the part of a key's `config` that is given; None = not given. Raises InvalidRequest.

    `limits`: as in `limits.py`; `priority`: `high`, `standard` or `low` (R-000-72); `data_retention`: such as `7 years`.
    """
    config: dict[str, Any] = {}
    if limits is not None:
        config["limits"] = checked(limits)
    if priority is not None:
        if priority not in PRIORITIES:
            raise InvalidRequest("a priority is high, standard or low", code="invalid_priority", param="priority")
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


def tenant_config(
    *,
    limits: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    priority: str | None = None,
    data_retention: str | None = None,
) -> dict[str, Any]:
    """As `key_config`, of a tenant. `models`: globs over model ids, which its keys are confined to."""
    config = key_config(limits=limits, priority=priority, data_retention=data_retention)
    if models is not None:
        config["allowed_models"] = list(checked_models(models))
    return config


def kept_since(retention: object, now: datetime) -> datetime | None:
    """Return the moment before which nothing is kept: `7 years` are years of the calendar. None for what cannot be read."""
    match = _RETENTION.fullmatch(retention) if isinstance(retention, str) else None
    if match is None:
        return None
    amount, unit = int(match[1]), match[2]
    if unit in ("day", "week"):
        days = amount * (7 if unit == "week" else 1)
        return now - timedelta(days=min(days, (now.year - _EARLIEST) * 365))
    months = now.year * 12 + now.month - 1 - amount * (12 if unit == "year" else 1)
    year, month = max(months // 12, _EARLIEST), months % 12 + 1
    return now.replace(year=year, month=month, day=min(now.day, monthrange(year, month)[1]))
