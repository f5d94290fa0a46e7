"""The tasks below a task: made, begun, waited for, and ended with it.

Planners (`lead.py`), agents that spawn (`agent.py`) and patterns make children here. A child's id follows from its parent's and its name,
its budget is a share of what its parent has left, its capabilities are never more than its parent's. Whoever runs again finds the
children that are there. Nothing here asks a model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from msgspec import Struct, to_builtins

from hortator.errors import InvalidRequest
from hortator.orchestration import legion
from hortator.orchestration.desk import Desk, OverBudget, Stopped, patiently
from hortator.orchestration.prompts import Done
from hortator.store.tasks import NewEvent, Task
from hortator.wire.tasks import TERMINAL, TaskConfig, Tier

WAIT_SECONDS: Final = 30.0
"""After so long, who waits for a task looks at it even though nobody told."""
_CHILDREN_SHARE: Final = 0.85
"""Part of the time left that children may take; the rest is for the answer."""


class Child(Struct, frozen=True, kw_only=True):
    """A task to be made below another."""

    name: str
    """Unique among its siblings; its id follows from it."""
    prompt: str
    tier: Tier = "legionary"
    role: str | None = None
    """None = its parent's."""
    model: str | None = None
    """The model that it asks. None = as the order says for its tier."""
    dependencies: tuple[str, ...] = ()
    """Names of siblings whose results it needs."""
    parts: tuple[Mapping[str, Any], ...] = ()
    """Of a centurion: its group's plan."""
    request: Mapping[str, Any] = {}
    """What else its request holds: `messages` (asked as they are), what a pattern needs."""
    capabilities: tuple[str, ...] | None = None
    """None = all that its parent has."""
    weight: int = 1
    """Of its share in the budget."""
    max_tokens: int | None = None
    """Longest answer of one of its model calls."""


def identity(parent: Task, name: str, position: int) -> str:
    """Return the id of a child."""
    return legion.child_id(parent.id, name, position)


def _config(desk: Desk, child: Child) -> TaskConfig:
    config = legion.child_config(desk.config, child.tier, child.capabilities)
    values = {name: getattr(config, name) for name in config.__struct_fields__}
    if child.model is not None:
        values |= {"model": child.model}
    if child.max_tokens is not None:
        values |= {"max_tokens": child.max_tokens}
    return TaskConfig(**values)


async def spawn(desk: Desk, children: Sequence[Child], *, offset: int = 0) -> list[str] | None:
    """Make children of a desk's task and have them run; returns their ids in order, None where the tree may have no more tasks.

    `offset`: the position of the first among all children. Raises InvalidRequest where the task's tier may not send such ones or the
    tree would be too deep; Stopped where the task has ended.
    """
    task, bounds = desk.task, legion.bounds(desk.config)
    if task.depth >= bounds.depth:
        raise InvalidRequest(f"The tree may be {bounds.depth} tasks deep.", code="invalid_value")
    for child in children:
        if not legion.may_delegate(task.tier, child.tier):
            raise InvalidRequest(f"A {task.tier} sends no {child.tier}.", code="invalid_value")
    fresh = await patiently(lambda: desk.scope.find(task.id))
    if fresh is None or fresh.status in TERMINAL:
        raise Stopped
    ids = {child.name: identity(task, child.name, offset + n) for n, child in enumerate(children)}
    shares = legion.shares(*_left(fresh), [child.weight for child in children])
    now = datetime.now(UTC)
    rows = [_row(desk, child, ids, offset + n, shares[n], now, fresh.deadline_at) for n, child in enumerate(children)]
    events = [
        NewEvent(
            type="agent_spawned",
            task_id=row.id,
            fields={
                "message": f"{row.tier.capitalize()} {row.name} ({row.role})",
                "task": row.name,
                "content": child.prompt[:500],
                "details": {"role": row.role, "tier": row.tier, "parent_id": row.parent_task_id},
            },
        )
        for row, child in zip(rows, children, strict=True)
    ]
    if not await patiently(lambda: desk.scope.spawn(fresh, rows, (), events, bounds.tasks)):
        now_ = await patiently(lambda: desk.scope.find(task.id))
        if now_ is None or now_.status in TERMINAL:
            raise Stopped
        return None
    for row in rows:
        await patiently(
            lambda row=row: desk.engine.begin(  # type: ignore[misc]
                "task", row.id, tenant_id=str(row.tenant_id), priority=row.priority, here=True
            )
        )
    return [row.id for row in rows]


def _left(task: Task) -> tuple[int | None, Decimal | None]:
    """What is left of a task's budget."""
    used = task.input_tokens + task.output_tokens + task.held_tokens
    tokens = None if task.max_tokens is None else max(0, task.max_tokens - used)
    cost = None if task.max_cost is None else max(Decimal(0), task.max_cost - task.cost - task.held_cost)
    return tokens, cost


def _row(
    desk: Desk,
    child: Child,
    ids: Mapping[str, str],
    position: int,
    share: tuple[int | None, Decimal | None],
    now: datetime,
    deadline: datetime | None,
) -> Task:
    parent = desk.task
    request: dict[str, Any] = {
        **child.request,
        "prompt": child.prompt,
        "dependencies": [ids[name] for name in child.dependencies if name in ids],
    }
    if child.parts:
        request["parts"] = [dict(part) for part in child.parts]
    return Task(
        id=ids[child.name],
        tenant_id=parent.tenant_id,
        root_id=parent.root_id,
        parent_task_id=parent.id,
        key_hash=parent.key_hash,
        name=child.name[:200],
        status="Pending",
        task_type=parent.task_type,
        model=parent.model,
        role=(child.role or parent.role)[:100],
        tier=child.tier,
        pattern=parent.pattern,
        source=parent.source,
        priority=parent.priority,
        depth=parent.depth + 1,
        position=position,
        created_at=now,
        request=request,
        config=to_builtins(_config(desk, child)),
        deadline_at=None if deadline is None else now + (deadline - now) * _CHILDREN_SHARE,
        max_tokens=share[0],
        max_cost=share[1],
    )


async def finished(desk: Desk, id: str) -> Task:
    """Return a task of the tree once it has ended. Raises Stopped where there is none."""
    while True:
        task = await patiently(lambda: desk.hub.wait(desk.task.tenant_id, id, WAIT_SECONDS))
        if task is None:
            raise Stopped
        if task.status in TERMINAL:
            return task


async def all_finished(desk: Desk, ids: Sequence[str], told: Callable[[Task], None] | None = None) -> list[Task]:
    """Return tasks below this one once all have ended, in the order given. `told` hears of each as it ends.

    Raises OverBudget as soon as one ends because the budget of this task, or of one above, is used up.
    """
    waits = [asyncio.ensure_future(finished(desk, id)) for id in ids]
    try:
        for next_ in asyncio.as_completed(waits):
            child = await next_
            if told is not None:
                told(child)
            over = (child.error or {}).get("task_id") if child.status == "BudgetExceeded" else None
            if over is not None and over != child.id:
                raise OverBudget(str(over))
        return [await wait for wait in waits]
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


def done(task: Task) -> Done:
    """Return what became of a task, for those who build on it."""
    results = task.results or {}
    text = str(results.get("content") or results.get("summary") or "")
    return Done(task.name, task.status, text)


def why(task: Task) -> str:
    """Return why a task has no result, in words."""
    return str((task.error or {}).get("message") or task.message or "it ended without a result")
