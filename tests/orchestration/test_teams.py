"""The room's door: orders are checked, decided, kept and begun once; views show the tenant's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import uuid_utils

from hortator.call import Caller, KeyHash, Limit, TenantId, Usage
from hortator.errors import (
    Conflict,
    Forbidden,
    Gone,
    HortatorError,
    InvalidRequest,
    NotFound,
    Overloaded,
    RateLimited,
    TooLarge,
)
from hortator.orchestration.events import Hub
from hortator.orchestration.roles import Roles
from hortator.orchestration.slots import Slots
from hortator.orchestration.teams import KIND, Order, Teams
from hortator.settings import Orchestration
from hortator.store import Database
from hortator.store.queries import add_tenant
from hortator.store.tasks import Filter, NewEvent, NewFile, Task, Took
from hortator.wire.events import Delta, Event
from hortator.wire.tasks import Budget, TaskConfig
from tests.databases import database, database_url
from tests.eventually import eventually
from tests.orchestration.memory_engine import MemoryEngine

__all__ = ["database", "database_url"]

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
HELLO = ({"role": "user", "content": "Compare the two contracts\nand say which is better"},)
ROLES = Roles()


class Calls:
    """Callbacks that are only noted."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, str]] = []

    async def check(self, caller: Caller, url: str, events: Sequence[str] | None) -> None:
        if "private" in url:
            raise InvalidRequest("not there", code="url_not_allowed", param="callback_url")

    async def begin(self, tenant_id: TenantId, root_id: str, url: str, events: Sequence[str] | None) -> None:
        self.begun.append((root_id, url))


class Room:
    """The room's door with what it needs, on a store of its own."""

    def __init__(self, database: Database, tenants: Sequence[TenantId]) -> None:
        self.database = database
        self.engine = MemoryEngine()
        self.hub = Hub(database)
        self.calls = Calls()
        self.now = NOW
        self.ours, self.theirs = (Caller(tenant_id=each, key_hash=KeyHash("1" * 64), key_name="k") for each in tenants)
        self.teams = self.with_settings(Orchestration())

    def with_settings(self, settings: Orchestration, **more: Any) -> Teams:
        clock: Callable[[], datetime] = lambda: self.now  # noqa: E731
        return Teams(self.database, self.engine, self.hub, ROLES, settings, callbacks=self.calls, clock=clock, **more)

    async def idle(self, task_id: str) -> None:
        """Work on nothing."""
        await asyncio.Event().wait()

    async def end(self, root: Task, status: str = "Completed", type: str = "completed") -> None:
        scope = self.hub.scope(root.tenant_id)
        assert await scope.change(
            root.id, status, of=("Pending",), values={}, events=[NewEvent(type=type, task_id=root.id)]
        )

    async def child(self, parent: Task, **values: Any) -> Task:
        task = parent._replace(
            id=str(uuid_utils.uuid7()), parent_task_id=parent.id, depth=parent.depth + 1, last_seq=0,
            idempotency_key=None, **values,
        )  # fmt: skip
        assert await self.hub.scope(parent.tenant_id).spawn(parent, [task], (), (), 100)
        return task


@pytest.fixture
async def room(database: Database) -> AsyncIterator[Room]:
    room = Room(database, [(await add_tenant(database, name, name, NOW)).id for name in ("a", "b")])
    await room.hub.start()
    await room.engine.start({KIND: room.idle})
    yield room
    await room.engine.stop()
    await room.hub.stop()


def order(**values: Any) -> Order:
    return Order(**{"messages": HELLO, **values})


async def refused(room: Room, error: type[HortatorError], code: str, teams: Teams | None = None, **values: Any) -> None:
    caller = values.pop("caller", room.ours)
    with pytest.raises(error) as caught:
        await (teams or room.teams).submit(caller, order(**values))
    assert caught.value.code == code


def config(task: Task) -> dict[str, Any]:
    assert task.config is not None
    return dict(task.config)


