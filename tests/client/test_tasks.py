"""Tasks by the SDK: orders (R-000-15, R-000-16), events (R-000-17, R-000-18), results by attribute (R-000-19), files."""

from __future__ import annotations

import email.parser
import email.policy
import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hortator.client import (
    Budget,
    ConflictError,
    HortatorConnectionError,
    HortatorError,
    HortatorTimeout,
    NotFoundError,
    TaskConfig,
    TaskError,
)
from tests.client.conftest import KEY
from tests.client.fake import CLOSE, HANG_UP, Asked, Fake, refused, reply, stream

TASKS = "/api/v1/tasks"
ONE = f"{TASKS}/t1"
RUNNING = {"id": "t1", "root_id": "t1", "status": "Running", "results": None, "cost_usd": None}
RESULTS = {"summary": "Two.", "papers": [{"citation": "A (2024)", "themes": ["x"]}, {"citation": "B", "themes": []}]}
DONE = {**RUNNING, "status": "Completed", "results": RESULTS, "cost_usd": "0.0012"}


def event(seq: int, type: str = "agent_message", **fields: Any) -> bytes:
    said = {"seq": seq, "task_id": "t1", "type": type, "timestamp": "2026-11-21T12:00:00.000Z", **fields}
    return f"id: {seq}\nevent: {type}\ndata: {json.dumps(said, ensure_ascii=False)}\n\n".encode()


@pytest.fixture
def task(fake: Fake, client: Any) -> Any:
    fake.on(TASKS, reply(RUNNING, 202))
    made = client.tasks.create(query="Find papers.")
    fake.asked.clear()
    return made


def test_an_order_of_words(fake: Fake, client: Any) -> None:
    fake.on(TASKS, reply(RUNNING, 202))
    task = client.tasks.create(
        task_type="literature_review",
        query="Transformers",
        config={"databases": ["arxiv"], "max_agents": 3},
        callback_url="https://example.com/hook",
        timeout="2h",
        model="hortator/researcher",
    )
    assert (task.id, task.status, task.ended) == ("t1", "Running", False)
    [asked] = fake.asked
    assert asked.json == {
        "task_type": "literature_review",
        "query": "Transformers",
        "config": {"databases": ["arxiv"], "max_agents": 3},
        "callback_url": "https://example.com/hook",
        "timeout": "2h",
        "model": "hortator/researcher",
    }
    assert len(asked.headers["idempotency-key"]) >= 16


def test_an_order_of_files(fake: Fake, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.on(TASKS, reply(RUNNING, 202))
    monkeypatch.chdir(tmp_path)
    Path("src").mkdir()
    Path('src/häuser "2".py').write_text("print()\n")
    outside = tmp_path / "abs.bin"
    outside.write_bytes(bytes(range(256)))
    with Path('src/häuser "2".py').open() as opened:
        client.tasks.create(
            task_type="code_review",
            config=TaskConfig(
                decomposition_strategy="aggressive", max_agents=5, timeout="10m", budget=Budget(max_cost_usd="0.5")
            ),
            files=['src/häuser "2".py', outside, opened, io.BytesIO(b"\r\n--x"), ("名前.txt", b""), ("t", "ü")],
            idempotency_key="mine",
        )
    [asked] = fake.asked
    assert asked.headers["idempotency-key"] == "mine"
    head = f"content-type: {asked.headers['content-type']}\r\n\r\n".encode()
    parts = list(email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + asked.body).iter_parts())
    assert json.loads(parts[0].get_content()) == {
        "task_type": "code_review",
        "config": {
            "decomposition_strategy": "aggressive",
            "max_agents": 5,
            "timeout": "10m",
            "budget": {"max_cost_usd": "0.5"},
        },
    }
    source = 'filename="src/häuser \\"2\\".py"'.encode()
    assert asked.body.count(source) == 2
    assert 'filename="名前.txt"'.encode() in asked.body
    contents = [part.get_payload(decode=True) for part in parts[1:]]
    assert contents == [b"print()\n", bytes(range(256)), b"print()\n", b"\r\n--x", b"", "ü".encode()]


def test_a_file_that_cannot_be_read_is_told_before_anything_is_ordered(fake: Fake, client: Any) -> None:
    with pytest.raises(FileNotFoundError):
        client.tasks.create(query="x", files=["/nowhere/at/all"])
    assert fake.asked == []


