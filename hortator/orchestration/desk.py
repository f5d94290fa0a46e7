"""One task's desk: its model and tool calls as durable steps, held in the budget before and charged after.

Agents (`agent.py`), planners (`lead.py`) and patterns work at one; the engine remembers each step's result, the store what it cost, and
both make that a finished call is never made again. Whatever goes wrong inside a step is part of its result, so that a handler that
runs again after a crash goes the same way. Raises Stopped, OverBudget and HortatorError; decides nothing about the task's end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import Any, Protocol, TypeVar

from msgspec import Struct, structs, to_builtins

from hortator.call import Caller, Preferences, TenantId
from hortator.errors import HortatorError, TaskEnded, Unavailable
from hortator.orchestration import legion, prompts
from hortator.orchestration.ports import Answer, Ask, Corridor, Engine, Estimate, Spent, ToolCall
from hortator.orchestration.prompts import TIGHT, WIDE, Message, Room
from hortator.store.tasks import Grant, NewEvent, Task, TaskScope, Took, Want
from hortator.wire.events import Delta
from hortator.wire.tasks import TaskConfig

T = TypeVar("T")
Prompt = Callable[[Room, tuple[str, ...]], Sequence[Message]]
"""Makes the messages of a call that fit a room, with what the user has said since the order."""

MAX_SAID = 20
"""Messages of the user that are told; the last ones."""
_MAX_SAID_TEXT = 4_000
_MAX_AGAIN = 20
_LEAST_PLAN, _LEAST_TEXT = 120, 32
"""Output tokens: with fewer, a plan or a text is of no use."""
_PATIENCE = (0.1, 0.3, 1.0, 3.0, 5.0)
"""Pauses while the store is away, seconds; the last again and again, until the task's deadline."""
_TRANSIENT = frozenset((408, 409, 425, 429))
"""Statuses of the 4xx that may go away."""
_EVENT_TEXT = 20_000
"""Characters of a text in an event; the result has the whole."""


class Stopped(Exception):
    """The task, or one above it, has ended meanwhile: nothing of it may run."""


class OverBudget(Exception):
    """The budget of the task `task_id` (this one or one above) does not allow what would be next."""

    def __init__(self, task_id: str) -> None:
        super().__init__("the budget is used up")
        self.task_id = task_id


