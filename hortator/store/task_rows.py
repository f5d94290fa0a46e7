"""What walks between the task tables and `orchestration/`: rows as values, wishes and answers. Nothing here does I/O.

`tasks.py` hands all of this on; the scopes in `task_events.py`, `task_steps.py` and `task_files.py` make and take it. What agents
and models write passes `plain`, because Postgres takes neither a NUL nor half a character nor a number that is none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct
from sqlalchemy import Row

from hortator.call import KeyHash, TenantId, Usage
from hortator.wire.events import Event

Told = Callable[[TenantId, Sequence[Event]], None]
"""Hears of new events of a tenant's trees, after their commit."""
Ended = Callable[[TenantId, Sequence[str]], None]
"""Hears the ids of a tenant's tasks that have ended, after the commit."""

UNFINISHED = ("Pending", "Running", "Waiting", "Retrying")
"""Phases of a task that has not ended."""
MESSAGE_CHARACTERS = 500
_DEEPEST = 100
_UNFIT = re.compile("[\0\ud800-\udfff]")


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


class Level(NamedTuple):
    """Of a row of `tasks`, what a change of it, or of one below it, needs: no JSON."""

    id: str
    name: str
    status: str
    depth: int
    max_tokens: int | None
    max_cost: Decimal | None
    held_tokens: int
    held_cost: Decimal
    input_tokens: int
    output_tokens: int
    cost: Decimal
    last_seq: int


class Place(NamedTuple):
    """Where a task is in its tree."""

    id: str
    root_id: str
    parent_task_id: str | None
    depth: int


class Outline(NamedTuple):
    """Of a row of `tasks`, how far it is."""

    id: str
    parent_task_id: str | None
    status: str
    progress: int
    started_at: datetime | None


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


def as_task(row: Row[Any]) -> Task:
    """Return the task that a row of `tasks` is."""
    return Task(*(row._mapping[name] for name in Task._fields))


def as_step(row: Row[Any]) -> Step:
    """Return the step that a row of `task_steps` is."""
    return Step(*(row._mapping[name] for name in Step._fields))


def as_file(row: Row[Any]) -> File:
    """Return the file that a row of `task_files` is, without its content."""
    return File(*(row._mapping[name] for name in File._fields))


def now() -> datetime:
    """The moment, in the milliseconds that an event shows."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def as_event(root_id: str, seq: int, type: str, payload: Mapping[str, Any], at: datetime) -> Event:
    """Return the event that a row of `task_events` is."""
    stamp = at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"
    return Event(seq=seq, task_id=root_id, type=type, timestamp=stamp, **payload)


def text(value: str) -> str:
    """Return a text as both databases take it: NULs and halves of characters replaced, one for one."""
    return _UNFIT.sub("\ufffd", value)


def plain(value: Any, depth: int = 0) -> Any:
    """Return what goes into a JSON column: both databases' text, no number that is none, at most a hundred levels."""
    if isinstance(value, str):
        return text(value)
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth >= _DEEPEST:
        return "(nested too deeply)"
    if isinstance(value, Mapping):
        return {text(str(key)): plain(each, depth + 1) for key, each in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return [plain(each, depth + 1) for each in value]
    return plain(msgspec.to_builtins(value), depth + 1)
