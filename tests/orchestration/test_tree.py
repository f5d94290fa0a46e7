"""Teams at work: plan, children, answer; what bounds them, what breaks them, and a crash at every step (R-000-75, R-000-88)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import Any

import pytest

from hortator.call import Usage
from hortator.errors import ConnectFailed, InvalidRequest, Unavailable
from hortator.orchestration.ports import Ask, Spent
from hortator.orchestration.slots import Slots
from hortator.store import Database
from hortator.store.tasks import NewEvent, Step, Task, TaskScope, Took
from hortator.wire.tasks import TERMINAL, Budget, Retry, TaskConfig
from tests.eventually import eventually
from tests.orchestration.field import Field, Reply, Script, answer, consistent, kind, migrated, part, plan, store
from tests.orchestration.memory_engine import Work

__all__ = ["migrated", "store"]

BALANCED = TaskConfig(decomposition_strategy="balanced", max_agents=4)
TWO = plan("a", "b")
NOT_AGAIN = Retry(max_attempts=0)


def says(**replies: Reply | Callable[[Ask], Reply | Awaitable[Reply]]) -> Script:
    """A corridor that answers by kind; a part's kind is its description with `_` for blanks. Else: the kind in capitals."""

    def reply(ask: Ask) -> Reply | Awaitable[Reply]:
        found = replies.get(kind(ask).replace(" ", "_"), kind(ask).upper())
        return found(ask) if callable(found) else found

    return Script(reply)


async def test_a_team_plans_works_and_writes_one_answer(store: Database) -> None:
    field = await Field.of(store, says(plan=TWO, synthesis="Use A. It is better."))
    root = await field.run()
    assert root.status == "Completed" and root.progress == 100
    assert sorted(field.script.kinds) == ["do a", "do b", "plan", "synthesis"]
    results = root.results or {}
    assert results["content"] == "Use A. It is better." and results["summary"] == "Use A. It is better."
    assert [(one["task"], one["status"], one["summary"]) for one in results["parts"]] == [
        ("a", "Completed", "DO A"),
        ("b", "Completed", "DO B"),
    ]
    assert results["artifacts"] == [{"path": "outbox/result.md", "bytes": 20, "task_id": root.id}]
    assert (await field.scope.file(root.id, "outbox/result.md") or (None, b""))[1] == b"Use A. It is better."
    events = await field.events(root.id)
    consistent(events)
    types = [event.type for event in events]
    assert types[:4] == ["task_created", "task_started", "model_call", "agent_message"]
    assert types[-2:] == ["artifact_created", "completed"]
    for type in (
        "task_decomposed",
        "agent_spawned",
        "agent_started",
        "partial_result",
        "progress",
        "synthesis_started",
    ):
        assert type in types
    last = events[-1]
    assert (
        last.result == results and last.details["usage"]["total_tokens"] == 80 == root.input_tokens + root.output_tokens
    )
    (decomposed,) = [event for event in events if event.type == "task_decomposed"]
    assert decomposed.details["subtasks"] == ["do a", "do b"] and decomposed.details["source"] == "planned"
    assert decomposed.details["estimated_time"].endswith("s") and decomposed.details["estimated_time_ms"] >= 1000


async def test_the_answer_streams_as_it_is_written_and_nothing_else_does(store: Database) -> None:
    field = await Field.of(store, says(plan=TWO, synthesis="one two three"))
    await field.run()
    assert [(delta.offset, delta.text) for delta in field.hub.deltas] == [(0, "one"), (3, "two"), (6, "three")]
    assert len({delta.run for delta in field.hub.deltas}) == 1


async def test_parts_that_need_nothing_are_worked_on_at_once(store: Database) -> None:
    both = asyncio.Barrier(2)

    async def together(ask: Ask) -> Reply:
        async with asyncio.timeout(10):
            await both.wait()
        return "done"

    field = await Field.of(store, says(plan=TWO, do_a=together, do_b=together))
    assert (await field.run()).status == "Completed"


