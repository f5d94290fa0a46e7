"""A gateway with scripted teams behind its chat doors, listening on loopback in this process."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest
import pytest_asyncio
import uvicorn

from hortator.api.harpoon import Sources
from hortator.api.listener import limited
from hortator.api.reading import Receive, Scope, Send
from hortator.app import App
from hortator.doors import Doors
from hortator.orchestration.roles import Roles
from hortator.routing import rules_by_tier
from hortator.settings import Settings, load
from hortator.tenancy.keys import create_key
from tests.eventually import eventually
from tests.orchestration.scripted_teams import Run, ScriptedTeams, event
from tests.upstream.process import Upstream, running_upstream

ROLE = "hortator/coding-expert"
SIMPLE = "What is a tuple?"
COMPLEX = (
    "Design the architecture of a multi-tenant billing platform, migrate the old monolith to it, research three payment "
    "providers, and write the rollout plan with risks, tests and monitoring for each phase."
)
ANSWER = "Use three services, and migrate by tenant."
END = event(9, "completed", message="Done.", result={"content": ANSWER})
PRICES = {"up": {"scripted": {"input": 1, "output": 1}, "better": {"input": 10, "output": 10}}}
"""US dollars a million tokens."""


class Served:
    """A gateway with scripted teams, listening."""

    def __init__(self, app: App, teams: ScriptedTeams, port: int, key: str) -> None:
        self.app = app
        self.teams = teams
        self.port = port
        self.key = key
        self.base = f"http://127.0.0.1:{port}"
        self.closing = AsyncExitStack()

    def openai(self, key: str | None = None) -> openai.AsyncOpenAI:
        client = openai.AsyncOpenAI(api_key=key or self.key, base_url=f"{self.base}/v1", max_retries=0)
        self.closing.push_async_callback(client.close)
        return client

    def anthropic(self) -> anthropic.AsyncAnthropic:
        client = anthropic.AsyncAnthropic(api_key=self.key, base_url=self.base, max_retries=0)
        self.closing.push_async_callback(client.close)
        return client

    async def post(self, body: dict[str, Any], path: str = "/v1/chat/completions", **headers: str) -> httpx2.Response:
        headers = {"authorization": f"Bearer {self.key}", **headers}
        async with httpx2.AsyncClient(timeout=30) as client:
            return await client.post(f"{self.base}{path}", json=body, headers=headers)

    async def lines(self, body: dict[str, Any], **headers: str) -> list[str]:
        """The lines of a stream."""
        reply = await self.post({**body, "stream": True}, **headers)
        assert reply.status_code == 200, reply.text
        return reply.text.splitlines()


def settings(folder: Path, upstream: Upstream, changes: dict[str, Any]) -> Settings:
    """The configuration: two models at one provider, a cheap one and a good one."""
    prices = folder / "prices.json"
    prices.write_text(json.dumps(PRICES))
    document = {
        "admin": {"enabled": False},
        "local": {"enabled": False},
        "detect_providers": False,
        "orchestration": {"enabled": False},
        "breaker": {"look": False},
        "retry": {"max_retries": 0},
        "ledger": {"price_overrides": str(prices)},
        "stream": {"keep_alive_ms": 100, "routed_status_wait_ms": 50},
        "providers": [
            {
                "id": "up",
                "kind": "openai",
                "base_url": upstream.base_url("one"),
                "api_key": "k",
                "models": ["scripted", "better"],
            }
        ],
        "routing": {"cards": {"up/scripted": {"quality": 6}, "up/better": {"quality": 9}}},
        **changes,
    }
    file = folder / "hortator.yaml"
    file.write_text(json.dumps(document))
    return load(file, {"HORTATOR_HOME": str(folder)})


@asynccontextmanager
async def serving(folder: Path, upstream: Upstream, **changes: Any) -> AsyncIterator[Served]:
    app = App(found := settings(folder, upstream, changes), None, read=lambda: found, changed=lambda _: None)
    await app.start()
    teams = ScriptedTeams()
    gateway = app._rooms.gateway
    sources = Sources(dict, lambda *_: None, rules_by_tier(gateway.rules))
    doors = Doors(gateway, 1 << 20, sources, app._archive, app._background, app._batching.door, teams, Roles())
    key = (await create_key(app.database, name="tests")).token.reveal()

    async def asgi(scope: Scope, receive: Receive, send: Send) -> None:
        door = doors.at(scope["path"], scope)
        assert door is not None
        await door(scope, receive, send, scope["path"])

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        asgi,
        http=limited(max_head_bytes=16_384, max_headers=100, max_connections=100),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve(sockets=[listening]))
    await eventually(lambda: server.started)
    served = Served(app, teams, listening.getsockname()[1], key)
    try:
        yield served
    finally:
        await served.closing.aclose()
        server.should_exit = True
        await running
        await app.drain()


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with running_upstream(default="ok") as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> AsyncIterator[Served]:
    async with serving(tmp_path_factory.mktemp("served"), upstream) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def served(one: Served) -> AsyncIterator[Served]:
    """The one gateway, with teams that have done nothing yet."""
    one.teams.forget()
    async with one.closing:
        yield one
    one.closing = AsyncExitStack()


def ask(text: str = COMPLEX, model: str = ROLE, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def done(*items: Any, content: str = ANSWER, usage: tuple[int, int] = (700, 90)) -> Run:
    """A tree that completes."""
    return Run([event(1, "task_created"), *items, END], results={"content": content, "summary": "s"}, usage=usage)


def payloads(lines: list[str]) -> list[Any]:
    """The chunks of a stream that must end well."""
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(one) for one in data[:-1]]


def content(chunks: list[Any]) -> str:
    return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])


async def sent(upstream: Upstream, mark: str) -> dict[str, Any]:
    """The one request of a mark as the provider saw it."""
    [seen] = await asyncio.to_thread(upstream.seen, mark)
    return seen.json
