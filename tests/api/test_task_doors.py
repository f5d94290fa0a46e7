"""The doors of tasks and orchestrations in front of a room in memory: routes, forms, streams and archives, request by request."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx2
import pytest

from hortator.api import task_events
from hortator.api.orchestrations import OrchestrationsDoor
from hortator.api.task_door import TaskDoor
from hortator.api.task_events import Views
from hortator.api.tasks import TasksDoor
from hortator.call import Caller, KeyHash, TenantId
from hortator.errors import NotFound, Unauthenticated
from tests.api.fake_teams import FakeTeams, step
from tests.eventually import eventually

TASKS, WHOLE = "/api/v1/tasks", "/api/v1/orchestrations"
PREFIX = "/legal"
CALLERS = {
    name.encode(): Caller(tenant_id=TenantId(f"tenant-{name}"), key_hash=KeyHash(name), key_name=name)
    for name in ("ours", "theirs")
}
OURS = CALLERS[b"ours"]
DO = {"prompt": "Compare three ways."}


async def admit(token: bytes) -> Caller:
    if token not in CALLERS:
        raise Unauthenticated("No such key.")
    return CALLERS[token]


class Sent:
    """Deliveries of a test."""

    async def page(self, caller: Caller, task_id: str) -> list[Any]:
        return []

    async def redeliver(self, caller: Caller, task_id: str, delivery_id: str) -> dict[str, str]:
        if delivery_id != "known":
            raise NotFound("There is no such delivery.", code="delivery_not_found")
        return {"id": delivery_id}


class House(NamedTuple):
    """A room, its doors, and a client."""

    teams: FakeTeams
    client: httpx2.AsyncClient
    app: Callable[..., Awaitable[None]]
    views: Views

    async def ok(self, method: str, path: str, body: Any = None, status: int = 200, **headers: str) -> Any:
        reply = await self.client.request(method, path, json=body, headers=headers)
        assert reply.status_code == status, reply.text
        return reply.json()

    async def refused(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str, str | None]:
        reply = await self.client.request(method, path, json=body, headers=headers)
        error = reply.json()["error"]
        return reply.status_code, error["code"], error["param"]


@pytest.fixture
async def house() -> AsyncIterator[House]:
    teams, views = FakeTeams(), Views()
    kinds: tuple[type[TaskDoor], ...] = (TasksDoor, OrchestrationsDoor)
    doors = {kind.path: kind(admit, teams, 100_000, root_path=PREFIX, deliveries=Sent(), views=views) for kind in kinds}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        [door] = [door for path, door in doors.items() if scope["path"].startswith(path)]
        await door(scope, receive, send, scope["path"])

    transport = httpx2.ASGITransport(app)
    authorization = {"authorization": "Bearer ours"}
    async with httpx2.AsyncClient(transport=transport, base_url="http://test", headers=authorization) as client:
        yield House(teams, client, app, views)


class Stream:
    """A request whose reply is read piece by piece, and whose client can hang up or stop reading."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.blocks: list[str] = []
        self.ended = False
        self.leaves_at_end = False
        self.stops_at_head = False
        self.work: asyncio.Future[None] | None = None
        self.reading = asyncio.Event()
        self.reading.set()
        self._gone = asyncio.Event()
        self._first = True

    async def receive(self) -> MutableMapping[str, Any]:
        if self._first:
            self._first = False
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        await self.reading.wait()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            if self.stops_at_head:
                self.reading.clear()
            return
        self.blocks += [block for block in message.get("body", b"").decode().split("\n\n") if block]
        self.ended = not message.get("more_body", False)
        if self.ended and self.leaves_at_end:
            self.hang_up()

    def hang_up(self) -> None:
        self._gone.set()

    @property
    def seqs(self) -> list[int]:
        return [int(block.split("\n")[0][4:]) for block in self.blocks if block.startswith("id: ")]


