"""Outcomes of routing: a row a routed call, marked when its client asks again, never the request's words."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import sqlalchemy

from hortator.call import Repeat, RequestId, Routed
from hortator.routing.complexity import score
from hortator.store import Database
from hortator.store.outcomes import known, learnt
from hortator.store.tables import routing_outcomes
from tests.ledger.test_usage import recorded
from tests.outcomes import TENANT, outcome

JUDGED = score([{"role": "user", "content": "Write unit tests for a stack class in Java"}])


def routed(number: int, *, retried: bool = False, **changes: Any) -> Any:
    judged = Routed(
        path=JUDGED.path,
        score=JUDGED.score,
        confidence=JUDGED.confidence,
        features=JUDGED.features,
        words=JUDGED.words,
        retried=retried,
    )
    return outcome(number, routed=judged, path=JUDGED.path, **changes)


def again(number: int, escalated: bool) -> Repeat:
    return Repeat(request_id=RequestId(f"req_{number}"), escalated=escalated)


async def rows(database: Database) -> list[dict[str, Any]]:
    async with database.read() as connection:
        found = await connection.execute(sqlalchemy.select(routing_outcomes).order_by(routing_outcomes.c.id))
        return [dict(row._mapping) for row in found]


async def test_a_routed_call_leaves_one_row_without_its_words(database: Database, tmp_path: Path) -> None:
    await recorded(database, tmp_path / "journal", routed(1), outcome(2))
    [row] = await rows(database)
    expected = {
        "request_id": "req_1",
        "tenant_id": TENANT,
        "key_hash": "a" * 64,
        "path": "standard",
        "score": JUDGED.score,
        "confidence": JUDGED.confidence,
        "model": "llama-3.1-8b-instant",
        "cost": Decimal("0.0000058"),
        "retried": False,
        "escalated": False,
        "error_code": None,
    }
    assert {name: row[name] for name in expected} == expected
    features = row["features"]
    assert any(name.startswith("word ") for name in JUDGED.features)
    assert not any(name.startswith("word ") for name in features)
    assert features["words"] == [round(value, 3) for value in JUDGED.words]
    assert features.keys() - {"words"} == {name for name in JUDGED.features if not name.startswith("word ")}


async def test_later_calls_mark_the_earlier_one(database: Database, tmp_path: Path) -> None:
    calls = [routed(1), routed(2), routed(3), routed(4, retried=True), outcome(5, repeat=again(2, True))]
    await recorded(database, tmp_path / "journal", *calls, routed(6, repeat=again(1, False)))
    marks = {row["request_id"]: (row["retried"], row["escalated"]) for row in await rows(database)}
    assert marks == {
        "req_1": (True, False),
        "req_2": (True, True),
        "req_3": (False, False),
        "req_4": (True, False),
        "req_6": (False, False),
    }


async def test_only_what_tells_something_of_the_path_is_learnt_from(database: Database, tmp_path: Path) -> None:
    calls = [routed(1), routed(2), routed(3, code="upstream_timeout"), routed(4, retried=True)]
    await recorded(database, tmp_path / "journal", *calls, outcome(5, repeat=again(2, True)))
    assert tuple(await known(database)) == (4, 2, 1)
    found = await learnt(database, 10)
    assert [(row.request_id, row.escalated) for row in found] == [("req_2", True), ("req_1", False)]
    assert [row.request_id for row in await learnt(database, 1)] == ["req_2"]


async def test_outcomes_that_cannot_be_written_cost_no_usage_record(database: Database, tmp_path: Path) -> None:
    async with database.write() as connection:
        await connection.execute(sqlalchemy.text("DROP TABLE routing_outcomes"))
    ledger = await recorded(database, tmp_path / "journal", routed(1))
    assert (ledger.gauges.written, ledger.gauges.dropped) == (1, 0)
