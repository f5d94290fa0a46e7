"""Tasks through a real server, with a scripted model that plans, works and writes: their whole life, and what can come between."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from hortator.wire.events import ENDS
from hortator.wire.tasks import TERMINAL
from tests.door import Connection, Door, Reply, head
from tests.gateway import MODEL, Gateway, eventually, running_gateway
from tests.journeys.test_admin import Admin, admin_port
from tests.upstream.process import Upstream

TASKS, WHOLE = "/api/v1/tasks", "/api/v1/orchestrations"
PARTS = 3
CALL = Decimal("0.00016")
"""What each call costs: 100 tokens of input at 1 dollar a million, 20 of output at 3."""


def settings(folder: Path) -> dict[str, Any]:
    """Of a gateway whose agents ask one priced model."""
    (folder / "prices.yaml").write_text('one: {"*": {input: "1", output: "3"}}\n')
    return {
        "ledger": {"price_overrides": str(folder / "prices.yaml")},
        "orchestration": {"models": dict.fromkeys(("tribune", "centurion", "legionary"), MODEL)},
        "server": {"max_body_bytes": 1_000_000},
    }


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("prices")
    with running_gateway(tmp_path_factory.mktemp("office"), upstream, **settings(folder)) as running:
        yield running


class Client:
    """The task API as one key sees it."""

    def __init__(self, door: Door) -> None:
        self.door = door

    def ok(self, method: str, path: str, body: Any = None, status: int = 200, **headers: str) -> Any:
        content = None if body is None else json.dumps(body).encode()
        reply = self.door.call(method, path, content, **headers)
        assert reply.status == status, (reply.status, reply.body)
        return reply.json

    def refused(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        content = None if body is None else json.dumps(body).encode()
        reply = self.door.call(method, path, content, **headers)
        return reply.status, reply.error["code"]

    def ended(self, id: str) -> Any:
        """The task once it has ended."""

        def look() -> Any:
            task = self.ok("GET", f"{TASKS}/{id}?wait=20")
            return task if task["status"] in TERMINAL else None

        return eventually(look, f"the end of {id}")

    def log(self, id: str) -> list[Any]:
        """The whole log, in pages."""
        found: list[Any] = []
        while True:
            after = found[-1]["seq"] if found else 0
            page = self.ok("GET", f"{TASKS}/{id}/events?stream=false&limit=7&after={after}")
            found += page["data"]
            if not page["has_more"]:
                return found

    @contextmanager
    def stream(self, id: str, query: str = "", **headers: str) -> Iterator[tuple[Reply, Iterator[Any]]]:
        """The events of a task as they come."""
        changes = {name.replace("_", "-"): value for name, value in headers.items()}
        path = f"{self.door.prefix}{TASKS}/{id}/events{query}"
        with Connection(self.door.port) as connection:
            connection.send(head("GET", path, self.door.headers(None, changes)))
            reply = connection.read_head()
            yield reply, (event for event in map(parsed, connection.blocks()) if event is not None)


def parsed(block: str) -> Any:
    """The event of a block, None for a comment."""
    if block.startswith(":"):
        return None
    if block.startswith("event: error\n"):
        return json.loads(block.partition("data: ")[2])
    id, name, data = block.split("\n")
    event = json.loads(data.removeprefix("data: "))
    assert (id, name) == (f"id: {event['seq']}", f"event: {event['type']}")
    return event


@pytest.fixture
def client(office: Gateway) -> Client:
    return Client(office.door)


def order(upstream: Upstream, *words: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    """An order that the scripted model knows by its mark."""
    mark = upstream.plan("team")
    text = " ".join((f"Compare ways to store sessions. [mark:{mark}] [parts:{PARTS}]", *words))
    return mark, {"prompt": text, "config": {"decomposition_strategy": "aggressive"}, **fields}


def test_a_task_lives_from_its_order_to_its_artifacts(office: Gateway, client: Client, upstream: Upstream) -> None:
    mark, body = order(upstream, type="code_review")
    files = [{"filename": "src/app.py", "content": "print('Salve!')\n"}]
    reply = client.door.call("POST", TASKS, json.dumps({**body, "files": files}).encode())
    made = reply.json
    id = made["id"]
    assert (reply.status, reply.header("location")) == (202, f"{TASKS}/{id}")
    assert reply.header("x-hortator-task-id") == id
    with client.stream(id) as (reply, events):
        assert reply.status == 200
        streamed = list(events)
    task = client.ended(id)
    assert (task["status"], task["progress_percent"], task["error"]) == ("Completed", 100, None), task
    assert (task["type"], task["depth"], task["parent_id"], task["source"]) == ("code_review", 0, None, "tasks")

    # One log, the same in every view.
    assert [event["seq"] for event in streamed] == list(range(1, len(streamed) + 1))
    assert client.log(id) == streamed
    types = [event["type"] for event in streamed]
    assert (types[0], types[-1]) == ("task_created", "completed")
    assert {"task_decomposed", "agent_spawned", "partial_result", "model_call"} <= set(types)

    # A tree of the root and its parts.
    children = client.ok("GET", f"{TASKS}/{id}/children")["data"]
    assert len(children) == PARTS
    assert {child["status"] for child in children} == {"Completed"}
    tree = client.ok("GET", f"{TASKS}/{id}/tree")
    assert [child["id"] for child in tree["children"]] == [child["id"] for child in children]
    assert client.ok("GET", f"{TASKS}/{children[0]['id']}")["parent_id"] == id

    # What it found.
    result = client.ok("GET", f"{TASKS}/{id}/result")
    assert result["results"] == task["results"]
    assert result["results"]["content"] == "The answer of the team, from part-1, part-2, part-3."
    listed = client.ok("GET", f"{TASKS}/{id}/artifacts")
    assert listed["files"] == result["artifacts"] != []
    contents = {}
    for file in listed["files"]:
        reply = client.door.call("GET", f"{TASKS}/{file['task_id']}/artifacts/{file['path']}")
        assert (hashlib.sha256(reply.body).hexdigest(), len(reply.body)) == (file["sha256"], file["bytes"])
        contents[file["path"].removeprefix("outbox/")] = reply.body
    archive = client.door.call("GET", f"{TASKS}/{id}/artifacts?download=tar")
    with tarfile.open(fileobj=io.BytesIO(archive.body)) as unpacked:
        found = {member.name: unpacked.extractfile(member).read() for member in unpacked}  # type: ignore[union-attr]
    own = {file["path"].removeprefix("outbox/") for file in listed["files"] if file["task_id"] == id}
    assert {name: found[name] for name in own} == {name: contents[name] for name in own}
    assert len(found) == len(listed["files"])

    # What it took: every call once, to the cent.
    calls = upstream.seen(mark)
    ledger = client.ok("GET", f"{TASKS}/{id}/ledger")
    assert sum(entry["kind"] == "model" for entry in ledger["entries"]) == len(calls)
    spent = sum(Decimal(entry["cost_usd"] or 0) for entry in ledger["entries"])
    assert spent == Decimal(ledger["total"]["cost_usd"]) == Decimal(task["cost_usd"]) == CALL * len(calls)
    assert ledger["total"]["input_tokens"] == task["usage"]["input_tokens"] == 100 * len(calls)
    assert ledger["total"]["output_tokens"] == task["usage"]["output_tokens"] == 20 * len(calls)
    asked = [entry["request_id"] for entry in ledger["entries"] if entry["kind"] == "model"]
    assert sum(Decimal(office.row(each)["cost"]) for each in asked) == spent * 10**10


def test_ten_posts_at_once_with_one_key_are_one_task(client: Client, upstream: Upstream) -> None:
    mark, body = order(upstream)
    content, key = json.dumps(body).encode(), f"build {uuid.uuid4()}"
    with ThreadPoolExecutor(10) as threads:
        posts = [threads.submit(client.door.call, "POST", TASKS, content, idempotency_key=key) for _ in range(10)]
        replies = [post.result() for post in posts]
    assert sorted(reply.status for reply in replies) == [200] * 9 + [202]
    [id] = {reply.json["id"] for reply in replies}
    assert client.ended(id)["status"] == "Completed"
    assert client.ok("POST", TASKS, body, 200, idempotency_key=key)["id"] == id
    other = client.refused("POST", TASKS, {**body, "prompt": "Another."}, idempotency_key=key)
    assert other == (409, "idempotency_key_reused")
    assert len(upstream.seen(mark)) == PARTS + 2


def test_a_stream_that_broke_goes_on_where_it_was(client: Client, upstream: Upstream) -> None:
    mark, body = order(upstream, "[hold]")
    id = client.ok("POST", TASKS, body, 202)["id"]
    seen = []
    with client.stream(id) as (_, events):
        for event in events:
            seen.append(event)
            if event["type"] == "agent_spawned":
                break
    upstream.wait(mark, count=PARTS + 1)
    with client.stream(id, "?after=0", last_event_id=str(seen[-1]["seq"])) as (_, events):
        upstream.release(mark, "work")
        for event in events:
            seen.append(event)
    assert [event["seq"] for event in seen] == list(range(1, len(seen) + 1))
    assert seen[-1]["type"] == "completed", "the client that hung up took nobody with it"
    assert client.log(id) == seen
    with client.stream(id, f"?after={seen[-1]['seq']}") as (reply, _):
        assert reply.status == 204
    with client.stream(id, "?level=default") as (_, events):
        assert [event["type"] for event in events] == ["task_created", "completed"]


def test_a_viewer_goes_on_behind_a_restart_of_the_server(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, upstream: Upstream
) -> None:
    with running_gateway(tmp_path_factory.mktemp("restarted"), upstream, **settings(tmp_path)) as gateway:
        client = Client(gateway.door)
        mark, body = order(upstream, "[hold]")
        id = client.ok("POST", TASKS, body, 202)["id"]
        with client.stream(id) as (_, events):
            seen = [next(events)]
            upstream.wait(mark, count=PARTS + 1)
            gateway.terminate()
            seen += events
        assert seen.pop()["error"]["code"] == "draining", "views are not waited for"
        assert gateway.wait() == 0
        gateway.start()
        upstream.release(mark, "work")
        with client.stream(id, last_event_id=str(seen[-1]["seq"])) as (_, events):
            seen += events
        assert [event["seq"] for event in seen] == list(range(1, len(seen) + 1))
        assert seen[-1]["type"] == "completed"
        assert client.log(id) == seen


def test_cancelling_ends_every_call(client: Client, upstream: Upstream) -> None:
    mark, body = order(upstream, "[hold]")
    id = client.ok("POST", TASKS, body, 202)["id"]
    upstream.wait(mark, count=PARTS + 1)
    assert client.refused("GET", f"{TASKS}/{id}/result") == (409, "task_not_terminal")
    assert client.ok("POST", f"{TASKS}/{id}/cancel")["status"] == "Cancelled"
    upstream.wait(mark, "aborted", PARTS)
    with client.stream(id) as (_, events):
        types = [event["type"] for event in events]
    assert types[-1] == "cancelled"
    assert ENDS & set(types[:-1]) == set()
    tree = client.ok("GET", f"{WHOLE}/{id}/tree")
    assert tree["tasks"] == {"Cancelled": PARTS + 1}
    result = client.ok("GET", f"{TASKS}/{id}/result")
    assert (result["status"], result["error"]["code"]) == ("Cancelled", "task_cancelled")
    assert client.ok("POST", f"{TASKS}/{id}/cancel")["status"] == "Cancelled"
    assert client.refused("POST", f"{TASKS}/{id}/messages", {"content": "Stop."}) == (409, "task_not_running")


def test_a_message_reaches_the_log_of_a_running_task(client: Client, upstream: Upstream) -> None:
    mark, body = order(upstream, "[hold]")
    id = client.ok("POST", TASKS, body, 202)["id"]
    upstream.wait(mark, count=PARTS + 1)
    event = client.ok("POST", f"{TASKS}/{id}/messages", {"content": "Be brief."}, 202)
    assert (event["type"], event["content"]) == ("user_message", "Be brief.")
    upstream.release(mark, "work")
    client.ended(id)
    assert event in client.log(id)


def test_another_tenant_sees_nothing(office: Gateway, client: Client, upstream: Upstream) -> None:
    office.command("tenants", "create", "--config", str(office.config), "--name", "Others", "--namespace", "others")
    other = Client(Door(office.port, office.new_key("other", "--tenant", "others")))
    _, body = order(upstream)
    id = client.ok("POST", TASKS, body, 202)["id"]
    task = client.ended(id)
    file = client.ok("GET", f"{TASKS}/{id}/artifacts")["files"][0]["path"]
    reads = (
        "",
        "/children",
        "/tree",
        "/result",
        "/artifacts",
        f"/artifacts/{file}",
        "/events",
        "/ledger",
        "/deliveries",
    )
    for below in reads:
        assert other.refused("GET", f"{TASKS}/{id}{below}") == (404, "task_not_found")
        assert other.refused("GET", f"{WHOLE}/{id}{below}") == (404, "task_not_found")
    assert other.refused("POST", f"{TASKS}/{id}/cancel") == (404, "task_not_found")
    assert other.refused("POST", f"{TASKS}/{id}/messages", {"content": "x"}) == (404, "task_not_found")
    assert other.ok("GET", f"{TASKS}?all=true")["data"] == []
    assert other.ok("GET", f"{TASKS}?after={id}")["data"] == []
    assert client.ok("GET", f"{TASKS}/{id}") == task


def test_lists_have_pages_and_filters(client: Client, upstream: Upstream) -> None:
    ids = []
    for kind in ("alpha", "beta", "alpha"):
        _, body = order(upstream, type=kind)
        ids.append(client.ok("POST", TASKS, body, 202)["id"])
    for id in ids:
        client.ended(id)
    first = client.ok("GET", f"{TASKS}?limit=2")
    assert ([each["id"] for each in first["data"]], first["has_more"]) == ([ids[2], ids[1]], True)
    second = client.ok("GET", f"{TASKS}?limit=1&after={first['last_id']}")
    assert [each["id"] for each in second["data"]] == [ids[0]]
    alpha = client.ok("GET", f"{TASKS}?type=alpha&status=Completed")
    assert [each["id"] for each in alpha["data"]] == [ids[2], ids[0]]
    everything = client.ok("GET", f"{TASKS}?all=true&limit=100")["data"]
    assert [each["root_id"] for each in everything].count(ids[2]) == 1 + PARTS
    whole = client.ok("GET", f"{WHOLE}?type=beta")["data"]
    assert [(each["object"], each["id"], each["tasks"]) for each in whole] == [
        ("orchestration", ids[1], {"Completed": 1 + PARTS})
    ]
    assert client.ok("GET", f"{TASKS}?status=Failed&type=alpha")["data"] == []


def test_an_orchestration_runs_the_pattern_it_names(client: Client, upstream: Upstream) -> None:
    said: dict[str, dict[str, Any]] = {
        "workers": {"worker_model": MODEL, "orchestrator_model": MODEL},
        "optimize": {"generator_model": MODEL, "evaluator_model": MODEL, "quality_threshold": 8.5, "max_iterations": 3},
    }
    data = {}
    for pattern, fields in said.items():
        _, body = order(upstream, "[score:6,9]", pattern=pattern)
        body.pop("config")
        made = client.ok("POST", WHOLE, {**body, **fields}, 202)
        assert (made["object"], made["pattern"], made["source"]) == ("orchestration", pattern, "orchestrations")
        ended = client.ended(made["id"])
        assert ended["status"] == "Completed", (pattern, ended["error"])
        found = client.ok("GET", f"{WHOLE}/{made['id']}/tree")
        assert sum(found["tasks"].values()) == 1 + len(found["children"])
        data[pattern] = ended["results"]["data"]
    assert set(data["workers"]["task_results"]) == {"part-1", "part-2", "part-3"}
    assert (data["optimize"]["final_score"], data["optimize"]["iterations"]) == (9, 2)


def test_an_orchestration_asks_requests_at_once(client: Client, upstream: Upstream) -> None:
    marks = [upstream.plan("team") for _ in range(3)]
    asked = [{"prompt": f"Salve! [mark:{mark}]", "model": MODEL} for mark in marks]
    made = client.ok("POST", WHOLE, {"pattern": "parallel", "requests": asked}, 202)
    assert client.ended(made["id"])["results"]["data"]["successful"] == 3
    assert [len(upstream.seen(mark)) for mark in marks] == [1, 1, 1]


def test_a_bad_order_is_refused_before_anything_happens(client: Client) -> None:
    for body, code in (
        ({}, "missing_required_parameter"),
        ({"prompt": "x", "promt": "y"}, "unknown_parameter"),
        ({"prompt": "x", "role": "no-such-role"}, "unknown_role"),
        ({"prompt": "x", "config": {"max_agents": 1000}}, "invalid_value"),
        ({"prompt": "x", "config": {"model": "hortator/default"}}, "invalid_value"),
        ({"prompt": "x", "files": [{"filename": "../a", "content": ""}]}, "invalid_file_path"),
    ):
        assert client.refused("POST", TASKS, body) == (400, code)
    unknown = client.door.call("POST", TASKS, b'{"prompt": "x", "config": {"models": {"tribune": "no-such"}}}')
    assert (unknown.status, unknown.error["code"], unknown.error["param"]) == (
        404,
        "model_not_found",
        "config.models.tribune",
    )
    inside = client.door.call("POST", TASKS, json.dumps({"prompt": "x", "callback_url": "http://127.0.0.1/"}).encode())
    assert (inside.error["code"], inside.error["param"]) == ("url_not_allowed", "callback_url")
    assert client.door.call("POST", TASKS, b"{", content_type="text/plain").status == 415
    assert client.door.call("POST", TASKS, b"x" * 1_000_001).status == 413
    assert client.door.call("POST", TASKS, b"{}", authorization=None).status == 401


def test_operators_see_what_became_of_tasks(office: Gateway, client: Client, upstream: Upstream) -> None:
    admin = Admin(admin_port(office))

    def completed() -> float:
        page = admin.call("/metrics").body.decode()
        found = re.search(r'^hortator_tasks_total\{phase="Completed"\} (\d+)$', page, re.MULTILINE)
        assert found is not None
        return float(found.group(1))

    before = completed()
    _, body = order(upstream)
    client.ended(client.ok("POST", TASKS, body, 202)["id"])
    assert completed() == before + 1