@asynccontextmanager
async def streamed(house: House, path: str, query: str = "", **headers: str) -> AsyncIterator[Stream]:
    stream = Stream()
    given = {"authorization": "Bearer ours", **headers}
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()],
    }
    work = stream.work = asyncio.ensure_future(house.app(scope, stream.receive, stream.send))
    try:
        yield stream
    finally:
        stream.hang_up()
        stream.reading.set()
        await work


async def test_an_order_becomes_a_task_and_its_address_has_the_prefix(house: House) -> None:
    reply = await house.client.post(TASKS, json={"task_type": "code_review", "role": "coding-expert", **DO})
    task = reply.json()
    assert reply.status_code == 202
    assert reply.headers["location"] == f"/legal/api/v1/tasks/{task['id']}"
    assert reply.headers["x-hortator-task-id"] == task["task_id"] == task["id"] == task["root_id"]
    assert (task["object"], task["status"], task["source"]) == ("task", "Running", "tasks")
    [order] = house.teams.orders
    assert (order.task_type, order.model, order.source) == ("code_review", "hortator/coding-expert", "tasks")
    assert await house.ok("GET", f"{TASKS}/{task['id']}") == task


async def test_an_orchestration_says_its_pattern_and_counts_its_tasks(house: House) -> None:
    found = await house.ok("POST", WHOLE, {"pattern": "workers", "worker_model": "one/small", **DO}, 202)
    [order] = house.teams.orders
    assert (order.pattern, dict(order.arguments), order.source) == (
        "workers",
        {"worker_model": "one/small"},
        "orchestrations",
    )
    house.teams.child(house.teams.tasks[found["id"]], status="Completed")
    found = await house.ok("GET", f"{WHOLE}/{found['id']}")
    assert (found["object"], found["tasks"]) == ("orchestration", {"Completed": 1, "Running": 1})


async def test_a_form_brings_an_order_and_files_in_any_order(house: House) -> None:
    files = [
        ("file", ("src/app.py", b"\0\xff" * 500, "text/x-python")),
        ("task", (None, json.dumps({"task_type": "code_review"}), "application/json")),
        ("whatever", ("README", b"", "text/plain")),
    ]
    reply = await house.client.post(TASKS, files=files)  # type: ignore[arg-type]
    assert reply.status_code == 202, reply.text
    [order] = house.teams.orders
    assert [(file.path, file.content) for file in order.files] == [("src/app.py", b"\0\xff" * 500), ("README", b"")]


@pytest.mark.parametrize(
    ("files", "status", "code", "param"),
    [
        ([("file", ("a", b"1"))], 400, "missing_required_parameter", "task"),
        ([("task", (None, "{")), ("file", ("a", b"1"))], 400, "invalid_json", None),
        ([("task", (None, "{}")), ("task", (None, "{}"))], 400, "invalid_form", "task"),
        ([("task", (None, '{"prompt": "x"}')), ("colour", (None, "red"))], 400, "unknown_parameter", "colour"),
        ([("task", (None, '{"prompt": "x"}')), ("f", ("../a", b"1"))], 400, "invalid_file_path", "files[0].filename"),
        ([("task", (None, '{"prompt": "x"}')), ("f", ("a", b"1" * 100_001))], 413, "request_too_large", None),
        ([("task", (None, '{"prompt": "x"}')), *[("f", ("a", b""))] * 2], 400, "invalid_file_path", "files"),
    ],
)
async def test_a_bad_form_is_refused(house: House, files: Any, status: int, code: str, param: str | None) -> None:
    reply = await house.client.post(TASKS, files=files)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (status, code, param)
    assert house.teams.orders == []