async def test_a_part_waits_for_what_it_needs_and_is_told_the_result(store: Database) -> None:
    field = await Field.of(store, says(plan=plan(part("a"), part("b", "a")), do_a="the secret is 7"))
    root = await field.run()
    assert root.status == "Completed"
    assert field.script.kinds == ["plan", "do a", "do b", "synthesis"]
    assert "the secret is 7" in str(field.script.asks[2].messages)


async def test_no_more_agents_work_at_once_than_allowed(store: Database) -> None:
    field = await Field.of(store, says(plan=plan(*"abcdefgh")))
    config = TaskConfig(decomposition_strategy="aggressive", max_agents=2)
    field.script.reply = lambda ask: plan("a", "b") if kind(ask) == "plan" else "x"
    await field.run(config=config)
    assert field.script.most <= 2


async def test_groups_work_under_a_centurion(store: Database) -> None:
    wanted = plan(part("a1", group="a"), part("a2", "a1", group="a"), part("b", "a2"))
    field = await Field.of(store, says(plan=wanted, group="group text"))
    root = await field.run()
    assert root.status == "Completed"
    tasks = await field.tasks(root.id)
    assert [(tasks[name].tier, tasks[name].depth) for name in ("a", "a1", "a2", "b")] == [
        ("centurion", 1), ("legionary", 2), ("legionary", 2), ("legionary", 1),
    ]  # fmt: skip
    assert field.script.kinds == ["plan", "do a1", "do a2", "group", "do b", "synthesis"]
    assert (tasks["a"].results or {})["content"] == "group text"
    consistent(await field.events(root.id))


@pytest.mark.parametrize(
    "config",
    [TaskConfig(decomposition_strategy="none"), TaskConfig(decomposition_strategy="balanced", tier="legionary")],
)
async def test_without_decomposition_one_agent_answers_and_its_text_streams(
    store: Database, config: TaskConfig
) -> None:
    field = await Field.of(store, says(single="the answer"))
    root = await field.run("Hi", config=config)
    assert root.status == "Completed" and (root.results or {})["content"] == "the answer"
    assert field.script.kinds == ["single"] and [delta.text for delta in field.hub.deltas] == ["the", "answer"]
    assert len(await field.tasks(root.id)) == 1


async def test_a_plan_that_cannot_be_read_is_made_from_the_request(store: Database) -> None:
    field = await Field.of(store, says(plan="I would look at both."))
    root = await field.run("Compare Redis, Postgres and cookies")
    assert root.status == "Completed" and field.script.kinds.count("plan") == 1
    (decomposed,) = await field.events(root.id, "task_decomposed")
    assert decomposed.details["source"] == "fallback" and len(decomposed.details["subtasks"]) == 3
    assert "Redis" in decomposed.details["subtasks"][0]


async def test_a_plan_that_only_repeats_the_request_is_not_carried_out(store: Database) -> None:
    request = "Compare Redis and Postgres for sessions"
    field = await Field.of(
        store, says(plan=plan({"id": "a", "description": request}, {"id": "b", "description": request}))
    )
    root = await field.run(request)
    assert field.script.kinds.count("plan") == 1 and "mend" not in field.script.kinds
    (decomposed,) = await field.events(root.id, "task_decomposed")
    assert decomposed.details["source"] == "fallback" and "Postgres" in decomposed.details["subtasks"][1]


async def test_a_planner_is_told_what_is_wrong_with_its_plan(store: Database) -> None:
    field = await Field.of(store, says(plan=plan(part("a", "z"), part("b")), mend=plan(part("a"), part("b", "a"))))
    root = await field.run()
    assert root.status == "Completed" and field.script.kinds[:2] == ["plan", "mend"]
    assert "depends on 'z'" in str(field.script.asks[1].messages[-1]["content"])


async def test_a_plan_that_stays_bad_is_mended(store: Database) -> None:
    circle = plan(part("a", "b"), part("b", "a"))
    field = await Field.of(store, says(plan=circle, mend=circle))
    root = await field.run()
    assert root.status == "Completed" and field.script.kinds.index("do a") < field.script.kinds.index("do b")


