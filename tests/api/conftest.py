"""A whole gateway in this process, without a listener: `App`, spoken to as ASGI, on SQLite and on Postgres."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from hortator.app import App
from hortator.settings import load
from hortator.tenancy.keys import create_key
from tests.databases import database_url

__all__ = ["database_url"]


class Client:
    """One key's view of the gateway."""

    def __init__(self, app: App, key: str | None) -> None:
        self._key = key
        self._client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test")

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> httpx2.Response:
        """Make one request."""
        if self._key is not None:
            headers["authorization"] = f"Bearer {self._key}"
        content = None if body is None else json.dumps(body)
        if content is not None:
            headers.setdefault("content-type", "application/json")
        return await self._client.request(method, path, content=content, headers=headers)

    async def ok(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        """Make one request that must succeed; return its document."""
        reply = await self.call(method, path, body)
        assert reply.status_code == status, reply.text
        return reply.json()

    async def refused(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        """Make one request that must fail; return its status and its code."""
        reply = await self.call(method, path, body)
        error = reply.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return reply.status_code, error["code"]


Configure = Callable[[dict[str, Any]], None]


@pytest.fixture
def changes() -> dict[str, Any]:
    """Top-level keys of the configuration; a test module may override it."""
    return {}


@pytest.fixture
async def app(tmp_path: Path, database_url: str, changes: dict[str, Any]) -> AsyncIterator[App]:
    """A gateway that runs."""
    document = {
        "admin": {"enabled": False},
        "local": {"enabled": False},
        "detect_providers": False,
        "store": {"url": database_url},
        "orchestration": {"enabled": False},
        **changes,
    }
    file = tmp_path / "hortator.yaml"
    file.write_text(json.dumps(document))
    settings = load(file, {"HORTATOR_HOME": str(tmp_path)})
    running = App(settings, None, read=lambda: settings, changed=lambda _: None)
    await running.start()
    yield running
    await running.drain()


@pytest.fixture
async def operator(app: App) -> Client:
    """A client with the permission `admin`."""
    return Client(app, (await create_key(app.database, name="ops", permissions=["admin"])).token.reveal())