def test_a_task_is_found_listed_and_cancelled(fake: Fake, client: Any) -> None:
    fake.on(TASKS, reply({"object": "list", "data": [RUNNING, DONE], "has_more": False}))
    fake.on(ONE, reply(DONE))
    fake.on(f"{ONE}/cancel", reply({**RUNNING, "status": "Cancelled"}))
    assert client.tasks.get("t1").status == "Completed"
    listed = client.tasks.list(limit=5, status="Running", all=True, after="t0")
    assert [each.status for each in listed] == ["Running", "Completed"]
    assert fake.asked[1].query == {"limit": "5", "status": "Running", "all": "true", "after": "t0"}
    assert client.tasks.cancel("t1").status == "Cancelled"
    assert fake.asked[2].method == "POST"


def test_an_id_cannot_lead_elsewhere(fake: Fake, client: Any) -> None:
    with pytest.raises(NotFoundError):
        client.tasks.get("../admin/keys?x=1#y")
    assert fake.asked[0].target == "/api/v1/tasks/..%2Fadmin%2Fkeys%3Fx%3D1%23y"


def test_events_have_all_attributes_and_what_is_missing_is_none(fake: Fake, task: Any) -> None:
    """R-000-17, R-000-18."""
    fake.on(
        f"{ONE}/events",
        lambda _: stream(
            event(1, "task_created", message="Begun."),
            event(2, "agent_spawned", agent_id="a1", task="Read", details={"role": "researcher"}),
            event(3, "partial_result", agent_id="a1", content="Halb — 半分"),
            event(4, "risk_identified", document="lease.pdf", risk_description="No exit.", severity="high"),
            event(5, "completed", result=RESULTS, details={"cost_usd": "0.0012", "usage": {"total_tokens": 9}}),
        ),
    )
    seen = list(task.stream(level="verbose"))
    assert [each.seq for each in seen] == [1, 2, 3, 4, 5]
    assert fake.asked[0].query == {"level": "verbose"}
    created, spawned, partial, risk, completed = seen
    for name in ("agent_id", "task", "content", "result", "document", "risk_description", "severity"):
        assert getattr(created, name) is None
    assert (spawned.agent_id, spawned.task, spawned.details.role) == ("a1", "Read", "researcher")
    assert partial.content == "Halb — 半分"
    assert (risk.document, risk.risk_description, risk.severity) == ("lease.pdf", "No exit.", "high")
    assert completed.result.papers[0].citation == "A (2024)"
    assert (task.status, task.cost_usd, task.usage.total_tokens) == ("Completed", "0.0012", 9)
    assert task.results.papers[1].themes == []
    assert len(fake.asked) == 1


@pytest.mark.parametrize("way", [HANG_UP, CLOSE])
def test_a_broken_stream_goes_on_without_gap_or_duplicate(fake: Fake, task: Any, way: bytes) -> None:
    """Cut behind an event, inside one, before the first, and with a server that repeats itself."""
    fake.on(
        f"{ONE}/events",
        lambda _: stream(event(1), event(2), way, end=False),
        lambda _: stream(way, end=False),
        lambda asked: stream(*_behind(asked, 4), event(5)[:30], way, end=False),
        lambda _: stream(event(3), event(4), event(5), event(6), event(6), way, end=False),
        lambda asked: stream(*_behind(asked, 7), event(8, "completed", result=RESULTS)),
    )
    assert [each.seq for each in task.stream()] == [1, 2, 3, 4, 5, 6, 7, 8]
    asked_from = [int(asked.headers.get("last-event-id", 0)) for asked in fake.asked]
    assert asked_from == sorted(asked_from)
    assert len(asked_from) == 5


def _behind(asked: Asked, last: int) -> Iterator[bytes]:
    return (event(seq) for seq in range(int(asked.headers.get("last-event-id", 0)) + 1, last + 1))


def test_a_stream_survives_refusals_and_an_ending_server(fake: Fake, task: Any) -> None:
    draining = b'data: {"error": {"message": "Stopping.", "code": "draining"}}\n\n'
    fake.on(
        f"{ONE}/events",
        lambda _: stream(event(1), draining),
        refused(503, "draining", retry_after="0"),
        refused(502, "bad_gateway"),
        lambda _: stream(event(2, "failed", message="Alas.", details={"code": "task_failed"})),
    )
    assert [each.type for each in task.stream()] == ["agent_message", "failed"]
    with pytest.raises(TaskError, match="Alas") as raised:
        _ = task.results
    assert (raised.value.phase, raised.value.task_id, raised.value.code) == ("Failed", "t1", "task_failed")


@pytest.mark.parametrize(
    ("status", "code"), [(410, "events_expired"), (404, "task_not_found"), (401, "invalid_api_key")]
)
def test_what_another_try_does_not_mend_ends_a_stream(fake: Fake, task: Any, status: int, code: str) -> None:
    fake.on(f"{ONE}/events", refused(status, code))
    with pytest.raises(HortatorError) as raised:
        list(task.stream())
    assert raised.value.code == code
    assert len(fake.asked) == 1