async def test_a_plan_that_only_says_the_request_again_is_none(store: Database) -> None:
    request = "Compare Redis, Postgres and cookies"
    again = json.dumps({"tasks": [{"id": name, "description": request, "dependencies": ["me"]} for name in "ab"]})
    field = await Field.of(store, says(plan=again, mend=again))
    root = await field.run(request)
    (decomposed,) = await field.events(root.id, "task_decomposed")
    assert root.status == "Completed" and decomposed.details["source"] == "fallback"


async def test_one_part_that_stays_bad_is_no_plan(store: Database) -> None:
    lonely = plan(part("design", "someone"))
    field = await Field.of(store, says(plan=lonely, mend=lonely))
    root = await field.run("Compare Redis, Postgres and cookies")
    (decomposed,) = await field.events(root.id, "task_decomposed")
    assert root.status == "Completed" and decomposed.details["source"] == "fallback"


async def test_what_the_model_cannot_do_is_left_out(store: Database) -> None:
    refused = InvalidRequest("This model's provider takes no 'response_format'.", code="unsupported_by_model")
    field = await Field.of(store, says(plan=lambda ask: refused if ask.response_format else TWO))
    root = await field.run()
    assert root.status == "Completed" and field.script.kinds.count("plan") == 2


async def test_a_request_that_is_too_long_for_the_model_is_made_shorter(store: Database) -> None:
    def short(ask: Ask) -> Reply:
        too_long = sum(len(str(message["content"])) for message in ask.messages) > 12_000
        return InvalidRequest("too long", code="context_length_exceeded") if too_long else "fits"

    field = await Field.of(store, says(plan=TWO, do_a=short, do_b="b", synthesis="done"))
    root = await field.run("Compare A and B. " + "word " * 10_000)
    assert root.status == "Completed"
    assert (await field.tasks(root.id))["a"].status == "Completed"


async def test_a_part_that_fails_is_planned_once_again(store: Database) -> None:
    broken = InvalidRequest("no", code="content_filter")
    field = await Field.of(store, says(plan=TWO, do_a=broken, replan=plan("c"), do_c="C"))
    root = await field.run()
    assert root.status == "Completed"
    tasks = await field.tasks(root.id)
    assert tasks["a"].status == "Failed" and tasks["a"].error == {"code": "content_filter", "message": "no"}
    assert tasks["again-c"].status == "Completed"
    assert "do a (no)" in str(field.script.asks[field.script.kinds.index("replan")].messages)
    consistent(await field.events(root.id))
    assert [event.details["code"] for event in await field.events(root.id, "agent_failed")] == ["content_filter"]


async def test_a_part_whose_needs_all_failed_is_cancelled_and_the_rest_goes_on(store: Database) -> None:
    broken = InvalidRequest("no", code="content_filter")
    field = await Field.of(store, says(plan=plan("a", part("b", "a"), "c"), do_a=broken, replan="no idea"))
    root = await field.run()
    assert root.status == "Completed"
    tasks = await field.tasks(root.id)
    assert (tasks["b"].status, tasks["c"].status) == ("Cancelled", "Completed")
    assert "do b" not in field.script.kinds


@pytest.mark.parametrize(
    "replies",
    [{"plan": InvalidRequest("no")}, {"plan": TWO, "do_a": InvalidRequest("no"), "do_b": InvalidRequest("no")}],
)
async def test_where_no_team_can_be_had_one_agent_answers(store: Database, replies: dict[str, Reply]) -> None:
    """R-000-88."""
    field = await Field.of(store, says(**replies, single="alone"))
    root = await field.run()
    assert root.status == "Completed" and (root.results or {})["content"] == "alone"
    consistent(await field.events(root.id))


async def test_where_the_answer_cannot_be_written_its_parts_are_the_answer(store: Database) -> None:
    field = await Field.of(store, says(plan=TWO, synthesis=InvalidRequest("no")))
    root = await field.run()
    assert root.status == "Completed" and (root.results or {})["content"] == "## a\n\nDO A\n\n## b\n\nDO B"


async def test_where_nothing_works_the_tree_fails_with_a_code(store: Database) -> None:
    script = Script(lambda ask: InvalidRequest("no such model", code="model_not_found"))
    field = await Field.of(store, script)
    root = await field.run()
    assert root.status == "Failed" and root.error == {"code": "model_not_found", "message": "no such model"}
    events = await field.events(root.id)
    consistent(events)
    assert events[-1].type == "failed" and events[-1].details["code"] == "model_not_found"


