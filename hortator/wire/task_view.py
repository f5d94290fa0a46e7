"""What clients read of tasks: the objects of `/api/v1/tasks` and `/api/v1/orchestrations`, of the socket and of the SDK.

The doors make them of what the store keeps (`api/task_view.py`), the SDK reads them back. Moments are RFC 3339 in UTC with milliseconds and
`Z`; amounts are US dollars as text, exact; what is not known is null. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct


class TaskError(Struct, frozen=True):
    """Why a task ended without success."""

    code: str
    message: str


class TaskUsage(Struct, frozen=True, kw_only=True):
    """Tokens of a task and of all tasks below it."""

    input_tokens: int
    output_tokens: int
    total_tokens: int


class TaskBudget(Struct, frozen=True, kw_only=True):
    """What a task and all tasks below it may use; null = no bound of its own."""

    max_tokens: int | None
    max_cost_usd: str | None


class TaskView(Struct, frozen=True, kw_only=True):
    """A task."""

    id: str
    task_id: str
    """The same as `id`."""
    object: str = "task"
    root_id: str
    parent_id: str | None
    name: str
    type: str
    task_type: str
    """The same as `type`."""
    status: str
    """Pending, Running, Waiting, Retrying; Completed, Failed, BudgetExceeded, TimedOut, Cancelled."""
    model: str | None
    role: str
    tier: str
    pattern: str
    source: str
    priority: str
    depth: int
    created_at: str
    started_at: str | None
    completed_at: str | None
    deadline_at: str | None
    message: str
    progress_percent: int
    attempts: int
    config: Mapping[str, Any] | None
    results: Mapping[str, Any] | None
    error: TaskError | None
    usage: TaskUsage
    cost_usd: str
    budget: TaskBudget
    callback_url: str | None


class TaskNode(TaskView, frozen=True, kw_only=True):
    """A task with those below it."""

    children: list[TaskNode]


class OrchestrationView(TaskView, frozen=True, kw_only=True):
    """A whole tree: its root, and how many tasks it has."""

    object: str = "orchestration"
    tasks: Mapping[str, int]
    """By status."""


class OrchestrationNode(OrchestrationView, frozen=True, kw_only=True):
    """A whole tree with its tasks."""

    children: list[TaskNode]


class TaskList(Struct, frozen=True, kw_only=True):
    """A page of tasks."""

    object: Literal["list"] = "list"
    data: list[TaskView]
    first_id: str | None
    last_id: str | None
    has_more: bool


class OrchestrationList(Struct, frozen=True, kw_only=True):
    """A page of orchestrations."""

    object: Literal["list"] = "list"
    data: list[OrchestrationView]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Artifact(Struct, frozen=True, kw_only=True):
    """A file that agents made."""

    path: str
    """Begins with `outbox/`."""
    bytes: int
    media_type: str
    sha256: str
    task_id: str
    """Of the task that made it."""


class Artifacts(Struct, frozen=True, kw_only=True):
    """What a task and the tasks below it made."""

    task_id: str
    phase: str
    files: list[Artifact]


class TaskResult(Struct, frozen=True, kw_only=True):
    """How a task ended."""

    task_id: str
    status: str
    results: Mapping[str, Any] | None
    error: TaskError | None
    artifacts: list[Artifact]


class LedgerEntry(Struct, frozen=True, kw_only=True):
    """A model call or tool call, charged once however often it ran."""

    task_id: str
    task: str
    """The task's name."""
    step: str
    kind: str
    """`model` or `tool`."""
    name: str
    """The model or the tool."""
    deployment: str | None
    request_id: str | None
    """That of the usage record."""
    status: str
    """`running`, `finished`, `failed`, `cancelled` (cut off when its task ended)."""
    runs: int
    input_tokens: int
    output_tokens: int
    cost_usd: str | None
    """Null = not known, or not ended."""
    started_at: str
    finished_at: str | None


class LedgerTotal(Struct, frozen=True, kw_only=True):
    """The sum of a ledger's entries."""

    input_tokens: int
    output_tokens: int
    cost_usd: str


class TaskLedger(Struct, frozen=True, kw_only=True):
    """What a task and the tasks below it took."""

    task_id: str
    entries: list[LedgerEntry]
    total: LedgerTotal


SCHEMAS: tuple[type[Struct], ...] = (
    TaskView,
    TaskNode,
    TaskList,
    OrchestrationView,
    OrchestrationNode,
    OrchestrationList,
    Artifacts,
    TaskResult,
    TaskLedger,
)