async def test_ten_posts_at_once_with_one_key_are_one_task(house: House) -> None:
    key = {"idempotency-key": "build 7 / a"}
    replies = await asyncio.gather(*(house.client.post(TASKS, json=DO, headers=key) for _ in range(10)))
    assert sorted(reply.status_code for reply in replies) == [200] * 9 + [202]
    assert len({reply.json()["id"] for reply in replies}) == len(house.teams.tasks) == 1
    other = await house.refused("POST", TASKS, {"prompt": "Another."}, **key)
    assert other == (409, "idempotency_key_reused", None)


@pytest.mark.parametrize("key", ["", " a", "a" * 256, "a\tb"])
async def test_a_bad_idempotency_key_is_refused(house: House, key: str) -> None:
    status, code, param = await house.refused("POST", TASKS, DO, **{"idempotency-key": key})
    assert (status, code, param) == (400, "invalid_value", "Idempotency-Key")


async def test_lists_are_paged_newest_first_and_filtered(house: House) -> None:
    roots = [house.teams.root(OURS, str(uuid.uuid4())) for _ in range(5)]
    child = house.teams.child(roots[0], status="Completed")
    house.teams.root(CALLERS[b"theirs"], str(uuid.uuid4()))
    wanted = [task.id for task in reversed(roots)]
    first = await house.ok("GET", f"{TASKS}?limit=2")
    assert ([each["id"] for each in first["data"]], first["has_more"]) == (wanted[:2], True)
    assert (first["object"], first["first_id"], first["last_id"]) == ("list", wanted[0], wanted[1])
    rest = await house.ok("GET", f"{TASKS}?after={first['last_id']}")
    assert ([each["id"] for each in rest["data"]], rest["has_more"]) == (wanted[2:], False)
    ended = await house.ok("GET", f"{TASKS}?all=true&status=Completed")
    assert [each["id"] for each in ended["data"]] == [child.id]
    assert len((await house.ok("GET", WHOLE))["data"]) == 5


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ("limit=0", "invalid_value", "limit"),
        ("limit=101", "invalid_value", "limit"),
        ("status=Done", "invalid_value", "status"),
        ("pattern=swarm", "invalid_value", "pattern"),
        ("all=yes", "invalid_value", "all"),
        ("after=me", "invalid_value", "after"),
        ("colour=red", "unknown_parameter", "colour"),
        ("limit=1&limit=2", "invalid_value", None),
    ],
)
async def test_a_bad_query_is_refused(house: House, query: str, code: str, param: str | None) -> None:
    assert await house.refused("GET", f"{TASKS}?{query}") == (400, code, param)


BELOW = ["", "/children", "/tree", "/result", "/artifacts", "/artifacts/a", "/events", "/ledger", "/deliveries"]


async def test_each_address_has_its_methods(house: House) -> None:
    id = house.teams.root(OURS, str(uuid.uuid4())).id
    allowed = {f"/{id}{below}": "GET, HEAD" for below in BELOW}
    allowed |= {f"/{id}/{name}": "POST" for name in ("cancel", "messages", "deliveries/known/redeliver")}
    allowed[""] = "GET, HEAD, POST"
    for path, methods in allowed.items():
        for door in (TASKS, WHOLE):
            reply = await house.client.request("PATCH", door + path)
            assert (reply.status_code, reply.headers["allow"]) == (405, methods), path
    for path in ("/", f"/{id}/", f"/{id}/nothing", f"/{id}/cancel/now", f"/{id}/deliveries/known", f"/{id}/tree/x"):
        assert (await house.refused("GET", TASKS + path))[:2] == (404, "unknown_url"), path


async def test_nobody_sees_another_tenants_task(house: House) -> None:
    theirs = house.teams.root(CALLERS[b"theirs"], str(uuid.uuid4())).id
    for id in (theirs, str(uuid.uuid4()), "nothing"):
        for below in BELOW:
            assert await house.refused("GET", f"{TASKS}/{id}{below}") == (404, "task_not_found", None)
        for name, body in (("cancel", None), ("messages", {"content": "x"}), ("deliveries/known/redeliver", None)):
            assert await house.refused("POST", f"{TASKS}/{id}/{name}", body) == (404, "task_not_found", None)
    assert (await house.refused("GET", TASKS, None, authorization="Bearer nobody"))[0] == 401


