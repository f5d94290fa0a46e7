"""Where trees are tested: a real store on SQLite, the engine in memory, and a corridor that says what a test scripts.

`Field.order` keeps a root and begins it; `Script` answers its model calls and remembers them. No HTTP, no model.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import uuid_utils
from msgspec import to_builtins

from hortator.call import Caller, KeyHash, TenantId, Usage
from hortator.errors import HortatorError
from hortator.orchestration.engine import DurableEngine
from hortator.orchestration.events import Hub
from hortator.orchestration.ports import Answer, Ask, Engine, Estimate, ToolCall
from hortator.orchestration.roles import Roles
from hortator.orchestration.slots import Slots
from hortator.orchestration.tree import Pattern, ToolMaker, Tree
from hortator.settings.document import Orchestration
from hortator.store import Database, migrate, sqlite_url
from hortator.store.queries import add_tenant
from hortator.store.tasks import NewEvent, NewFile, Task
from hortator.wire.events import Delta, Event
from hortator.wire.tasks import TERMINAL, TaskConfig
from tests.orchestration.memory_engine import MemoryEngine

Reply = str | Answer | HortatorError | BaseException
PRICE = Decimal("0.000001")


def plan(*parts: dict[str, Any] | str) -> str:
    """Return a planner's answer. A string is a part without dependencies, its id and description."""
    tasks = [
        {"id": part, "description": f"do {part}", "dependencies": []} if isinstance(part, str) else part
        for part in parts
    ]
    return json.dumps({"tasks": tasks})


def part(id: str, *needs: str, group: str | None = None) -> dict[str, Any]:
    """Return a part of a plan."""
    return {"id": id, "description": f"do {id}", "dependencies": list(needs), **({"group": group} if group else {})}


def calling(name: str, **arguments: Any) -> Answer:
    """Return an answer that calls a tool."""
    call = ToolCall(id="c1", name=name, arguments=json.dumps(arguments))
    return answer("", calls=(call,))


def answer(text: str, *, calls: tuple[ToolCall, ...] = (), tokens: int = 10) -> Answer:
    return Answer(
        text=text,
        tool_calls=calls,
        finish_reason="tool_calls" if calls else "stop",
        usage=Usage(input=tokens, output=tokens, source="reported"),
        cost=PRICE * tokens * 2,
        deployment="test/model",
        request_id="req_1",
        latency_ms=5.0,
        attempts=1,
    )


def kind(ask: Ask) -> str:
    """Say what an agent is asked for: `plan`, `replan`, `synthesis`, `group`, else the part's description."""
    text = str(ask.messages[-1]["content"]) if ask.messages[-1]["role"] == "user" else ""
    whole = "\n".join(str(message.get("content") or "") for message in ask.messages)
    for sign, name in (
        ("Plan how a team", "plan"),
        ("That plan cannot be used", "mend"),
        ("Plan other tasks", "replan"),
        ("Write the final answer", "synthesis"),
        ("Put the results together", "group"),
    ):
        if sign in text:
            return name
    if "# Your part\n" in whole:
        return whole.rpartition("# Your part\n")[2].partition("\n")[0]
    return "single"


class Script:
    """A corridor: `reply(ask)` says what is answered. Implements `ports.Corridor`."""

    def __init__(self, reply: Callable[[Ask], Reply | Awaitable[Reply]]) -> None:
        self.reply = reply
        self.asks: list[Ask] = []
        self.now = 0
        self.most = 0
        """Calls at once."""
        self.ended = 0

    @property
    def kinds(self) -> list[str]:
        return [kind(ask) for ask in self.asks]

    async def caller(self, key_hash: str, priority: str) -> Caller:
        return Caller(tenant_id=TenantId("t"), key_hash=KeyHash(key_hash), key_name="k")

    def estimate(self, caller: Caller, ask: Ask) -> Estimate:
        return Estimate(input_tokens=10, input_price=PRICE, output_price=PRICE)

    async def ask(self, caller: Caller, ask: Ask) -> Answer:
        self.asks.append(ask)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0)
            said = self.reply(ask)
            if isinstance(said, Awaitable):
                said = await said
            if isinstance(said, BaseException):
                raise said
            found = answer(said) if isinstance(said, str) else said
            if ask.on_text is not None:
                for word in found.text.split(" "):
                    ask.on_text(word)
            return found
        finally:
            self.now -= 1
            self.ended += 1


