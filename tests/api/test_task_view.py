"""What clients see of a task: exact amounts, moments in UTC, a ledger that adds up, and orders handed on whole."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import msgspec

from hortator.api import orders, task_view
from hortator.call import KeyHash, TenantId
from hortator.store.tasks import File, NewFile, Step, Task
from hortator.wire.orders import order

AT = datetime(2026, 11, 21, 13, 0, 0, 999_999, timezone(timedelta(hours=1)))


def task(id: str, parent: str | None = None, position: int = 0, status: str = "Running") -> Task:
    return Task(
        id=id,
        tenant_id=TenantId("t"),
        root_id="root",
        parent_task_id=parent,
        key_hash=KeyHash("k"),
        name=f"name of {id}",
        status=status,
        task_type="code_review",
        model="hortator/coding-expert",
        role="coding-expert",
        tier="tribune",
        pattern="team",
        source="tasks",
        priority="standard",
        depth=0 if parent is None else 1,
        position=position,
        created_at=AT,
        request={"messages": [], "callback_url": "https://ci.example/hook"},
    )


def step(task_id: str, key: str, cost: Decimal | None, tokens: int) -> Step:
    return Step(
        task_id, key, "root", "model", "one/m", "finished", 1, AT, input_tokens=tokens, output_tokens=1, cost=cost
    )


def test_amounts_are_exact_and_short() -> None:
    written = [
        task_view.amount(Decimal(text)) for text in ("0", "0E-10", "0.0012000000", "1E+2", "1E-10", "100", "10.50")
    ]
    assert written == ["0", "0", "0.0012", "100", "0.0000000001", "100", "10.5"]


def test_a_task_says_what_is_known_and_null_else() -> None:
    root = task("root")._replace(
        max_cost=Decimal("0.5000000000"), input_tokens=7, output_tokens=3, cost=Decimal("0.0100"), error={"code": "c"}
    )
    shown = json.loads(msgspec.json.encode(task_view.shown(root)))
    assert shown["id"] == shown["task_id"] == "root"
    assert (shown["object"], shown["type"], shown["task_type"]) == ("task", "code_review", "code_review")
    assert (shown["created_at"], shown["started_at"], shown["results"]) == ("2026-11-21T12:00:00.999Z", None, None)
    assert shown["usage"] == {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
    assert (shown["cost_usd"], shown["budget"]) == ("0.01", {"max_tokens": None, "max_cost_usd": "0.5"})
    assert (shown["error"], shown["callback_url"]) == ({"code": "c", "message": ""}, "https://ci.example/hook")


def test_children_are_nested_below_their_parents_in_order() -> None:
    tree = [task("root"), task("b", "root", 1, "Completed"), task("a", "root", 0), task("c", "b")]
    found = task_view.nested_orchestration(tree[0], tree)
    assert [(each.id, [below.id for below in each.children]) for each in found.children] == [("a", []), ("b", ["c"])]
    assert (found.object, found.tasks) == ("orchestration", {"Completed": 1, "Running": 3})
    assert [each.id for each in task_view.nested(tree[1], tree).children] == ["c"]


def test_the_entries_of_a_ledger_sum_to_its_total() -> None:
    steps = [
        step("root", "plan", Decimal("0.1"), 5),
        step("a", "turn.1", Decimal("0.2"), 6),
        step("a", "turn.2", None, 1),
    ]
    found = task_view.ledger("root", steps, [task("root"), task("a", "root")])
    assert (found.total.cost_usd, found.total.input_tokens, found.total.output_tokens) == ("0.3", 12, 3)
    assert [(entry.task, entry.step, entry.cost_usd) for entry in found.entries] == [
        ("name of root", "plan", "0.1"),
        ("name of a", "turn.1", "0.2"),
        ("name of a", "turn.2", None),
    ]


def test_a_call_that_was_cut_off_with_its_task_does_not_run_any_more() -> None:
    steps = [step("root", "plan", None, 0), step("a", "turn.1", None, 0)]
    running = [each._replace(status="running") for each in steps]
    found = task_view.ledger("root", running, [task("root"), task("a", "root", status="Cancelled")])
    assert [entry.status for entry in found.entries] == ["running", "cancelled"]


def test_a_file_keeps_the_id_of_the_task_that_made_it() -> None:
    file = File("a", "outbox/report.md", 3, "text/markdown", "0" * 64, datetime.now(UTC))
    found = task_view.artifact(file)
    assert (found.path, found.bytes, found.task_id) == ("outbox/report.md", 3, "a")


def test_what_an_order_does_not_say_is_left_to_the_room() -> None:
    bare = orders.taken(order(b'{"prompt": "x"}'), "tasks")
    assert (bare.model, bare.source, bare.pattern, bare.idempotency_key) == ("hortator/default", "tasks", "team", None)
    body = b'{"prompt": "x", "role": "r", "type": "t", "files": [{"filename": "f", "content": "c"}]}'
    full = orders.taken(order(body), "socket", "key-1")
    assert (full.model, full.task_type, full.source, full.idempotency_key) == ("hortator/r", "t", "socket", "key-1")
    assert list(full.files) == [NewFile("f", b"c", "text/plain; charset=utf-8")]