async def test_an_error_of_our_own_tells_nothing_of_itself(store: Database) -> None:
    script = Script(lambda ask: ValueError("secret"))
    field = await Field.of(store, script)
    root = await field.run()
    assert root.status == "Failed" and (root.error or {})["code"] == "internal_error"
    assert "secret" not in str(await field.events(root.id))


async def test_a_tree_over_its_budget_ends_with_what_it_has_and_asks_no_more(store: Database) -> None:
    field = await Field.of(store, says(plan=plan("a", part("b", "a")), do_a=answer("A is done", tokens=480)))
    root = await field.run(max_tokens=1_000)
    assert root.status == "BudgetExceeded" and (root.error or {})["code"] == "task_budget_exceeded"
    assert (root.results or {})["content"] == "A is done"
    assert "synthesis" not in field.script.kinds
    assert root.input_tokens + root.output_tokens <= 1_000 and root.held_tokens == 0
    events = await field.events(root.id)
    consistent(events)
    assert events[-1].type == "budget_exceeded" and events[-1].result == root.results


async def test_children_never_get_more_than_their_parent_has(store: Database) -> None:
    field = await Field.of(store, says(plan=TWO))
    root = await field.run(
        max_tokens=100_000,
        max_cost=None,
        config=TaskConfig(decomposition_strategy="balanced", budget=Budget(max_tokens=100_000)),
    )
    children = [task for task in (await field.tasks(root.id)).values() if task.depth]
    assert root.status == "Completed" and sum(task.max_tokens or 0 for task in children) < 100_000
    assert all(task.max_tokens for task in children)


async def test_a_tree_whose_time_runs_out_ends_with_what_it_has(store: Database) -> None:
    never = asyncio.Event()

    async def hang(ask: Ask) -> Reply:
        await never.wait()
        return ""

    field = await Field.of(store, says(plan=TWO, do_a="A is done", do_b=hang, synthesis=hang))
    root = await field.run(deadline=1.0)
    assert root.status == "TimedOut" and (root.results or {})["content"] == "A is done"
    tasks = await field.tasks(root.id)
    assert tasks["b"].status in ("TimedOut", "Cancelled")
    events = await field.events(root.id)
    consistent(events)
    assert events[-1].type == "timed_out" and events[-1].details["code"] == "task_timed_out"


async def test_a_cancelled_tree_ends_its_calls_at_once(store: Database) -> None:
    never = asyncio.Event()

    async def hang(ask: Ask) -> Reply:
        await never.wait()
        return ""

    field = await Field.of(store, says(plan=plan("a", "b", part("c", "a")), do_a=hang, do_b=hang))
    id = await field.order()
    await eventually(lambda: field.script.now == 2)
    cancelled = await field.scope.cancel(id, "by the client")
    assert len(cancelled) == 4
    root = await field.ended(id)
    assert root.status == "Cancelled" and field.script.now == 0 and field.script.kinds.count("synthesis") == 0
    assert all(task.status == "Cancelled" for task in (await field.tasks(id)).values())
    assert all(work.finished for work in field.engine.work.values())
    consistent(await field.events(id))


async def test_a_part_that_is_cancelled_alone_is_missing_in_the_answer(store: Database) -> None:
    never = asyncio.Event()

    async def hang(ask: Ask) -> Reply:
        await never.wait()
        return ""

    field = await Field.of(store, says(plan=TWO, do_a=hang))
    id = await field.order()
    await eventually(lambda: "do b" in field.script.kinds and field.script.now == 1)
    await field.scope.cancel((await field.tasks(id))["a"].id, "not needed")
    root = await field.ended(id)
    assert root.status == "Completed" and "a (Cancelled: not complete)" in str(field.script.asks[-1].messages)


STEPS = [
    ("plan", "request"),
    ("turn.1", "a"),
    ("turn.1", "a1"),
    ("synthesis", "g"),
    ("synthesis", "request"),
]


