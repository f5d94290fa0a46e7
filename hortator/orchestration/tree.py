"""The handler of a task: what it does, by tier and pattern, and what ends it.

The engine runs `Tree.work` for every task until it is finished, again from the start after a crash. It seats the task at a `Desk`, has it
led (`lead.py`), done by one agent (`agent.py`) or by a pattern, and writes its end with the event that tells of it in one transaction.
Nothing is raised but cancellation: every failure is a phase with a code and a message that is safe to show.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec import structs

from hortator.call import Priority
from hortator.errors import HortatorError, TaskEnded
from hortator.orchestration import domains, family, legion, prompts, results
from hortator.orchestration.agent import Agent, Toolbox
from hortator.orchestration.desk import Desk, Hub, OverBudget, Places, Stopped, patiently
from hortator.orchestration.ending import Ending
from hortator.orchestration.lead import Lead, NoTeam, Outcome
from hortator.orchestration.ports import Corridor, Engine, Handler
from hortator.orchestration.prompts import Brief, Message, Room
from hortator.orchestration.roles import Roles
from hortator.orchestration.slots import Slots
from hortator.settings.document import Orchestration
from hortator.store.database import Database
from hortator.store.tasks import UNFINISHED, Task, TaskScope, find_work
from hortator.wire.tasks import TERMINAL, TaskConfig

log = logging.getLogger("hortator.orchestration")

ToolMaker = Callable[[TaskScope, Task, Sequence[str]], Toolbox]
"""Makes the tools of a task with these capabilities."""
Ordered = tuple[str, tuple[tuple[str, str], ...]]
"""What a tree was ordered to do: the request, and its files that are text."""
_MOST_ORDERS: Final = 200
_MOST_INPUTS, _MOST_INPUT_BYTES = 8, 60_000
_WANTS_FILES = re.compile(
    r"\b(?:files?|folder|artefacts?|artifacts?|outbox|inbox|save|write it to|download)\b", re.IGNORECASE
)
_NEVER_STARTED: Final = "None of the parts that it needs gave a result."


class Work:
    """A task as a pattern sees it: a desk to ask at, and agents to send."""

    def __init__(
        self,
        tree: Tree,
        desk: Desk,
        brief: Brief,
        keep: Callable[[Outcome], None],
        done: Sequence[prompts.Done] = (),
    ) -> None:
        """`keep`: takes what was achieved so far, for when the task ends early. `done`: what became of the tasks that it waited for."""
        self.desk = desk
        self.brief = brief
        self.keep = keep
        self.done = done
        self._tree = tree

    @property
    def request(self) -> Mapping[str, Any]:
        """What was ordered: `messages`, and what the pattern needs."""
        return self.desk.task.request

    @property
    def messages(self) -> Sequence[Message]:
        """The chat that was ordered."""
        return [dict(message) for message in self.request.get("messages", ())]

    async def run(self, children: Sequence[family.Child], *, offset: int = 0) -> list[Task]:
        """Send agents and wait for them all; returns their tasks in order. `offset`: how many were sent before.

        Raises OverBudget, Stopped, and TaskEnded where the tree may have no more tasks.
        """
        ids = await family.spawn(self.desk, children, offset=offset)
        if ids is None:
            raise TaskEnded("The tree may have no more tasks.", code="task_failed")
        await self.desk.phase("Waiting", ("Running",), message=f"{len(ids)} agents are at work")
        done = await family.all_finished(self.desk, ids)
        await self.desk.phase("Running", ("Waiting",))
        return done

    async def team(self) -> Outcome:
        """Do what the pattern `team` does with the request."""
        return await self._tree.team(self.desk, self.brief)

    async def single(self) -> Outcome:
        """Have one agent do the request."""
        return await self._tree.single(self.desk, self.brief)


Pattern = Callable[[Work], Awaitable[Outcome]]


class Tree:
    """One per process; `handlers` are what the engine runs."""

    def __init__(
        self,
        database: Database,
        engine: Engine,
        corridor: Corridor,
        hub: Hub,
        roles: Roles,
        settings: Orchestration,
        tools: ToolMaker | None = None,
        patterns: Mapping[str, Pattern] | None = None,
        slots: Slots | None = None,
    ) -> None:
        """`tools`: None = agents only answer. `patterns`: by name; `team` is ours. `slots`: places of roots; None = all work at once."""
        self._slots = slots or Slots(settings.max_trees)
        self._database = database
        self._engine = engine
        self._corridor = corridor
        self._hub = hub
        self._roles = roles
        self._tools = tools
        self._places = Places(settings.max_calls)
        self._files = settings.max_files, settings.max_files_bytes
        self._patterns: Mapping[str, Pattern] = {"team": Work.team, **(patterns or {})}
        self._orders: dict[str, Ordered] = {}
        self._running: dict[str, asyncio.Task[Any]] = {}
        self._stopped: set[str] = set()
        hub.on_cancel(self.stop)

    @property
    def handlers(self) -> dict[str, Handler]:
        """For the engine."""
        return {"task": self.work, "task.dead": self.interrupted}

    def stop(self, ids: Sequence[str]) -> None:
        """End the handlers of tasks that were cancelled, with the calls they make, at once. Others' ids are passed over."""
        for id in ids:
            handler = self._running.get(id)
            if handler is not None and id not in self._stopped:
                self._stopped.add(id)
                handler.cancel()

    async def work(self, task_id: str) -> None:
        """Work on a task until it has ended. Raises nothing but CancelledError, where this process is to stop."""
        handler = asyncio.current_task()
        assert handler is not None
        self._running[task_id] = handler
        try:
            await self._guarded(task_id)
        except asyncio.CancelledError:
            # Who cancelled the task ended it in the store already: this handler is finished. Else another run goes on with it.
            if task_id not in self._stopped or handler.uncancel() > 0:
                raise
        finally:
            self._running.pop(task_id, None)
            self._stopped.discard(task_id)

    async def interrupted(self, task_id: str) -> None:
        """End a task that the engine gave up, because it killed its process again and again."""
        task = await patiently(lambda: find_work(self._database, task_id))
        if task is not None and task.status in UNFINISHED:
            error = TaskEnded("The task was interrupted too often.", code="interrupted")
            await self._ending(task).failed(error)

    def _ending(self, task: Task) -> Ending:
        most_files, most_bytes = self._files
        scope = self._hub.scope(task.tenant_id)
        leave = lambda: self._running.pop(task.id, None)  # noqa: E731
        return Ending(scope, task, leave, most_files=most_files, most_bytes=most_bytes)

    async def _guarded(self, task_id: str) -> None:
        """Run a task to one of its ends."""
        task = await patiently(lambda: find_work(self._database, task_id))
        if task is None or task.status in TERMINAL:
            return
        ending = self._ending(task)
        seconds = None if task.deadline_at is None else (task.deadline_at - datetime.now(UTC)).total_seconds()
        clock = asyncio.timeout(None if seconds is None else max(0.0, seconds))
        try:
            async with clock, self._place(task):
                await self._run(task, ending, None if seconds is None else time.monotonic() + seconds)
        except Stopped:
            return
        except TimeoutError:
            if clock.expired():
                await ending.short("TimedOut", "The time ran out.", "task_timed_out")
            else:
                await ending.failed(TaskEnded("An agent's work ended unexpectedly.", code="task_failed"))
        except OverBudget as over:
            await ending.short("BudgetExceeded", "The budget is used up.", "task_budget_exceeded", of=over.task_id)
        except HortatorError as error:
            await ending.failed(error)
        except Exception:  # the outermost edge of a task
            log.exception("task %s failed unexpectedly", task_id)
            await ending.failed(TaskEnded("An error of the gateway's own.", code="internal_error"))

    def _place(self, task: Task) -> AbstractAsyncContextManager[None]:
        """Wait for a root's place among the trees of this process; children work in their root's."""
        if task.depth:
            return nullcontext()
        priority: Priority = "high" if task.priority == "high" else "low" if task.priority == "low" else "standard"
        return self._slots.hold(task.tenant_id, priority)

    async def _run(self, task: Task, ending: Ending, deadline: float | None) -> None:
        """Do a task. Raises what ends it early."""
        scope = self._hub.scope(task.tenant_id)
        config = msgspec.convert(task.config or {}, TaskConfig)
        role = self._roles.find(task.role)
        config = structs.replace(
            config,
            capabilities=legion.capabilities(task.tier, config.capabilities, None),
            temperature=role.temperature if role and config.temperature is None else config.temperature,
            max_tokens=role.max_tokens if role and config.max_tokens is None else config.max_tokens,
        )
        caller = await patiently(lambda: self._corridor.caller(str(task.key_hash), task.priority))
        desk = Desk(
            task,
            scope,
            caller,
            config,
            engine=self._engine,
            corridor=self._corridor,
            hub=self._hub,
            places=self._places,
            deadline=deadline,
        )
        brief = await self._brief(desk)
        if not desk.root:
            await self._child(desk, brief, ending)
        else:
            await self._root(desk, brief, ending)

    async def _root(self, desk: Desk, brief: Brief, ending: Ending) -> None:
        """Do a whole tree."""
        begun = desk.event("task_started", "Work has begun")
        await desk.phase("Running", ("Pending",), begun, started_at=datetime.now(UTC))
        pattern = self._patterns.get(desk.task.pattern)
        if pattern is None:
            raise TaskEnded(f"There is no pattern {desk.task.pattern!r} here.", code="task_failed")
        await ending.completed(await pattern(Work(self, desk, brief, ending.keep)))

    async def _child(self, desk: Desk, brief: Brief, ending: Ending) -> None:
        """Do a task below a root, once what it depends on has ended."""
        done = await self._awaited(desk)
        if done and not any(part.text for part in done):
            await ending.cancelled(_NEVER_STARTED)
        elif desk.task.tier != "legionary":
            await self._begun(desk)
            await ending.completed(await self._led(desk, brief, done))
        else:
            async with await desk.seat():
                await self._begun(desk)
                pattern = None if desk.task.pattern == "team" else self._patterns.get(desk.task.pattern)
                if pattern is None:
                    outcome = await self._part(desk, brief, done)
                else:
                    outcome = await pattern(Work(self, desk, brief, ending.keep, done))
            await ending.completed(outcome)

    async def _begun(self, desk: Desk) -> None:
        started = desk.event("agent_started", f"{desk.task.name} is at work")
        await desk.phase("Running", ("Pending",), started, started_at=datetime.now(UTC))

    async def _awaited(self, desk: Desk) -> list[prompts.Done]:
        """Wait for what a task depends on; returns what became of it."""
        needs = [str(id) for id in desk.task.request.get("dependencies", ())]
        return [family.done(await family.finished(desk, id)) for id in needs]

    async def team(self, desk: Desk, brief: Brief) -> Outcome:
        """Work on a root as its tier and strategy say; by one agent where no team can be had (R-000-88)."""
        alone = desk.task.tier == "legionary" or desk.config.decomposition_strategy == "none"
        if alone or legion.bounds(desk.config).depth < 1:
            return await self.single(desk, brief)
        try:
            return await Lead(desk, brief, self._roles).run()
        except NoTeam:
            await desk.phase("Running", ("Waiting",), message="One agent answers")
            return await self.single(desk, brief)

    async def single(self, desk: Desk, brief: Brief) -> Outcome:
        """Have one agent do a root's request. Its text streams where it uses no tools."""
        messages = desk.task.request.get("messages", ())

        def prompt(room: Room, user: tuple[str, ...]) -> list[Message]:
            return prompts.single(structs.replace(brief, said=user), messages, room)

        text = await Agent(desk, prompt, self._toolbox(desk, brief), kind="text", stream=True).run()
        return Outcome(content=text, alone=True)

    async def _led(self, desk: Desk, brief: Brief, done: Sequence[prompts.Done]) -> Outcome:
        """Have a centurion lead its group, or do it alone."""
        try:
            return await Lead(desk, structs.replace(brief, request=_part_of(desk, brief)), self._roles).run()
        except NoTeam:
            await desk.phase("Running", ("Waiting",), message="One agent answers")
            return await self._part(desk, brief, done)

    async def _part(self, desk: Desk, brief: Brief, done: Sequence[prompts.Done]) -> Outcome:
        """Have one agent do a part; messages that a pattern gave it are asked as they are."""
        given = desk.task.request.get("messages")
        toolbox = None if given else self._toolbox(desk, brief)

        def prompt(room: Room, user: tuple[str, ...]) -> list[Message]:
            if given:
                return [dict(message) for message in given]
            part = str(desk.task.request.get("prompt", ""))
            return prompts.worker(structs.replace(brief, said=user), part, done, room, tools=toolbox is not None)

        return Outcome(content=await Agent(desk, prompt, toolbox).run(), alone=True)

    def _toolbox(self, desk: Desk, brief: Brief) -> Toolbox | None:
        """Return the tools of an agent; None where nothing asks for them, as their descriptions fill a small model's context."""
        own = [name for name in desk.config.capabilities or () if name != "spawn"]
        if self._tools is None or not (own or brief.inputs or _WANTS_FILES.search(brief.request)):
            return None
        return self._tools(desk.scope, desk.task, desk.config.capabilities or ())

    async def _brief(self, desk: Desk) -> Brief:
        """Gather what every agent of the tree is told alike."""
        task = desk.task
        role = self._roles.find(task.role)
        request, inputs = await self._ordered(desk)
        return Brief(
            role=role.name if role else task.role,
            instructions=role.instructions if role else "",
            request=request,
            exit_criteria=desk.config.exit_criteria,
            parameters=domains.describe(desk.config.parameters or {}),
            inputs=inputs,
            report=results.report(task.task_type),
        )

    async def _ordered(self, desk: Desk) -> Ordered:
        """Return a tree's request and files, which never change, from memory where an agent of it was told them before."""
        task, scope = desk.task, desk.scope
        known = self._orders.get(task.root_id)
        if known is not None:
            return known
        root = task if desk.root else await patiently(lambda: scope.find(task.root_id))
        if root is None:
            raise Stopped
        found = prompts.conversation(root.request.get("messages", ())), await _inputs(scope, root.id)
        while len(self._orders) >= _MOST_ORDERS:
            del self._orders[next(iter(self._orders))]
        self._orders[task.root_id] = found
        return found


def _part_of(desk: Desk, brief: Brief) -> str:
    return f"{desk.task.request.get('prompt', '')}\n\n(A part of this request: {prompts.cut(brief.request, 400)})"


async def _inputs(scope: TaskScope, root_id: str) -> tuple[tuple[str, str], ...]:
    """Return the first input files that are text, by path."""
    found: list[tuple[str, str]] = []
    left = _MOST_INPUT_BYTES
    for file in (await patiently(lambda: scope.files([root_id], "inbox/")))[:_MOST_INPUTS]:
        if file.bytes > left:
            found.append((file.path, f"({file.bytes} bytes, not shown here)"))
            continue
        kept = await patiently(lambda file=file: scope.file(root_id, file.path))  # type: ignore[misc]
        if kept is None:
            continue
        try:
            found.append((file.path, kept[1].decode()))
            left -= file.bytes
        except UnicodeDecodeError:
            found.append((file.path, f"({file.bytes} bytes, no text)"))
    return tuple(found)
