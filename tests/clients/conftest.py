"""What every client gets: a gateway in front of the obedient upstream, a key of its own, an empty home and an empty folder.

`scripts/clients` has installed them; a set that is missing skips its tests and says what to do.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.clients import obedient
from tests.gateway import Gateway, eventually, running_gateway
from tests.upstream.process import Upstream

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = ROOT / ".clients"
MODEL = "ob/obedient"
PATIENCE = 150.0
"""Seconds a client may take; none takes a third of it here."""


class Obedient(Upstream):
    """The obedient upstream, in a thread of this process."""

    def __init__(self, port: int) -> None:
        self.port = port


class Client:
    """One client: where it works, which key it has, and what the gateway has recorded of it."""

    def __init__(self, gateway: Gateway, name: str, place: Path) -> None:
        self.gateway = gateway
        self.name = name
        self.home = place / "home"
        self.folder = place / "work"
        self.home.mkdir()
        self.folder.mkdir()
        self.key = gateway.new_key(name)
        self.url = f"http://127.0.0.1:{gateway.port}"

    def program(self, found_in: str, name: str) -> str:
        """The path of an installed program; skips the test when its set is not there."""
        path = INSTALLED / found_in / name
        if not path.exists():
            reason = (
                "needs npm" if found_in in ("node", "agents") and shutil.which("npm") is None else "is not installed"
            )
            pytest.skip(f"{name} {reason}: install Node.js with npm if that is missing, then `make test-clients`")
        return str(path)

    def environment(self, **more: str) -> dict[str, str]:
        """What a program of this client finds: nothing of this machine but PATH."""
        path = f"{INSTALLED}/agents/node_modules/.bin:{os.environ['PATH']}"
        return {"PATH": path, "HOME": str(self.home), "LANG": "C.UTF-8", "CI": "true", **more}

    def run(self, *arguments: str, **environment: str) -> str:
        """Run a program of this client to its end, in its folder; return what it said."""
        try:
            done = subprocess.run(
                arguments,
                cwd=self.folder,
                env=self.environment(**environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            said = (late.stdout or b"").decode(errors="replace")
            raise AssertionError(f"{self.name} was not done after {PATIENCE:g} s; it said:\n{said}") from None
        assert done.returncode == 0, f"{self.name} ended with {done.returncode}; it said:\n{done.stdout}"
        return done.stdout

    def records(self) -> list[dict[str, Any]]:
        """The usage records of this client's key, once there are any."""
        mine = hashlib.sha256(self.key.encode()).hexdigest()
        return eventually(
            lambda: [row for row in self.gateway.rows() if row["key_hash"] == mine], f"usage records of {self.name}"
        )


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with one provider, the obedient one, and the retries of an ordinary configuration."""
    server = obedient.serve(0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    upstream = Obedient(server.server_address[1])
    provider: Mapping[str, Any] = {"id": "ob", "base_url": upstream.base_url("ob"), "models": ["obedient", "pliant"]}
    named = {"id": "pliant", "deployments": [{"provider": "ob", "model": "pliant"}]}
    home = tmp_path_factory.mktemp("gateway")
    try:
        with running_gateway(home, upstream, providers=[dict(provider)], models=[named]) as running:
            yield running
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def client(gateway: Gateway, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    """A client named after its test."""
    made = Client(gateway, request.node.name[:60], tmp_path)
    monkeypatch.setenv("OBEDIENT_FOLDER", str(made.folder))
    monkeypatch.setenv("OBEDIENT_LOG", str(tmp_path / "asked"))
    return made
