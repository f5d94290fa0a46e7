"""kill -9 in the middle of a team: it completes, and no model call that was finished is made again (R-000-88).

The scripted upstream counts: what it answered in full is what was made, and what it may cost.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.door import Connection, head
from tests.gateway import ROOT, Gateway, eventually, running_gateway
from tests.upstream.process import Upstream, running_upstream

pytestmark = pytest.mark.limit(120)

PARTS = 12
WAITING = ("part-3", "part-7", "part-12")
PRICE = Decimal(100) * Decimal("0.000001") + Decimal(20) * Decimal("0.000002")
"""Of one call: a dollar and two dollars per million tokens, 100 and 20 of them."""


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with running_upstream(default="team") as running:
        yield running


def changes(folder: Path, **orchestration: Any) -> dict[str, Any]:
    """The configuration of a gateway with teams whose calls have a price."""
    prices = folder / "prices.yaml"
    prices.write_text('one:\n  scripted: {input: "1", output: "2"}\n')
    models = dict.fromkeys(("tribune", "centurion", "legionary"), "one/scripted")
    return {"ledger": {"price_overrides": str(prices)}, "orchestration": {"models": models, **orchestration}}


def order(door: Gateway, mark: str, says: str) -> str:
    """Give an order for a team of twelve; returns the root's id."""
    body = {
        "query": f"Compare twelve databases. [mark:{mark}] [parts:{PARTS}] {says}",
        "model": "hortator/generalist",
        "config": {"decomposition_strategy": "aggressive", "max_agents": PARTS, "timeout": "10m"},
    }
    reply = door.door.call("POST", "/api/v1/tasks", json.dumps(body).encode())
    assert reply.status == 202, reply
    id: str = reply.json["id"]
    return id


def ended(gateway: Gateway, id: str) -> dict[str, Any]:
    """The task once it has ended."""

    def look() -> dict[str, Any] | None:
        reply = gateway.door.call("GET", f"/api/v1/tasks/{id}?wait=5")
        found: dict[str, Any] = reply.json
        return found if found.get("completed_at") else None

    return eventually(look, "the end of the team")


class Follower:
    """A subscriber that reconnects with Last-Event-ID until the tree has ended."""

    def __init__(self, gateway: Gateway, id: str) -> None:
        self.seen: list[dict[str, Any]] = []
        self._gateway = gateway
        self._path = f"/api/v1/tasks/{id}/events"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self.seen or self.seen[-1]["type"] not in ("completed", "failed", "cancelled"):
            with contextlib.suppress(OSError, AssertionError, ValueError):
                self._follow()

    def _follow(self) -> None:
        door = self._gateway.door
        resume = {} if not self.seen else {"last-event-id": str(self.seen[-1]["seq"])}
        with Connection(self._gateway.port) as connection:
            connection.send(head("GET", self._path, {**door.headers(None), **resume}))
            if connection.read_head().status != 200:
                return
            for block in connection.blocks():
                told = re.search(r"^data: (.*)$", block, re.MULTILINE)
                number = re.search(r"^id: (\d+)$", block, re.MULTILINE)
                if told and number:
                    event = json.loads(told[1])
                    assert event["seq"] == int(number[1])
                    self.seen.append(event)

    def finish(self) -> list[dict[str, Any]]:
        """All events, once the last has come."""
        self._thread.join(60)
        assert not self._thread.is_alive(), f"the follower still waits behind {self.seen[-1:]}"
        return self.seen


def part_of(text: str) -> str:
    """Which call of the team a request is."""
    found = re.search(r"part-\d+", text.rpartition("# Your part")[2]) if "# Your part" in text else None
    return found[0] if found else "plan or synthesis"


def calls(upstream: Upstream, mark: str, state: str = "") -> Counter[str]:
    """The requests of a mark by the part of the team."""
    return Counter(
        part_of("\n".join(str(message["content"]) for message in one.json["messages"]))
        for one in upstream.seen(mark, state)
    )


def check(gateway: Gateway, upstream: Upstream, mark: str, id: str, follower: Follower, repeated: int) -> None:
    """The team completed; nothing finished was asked twice, nothing is missing or twice in the log, and the cost is what was answered."""
    task = ended(gateway, id)
    assert task["status"] == "Completed", task
    assert all(f"part-{n}" in task["results"]["content"] for n in range(1, PARTS + 1)), task["results"]
    finished = calls(upstream, mark, "finished")
    assert finished == {"plan or synthesis": 2, **{f"part-{n}": 1 for n in range(1, PARTS + 1)}}
    assert calls(upstream, mark).total() == finished.total() + repeated
    events = follower.finish()
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    types = Counter(event["type"] for event in events)
    assert (types["task_created"], types["completed"], types["agent_spawned"]) == (1, 1, PARTS)
    assert types["model_call"] == finished.total()
    ledger = gateway.door.call("GET", f"/api/v1/tasks/{id}/ledger").json
    cost = PRICE * finished.total()
    assert Decimal(ledger["total"]["cost_usd"]) == Decimal(task["cost_usd"]) == cost
    assert sum(Decimal(entry["cost_usd"]) for entry in ledger["entries"]) == cost
    assert task["usage"]["total_tokens"] == 120 * finished.total()
    tree = gateway.door.call("GET", f"/api/v1/tasks/{id}/tree").json
    assert Counter(child["status"] for child in tree["children"]) == {"Completed": PARTS}


