"""`client.tasks`: teams of agents at work, for threads (R-000-15 to R-000-19). `async_tasks.py` is the same for asyncio.

Every call is one request of `task.py` or `order.py`; following a task is a loop around `events.Follow`, which goes on where it was when
a connection breaks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from hortator.client.connection import Transport
from hortator.client.errors import HortatorError, HortatorTimeout
from hortator.client.events import NOTHING_TO_COME, Follow, TaskEvent, past, so_far
from hortator.client.order import FileLike, OrderFields, order_request
from hortator.client.record import Record, read_object
from hortator.client.request import Tries, get
from hortator.client.task import (
    POLL_SECONDS,
    Artifact,
    Landing,
    Ledger,
    Node,
    TaskBase,
    TaskData,
    artifact,
    cancel,
    destination,
    destinations,
    listed,
    look,
    page,
    say,
    task_data,
    task_path,
)
from hortator.wire.events import Level
from hortator.wire.tasks import TaskConfig


class Task(TaskBase):
    """A task. Its fields are those of the last answer; `refresh`, `wait`, `result` and `stream` bring newer ones."""

    def __init__(self, transport: Transport, data: TaskData) -> None:
        super().__init__(data)
        self._transport = transport

    @property
    def results(self) -> Record:
        """The result, by attribute at any depth (R-000-19); waits for the end where it has not come. Raises TaskError, HortatorError."""
        return self.result()

    def refresh(self) -> Task:
        """Ask the server how it stands. Raises HortatorError."""
        self._data = task_data(self._transport.fetch(look(self.id)))
        return self

    def wait(self, timeout: float | None = None) -> Task:
        """Wait for its end. Raises HortatorTimeout after `timeout` seconds (None = for as long as it takes), HortatorError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.ended:
            left = POLL_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise HortatorTimeout(f"Task {self.id} is still {self.status}.")
            self._data = task_data(self._transport.fetch(look(self.id, left)))
        return self

    def result(self, timeout: float | None = None) -> Record:
        """Wait for its end and return the result: `summary`, `content`, `parts`, `artifacts` and what the task's type adds.

        A tree whose budget or time ran out has the result it achieved; `status` says so. Raises TaskError where there is none.
        """
        self.wait(timeout)
        if self._data.results is None and self.status not in ("Failed", "Cancelled"):
            self.refresh()
        return self._outcome()

    def stream(self, level: Level = "full", after: int = 0) -> Iterator[TaskEvent]:
        """Give the tree's events from the first one (or behind `after`), each once and in order, until the one that ends it.

        A broken connection is made again and goes on where it was. Raises HortatorError when that fails for two minutes.
        """
        follow = Follow(self._data.root_id or self.id, level, after)
        while not follow.ended:
            error = None
            try:
                with self._transport.once(follow.request()) as reply:
                    if reply.status == NOTHING_TO_COME:
                        return
                    for piece in reply:
                        for event in follow.feed(piece):
                            self._heard(event)
                            yield event
            except HortatorError as failed:
                error = failed
            if not follow.ended:
                time.sleep(follow.pause(error))

    def events(self, level: Level = "full", after: int = 0) -> Iterator[TaskEvent]:
        """Give the tree's events that have happened, those behind `after`. Raises HortatorError."""
        more = True
        while more:
            page, after, more = past(read_object(self._transport.fetch(so_far(self.id, level, after))), after)
            yield from page

    def cancel(self) -> Task:
        """Cancel it and all below it; one that has ended stays as it is. Raises HortatorError."""
        self._data = task_data(self._transport.fetch(cancel(self.id)))
        return self

    def send(self, text: str) -> TaskEvent:
        """Send a message to its agents, who read it before their next model call. Raises ConflictError when it does not run."""
        return TaskEvent(read_object(self._transport.fetch(say(self.id, text))))

    def tree(self) -> Node:
        """Return it with all tasks below it, nested. Raises HortatorError."""
        return Node(read_object(self._transport.fetch(get(task_path(self.id, "tree")))))

    def children(self) -> list[Task]:
        """Return the tasks right below it. Raises HortatorError."""
        found = listed(self._transport.fetch(get(task_path(self.id, "children"))))
        return [Task(self._transport, TaskData(each)) for each in found]

    def ledger(self) -> Ledger:
        """Return every model and tool call and what it cost. Raises HortatorError."""
        return Ledger(read_object(self._transport.fetch(get(task_path(self.id, "ledger")))))

    def artifacts(self) -> list[Artifact]:
        """Return the files that its agents made. Raises HortatorError."""
        return [Artifact(each) for each in listed(self._transport.fetch(get(task_path(self.id, "artifacts"))), "files")]

    def read(self, path: str) -> bytes:
        """Return the content of a file. Raises HortatorError."""
        return self._transport.fetch(artifact(self.id, path))

    def download(self, path: str | None = None, to: str | Path = ".") -> list[Path]:
        """Fetch a file, or all, into the folder `to`; return where they are. Raises HortatorError, OSError.

        A file is in its place only once it is whole and has the hash that the server told.
        """
        folder = Path(to)
        files = self.artifacts()
        if path is None:
            return [self._fetch(file.task_id or self.id, file, place) for file, place in destinations(files, folder)]
        chosen = next((file for file in files if file.path == path), Artifact({"path": path}))
        return [self._fetch(chosen.task_id or self.id, chosen, destination(path, folder))]

    def _fetch(self, task_id: str, file: Artifact, place: Path) -> Path:
        request = artifact(task_id, file.path)
        tries = Tries(request, self._transport.max_retries)
        while True:
            try:
                with self._transport.once(request) as reply, Landing(place, file.to_dict()) as landing:
                    for piece in reply:
                        landing.write(piece)
                    return landing.done()
            except HortatorError as error:
                time.sleep(tries.pause(error))


class Tasks:
    """Orders and finds tasks."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        task_type: str | None = None,
        query: str | None = None,
        prompt: str | None = None,
        *,
        config: TaskConfig | Mapping[str, Any] | None = None,
        files: Sequence[FileLike] = (),
        idempotency_key: str | None = None,
        **fields: Unpack[OrderFields],
    ) -> Task:
        """Order something, and return the task at once. What is to be done is in `query`, `prompt`, `messages` or the files.

        `config`: a TaskConfig, or a mapping whose unknown names are parameters of the domain. `files`: paths, open files, or pairs of a
        name and content. `idempotency_key`: the same again is the same task. Raises HortatorError, OSError for a file that cannot be read.
        """
        order = {"task_type": task_type, "query": query, "prompt": prompt, **fields}
        request = order_request(order, config, files, idempotency_key)
        return Task(self._transport, task_data(self._transport.fetch(request)))

    def get(self, id: str) -> Task:
        """Return a task. Raises NotFoundError."""
        return Task(self._transport, task_data(self._transport.fetch(look(id))))

    def list(
        self,
        *,
        limit: int = 20,
        after: str | None = None,
        status: str | None = None,
        type: str | None = None,
        model: str | None = None,
        source: str | None = None,
        pattern: str | None = None,
        all: bool = False,
    ) -> list[Task]:
        """Return tasks, newest first; `after`: those older than the one of this id; `all`: also those below roots. Raises HortatorError."""
        request = page(limit, after, all=all, status=status, type=type, model=model, source=source, pattern=pattern)
        return [Task(self._transport, TaskData(each)) for each in listed(self._transport.fetch(request))]

    def cancel(self, id: str) -> Task:
        """Cancel a task and all below it. Raises NotFoundError."""
        return Task(self._transport, task_data(self._transport.fetch(cancel(id))))
