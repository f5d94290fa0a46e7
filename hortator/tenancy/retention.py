"""Deletes usage records and outcomes of routing older than their tenant's or key's data retention, in the background, a little at a time.

The composition root runs one a process; replicas may run it side by side. Tenants that set nothing have `ledger.retention_days`.
The sums by hour, which invoices are made of, and the audit log are kept for periods of their own. What a retention that cannot be
read belongs to is kept. Never on the request path; when the store is down, the next sweep does it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import NamedTuple

from hortator.errors import Unavailable
from hortator.store import pages, retention
from hortator.store.database import Database
from hortator.store.queries import ApiKey, OperatorScope, Tenant, TenantScope
from hortator.tenancy.terms import kept_since

log = logging.getLogger("hortator.tenancy")

FIRST_SECONDS = 60.0
INTERVAL_SECONDS = 3600.0
PAUSE_SECONDS = 0.05
"""Between two transactions, for those who write."""
_PAGE = 500


class Days(NamedTuple):
    """The configured periods, in days; None = for ever."""

    records: int | None
    sums: int | None
    audit: int | None


class Swept(NamedTuple):
    """How many rows a sweep deleted; the outcomes of routing, which go with the records, are not counted."""

    records: int
    sums: int
    audit: int


class Retention:
    """One per process."""

    def __init__(self, database: Database, days: Days) -> None:
        self._database = database
        self._days = days

    async def run(self) -> None:
        """Sweep once an hour, for ever."""
        await asyncio.sleep(FIRST_SECONDS)
        while True:
            try:
                swept = await self.sweep(datetime.now(UTC))
            except Unavailable:
                pass
            except Exception as error:  # noqa: BLE001 - the outermost edge of a background task
                log.error("old records cannot be deleted: %s", type(error).__name__)
            else:
                if any(swept):
                    log.info("deleted for their age: %d usage records, %d sums, %d audit entries", *swept)
            await asyncio.sleep(INTERVAL_SECONDS)

    async def sweep(self, now: datetime) -> Swept:
        """Delete everything that is too old at `now`. Raises Unavailable."""
        records = sums = 0
        cutoffs: dict[str, datetime | None] = {}
        async for tenant in self._tenants():
            scope = TenantScope(self._database, tenant.id)
            cutoff = cutoffs[tenant.id] = self._records_since(tenant, now)
            if cutoff is None:
                continue
            records += await _all(partial(retention.delete_records, self._database, scope, cutoff))
            await _all(partial(retention.delete_outcomes, self._database, scope, cutoff))
            sums_since = _before(now, self._days.sums)
            if sums_since is not None:
                sums += await _all(partial(retention.delete_sums, self._database, scope, min(cutoff, sums_since)))
        async for key in self._keys():
            own = kept_since(key.config.get("data_retention"), now)
            shared = cutoffs.get(key.tenant_id)
            if own is not None and (shared is None or own > shared):
                records += await self._records_of(key, own)
        return Swept(records + await self._orphans(now), sums + await self._orphaned_sums(now), await self._audit(now))

    def _records_since(self, tenant: Tenant, now: datetime) -> datetime | None:
        """The moment before which a tenant's records go; None = they stay."""
        if "data_retention" in tenant.config:
            found = kept_since(tenant.config["data_retention"], now)
            if found is None:
                log.warning("the data retention of tenant %s cannot be read: all its records stay", tenant.namespace)
            return found
        return _before(now, self._days.records)

    async def _records_of(self, key: ApiKey, before: datetime) -> int:
        scope = TenantScope(self._database, key.tenant_id)
        await _all(partial(retention.delete_outcomes, self._database, scope, before, key.key_hash))
        return await _all(partial(retention.delete_records, self._database, scope, before, key.key_hash))

    async def _orphans(self, now: datetime) -> int:
        before = _before(now, self._days.records)
        if before is None:
            return 0
        await _all(partial(retention.delete_outcomes, self._database, OperatorScope(), before))
        return await _all(partial(retention.delete_records, self._database, OperatorScope(), before))

    async def _orphaned_sums(self, now: datetime) -> int:
        before = _before(now, self._days.sums)
        if before is None:
            return 0
        return await _all(partial(retention.delete_sums, self._database, OperatorScope(), before))

    async def _audit(self, now: datetime) -> int:
        before = _before(now, self._days.audit)
        if before is None:
            return 0
        return await _all(partial(retention.delete_audit, self._database, OperatorScope(), before))

    async def _tenants(self) -> AsyncIterator[Tenant]:
        place = None
        while found := await pages.tenants_page(self._database, OperatorScope(), _PAGE, place, None):
            for tenant in found:
                yield tenant
            place = pages.Place(found[-1].created_at, found[-1].id)

    async def _keys(self) -> AsyncIterator[ApiKey]:
        """The keys with a retention of their own."""
        place = None
        while found := await pages.keys_page(self._database, OperatorScope(), _PAGE, place, None):
            for key in found:
                if "data_retention" in key.config:
                    yield key
            place = pages.Place(found[-1].created_at, found[-1].key_hash)


def _before(now: datetime, days: int | None) -> datetime | None:
    return None if days is None else now - timedelta(days=days)


async def _all(delete: Callable[[], Awaitable[int]]) -> int:
    """Delete batch by batch until nothing is left; return how many rows went."""
    total = 0
    while count := await delete():
        total += count
        await asyncio.sleep(PAUSE_SECONDS)
    return total
