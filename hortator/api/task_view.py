"""Tasks as clients see them, made of what the store keeps. The doors of tasks and orchestrations and the socket come here.

Pure: what has been read goes in, the structs of `wire/task_view.py` come out, the same in every view.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from hortator.store.tasks import File, Step, Task
from hortator.wire.task_view import (
    Artifact,
    LedgerEntry,
    LedgerTotal,
    OrchestrationNode,
    OrchestrationView,
    TaskBudget,
    TaskError,
    TaskLedger,
    TaskNode,
    TaskUsage,
    TaskView,
)
from hortator.wire.tasks import TERMINAL


def moment(at: datetime) -> str:
    """Return a moment as every view writes it."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def amount(dollars: Decimal) -> str:
    """Return an amount exactly, in the shortest way."""
    text = f"{dollars:f}"
    return (text.rstrip("0").rstrip(".") or "0") if "." in text else text


def shown(task: Task) -> TaskView:
    """Return a task."""
    return TaskView(**_fields(task))


def orchestration(task: Task, counted: Mapping[str, int]) -> OrchestrationView:
    """Return a root; `counted`: the tasks of its tree by status."""
    return OrchestrationView(**_fields(task), tasks=counted)


def nested(task: Task, tree: Sequence[Task]) -> TaskNode:
    """Return a task with all below it. `tree` may be in any order."""
    return TaskNode(**_fields(task), children=_below(task.id, _families(tree)))


def nested_orchestration(task: Task, tree: Sequence[Task]) -> OrchestrationNode:
    """Return a root with its whole tree."""
    below = _below(task.id, _families(tree))
    counted = Counter(each.status for each in tree)
    return OrchestrationNode(**_fields(task), tasks=dict(sorted(counted.items())), children=below)


def artifact(file: File) -> Artifact:
    """Return a file."""
    return Artifact(
        path=file.path, bytes=file.bytes, media_type=file.media_type, sha256=file.sha256, task_id=file.task_id
    )


def ledger(task_id: str, steps: Sequence[Step], tree: Sequence[Task]) -> TaskLedger:
    """Return what a task took: its steps, and what they add up to."""
    known = {task.id: task for task in tree}
    cost = sum((step.cost for step in steps if step.cost is not None), Decimal(0))
    return TaskLedger(
        task_id=task_id,
        entries=[_entry(step, known.get(step.task_id)) for step in steps],
        total=LedgerTotal(
            input_tokens=sum(step.input_tokens for step in steps),
            output_tokens=sum(step.output_tokens for step in steps),
            cost_usd=amount(cost),
        ),
    )


def error(task: Task) -> TaskError | None:
    """Return why a task ended without success."""
    said = task.error
    return None if said is None else TaskError(str(said.get("code", "")), str(said.get("message", "")))


def _fields(task: Task) -> dict[str, Any]:
    usage = TaskUsage(
        input_tokens=task.input_tokens,
        output_tokens=task.output_tokens,
        total_tokens=task.input_tokens + task.output_tokens,
    )
    return {
        "id": task.id,
        "task_id": task.id,
        "root_id": task.root_id,
        "parent_id": task.parent_task_id,
        "name": task.name,
        "type": task.task_type,
        "task_type": task.task_type,
        "status": task.status,
        "model": task.model,
        "role": task.role,
        "tier": task.tier,
        "pattern": task.pattern,
        "source": task.source,
        "priority": task.priority,
        "depth": task.depth,
        "created_at": moment(task.created_at),
        "started_at": _moment(task.started_at),
        "completed_at": _moment(task.completed_at),
        "deadline_at": _moment(task.deadline_at),
        "message": task.message,
        "progress_percent": task.progress,
        "attempts": task.attempts,
        "config": task.config,
        "results": task.results,
        "error": error(task),
        "usage": usage,
        "cost_usd": amount(task.cost),
        "budget": TaskBudget(max_tokens=task.max_tokens, max_cost_usd=_amount(task.max_cost)),
        "callback_url": task.request.get("callback_url"),
    }


def _entry(step: Step, task: Task | None) -> LedgerEntry:
    # A call that was cut off with its task is written down by nobody: who cancelled may be another process.
    cut = step.status == "running" and task is not None and task.status in TERMINAL
    return LedgerEntry(
        task_id=step.task_id,
        task="" if task is None else task.name,
        step=step.key,
        kind=step.kind,
        name=step.name,
        deployment=step.deployment,
        request_id=step.request_id,
        status="cancelled" if cut else step.status,
        runs=step.runs,
        input_tokens=step.input_tokens,
        output_tokens=step.output_tokens,
        cost_usd=_amount(step.cost),
        started_at=moment(step.started_at),
        finished_at=_moment(step.finished_at),
    )


def _families(tree: Sequence[Task]) -> Mapping[str, list[Task]]:
    """Children by their parent's id."""
    found: dict[str, list[Task]] = {}
    for task in sorted(tree, key=lambda each: each.position):
        if task.parent_task_id is not None:
            found.setdefault(task.parent_task_id, []).append(task)
    return found


def _below(id: str, families: Mapping[str, list[Task]]) -> list[TaskNode]:
    """At most ten levels, as trees are no deeper (`wire.tasks.MAX_DEPTH`)."""
    return [TaskNode(**_fields(task), children=_below(task.id, families)) for task in families.get(id, ())]


def _moment(at: datetime | None) -> str | None:
    return None if at is None else moment(at)


def _amount(dollars: Decimal | None) -> str | None:
    return None if dollars is None else amount(dollars)
