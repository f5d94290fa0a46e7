"""A real gateway for tests: `python -m hortator serve` as a process on loopback, in front of the scripted upstream.

`running_gateway` writes a configuration with two scripted providers and one that refuses connections, makes a key through
the command line, waits until the door answers, and at the end shows that it stops cleanly and never told a provider's key.
"""

from __future__ import annotations

import http.client
import itertools
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import openai
import yaml

from tests.door import Door
from tests.upstream.process import Upstream

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 30.0
POLL = 0.02
CANARIES = {"ONE_KEY": "sk-canary-one-8d1f0c6ea7b24", "TWO_KEY": "sk-canary-two-5b7e93c1d0a86"}
MODEL = "one/scripted"
"""A model at one scripted provider; what it answers is planned by mark."""
PAIR = "pair"
"""A named model with two deployments: providers `one`, then `two`."""
REFUSED = "closed/scripted"
"""A model whose provider's port is closed."""
UNREACHABLE = "full/scripted"
"""A model whose provider never accepts a connection."""

T = TypeVar("T")


def eventually(look: Callable[[], T | None], what: str, patience: float = PATIENCE) -> T:
    """Look until there is something to see; fails when there is not in time."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(POLL)
    raise AssertionError(f"waited in vain for {what}")


_SHARE = 4_000
_FIRST_PORT = 16_000 + _SHARE * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = itertools.cycle(range(_FIRST_PORT, _FIRST_PORT + _SHARE))


def free_port() -> int:
    """A port that is free now, of this test process's own share: none that the system gives out by itself (those begin at 32,768)."""
    for port in itertools.islice(_PORTS, os.getpid() % 97, _SHARE):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


class BadPorts:
    """A port where connections are refused, and one whose queue is full, so that connecting to it never ends."""

    def __init__(self) -> None:
        self.closed = socket.socket()
        self.closed.bind(("127.0.0.1", 0))
        self.full = socket.socket()
        self.full.bind(("127.0.0.1", 0))
        self.full.listen(0)
        self.fillers = []
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(self.full.getsockname())
            self.fillers.append(filler)

    def close(self) -> None:
        for one in (self.closed, self.full, *self.fillers):
            one.close()


