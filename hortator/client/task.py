"""What both clients know of a task: its record, its result or why there is none, its files and where they go on this machine.

`tasks.py` and `async_tasks.py` add the calls. No I/O but making folders for files that are being fetched.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any

from hortator.client.errors import HortatorConnectionError, HortatorError, TaskError
from hortator.client.events import TaskEvent, seen
from hortator.client.order import TASKS
from hortator.client.record import Record, read_object
from hortator.client.request import Request, get, post, segment
from hortator.wire.tasks import TERMINAL

POLL_SECONDS = 30
"""How long the server is asked to hold a question for the end of a task."""
ANSWER_SECONDS = 60.0
"""How long an answer to it may take before the connection is taken for dead."""
OUTBOX = "outbox/"


class Artifact(Record):
    """A file that agents made."""

    path: str
    bytes: int
    media_type: str
    sha256: str
    task_id: str


class Node(Record, own=("children",)):
    """A task in a tree; `children` are below it."""

    id: str
    name: str
    role: str
    tier: str
    status: str
    cost_usd: str | None
    children: list[Node]


class LedgerEntry(Record):
    """A model call or tool call of a tree."""

    task_id: str
    step: str
    kind: str
    name: str
    status: str
    input_tokens: int
    output_tokens: int
    cost_usd: str | None


class Ledger(Record, kinds={"entries": LedgerEntry, "total": LedgerEntry}):
    """What a tree has used, call by call; the entries sum to the total."""

    task_id: str
    entries: list[LedgerEntry]
    total: LedgerEntry


class TaskData(Record):
    """A task as the server tells it."""

    id: str
    root_id: str
    parent_id: str | None
    name: str
    type: str
    status: str
    model: str | None
    role: str
    tier: str
    pattern: str | None
    source: str | None
    priority: str | None
    depth: int
    created_at: str
    started_at: str | None
    completed_at: str | None
    deadline_at: str | None
    message: str | None
    progress_percent: int | None
    attempts: int | None
    config: Any
    results: Any
    error: Any
    usage: Any
    cost_usd: str | None
    budget: Any
    callback_url: str | None


class TaskBase:
    """A task as it was when the server was last asked. Its fields are attributes: `task.progress_percent`, `task.cost_usd`."""

    def __init__(self, data: TaskData) -> None:
        self._data = data

    @property
    def id(self) -> str:
        """Its id."""
        return self._data.id

    @property
    def status(self) -> str:
        """Its phase, as last heard: Pending, Running, Waiting, Retrying, Completed, Failed, BudgetExceeded, TimedOut, Cancelled."""
        return self._data.status

    @property
    def ended(self) -> bool:
        """Whether it has ended, as last heard."""
        return self.status in TERMINAL

    @property
    def data(self) -> TaskData:
        """Everything the server said."""
        return self._data

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._data, name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.status}>"

    def _heard(self, event: TaskEvent) -> None:
        """Take over what an event says. Only a root is told of by the events of its tree."""
        if self._data.root_id in (None, self.id):
            self._data = TaskData(seen(self._data.to_dict(), event))

    def _outcome(self) -> Record:
        """Return the result of a task that has ended. Raises TaskError where there is none."""
        results = self._data.results
        if self.status in ("Failed", "Cancelled") or not isinstance(results, Record):
            error = self._data.error
            code = error["code"] if isinstance(error, Record) and "code" in error else None
            message = error["message"] if isinstance(error, Record) and "message" in error else self._data.message
            text = message or f"The task ended as {self.status}."
            raise TaskError(text, phase=self.status, task_id=self.id, code=code)
        return results


def task_path(id: str, *rest: str) -> str:
    """Return the path of a task, or of what is below it."""
    return "/".join([TASKS, segment(id), *rest])


def task_data(body: bytes) -> TaskData:
    """Read a task."""
    return TaskData(read_object(body))


def listed(body: bytes, field: str = "data") -> list[dict[str, Any]]:
    """Read the objects of a list."""
    found = read_object(body).get(field)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def look(id: str, wait: float | None = None) -> Request:
    """Ask for a task; `wait`: once it has ended, or after so many seconds."""
    if wait is None:
        return get(task_path(id))
    return get(task_path(id), timeout=ANSWER_SECONDS, wait=max(1, min(POLL_SECONDS, int(wait))))


def page(limit: int, after: str | None, *, all: bool, **chosen: str | None) -> Request:
    """Ask for a page of tasks, newest first."""
    return get(TASKS, None, limit=limit, after=after, all="true" if all else None, **chosen)


def cancel(id: str) -> Request:
    """Ask for the end of a task and all below it. Twice is as good as once."""
    return post(task_path(id, "cancel"), {}, idempotent=True)


def say(id: str, text: str) -> Request:
    """Send a message to the agents."""
    return post(task_path(id, "messages"), {"content": text})


def artifact(id: str, path: str) -> Request:
    """Ask for a file."""
    return get(task_path(id, "artifacts", *(segment(part) for part in path.split("/"))))


def destinations(files: list[Artifact], folder: Path) -> list[tuple[Artifact, Path]]:
    """Return where each file goes: below `folder`, and of two with one path the later below its task's id. Raises HortatorError."""
    taken: set[Path] = set()
    found = []
    for file in files:
        place = destination(file.path, folder)
        if place in taken:
            place = destination(f"{file.task_id}/{file.path.removeprefix(OUTBOX)}", folder)
        taken.add(place)
        found.append((file, place))
    return found


def destination(path: str, folder: Path) -> Path:
    """Return the place of a file below a folder. Raises HortatorError for a path that would leave it."""
    parts = PurePosixPath(path.removeprefix(OUTBOX)).parts
    if not parts or any(part in ("..", "/") or "\0" in part or "\\" in part for part in parts):
        raise HortatorError(f"The server names a file that cannot be kept: {path!r}.", code="invalid_file_path")
    return folder.joinpath(*parts)


class Landing:
    """A file on its way: beside its place until it is whole and its hash is right."""

    def __init__(self, place: Path, expected: Mapping[str, Any]) -> None:
        """Raises OSError."""
        place.parent.mkdir(parents=True, exist_ok=True)
        self._place = place
        self._half = place.with_name(f".{place.name}.{os.getpid()}.part")
        self._expected = expected.get("sha256")
        self._hash = hashlib.sha256()
        self._file: IO[bytes] = self._half.open("wb")

    def write(self, piece: bytes) -> None:
        """Take a piece. Raises OSError."""
        self._hash.update(piece)
        self._file.write(piece)

    def done(self) -> Path:
        """Put the file in its place. Raises HortatorConnectionError where it is not what the server said, OSError."""
        self._file.close()
        if self._expected and self._hash.hexdigest() != self._expected:
            raise HortatorConnectionError(f"{self._place.name} arrived damaged")
        self._half.replace(self._place)
        return self._place

    def drop(self) -> None:
        """Remove what came, unless it is in its place."""
        self._file.close()
        self._half.unlink(missing_ok=True)

    def __enter__(self) -> Landing:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.drop()