def test_a_stream_may_begin_in_the_middle(fake: Fake, task: Any) -> None:
    fake.on(f"{ONE}/events", lambda asked: stream(*_behind(asked, 9), event(10, "completed")))
    assert [each.seq for each in task.stream(after=7)] == [8, 9, 10]


def test_leaving_a_stream_hangs_up(fake: Fake, task: Any) -> None:
    def endless(_: Asked) -> Iterator[bytes]:
        yield next(stream())
        for seq in range(1, 1_000_000):
            piece = event(seq, content="x" * 10_000)
            yield b"%x\r\n%s\r\n" % (len(piece), piece)

    fake.on(f"{ONE}/events", endless)
    events = iter(task.stream())
    assert next(events).seq == 1
    events.close()
    assert fake.hung_up.wait(20)


def test_events_that_have_happened_are_given_page_by_page(fake: Fake, task: Any) -> None:
    """A page may be empty: what the level hides counts too."""

    def page(*seqs: int, last: int, more: bool) -> list[bytes]:
        said = [{"seq": seq, "task_id": "t1", "type": "progress", "timestamp": "x"} for seq in seqs]
        return reply({"object": "list", "data": said, "last_seq": last, "has_more": more})

    fake.on(f"{ONE}/events", page(4, 5, last=5, more=True), page(last=9, more=True), page(10, last=12, more=False))
    assert [each.seq for each in task.events(level="verbose", after=3)] == [4, 5, 10]
    assert fake.asked[0].query == {"level": "verbose", "after": "3", "limit": "1000", "stream": "false"}
    assert [asked.query["after"] for asked in fake.asked] == ["3", "5", "9"]


def test_a_stream_behind_the_last_event_is_empty(fake: Fake, task: Any) -> None:
    fake.on(f"{ONE}/events", [b"HTTP/1.1 204 No Content\r\n\r\n"])
    assert list(task.stream(after=12)) == []
    assert len(fake.asked) == 1


def test_waiting_asks_until_the_end(fake: Fake, task: Any) -> None:
    fake.on(ONE, reply(RUNNING), reply({**RUNNING, "status": "Waiting"}), reply(DONE))
    assert task.wait().status == "Completed"
    assert [asked.query for asked in fake.asked] == [{"wait": "30"}] * 3
    assert task.result().summary == "Two."


def test_waiting_may_have_an_end(fake: Fake, task: Any) -> None:
    fake.on(ONE, reply(RUNNING))
    with pytest.raises(HortatorTimeout):
        task.wait(timeout=0)


def test_results_wait_for_the_end(fake: Fake, client: Any, task: Any, make: Callable[..., Any]) -> None:
    """R-000-19: `task.results.papers` right after `create`. A coroutine must be awaited, so there `result()` does that."""
    fake.on(ONE, reply(DONE))
    results = task.result() if "Async" in repr(client) or hasattr(client, "_held") else task.results
    assert [paper.citation for paper in results.papers] == ["A (2024)", "B"]
    with pytest.raises(AttributeError, match="papers"):
        _ = results.pampers


@pytest.mark.parametrize("phase", ["BudgetExceeded", "TimedOut"])
def test_what_was_achieved_is_a_result(fake: Fake, task: Any, phase: str) -> None:
    fake.on(ONE, reply({**DONE, "status": phase}))
    assert task.result().summary == "Two."
    assert task.status == phase


@pytest.mark.parametrize("phase", ["Failed", "Cancelled", "BudgetExceeded"])
def test_no_result_is_a_task_error(fake: Fake, task: Any, phase: str) -> None:
    fake.on(ONE, reply({**RUNNING, "status": phase, "error": {"code": "c", "message": "Why."}}))
    with pytest.raises(TaskError, match="Why") as raised:
        task.result()
    assert (raised.value.phase, raised.value.code) == (phase, "c")


def test_tree_children_ledger_and_messages(fake: Fake, task: Any) -> None:
    leaf = {"id": "t2", "role": "coder", "status": "Completed", "children": []}
    fake.on(f"{ONE}/tree", reply({**RUNNING, "children": [leaf]}))
    fake.on(f"{ONE}/children", reply({"object": "list", "data": [leaf]}))
    total = {"input_tokens": 1, "output_tokens": 2, "cost_usd": "0.5"}
    fake.on(f"{ONE}/ledger", reply({"task_id": "t1", "entries": [{**total, "step": "plan"}], "total": total}))
    said = {"seq": 9, "type": "user_message", "content": "Faster!", "timestamp": "x", "task_id": "t1"}
    fake.on(f"{ONE}/messages", reply(said, 202))
    assert task.tree().children[0].role == "coder"
    assert [child.id for child in task.children()] == ["t2"]
    assert (task.ledger().entries[0].step, task.ledger().total.cost_usd) == ("plan", "0.5")
    assert task.send("Faster!").seq == 9
    assert fake.asked[-1].json == {"content": "Faster!"}