def mostly_done(upstream: Upstream, mark: str) -> None:
    """Wait until all parts but those that wait are finished, and these are under way."""
    eventually(lambda: len(calls(upstream, mark, "finished")) == PARTS - len(WAITING) + 1, "most parts to be finished")
    eventually(lambda: all(calls(upstream, mark)[part] for part in WAITING), "the waiting parts to be asked")


def settled(gateway: Gateway, id: str) -> bool:
    """Whether what the upstream finished is written down: it is told to nobody before, and may be asked again."""
    entries = gateway.door.call("GET", f"/api/v1/tasks/{id}/ledger").json["entries"]
    count: int = sum(entry["status"] == "finished" for entry in entries)
    return count == PARTS - len(WAITING) + 1


def test_a_killed_server_completes_the_team_and_repeats_only_what_was_under_way(
    tmp_path: Path, upstream: Upstream
) -> None:
    mark = uuid.uuid4().hex
    with running_gateway(tmp_path, upstream, **changes(tmp_path)) as gateway:
        id = order(gateway, mark, f"[wait:{','.join(WAITING)}] [hold:synthesis]")
        follower = Follower(gateway, id)
        mostly_done(upstream, mark)
        eventually(lambda: settled(gateway, id), "the finished calls to be written down")
        gateway.kill()
        for part in WAITING:
            upstream.release(mark, part)
        gateway.start()
        eventually(lambda: calls(upstream, mark)["plan or synthesis"] == 2, "the synthesis to be asked")
        gateway.kill()
        upstream.release(mark, "synthesis")
        gateway.start()
        check(gateway, upstream, mark, id, follower, repeated=len(WAITING) + 1)


class Worker:
    """A process of `hortator worker`."""

    def __init__(self, gateway: Gateway) -> None:
        self.log = gateway.home / f"worker-{uuid.uuid4().hex}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hortator", "worker", "--config", str(gateway.config), "--admin-port", "0"],
                cwd=ROOT,
                env=gateway.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        eventually(lambda: "works on what" in self.log.read_text(), "the worker to start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it; show that it ends well."""
        self.process.terminate()
        assert self.process.wait(30) == 0, self.log.read_text()
        assert "Traceback" not in self.log.read_text()


@pytest.fixture(scope="module")
def cluster(
    lasting_postgres_database: str, tmp_path_factory: pytest.TempPathFactory, upstream: Upstream
) -> Iterator[Gateway]:
    """A server that leaves trees to workers."""
    folder = tmp_path_factory.mktemp("cluster")
    url = lasting_postgres_database.replace("+asyncpg", "")
    with running_gateway(folder, upstream, store={"url": url}, **changes(folder, workers=True)) as gateway:
        yield gateway


@pytest.mark.parametrize("end", ["killed", "stopped"])
def test_what_a_worker_was_at_is_completed_by_another(cluster: Gateway, upstream: Upstream, end: str) -> None:
    """`killed`: after it was missed; `stopped`: at once."""
    mark = uuid.uuid4().hex
    first = Worker(cluster)
    id = order(cluster, mark, f"[wait:{','.join(WAITING)}]")
    follower = Follower(cluster, id)
    mostly_done(upstream, mark)
    eventually(lambda: settled(cluster, id), "the finished calls to be written down")
    second = Worker(cluster)
    try:
        if end == "killed":
            first.kill()
        else:
            first.stop()
        for part in WAITING:
            upstream.release(mark, part)
        check(cluster, upstream, mark, id, follower, repeated=len(WAITING))
    finally:
        for each in (first, second):
            each.process.kill()
            each.process.wait()


def test_a_worker_that_was_only_halted_finds_its_team_taken_over(cluster: Gateway, upstream: Upstream) -> None:
    """Its calls were answered while it stood still. What it makes of them counts for nothing: each part is told and charged once."""
    mark = uuid.uuid4().hex
    first = Worker(cluster)
    second = None
    try:
        id = order(cluster, mark, f"[wait:{','.join(WAITING)}]")
        follower = Follower(cluster, id)
        mostly_done(upstream, mark)
        eventually(lambda: settled(cluster, id), "the finished calls to be written down")
        second = Worker(cluster)
        first.process.send_signal(signal.SIGSTOP)
        eventually(lambda: all(calls(upstream, mark)[part] > 1 for part in WAITING), "the other one to ask again")
        for part in WAITING:
            upstream.release(mark, part)
        first.process.send_signal(signal.SIGCONT)
        task = ended(cluster, id)
        assert task["status"] == "Completed", task
        types = Counter(event["type"] for event in follower.finish())
        assert (types["model_call"], types["partial_result"], types["completed"]) == (PARTS + 2, PARTS, 1)
        assert [event["seq"] for event in follower.seen] == list(range(1, len(follower.seen) + 1))
        assert Decimal(task["cost_usd"]) == PRICE * (PARTS + 2)
        made = calls(upstream, mark)
        assert {part for part, count in made.items() if count > 1} == {*WAITING, "plan or synthesis"}
        eventually(lambda: "could not be heard of" in first.log.read_text(), "the halted worker to notice")
        first.stop()
    finally:
        for each in (first, second):
            if each is not None:
                each.process.kill()
                each.process.wait()
