"""What is too old goes, what is not stays, and the sums outlive the records they were made of."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy

from hortator.call import KeyHash, RequestId, TenantId
from hortator.store import Database, retention
from hortator.store.outcomes import OutcomeRow, insert_outcomes
from hortator.store.queries import OperatorScope, Tenant, TenantScope
from hortator.store.tables import audit, routing_outcomes, usage_events, usage_rollups
from hortator.store.usage import insert_usage
from hortator.tenancy.keys import create_key, create_tenant
from hortator.tenancy.retention import Days, Retention, Swept
from hortator.tenancy.terms import kept_since, tenant_config
from tests.store.test_usage import row

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
AGES = (0, 20, 40, 500, 4000)
"""Days."""
DAYS = Days(records=400, sums=3653, audit=3653)


async def records(database: Database, tenant: TenantId, key_hash: str = "a" * 64, ages: tuple[int, ...] = AGES) -> None:
    await insert_usage(
        database,
        [
            row(
                hash((tenant, key_hash, age)) % 2**64,
                tenant_id=tenant.replace("-", ""),
                key_hash=key_hash,
                request_id=str(age),
                timestamp=(NOW - timedelta(days=age)).strftime("%Y-%m-%d %H:%M:%S.%f"),
            )
            for age in ages
        ],
    )
    outcomes = [
        OutcomeRow(
            request_id=RequestId(str(age)),
            tenant_id=tenant,
            key_hash=KeyHash(key_hash),
            at=NOW - timedelta(days=age),
            path="fast",
            score=0.1,
            confidence=0.9,
            features={"words": [0, 0, 0]},
            model=None,
            cost=None,
            retried=False,
            escalated=False,
            error_code=None,
        )
        for age in ages
    ]
    await insert_outcomes(database, outcomes, [])


async def outcome_ages(database: Database, tenant: TenantId) -> list[int]:
    chosen = sqlalchemy.select(routing_outcomes.c.request_id).where(routing_outcomes.c.tenant_id == tenant)
    async with database.read() as connection:
        return sorted(int(each) for each in (await connection.execute(chosen)).scalars())


async def ages(database: Database, tenant: TenantId) -> list[int]:
    ever = datetime(1990, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
    return sorted(int(each["request_id"]) for each in await TenantScope(database, tenant).usage(*ever))


async def count(database: Database, table: sqlalchemy.Table) -> int:
    async with database.read() as connection:
        return int(
            (await connection.execute(sqlalchemy.select(sqlalchemy.func.count()).select_from(table))).scalar_one()
        )


async def make(database: Database, namespace: str, data_retention: str | None = None) -> Tenant:
    return await create_tenant(database, namespace, namespace, tenant_config(data_retention=data_retention))


async def test_records_go_after_their_tenants_retention_or_the_default(database: Database) -> None:
    """R-000-66, R-000-67."""
    month, years, default = [
        await make(database, "month", "30 days"),
        await make(database, "years", "7 years"),
        await make(database, "default"),
    ]
    for tenant in (month, years, default):
        await records(database, tenant.id)
    swept = await Retention(database, DAYS).sweep(NOW)
    assert swept.records == 3 + 1 + 2
    assert await ages(database, month.id) == [0, 20]
    assert await ages(database, years.id) == [0, 20, 40, 500]
    assert await ages(database, default.id) == [0, 20, 40]
    for tenant in (month, years, default):
        assert await outcome_ages(database, tenant.id) == await ages(database, tenant.id), "they go with the records"
    assert await Retention(database, DAYS).sweep(NOW) == Swept(0, 0, 0)


async def test_the_sums_are_kept_for_their_own_period(database: Database) -> None:
    month, long = await make(database, "month", "30 days"), await make(database, "long", "12 years")
    for tenant in (month, long):
        await records(database, tenant.id)
    swept = await Retention(database, DAYS).sweep(NOW)
    assert swept.sums == 1
    assert await ages(database, long.id) == list(AGES)
    assert await count(database, usage_rollups) == 9


async def test_a_key_may_keep_less_than_its_tenant_and_never_more(database: Database) -> None:
    tenant = await make(database, "a", "100 days")
    short = await create_key(database, name="short", tenant="a", data_retention="3 weeks")
    long = await create_key(database, name="long", tenant="a", data_retention="9 years")
    for key in (short, long):
        await records(database, tenant.id, key.record.key_hash)
    await Retention(database, DAYS).sweep(NOW)
    assert await ages(database, tenant.id) == [0, 0, 20, 20, 40]
    assert await outcome_ages(database, tenant.id) == [0, 0, 20, 20, 40]


async def test_records_of_tenants_that_are_no_more_go_after_the_default(database: Database) -> None:
    gone = TenantId("0190a000-0000-7000-8000-00000000000f")
    await make(database, "still-here")
    await records(database, gone)
    assert await Retention(database, DAYS).sweep(NOW) == Swept(2, 1, 0)
    assert await ages(database, gone) == await outcome_ages(database, gone) == [0, 20, 40]


async def test_for_ever_is_for_ever(database: Database) -> None:
    tenant = await make(database, "a")
    await records(database, tenant.id)
    assert await Retention(database, Days(None, None, None)).sweep(NOW) == Swept(0, 0, 0)


async def test_a_retention_that_cannot_be_read_keeps_everything(database: Database) -> None:
    tenant = await create_tenant(database, "a", "a", {"data_retention": "a while"})
    await records(database, tenant.id)
    assert await Retention(database, DAYS).sweep(NOW) == Swept(0, 0, 0)


async def test_the_audit_log_goes_after_its_own_period(database: Database) -> None:
    await make(database, "a")
    assert await Retention(database, DAYS).sweep(NOW) == Swept(0, 0, 0)
    assert await count(database, audit) == 1
    assert (await Retention(database, DAYS).sweep(NOW + timedelta(days=5000))).audit == 1


async def test_more_than_a_batch_goes_in_batches_and_replicas_may_sweep_at_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 7)
    tenant = await make(database, "a", "1 day")
    await records(database, tenant.id, ages=tuple(range(60)))
    swept = await asyncio.gather(*(Retention(database, DAYS).sweep(NOW) for _ in range(3)))
    assert sum(each.records for each in swept) == 58
    assert await retention.delete_records(database, OperatorScope(), NOW) == 0
    assert await count(database, usage_events) == 2


@pytest.mark.parametrize(
    ("text", "since"),
    [
        ("30 days", "2026-10-22"),
        ("1 week", "2026-11-14"),
        ("7 years", "2019-11-21"),
        ("9 months", "2026-02-21"),
        ("99999 years", "1970-11-21"),
    ],
)
def test_a_retention_is_counted_in_the_calendar(text: str, since: str) -> None:
    assert kept_since(text, NOW) == datetime.fromisoformat(f"{since}T12:00:00Z")


def test_the_last_day_of_a_month_has_one_before_it() -> None:
    assert kept_since("1 month", datetime(2026, 3, 31, tzinfo=UTC)) == datetime(2026, 2, 28, tzinfo=UTC)
    assert kept_since("1 year", datetime(2024, 2, 29, tzinfo=UTC)) == datetime(2023, 2, 28, tzinfo=UTC)
    assert kept_since("for ever", NOW) is None