async def test_an_order_becomes_a_root_that_is_kept_told_and_begun(room: Room) -> None:
    files = [NewFile("src/a.py", b"1", "text/plain")]
    root = await room.teams.submit(room.ours, order(model="hortator/coding-expert", files=files, interactive=True))
    assert await room.teams.find(room.ours, root.id.upper()) == root
    assert (root.status, root.role, root.tier, root.pattern, root.source) == (
        "Pending", "coding-expert", "tribune", "team", "tasks",
    )  # fmt: skip
    assert root.name == "Compare the two contracts and say which is better"
    assert root.request["messages"] == [dict(HELLO[0])]
    assert (root.max_cost, root.max_tokens, root.key_hash) == (Decimal("1"), None, room.ours.key_hash)
    assert root.deadline_at == NOW + timedelta(hours=1)
    decided = config(root)
    assert (decided["max_agents"], decided["decomposition_strategy"], decided["timeout"]) == (3, "balanced", 3600)
    assert decided["capabilities"] == ["spawn"]
    (event,) = await room.teams.events(room.ours, root.id, 0, 10)
    assert (event.type, event.details["role"]) == ("task_created", "coding-expert")
    assert [each.path for each in await room.teams.files(room.ours, root.id, "")] == ["inbox/src/a.py"]
    (begun,) = room.engine.begun
    assert (begun.kind, begun.id, begun.tenant_id, begun.here) == (KIND, root.id, room.ours.tenant_id, True)


@pytest.mark.parametrize(
    ("path", "tier", "strategy", "agents"),
    [("fast", "legionary", "none", 3), ("standard", "tribune", "balanced", 3), ("complex", "tribune", "aggressive", 8)],
)
async def test_the_complexity_decides_what_an_order_leaves_open(
    room: Room, path: str, tier: str, strategy: str, agents: int
) -> None:
    """R-000-35 to R-000-37."""
    root = await room.teams.submit(room.ours, order(path=path))
    decided = config(root)
    assert (root.tier, decided["decomposition_strategy"], decided["max_agents"]) == (tier, strategy, agents)
    own = TaskConfig(tier="legionary", max_agents=12, decomposition_strategy="aggressive", timeout="45s")
    root = await room.teams.submit(room.ours, order(path=path, config=own))
    decided = config(root)
    assert (root.tier, decided["decomposition_strategy"], decided["max_agents"]) == ("legionary", "none", 12)
    assert (decided["timeout"], root.deadline_at) == (45, NOW + timedelta(seconds=45))


@pytest.mark.parametrize(
    ("task_type", "role"),
    [
        ("code_review", "coding-expert"),
        ("document_review", "legal-reviewer"),
        ("literature_review", "researcher"),
        ("architecture_review", "coding-expert"),
        ("chat", "generalist"),
        ("my.own", "generalist"),
    ],
)
async def test_an_order_that_names_no_role_comes_to_the_one_that_leads_its_type(
    room: Room, task_type: str, role: str
) -> None:
    """R-000-50."""
    assert (await room.teams.submit(room.ours, order(task_type=task_type))).role == role
    named = await room.teams.submit(room.ours, order(task_type=task_type, model="hortator/editor"))
    assert named.role == "editor"


async def test_models_that_are_no_roles_are_refused_as_each_door_says_it(room: Room) -> None:
    await refused(room, InvalidRequest, "unknown_role", model="hortator/coding-expertt")
    await refused(room, NotFound, "model_not_found", model="hortator/coding-expertt", source="chat")
    await refused(room, NotFound, "model_not_found", model="hortator/pattern-x", source="messages")
    await refused(room, InvalidRequest, "invalid_value", model="hortator/pattern-smart", pattern="workers")
    root = await room.teams.submit(room.ours, order(model="hortator/pattern-smart"))
    assert (root.pattern, root.role) == ("smart", "generalist")
    assert (await room.teams.submit(room.ours, order(model="hortator/coding-coding-expert"))).role == "coding-expert"


async def test_a_key_orders_only_teams_and_models_that_it_may_use(room: Room) -> None:
    narrow = Caller(
        tenant_id=room.ours.tenant_id,
        key_hash=KeyHash("2" * 64),
        key_name="n",
        allowed_models=("hortator/coding-*", "groq/*"),
    )
    await room.teams.submit(narrow, order(model="hortator/coding-expert", config=TaskConfig(model="groq/x")))
    await room.teams.submit(narrow, order(model="hortator/security-reviewer"))  # by its spelling with the domain
    await refused(room, Forbidden, "model_not_allowed", caller=narrow, model="hortator/legal-writer")
    await refused(room, Forbidden, "model_not_allowed", caller=narrow, model="hortator/pattern-smart")
    named: list[dict[str, Any]] = [
        {"config": TaskConfig(model="openai/x")},
        {"config": TaskConfig(models={"legionary": "openai/x"})},
        {"pattern": "workers", "arguments": {"worker_model": "openai/x"}},
        {"pattern": "parallel", "arguments": {"requests": [{"prompt": "a"}, {"prompt": "b", "model": "openai/x"}]}},
    ]
    for values in named:
        await refused(
            room, Forbidden, "model_not_allowed", caller=narrow, **{"model": "hortator/coding-expert", **values}
        )
    await refused(room, InvalidRequest, "invalid_value", config=TaskConfig(model="hortator/default"))
    assert len(await room.teams.page(room.ours, Filter(), None, 10)) == 2


