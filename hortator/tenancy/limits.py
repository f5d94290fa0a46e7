"""What limits there are: from the text that operators write to the `Limit`s a `Caller` carries, and back.

`1000 tokens/hour`, `60 requests/minute`, `5 usd/day`, `10 concurrent`, `unlimited` (R-000-67). Stored as written, in the tenant's and
the key's `config`; parsed when a key is looked up, never during a request. Nothing here counts: `budgets.py` does.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Literal

from hortator.call import KeyHash, Limit, LimitKind, Priority, TenantId
from hortator.errors import InvalidRequest

log = logging.getLogger("hortator.tenancy")

Scope = Literal["tenant", "key"]

MONTH = 2_678_400
"""`Limit.window` of a calendar month, UTC; the longest one's seconds."""
NANO = 1_000_000_000
"""Parts of a dollar that amounts of money are counted in."""
MAX_AMOUNT = 10**15
"""Largest amount of any limit: counts stay exact where numbers are doubles. A million dollars, in billionths."""
MAX_LIMITS = 16
"""Most limits of one tenant or key: each costs every request a little."""
UNLIMITED = "unlimited"
WINDOWS: Mapping[str, int] = {"minute": 60, "hour": 3600, "day": 86_400, "month": MONTH}
_ORDER: Sequence[Priority] = ("high", "standard", "low")
_KINDS: Mapping[str, LimitKind] = {
    "request": "requests",
    "requests": "requests",
    "token": "tokens",
    "tokens": "tokens",
    "usd": "money",
}
_RATE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?) +(requests?|tokens?|usd) */ *(minute|hour|day|month)")
_CONCURRENT = re.compile(r"(\d{1,15}) +concurrent(?: requests?)?")


def parse(text: str, scope: Scope, owner: str) -> Limit | None:
    """Return the limit that `text` writes; None = `unlimited`. `owner`: the tenant's id or the key's hash. Raises InvalidRequest."""
    plain = " ".join(text.lower().split())
    if plain == UNLIMITED:
        return None
    if match := _CONCURRENT.fullmatch(plain):
        kind: LimitKind = "concurrent"
        window, amount = 0, int(match[1])
    elif match := _RATE.fullmatch(plain):
        kind, window = _KINDS[match[2]], WINDOWS[match[3]]
        if kind != "money" and "." in match[1]:
            raise _unreadable(text)
        amount = int(Decimal(match[1]) * (NANO if kind == "money" else 1))
    else:
        raise _unreadable(text)
    if amount > MAX_AMOUNT:
        raise InvalidRequest(
            f"{text[:100]!r} is too much to count; write unlimited", code="invalid_limit", param="limit"
        )
    return Limit(key=f"{scope}:{owner}:{kind}:{window}", text=plain, kind=kind, window=window, amount=amount)


def checked(texts: Iterable[str]) -> list[str]:
    """Return the limits as they are stored, one a kind and window. Raises InvalidRequest for one that cannot be read, or too many."""
    found: dict[str, str] = {}
    for text in texts:
        limit = parse(text, "tenant", "")
        if limit is None:
            continue
        if limit.key in found:
            raise InvalidRequest(
                f"{found[limit.key]!r} and {limit.text!r} limit the same; keep one", code="invalid_limit", param="limit"
            )
        found[limit.key] = limit.text
    if len(found) > MAX_LIMITS:
        raise InvalidRequest(f"more than {MAX_LIMITS} limits", code="invalid_limit", param="limit")
    return list(found.values())


def limits_of(
    tenant_id: TenantId, tenant: Mapping[str, Any], key_hash: KeyHash, key: Mapping[str, Any]
) -> tuple[Limit, ...]:
    """Return what a caller must fit in, from its tenant's and its key's `config`."""
    if not tenant and not key:
        return ()
    return _limits(_texts(tenant), "tenant", tenant_id) + _limits(_texts(key), "key", key_hash)


def both(tenant: Mapping[str, Any], key: tuple[str, ...]) -> tuple[str, ...]:
    """Return the globs of the models that both a tenant's `config` and a key allow.

    Exact for names, prefixes (`legal-*`) and `*`; of two globs that merely overlap nothing is allowed.
    """
    listed = tenant.get("allowed_models", ["*"])
    tenant_models = tuple(one for one in listed if isinstance(one, str)) if isinstance(listed, list) else ()
    if "*" in tenant_models:
        return key
    if "*" in key:
        return tenant_models
    narrow = [one for one in key if any(fnmatchcase(one, wide) for wide in tenant_models)]
    narrow += [one for one in tenant_models if one not in narrow and any(fnmatchcase(one, wide) for wide in key)]
    return tuple(narrow)


def priority_of(tenant: Mapping[str, Any], key: Mapping[str, Any]) -> Priority:
    """Return the lower of a tenant's and a key's priority: a key never goes before its tenant."""
    own = _priority(tenant.get("priority", "standard"))
    return own if "priority" not in key else max(own, _priority(key["priority"]), key=_ORDER.index)


def _priority(stored: object) -> Priority:
    """Another word than the two that mean something is less than them (R-000-72)."""
    return "high" if stored == "high" else "standard" if stored == "standard" else "low"


def _texts(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The limits of a `config`. What was put there by hand and is no text is kept, as a limit that cannot be read."""
    value = config.get("limits", [])
    return tuple(map(str, value)) if isinstance(value, list) else (str(value),)


def window(seconds: int, now: float) -> tuple[float, float]:
    """Return the window that holds the moment `now`, from and to, Unix time. 0 seconds: one without end."""
    if seconds == 0:
        return 0.0, float("inf")
    if seconds == MONTH:
        moment = datetime.fromtimestamp(now, UTC)
        start = datetime(moment.year, moment.month, 1, tzinfo=UTC)
        end = datetime(moment.year + moment.month // 12, moment.month % 12 + 1, 1, tzinfo=UTC)
        return start.timestamp(), end.timestamp()
    start_second = int(now) // seconds * seconds
    return float(start_second), float(start_second + seconds)


@lru_cache(maxsize=4096)
def _limits(texts: Sequence[str], scope: Scope, owner: str) -> tuple[Limit, ...]:
    """Parse stored limits. One that cannot be read, put there by hand, lets nothing through: it is not taken for no limit."""
    found = []
    for text in texts[:MAX_LIMITS]:
        try:
            limit = parse(text, scope, owner)
        except InvalidRequest:
            log.error("a limit of %s %.12s cannot be read: it admits nothing until it is set again", scope, owner)
            limit = Limit(key=f"{scope}:{owner}:unreadable", text="unreadable", kind="requests", window=60, amount=0)
        if limit is not None:
            found.append(limit)
    return tuple(found)


def _unreadable(text: str) -> InvalidRequest:
    return InvalidRequest(
        f"{text[:100]!r} is not a limit: write for example '60 requests/minute', '1000 tokens/hour', '5 usd/day', "
        "'10 concurrent' or 'unlimited'; windows are minute, hour, day, month",
        code="invalid_limit",
        param="limit",
    )
