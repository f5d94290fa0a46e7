"""Tasks, steps, events and files on SQLite and Postgres: budgets that hold under races, logs without gaps, tenants apart."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import uuid_utils

from hortator.call import KeyHash, TenantId, Usage
from hortator.store import Database
from hortator.store.queries import add_tenant
from hortator.store.tasks import (
    Filter,
    NewEvent,
    NewFile,
    Place,
    Task,
    TaskScope,
    Took,
    Want,
    find_work,
    forget_trees,
    unfinished_roots,
)
from hortator.wire.events import Event

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
Heard = list[tuple[TenantId, Sequence[Event]]]


class Room(TaskScope):
    """A tenant's scope, and what it told."""

    def __init__(self, database: Database, tenant_id: TenantId) -> None:
        self.heard: Heard = []
        super().__init__(database, tenant_id, lambda tenant, events: self.heard.append((tenant, events)))


def fresh_id() -> str:
    return str(uuid_utils.uuid7())


def a_task(room: TaskScope, parent: Task | None = None, **values: Any) -> Task:
    id = values.pop("id", None) or fresh_id()
    task = Task(
        id=id,
        tenant_id=room.tenant_id,
        root_id=id if parent is None else parent.root_id,
        parent_task_id=None if parent is None else parent.id,
        key_hash=KeyHash("0" * 64),
        name="t",
        status="Pending",
        task_type="chat",
        model="hortator/default",
        role="default",
        tier="tribune",
        pattern="team",
        source="tasks",
        priority="standard",
        depth=0 if parent is None else parent.depth + 1,
        position=0,
        created_at=values.pop("created_at", NOW),
        request={"messages": []},
    )
    return task._replace(**values)


@pytest.fixture
async def ours(database: Database) -> Room:
    return Room(database, (await add_tenant(database, "A", "a", NOW)).id)


@pytest.fixture
async def theirs(database: Database) -> Room:
    return Room(database, (await add_tenant(database, "B", "b", NOW)).id)


async def rooted(room: Room, **values: Any) -> Task:
    added = await room.add(a_task(room, **values), (), (), 1_000)
    assert added is not None
    return added.task


async def line(room: Room, root: Task, limits: Sequence[dict[str, Any]]) -> list[Task]:
    """A root with a child with a child, ... each with its budget."""
    path = [root]
    for each in limits:
        child = a_task(room, path[-1], **each)
        assert await room.spawn(path[-1], [child], (), (), 100)
        path.append(child)
    return path


async def fresh(room: Room, task: Task) -> Task:
    found = await room.find(task.id)
    assert found is not None
    return found


def want(input: int, output: int, least: int = 1, price: str | None = None) -> Want:
    cost = None if price is None else Decimal(price)
    return Want(input, output, least, cost, cost)


def took(input: int, output: int, cost: str | None = None, result: Any = "ok") -> Took:
    return Took(result, None, Usage(input=input, output=output), None if cost is None else Decimal(cost))


def note(task: Task, text: str = "n") -> NewEvent:
    return NewEvent(type="agent_message", task_id=task.id, fields={"content": text})


async def test_a_root_comes_back_as_it_was_kept_with_its_files_and_first_event(ours: Room) -> None:
    root = a_task(
        ours,
        max_cost=Decimal("0.1000000001"),
        max_tokens=5,
        deadline_at=NOW + timedelta(hours=1),
        config={"max_agents": 3},
    )
    file = NewFile("inbox/a.txt", b"\x00\xff", "text/plain")
    added = await ours.add(root, [file], [NewEvent(type="task_created", task_id=root.id, fields={"message": "hi"})], 10)
    assert added is not None
    assert added.created
    assert added.task == root._replace(last_seq=1) == await ours.find(root.id)
    (event,) = await ours.events(root.id, 0, 10)
    assert (event.seq, event.task_id, event.type, event.message, event.agent_id) == (
        1,
        root.id,
        "task_created",
        "hi",
        None,
    )
    assert event.timestamp.endswith("Z")
    assert len(event.timestamp) == len("2026-11-21T12:00:00.000Z")
    assert ours.heard == [(ours.tenant_id, [event])]
    found = await ours.file(root.id, "inbox/a.txt")
    assert found is not None
    assert found[1] == file.content
    assert found[0].bytes == 2


