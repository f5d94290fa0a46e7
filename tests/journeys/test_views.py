"""One log, many views: an event stream, a WebSocket, a webhook, the SDK and the list say the same, event by event."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from hortator.client import HortatorClient
from tests.door import Connection, Door, head
from tests.gateway import Gateway, eventually, running_gateway
from tests.journeys.hook import Hook, running_hook
from tests.upstream.process import Upstream, running_upstream

TASKS = "/api/v1/tasks"


@pytest.fixture(scope="module")
def team() -> Iterator[Upstream]:
    with running_upstream(default="team") as running:
        yield running


@pytest.fixture(scope="module")
def hook() -> Iterator[Hook]:
    with running_hook() as running:
        yield running


@pytest.fixture(scope="module")
def working(tmp_path_factory: pytest.TempPathFactory, team: Upstream, hook: Hook) -> Iterator[Gateway]:
    """A gateway with teams that may call the hook."""
    models = dict.fromkeys(("tribune", "centurion", "legionary"), "one/scripted")
    teams = {"models": models, "webhooks": {"allow_hosts": [hook.place]}}
    with running_gateway(tmp_path_factory.mktemp("views"), team, orchestration=teams) as running:
        yield running


def order(working: Gateway, hook: Hook, mark: str, says: str = "", **also: Any) -> str:
    """Have a team of three work on something; returns the root's id."""
    body = {
        "query": f"Compare three databases. [mark:{mark}] {says}",
        "model": "hortator/generalist",
        "config": {"decomposition_strategy": "aggressive", "timeout": "2m"},
        "callback_url": f"http://{hook.place}/{mark}",
        **also,
    }
    reply = working.door.call("POST", TASKS, json.dumps(body).encode())
    assert reply.status == 202, reply
    id: str = reply.json["id"]
    return id


def socket(working: Gateway, path: str) -> Any:
    address = f"ws://127.0.0.1:{working.port}{path}"
    return connect(address, additional_headers={"Authorization": f"Bearer {working.key}"}, proxy=None)


class Watching(threading.Thread):
    """A view that is read while the tree works."""

    def __init__(self, events: Iterator[dict[str, Any]]) -> None:
        super().__init__(daemon=True)
        self._events = events
        self.seen: list[dict[str, Any]] = []
        self.start()

    def run(self) -> None:
        self.seen.extend(self._events)

    def all(self) -> list[dict[str, Any]]:
        """All events, once the view has ended."""
        self.join(60)
        assert not self.is_alive()
        return self.seen


def streamed(door: Door, port: int, id: str) -> Iterator[dict[str, Any]]:
    """As an event stream."""
    with Connection(port) as connection:
        connection.send(head("GET", f"{TASKS}/{id}/events", door.headers(None)))
        assert connection.read_head().status == 200
        for block in connection.blocks():
            if told := re.search(r"^data: (.*)$", block, re.MULTILINE):
                yield json.loads(told[1])


def framed(working: Gateway, id: str) -> Iterator[dict[str, Any]]:
    """Over a WebSocket."""
    with socket(working, f"/ws/tasks/{id}") as client:
        for frame in client:
            yield json.loads(frame)["event"]
        assert client.close_code == 1000


def heard(working: Gateway, id: str) -> Iterator[dict[str, Any]]:
    """With the SDK."""
    with HortatorClient(working.key, f"http://127.0.0.1:{working.port}") as client:
        for event in client.tasks.get(id).stream():
            yield {name: value for name, value in event.to_dict().items() if name != "details" or value}


def test_every_view_of_a_tree_says_the_same(working: Gateway, team: Upstream, hook: Hook) -> None:
    id = order(working, hook, "views", "[hold:synthesis]", callback_events=["*"])
    live = [
        Watching(events)
        for events in (streamed(working.door, working.port, id), framed(working, id), heard(working, id))
    ]
    team.wait("views", count=4)
    team.release("views", "synthesis")
    first, *others = [view.all() for view in live]
    assert [event["seq"] for event in first] == list(range(1, len(first) + 1))
    assert first[0]["type"] == "task_created"
    assert first[-1]["type"] == "completed"
    listed = working.door.call("GET", f"{TASKS}/{id}/events?stream=false&limit=1000").json["data"]
    later = [list(streamed(working.door, working.port, id)), list(framed(working, id))]
    called = [call.json["event"] for call in hook.told(id)]
    for other in (*others, listed, *later, called):
        assert other == first


