"""Agents at work: tools, agents that send agents, going round in circles, and what bounds them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from hortator.errors import InvalidRequest
from hortator.orchestration.ports import Answer, Ask, ToolCall
from hortator.orchestration.tools import ToolResult
from hortator.store import Database
from hortator.store.tasks import NewEvent, NewFile, Task, TaskScope
from hortator.wire.tasks import Stuck, TaskConfig
from tests.orchestration.field import Field, Reply, Script, answer, calling, consistent, kind, migrated, store

__all__ = ["migrated", "store"]

ALONE = TaskConfig(decomposition_strategy="none", capabilities=("web-fetch",))
FETCH = {"type": "function", "function": {"name": "web_fetch", "parameters": {"type": "object"}}}


class Box:
    """Tools of one task: one that says what a test wants."""

    made: list[tuple[str, tuple[str, ...]]]

    def __init__(self, task: Task, says: dict[str, str], ran: list[tuple[str, str]]) -> None:
        self._task = task
        self._says = says
        self._ran = ran

    def schemas(self) -> list[dict[str, Any]]:
        return [FETCH]

    async def run(self, name: str, arguments: str) -> ToolResult:
        self._ran.append((name, arguments))
        if name not in self._says:
            return ToolResult(f"There is no tool {name!r}.", False)
        event = NewEvent(type="artifact_created", task_id=self._task.id, fields={"details": {"path": "outbox/x"}})
        return ToolResult(self._says[name], True, (event,))


class Boxes:
    """Makes tools, and remembers for whom and what was called."""

    def __init__(self, **says: str) -> None:
        self.made: list[tuple[str, tuple[str, ...]]] = []
        self.ran: list[tuple[str, str]] = []
        self._says = says

    def __call__(self, scope: TaskScope, task: Task, capabilities: Sequence[str]) -> Box:
        self.made.append((task.name, tuple(capabilities)))
        return Box(task, self._says, self.ran)


def script(*replies: Reply) -> Script:
    """A corridor that answers one after the other, the last again and again."""
    left = list(replies)
    return Script(lambda ask: left.pop(0) if len(left) > 1 else left[0])


async def test_an_agent_uses_tools_until_it_answers(store: Database) -> None:
    boxes = Boxes(web_fetch="42 degrees")
    field = await Field.of(store, script(calling("web_fetch", url="http://x"), "It is 42 degrees."), boxes)
    root = await field.run("How warm is it?", config=ALONE)
    assert (root.results or {})["content"] == "It is 42 degrees."
    assert boxes.ran == [("web_fetch", '{"url": "http://x"}')]
    asked, result = field.script.asks[1].messages[-2:]
    assert asked["tool_calls"][0]["function"]["name"] == "web_fetch"
    assert (result["role"], result["tool_call_id"], result["content"]) == (
        "tool",
        asked["tool_calls"][0]["id"],
        "42 degrees",
    )
    events = await field.events(root.id)
    (called,) = [event for event in events if event.type == "tool_call"]
    assert called.details == {"tool": "web_fetch", "arguments": '{"url": "http://x"}', "ok": True}
    assert [event.type for event in events].count("artifact_created") == 2
    assert [(step.key, step.kind) for step in await field.scope.steps(root.id)] == [
        ("turn.1", "model"), ("turn.1.tool.1", "tool"), ("turn.2", "model"),
    ]  # fmt: skip
    consistent(events)


async def test_tools_are_offered_only_where_something_asks_for_them(store: Database) -> None:
    boxes = Boxes()
    field = await Field.of(store, script("hi"), boxes)
    none = TaskConfig(decomposition_strategy="none")
    await field.run("Hello", config=none)
    assert boxes.made == [] and field.script.asks[-1].tools == ()
    await field.run("Save it to a file", config=none)
    await field.run("Look at it", config=none, files=[NewFile("inbox/a.txt", b"text of a", "text/plain")])
    assert len(boxes.made) == 2 and len(field.script.asks[-1].tools) >= 1
    assert "text of a" in str(field.script.asks[-1].messages)


async def test_a_model_that_knows_no_tools_works_without(store: Database) -> None:
    refused = InvalidRequest("no tools here", code="unsupported_by_model", param="tools")
    field = await Field.of(store, Script(lambda ask: refused if ask.tools else "done"), Boxes())
    root = await field.run(config=ALONE)
    assert root.status == "Completed" and len(field.script.asks) == 2


async def test_after_its_last_turn_an_agent_must_answer(store: Database) -> None:
    def reply(ask: Ask) -> Reply:
        return calling("web_fetch", n=len(field.script.asks)) if ask.tools else "enough"

    field = await Field.of(store, Script(reply), Boxes(web_fetch="more"))
    config = TaskConfig(decomposition_strategy="none", capabilities=("web-fetch",), max_iterations=4)
    root = await field.run(config=config)
    assert (root.results or {})["content"] == "enough" and len(field.script.asks) == 4
    assert "No more tools" in str(field.script.asks[-1].messages[-1]["content"])


async def test_an_agent_that_says_nothing_twice_fails(store: Database) -> None:
    field = await Field.of(store, script(""))
    root = await field.run(config=TaskConfig(decomposition_strategy="none"))
    assert root.status == "Failed" and (root.error or {})["code"] == "task_failed" and len(field.script.asks) == 2


async def test_a_tool_that_is_not_there_is_told_to_the_model(store: Database) -> None:
    field = await Field.of(store, script(calling("rm"), "sorry"), Boxes())
    root = await field.run(config=ALONE)
    assert root.status == "Completed" and "There is no tool 'rm'" in str(field.script.asks[1].messages[-1]["content"])


async def test_too_many_tool_calls_of_one_turn_are_refused(store: Database) -> None:
    calls = tuple(ToolCall(id=f"c{n}", name="web_fetch", arguments="{}") for n in range(10))
    boxes = Boxes(web_fetch="x")
    field = await Field.of(store, script(answer("", calls=calls), "done"), boxes)
    await field.run(config=ALONE)
    assert len(boxes.ran) == 8 and "at most 8" in str(field.script.asks[1].messages[-1]["content"])


async def test_exit_criteria_and_parameters_are_told(store: Database) -> None:
    field = await Field.of(store, script("done"))
    config = TaskConfig(decomposition_strategy="none", exit_criteria="three sources", parameters={"jurisdiction": "EU"})
    await field.run(config=config)
    assert "three sources" in str(field.script.asks[0].messages) and "EU" in str(field.script.asks[0].messages)


SPAWNER = TaskConfig(decomposition_strategy="none", tier="tribune", capabilities=("web-fetch", "spawn"))


def spawning(**arguments: Any) -> Answer:
    return calling("spawn_task", prompt="look there", **arguments)


async def test_an_agent_sends_another_and_gets_its_result(store: Database) -> None:
    boxes = Boxes(web_fetch="x")

    def reply(ask: Ask) -> Reply:
        if kind(ask) == "look there":
            return "found it"
        return (
            "All: found"
            if "found it" in str(ask.messages)
            else spawning(tier="legionary", capabilities=["web-fetch", "shell"])
        )

    field = await Field.of(store, Script(reply), boxes)
    root = await field.run(config=SPAWNER)
    tasks = await field.tasks(root.id)
    assert root.status == "Completed" and tasks["task-1"].tier == "legionary" and tasks["task-1"].depth == 1
    assert boxes.made == [("request", ("spawn", "web-fetch")), ("task-1", ("web-fetch",))]
    assert "spawn_task" not in str(field.script.asks[1].tools)
    consistent(await field.events(root.id))


@pytest.mark.parametrize(
    ("config", "arguments", "says"),
    [
        (SPAWNER, {"tier": "tribune"}, "A tribune sends no tribune"),
        (SPAWNER, {"tier": "general"}, "cannot be used"),
        (TaskConfig(decomposition_strategy="none", tier="centurion", capabilities=("web-fetch", "spawn")), {"tier": "centurion"}, "A centurion sends no centurion"),
        (TaskConfig(decomposition_strategy="none", tier="tribune", capabilities=("web-fetch", "spawn"), max_tasks=1), {}, "no more tasks"),
    ],
)  # fmt: skip
async def test_what_an_agent_may_not_send_is_told_to_it(
    store: Database, config: TaskConfig, arguments: dict[str, Any], says: str
) -> None:
    field = await Field.of(store, script(spawning(**arguments), "alone then"), Boxes())
    root = await field.run(config=config)
    assert root.status == "Completed" and says in str(field.script.asks[1].messages[-1]["content"])
    assert len(await field.tasks(root.id)) == 1


async def test_a_tree_is_never_deeper_than_allowed(store: Database) -> None:
    config = TaskConfig(decomposition_strategy="none", tier="tribune", capabilities=("web-fetch", "spawn"), max_depth=1)

    def reply(ask: Ask) -> Reply:
        return "done" if "done" in str(ask.messages) or kind(ask) == "look there" else spawning(tier="centurion")

    field = await Field.of(store, Script(reply), Boxes())
    root = await field.run(config=config)
    assert root.status == "Completed" and max(task.depth for task in (await field.tasks(root.id)).values()) == 1


def circling(ask: Ask) -> Reply:
    return "at last" if "You repeat yourself" in str(ask.messages) else calling("web_fetch", url="http://same")


async def test_an_agent_that_goes_round_in_circles_is_warned(store: Database) -> None:
    field = await Field.of(store, Script(circling), Boxes(web_fetch="same"))
    root = await field.run(config=ALONE)
    assert root.status == "Completed" and len(field.script.asks) == 5
    (stuck,) = await field.events(root.id, "stuck_detected")
    assert stuck.details["action"] == "warn" and stuck.details["score"] >= 0.5


async def test_an_agent_that_goes_round_in_circles_is_ended_where_that_is_wanted(store: Database) -> None:
    field = await Field.of(store, Script(circling), Boxes(web_fetch="same"))
    config = TaskConfig(
        decomposition_strategy="none", capabilities=("web-fetch",), stuck_detection=Stuck(action="kill")
    )
    root = await field.run(config=config)
    assert root.status == "Failed" and "circles" in (root.error or {})["message"]


async def test_an_agent_that_goes_round_in_circles_gets_a_better_model_where_that_is_wanted(store: Database) -> None:
    field = await Field.of(store, Script(circling), Boxes(web_fetch="same"))
    config = TaskConfig(
        decomposition_strategy="none",
        tier="legionary",
        capabilities=("web-fetch",),
        models={"legionary": "small", "centurion": "large"},
        stuck_detection=Stuck(action="escalate"),
    )
    root = await field.run(config=config)
    assert root.status == "Completed"
    assert [(ask.tier, ask.model) for ask in field.script.asks[-2:]] == [("legionary", "small"), ("centurion", "large")]


async def test_a_crash_among_tool_calls_repeats_none_that_finished(store: Database) -> None:
    never = asyncio.Event()
    first = True

    async def hang(ask: Ask) -> Reply:
        await never.wait()
        return ""

    def reply(ask: Ask) -> Any:
        nonlocal first
        if "x1" in str(ask.messages):
            if first:
                first = False
                return hang(ask)
            return "done"
        return calling("web_fetch", n=1)

    boxes = Boxes(web_fetch="x1")
    field = await Field.of(store, Script(reply), boxes)
    id = await field.order(config=ALONE)
    async with asyncio.timeout(20):
        while first:
            await asyncio.sleep(0)
    await field.engine.crash()
    await field.start()
    root = await field.ended(id)
    assert root.status == "Completed" and len(boxes.ran) == 1 and len(field.script.asks) == 3
    assert json.loads(boxes.ran[0][1]) == {"n": 1}
    consistent(await field.events(id))