async def test_the_same_idempotency_key_makes_one_tree_also_at_once(ours: Room, theirs: Room) -> None:
    orders = [a_task(ours, idempotency_key="k", fingerprint="f") for _ in range(4)]
    made = await asyncio.gather(*(ours.add(each, (), (), 100) for each in orders))
    assert sum(each is not None and each.created for each in made) == 1
    assert len({each.task.id for each in made if each is not None}) == 1
    other = await ours.add(a_task(ours, idempotency_key="k", fingerprint="g"), (), (), 100)
    assert other is not None
    assert not other.created
    assert not other.same
    elsewhere = await theirs.add(a_task(theirs, idempotency_key="k", fingerprint="f"), (), (), 100)
    assert elsewhere is not None
    assert elsewhere.created


async def test_a_tenant_has_no_more_unfinished_trees_than_it_may_also_at_once(ours: Room) -> None:
    made = await asyncio.gather(*(ours.add(a_task(ours), (), (), 2) for _ in range(5)))
    kept = [each.task for each in made if each is not None]
    assert len(kept) == 2
    assert await ours.change(kept[0].id, "Completed", of=("Pending",), values={}, events=())
    assert await ours.add(a_task(ours), (), (), 2) is not None
    assert await ours.add(a_task(ours), (), (), 2) is None


async def test_a_tenant_sees_and_changes_its_own_only(ours: Room, theirs: Room) -> None:
    root = await rooted(ours, max_tokens=100)
    await ours.begin(root, "plan", "model", "m", want(10, 10))
    await ours.put(root, NewFile("outbox/x", b"x", "text/plain"), most_files=9, most_bytes=9)
    await ours.emit(root.id, [note(root)])
    assert await theirs.find(root.id) is None
    assert await theirs.tree(root.id) == []
    assert await theirs.outline(root.id) == []
    assert await theirs.page(Filter(), None, 10) == []
    assert await theirs.page(Filter(), root.id, 10) == []
    assert await theirs.events(root.id, 0, 10) == []
    assert await theirs.emit(root.id, [note(root)]) == []
    assert await theirs.floor(root.id) is None
    assert await theirs.step(root.id, "plan") is None
    assert await theirs.steps(root.id) == []
    assert await theirs.file(root.id, "outbox/x") is None
    assert await theirs.files([root.id]) == []
    assert await theirs.cancel(root.id, "no") == []
    assert not await theirs.change(root.id, "Running", of=("Pending",), values={}, events=())
    assert not await theirs.change(root.id, "Running", of=("Pending",), values={}, events=(), place=root)
    assert not await theirs.spawn(root, [a_task(theirs, root)], (), (), 10)
    assert (await theirs.begin(root, "x", "model", "m", want(1, 1))).stopped
    with pytest.raises(ValueError, match="not begun"):
        await theirs.settle(root, "plan", took(1, 1), ())
    assert (await fresh(ours, root)).held_tokens == 20
    assert [each.seq for each in await ours.events(root.id, 0, 10)] == [1]