async def test_agents_may_use_what_is_asked_for_and_offered_here(room: Room) -> None:
    wish = TaskConfig(capabilities=("shell", "web-fetch"))
    await refused(room, Forbidden, "capability_not_allowed", config=wish)
    teams = room.with_settings(Orchestration(shell=True))
    await refused(room, Forbidden, "capability_not_allowed", teams, config=wish)
    teams = room.with_settings(Orchestration(shell=True, egress=("example.com",)))
    assert config(await teams.submit(room.ours, order(config=wish)))["capabilities"] == ["shell", "spawn", "web-fetch"]
    assert config(await teams.submit(room.ours, order()))["capabilities"] == ["spawn"]


async def test_domain_parameters_are_checked_by_role_and_type(room: Room) -> None:
    good = TaskConfig(parameters={"jurisdiction": "EU"})
    root = await room.teams.submit(room.ours, order(model="hortator/legal-reviewer", config=good))
    assert config(root)["parameters"] == {"jurisdiction": "EU"}
    bad = TaskConfig(parameters={"colour": "red"})
    await refused(room, InvalidRequest, "invalid_domain_parameter", model="hortator/legal-reviewer", config=bad)


async def test_budgets_come_from_the_order_the_settings_and_the_keys_limits(room: Room) -> None:
    own = TaskConfig(budget=Budget(max_tokens=500, max_cost_usd="0.12345678901"[:12]))
    root = await room.teams.submit(room.ours, order(config=own))
    assert (root.max_tokens, root.max_cost) == (500, Decimal("0.1234567890"))
    limits = (
        Limit(key="m", text="0.5 usd/day", kind="money", window=86_400, amount=500_000_000),
        Limit(key="t", text="10 tokens/minute", kind="tokens", window=60, amount=10),
    )
    caller = Caller(tenant_id=room.ours.tenant_id, key_hash=KeyHash("2" * 64), key_name="n", limits=limits)
    root = await room.teams.submit(caller, order())
    assert (root.max_tokens, root.max_cost) == (None, Decimal("0.5"))
    for budget, timeout in (
        (Budget(max_cost_usd="0.6"), None),
        (Budget(max_tokens=11), "30s"),
        (Budget(max_cost_usd=1e300), None),
    ):
        await refused(
            room, InvalidRequest, "invalid_value", caller=caller, config=TaskConfig(budget=budget, timeout=timeout)
        )
    free = room.with_settings(Orchestration(max_cost_usd=None, max_tokens=7))
    root = await free.submit(room.ours, order())
    assert (root.max_tokens, root.max_cost) == (7, None)


async def test_the_priority_is_the_lower_of_the_keys_and_the_asked(room: Room) -> None:
    high = Caller(tenant_id=room.ours.tenant_id, key_hash=KeyHash("2" * 64), key_name="n", priority="high")
    assert (await room.teams.submit(high, order())).priority == "high"
    assert (await room.teams.submit(high, order(priority="low"))).priority == "low"
    assert (await room.teams.submit(room.ours, order(priority="high"))).priority == "standard"
    assert [each.priority for each in room.engine.begun] == ["high", "low", "standard"]


async def test_files_are_bounded_and_stay_in_the_inbox(room: Room) -> None:
    teams = room.with_settings(Orchestration(max_files=2, max_files_bytes=5))
    file = NewFile("a", b"123", "text/plain")
    await refused(room, TooLarge, "request_too_large", teams, files=[file] * 3)
    await refused(room, TooLarge, "request_too_large", teams, files=[file, file._replace(path="b")])
    await refused(room, InvalidRequest, "invalid_file_path", teams, files=[file._replace(path="../a")])
    await refused(room, InvalidRequest, "invalid_file_path", teams, files=[file._replace(content=b"")] * 2)


