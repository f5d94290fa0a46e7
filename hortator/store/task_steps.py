"""Every statement on the steps of tasks, `task_steps`: what a model call or a tool call holds, costs and gives.

`TaskScope` (`tasks.py`) is this and more; `agent.py` begins and settles. Before a call, what it may take at most is held in its task and
in every task above; afterwards that is released and what it took is charged, in the transaction that keeps its result. Both run for
every model call, so each is one transaction of few statements. Tokens and US dollars of a task are its own and those of all below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import ROUND_UP, Decimal
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, Update, bindparam, insert, update

from hortator.store.queries import prepared
from hortator.store.tables import MONEY_SCALE, task_steps, tasks
from hortator.store.task_events import EventScope, numbered
from hortator.store.task_rows import (
    UNFINISHED,
    Grant,
    Level,
    NewEvent,
    Place,
    Step,
    Task,
    Took,
    Want,
    as_step,
    now,
    plain,
    text,
)
from hortator.wire.events import Event

_SMALLEST = Decimal(1).scaleb(-MONEY_SCALE)
_NOTHING = Decimal(0)


class Hold(NamedTuple):
    """What a step holds in its task and in all above."""

    tokens: int = 0
    cost: Decimal = _NOTHING


class StepScope(EventScope):
    """The steps of one tenant's tasks."""

    def _path(self, connection: Connection, task: Task | Place) -> list[Level]:
        """A task and all above it, root first, locked."""
        ids = {task.root_id, task.parent_task_id or task.root_id, task.id}
        if task.depth > len(ids) - 1:
            column = tasks.c
            start = self._rows(tasks, column.id, column.parent_task_id).where(column.id == task.id)
            found = start.cte("path", recursive=True)
            above = self._rows(tasks, column.id, column.parent_task_id).where(column.id == found.c.parent_task_id)
            whole = found.union_all(above)
            ids = {id for (id,) in connection.execute(whole.select().with_only_columns(whole.c.id))}
        return self._locked(connection, ids)

    def _step(self, connection: Connection, task_id: str, key: str) -> Step | None:
        row = connection.execute(self._one(), {"of_task": task_id, "of_key": key}).first()
        return None if row is None else Step._make(row)

    @prepared
    def _one(self) -> Select[Any]:
        column = task_steps.c
        columns = [column[name] for name in Step._fields]
        chosen = column.task_id == bindparam("of_task"), column.key == bindparam("of_key")
        return self._rows(task_steps, *columns).where(*chosen)

    @prepared
    def _steps(self) -> Update:
        """Change one step; the values come as parameters."""
        column = task_steps.c
        chosen = column.task_id == bindparam("of_task"), column.key == bindparam("of_key")
        return update(task_steps).where(self._where(task_steps), *chosen)

    @prepared
    def _holds(self) -> Update:
        """Hold more, or less, in the tasks `those`."""
        column = tasks.c
        held = update(tasks).where(self._where(tasks), column.id.in_(bindparam("those", expanding=True)))
        return held.values(
            held_tokens=column.held_tokens + bindparam("tokens", type_=column.held_tokens.type),
            held_cost=column.held_cost + bindparam("money", type_=column.held_cost.type),
        )

    @prepared
    def _charges(self) -> Update:
        """Charge the tasks `those`, which hold more, or less, from now on, and number events of the `root`."""
        column = tasks.c
        charged = update(tasks).where(self._where(tasks), column.id.in_(bindparam("those", expanding=True)))
        return charged.values(
            held_tokens=column.held_tokens + bindparam("tokens", type_=column.held_tokens.type),
            held_cost=column.held_cost + bindparam("money", type_=column.held_cost.type),
            input_tokens=column.input_tokens + bindparam("more_input", type_=column.input_tokens.type),
            output_tokens=column.output_tokens + bindparam("more_output", type_=column.output_tokens.type),
            cost=column.cost + bindparam("more_cost", type_=column.cost.type),
            last_seq=numbered(),
        )

    async def begin(self, task: Task, key: str, kind: str, name: str, want: Want | None) -> Grant:
        """Begin a step, or find it finished. One transaction: what an earlier run held is released, then `want` is held in the task and
        all above it, with as many output tokens as their budgets leave. Raises Unavailable.
        """
        at = now()
        new = Step(task.id, key, task.root_id, kind, text(name)[:200], "running", 0, at)
        return await self._database.work(lambda connection: self._begin(connection, task, new, want))

    def _begin(self, connection: Connection, task: Task, new: Step, want: Want | None) -> Grant:
        """`new`: the step where there is none yet."""
        path = self._path(connection, task)
        before = self._step(connection, task.id, new.key)
        stopped = not path or any(each.status not in UNFINISHED for each in path)
        step = before or new
        if stopped or step.status == "finished":
            return Grant(step, None, stopped=stopped)
        held = Hold(step.held_tokens, step.held_cost)
        output, exceeded = (None, None) if want is None else _allowed(path, held, want)
        if exceeded is not None:
            if before is not None:
                step = _refused(before, new.started_at)
                self._save(connection, path, step, held, Hold(), before)
            return Grant(step, None, exceeded)
        holds = Hold() if want is None or output is None else _most(want, output)
        step = step._replace(
            name=new.name,
            status="running",
            runs=step.runs + 1,
            finished_at=None,
            error=None,
            held_tokens=holds.tokens,
            held_cost=holds.cost,
        )
        self._save(connection, path, step, held, holds, before)
        return Grant(step, output)

    def _save(
        self, connection: Connection, path: Sequence[Level], step: Step, was: Hold, holds: Hold, before: Step | None
    ) -> None:
        """Write a step that begins, and what it holds now instead of what it held."""
        values = step._asdict()
        if before is None:
            connection.execute(insert(task_steps), {**values, "tenant_id": self.tenant_id})
        else:
            connection.execute(self._steps(), {**values, "of_task": step.task_id, "of_key": step.key})
        if was != holds:
            more = {"tokens": holds.tokens - was.tokens, "money": holds.cost - was.cost}
            connection.execute(self._holds(), {**more, "those": [each.id for each in path]})

    async def settle(self, task: Task, key: str, took: Took, events: Sequence[NewEvent]) -> Step:
        """End a step: release what it held, charge the task and all above it, keep the result, tell. A finished one is left alone.

        Cost that is not known charges nothing. A step that was begun again after it failed has what all its runs took. Raises Unavailable.
        """
        step, told = await self._database.work(lambda connection: self._settle(connection, task, key, took, events))
        self._tell(told)
        return step

    def _settle(
        self, connection: Connection, task: Task, key: str, took: Took, events: Sequence[NewEvent]
    ) -> tuple[Step, list[Event]]:
        path = self._path(connection, task)
        before = self._step(connection, task.id, key)
        if before is None or not path:
            raise ValueError("a step is settled that was not begun")
        if before.status != "running":
            return before, []
        step = _ended(before, took)
        connection.execute(self._steps(), {**step._asdict(), "of_task": task.id, "of_key": key})
        root = path[0]
        ended = root.status not in UNFINISHED
        if ended and self._ended(connection, root.id, root.last_seq):
            events = ()
        self._charge(connection, path, before, step, len(events))
        if not events:
            return step, []
        return step, self._write_events(connection, root.id, root.last_seq, ended, events)

    def _charge(self, connection: Connection, path: Sequence[Level], before: Step, after: Step, events: int) -> None:
        """Release what a step held and add what it took, in its task and all above; number its events."""
        charge = {
            "those": [each.id for each in path],
            "tokens": -before.held_tokens,
            "money": -before.held_cost,
            "more_input": after.input_tokens - before.input_tokens,
            "more_output": after.output_tokens - before.output_tokens,
            "more_cost": (after.cost or _NOTHING) - (before.cost or _NOTHING),
            "root": path[0].id,
            "count": events,
        }
        connection.execute(self._charges(), charge)

    async def step(self, task_id: str, key: str) -> Step | None:
        """A step. Raises Unavailable."""
        async with self._database.read() as connection:
            return await connection.run_sync(self._step, task_id, key)

    async def steps(self, root_id: str) -> list[Step]:
        """All steps of a tree in the order they began. Raises Unavailable."""
        column = task_steps.c
        statement = (
            self._rows(task_steps)
            .where(column.root_id == root_id, column.kind != "once")
            .order_by(column.started_at, column.task_id, column.key)
        )
        async with self._database.read() as connection:
            return [as_step(row) for row in await connection.execute(statement)]