async def test_a_task_below_a_root_is_no_orchestration(house: House) -> None:
    child = house.teams.child(house.teams.root(OURS, str(uuid.uuid4())))
    for below in BELOW:
        assert await house.refused("GET", f"{WHOLE}/{child.id}{below}") == (404, "task_not_found", None)
    for name in ("cancel", "messages"):
        assert (await house.refused("POST", f"{WHOLE}/{child.id}/{name}", {"content": "x"}))[0] == 404
    assert (await house.ok("GET", f"{TASKS}/{child.id}"))["parent_id"] == child.parent_task_id


async def test_children_and_tree_show_what_is_below(house: House) -> None:
    root = house.teams.root(OURS, str(uuid.uuid4()))
    second = house.teams.child(root, position=1, name="second")
    first = house.teams.child(root, position=0, name="first")
    leaf = house.teams.child(second, name="leaf")
    children = await house.ok("GET", f"{TASKS}/{root.id}/children")
    assert [each["id"] for each in children["data"]] == [first.id, second.id]
    tree = await house.ok("GET", f"{WHOLE}/{root.id}/tree")
    assert [each["name"] for each in tree["children"]] == ["first", "second"]
    assert [each["id"] for each in tree["children"][1]["children"]] == [leaf.id]
    assert tree["tasks"] == {"Running": 4}


async def test_a_client_may_wait_for_the_end(house: House) -> None:
    id = house.teams.root(OURS, str(uuid.uuid4()), results={"summary": "Done."}).id
    assert await house.refused("GET", f"{TASKS}/{id}/result") == (409, "task_not_terminal", None)
    waiting = asyncio.create_task(house.ok("GET", f"{TASKS}/{id}/result?wait=30"))
    whole = asyncio.create_task(house.ok("GET", f"{TASKS}/{id}?wait=30"))
    await house.teams.tell(id, "completed")
    async with asyncio.timeout(10):
        assert await waiting == {
            "task_id": id,
            "status": "Completed",
            "results": {"summary": "Done."},
            "error": None,
            "artifacts": [],
        }
        assert (await whole)["status"] == "Completed"
    for wait in ("61", "-1", "soon"):
        assert await house.refused("GET", f"{TASKS}/{id}?wait={wait}") == (400, "invalid_value", "wait")


async def test_a_task_is_cancelled_once_and_stays_as_it_ended(house: House) -> None:
    id = house.teams.root(OURS, str(uuid.uuid4())).id
    assert (await house.ok("POST", f"{TASKS}/{id}/cancel"))["status"] == "Cancelled"
    assert (await house.ok("POST", f"{WHOLE}/{id}/cancel"))["status"] == "Cancelled"
    assert await house.refused("POST", f"{TASKS}/{id}/messages", {"content": "x"}) == (409, "task_not_running", None)


async def test_a_message_is_an_event(house: House) -> None:
    id = house.teams.root(OURS, str(uuid.uuid4())).id
    event = await house.ok("POST", f"{TASKS}/{id}/messages", {"content": "Be brief."}, 202)
    assert (event["seq"], event["type"], event["content"], event["task_id"]) == (1, "user_message", "Be brief.", id)
    for body, code in (
        ({}, "missing_required_parameter"),
        ({"content": ""}, "invalid_value"),
        ({"content": "\0"}, "invalid_value"),
        ({"content": "x", "more": 1}, "unknown_parameter"),
    ):
        assert (await house.refused("POST", f"{TASKS}/{id}/messages", body))[:2] == (400, code)


