"""Usage rows: once each, exact, and no bad one keeps the others out."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from hortator.call import TenantId
from hortator.store import Database
from hortator.store.queries import TenantScope
from hortator.store.tables import usage_events
from hortator.store.usage import COLUMNS, MAX_ROWS, Inserted, UsageRow, insert_usage

TENANT = TenantId("0190a000-0000-7000-8000-000000000001")
EVER = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)


def row(number: int, **changes: Any) -> UsageRow:
    values: dict[str, Any] = {
        "event_id": f"{number:032x}",
        "tenant_id": TENANT.replace("-", ""),
        "event_type": "model_call",
        "timestamp": "2026-11-21 12:34:56.789012",
        "request_id": f"req_{number}",
        "key_hash": "a" * 64,
        "operation": "chat",
        "model_asked": "groq/x",
        "usage_source": "unknown",
        "price_state": "unpriced",
        "latency_ms": 1.5,
        "overhead_ms": 0.25,
        "status": 200,
        "attempts": 1,
        "stream": False,
        "complete": True,
    }
    return UsageRow(**{**values, **changes})


def test_a_row_has_every_column_of_the_table() -> None:
    assert {"id", *COLUMNS} == set(usage_events.columns.keys())


async def test_a_row_comes_back_as_it_went_in(database: Database) -> None:
    full = row(
        7,
        token_count=110,
        compute_seconds=0.123456,
        metadata='{"attempts": []}',
        model_served="x",
        provider="groq",
        deployment="groq/x",
        input_tokens=100,
        output_tokens=10,
        cached_tokens=0,
        price='{"input": "0.05"}',
        cost=58_000,
        first_byte_ms=1.25,
        error_code="upstream_error",
        stream=True,
        complete=False,
    )
    assert await insert_usage(database, [full]) == Inserted(new=1, refused=0)
    (record,) = await TenantScope(database, TENANT).usage(*EVER)
    assert record["cost"] == Decimal("0.0000058")
    assert record["timestamp"] == datetime(2026, 11, 21, 12, 34, 56, 789012, UTC)
    assert record["event_id"].replace("-", "") == full.event_id
    assert record["tenant_id"] == TENANT
    assert record["metadata"] == {"attempts": []}
    assert record["price"] == {"input": "0.05"}
    assert (record["stream"], record["complete"]) == (True, False)
    plain = set(COLUMNS) - {"cost", "timestamp", "event_id", "tenant_id", "metadata", "price", "task_id"}
    assert {name: record[name] for name in plain} == {name: getattr(full, name) for name in plain}
    assert record["reasoning_tokens"] is None


@pytest.mark.parametrize("count", [1, 63, 64, 65, MAX_ROWS])
async def test_rows_inserted_again_are_there_once(database: Database, count: int) -> None:
    rows = [row(number) for number in range(count)]
    assert await insert_usage(database, rows) == Inserted(count, 0)
    assert await insert_usage(database, rows) == Inserted(0, 0)
    assert await insert_usage(database, [*rows[: count // 2], row(10_000)]) == Inserted(1, 0)
    (total,) = await TenantScope(database, TENANT).usage_totals(*EVER)
    assert total.requests == count + 1


async def test_a_row_that_the_database_refuses_is_left_out_alone(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row(number) for number in range(10)]
    rows[3] = row(3, cost=2**70)
    rows[8] = row(8, cost=2**80)
    assert await insert_usage(database, rows) == Inserted(new=8, refused=2)
    assert f"{3:032x}" in caplog.text


async def test_costs_add_up_exactly(database: Database) -> None:
    """Ten times a tenth of a cent, which a binary float gets wrong."""
    await insert_usage(database, [row(number, cost=10_000_000) for number in range(10)])
    (total,) = await TenantScope(database, TENANT).usage_totals(*EVER)
    assert total.cost == Decimal("0.01")