@pytest.mark.parametrize(("at", "name"), STEPS)
async def test_after_a_crash_no_finished_call_is_made_again(store: Database, at: str, name: str) -> None:
    """The process dies between what the store wrote down and what the engine would have."""
    wanted = plan("a", part("a1", group="g"), part("a2", group="g"))
    field = await Field.of(store, says(plan=wanted))
    dead = asyncio.Event()
    step = field.engine._act

    async def dies(work: Work, key: str, act: Callable[[], Awaitable[Any]]) -> None:
        task = await field.scope.find(work.begun.id)
        assert task is not None
        if (key, task.name) != (at, name) or dead.is_set():
            return await step(work, key, act)
        dead.set()
        await act()
        field.engine._die()
        raise asyncio.CancelledError

    field.engine._act = dies  # type: ignore[method-assign]
    id = await field.order()
    async with asyncio.timeout(20):
        await dead.wait()
        await eventually(lambda: not field.engine._tasks)
    await field.engine.crash()
    before = len(field.script.asks)
    await field.start()
    root = await field.ended(id)
    assert root.status == "Completed" and before >= 1
    kinds = field.script.kinds
    interrupted = len(kinds) - len(set(kinds))
    steps = await field.scope.steps(id)
    assert all(one.status == "finished" for one in steps)
    assert len([one for one in steps if one.kind == "model"]) == 6
    # One that died before it had asked is asked once, in its second run.
    assert interrupted <= sum(one.runs - 1 for one in steps)
    (dead_at,) = [one for one in steps if one.key == at and one.task_id == (await field.tasks(id))[name].id]
    assert dead_at.runs == 1
    assert root.input_tokens == 60
    consistent(await field.events(id))


async def test_a_crash_in_the_middle_of_a_call_makes_only_that_call_again(store: Database) -> None:
    field = await Field.of(store, says(plan=TWO))
    hang, never = asyncio.Event(), asyncio.Event()

    async def reply(ask: Ask) -> Reply:
        if kind(ask) == "do b" and not hang.is_set():
            hang.set()
            await never.wait()
        return TWO if kind(ask) == "plan" else "x"

    field.script.reply = reply
    id = await field.order()
    await hang.wait()
    await eventually(field.has_ended(id, "a"))
    await field.engine.crash()
    await field.start()
    assert (await field.ended(id)).status == "Completed"
    assert sorted(field.script.kinds) == ["do a", "do b", "do b", "plan", "synthesis"]
    consistent(await field.events(id))


async def test_a_transient_failure_is_tried_again_as_the_tier_has_it(store: Database) -> None:
    left = [ConnectFailed("down"), ConnectFailed("down")]
    field = await Field.of(store, says(plan=TWO, do_a=lambda ask: left.pop() if left else "back"))
    root = await field.run(
        config=TaskConfig(decomposition_strategy="balanced", retry=Retry(max_attempts=2, backoff_seconds=0.01))
    )
    task = (await field.tasks(root.id))["a"]
    assert task.status == "Completed" and task.attempts == 2 and field.script.kinds.count("do a") == 3
    retrying = await field.events(root.id, "retrying")
    assert [event.details["attempt"] for event in retrying] == [1, 2] and retrying[0].task == "a"


async def test_a_failure_that_lasts_ends_the_part_with_its_code(store: Database) -> None:
    field = await Field.of(store, says(plan=TWO, do_a=ConnectFailed("down"), replan="?"))
    root = await field.run(config=TaskConfig(decomposition_strategy="balanced", retry=NOT_AGAIN))
    assert ((await field.tasks(root.id))["a"].error or {})["code"] == "upstream_connect_failed"
    assert root.status == "Completed"


async def test_a_tree_never_has_more_tasks_than_allowed(store: Database) -> None:
    field = await Field.of(store, says(plan=plan(*"abc"), mend=plan(*"abc")))
    root = await field.run(config=TaskConfig(decomposition_strategy="balanced", max_agents=10, max_tasks=3))
    assert root.status == "Completed" and len(await field.tasks(root.id)) <= 3


