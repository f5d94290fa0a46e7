"""Harpoon's patterns as trees: what is asked of which model, what comes back, and what survives (R-002-4 to R-002-7, R-002-11, R-002-18)."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from hortator.errors import ConnectFailed, NotFound
from hortator.orchestration.patterns import CIRCLE, ORCHESTRATOR, PATTERNS, WORKER, judgement
from hortator.orchestration.ports import Answer, Ask
from hortator.store import Database, sqlite_url
from hortator.store.tasks import Task
from hortator.wire.tasks import TaskConfig
from tests.orchestration.field import Field, Script, answer, consistent, migrated, part, plan

__all__ = ["migrated"]

WIDE = TaskConfig(max_agents=25)
Place = Callable[[Script], Awaitable[Field]]


@pytest.fixture
async def place(migrated: Path, tmp_path: Path) -> AsyncIterator[Place]:
    """Makes processes, each with a store of its own."""
    databases: list[Database] = []

    async def make(script: Script) -> Field:
        folder = shutil.copytree(migrated, tmp_path / f"store{len(databases)}")
        databases.append(Database(sqlite_url(folder / "store.db")))
        return await Field.of(databases[-1], script, patterns=dict(PATTERNS))

    yield make
    for database in databases:
        await database.close()


def said(ask: Ask) -> str:
    return "\n".join(str(message["content"]) for message in ask.messages)


def kind(ask: Ask) -> str:
    text = said(ask)
    if '{"tasks"' in text:
        return "plan"
    if '"score"' in text:
        return "judge"
    return "work" if "# Your part" in text else "write"


def usual(ask: Ask) -> str:
    """A team that does its work."""
    if kind(ask) == "plan":
        return plan(part("one"), part("two"), part("three", "one", "two"))
    if kind(ask) == "work":
        return f"result of {said(ask).rpartition('# Your part')[2].split()[1]}"
    return "the final answer"


async def run(
    place: Place, script: Script, pattern: str, config: TaskConfig | None = None, **request: Any
) -> tuple[Field, Task]:
    field = await place(script)
    values = {name: request.pop(name) for name in ("max_tokens",) if name in request}
    messages = [{"role": "user", "content": "Do it"}]
    task = await field.run(pattern=pattern, config=config or WIDE, request={"messages": messages, **request}, **values)
    consistent(await field.events(task.id))
    return field, task


def data(task: Task) -> Any:
    assert task.status == "Completed", (task.status, task.error)
    assert task.results is not None
    return task.results["data"]


async def test_parallel_asks_everything_at_once_and_each_fails_alone(place: Place) -> None:
    """R-002-4, R-002-18: up to 25 agents at a time."""
    together = asyncio.Barrier(24)  # of the first 25 all but the one that fails

    async def reply(ask: Ask) -> Any:
        if said(ask) == "17":
            return NotFound("There is no such thing.", code="model_not_found")
        if int(said(ask)) < 25:
            await together.wait()
        return f"answer {said(ask)}"

    async def with_deadline(ask: Ask) -> Any:
        async with asyncio.timeout(20):
            return await reply(ask)

    requests: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": str(n)}], "model": f"m/{n}"} for n in range(30)
    ]
    requests[17]["model"] = "m/none"
    requests[3] = {"prompt": "3", "temperature": 0.1, "max_tokens": 7}
    requests[25] = {"prompt": "25"}
    script = Script(with_deadline)
    field, task = await run(place, script, "parallel", requests=requests)
    found = data(task)
    assert (found["total"], found["successful"], found["failed"]) == (30, 29, 1)
    assert [one["index"] for one in found["results"]] == list(range(30))
    assert found["results"][17] == {
        "index": 17,
        "status": "rejected",
        "data": None,
        "error": "There is no such thing.",
    }
    assert found["results"][4] == {
        "index": 4,
        "status": "fulfilled",
        "data": {
            "content": "answer 4",
            "model": "test/model",
            "provider": "test",
            "usage": {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20},
            "cost": {"amount": 0.00002, "currency": "USD"},
        },
        "error": None,
    }
    assert 24 <= script.most <= 25
    asked = {said(ask): ask for ask in script.asks}
    assert (asked["3"].model, asked["3"].temperature, asked["3"].max_tokens) == (WORKER, 0.1, 7)
    assert (asked["4"].model, asked["4"].temperature, asked["4"].max_tokens) == ("m/4", 0.7, 1024)
    assert len(await field.events(task.id, "agent_spawned")) == 30


async def test_parallel_fails_only_when_nothing_was_answered(place: Place) -> None:
    _, task = await run(place, Script(lambda ask: NotFound("No.", code="model_not_found")), "parallel")
    assert task.status == "Failed"
    found = (task.results or {})["data"]
    assert (found["successful"], found["failed"]) == (0, found["total"])
    assert {one["status"] for one in found["results"]} == {"rejected"}


async def test_workers_plan_work_and_write(place: Place) -> None:
    """R-002-5."""
    script = Script(usual)
    field, task = await run(
        place, script, "workers", context="We sell tea.", worker_model="w/1", orchestrator_model="o/1"
    )
    found = data(task)
    assert found == {
        "plan": [
            {"id": "one", "description": "do one", "dependencies": []},
            {"id": "two", "description": "do two", "dependencies": []},
            {"id": "three", "description": "do three", "dependencies": ["one", "two"]},
        ],
        "task_results": {"one": "result of one", "two": "result of two", "three": "result of three"},
        "final_answer": "the final answer",
    }
    by = {kind(ask): ask for ask in script.asks}
    assert (by["plan"].model, by["plan"].temperature, by["plan"].max_tokens) == ("o/1", 0.3, 1000)
    assert (by["work"].model, by["work"].temperature, by["work"].max_tokens) == ("w/1", 0.7, 500)
    assert (by["write"].model, by["write"].temperature, by["write"].max_tokens) == ("o/1", 0.5, 1000)
    assert all("We sell tea." in said(ask) and "Do it" in said(ask) for ask in script.asks)
    third = next(ask for ask in script.asks if "do three" in said(ask) and kind(ask) == "work")
    assert "# Result of one\nresult of one" in said(third)
    assert by["write"].on_text is not None, "the answer streams"
    assert "".join(delta.text for delta in field.hub.deltas).replace(" ", "") == "thefinalanswer"
    [told] = await field.events(task.id, "task_decomposed")
    assert told.details["subtasks"] == ["do one", "do two", "do three"]
    assert task.results is not None
    assert task.results["content"] == "the final answer"


async def test_models_that_nobody_names_are_the_documented_ones_and_routing_stands_by(place: Place) -> None:
    """R-002-11."""
    script = Script(usual)
    await run(place, script, "workers")
    assert {(kind(ask), ask.model) for ask in script.asks} == {
        ("plan", ORCHESTRATOR),
        ("work", WORKER),
        ("write", ORCHESTRATOR),
    }

    def elsewhere(ask: Ask) -> Any:
        return NotFound("No such model.", code="model_not_found") if ask.model else usual(ask)

    script = Script(elsewhere)
    field = await place(script)
    task = await field.run(pattern="workers", config=WIDE)
    assert data(task)["final_answer"] == "the final answer"
    assert {(kind(ask), ask.tier) for ask in script.asks if ask.model is None} == {
        ("plan", "tribune"),
        ("work", "legionary"),
        ("write", "tribune"),
    }


async def test_a_model_that_was_named_is_not_replaced(place: Place) -> None:
    script = Script(
        lambda ask: NotFound("No such model.", code="model_not_found") if ask.model == "w/1" else usual(ask)
    )
    _, task = await run(place, script, "workers", worker_model="w/1")
    assert task.status == "Failed"
    assert {ask.model for ask in script.asks if kind(ask) == "work"} == {"w/1"}


async def test_a_plan_that_goes_in_a_circle_ends_it(place: Place) -> None:
    for circle in (plan(part("a", "b"), part("b", "a")), plan(part("a", "a"))):
        script = Script(lambda ask, circle=circle: circle if kind(ask) == "plan" else usual(ask))  # type: ignore[misc]
        field = await place(script)
        task = await field.run(pattern="workers", config=WIDE)
        assert (task.status, task.error) == ("Failed", {"code": "task_failed", "message": CIRCLE})


@pytest.mark.parametrize("text", ["I would rather not.", "{}", '{"tasks": []}', "[]", '{"tasks": "all"}'])
async def test_a_plan_that_cannot_be_read_is_one_task(place: Place, text: str) -> None:
    script = Script(lambda ask: text if kind(ask) == "plan" else usual(ask))
    _, task = await run(place, script, "workers")
    assert data(task)["plan"] == [{"id": "fallback", "description": "Do it", "dependencies": []}]
    assert list(data(task)["task_results"]) == ["fallback"]


async def test_a_worker_that_fails_leaves_the_answer_to_the_others(place: Place) -> None:
    script = Script(
        lambda ask: NotFound("No.", code="x") if "do two" in said(ask) and kind(ask) == "work" else usual(ask)
    )
    _, task = await run(place, script, "workers", worker_model="w/1")
    assert data(task)["task_results"] == {"one": "result of one", "two": "", "three": "result of three"}
    assert "(no result)" in said(script.asks[-1])


def scored(*scores: Any) -> Script:
    judged = iter(scores)

    def reply(ask: Ask) -> str:
        if kind(ask) == "judge":
            score = next(judged)
            return score if isinstance(score, str) else json.dumps({"score": score, "feedback": f"not yet {score}"})
        return f"version {len([one for one in script.asks if kind(one) != 'judge'])}"

    script = Script(reply)
    return script


async def test_optimize_writes_again_until_it_is_good_enough(place: Place) -> None:
    """R-002-6."""
    script = scored(5, 7.5, 8.6, 10)
    field, task = await run(
        place, script, "optimize", quality_threshold=8.5, max_iterations=5, generator_model="g/1", evaluator_model="e/1"
    )
    found = data(task)
    assert {name: value for name, value in found.items() if name != "history"} == {
        "final_output": "version 3",
        "final_score": 8.6,
        "iterations": 3,
        "quality_threshold": 8.5,
        "threshold_met": True,
    }
    assert found["history"][1] == {"iteration": 2, "output": "version 2", "score": 7.5, "feedback": "not yet 7.5"}
    assert {(kind(ask), ask.model) for ask in script.asks} == {("write", "g/1"), ("judge", "e/1")}
    second = [ask for ask in script.asks if kind(ask) != "judge"][1]
    assert "version 1" in said(second)
    assert "not yet 5" in said(second)
    told = await field.events(task.id, "iteration")
    assert [event.details for event in told] == [
        {"iteration": 1, "score": 5.0},
        {"iteration": 2, "score": 7.5},
        {"iteration": 3, "score": 8.6},
    ]


async def test_optimize_ends_after_its_iterations_with_the_best_it_had(place: Place) -> None:
    _, task = await run(place, scored(6, 7, 6.5), "optimize")
    found = data(task)
    assert (found["final_output"], found["final_score"], found["iterations"]) == ("version 2", 7.0, 3)
    assert (found["quality_threshold"], found["threshold_met"]) == (8.0, False)


async def test_optimize_is_bounded_and_an_unreadable_judge_says_five(place: Place) -> None:
    _, task = await run(place, scored(*["no idea"] * 30), "optimize", max_iterations=1000)
    assert data(task)["iterations"] == 10
    assert {one["score"] for one in data(task)["history"]} == {5.0}


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"score": 7, "feedback": "x"}', 7.0),
        ('Well: ```json\n{"score": "8.5/10"}\n```', 8.5),
        ('{"a": {}} {"score": 3}', 3.0),
        ('{"score": 99}', 10.0),
        ('{"score": -1}', 0.0),
        ('{"score": true}', 5.0),
        ('{"score": NaN}', 5.0),
        ('{"score": "' + "9" * 5000 + '"}', 5.0),
        ("{" * 100_000, 5.0),
        ("8", 5.0),
        ("", 5.0),
    ],
)
def test_judgements_are_read_with_patience(text: str, score: float) -> None:
    assert judgement(text).score == score


async def test_smart_lets_routing_choose_within_the_clients_bounds(place: Place) -> None:
    """R-002-7."""
    chosen = answer("yes")
    values = {name: getattr(chosen, name) for name in chosen.__struct_fields__}
    values |= {"attempts": 2, "chosen": "test/first", "reasoning": "complexity 0.10, path fast", "fell_back": True}
    script = Script(lambda ask: Answer(**values))
    wanted = {"maxCost": 0.001, "maxLatency": 2000, "minQuality": 7.5}
    _, task = await run(place, script, "smart", preferences=wanted)
    [ask] = script.asks
    assert (ask.tier, ask.model, ask.temperature, ask.max_tokens) == ("auto", None, 0.7, 1024)
    assert ask.preferences is not None
    assert (ask.preferences.max_cost, ask.preferences.max_latency, ask.preferences.min_quality) == (0.001, 2000, 7.5)
    found = data(task)
    assert found["routing_decision"]["selected_model"] == {"id": "test/first"}
    assert found["routing_decision"]["reasoning"] == "complexity 0.10, path fast"
    assert (found["answer"], found["model_used"], found["attempts"], found["used_fallback"]) == (
        "yes",
        "test/model",
        2,
        True,
    )


async def test_a_pattern_goes_on_after_a_crash_and_makes_no_finished_call_again(place: Place) -> None:
    script = scored(6, 7, 8)
    field = await place(script)
    held, reached = asyncio.Event(), asyncio.Event()
    plain = script.reply

    async def reply(ask: Ask) -> Any:
        if len(script.asks) == 4 and not held.is_set():
            reached.set()
            await held.wait()
        return plain(ask)

    script.reply = reply
    id = await field.order(pattern="optimize", config=WIDE)
    async with asyncio.timeout(20):
        await reached.wait()
    await field.engine.crash()
    held.set()
    await field.start()
    task = await field.ended(id)
    assert [one["score"] for one in data(task)["history"]] == [6.0, 7.0, 8.0]
    assert len(script.asks) == 7, "the call that was running is made again, no other"


@pytest.mark.parametrize("key", ["plan", "answer", "synthesis"])
async def test_workers_survive_a_death_before_the_engine_has_written_a_step_down(place: Place, key: str) -> None:
    script = Script(usual)
    field = await place(script)
    field.engine.dies_in.add(key)
    id = await field.order(pattern="workers", config=WIDE)
    async with asyncio.timeout(20):
        await field.engine.died.wait()
    await field.engine.crash()
    await field.start()
    task = await field.ended(id)
    assert data(task)["task_results"] == {"one": "result of one", "two": "result of two", "three": "result of three"}
    steps = await field.scope.steps(id)
    assert sorted(step.key for step in steps) == ["answer", "answer", "answer", "plan", "synthesis"]
    assert len(script.asks) == sum(step.runs for step in steps) <= 6  # the other worker's call may have been running
    assert task.input_tokens == 50
    consistent(await field.events(id))


async def test_a_budget_that_is_used_up_leaves_the_best_so_far(place: Place) -> None:
    """R-002-6 within a budget: 20 tokens a call are charged; the third round cannot begin."""
    script = scored(6, 7, 8)
    _, task = await run(place, script, "optimize", max_tokens=130, max_iterations=9)
    assert (task.status, (task.error or {})["code"]) == ("BudgetExceeded", "task_budget_exceeded")
    assert task.results is not None
    assert task.results["content"] == task.results["data"]["final_output"] == "version 2"
    assert task.results["data"]["iterations"] == 2


async def test_a_failure_of_the_only_model_is_the_patterns(place: Place) -> None:
    for pattern in ("smart", "optimize", "workers"):
        field = await place(Script(lambda ask: ConnectFailed("down")))
        task = await field.run(pattern=pattern, config=WIDE)
        assert (task.status, task.error) == ("Failed", {"code": "upstream_connect_failed", "message": "down"})
