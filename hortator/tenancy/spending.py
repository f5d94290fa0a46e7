"""What has been spent in the windows that run now, as the usage records know it: counters that are lost begin from there.

Read from the store's sums by the counters when they start empty: those in memory with the process, those on Redis when its own
are gone. Never during a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from math import ceil
from typing import NamedTuple

from hortator.call import TenantId
from hortator.errors import Unavailable
from hortator.store import Database
from hortator.store.database import Refused
from hortator.store.queries import OperatorScope
from hortator.store.reports import KeySums, key_sums
from hortator.tenancy.limits import NANO, WINDOWS, window

READ_SECONDS = 10.0
MAX_KEYS = 50_000
"""Most keys whose spending is read."""


class StoreSilent(Exception):
    """The store does not answer; what was spent is not known."""


class Spent(NamedTuple):
    """What one counter must begin with."""

    tenant_id: TenantId
    key: str
    """`Limit.key`."""
    start: float
    end: float
    """The window, Unix time."""
    used: int


ReadSpending = Callable[[float], Awaitable[list[Spent]]]
"""Given Unix time, everything that was spent in the windows it is in. Raises StoreSilent."""


def spending(database: Database) -> ReadSpending:
    """Return what reads the sums of a store. Minutes are left out: they are over before it matters."""

    async def read(now: float) -> list[Spent]:
        found: list[Spent] = []
        for name, seconds in WINDOWS.items():
            if name == "minute":
                continue
            start, end = window(seconds, now)
            try:
                async with asyncio.timeout(READ_SECONDS):
                    keys = await key_sums(database, OperatorScope(), datetime.fromtimestamp(start, UTC), MAX_KEYS)
            except (Unavailable, Refused, TimeoutError) as error:
                raise StoreSilent from error
            found += _spent(keys, seconds, start, end)
        return found

    return read


def _spent(keys: Iterable[KeySums], seconds: int, start: float, end: float) -> Iterable[Spent]:
    """Each key's own counters, and its tenant's."""
    counters: dict[tuple[TenantId, str], int] = {}
    for one in keys:
        money = ceil(one.cost * NANO)
        for scope, owner in (("key", one.key_hash), ("tenant", one.tenant_id)):
            for kind, used in (("requests", one.requests), ("tokens", one.tokens), ("money", money)):
                place = (one.tenant_id, f"{scope}:{owner}:{kind}:{seconds}")
                counters[place] = counters.get(place, 0) + used
    return [Spent(tenant, key, start, end, used) for (tenant, key), used in counters.items() if used]