async def test_the_ledger_is_of_the_task_and_all_below(house: House) -> None:
    root = house.teams.root(OURS, str(uuid.uuid4()), name="root")
    child = house.teams.child(root, name="child")
    house.teams.done = [
        step(root, "plan", "0.1", 5),
        step(child, "turn.1", "0.0000000002", 7),
        step(child, "turn.2", None, 1),
    ]
    found = await house.ok("GET", f"{TASKS}/{root.id}/ledger")
    assert found["total"] == {"input_tokens": 13, "output_tokens": 0, "cost_usd": "0.1000000002"}
    assert [(entry["task"], entry["cost_usd"]) for entry in found["entries"]] == [
        ("root", "0.1"),
        ("child", "0.0000000002"),
        ("child", None),
    ]
    assert (await house.ok("GET", f"{TASKS}/{child.id}/ledger"))["total"]["cost_usd"] == "0.0000000002"


async def test_deliveries_can_be_sent_again(house: House) -> None:
    id = house.teams.root(OURS, str(uuid.uuid4())).id
    assert (await house.ok("GET", f"{TASKS}/{id}/deliveries"))["data"] == []
    assert await house.ok("POST", f"{TASKS}/{id}/deliveries/known/redeliver") == {"id": "known"}
    refused = await house.refused("POST", f"{TASKS}/{id}/deliveries/other/redeliver")
    assert refused == (404, "delivery_not_found", None)


async def test_artifacts_are_listed_and_given_to_be_saved(house: House) -> None:
    root = house.teams.root(OURS, str(uuid.uuid4()))
    child = house.teams.child(root)
    house.teams.kept = {
        (root.id, "inbox/secret.txt"): b"given",
        (root.id, "outbox/bericht für alle.html"): b"<script>",
        (child.id, "outbox/data.csv"): b"1,2",
    }
    found = await house.ok("GET", f"{TASKS}/{root.id}/artifacts")
    assert (found["task_id"], found["phase"]) == (root.id, "Running")
    assert [(file["path"], file["task_id"]) for file in found["files"]] == [
        ("outbox/bericht für alle.html", root.id),
        ("outbox/data.csv", child.id),
    ]
    for path in ("outbox/bericht für alle.html", "bericht%20f%C3%BCr%20alle.html"):
        reply = await house.client.get(f"{TASKS}/{root.id}/artifacts/{path}")
        assert (reply.status_code, reply.content) == (200, b"<script>")
        assert reply.headers["content-type"] == "application/octet-stream"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["content-disposition"] == (
            "attachment; filename=\"bericht f_r alle.html\"; filename*=UTF-8''bericht%20f%C3%BCr%20alle.html"
        )
    for path in ("inbox/secret.txt", "%2e%2e/inbox/secret.txt", "", "%00", "outbox/"):
        refused = await house.refused("GET", f"{TASKS}/{root.id}/artifacts/{path}")
        assert refused == (404, "artifact_not_found", None), path
    assert await house.refused("GET", f"{TASKS}/{root.id}/artifacts?download=zip") == (400, "invalid_value", "download")


async def test_an_archive_is_safe_and_the_same_every_time(house: House) -> None:
    root = house.teams.root(OURS, str(uuid.uuid4()))
    child = house.teams.child(root)
    house.teams.kept = {
        (root.id, "outbox/../../etc/passwd"): b"a" * 1000,
        (root.id, "outbox//x\\..\\y"): b"",
        (root.id, "outbox/" + "länge/" * 60 + "z"): b"long",
        (child.id, "outbox/data.csv"): b"1,2",
    }
    reply = await house.client.get(f"{TASKS}/{root.id}/artifacts?download=tar")
    assert reply.headers["content-type"] == "application/x-tar"
    assert f'filename="{root.id}-artifacts.tar"' in reply.headers["content-disposition"]
    again = await house.client.get(f"{TASKS}/{root.id}/artifacts?download=tar")
    assert again.content == reply.content
    with tarfile.open(fileobj=io.BytesIO(reply.content)) as archive:
        found = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    assert found == {
        "etc/passwd": b"a" * 1000,
        "x_.._y": b"",
        "länge/" * 60 + "z": b"long",
        f"{child.id}/data.csv": b"1,2",
    }