async def test_an_idempotency_key_stands_for_one_order(room: Room) -> None:
    id = str(uuid_utils.uuid7())
    first = await room.teams.submit(room.ours, order(idempotency_key="k"), id=id)
    assert first.id == id
    again = await room.teams.submit(room.ours, order(idempotency_key="k", interactive=True))
    assert again.id == first.id
    with pytest.raises(Conflict) as caught:
        await room.teams.submit(room.ours, order(idempotency_key="k", task_type="code"))
    assert caught.value.code == "idempotency_key_reused"
    assert (await room.teams.submit(room.theirs, order(idempotency_key="k"))).id != first.id
    assert len(room.engine.begun) == 2


async def test_a_tenant_and_a_process_take_no_more_than_they_can(room: Room) -> None:
    teams = room.with_settings(Orchestration(tenant_unfinished=1))
    root = await teams.submit(room.ours, order())
    await refused(room, RateLimited, "too_many_tasks", teams)
    await teams.submit(room.theirs, order())
    await room.end(root)
    await teams.submit(room.ours, order())
    slots = Slots(1)
    full = room.with_settings(Orchestration(max_trees=1), slots=slots)
    async with slots.hold(room.ours.tenant_id, "standard"):

        async def wait() -> None:
            async with slots.hold(room.ours.tenant_id, "standard"):
                pass

        waiting = asyncio.create_task(wait())
        await eventually(lambda: slots.waiting == 1)
        await refused(room, Overloaded, "overloaded", full, interactive=True)
        await full.submit(room.ours, order())
    await waiting


async def test_what_could_not_be_begun_is_begun_later(room: Room) -> None:
    await room.engine.crash()
    root = await room.teams.submit(room.ours, order(callback_url="https://example.com/x"))
    assert room.engine.begun == []
    running = await room.teams.submit(room.ours, order())
    await room.hub.scope(room.ours.tenant_id).change(running.id, "Running", of=("Pending",), values={}, events=())
    await room.engine.start({KIND: room.idle})
    assert await room.teams.sweep() == 0  # perhaps somebody is just about to begin it
    room.now += timedelta(minutes=1)
    assert await room.teams.sweep() == 1
    assert await room.teams.sweep() == 0
    assert [each.id for each in room.engine.begun] == [root.id]
    assert room.calls.begun[-1] == (root.id, "https://example.com/x")
    assert await room.with_settings(Orchestration()).sweep(all=True) == 2
    assert {each.id for each in room.engine.begun} == {root.id, running.id}


async def test_the_start_begins_what_was_left_and_the_stop_leaves_nothing(room: Room) -> None:
    await room.engine.crash()
    root = await room.teams.submit(room.ours, order())
    await room.engine.start({KIND: room.idle})
    await room.teams.start()
    await eventually(lambda: [each.id for each in room.engine.begun] == [root.id])
    await room.teams.stop()


async def test_a_callback_is_checked_before_anything_is_kept(room: Room) -> None:
    await refused(room, InvalidRequest, "url_not_allowed", callback_url="http://private/")
    assert await room.teams.page(room.ours, Filter(), None, 10) == []
    root = await room.teams.submit(room.ours, order(callback_url="https://a/", callback_events=["completed"]))
    assert root.request["callback_events"] == ["completed"]
    assert room.calls.begun == [(root.id, "https://a/")]


async def test_another_tenant_finds_nothing(room: Room) -> None:
    root = await room.teams.submit(room.ours, order())
    for id in (root.id, "x", str(uuid_utils.uuid7()), "\0"):
        for ask in (
            room.teams.find,
            room.teams.tree,
            room.teams.cancel,
            room.teams.steps,
            room.teams.files,
            room.teams.finished,
        ):
            with pytest.raises(NotFound) as caught:
                await ask(room.theirs, id)
            assert caught.value.code == "task_not_found"
        with pytest.raises(NotFound):
            await room.teams.say(room.theirs, id, "hi")
        with pytest.raises(NotFound):
            await room.teams.events(room.theirs, id, 0, 1)
        with pytest.raises(NotFound):
            await anext(room.teams.follow(room.theirs, id))
    assert await room.teams.page(room.theirs, Filter(), None, 10) == []
    assert await room.teams.page(room.theirs, Filter(), root.id, 10) == []
    assert (await room.teams.find(room.ours, root.id)).status == "Pending"


