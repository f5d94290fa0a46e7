"""The ledger: one record a call, priced, written once, whatever happens to the database."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hortator.call import Outcome, Usage
from hortator.ledger import Ledger, PriceBook
from hortator.ledger.records import Recorder
from hortator.store import Database, migrate
from hortator.store.database import normalise_url
from hortator.store.queries import TenantScope
from hortator.store.usage import insert_usage
from tests.cable import Cable, cable
from tests.eventually import eventually
from tests.outcomes import TENANT, attempt, outcome

EVER = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)


async def records(database: Database) -> list[dict[str, Any]]:
    return await TenantScope(database, TENANT).usage(*EVER, limit=1000)


async def count(database: Database) -> int:
    return sum(total.requests for total in await TenantScope(database, TENANT).usage_totals(*EVER))


def sizes(folder: Path) -> list[int]:
    return [path.stat().st_size for path in folder.iterdir()]


async def recorded(database: Database, folder: Path, *outcomes: Outcome, **options: Any) -> Ledger:
    """A ledger that recorded these and was drained."""
    ledger = Ledger(database, PriceBook(), folder, **options)
    await ledger.start()
    for each in outcomes:
        ledger.record(each)
    await ledger.drain(60)
    return ledger


async def test_each_call_leaves_one_complete_record(database: Database, tmp_path: Path) -> None:
    retried = (attempt(None, "upstream_connect_failed"), attempt())
    usage = Usage(input=100, output=10, cached=40, reasoning=3, source="reported")
    call = outcome(1, attempts=retried, usage=usage, received_at=1_700_000_000.25, metadata={"path": "direct"})
    ledger = await recorded(database, tmp_path / "journal", call)
    (record,) = await records(database)
    expected = {
        "tenant_id": TENANT,
        "task_id": None,
        "event_type": "model_call",
        "token_count": 110,
        "compute_seconds": 0.123,
        "timestamp": datetime.fromtimestamp(1_700_000_000.25, UTC),
        "request_id": "req_1",
        "key_hash": "a" * 64,
        "operation": "chat",
        "model_asked": "groq/llama-3.1-8b-instant",
        "model_served": "llama-3.1-8b-instant",
        "provider": "groq",
        "deployment": "groq/llama-3.1-8b-instant",
        "attempts": 2,
        "input_tokens": 100,
        "output_tokens": 10,
        "cached_tokens": 40,
        "reasoning_tokens": 3,
        "cache_write_tokens": None,
        "usage_source": "reported",
        "cost": Decimal("0.0000058"),
        "price_state": "priced",
        "latency_ms": 123.457,
        "first_byte_ms": 22.5,
        "overhead_ms": 0.457,
        "status": 200,
        "error_code": None,
        "stream": True,
        "complete": True,
    }
    assert {name: record[name] for name in expected} == expected
    assert record["price"]["input"] == "0.05"
    assert record["metadata"]["path"] == "direct"
    assert [each["code"] for each in record["metadata"]["attempts"]] == ["upstream_connect_failed", None]
    assert (ledger.gauges.written, ledger.gauges.dropped, ledger.gauges.queued) == (1, 0, 0)
    assert sizes(tmp_path / "journal") == []


async def test_a_call_costs_what_its_attempts_do(database: Database, tmp_path: Path) -> None:
    """A failed attempt that the provider charges for counts; one that it refused does not."""
    broken = attempt(200, "upstream_connection_lost", Usage(input=1000, output=0, source="reported"))
    cut = attempt(200, "upstream_truncated_stream", Usage(input=333, output=7, source="estimated"))
    refused = attempt(500, "upstream_error")
    good = Usage(input=100, output=10, source="reported")
    await recorded(
        database,
        tmp_path,
        outcome(0, attempts=(broken, refused, cut, attempt()), usage=good),
        outcome(1, attempts=(broken, refused), usage=Usage(), status=502, code="upstream_error"),
        outcome(2, attempts=(refused, refused), usage=Usage(), status=502, code="upstream_error"),
    )
    found = {record["request_id"]: record for record in await records(database)}
    for record in found.values():
        costs = [Decimal(each["cost"]) for each in record["metadata"]["attempts"] if "cost" in each]
        assert record["cost"] == (sum(costs) if costs else None)
        assert record["price_state"] == ("priced" if costs else "unpriced")
    first = found["req_0"]
    assert [each.get("cost") for each in first["metadata"]["attempts"]] == [
        "0.0000500000",
        None,
        "0.0000172100",
        "0.0000058000",
    ]
    assert [each["usage"] for each in first["metadata"]["attempts"]] == ["reported", "unknown", "estimated", "reported"]
    assert (first["input_tokens"], first["output_tokens"], first["cost"]) == (100, 10, Decimal("0.0000730100"))


@pytest.mark.parametrize(
    ("changes", "state", "cost"),
    [
        ({"usage": Usage()}, "unpriced", None),
        ({"usage": Usage(input=100, source="estimated")}, "unpriced", None),
        ({"usage": Usage(input=0, output=0, source="reported")}, "priced", Decimal(0)),
        ({"response_model": "x", "deployment": None, "attempts": (), "status": 404}, "free", Decimal(0)),
        ({"usage": Usage(input=-5, output=2**40, source="reported")}, "unpriced", None),
    ],
)
async def test_an_unknown_cost_is_never_0(
    database: Database, tmp_path: Path, changes: dict[str, Any], state: str, cost: Decimal | None
) -> None:
    await recorded(database, tmp_path, outcome(**changes))
    (record,) = await records(database)
    assert (record["price_state"], record["cost"]) == (state, cost)
    if cost is None:
        assert record["token_count"] is None


async def test_hostile_text_is_recorded_and_holds_nothing_up(database: Database, tmp_path: Path) -> None:
    hostile = ["nul\0nul", "lone \ud800 surrogate", "\u2603" * 1000, "x" * 100_000, "'; DROP TABLE tenants; --", ""]
    calls = [
        outcome(n, model=text, response_model=text or None, request_id=text, code=text, metadata={text: text[:300]})
        for n, text in enumerate(hostile)
    ]
    ledger = await recorded(database, tmp_path, *calls)
    assert await count(database) + ledger.gauges.dropped == len(hostile)
    assert ledger.gauges.dropped == 0
    assert {len(record["model_asked"]) for record in await records(database)} <= {6, 16, 255, 25, 0}


async def test_a_record_that_cannot_be_made_is_dropped_alone(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = await recorded(database, tmp_path, outcome(1), outcome(2, received_at=float("nan")), outcome(3))
    assert {record["request_id"] for record in await records(database)} == {"req_1", "req_3"}
    assert ledger.gauges.dropped == 1
    assert "req_2" in caplog.text


async def test_thousands_of_records_arrive_once_each(database: Database, tmp_path: Path) -> None:
    ledger = await recorded(database, tmp_path, *(outcome(number) for number in range(3_000)))
    assert await count(database) == 3_000
    assert ledger.gauges.written + ledger.gauges.dropped == 3_000


async def test_records_arrive_without_anyone_asking(database: Database, tmp_path: Path) -> None:
    ledger = Ledger(database, PriceBook(), tmp_path)
    await ledger.start()
    ledger.record(outcome())
    await eventually(lambda: ledger.gauges.written == 1)
    await eventually(lambda: ledger.gauges.journal_bytes == 0)
    await ledger.drain()


async def test_a_full_queue_drops_and_counts_and_never_waits(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger(database, PriceBook(), tmp_path, queue_limit=10)
    for number in range(25):
        ledger.record(outcome(number))
    assert (ledger.gauges.queued, ledger.gauges.dropped) == (10, 15)
    assert len([each for each in caplog.records if "lost" in each.message]) == 1
    await ledger.start()
    await ledger.drain()
    assert await count(database) == 10
    ledger.record(outcome())
    assert ledger.gauges.dropped == 16


async def test_a_journal_that_cannot_be_written_does_not_stop_the_ledger(database: Database, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    ledger = await recorded(database, tmp_path / "file" / "journal", *(outcome(number) for number in range(300)))
    assert (await count(database), ledger.gauges.dropped) == (300, 0)


@pytest.fixture
async def line(postgres_database: str) -> AsyncIterator[Cable]:
    url = normalise_url(postgres_database)
    async with cable(url.host or "", url.port or 5432) as laid:
        yield laid


@pytest.fixture
async def distant(postgres_database: str, line: Cable) -> AsyncIterator[Database]:
    """A Postgres at the other end of a cable."""
    url = normalise_url(postgres_database).set(host="127.0.0.1", port=line.port)
    opened = Database(url.render_as_string(hide_password=False), deadline=2)
    await migrate(opened)
    yield opened
    await line.mend()
    await opened.close()


@pytest.mark.parametrize("fault", ["cut", "block"])
async def test_records_wait_in_the_journal_while_the_database_is_down(
    distant: Database, line: Cable, tmp_path: Path, fault: str
) -> None:
    ledger = Ledger(distant, PriceBook(), tmp_path, retry_seconds=0.1)
    await ledger.start()
    ledger.record(outcome(0))
    await eventually(lambda: ledger.gauges.written == 1)
    if fault == "cut":
        await line.cut()
    else:
        line.block()
    for number in range(1, 1001):
        ledger.record(outcome(number))
    await eventually(lambda: ledger.gauges.behind and ledger.gauges.queued == 0)
    await eventually(lambda: ledger.gauges.spilled == 1000)
    assert ledger.gauges.journal_bytes > 0
    await line.mend()
    await eventually(lambda: not ledger.gauges.behind)
    ledger.record(outcome(1001))
    await eventually(lambda: ledger.gauges.written == 1002)
    await ledger.drain()
    assert await count(distant) == 1002
    assert (ledger.gauges.dropped, ledger.gauges.journal_bytes) == (0, 0)


async def test_what_could_not_be_written_before_the_end_is_written_at_the_next_start(
    distant: Database, line: Cable, tmp_path: Path
) -> None:
    await line.cut()
    first = await recorded(distant, tmp_path, *(outcome(number) for number in range(600)))
    assert (first.gauges.written, first.gauges.spilled, first.gauges.dropped) == (0, 600, 0)
    await line.mend()
    second = Ledger(distant, PriceBook(), tmp_path)
    await second.start()
    await eventually(lambda: second.gauges.written == 600)
    await second.drain()
    assert await count(distant) == 600
    assert sizes(tmp_path) == []


async def test_a_journal_at_its_limit_drops_and_counts(distant: Database, line: Cable, tmp_path: Path) -> None:
    await line.cut()
    ledger = await recorded(distant, tmp_path, *(outcome(number) for number in range(2_000)), journal_limit=400_000)
    assert ledger.gauges.spilled + ledger.gauges.dropped == 2_000
    assert ledger.gauges.dropped > 0
    assert ledger.gauges.spilled > 0
    assert sum(sizes(tmp_path)) <= 400_000


async def test_a_batch_that_was_written_before_the_process_died_is_not_written_again(
    database: Database, tmp_path: Path
) -> None:
    """The process died between the database's answer and the end of the journal's segment, which keeps the ids."""
    recorder = Recorder(PriceBook())
    rows = [recorder.row(outcome(number)) for number in range(50)]
    await insert_usage(database, rows[:30])
    (tmp_path / "0.jsonl").write_bytes(msgspec.json.Encoder().encode_lines(rows))
    ledger = await recorded(database, tmp_path, outcome(50))
    assert await count(database) == 51
    assert ledger.gauges.written == 21


async def test_lines_that_are_no_records_are_left_out_and_counted(database: Database, tmp_path: Path) -> None:
    await recorded(database, tmp_path / "a", outcome())
    (record,) = await records(database)
    good = {name: record[name] for name in ("request_id", "key_hash", "operation", "model_asked", "usage_source")}
    good |= {"event_id": "0" * 32, "tenant_id": TENANT.replace("-", ""), "event_type": "model_call"}
    good |= {"timestamp": "2026-01-01 00:00:00.000000", "price_state": "free", "latency_ms": 1.0, "overhead_ms": 1.0}
    good |= {"status": 200, "attempts": 1, "stream": False, "complete": True}
    future = {**good, "event_id": "1" * 32, "a_column_of_a_newer_release": 1}
    lines = [json.dumps(good), "garbage", "{}", json.dumps(future), '{"torn": ']
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "0.jsonl").write_text("\n".join(lines))
    ledger = Ledger(database, PriceBook(), tmp_path / "b")
    await ledger.start()
    await eventually(lambda: ledger.gauges.written == 2)
    await ledger.drain()
    assert (await count(database), ledger.gauges.dropped) == (3, 2)