async def test_a_client_that_leaves_an_archive_has_no_more_of_it_read(house: House) -> None:
    root = house.teams.root(OURS, str(uuid.uuid4()))
    house.teams.kept = {(root.id, f"outbox/{name}"): b"1" for name in "abc"}
    async with streamed(house, f"{TASKS}/{root.id}/artifacts", "download=tar") as stream:
        stream.stops_at_head = True
        await eventually(lambda: house.teams.given == 1)
        stream.hang_up()
        await eventually(lambda: stream.work is not None and stream.work.done())
    assert (stream.status, house.teams.given, stream.ended) == (200, 1, False)


async def test_a_stream_has_the_log_then_what_comes_then_ends(house: House) -> None:
    id = house.teams.root(OURS, str(uuid.uuid4())).id
    await house.teams.tell(id, "task_created", "task_started")
    async with streamed(house, f"{TASKS}/{id}/events") as stream:
        await eventually(lambda: stream.seqs == [1, 2])
        assert (stream.status, stream.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        await house.teams.tell(id, "progress", "completed", message="50 %")
        await eventually(lambda: stream.ended)
    assert stream.seqs == [1, 2, 3, 4]
    block = stream.blocks[-1].split("\n")
    assert block[:2] == ["id: 4", "event: completed"]
    assert json.loads(block[2].removeprefix("data: "))["seq"] == 4
    assert house.teams.views == 0


async def test_a_stream_is_resumed_without_a_gap_or_a_duplicate(house: House) -> None:
    id = house.teams.root(OURS, str(uuid.uuid4())).id
    await house.teams.tell(id, *["progress"] * 6)
    seen: list[int] = []
    async with streamed(house, f"{TASKS}/{id}/events") as stream:
        await eventually(lambda: len(stream.seqs) == 6)
        seen += stream.seqs[:4]
    async with streamed(house, f"{TASKS}/{id}/events", "after=1", last_event_id="4") as stream:
        await house.teams.tell(id, "progress", "completed")
        await eventually(lambda: stream.ended)
        seen += stream.seqs
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8]
    async with streamed(house, f"{TASKS}/{id}/events", last_event_id="8") as stream:
        await eventually(lambda: stream.ended)
    assert (stream.status, stream.blocks) == (204, [])


async def test_a_client_that_hangs_up_ends_its_view_only(house: House) -> None:
    id = house.teams.root(OURS, str(uuid.uuid4())).id
    async with streamed(house, f"{TASKS}/{id}/events") as stays:
        async with streamed(house, f"{TASKS}/{id}/events") as leaves:
            await eventually(lambda: house.teams.views == 2 and leaves.status == 200)
            leaves.hang_up()
            await eventually(lambda: house.teams.views == 1)
        await house.teams.tell(id, "completed")
        await eventually(lambda: stays.ended)
    assert (stays.seqs, leaves.seqs, leaves.ended) == ([1], [], False)


async def test_a_client_that_hangs_up_at_the_end_breaks_nothing(house: House) -> None:
    id = house.teams.root(OURS, str(uuid.uuid4())).id
    async with streamed(house, f"{TASKS}/{id}/events") as stream:
        stream.leaves_at_end = True
        await house.teams.tell(id, "completed")
        await eventually(lambda: stream.ended)
    assert (stream.seqs, house.teams.views) == ([1], 0)