def _allowed(path: Sequence[Level], held: Hold, want: Want) -> tuple[int, str | None]:
    """How many output tokens the budgets of all tasks of a path leave; else the id of the one that leaves least.

    `held` is what an earlier run of the step still holds in each.
    """
    output, tightest = want.output_tokens, path[0].id
    for task in path:
        for left in (_tokens_left(task, held, want), _cost_left(task, held, want)):
            if left is not None and left < output:
                output, tightest = left, task.id
    if output < min(want.least_output, want.output_tokens) or output < 0:
        return 0, tightest
    return output, None


def _tokens_left(task: Level, held: Hold, want: Want) -> int | None:
    """Output tokens that a task's tokens leave, below 0 where the input alone is too much; None = any."""
    if task.max_tokens is None:
        return None
    used = task.input_tokens + task.output_tokens + task.held_tokens - held.tokens
    return task.max_tokens - used - want.input_tokens


def _cost_left(task: Level, held: Hold, want: Want) -> int | None:
    """Output tokens that a task's money leaves, below 0 where the input alone is too much; None = any."""
    if task.max_cost is None or want.input_price is None or want.output_price is None:
        return None
    left = task.max_cost - task.cost - task.held_cost + held.cost
    left -= (want.input_tokens * want.input_price).quantize(_SMALLEST, ROUND_UP)
    if left < 0:
        return -1
    return int(left // want.output_price) if want.output_price else None


def _most(want: Want, output: int) -> Hold:
    """What a call may take at most with so many output tokens."""
    tokens = want.input_tokens + output
    if want.input_price is None or want.output_price is None:
        return Hold(tokens)
    cost = (want.input_tokens * want.input_price).quantize(_SMALLEST, ROUND_UP)
    return Hold(tokens, cost + (output * want.output_price).quantize(_SMALLEST, ROUND_UP))


def _refused(step: Step, at: Any) -> Step:
    """A step whose second run no budget allows."""
    error: Mapping[str, Any] = {"code": "task_budget_exceeded", "message": "No budget was left to run it again."}
    return step._replace(status="failed", finished_at=at, error=error, held_tokens=0, held_cost=_NOTHING)


def _ended(step: Step, took: Took) -> Step:
    """A running step as it ended."""
    usage, cost = took.usage, step.cost
    if took.cost is not None:
        cost = (cost or _NOTHING) + took.cost.quantize(_SMALLEST, ROUND_UP)
    return step._replace(
        status="finished" if took.error is None else "failed",
        finished_at=now(),
        request_id=took.request_id or step.request_id,
        deployment=took.deployment or step.deployment,
        held_tokens=0,
        held_cost=_NOTHING,
        input_tokens=step.input_tokens + ((usage.input or 0) if usage is not None else 0),
        output_tokens=step.output_tokens + ((usage.output or 0) if usage is not None else 0),
        cost=cost,
        result=plain(took.result),
        error=None if took.error is None else plain(took.error),
    )