def document(upstream: Upstream, ports: BadPorts, port: int, changes: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a gateway in front of the scripted upstream."""

    def provider(name: str, base_url: str, key: str) -> dict[str, Any]:
        return {
            "id": name,
            "kind": "openai",
            "base_url": base_url,
            "api_key": key,
            "models": ["scripted", "deep/name@v1"],
        }

    addresses = {name: f"http://127.0.0.1:{getattr(ports, name).getsockname()[1]}/v1" for name in ("closed", "full")}
    return {
        "server": {"host": "127.0.0.1", "port": port, "drain_seconds": 10, **changes.pop("server", {})},
        "admin": {"port": 0, **changes.pop("admin", {})},
        "local": {"enabled": False},
        "detect_providers": False,
        # Whoever wants teams of agents says so: most gateways need no engine.
        "orchestration": changes.pop("orchestration", {"enabled": False}),
        # Each test plans its own failures at the same deployments: no test's failures keep another from them, and none is
        # asked twice. Tests of just that set their own.
        "retry": {"ratio": 0, "floor": 0},
        "breaker": {"failures": 0, "max_pause_ms": 0, "look": False},
        "providers": [
            provider("one", upstream.base_url("one"), "${ONE_KEY}"),
            provider("two", upstream.base_url("two"), "${TWO_KEY}"),
            *(provider(name, address, "${ONE_KEY}") for name, address in addresses.items()),
            *changes.pop("more_providers", ()),
        ],
        "models": [
            {
                "id": PAIR,
                "strategy": "ordered",
                "deployments": [{"provider": name, "model": "scripted"} for name in ("one", "two")],
            },
            {
                "id": "closed-pair",
                "strategy": "ordered",
                "deployments": [{"provider": name, "model": "scripted"} for name in ("closed", "two")],
            },
        ],
        **changes,
    }


class Gateway:
    """One gateway: its folder, its configuration and, while it runs, its process."""

    def __init__(self, home: Path, upstream: Upstream, changes: dict[str, Any]) -> None:
        self.home = home
        self.upstream = upstream
        self.ports = BadPorts()  # first: what it holds is not free
        self.port = free_port()
        self.config = home / "hortator.yaml"
        self.log = home / "server.log"
        self.prefix = changes.get("server", {}).get("root_path", "")
        self.config.write_text(
            yaml.safe_dump(document(upstream, self.ports, self.port, dict(changes)), sort_keys=False)
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.key = ""

    @property
    def environment(self) -> dict[str, str]:
        """A clean environment: nothing that a developer's machine offers is found."""
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return {**inherited, **CANARIES, "HORTATOR_HOME": str(self.home / "data"), "PYTHONWARNINGS": "error"}

    def command(self, *arguments: str) -> str:
        """Run a `hortator` command to its end; return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "hortator", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, f"hortator {arguments} failed: {done.stdout}{done.stderr}"
        return done.stdout

    def new_key(self, name: str, *options: str) -> str:
        """Create a key; return it."""
        printed = self.command("keys", "create", "--config", str(self.config), "--name", name, *options)
        found = re.search(r"hrt_sk_[A-Za-z0-9_\-]+", printed)
        assert found, f"no key in {printed!r}"
        return found.group()

    def start(self) -> None:
        """Start the server and wait until its door answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hortator", "serve", "--config", str(self.config)],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        eventually(self.answers, "the door to open")
        if not self.key:
            self.key = self.new_key("tests")

    def answers(self) -> bool:
        """Whether the health door answers; fails when the process has died instead."""
        assert self.process is not None
        assert self.process.poll() is None, f"the server ended: {self.log.read_text()}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        with closing(connection):
            try:
                connection.request("GET", self.prefix + "/health")
                return connection.getresponse().status == 200
            except ConnectionError:
                return False

    def terminate(self) -> None:
        """Ask the server to stop; do not wait."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait until the process has ended; return its exit status."""
        assert self.process is not None
        status = self.process.wait(timeout=PATIENCE)
        self.process = None
        return status

    def kill(self) -> None:
        """End the process without a chance to say goodbye."""
        assert self.process is not None
        self.process.kill()
        self.wait()

    @property
    def door(self) -> Door:
        return Door(self.port, self.key, self.prefix)

    def memory(self) -> int:
        """Resident bytes of the server."""
        assert self.process is not None
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def rows(self, request_id: str | None = None) -> list[dict[str, Any]]:
        """The usage records, or those of one request."""
        with closing(sqlite3.connect(f"file:{self.database()}?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            where = "" if request_id is None else " where request_id = ?"
            found = database.execute(f"select * from usage_events{where} order by id", (request_id,) if where else ())
            return [dict(row) for row in found]

    def database(self) -> Path:
        """The SQLite file of the store; the engine of teams has one of its own."""
        [found] = (self.home / "data").rglob("hortator.db")
        return found

    def row(self, request_id: str) -> dict[str, Any]:
        """The one usage record of a request, once it has been written."""
        [row] = eventually(lambda: self.rows(request_id), f"the usage record of {request_id}")
        return row

    def leaks(self) -> list[str]:
        """The files under the gateway's folder that hold a provider's key."""
        needles = [key.encode() for key in CANARIES.values()]
        files = [path for path in self.home.rglob("*") if path.is_file()]
        return [str(path) for path in files if any(needle in path.read_bytes() for needle in needles)]

    def stop(self) -> None:
        """Stop the server; show that it ends well, wrote no traceback and told no secret."""
        if self.process is not None:
            self.terminate()
            assert self.wait() == 0, self.log.read_text()
        log = self.log.read_text()
        assert "Traceback" not in log, log
        assert self.leaks() == []


@contextmanager
def running_gateway(home: Path, upstream: Upstream, /, **changes: Any) -> Iterator[Gateway]:
    """Run a gateway for a while; `changes` are top-level keys of its configuration."""
    gateway = Gateway(home, upstream, changes)
    try:
        gateway.start()
        yield gateway
        gateway.stop()
    finally:
        if gateway.process is not None:
            gateway.process.kill()
            gateway.process.wait()
        gateway.ports.close()


@contextmanager
def openai_client(gateway: Gateway, key: str | None = None) -> Iterator[openai.OpenAI]:
    """The official client, which does not try again, as the gateway's own key or another one."""
    base_url = f"http://127.0.0.1:{gateway.port}{gateway.prefix}/v1"
    with openai.OpenAI(api_key=key or gateway.key, base_url=base_url, max_retries=0) as opened:
        yield opened