async def test_a_quiet_stream_is_kept_alive(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    assert task_events.QUIET_SECONDS == 15
    monkeypatch.setattr(task_events, "QUIET_SECONDS", 0.05)
    id = house.teams.root(OURS, str(uuid.uuid4())).id
    async with streamed(house, f"{TASKS}/{id}/events") as stream:
        await eventually(lambda: stream.blocks.count(": keep-alive") >= 2)
        await house.teams.tell(id, "completed")
        await eventually(lambda: stream.ended)
    assert stream.seqs == [1]


async def test_a_client_that_does_not_read_loses_its_view(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_events, "STALL_SECONDS", 0.05)
    id = house.teams.root(OURS, str(uuid.uuid4())).id
    async with streamed(house, f"{TASKS}/{id}/events") as stream:
        await eventually(lambda: stream.status == 200)
        stream.reading.clear()
        await house.teams.tell(id, "progress")
        await eventually(lambda: house.teams.views == 0)
    assert (stream.seqs, stream.ended) == ([], False)


async def test_a_server_that_stops_says_so_and_the_client_resumes(house: House) -> None:
    id = house.teams.root(OURS, str(uuid.uuid4())).id
    await house.teams.tell(id, "progress")
    async with streamed(house, f"{TASKS}/{id}/events") as stream:
        await eventually(lambda: stream.seqs == [1])
        waiting = asyncio.create_task(house.refused("GET", f"{TASKS}/{id}?wait=60"))
        await eventually(lambda: house.views.open == 2)
        house.views.close()
        await eventually(lambda: stream.ended)
        assert (await waiting)[:2] == (503, "draining")
    name, data = stream.blocks[-1].split("\n")
    assert (name, json.loads(data[6:])["error"]["code"]) == ("event: error", "draining")
    assert house.teams.views == 0


async def test_levels_hide_what_a_viewer_did_not_ask_for(house: House) -> None:
    id = house.teams.root(OURS, str(uuid.uuid4())).id
    await house.teams.tell(id, "task_created", "agent_started", "progress", "completed")
    for level, wanted in (("default", [1, 4]), ("verbose", [1, 3, 4]), ("full", [1, 2, 3, 4])):
        async with streamed(house, f"{TASKS}/{id}/events", f"level={level}") as stream:
            await eventually(lambda: stream.ended)
        assert stream.seqs == wanted
        listed = await house.ok("GET", f"{TASKS}/{id}/events?stream=false&level={level}")
        assert ([event["seq"] for event in listed["data"]], listed["last_seq"]) == (wanted, 4)


async def test_a_list_of_events_has_pages(house: House) -> None:
    id = house.teams.root(OURS, str(uuid.uuid4())).id
    await house.teams.tell(id, *["agent_started"] * 5)
    first = await house.ok("GET", f"{TASKS}/{id}/events?stream=false&limit=3")
    assert ([event["seq"] for event in first["data"]], first["has_more"]) == ([1, 2, 3], True)
    rest = await house.ok("GET", f"{TASKS}/{id}/events?stream=false&limit=3&after={first['last_seq']}&level=verbose")
    assert (rest["data"], rest["last_seq"], rest["has_more"]) == ([], 5, False)


async def test_events_that_are_not_kept_are_gone(house: House) -> None:
    id = house.teams.root(OURS, str(uuid.uuid4())).id
    house.teams.floor = 5
    assert await house.refused("GET", f"{TASKS}/{id}/events?after=2") == (410, "events_expired", None)


@pytest.mark.parametrize(
    ("query", "headers", "param"),
    [
        ("level=loud", {}, "level"),
        ("stream=maybe", {}, "stream"),
        ("after=-1", {}, "after"),
        ("after=99999999999999999", {}, "after"),
        ("", {"last-event-id": "x"}, "Last-Event-ID"),
        ("limit=5", {}, "limit"),
        ("stream=false&limit=1001", {}, "limit"),
    ],
)
async def test_a_bad_place_in_the_log_is_refused(house: House, query: str, headers: dict[str, str], param: str) -> None:
    id = house.teams.root(OURS, str(uuid.uuid4())).id
    refused = await house.refused("GET", f"{TASKS}/{id}/events?{query}", None, **headers)
    assert refused == (400, "invalid_value", param)
