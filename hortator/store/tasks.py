"""Every statement on tasks, their steps, events and files. What belongs to a tenant is reached through `TaskScope`, which adds the filter.

Called by `orchestration/`. A change of a task and the events that tell of it are one transaction; an event's `seq` is taken from its
root's row in that transaction, so that a reader who asks for what follows a `seq` misses nothing. After the commit the events are told
to `told`. Everything is written so that doing it twice does it once: workers run again what a dead one had begun.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from msgspec import Struct

from hortator.call import KeyHash, TenantId, Usage
from hortator.store.database import Database
from hortator.store.queries import TenantScope
from hortator.wire.events import Event

Told = Callable[[TenantId, Sequence[Event]], None]


class Task(NamedTuple):
    """A row of `tasks`."""

    id: str
    tenant_id: TenantId
    root_id: str
    parent_task_id: str | None
    key_hash: KeyHash
    name: str
    """Of a root: its beginning in words. Else its id in the plan."""
    status: str
    task_type: str
    model: str | None
    """As asked, e.g. `hortator/coding-expert`."""
    role: str
    tier: str
    pattern: str
    source: str
    """The door: chat, responses, messages, tasks, orchestrations, harpoon, socket."""
    priority: str
    depth: int
    """0 = a root."""
    position: int
    """Among its siblings, from 0."""
    created_at: datetime
    request: Mapping[str, Any]
    """What is to be done. A root: `messages` (chat messages) and what its pattern needs; a child: `prompt`, `dependencies` (ids of tasks)."""
    config: Mapping[str, Any] | None = None
    """A `wire.tasks.TaskConfig` with everything decided."""
    started_at: datetime | None = None
    completed_at: datetime | None = None
    deadline_at: datetime | None = None
    results: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    """`code`, `message`."""
    message: str = ""
    progress: int = 0
    """Percent."""
    max_tokens: int | None = None
    max_cost: Decimal | None = None
    held_tokens: int = 0
    held_cost: Decimal = Decimal(0)
    input_tokens: int = 0
    output_tokens: int = 0
    cost: Decimal = Decimal(0)
    attempts: int = 0
    last_seq: int = 0
    idempotency_key: str | None = None
    fingerprint: str | None = None


class Step(NamedTuple):
    """A row of `task_steps`."""

    task_id: str
    key: str
    """Unique in its task: `plan`, `turn.3`, `turn.3.tool.1`, `synthesis`."""
    root_id: str
    kind: str
    """`model` or `tool`."""
    name: str
    """The model or the tool."""
    status: str
    """`running`, `finished`, `failed`."""
    runs: int
    started_at: datetime
    finished_at: datetime | None = None
    request_id: str | None = None
    deployment: str | None = None
    held_tokens: int = 0
    held_cost: Decimal = Decimal(0)
    input_tokens: int = 0
    output_tokens: int = 0
    cost: Decimal | None = None
    """None = not known (a model without a price), or the step has not ended."""
    result: Any = None
    error: Mapping[str, Any] | None = None


class File(NamedTuple):
    """A row of `task_files` without the content."""

    task_id: str
    path: str
    bytes: int
    media_type: str
    sha256: str
    created_at: datetime


class NewFile(NamedTuple):
    """A file to be kept."""

    path: str
    content: bytes
    media_type: str


class NewEvent(Struct, frozen=True, kw_only=True):
    """An event without its number."""

    type: str
    task_id: str
    """The task it is about."""
    fields: Mapping[str, Any] = {}
    """What else `wire.events.Event` has: message, task, content, result, document, risk_description, severity, details."""


class Filter(NamedTuple):
    """Which tasks are listed. None = all."""

    status: str | None = None
    task_type: str | None = None
    model: str | None = None
    source: str | None = None
    pattern: str | None = None
    roots: bool = True


class Added(NamedTuple):
    """What became of a new root."""

    task: Task
    created: bool
    """False = its idempotency key was known: `task` is the one made then."""
    same: bool
    """False = known with another fingerprint."""


class Want(NamedTuple):
    """What a model call may take at most, and its prices in US dollars a token (None = not known: nothing is held)."""

    input_tokens: int
    output_tokens: int
    least_output: int
    """With fewer than that it is of no use."""
    input_price: Decimal | None = None
    output_price: Decimal | None = None


class Grant(NamedTuple):
    """The answer to a wish to run a step."""

    step: Step
    """As it is now. `finished`: use its result, do not run."""
    output_tokens: int | None
    """How long the answer may be; None = as wanted or no model call."""
    exceeded: str | None = None
    """Id of the task whose budget does not allow it; nothing is held then."""
    stopped: bool = False
    """The task has ended meanwhile (cancelled, timed out): nothing may run."""


class Took(NamedTuple):
    """How a step ended."""

    result: Any
    error: Mapping[str, Any] | None = None
    usage: Usage | None = None
    cost: Decimal | None = None
    request_id: str | None = None
    deployment: str | None = None


class TaskScope(TenantScope):
    """The tasks of one tenant."""

    def __init__(self, database: Database, tenant_id: TenantId, told: Told) -> None:
        """`told` is called with new events after their commit."""
        super().__init__(database, tenant_id)
        self._told = told

    async def add(
        self, root: Task, files: Sequence[NewFile], events: Sequence[NewEvent], unfinished: int
    ) -> Added | None:
        """Keep a new root with its input files; None where the tenant has `unfinished` roots that have not ended. Raises Unavailable."""

    async def find(self, id: str) -> Task | None:
        """The task of that id. Raises Unavailable."""

    async def page(self, chosen: Filter, after: str | None, limit: int) -> list[Task]:
        """At most `limit` tasks older than the one of id `after`, newest first. Raises Unavailable."""

    async def tree(self, root_id: str) -> list[Task]:
        """All tasks of a tree, parents before children, siblings by position. Raises Unavailable."""

    async def spawn(
        self,
        parent: Task,
        children: Sequence[Task],
        files: Sequence[tuple[str, NewFile]],
        events: Sequence[NewEvent],
        most: int,
    ) -> bool:
        """Add children that are not there yet, with files (by child id). Their share of the parent's budget is checked by who made them.

        False, and nothing is added, where the parent has ended or the tree would have more than `most` tasks. Raises Unavailable.
        """

    async def change(
        self, id: str, to: str, *, of: Sequence[str], values: Mapping[str, Any], events: Sequence[NewEvent]
    ) -> bool:
        """Move a task to the phase `to` if it is in one of `of`, with other columns and events; False (and no event) otherwise.

        A terminal phase sets `completed_at` and releases what the task's own steps hold. Raises Unavailable.
        """

    async def begin(self, task: Task, key: str, kind: str, name: str, want: Want | None) -> Grant:
        """Begin a step, or find it finished. One transaction: what an earlier run held is released, then `want` is held in the task and
        all above it, with as many output tokens as their budgets leave. Raises Unavailable.
        """

    async def settle(self, task: Task, key: str, took: Took, events: Sequence[NewEvent]) -> Step:
        """End a step: release what it held, charge the task and all above it, keep the result, tell. A finished one is left alone.

        Cost that is not known charges nothing. Raises Unavailable.
        """

    async def step(self, task_id: str, key: str) -> Step | None:
        """A step. Raises Unavailable."""

    async def steps(self, root_id: str) -> list[Step]:
        """All steps of a tree in the order they began. Raises Unavailable."""

    async def emit(self, root_id: str, events: Sequence[NewEvent], *, once: str | None = None) -> list[Event]:
        """Append events to a tree's log; none after the event that ended it. `once`: a name in the root's log that makes a second
        call do nothing. Raises Unavailable.
        """

    async def events(self, root_id: str, after: int, limit: int, types: Sequence[str] | None = None) -> list[Event]:
        """At most `limit` events behind `after`, in order. Raises Unavailable."""

    async def floor(self, root_id: str) -> int | None:
        """The lowest `seq` that is still kept, None when there is none. Raises Unavailable."""

    async def cancel(self, id: str, message: str) -> list[str]:
        """Cancel a task and all below it that have not ended; returns their ids. One transaction. Raises Unavailable."""

    async def put(
        self, task: Task, file: NewFile, *, most_files: int, most_bytes: int, events: Sequence[NewEvent] = ()
    ) -> bool:
        """Keep a file, in place of one at the same path; False where the task's files would be too many or too large. Raises Unavailable."""

    async def file(self, task_id: str, path: str) -> tuple[File, bytes] | None:
        """A file and its content. Raises Unavailable."""

    async def files(self, task_ids: Sequence[str], prefix: str = "") -> list[File]:
        """The files of tasks whose path begins with `prefix`, by task and path. Raises Unavailable."""


async def find_work(database: Database, id: str) -> Task | None:
    """A task of any tenant, for who works on it. Raises Unavailable."""


async def unfinished_roots(database: Database, after: str | None, limit: int) -> list[Task]:
    """Roots of any tenant that have not ended, oldest first, behind the one of id `after`: for who makes sure that they are worked on."""


async def forget_trees(database: Database, before: datetime, limit: int) -> list[str]:
    """Delete at most `limit` trees that ended before that moment, with everything of theirs; returns the roots' ids. Raises Unavailable."""
