"""The sums beside the usage records: always what adding up the records gives, whatever came twice or was refused."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import sqlalchemy

from hortator.call import TenantId
from hortator.store import Database, reports, schema
from hortator.store.queries import OperatorScope, TenantScope
from hortator.store.usage import UsageRow, insert_usage
from tests.store.test_usage import EVER, row

TENANTS = ["0190a000-0000-7000-8000-00000000000" + digit for digit in "123"]
MODELS = [("groq", "groq/a"), ("groq", "groq/b"), ("local", "local/q"), (None, None)]
HOUR = datetime(2026, 11, 21, 12, tzinfo=UTC)


def some_rows(seed: int, count: int) -> list[UsageRow]:
    """Rows of three tenants, four models and three hours, with every kind of gap."""
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        provider, deployment = chance.choice(MODELS)
        moment = HOUR + timedelta(microseconds=chance.randrange(3 * 3_600_000_000))
        rows.append(
            row(
                seed * 10_000 + number,
                tenant_id=chance.choice(TENANTS).replace("-", ""),
                timestamp=moment.strftime("%Y-%m-%d %H:%M:%S.%f"),
                provider=provider,
                deployment=deployment,
                model_asked=chance.choice(["default", "local/q"]),
                attempts=chance.choice([1, 2]),
                task_type=chance.choice([None, "extraction", "chat"]),
                local_fallback=provider == "local" and chance.random() < 0.5,
                status=chance.choice([200, 200, 404, 499, 502]),
                input_tokens=chance.choice([None, 0, 17, 2**30]),
                output_tokens=chance.choice([None, 5]),
                cached_tokens=chance.choice([None, 3]),
                cost=chance.choice([None, 0, 1, 58_000, 10**13]),
                latency_ms=chance.randrange(10**7) / 1000,
                overhead_ms=chance.randrange(10**4) / 1000,
            )
        )
    return rows


async def added_up(database: Database) -> dict[tuple[str, ...], list[Any]]:
    """What the records add up to, by a way of its own: one by one, in Python."""
    found: dict[tuple[str, ...], list[Any]] = defaultdict(lambda: [0, 0, 0, 0, 0, 0, Decimal(0)])
    for tenant in TENANTS:
        for each in await TenantScope(database, TenantId(tenant)).usage(*EVER, limit=1000):
            sums = found[tenant, each["provider"] or "", each["deployment"] or "", each["task_type"] or ""]
            sums[0] += 1
            sums[1] += each["cost"] is None
            sums[2] += each["local_fallback"]
            for place, name in enumerate(("input_tokens", "output_tokens", "cached_tokens"), 3):
                sums[place] += each[name] or 0
            sums[6] += each["cost"] or 0
    return dict(found)


async def rolled_up(database: Database) -> dict[tuple[str, ...], list[Any]]:
    found = await reports.lines(database, OperatorScope(), *EVER, 1000)
    names = ("requests", "unpriced", "local_fallbacks", "input_tokens", "output_tokens", "cached_tokens", "cost")
    return {
        (each["tenant_id"], each["provider"], each["model"], each["task_type"]): [each[name] for name in names]
        for each in found
    }


async def test_the_sums_are_those_of_the_records_also_after_replays_and_refusals(database: Database) -> None:
    first, second = some_rows(1, 300), some_rows(2, 200)
    await insert_usage(database, first)
    await insert_usage(database, first)
    await insert_usage(database, first[:50] + second[:100])
    bad = [*second[:120], row(99_999_999, cost=2**80), *second[120:]]
    inserted = await insert_usage(database, bad)
    assert (inserted.new, inserted.refused) == (100, 1)
    assert await rolled_up(database) == await added_up(database)


async def test_periods_and_latencies_are_summed_by_the_hour(database: Database) -> None:
    rows = some_rows(3, 400)
    await insert_usage(database, rows)
    for hours in (0, 1, 2, 3):
        until = HOUR + timedelta(hours=hours)
        expected = [each for each in rows if each.timestamp < until.strftime("%Y-%m-%d %H:%M:%S.%f")]
        found = await reports.sums(database, OperatorScope(), HOUR, until)
        assert found.requests == len(expected)
        assert found.latency_us == sum(round(each.latency_ms * 1000) for each in expected)


async def test_a_tenants_sums_and_records_are_its_own(database: Database) -> None:
    await insert_usage(database, some_rows(4, 300))
    everyone = await rolled_up(database)
    for tenant in TENANTS:
        scope = TenantScope(database, TenantId(tenant))
        found = await reports.lines(database, scope, *EVER, 1000)
        assert {each["tenant_id"] for each in found} == {tenant}
        assert sum(each["requests"] for each in found) == sum(v[0] for k, v in everyone.items() if k[0] == tenant)
        page = await reports.records(database, scope, *EVER, limit=500)
        assert {each["tenant_id"] for each in page} == {tenant}


async def test_reports_use_an_index(database: Database) -> None:
    if not database.is_sqlite:
        return
    statements = [
        "SELECT * FROM usage_rollups WHERE tenant_id = 'x' AND hour >= '2026' AND hour < '2027'",
        "SELECT * FROM usage_rollups WHERE hour >= '2026' AND hour < '2027'",
        "SELECT * FROM usage_events WHERE timestamp >= '2026' AND timestamp < '2027' ORDER BY timestamp DESC, id DESC",
        "SELECT * FROM usage_events WHERE tenant_id = 'x' AND timestamp >= '2026' ORDER BY timestamp DESC, id DESC",
    ]
    async with database.read() as connection:
        for statement in statements:
            plan = (await connection.execute(sqlalchemy.text(f"EXPLAIN QUERY PLAN {statement}"))).all()
            assert all("USING INDEX" in line[3] for line in plan), plan


def stood_in(each: UsageRow) -> bool:
    """What counted as a local fallback before records said so."""
    return each.provider == "local" and each.attempts > 1 and each.model_asked != "local/q"


async def test_the_migration_adds_up_what_was_there_before_it(database: Database) -> None:
    """Take the tables back to what they were, and migrate again."""
    rows = [msgspec.structs.replace(each, task_type=None, local_fallback=stood_in(each)) for each in some_rows(5, 300)]
    await insert_usage(database, rows)
    before = await rolled_up(database)
    keys = await by_key(database)
    async with database.write() as connection:
        brin = "CREATE INDEX ix_usage_events_timestamp_brin ON usage_events USING brin (timestamp)"
        statements = [
            "DROP TABLE usage_rollups",
            "DROP TABLE key_rollups",
            "DROP INDEX ix_usage_events_timestamp",
            # Later revisions add these.
            "ALTER TABLE api_keys DROP COLUMN config",
            "ALTER TABLE usage_events DROP COLUMN task_type",
            "ALTER TABLE usage_events DROP COLUMN local_fallback",
            "ALTER TABLE tenants DROP COLUMN disabled_at",
            "DROP TABLE audit",
            "DROP TABLE responses",
            *(f"DROP TABLE {name}" for name in ("files", "batches", "batch_lines")),
            "DROP TABLE routing_outcomes",
            *(f"DROP TABLE {name}" for name in ("task_steps", "task_events", "task_files")),
            "DROP TABLE engine_workers",
            *(f"DROP TABLE {name}" for name in ("webhook_deliveries", "webhooks", "webhook_secrets")),
            "UPDATE alembic_version SET version_num = '0001'",
            *([] if database.is_sqlite else [brin]),
        ]
        for statement in statements:
            await connection.execute(sqlalchemy.text(statement))
    assert await schema.migrate(database)
    assert await rolled_up(database) == before
    assert await by_key(database) == keys


async def by_key(database: Database, since: datetime = EVER[0]) -> dict[tuple[str, str], reports.KeySums]:
    found = await reports.key_sums(database, OperatorScope(), since, 1000)
    return {(one.tenant_id, one.key_hash): one for one in found}


async def test_what_each_key_used_is_added_up_from_an_hour_on_once(database: Database) -> None:
    """Requests are those that were let through: an attempt was made for them."""
    rows = [*some_rows(7, 200), *(row(900 + n, tenant_id=TENANTS[0].replace("-", ""), attempts=0) for n in range(5))]
    rows = [msgspec.structs.replace(one, key_hash=f"{n % 4:064x}") for n, one in enumerate(rows)]
    await insert_usage(database, rows)
    await insert_usage(database, rows)
    since = HOUR + timedelta(hours=1)
    expected: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for one in rows:
        if one.timestamp >= since.strftime("%Y-%m-%d %H:%M:%S.%f"):
            sums = expected[str(uuid.UUID(one.tenant_id)), one.key_hash]
            sums[0] += one.attempts > 0
            sums[1] += (one.input_tokens or 0) + (one.output_tokens or 0)
            sums[2] += one.cost or 0
    found = {key: [v.requests, v.tokens, v.cost] for key, v in (await by_key(database, since)).items()}
    assert found == {key: [v[0], v[1], Decimal(v[2]).scaleb(-10)] for key, v in expected.items()}


async def test_task_types_are_told_apart_in_sums_and_records(database: Database) -> None:
    await insert_usage(database, some_rows(9, 200))
    everything = await reports.sums(database, OperatorScope(), *EVER)
    parts = 0
    for task in ("", "extraction", "chat"):
        only = reports.Only(task_type=task)
        found = await reports.sums(database, OperatorScope(), *EVER, only)
        page = await reports.records(database, OperatorScope(), *EVER, limit=500, only=only)
        assert {each["task_type"] or "" for each in page} == {task}
        assert len(page) == found.requests > 0
        lines = await reports.lines(database, OperatorScope(), *EVER, 1000, only)
        assert sum(each["cost"] for each in lines) == found.cost
        parts += found.requests
    assert parts == everything.requests


async def test_pages_by_cursor_show_each_record_once_also_of_one_moment(database: Database) -> None:
    await insert_usage(database, [*some_rows(6, 100), *(row(number) for number in range(50))])
    seen: list[int] = []
    after = None
    while True:
        page = await reports.records(database, OperatorScope(), *EVER, limit=7, after=after)
        seen += [each["id"] for each in page]
        if len(page) < 7:
            break
        after = reports.Place(page[-1]["timestamp"], page[-1]["id"])
    assert len(seen) == len(set(seen)) == 150
    assert seen == [each["id"] for each in await reports.records(database, OperatorScope(), *EVER, limit=500)]


async def test_two_writers_at_once_add_everything_up(database: Database) -> None:
    await asyncio.gather(*(insert_usage(database, some_rows(10 + seed, 100)) for seed in range(4)))
    assert await rolled_up(database) == await added_up(database)