async def test_a_message_of_the_user_is_read_before_the_next_call(store: Database) -> None:
    said = asyncio.Event()

    async def wait(ask: Ask) -> Reply:
        await said.wait()
        return "a"

    field = await Field.of(store, says(plan=TWO, do_a=wait))
    id = await field.order()
    await eventually(lambda: "do a" in field.script.kinds)
    await field.scope.emit(id, [field_event(id, "Think of mobile users.")])
    said.set()
    await field.ended(id)
    assert "Think of mobile users." in str(field.script.asks[-1].messages)
    assert "Think of mobile users." not in str(field.script.asks[0].messages)


def field_event(id: str, text: str) -> NewEvent:
    return NewEvent(type="user_message", task_id=id, fields={"content": text})


async def test_findings_of_agents_are_told_as_risks_and_stand_in_the_result(store: Database) -> None:
    """R-000-18, R-000-19."""
    field = await Field.of(
        store, says(plan=TWO, do_a="FINDING [high] app.py: SQL is put together", synthesis="All in all: one risk.")
    )
    root = await field.run(task_type="code_review")
    (risk,) = await field.events(root.id, "risk_identified")
    assert (risk.risk_description, risk.severity, risk.document, risk.task) == (
        "SQL is put together",
        "high",
        "app.py",
        "a",
    )
    assert (root.results or {})["findings"] == [
        {"severity": "high", "description": "SQL is put together", "document": "app.py"}
    ]


async def test_a_task_that_kills_its_process_again_and_again_fails_as_interrupted(store: Database) -> None:
    never = asyncio.Event()

    async def hang(ask: Ask) -> Reply:
        await never.wait()
        return ""

    field = await Field.of(store, says(plan=TWO, do_a=hang))
    id = await field.order()
    await eventually(field.has_ended(id, "b"))
    await field.engine.crash()
    await field.tree.interrupted(id)
    tasks = await field.tasks(id)
    assert tasks["request"].status == "Failed" and (tasks["request"].error or {})["code"] == "interrupted"
    assert all(task.status in TERMINAL for task in tasks.values())
    await field.tree.interrupted(id)
    consistent(await field.events(id))


async def test_a_pattern_that_is_not_there_fails_the_tree(store: Database) -> None:
    field = await Field.of(store, says())
    root = await field.run(pattern="smart")
    assert root.status == "Failed" and field.script.asks == []


async def test_no_more_trees_work_at_once_than_there_are_places(store: Database) -> None:
    go = asyncio.Event()

    async def wait(ask: Ask) -> Reply:
        await go.wait()
        return "done"

    field = await Field.of(store, Script(wait), slots=Slots(1))
    alone = TaskConfig(decomposition_strategy="none")
    ids = [await field.order(config=alone) for _ in range(3)]
    await eventually(lambda: field.script.now == 1)
    states = [(await field.scope.find(id) or pytest.fail("gone")).status for id in ids]
    assert sorted(states) == ["Pending", "Pending", "Running"]
    go.set()
    assert [(await field.ended(id)).status for id in ids] == ["Completed"] * 3 and field.script.most == 1


async def test_what_a_failed_call_cost_is_charged(store: Database) -> None:
    def spent(ask: Ask) -> Reply:
        error = Spent(Usage(input=7, output=3), Decimal("0.5"))
        error.__cause__ = InvalidRequest("no", code="content_filter")
        return error

    field = await Field.of(store, says(single=spent))
    root = await field.run(config=TaskConfig(decomposition_strategy="none"))
    assert root.status == "Failed" and (root.error or {})["code"] == "content_filter"
    assert (root.input_tokens, root.output_tokens, root.cost) == (7, 3, Decimal("0.5"))


async def test_while_the_store_is_away_an_answer_waits_to_be_written_down(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle, away = TaskScope.settle, [True, True]

    async def flaky(self: TaskScope, task: Task, key: str, took: Took, events: Sequence[NewEvent]) -> Step:
        if away:
            away.pop()
            raise Unavailable("away", code="store_unavailable")
        return await settle(self, task, key, took, events)

    monkeypatch.setattr(TaskScope, "settle", flaky)
    field = await Field.of(store, says(single="the answer"))
    root = await field.run(config=TaskConfig(decomposition_strategy="none"))
    assert root.status == "Completed" and len(field.script.asks) == 1