async def test_a_page_goes_from_new_to_old_and_shows_what_was_chosen(ours: Room) -> None:
    roots = [
        await rooted(ours, created_at=NOW + timedelta(seconds=number // 2), source="chat" if number % 2 else "tasks")
        for number in range(6)
    ]
    (child,) = (await line(ours, roots[0], [{}]))[1:]
    seen: list[str] = []
    after = None
    while page := await ours.page(Filter(), after, 2):
        seen += [each.id for each in page]
        after = page[-1].id
    assert seen == [each.id for each in sorted(roots, key=lambda task: (task.created_at, task.id), reverse=True)]
    assert len(await ours.page(Filter(source="chat"), None, 10)) == 3
    assert child.id in {each.id for each in await ours.page(Filter(roots=False), None, 10)}


async def test_the_tasks_of_trees_are_counted_by_status(ours: Room, theirs: Room) -> None:
    root, empty, foreign = await rooted(ours), await rooted(ours), await rooted(theirs)
    children = [a_task(ours, root, position=at, name=f"c{at}") for at in range(3)]
    assert await ours.spawn(root, children, [], [], 100)
    assert await ours.change(children[0].id, "Completed", of=("Pending",), values={}, events=[])
    assert await ours.counted([root.id, empty.id, foreign.id]) == {
        root.id: {"Completed": 1, "Pending": 3},
        empty.id: {"Pending": 1},
        foreign.id: {},
    }


async def test_children_are_added_once_with_their_events_and_never_too_many(ours: Room) -> None:
    root = await rooted(ours)
    children = [a_task(ours, root, position=number, name=f"c{number}") for number in (1, 0)]
    events = [NewEvent(type="agent_spawned", task_id=each.id, fields={"task": each.name}) for each in children]
    file = (children[0].id, NewFile("inbox/a", b"a", "text/plain"))
    for _ in range(2):
        assert await ours.spawn(root, children, [file], events, 4)
    assert [each.name for each in await ours.tree(root.id)] == ["t", "c0", "c1"]
    assert [each.agent_id for each in await ours.events(root.id, 0, 9)] == [each.id for each in children]
    assert len(await ours.files([root.id, children[0].id])) == 1
    assert not await ours.spawn(root, [a_task(ours, root), a_task(ours, root)], (), (), 4)
    assert len(await ours.tree(root.id)) == 3


async def test_a_cancelled_tree_takes_no_children_and_begins_no_step(ours: Room) -> None:
    path = await line(ours, await rooted(ours, max_tokens=1000), [{}, {}, {"name": "deep"}])
    await ours.begin(path[3], "plan", "model", "m", want(10, 10))
    assert (await fresh(ours, path[0])).held_tokens == 20
    await ours.change(path[2].id, "Completed", of=("Pending",), values={}, events=())
    assert set(await ours.cancel(path[0].id, "enough")) == {path[each].id for each in (0, 1, 3)}
    assert await ours.cancel(path[0].id, "enough") == []
    assert not await ours.spawn(path[1], [a_task(ours, path[1])], (), (), 100)
    assert (await ours.begin(path[1], "plan", "model", "m", want(1, 1))).stopped
    assert (await ours.begin(path[3], "tool", "tool", "t", None)).stopped
    tree = await ours.tree(path[0].id)
    assert [each.status for each in tree] == ["Cancelled", "Cancelled", "Completed", "Cancelled"]
    assert [each.held_tokens for each in tree] == [0, 0, 0, 0]
    events = await ours.events(path[0].id, 0, 10)
    assert [each.type for each in events] == ["agent_cancelled", "agent_cancelled", "cancelled"]
    assert (events[0].task, events[2].message) == ("deep", "enough")
    # The call that was still running is charged, though nobody is told any more.
    await ours.settle(path[3], "plan", took(7, 3), [note(path[3])])
    assert (await fresh(ours, path[0])).output_tokens == 3
    assert (await fresh(ours, path[0])).held_tokens == 0
    assert len(await ours.events(path[0].id, 0, 10)) == 3


async def test_cancelling_a_part_leaves_the_rest_and_gives_back_what_it_held(ours: Room) -> None:
    root = await rooted(ours, max_tokens=1000)
    one, other = a_task(ours, root), a_task(ours, root)
    await ours.spawn(root, [one, other], (), (), 10)
    for task in (one, other):
        await ours.begin(task, "plan", "model", "m", want(10, 10, price="0.01"))
    assert await ours.cancel(one.id, "no need") == [one.id]
    assert [each.type for each in await ours.events(root.id, 0, 10)] == ["agent_cancelled"]
    after = await fresh(ours, root)
    assert (after.status, after.held_tokens, after.held_cost) == ("Pending", 20, Decimal("0.2"))
    await ours.settle(one, "plan", took(10, 1, "0.11"), ())
    assert (await fresh(ours, root)).held_tokens == 20


async def test_statements_kept_for_many_tenants_read_for_their_own_only(database: Database, ours: Room) -> None:
    """More tenants than statements are kept for, ours again and again."""
    root = await rooted(ours)
    for _ in range(70):
        assert await Room(database, TenantId(fresh_id())).find(root.id) is None
        assert await ours.find(root.id) == root


async def test_who_knows_where_a_task_is_changes_it_and_its_trees_log_alike(ours: Room) -> None:
    root = await rooted(ours)
    path = await line(ours, root, [{}, {}, {}])
    for number, task in enumerate(path, 1):
        place = Place(task.id, task.root_id, task.parent_task_id, task.depth)
        change: dict[str, Any] = {"of": ("Pending",), "values": {"progress": number}, "events": [note(task)]}
        assert await ours.change(task.id, "Running", place=place if number % 2 else task, **change)
        assert not await ours.change(task.id, "Running", place=place, **change)
    assert not await ours.change(fresh_id(), "Waiting", of=("Running",), values={}, events=(), place=path[1])
    assert [(each.id, each.status, each.progress) for each in await ours.outline(root.id)] == [
        (task.id, "Running", number) for number, task in enumerate(path, 1)
    ]
    assert [each.seq for each in await ours.events(root.id, 0, 9)] == [1, 2, 3, 4]
    assert (await fresh(ours, root)).last_seq == 4


async def test_phases_change_from_allowed_ones_only_and_never_from_an_end(ours: Room) -> None:
    root = await rooted(ours)
    assert not await ours.change(root.id, "Waiting", of=("Running",), values={}, events=[note(root)])
    assert await ours.change(root.id, "Running", of=("Pending",), values={"started_at": NOW}, events=[note(root)])
    done = NewEvent(type="completed", task_id=root.id, fields={"result": {"content": "x"}})
    values = {"results": {"content": "x"}, "message": "m" * 600, "progress": 100}
    assert await ours.change(root.id, "Completed", of=("Running",), values=values, events=[done])
    after = await fresh(ours, root)
    assert after.completed_at is not None
    assert (after.status, after.results, after.progress) == ("Completed", {"content": "x"}, 100)
    assert not await ours.change(root.id, "Running", of=("Completed",), values={}, events=())
    assert not await ours.change(root.id, "Failed", of=("Running", "Completed"), values={}, events=[done])
    assert [each.type for each in await ours.events(root.id, 0, 9)] == ["agent_message", "completed"]


async def test_nothing_is_appended_behind_the_end_of_a_tree(ours: Room) -> None:
    root = await rooted(ours)
    (child,) = (await line(ours, root, [{}]))[1:]
    await ours.begin(child, "a", "tool", "t", None)
    with pytest.raises(ValueError, match="ends a tree"):
        await ours.emit(root.id, [NewEvent(type="completed", task_id=root.id)])
    await ours.change(root.id, "Failed", of=("Pending",), values={}, events=())
    assert await ours.emit(root.id, [note(root), NewEvent(type="failed", task_id=root.id)])
    assert await ours.emit(root.id, [note(root)]) == []
    await ours.settle(child, "a", Took("r"), [note(child)])
    await ours.change(child.id, "Completed", of=("Pending",), values={}, events=[note(child)])
    assert await ours.cancel(root.id, "late") == []
    assert [each.type for each in await ours.events(root.id, 0, 9)] == ["agent_message", "failed"]
    assert (await fresh(ours, root)).last_seq == 2


async def test_what_is_told_once_is_told_once(ours: Room) -> None:
    root = await rooted(ours)
    told = await asyncio.gather(*(ours.emit(root.id, [note(root)], once="half") for _ in range(4)))
    assert sum(map(len, told)) == 1
    assert await ours.emit(root.id, [note(root)], once="x" * 300)
    assert not await ours.emit(root.id, [note(root)], once="x" * 300)
    assert len(await ours.events(root.id, 0, 9)) == 2
    assert await ours.steps(root.id) == []


async def test_a_reader_of_a_log_misses_nothing_while_eight_write(ours: Room) -> None:
    root = await rooted(ours)
    tasks = [a_task(ours, root, position=number) for number in range(8)]
    await ours.spawn(root, tasks, (), (), 20)
    seen: list[Event] = []
    writing = True

    async def write(number: int) -> None:
        for turn in range(12):
            if turn % 3:
                await ours.emit(root.id, [note(tasks[number])] * (1 + turn % 2))
            else:
                await ours.begin(tasks[number], f"turn.{turn}", "model", "m", None)
                await ours.settle(tasks[number], f"turn.{turn}", took(1, 1), [note(tasks[number])])

    async def read() -> None:
        while True:
            last = not writing
            found = await ours.events(root.id, seen[-1].seq if seen else 0, 7)
            seen.extend(found)
            if last and not found:
                return

    reader = asyncio.create_task(read())
    await asyncio.gather(*(write(number) for number in range(8)))
    writing = False
    await reader
    assert [each.seq for each in seen] == list(range(1, 8 * 16 + 1))
    assert seen == await ours.events(root.id, 0, 1000)
    assert sorted(each.seq for _, events in ours.heard for each in events) == [each.seq for each in seen]
    assert [each.seq for each in await ours.events(root.id, 3, 2, ("agent_message",))] == [4, 5]
    assert await ours.events(root.id, 0, 9, ("completed",)) == []
    assert await ours.floor(root.id) == 1


async def test_a_step_that_finished_is_found_and_not_run_again(ours: Room) -> None:
    root = await rooted(ours, max_tokens=100)
    grant = await ours.begin(root, "plan", "model", "m", want(10, 20))
    assert (grant.output_tokens, grant.step.status, grant.step.runs) == (20, "running", 1)
    step = await ours.settle(root, "plan", took(10, 5, "0.02", {"a": [1, None, 0.5]}), [note(root)])
    assert (step.status, step.cost, step.output_tokens) == ("finished", Decimal("0.02"), 5)
    again = await ours.begin(root, "plan", "model", "m", want(10, 20))
    assert again.step == step == await ours.step(root.id, "plan")
    assert again.step.result == {"a": [1, None, 0.5]}
    assert await ours.settle(root, "plan", took(90, 90, "9"), [note(root)]) == step
    after = await fresh(ours, root)
    assert (after.input_tokens, after.output_tokens, after.cost, after.held_tokens) == (10, 5, Decimal("0.02"), 0)
    assert after.last_seq == 1


async def test_what_a_dead_run_held_is_released_before_it_is_held_again(ours: Room) -> None:
    root = await rooted(ours, max_tokens=40, max_cost=Decimal("0.4"))
    for runs in (1, 2, 3):
        grant = await ours.begin(root, "plan", "model", "m", want(10, 20, price="0.01"))
        assert (grant.step.runs, grant.output_tokens) == (runs, 20)
        after = await fresh(ours, root)
        assert (after.held_tokens, after.held_cost) == (30, Decimal("0.3"))
    # A smaller budget is left for the second step; the run of it that finds none gives back what it held.
    grant = await ours.begin(root, "two", "model", "m", want(4, 20, price="0.01"))
    assert grant.output_tokens == 6
    refused = await ours.begin(root, "two", "model", "m", want(11, 20, price="0.01"))
    assert (refused.exceeded, refused.step.status) == (root.id, "failed")
    assert (await fresh(ours, root)).held_tokens == 30


async def test_a_failed_step_runs_again_and_all_its_runs_are_charged(ours: Room) -> None:
    root = await rooted(ours)
    await ours.begin(root, "plan", "model", "m", want(5, 5))
    failed = Took(None, {"code": "upstream_failed"}, Usage(input=5, output=1), Decimal("0.1"))
    assert (await ours.settle(root, "plan", failed, ())).status == "failed"
    assert (await ours.settle(root, "plan", failed, ())).cost == Decimal("0.1")
    assert (await ours.begin(root, "plan", "model", "m", want(5, 5))).step.runs == 2
    step = await ours.settle(root, "plan", took(5, 2, "0.2"), ())
    assert (step.status, step.error, step.cost, step.input_tokens) == ("finished", None, Decimal("0.3"), 10)
    assert (await fresh(ours, root)).cost == Decimal("0.3")


async def test_the_tightest_budget_above_shortens_the_answer_or_refuses_it(ours: Room) -> None:
    root = await rooted(ours, max_tokens=1000, max_cost=Decimal("1"))
    path = await line(ours, root, [{"max_tokens": 200}, {}, {"max_cost": Decimal("0.05")}])
    grant = await ours.begin(path[3], "a", "model", "m", Want(10, 500, 20, Decimal("0.001"), Decimal("0.0005")))
    assert grant.output_tokens == 80
    assert [(each.held_tokens, each.held_cost) for each in await ours.tree(root.id)] == [(90, Decimal("0.05"))] * 4
    refused = await ours.begin(path[3], "b", "model", "m", Want(1, 500, 20, Decimal("0.001"), Decimal("0.0005")))
    assert (refused.exceeded, refused.output_tokens) == (path[3].id, None)
    assert await ours.step(path[3].id, "b") is None
    assert (await ours.begin(path[2], "c", "model", "m", want(10, 100, least=100))).output_tokens == 100
    assert (await ours.begin(path[2], "d", "model", "m", want(1, 1))).exceeded == path[1].id
    # An unknown price holds no money; a budget of tokens holds all the same.
    assert (await ours.begin(path[0], "e", "model", "m", want(700, 200, least=10))).output_tokens == 100


async def test_budgets_above_hold_whatever_races_below(ours: Room) -> None:
    """R-000-24: charges never pass a limit, and what is left is not lost."""
    price = Decimal("0.0013")
    root = await rooted(ours, max_tokens=2000, max_cost=Decimal("2.5"))
    groups = [a_task(ours, root, max_tokens=limit) for limit in (500, 900, None)]
    await ours.spawn(root, groups, (), (), 100)
    leaves = [a_task(ours, group, position=number) for group in groups for number in range(4)]
    for group in groups:
        await ours.spawn(group, [each for each in leaves if each.parent_task_id == group.id], (), (), 100)

    async def work(leaf: Task) -> int:
        refused = 0
        for turn in range(6):
            grant = await ours.begin(leaf, f"turn.{turn}", "model", "m", Want(20, 40, 5, price, price))
            if grant.exceeded is not None:
                refused += 1
                continue
            assert grant.output_tokens is not None
            cost = str(price * (20 + grant.output_tokens))
            await ours.settle(leaf, f"turn.{turn}", took(20, grant.output_tokens, cost), ())
        return refused

    assert sum(await asyncio.gather(*map(work, leaves))) > 0
    tree = {each.id: each for each in await ours.tree(root.id)}
    for task in tree.values():
        used = task.input_tokens + task.output_tokens
        assert task.held_tokens == task.held_cost == 0
        assert task.max_tokens is None or used <= task.max_tokens
        assert task.max_cost is None or task.cost <= task.max_cost
        below = [each for each in tree.values() if each.parent_task_id == task.id]
        assert not below or used == sum(each.input_tokens + each.output_tokens for each in below)
        assert not below or task.cost == sum(each.cost for each in below)
    after = tree[root.id]
    assert after.max_cost is not None
    assert after.max_cost - after.cost < price * 60
    assert after.cost == sum(each.cost or 0 for each in await ours.steps(root.id))


async def test_a_task_that_ends_releases_what_its_steps_held(ours: Room) -> None:
    path = await line(ours, await rooted(ours, max_tokens=100), [{}])
    await ours.begin(path[1], "a", "model", "m", want(10, 10, price="0.001"))
    await ours.begin(path[0], "a", "model", "m", want(1, 1, price="0.001"))
    assert await ours.change(path[1].id, "TimedOut", of=("Pending",), values={}, events=())
    assert [(each.held_tokens, each.held_cost) for each in await ours.tree(path[0].root_id)] == [
        (2, Decimal("0.002")),
        (0, Decimal(0)),
    ]
    await ours.settle(path[1], "a", took(3, 3), ())
    assert [(each.held_tokens, each.input_tokens) for each in await ours.tree(path[0].root_id)] == [(2, 3), (0, 3)]


async def test_text_that_no_database_takes_is_kept_without_what_is_wrong(ours: Room) -> None:
    root = await rooted(ours, name="a\0b", request={"messages": [{"content": "\ud800 \0 ü"}]})
    await ours.begin(root, "plan", "model", "m", None)
    await ours.settle(root, "plan", Took({"x\0": ["\udfff", float("nan"), 1 << 70]}), [note(root, "a\0\ud83d")])
    step = await ours.step(root.id, "plan")
    assert step is not None
    assert step.result == {"x\ufffd": ["\ufffd", None, 1 << 70]}
    (event,) = await ours.events(root.id, 0, 9)
    assert event.content == "a\ufffd\ufffd"
    assert (ours.heard[-1][1][0], (await fresh(ours, root)).name) == (event, "a\ufffdb")


async def test_files_are_bounded_replaced_and_listed_by_prefix(ours: Room) -> None:
    root = await rooted(ours)
    small = NewFile("outbox/a_b", b"12345", "text/plain")
    limits: Any = {"most_files": 2, "most_bytes": 10}
    created = NewEvent(type="artifact_created", task_id=root.id)
    assert await ours.put(root, small, **limits, events=[created])
    assert await ours.put(root, small._replace(content=b"1234567890"), **limits)
    assert not await ours.put(root, small._replace(content=b"12345678901"), **limits)
    assert not await ours.put(root, small._replace(path="outbox/c"), **limits)
    assert await ours.put(root, small._replace(path="outbox/aXb", content=b""), **limits)
    assert not await ours.put(root, small._replace(path="d", content=b""), **limits)
    assert [(each.path, each.bytes) for each in await ours.files([root.id], "outbox/a_")] == [("outbox/a_b", 10)]
    assert len(await ours.files([root.id])) == 2
    assert len(await ours.events(root.id, 0, 9)) == 1


async def test_work_is_found_whoevers_it_is_until_it_has_ended(database: Database, ours: Room, theirs: Room) -> None:
    roots = [await rooted(room) for room in (ours, theirs, ours)]
    await line(ours, roots[0], [{}])
    await ours.change(roots[2].id, "Failed", of=("Pending",), values={}, events=())
    assert await find_work(database, roots[1].id) == roots[1]
    assert await find_work(database, fresh_id()) is None
    assert [each.id for each in await unfinished_roots(database, None, 10)] == [each.id for each in roots[:2]]
    assert [each.id for each in await unfinished_roots(database, roots[0].id, 10)] == [roots[1].id]
    assert len(await unfinished_roots(database, None, 1)) == 1


async def test_old_trees_are_forgotten_with_everything_of_theirs(database: Database, ours: Room) -> None:
    kept, old = await rooted(ours), await rooted(ours)
    for root in (kept, old):
        (child,) = (await line(ours, root, [{}]))[1:]
        await ours.begin(child, "plan", "model", "m", None)
        await ours.emit(root.id, [note(root)])
        await ours.put(child, NewFile("outbox/x", b"x", "text/plain"), most_files=1, most_bytes=1)
    await ours.change(old.id, "Completed", of=("Pending",), values={"completed_at": NOW}, events=())
    assert await forget_trees(database, NOW, 10) == []
    assert await forget_trees(database, NOW + timedelta(seconds=1), 10) == [old.id]
    assert await ours.tree(old.id) == []
    assert await ours.steps(old.id) == []
    assert await ours.events(old.id, 0, 9) == []
    assert len(await ours.tree(kept.id)) == 2
    assert len(await ours.steps(kept.id)) == len(await ours.events(kept.id, 0, 9)) == 1
