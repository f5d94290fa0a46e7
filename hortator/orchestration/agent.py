"""An agent's loop: ask, use tools, look whether it goes round in circles, until it answers.

`tree.py` runs it for legionaries and for requests that one agent does alone; `Desk` makes each ask and each tool call a durable step.
Models that call no tools work too: the text of the first answer is the result. It ends no task and writes no phase; it raises Stopped,
OverBudget, and HortatorError where no answer can be had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec
from msgspec import Struct

from hortator.errors import HortatorError, TaskEnded
from hortator.orchestration import family, legion, stuck
from hortator.orchestration.desk import Desk, Prompt, Said, ToolResult
from hortator.orchestration.family import Child
from hortator.orchestration.ports import ToolCall
from hortator.orchestration.prompts import Message, Room, cut, trimmed
from hortator.wire.tasks import Stuck, Tier

MAX_CALLS: Final = 8
"""Tool calls of one turn; more are refused."""
_RESULT_TOKENS: Final = 6_000
SPAWN: Final[Mapping[str, Any]] = {
    "type": "function",
    "function": {
        "name": "spawn_task",
        "description": "Have another agent do a part of the work and wait for its result. Say everything that it needs to know.",
        "parameters": {
            "type": "object",
            "properties": {
                "prompt": {"type": "string", "description": "What it is to do."},
                "role": {"type": "string", "description": "Whose role it takes; leave out for your own."},
                "tier": {"type": "string", "enum": ["centurion", "legionary"]},
                "capabilities": {"type": "array", "items": {"type": "string", "enum": ["web-fetch", "shell"]}},
            },
            "required": ["prompt"],
            "additionalProperties": False,
        },
    },
}


class Toolbox(Protocol):
    """The tools of a task: `tools.Tools`."""

    def schemas(self) -> list[dict[str, Any]]: ...

    async def run(self, name: str, arguments: str) -> ToolResult: ...


class _Spawn(Struct, frozen=True):
    prompt: str
    role: str | None = None
    tier: Tier = "legionary"
    capabilities: tuple[str, ...] | str | None = None


class _Text(Struct, frozen=True):
    """A result of a tool of ours."""

    text: str
    ok: bool
    events: tuple[Any, ...] = ()


class Agent:
    """One agent at a desk."""

    def __init__(
        self, desk: Desk, prompt: Prompt, toolbox: Toolbox | None, *, kind: str = "part", stream: bool = False
    ) -> None:
        """`toolbox`: None = it only answers. `stream`: its answer is the tree's, told as it is written (only without tools)."""
        self._desk = desk
        self._prompt = prompt
        self._toolbox = toolbox
        self._kind = kind
        self._stream = stream and toolbox is None
        self._history: list[Message] = []
        self._calls: list[str] = []
        self._said: list[str] = []
        self._spawned = 0
        self._warned = False
        self._tools = tuple(self._schemas())

    def _schemas(self) -> list[Mapping[str, Any]]:
        if self._toolbox is None:
            return []
        schemas: list[Mapping[str, Any]] = list(self._toolbox.schemas())
        if self._desk.task.tier != "legionary" and "spawn" in (self._desk.config.capabilities or ()):
            schemas.append(SPAWN)
        return schemas

    async def run(self) -> str:
        """Return the agent's answer. Raises Stopped, OverBudget, HortatorError."""
        most = legion.turns(self._desk.config)
        for turn in range(1, most + 1):
            last = turn == most
            said = await self._desk.ask(
                f"turn.{turn}",
                self._told(last=last and turn > 1),
                kind=self._kind,
                tools=() if last else self._tools,
                stream=self._stream,
            )
            calls = said.calls if self._tools and not last else ()
            if not calls and said.text.strip():
                return said.text
            if not calls:
                if self._said and not self._said[-1]:
                    break
                self._said.append("")
                self._history.append({"role": "user", "content": "Your answer was empty. Answer now."})
                continue
            await self._use(turn, said, calls)
            await self._look(turn, said)
        raise TaskEnded("The agent gave no answer.", code="task_failed")

    def _told(self, *, last: bool) -> Prompt:
        """Return what the agent is told now: its task and what happened since."""
        history = list(self._history)
        if last:
            history.append({"role": "user", "content": "No more tools. Answer now with what you have."})

        def prompt(room: Room, user: tuple[str, ...]) -> Sequence[Message]:
            return trimmed([*self._prompt(room, user), *history], room)

        return prompt

    async def _use(self, turn: int, said: Said, calls: Sequence[ToolCall]) -> None:
        """Make the tool calls of a turn, one after another."""
        named = [
            ToolCall(id=call.id or f"call_{turn}_{n}", name=call.name, arguments=call.arguments)
            for n, call in enumerate(calls)
        ]
        asked = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in named
        ]
        self._history.append({"role": "assistant", "content": said.text or None, "tool_calls": asked})
        for number, call in enumerate(named):
            if number >= MAX_CALLS:
                text = f"Not done: at most {MAX_CALLS} tool calls at once."
            else:
                text, _ = await self._tool(f"turn.{turn}.tool.{number + 1}", call)
            self._calls.append(f"{call.name} {call.arguments}")
            self._history.append({"role": "tool", "tool_call_id": call.id, "content": cut(text, _RESULT_TOKENS)})
        self._said.append(said.text or " ".join(f"{call.name} {call.arguments}" for call in named))

    async def _tool(self, key: str, call: ToolCall) -> tuple[str, bool]:
        toolbox = self._toolbox
        assert toolbox is not None
        if call.name != "spawn_task" or SPAWN not in self._tools:
            return await self._desk.tool(key, call, toolbox.run)
        result = await self._spawn(call)

        async def told(_: str, __: str) -> ToolResult:
            return result

        return await self._desk.tool(key, call, told)

    async def _spawn(self, call: ToolCall) -> _Text:
        """Have a child do something, and wait for it. What is wrong with the wish comes back as text for the model."""
        self._spawned += 1
        try:
            wish = msgspec.json.decode(call.arguments or "{}", type=_Spawn, strict=False)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
            return _Text(f"The arguments of spawn_task cannot be used: {str(error)[:300]}", False)
        listed = wish.capabilities.split(",") if isinstance(wish.capabilities, str) else wish.capabilities
        child = Child(
            name=f"task-{self._spawned}",
            prompt=wish.prompt[:20_000],
            tier=wish.tier,
            role=wish.role,
            capabilities=None if listed is None else tuple(name.strip() for name in listed),
        )
        try:
            ids = await family.spawn(self._desk, [child], offset=self._spawned - 1)
        except HortatorError as error:
            return _Text(error.message, False)
        if ids is None:
            return _Text("The tree may have no more tasks; do it yourself.", False)
        (task,) = await family.all_finished(self._desk, ids)
        ended = family.done(task)
        if ended.text:
            return _Text(
                ended.text if task.status == "Completed" else f"({task.status}, not complete)\n{ended.text}", True
            )
        return _Text(f"{task.status}: {family.why(task)}", False)

    async def _look(self, turn: int, said: Said) -> None:
        """Look whether the agent is stuck, and do what its configuration says. Raises TaskEnded where that is to end it."""
        how = self._desk.config.stuck_detection or Stuck()
        value = stuck.score(self._calls, self._said, said.seconds, how)
        if not stuck.stuck(value) or (self._warned and how.action == "warn"):
            return
        self._warned = True
        await self._desk.emit(
            f"stuck.{turn}",
            self._desk.event(
                "stuck_detected",
                f"{self._desk.task.name} goes round in circles ({value:.2f}): {how.action}",
                details={"score": value, "action": how.action},
            ),
        )
        if how.action == "kill":
            raise TaskEnded("The agent went round in circles and was ended.", code="task_failed")
        if how.action == "escalate":
            self._desk.tier = legion.above(self._desk.tier)
            self._calls.clear()
            self._said.clear()
        self._history.append(
            {"role": "user", "content": "You repeat yourself. Do something else, or answer with what you have."}
        )