async def test_views_of_a_part_show_it_and_what_is_below(room: Room) -> None:
    root = await room.teams.submit(room.ours, order())
    scope = room.hub.scope(room.ours.tenant_id)
    one, other = await room.child(root, position=0), await room.child(root, position=1)
    leaf = await room.child(one)
    for task in (other, leaf):
        await scope.begin(task, "turn.1", "model", "m", None)
        await scope.settle(task, "turn.1", Took("r", None, Usage(input=1, output=2), Decimal("0.1")), ())
        for path in ("outbox/x", "note"):
            content = task.id.encode()
            await scope.put(task, NewFile(path, content, "text/plain"), most_files=9, most_bytes=999)
    assert [each.id for each in await room.teams.tree(room.ours, one.id)] == [one.id, leaf.id]
    assert [each.task_id for each in await room.teams.steps(room.ours, one.id)] == [leaf.id]
    assert len(await room.teams.steps(room.ours, root.id)) == 2
    assert [each.task_id for each in await room.teams.files(room.ours, one.id)] == [leaf.id]
    assert (await room.teams.file(room.ours, root.id, "outbox/x"))[1] == other.id.encode()
    assert (await room.teams.file(room.ours, one.id, "outbox/x"))[1] == leaf.id.encode()
    with pytest.raises(NotFound) as caught:
        await room.teams.file(room.ours, one.id, "outbox/y")
    assert caught.value.code == "artifact_not_found"
    assert len(await room.teams.page(room.ours, Filter(roots=False), None, 10)) == 4


async def test_a_message_reaches_a_running_tree_only(room: Room) -> None:
    root = await room.teams.submit(room.ours, order())
    event = await room.teams.say(room.ours, root.id, "rather in French")
    assert (event.type, event.content, event.seq) == ("user_message", "rather in French", 2)
    with pytest.raises(TooLarge):
        await room.teams.say(room.ours, root.id, "x" * 100_001)
    with pytest.raises(InvalidRequest):
        await room.teams.say(room.ours, root.id, " ")
    await room.end(root)
    with pytest.raises(Conflict) as caught:
        await room.teams.say(room.ours, root.id, "late")
    assert caught.value.code == "task_not_running"


async def test_a_cancelled_tree_is_seen_to_end_by_whoever_follows_and_waits(room: Room) -> None:
    root = await room.teams.submit(room.ours, order())
    child = await room.child(root)

    async def followed() -> list[Event | Delta]:
        return [each async for each in room.teams.follow(room.ours, child.id, deltas=True)]

    following = asyncio.create_task(followed())
    finishing = asyncio.create_task(room.teams.finished(room.ours, child.id))
    await eventually(lambda: room.hub.gauges().followers == room.hub.gauges().waiting == 1)
    room.hub.say(Delta(task_id=root.id, run=1, offset=0, text="Well"))
    assert (await room.teams.finished(room.ours, child.id, 0.01)).status == "Pending"
    assert (await room.teams.cancel(room.ours, root.id)).status == "Cancelled"
    assert (await room.teams.cancel(room.ours, root.id)).status == "Cancelled"
    async with asyncio.timeout(10):
        assert (await finishing).status == "Cancelled"
        seen = await following
    assert [getattr(each, "type", "delta") for each in seen] == [
        "task_created",
        "delta",
        "agent_cancelled",
        "cancelled",
    ]


async def test_old_trees_are_forgotten_and_their_logs_are_gone(room: Room) -> None:
    roots = [await room.teams.submit(room.ours, order()) for _ in range(3)]
    for root in roots[:2]:
        await room.end(root)
    assert await room.teams.forget_old() == 0
    room.now = datetime.now(UTC) + timedelta(days=31)
    assert await room.teams.forget_old() == 2
    assert [each.id for each in await room.teams.page(room.ours, Filter(), None, 9)] == [roots[2].id]
    async with room.database.write() as connection:
        await connection.exec_driver_sql("DELETE FROM task_events WHERE seq < 2")
    with pytest.raises(Gone) as caught:
        await anext(room.teams.follow(room.ours, roots[2].id))
    assert caught.value.code == "events_expired"
