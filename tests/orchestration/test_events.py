"""Views of trees' logs: complete, in order, cheap for the database, in this process and in another one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import pytest
import sqlalchemy
import uuid_utils

from hortator.call import KeyHash, TenantId
from hortator.orchestration import followed
from hortator.orchestration.events import Gauges, Hub
from hortator.store import Database, migrate
from hortator.store.notices import Notices
from hortator.store.queries import add_tenant
from hortator.store.tasks import NewEvent, Task
from hortator.wire.events import Delta, Event
from tests.databases import database, database_url
from tests.eventually import eventually

__all__ = ["database", "database_url"]

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
Item = Event | Delta


class Statements:
    """Counts what a database is asked."""

    def __init__(self, database: Database) -> None:
        self.selects = 0
        sqlalchemy.event.listen(database.engine.sync_engine, "before_cursor_execute", self._count)

    def _count(self, *arguments: object) -> None:
        self.selects += str(arguments[2]).lstrip().startswith("SELECT")


class World:
    """A tenant with a tree, and hubs as of several processes."""

    def __init__(self, database: Database, tenant_id: TenantId, stack: AsyncExitStack) -> None:
        self.database = database
        self.tenant_id = tenant_id
        self._stack = stack

    async def hub(self, database: Database | None = None) -> Hub:
        used = database or self.database
        notices = None if used.is_sqlite else Notices(used)
        hub = Hub(used, notices)
        await hub.start()
        self._stack.push_async_callback(hub.stop)
        if notices is not None:
            async with asyncio.timeout(10):
                await notices.ready()
        return hub

    async def elsewhere(self) -> tuple[Hub, Database]:
        """A hub as of another process, with connections of its own."""
        opened = Database(str(self.database.url.render_as_string(hide_password=False)))
        self._stack.push_async_callback(opened.close)
        return await self.hub(opened), opened

    async def tree(self, hub: Hub) -> Task:
        id = str(uuid_utils.uuid7())
        task = Task(
            id=id,
            tenant_id=self.tenant_id,
            root_id=id,
            parent_task_id=None,
            key_hash=KeyHash("0" * 64),
            name="t",
            status="Running",
            task_type="chat",
            model=None,
            role="generalist",
            tier="tribune",
            pattern="team",
            source="tasks",
            priority="standard",
            depth=0,
            position=0,
            created_at=NOW,
            request={},
        )
        added = await hub.scope(self.tenant_id).add(task, (), [NewEvent(type="task_created", task_id=id)], 100)
        assert added is not None
        return added.task

    async def end(self, hub: Hub, root: Task) -> None:
        done = NewEvent(type="completed", task_id=root.id)
        assert await hub.scope(self.tenant_id).change(root.id, "Completed", of=("Running",), values={}, events=[done])

    async def notes(self, hub: Hub, root: Task, count: int) -> None:
        for number in range(count):
            await hub.scope(self.tenant_id).emit(root.id, [note(root, str(number))])


def note(root: Task, text: str) -> NewEvent:
    return NewEvent(type="agent_message", task_id=root.id, fields={"content": text})


@pytest.fixture
async def world(database: Database) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield World(database, (await add_tenant(database, "A", "a", NOW)).id, stack)


@pytest.fixture
async def postgres(postgres_database: str) -> AsyncIterator[World]:
    from_url = Database(postgres_database)
    await migrate(from_url)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(from_url.close)
        yield World(from_url, (await add_tenant(from_url, "A", "a", NOW)).id, stack)


async def collect(items: AsyncIterator[Item]) -> list[Item]:
    async with asyncio.timeout(20):
        return [item async for item in items]


def seqs(items: list[Item]) -> list[int]:
    return [item.seq for item in items if isinstance(item, Event)]


async def test_followers_see_the_log_then_what_comes_until_the_end(world: World) -> None:
    hub = await world.hub()
    root = await world.tree(hub)
    await world.notes(hub, root, 3)
    early = asyncio.create_task(collect(hub.follow(world.tenant_id, root.id)))
    later = asyncio.create_task(collect(hub.follow(world.tenant_id, root.id, 3)))
    await eventually(lambda: hub.gauges().followers == 2)
    await world.notes(hub, root, 2)
    await world.end(hub, root)
    assert seqs(await early) == [1, 2, 3, 4, 5, 6, 7]
    assert seqs(await later) == [4, 5, 6, 7]
    assert await collect(hub.follow(world.tenant_id, root.id, 7)) == []
    assert seqs(await collect(hub.follow(world.tenant_id, root.id, 5))) == [6, 7]
    assert hub.gauges()._replace(reads=0) == Gauges(0, 0, 0, 0, 0, 0, 0)


async def test_another_tenant_follows_nothing_and_waits_for_nothing(world: World) -> None:
    hub = await world.hub()
    root = await world.tree(hub)
    stranger = (await add_tenant(world.database, "B", "b", NOW)).id
    ours = asyncio.create_task(collect(hub.follow(world.tenant_id, root.id, 0, True)))
    await eventually(lambda: hub.gauges().followers == 1)
    assert await collect(hub.follow(stranger, root.id, 0, True)) == []
    assert await hub.wait(stranger, root.id) is None
    await world.end(hub, root)
    await ours
    assert await collect(hub.follow(stranger, root.id, 0, True)) == []
    assert await collect(hub.follow(stranger, str(uuid_utils.uuid7()))) == []


async def test_a_thousand_followers_cost_the_database_next_to_nothing(world: World) -> None:
    hub = await world.hub()
    root = await world.tree(hub)
    followers = [asyncio.create_task(collect(hub.follow(world.tenant_id, root.id, n % 2))) for n in range(1_000)]
    await eventually(lambda: hub.gauges().followers == 1_000)
    statements = Statements(world.database)
    await world.notes(hub, root, 20)
    await world.end(hub, root)
    seen = await asyncio.gather(*followers)
    assert all(seqs(each)[-1] == 22 and len(each) in (21, 22) for each in seen)
    # The change that ends the tree reads two rows; a look at all that is followed comes every two seconds.
    assert statements.selects <= 10


async def test_followers_elsewhere_cost_one_read_a_wake_and_get_text(postgres: World) -> None:
    here = await postgres.hub()
    there, database = await postgres.elsewhere()
    root = await postgres.tree(here)
    followers = [
        asyncio.create_task(collect(there.follow(postgres.tenant_id, root.id, 0, n % 2 == 0))) for n in range(200)
    ]
    await eventually(lambda: there.gauges().followers == 200)
    statements = Statements(database)
    await postgres.notes(here, root, 10)
    text = "".join(chr(0x1F600 + number % 50) + "\n" for number in range(3_000))
    for start in range(0, len(text), 100):
        here.say(Delta(task_id=root.id, run=1, offset=start, text=text[start : start + 100]))
    await eventually(lambda: there.gauges().buffered >= 11 + len(text) // 1_000)
    await postgres.end(here, root)
    seen = await asyncio.gather(*followers)
    for number, items in enumerate(seen):
        assert seqs(items) == list(range(1, 13))
        said = [item for item in items if isinstance(item, Delta)]
        assert "".join(item.text for item in said) == (text if number % 2 == 0 else "")
        assert all(before.offset + len(before.text) == item.offset for before, item in itertools.pairwise(said))
    assert statements.selects <= 20


async def test_one_who_falls_behind_is_fed_from_the_log_and_blocks_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed, "ITEMS", 8)
    hub = await world.hub()
    root = await world.tree(hub)
    slow = hub.follow(world.tenant_id, root.id, 0, True)
    first = await anext(slow)
    assert isinstance(first, Event)
    quick = asyncio.create_task(collect(hub.follow(world.tenant_id, root.id, 0, False)))
    await eventually(lambda: hub.gauges().followers == 2)
    for number in range(30):
        await hub.scope(world.tenant_id).emit(root.id, [note(root, "x")])
        hub.say(Delta(task_id=root.id, run=1, offset=number, text="d"))
    await world.end(hub, root)
    assert seqs(await quick) == list(range(1, 33))
    rest = await collect(slow)
    assert [first.seq, *seqs(rest)] == list(range(1, 33))
    assert hub.gauges().behind >= 1


async def test_trees_share_the_memory_and_lose_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followed, "ALL_BYTES", 20_000)
    hub = await world.hub()
    roots = [await world.tree(hub) for _ in range(3)]
    views = [hub.follow(world.tenant_id, root.id) for root in roots]
    for view in views:
        await anext(view)
    for root in roots:
        await world.notes(hub, root, 40)
        await world.end(hub, root)
    assert hub.gauges().buffered < 3 * 42
    for view in views:
        assert seqs(await collect(view)) == list(range(2, 43))
    assert hub.gauges().bytes == 0


async def test_events_told_in_another_order_are_shown_in_theirs(world: World) -> None:
    hub = await world.hub()
    root = await world.tree(hub)
    seen = asyncio.create_task(collect(hub.follow(world.tenant_id, root.id)))
    await eventually(lambda: hub.gauges().followers == 1)
    quiet = Hub(world.database).scope(world.tenant_id)
    two, three, _ = [await quiet.emit(root.id, [note(root, "x")]) for _ in range(3)]
    hub.told(world.tenant_id, three)
    hub.told(world.tenant_id, two)
    # The fourth is never told: it is read, because the fifth is there.
    await world.end(hub, root)
    assert seqs(await seen) == [1, 2, 3, 4, 5]


async def test_what_nobody_told_is_found_all_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hortator.orchestration.events.RECHECK", 0.05)
    hub = await world.hub()
    root = await world.tree(hub)
    seen = asyncio.create_task(collect(hub.follow(world.tenant_id, root.id)))
    waiting = asyncio.create_task(hub.wait(world.tenant_id, root.id))
    await eventually(lambda: hub.gauges().followers == hub.gauges().waiting == 1)
    await world.end(Hub(world.database), root)
    assert seqs(await seen) == [1, 2]
    async with asyncio.timeout(10):
        task = await waiting
    assert task is not None
    assert task.status == "Completed"


async def test_a_follower_of_a_tree_that_is_deleted_comes_to_an_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hortator.orchestration.events.RECHECK", 0.05)
    hub = await world.hub()
    root = await world.tree(hub)
    seen = asyncio.create_task(collect(hub.follow(world.tenant_id, root.id)))
    await eventually(lambda: hub.gauges().followers == 1)
    async with world.database.write() as connection:
        for table in ("task_events", "tasks"):
            await connection.execute(sqlalchemy.text(f"DELETE FROM {table}"))
    assert seqs(await seen) == [1]


async def ended_soon(waiting: asyncio.Task[Task | None], status: str) -> None:
    async with asyncio.timeout(10):
        task = await waiting
    assert task is not None
    assert task.status == status


async def test_whoever_waits_for_a_task_is_told_at_once_of_its_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hortator.orchestration.events.RECHECK", 1e9)
    hub = await world.hub()
    root = await world.tree(hub)
    scope = hub.scope(world.tenant_id)
    child = root._replace(id=str(uuid_utils.uuid7()), parent_task_id=root.id, depth=1, last_seq=0)
    await scope.spawn(root, [child], (), (), 9)
    waiting = [asyncio.create_task(hub.wait(world.tenant_id, child.id)) for _ in range(3)]
    await eventually(lambda: hub.gauges().waiting == 3)
    assert await scope.change(child.id, "Completed", of=("Running",), values={"results": {"a": 1}}, events=())
    for each in waiting:
        await ended_soon(each, "Completed")
    late = await hub.wait(world.tenant_id, root.id, 0.01)
    assert late is not None
    assert late.status == "Running"
    assert hub.gauges().waiting == 0


async def test_other_processes_hear_of_ends_and_cancellations(postgres: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hortator.orchestration.events.RECHECK", 1e9)
    here, (there, _) = await postgres.hub(), await postgres.elsewhere()
    one, other = await postgres.tree(here), await postgres.tree(here)
    heard: dict[str, list[str]] = {"here": [], "there": []}
    here.on_cancel(heard["here"].extend)
    there.on_cancel(heard["there"].extend)
    waiting = [asyncio.create_task(there.wait(postgres.tenant_id, each.id)) for each in (one, other)]
    await eventually(lambda: there.gauges().waiting == 2)
    assert await here.scope(postgres.tenant_id).cancel(one.id, "enough") == [one.id]
    assert heard["here"] == [one.id]
    await postgres.end(here, other)
    await ended_soon(waiting[0], "Cancelled")
    await ended_soon(waiting[1], "Completed")
    await eventually(lambda: heard["there"] == [one.id])


async def test_a_lost_connection_comes_back_and_nothing_is_missed(postgres: World) -> None:
    hub, (other, _) = await postgres.hub(), await postgres.elsewhere()
    root, cancelled = await postgres.tree(hub), await postgres.tree(hub)
    heard: list[str] = []
    hub.on_cancel(heard.extend)
    seen = asyncio.create_task(collect(hub.follow(postgres.tenant_id, root.id)))
    await eventually(lambda: hub.gauges().followers == 1)
    async with postgres.database.write() as connection:
        kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        chosen = "WHERE application_name = 'hortator notices' AND datname = current_database()"
        await connection.execute(sqlalchemy.text(f"{kill} {chosen}"))
    await other.scope(postgres.tenant_id).cancel(cancelled.id, "enough")
    await postgres.notes(other, root, 3)
    await postgres.end(other, root)
    assert seqs(await seen) == [1, 2, 3, 4, 5]
    await eventually(lambda: cancelled.id in heard)


async def test_half_a_character_stops_no_text(postgres: World) -> None:
    here, (there, _) = await postgres.hub(), await postgres.elsewhere()
    root = await postgres.tree(here)
    seen = [asyncio.create_task(collect(hub.follow(postgres.tenant_id, root.id, 1, True))) for hub in (here, there)]
    await eventually(lambda: here.gauges().followers == there.gauges().followers == 1)
    before = there.gauges().buffered
    for offset, text in enumerate("\ud83da"):
        here.say(Delta(task_id=root.id, run=1, offset=offset, text=text))
    await eventually(lambda: there.gauges().buffered > before)
    await postgres.end(here, root)
    for items in await asyncio.gather(*seen):
        assert "".join(each.text for each in items if isinstance(each, Delta)) == "\ufffda"


async def test_a_stopping_hub_ends_its_followers(world: World) -> None:
    hub = await world.hub()
    root = await world.tree(hub)
    seen = asyncio.create_task(collect(hub.follow(world.tenant_id, root.id)))
    await eventually(lambda: hub.gauges().followers == 1)
    await hub.stop()
    assert seqs(await seen) == [1]


async def test_a_follower_that_leaves_leaves_nothing_behind(world: World) -> None:
    hub = await world.hub()
    root = await world.tree(hub)

    async def leave_at_once() -> None:
        async with contextlib.aclosing(hub.follow(world.tenant_id, root.id)) as items:
            await anext(items)

    await asyncio.gather(*(leave_at_once() for _ in range(20)))
    assert hub.gauges()._replace(reads=0) == Gauges(0, 0, 0, 0, 0, 0, 0)