class Said(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a model said in a step, as the step remembers it."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    finish: str = "stop"
    deployment: str = ""
    heard: int = 0
    """The `seq` of the last message of the user that it knew."""
    user: tuple[str, ...] = ()
    """Messages of the user that were new to it."""
    seconds: float = 0.0
    """Since something of the task was last written down."""
    ms: float = 0.0
    attempts: int = 1
    chosen: str = ""
    reasoning: str = ""
    fell_back: bool = False
    """These four as in `ports.Answer`."""


class ToolResult(Protocol):
    """What a tool says: `tools.ToolResult`."""

    @property
    def text(self) -> str: ...
    @property
    def ok(self) -> bool: ...
    @property
    def events(self) -> Sequence[NewEvent]: ...


class Hub(Protocol):
    """What the handlers need of the views of the log in this process (`events.py`)."""

    def scope(self, tenant_id: TenantId) -> TaskScope:
        """The tasks of a tenant, whose changes are told."""

    async def wait(self, tenant_id: TenantId, task_id: str, timeout: float | None = None) -> Task | None:
        """The task once it has ended, or as it is after `timeout` seconds. Raises Unavailable."""

    def on_cancel(self, callback: Callable[[Sequence[str]], None]) -> None:
        """Have `callback` called with ids of tasks that were cancelled."""

    def say(self, delta: Delta) -> None:
        """Tell a piece of the answer that is being written."""


class Places:
    """Who may work at once: so many calls in this process, so many agents of one tree."""

    def __init__(self, calls: int) -> None:
        self._calls = asyncio.Semaphore(calls)
        self._trees: dict[str, tuple[asyncio.Semaphore, list[int]]] = {}

    def call(self) -> asyncio.Semaphore:
        """A place for one model or tool call."""
        return self._calls

    def agent(self, root_id: str, most: int) -> _Place:
        """A place for one agent of a tree."""
        return _Place(self._trees, root_id, most)


class _Place:
    """Taken by `async with`; the tree's last one to leave takes its entry away."""

    def __init__(self, trees: dict[str, tuple[asyncio.Semaphore, list[int]]], root_id: str, most: int) -> None:
        self._trees, self._root_id, self._most = trees, root_id, most

    async def __aenter__(self) -> None:
        semaphore, users = self._trees.setdefault(self._root_id, (asyncio.Semaphore(self._most), [0]))
        users[0] += 1
        try:
            await semaphore.acquire()
        except BaseException:
            self._leave(users)
            raise

    async def __aexit__(self, *_: object) -> None:
        semaphore, users = self._trees[self._root_id]
        semaphore.release()
        self._leave(users)

    def _leave(self, users: list[int]) -> None:
        users[0] -= 1
        if not users[0]:
            self._trees.pop(self._root_id, None)


async def patiently(act: Callable[[], Awaitable[T]]) -> T:
    """Do something with the store; while it is away, try again until who waits gives up. Everything of it may be done twice."""
    tries = 0
    while True:
        try:
            return await act()
        except Unavailable:
            await asyncio.sleep(_PATIENCE[min(tries, len(_PATIENCE) - 1)])
            tries += 1


class _Attempt(Struct, kw_only=True):
    """How a step is tried."""

    key: str
    prompt: Prompt
    kind: str
    tier: str
    model: str | None
    max_tokens: int | None
    temperature: float | None
    tools: Sequence[Mapping[str, Any]]
    response_format: Mapping[str, Any] | None
    stream: bool
    room: Room
    preferences: Preferences | None = None
    number: int = 0
    pause: float = 0.0
    retried: int = 0


class Desk:
    """One run of a task's handler."""

    def __init__(
        self,
        task: Task,
        scope: TaskScope,
        caller: Caller,
        config: TaskConfig,
        *,
        engine: Engine,
        corridor: Corridor,
        hub: Hub,
        places: Places,
        deadline: float | None = None,
    ) -> None:
        """`deadline`: `time.monotonic()` at which the task is over."""
        self.task = task
        self.scope = scope
        self.caller = caller
        self.config = config
        self.engine = engine
        self.hub = hub
        self.places = places
        self.deadline = deadline
        self.tier: str = task.tier
        """Whose model is asked; `stuck_detection` may raise it."""
        self.user: list[str] = []
        """Messages of the user so far."""
        self._corridor = corridor
        self._heard = 0
        self._room = WIDE
        self._seated = False
        self._streams = 0
        self._written = time.monotonic()

    @property
    def root(self) -> bool:
        """Whether this is the whole tree's task."""
        return self.task.id == self.task.root_id

    def event(self, type: str, message: str = "", **fields: Any) -> NewEvent:
        """Return an event about this task."""
        named = {} if self.root else {"task": self.task.name}
        given = {name: value for name, value in fields.items() if value not in (None, "", {})}
        return NewEvent(type=type, task_id=self.task.id, fields={"message": message, **named, **given})

    async def emit(self, once: str, *events: NewEvent) -> None:
        """Tell something of this task, once however often its handler runs."""
        await patiently(lambda: self.scope.emit(self.task.root_id, events, once=f"{self.task.id}.{once}"))

    async def phase(self, to: str, of: Sequence[str], *events: NewEvent, **values: Any) -> bool:
        """Move this task to another phase, if it is in one of `of`."""
        return await patiently(
            lambda: self.scope.change(self.task.id, to, of=of, values=values, events=events, place=self.task)
        )

    async def seat(self) -> AsyncExitStack:
        """Take a place among the agents of the tree, until the returned stack is closed."""
        stack = AsyncExitStack()
        await stack.enter_async_context(self.places.agent(self.task.root_id, legion.bounds(self.config).agents))
        self._seated = True
        stack.callback(self._rise)
        return stack

    def _rise(self) -> None:
        self._seated = False

    async def ask(
        self,
        key: str,
        prompt: Prompt,
        *,
        kind: str = "text",
        tier: str | None = None,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        response_format: Mapping[str, Any] | None = None,
        stream: bool = False,
        preferences: Preferences | None = None,
    ) -> Said:
        """Ask a model, as the step `key`. `kind`: `plan`, `part` or `text`, how long its answer may be. `stream`: the answer is the tree's.

        Transient failures are tried again as the tier has it; a request that is too long is made shorter, and what the model cannot do
        (tools, a form of the answer) is left out. Raises Stopped, OverBudget, HortatorError (for good).
        """
        attempt = _Attempt(
            key=key,
            prompt=prompt,
            kind=kind,
            tier=tier or self.tier,
            model=model or self._model(tier or self.tier),
            max_tokens=max_tokens or self.config.max_tokens,
            temperature=self.config.temperature if temperature is None else temperature,
            tools=tools,
            response_format=response_format,
            stream=stream,
            room=self._room,
            preferences=preferences,
        )
        self._streams += int(stream)
        how = legion.retries(self.task.tier, self.config.retry, self.task.source)
        while True:
            now = structs.replace(attempt)
            name = key if not now.number else f"{key}.again.{now.number}"
            outcome: dict[str, Any] = await self.engine.step(name, lambda now=now, name=name: self._try(name, now))  # type: ignore[misc]
            said = self._outcome(outcome)
            self._written = time.monotonic()
            if said is not None:
                return said
            self._change(attempt, outcome["error"], how)

    def _model(self, tier: str) -> str | None:
        """Return the model that agents of a tier are to ask, as the order says; None = the operator's or routing's choice."""
        models: Mapping[str, str] = {str(name): model for name, model in (self.config.models or {}).items()}
        return self.config.model or models.get(tier)

    def _outcome(self, outcome: Mapping[str, Any]) -> Said | None:
        """Return what was said; None where an error was. Raises Stopped, OverBudget."""
        if outcome.get("stopped"):
            raise Stopped
        if outcome.get("exceeded"):
            raise OverBudget(str(outcome["exceeded"]))
        if "error" in outcome:
            return None
        said = _said(outcome["said"])
        self._heard = max(self._heard, said.heard)
        self.user = [*self.user, *said.user][-MAX_SAID:]
        return said

    def _change(self, attempt: _Attempt, error: Mapping[str, Any], how: legion.Retries) -> None:
        """Change an attempt after an error so that the next may work. Raises the error where none may."""
        attempt.number += 1
        attempt.pause = 0.0
        code, retryable = error["code"], bool(error["retryable"])
        if attempt.number > _MAX_AGAIN:
            raise ended(error)
        if code == "context_length_exceeded" and attempt.room is WIDE:
            self._room = attempt.room = TIGHT
        elif retryable:
            if attempt.retried >= how.attempts:
                raise ended(error)
            attempt.retried += 1
            pause = legion.pause(how, attempt.retried, f"{self.task.id}.{attempt.key}")
            attempt.pause = max(pause, min(float(error.get("retry_after") or 0.0), how.most))
        elif attempt.response_format is not None and error["status"] in (400, 404, 422):
            attempt.response_format = None
        elif attempt.tools and error["status"] in (400, 404, 422):
            attempt.tools = ()
        else:
            raise ended(error)

    async def _try(self, name: str, attempt: _Attempt) -> dict[str, Any]:
        """One attempt, inside its step."""
        if attempt.pause:
            await self._pause(name, attempt)
        heard, user = await self._listen()
        messages = attempt.prompt(attempt.room, tuple([*self.user, *user][-MAX_SAID:]))
        output = prompts.output(attempt.kind, attempt.max_tokens, attempt.room)
        ask = Ask(
            task_id=self.task.id,
            root_id=self.task.root_id,
            messages=messages,
            tier=attempt.tier,
            model=attempt.model,
            max_tokens=output,
            temperature=attempt.temperature,
            tools=attempt.tools,
            response_format=attempt.response_format,
            task_type=self.task.task_type,
            preferences=attempt.preferences,
            request_id=f"task_{self.task.id.replace('-', '')}_{name}",
            deadline=self.deadline,
        )
        try:
            estimate = self._corridor.estimate(self.caller, ask)
        except HortatorError as error:
            return {"error": _error(error)}
        async with AsyncExitStack() as places:
            if not self._seated:
                await places.enter_async_context(
                    self.places.agent(self.task.root_id, legion.bounds(self.config).agents)
                )
            await places.enter_async_context(self.places.call())
            least = _LEAST_PLAN if attempt.kind == "plan" else _LEAST_TEXT
            want = _want(estimate, output, min(least, output))
            grant = await patiently(
                lambda: self.scope.begin(self.task, name, "model", attempt.model or attempt.tier, want)
            )
            if (known := _known(grant)) is not None:
                return known
            number = self._streams * 1_000 + attempt.number * 30 + min(grant.step.runs, 29)
            ask = structs.replace(
                ask,
                max_tokens=output if grant.output_tokens is None else grant.output_tokens,
                on_text=self._teller(number) if attempt.stream else None,
            )
            return await self._call(name, ask, heard, user)

    async def _call(self, name: str, ask: Ask, heard: int, user: tuple[str, ...]) -> dict[str, Any]:
        """Make the call and write down what came of it."""
        try:
            answer = await self._corridor.ask(self.caller, ask)
        except Spent as spent:
            cause = spent.__cause__ if isinstance(spent.__cause__, HortatorError) else TaskEnded("A model call failed.")
            return await self._lost(name, cause, Took(None, usage=spent.usage, cost=spent.cost))
        except HortatorError as error:
            return await self._lost(name, error, Took(None))
        said = Said(
            text=answer.text,
            calls=answer.tool_calls,
            finish=answer.finish_reason,
            deployment=answer.deployment,
            heard=heard,
            user=user,
            seconds=round(time.monotonic() - self._written, 3),
            ms=round(answer.latency_ms, 1),
            attempts=answer.attempts,
            chosen=answer.chosen,
            reasoning=answer.reasoning,
            fell_back=answer.fell_back,
        )
        result = {"said": to_builtins(said)}
        took = Took(
            result,
            usage=answer.usage,
            cost=answer.cost,
            request_id=answer.request_id,
            deployment=answer.deployment,
        )
        events = [self.event("model_call", details=_metrics(answer))]
        if answer.text:
            events.append(self.event("agent_message", content=answer.text[:_EVENT_TEXT]))
        await patiently(lambda: self.scope.settle(self.task, name, took, events))
        return result

    async def _lost(self, name: str, error: HortatorError, took: Took) -> dict[str, Any]:
        told = _error(error)
        ended_ = took._replace(error={"code": told["code"], "message": told["message"]})
        await patiently(lambda: self.scope.settle(self.task, name, ended_, ()))
        return {"error": told}

    async def _pause(self, name: str, attempt: _Attempt) -> None:
        """Wait before trying again, and say so."""
        event = self.event(
            "retrying",
            f"Trying again in {attempt.pause:.0f} s.",
            details={"attempt": attempt.retried, "delay_ms": round(attempt.pause * 1000)},
        )
        await self.emit(name, event)
        await self.phase("Retrying", ("Running",), attempts=attempt.retried)
        await asyncio.sleep(attempt.pause)
        await self.phase("Running", ("Retrying",))

    async def _listen(self) -> tuple[int, tuple[str, ...]]:
        """Return the messages of the user since the last call of this task."""
        events = await patiently(
            lambda: self.scope.events(self.task.root_id, self._heard, MAX_SAID * 5, types=("user_message",))
        )
        texts = tuple((event.content or "")[:_MAX_SAID_TEXT] for event in events)
        return max((event.seq for event in events), default=self._heard), texts[-MAX_SAID:]

    def _teller(self, run: int) -> Callable[[str], None]:
        """Return what tells each piece of the answer with its place in it."""
        told = 0

        def tell(text: str) -> None:
            nonlocal told
            self.hub.say(Delta(task_id=self.task.root_id, run=run, offset=told, text=text))
            told += len(text)

        return tell

    async def tool(
        self, key: str, call: ToolCall, run: Callable[[str, str], Awaitable[ToolResult]]
    ) -> tuple[str, bool]:
        """Call a tool, as the step `key`; returns its text and whether it worked. Raises Stopped."""

        async def act() -> dict[str, Any]:
            grant = await patiently(lambda: self.scope.begin(self.task, key, "tool", call.name, None))
            if (known := _known(grant)) is not None:
                return known
            async with self.places.call():
                result = await run(call.name, call.arguments)
            event = self.event(
                "tool_call",
                f"{call.name}: {'done' if result.ok else 'failed'}",
                details={"tool": call.name, "arguments": call.arguments[:2_000], "ok": result.ok},
            )
            kept = {"text": result.text, "ok": result.ok}
            await patiently(lambda: self.scope.settle(self.task, key, Took(kept), [*result.events, event]))
            return kept

        outcome: dict[str, Any] = await self.engine.step(key, act)
        if outcome.get("stopped"):
            raise Stopped
        self._written = time.monotonic()
        return str(outcome["text"]), bool(outcome["ok"])


def _said(value: Mapping[str, Any]) -> Said:
    calls = tuple(ToolCall(**call) for call in value.get("calls", ()))
    return Said(**{**value, "calls": calls, "user": tuple(value.get("user", ()))})


def _known(grant: Grant) -> dict[str, Any] | None:
    """Return a step's outcome where it must not run."""
    if grant.stopped:
        return {"stopped": True}
    if grant.step.status == "finished":
        return dict(grant.step.result)
    return {"exceeded": grant.exceeded} if grant.exceeded is not None else None


def _want(estimate: Estimate, output: int, least: int) -> Want:
    return Want(estimate.input_tokens, output, least, estimate.input_price, estimate.output_price)


def _error(error: HortatorError) -> dict[str, Any]:
    return {
        "code": error.code,
        "message": error.message[:500],
        # A provider's refusal of the request itself is said again however often it is asked.
        "retryable": error.retryable and (error.status >= 500 or error.status in _TRANSIENT),
        "status": error.status,
        "retry_after": error.retry_after,
    }


def ended(error: Mapping[str, Any]) -> HortatorError:
    """Return a step's error as one to raise."""
    return TaskEnded(str(error["message"]), code=str(error["code"]))


def money(cost: Decimal | None) -> str | None:
    """Return US dollars as events and results say them; None = not known."""
    return None if cost is None else f"{cost.normalize():f}"


def _metrics(answer: Answer) -> dict[str, Any]:
    return {
        "deployment": answer.deployment,
        "input_tokens": answer.usage.input,
        "output_tokens": answer.usage.output,
        "cost_usd": money(answer.cost),
        "latency_ms": round(answer.latency_ms, 1),
        "attempts": answer.attempts,
    }