@lru_cache
def roles() -> Roles:
    """The built-in roles, read once."""
    return Roles()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a migrated store that nobody uses: a copy costs a hundredth of a migration."""
    folder = tmp_path_factory.mktemp("migrated")

    async def make() -> None:
        made = Database(sqlite_url(folder / "store.db"))
        await migrate(made)
        await made.close()

    asyncio.run(make())
    return folder


@pytest.fixture
async def store(migrated: Path, tmp_path: Path) -> AsyncIterator[Database]:
    """A migrated store on SQLite."""
    shutil.copytree(migrated, tmp_path / "store")
    opened = Database(sqlite_url(tmp_path / "store" / "store.db"))
    yield opened
    await opened.close()


class Listening(Hub):
    """The hub, which also keeps what is said."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.deltas: list[Delta] = []

    def say(self, delta: Delta) -> None:
        self.deltas.append(delta)
        super().say(delta)


class Field:
    """One process with a store of its own."""

    def __init__(
        self,
        database: Database,
        tenant: str,
        script: Script,
        tools: ToolMaker | None = None,
        patterns: dict[str, Pattern] | None = None,
        slots: Slots | None = None,
        durable: DurableEngine | None = None,
    ) -> None:
        self.script = script
        self.engine = MemoryEngine()
        engine = durable or self.engine
        self.hub = Listening(database)
        self.scope = self.hub.scope(TenantId(tenant))
        self.begins: Engine = engine
        self.tree = Tree(database, engine, script, self.hub, roles(), Orchestration(), tools, patterns, slots)

    @classmethod
    async def of(
        cls,
        database: Database,
        script: Script,
        tools: ToolMaker | None = None,
        patterns: dict[str, Pattern] | None = None,
        slots: Slots | None = None,
    ) -> Field:
        tenant = await add_tenant(database, "A", "a", datetime.now(UTC))
        field = cls(database, str(tenant.id), script, tools, patterns, slots)
        await field.start()
        return field

    async def start(self) -> None:
        await self.engine.start(self.tree.handlers)

    async def order(
        self,
        text: str = "Compare A and B",
        *,
        config: TaskConfig | None = None,
        files: Sequence[NewFile] = (),
        **values: Any,
    ) -> str:
        """Keep a root and begin it; returns its id. `deadline`: seconds from now."""
        config = config or TaskConfig(decomposition_strategy="balanced", max_agents=4)
        tier = config.tier or "tribune"
        id = str(uuid_utils.uuid7())
        deadline = values.pop("deadline", 600)
        root = Task(
            id=id,
            tenant_id=self.scope.tenant_id,
            root_id=id,
            parent_task_id=None,
            key_hash=KeyHash("0" * 64),
            name="request",
            status="Pending",
            task_type="chat",
            model="hortator/default",
            role="generalist",
            tier=tier,
            pattern="team",
            source="tasks",
            priority="standard",
            depth=0,
            position=0,
            created_at=datetime.now(UTC),
            request={"messages": [{"role": "user", "content": text}]},
            config=to_builtins(config),
            deadline_at=datetime.now(UTC) + timedelta(seconds=deadline),
        )._replace(**values)
        assert await self.scope.add(root, files, [NewEvent(type="task_created", task_id=id)], 1_000) is not None
        await self.begins.begin("task", id, tenant_id=str(self.scope.tenant_id))
        return id

    def has_ended(self, root_id: str, name: str) -> Callable[[], Awaitable[bool]]:
        """Return what says whether a task of a tree has ended."""

        async def ended() -> bool:
            task = (await self.tasks(root_id)).get(name)
            return task is not None and task.status in TERMINAL

        return ended

    async def ended(self, id: str) -> Task:
        """Return a task once its handler and all others have returned."""
        await self.engine.settled()
        task = await self.scope.find(id)
        assert task is not None
        return task

    async def run(self, text: str = "Compare A and B", **values: Any) -> Task:
        """Order something and return it when it has ended."""
        return await self.ended(await self.order(text, **values))

    async def events(self, root_id: str, *types: str) -> list[Event]:
        return await self.scope.events(root_id, 0, 1_000, types or None)

    async def tasks(self, root_id: str) -> dict[str, Task]:
        """All tasks of a tree by name."""
        return {task.name: task for task in await self.scope.tree(root_id)}


def consistent(events: Sequence[Event]) -> None:
    """Check what holds for every log of a tree that has ended."""
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    ends = [
        event.type
        for event in events
        if event.type in ("completed", "failed", "cancelled", "budget_exceeded", "timed_out")
    ]
    assert ends == [events[-1].type]
    for type in ("task_started", "task_decomposed", "synthesis_started", "replanned"):
        told = [event.agent_id for event in events if event.type == type]
        assert len(told) == len(set(told)), type
    agents = [
        (event.type, event.agent_id)
        for event in events
        if event.type in ("agent_spawned", "agent_started", "partial_result")
    ]
    assert len(agents) == len(set(agents))