def test_a_message_to_a_task_that_does_not_run_is_a_conflict(fake: Fake, task: Any) -> None:
    fake.on(f"{ONE}/messages", refused(409, "task_not_running"))
    with pytest.raises(ConflictError):
        task.send("Hello?")


def files(**contents: bytes) -> list[dict[str, Any]]:
    return [
        {"path": path, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "task_id": "t1"}
        for path, content in contents.items()
    ]


def offer(fake: Fake, listed: list[dict[str, Any]]) -> None:
    fake.on(f"{ONE}/artifacts", reply({"task_id": "t1", "phase": "Completed", "files": listed}))


def test_artifacts_are_fetched_whole_and_checked(fake: Fake, task: Any, tmp_path: Path) -> None:
    large = bytes(range(256)) * 20_000
    name = "outbox/Übersicht – 概要 #1?.md"
    offer(fake, files(**{name: "Grüße".encode(), "outbox/data/large.bin": large}))
    fake.on(
        f"{ONE}/artifacts/outbox/%C3%9Cbersicht%20%E2%80%93%20%E6%A6%82%E8%A6%81%20%231%3F.md", reply("Grüße".encode())
    )
    fake.on(
        f"{ONE}/artifacts/outbox/data/large.bin", lambda _: [b"".join(reply(large))[:3_000_000], HANG_UP], reply(large)
    )
    assert [each.path for each in task.artifacts()] == [name, "outbox/data/large.bin"]
    places = task.download(to=tmp_path / "out")
    assert places == [tmp_path / "out" / name.removeprefix("outbox/"), tmp_path / "out/data/large.bin"]
    assert places[0].read_text() == "Grüße"
    assert places[1].read_bytes() == large
    assert sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file()) == [
        "large.bin",
        places[0].name,
    ]
    assert task.read(name) == "Grüße".encode()


def test_a_damaged_file_is_never_in_its_place(fake: Fake, make: Callable[..., Any], tmp_path: Path) -> None:
    fake.on(ONE, reply(DONE))
    offer(fake, files(**{"outbox/a": b"right"}))
    fake.on(f"{ONE}/artifacts/outbox/a", reply(b"wrong"))
    with pytest.raises(HortatorConnectionError, match="damaged"):
        make(KEY, fake.url, max_retries=1).tasks.get("t1").download("outbox/a", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["../evil", "/etc/passwd", "outbox/../../evil", "a/\0b", "", "outbox/", "..\\evil"])
def test_a_file_cannot_leave_the_folder(fake: Fake, task: Any, tmp_path: Path, path: str) -> None:
    offer(fake, [{"path": path, "bytes": 1, "task_id": "t1"}])
    with pytest.raises(HortatorError):
        task.download(to=tmp_path / "out")
    assert list(tmp_path.rglob("*")) == []


def test_two_files_of_one_path_are_both_kept(fake: Fake, task: Any, tmp_path: Path) -> None:
    listed = [*files(**{"outbox/a.md": b"one"}), {"path": "outbox/a.md", "bytes": 3, "task_id": "t2"}]
    offer(fake, listed)
    fake.on(f"{ONE}/artifacts/outbox/a.md", reply(b"one"))
    fake.on(f"{TASKS}/t2/artifacts/outbox/a.md", reply(b"two"))
    assert [place.read_bytes() for place in task.download(to=tmp_path)] == [b"one", b"two"]


def test_a_stream_can_be_read_while_the_task_is_cancelled_from_another_thread(fake: Fake, task: Any) -> None:
    go = threading.Event()

    def waiting(_: Asked) -> Iterator[bytes]:
        pieces = stream(event(1), event(2, "cancelled"))
        yield next(pieces)
        yield next(pieces)
        go.wait(20)
        yield from pieces

    def cancelled(_: Asked) -> list[bytes]:
        go.set()
        return reply({**RUNNING, "status": "Cancelled"})

    fake.on(f"{ONE}/events", waiting)
    fake.on(f"{ONE}/cancel", cancelled)
    events = iter(task.stream())
    assert next(events).seq == 1
    assert task.cancel().status == "Cancelled"
    assert [each.type for each in events] == ["cancelled"]
