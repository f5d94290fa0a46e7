"""The tests' handle on a scripted upstream process: start it, plan replies, wait for what it sees, open its gates."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.upstream.script import Script

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 20.0
"""Seconds a test waits for something that must happen."""


@dataclass(frozen=True)
class Seen:
    """A request as the upstream saw it."""

    mark: str
    provider: str
    method: str
    target: str
    headers: list[list[str]]
    body: str
    state: str
    sent: int
    connection: int
    number: int
    scenario: str

    def header(self, name: str) -> str | None:
        return {one[0]: one[1] for one in self.headers}.get(name)

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


class Upstream:
    """A running scripted upstream on 127.0.0.1."""

    def __init__(self, port: int, process: subprocess.Popen[str]) -> None:
        self.port = port
        self.process = process

    def kill(self) -> None:
        """End it as kill -9 does."""
        self.process.kill()
        self.process.wait()

    def base_url(self, provider: str) -> str:
        """The base URL at which this upstream plays `provider`."""
        return f"http://127.0.0.1:{self.port}/{provider}/v1"

    def control(self, verb: str, **arguments: Any) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE + 10)
        try:
            connection.request("POST", f"/_control/{verb}", json.dumps(arguments))
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
            return answer
        finally:
            connection.close()

    def plan(self, scenario: str | Script | None = None, **providers: str | Script) -> str:
        """Plan a reply for a fresh mark: one for all providers, or one each. Returns the mark, to be sent as `user`."""
        mark = uuid.uuid4().hex
        plans = {"": scenario} if scenario is not None else {}
        for provider, planned in {**plans, **providers}.items():
            if isinstance(planned, str):
                self.control("plan", mark=mark, provider=provider, scenario=planned)
            else:
                self.control("plan", mark=mark, provider=provider, steps=planned)
        return mark

    def release(self, mark: str, gate: str = "go") -> None:
        """Open a gate of the script that this mark plays."""
        self.control("release", mark=mark, gate=gate)

    def seen(self, mark: str = "", state: str = "") -> list[Seen]:
        """The requests of this mark so far."""
        return [Seen(**one) for one in self.control("wait", mark=mark, state=state, count=0)["exchanges"]]

    def wait(self, mark: str, state: str = "", count: int = 1) -> list[Seen]:
        """Wait until `count` requests of this mark have come (and are in `state`); fails when they never do."""
        found = self.control("wait", mark=mark, state=state, count=count, timeout=PATIENCE)["exchanges"]
        assert len(found) >= count, f"the upstream saw {found} of mark {mark}, not {count} in state {state or 'any'}"
        return [Seen(**one) for one in found]


@contextmanager
def running_upstream(port: int = 0, default: str = "") -> Iterator[Upstream]:
    """Run a scripted upstream process for a while; 0 = any free port. `default`: the scenario where nothing was planned."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.upstream", "--port", str(port), "--default", default],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield Upstream(json.loads(process.stdout.readline())["port"], process)
    finally:
        process.stdin.close()
        process.wait(timeout=10)
        process.stdout.close()