def test_a_callback_is_told_of_progress_and_the_end(working: Gateway, hook: Hook) -> None:
    """R-000-57, R-000-58, by the default choice; signed with the tenant's secret."""
    id = order(working, hook, "callback")
    calls = hook.told(id)
    told = [call.json for call in calls]
    assert {each["event_type"] for each in told[:-1]} <= {"task_progress"}
    assert (told[-1]["event_type"], told[-1]["status"], told[-1]["progress_percent"]) == (
        "task_completed",
        "Completed",
        100,
    )
    assert told[-1]["results"]["summary"]
    percents = [each["progress_percent"] for each in told]
    assert percents == sorted(percents)
    secret = working.door.call("GET", "/api/v1/webhooks/secret").json["secret"]
    for call in calls:
        content = f"{call.id}.{call.headers['webhook-timestamp']}.".encode() + call.body
        digest = hmac.new(base64.b64decode(secret[6:]), content, hashlib.sha256).digest()
        assert call.headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()
    listed = working.door.call("GET", f"{TASKS}/{id}/deliveries").json["data"]
    assert [each["id"] for each in listed] == [call.id for call in calls]
    last = listed[-1]["id"]
    again = working.door.call("POST", f"{TASKS}/{id}/deliveries/{last}/redeliver")
    assert (again.status, again.json["attempts"]) == (200, 2)
    assert hook.of(id)[-1].body == calls[-1].body


def test_a_callback_inside_the_network_is_refused_with_the_order(working: Gateway, hook: Hook) -> None:
    for url in ("http://127.0.0.1:9000/", "http://169.254.169.254/latest/meta-data/", "http://[::1]/"):
        body = {"query": "Compare.", "callback_url": url}
        reply = working.door.call("POST", TASKS, json.dumps(body).encode())
        assert (reply.status, reply.error["code"]) == (400, "url_not_allowed")


def test_a_tree_is_ordered_watched_and_cancelled_over_one_socket(working: Gateway, team: Upstream) -> None:
    """R-000-6, against the whole gateway."""
    with socket(working, "/ws") as client:
        body = {"query": "Compare three databases. [mark:socket] [hold]", "model": "hortator/generalist"}
        body["config"] = {"decomposition_strategy": "aggressive"}  # type: ignore[assignment]
        client.send(json.dumps({"action": "submit", "order": body, "ref": 1}))
        made = json.loads(client.recv(30))
        assert (made["type"], made["ref"], made["task"]["source"]) == ("ack", 1, "socket")
        id = made["task_id"]
        client.send(json.dumps({"action": "subscribe", "task_id": id, "level": "default"}))
        team.wait("socket", count=2)
        client.send(json.dumps({"action": "cancel", "task_id": id, "ref": 2}))
        frames: list[dict[str, Any]] = []
        while len(frames) < 4:
            frames.append(json.loads(client.recv(30)))
    # An answer and an event that belong to the same thing come in either order.
    assert [each["event"]["type"] for each in frames if each["type"] == "event"] == ["task_created", "cancelled"]
    assert [each["ref"] for each in frames if each["type"] == "ack"] == [None, 2]


def test_text_is_seen_while_it_is_written(working: Gateway, team: Upstream, hook: Hook) -> None:
    id = order(working, hook, "deltas", "[hold:synthesis]")
    texts, result = [], None
    with socket(working, f"/ws/tasks/{id}?deltas=true") as client:
        assert json.loads(client.recv(30))["event"]["seq"] == 1
        team.wait("deltas", count=4)
        team.release("deltas", "synthesis")
        for frame in client:
            told = json.loads(frame)
            if told["type"] == "delta":
                texts.append(told["text"])
            elif told["event"]["type"] == "completed":
                result = told["event"]["result"]
    assert result is not None
    assert "".join(texts) == result["content"]


def test_a_killed_gateway_calls_what_it_had_not_called(working: Gateway, hook: Hook) -> None:
    """The call that was under way is made again with its id; those before are not; watchers resume over the restart."""
    hook.answers.clear()
    id = order(working, hook, "killed")
    from_before = [call.id for call in _first(hook, id)]
    working.kill()
    hook.answers.set()
    working.start()
    calls = hook.told(id)
    assert [call.id for call in calls[:2]] == from_before * 2
    assert calls[0].body == calls[1].body
    seqs = [call.json["event"]["seq"] for call in calls[1:]]
    assert seqs == sorted(set(seqs))
    with socket(working, f"/ws/tasks/{id}?after={seqs[0]}") as client:
        assert json.loads(client.recv(30))["event"]["seq"] == seqs[0] + 1


def _first(hook: Hook, id: str) -> list[Any]:
    return eventually(lambda: hook.of(id), "the first call")


def test_a_stop_sends_clients_away_and_does_not_wait_for_them(working: Gateway) -> None:
    with socket(working, "/ws") as client:
        working.terminate()
        with pytest.raises(ConnectionClosed) as caught:
            client.recv(30)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1001
    assert working.wait() == 0
    working.start()
