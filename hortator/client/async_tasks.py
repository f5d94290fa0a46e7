"""`client.tasks` for asyncio: what `tasks.py` is for threads, over the same requests.

An iterator that is left before its end hangs up once it is closed; cancelling a task that waits here does so at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from hortator.client.async_connection import AsyncTransport
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


class AsyncTask(TaskBase):
    """A task. Its fields are those of the last answer; `refresh`, `wait`, `result` and `stream` bring newer ones."""

    def __init__(self, transport: AsyncTransport, data: TaskData) -> None:
        super().__init__(data)
        self._transport = transport

    @property
    def results(self) -> Record:
        """The result of a task that is known to have ended, by attribute at any depth (R-000-19). Raises TaskError, HortatorError."""
        if not self.ended:
            raise HortatorError(f"Task {self.id} is {self.status}, as last heard: `await task.result()`.")
        return self._outcome()

    async def refresh(self) -> AsyncTask:
        """Ask the server how it stands. Raises HortatorError."""
        self._data = task_data(await self._transport.fetch(look(self.id)))
        return self

    async def wait(self, timeout: float | None = None) -> AsyncTask:
        """Wait for its end. Raises HortatorTimeout after `timeout` seconds (None = for as long as it takes), HortatorError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.ended:
            left = POLL_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise HortatorTimeout(f"Task {self.id} is still {self.status}.")
            self._data = task_data(await self._transport.fetch(look(self.id, left)))
        return self

    async def result(self, timeout: float | None = None) -> Record:
        """Wait for its end and return the result: `summary`, `content`, `parts`, `artifacts` and what the task's type adds.

        A tree whose budget or time ran out has the result it achieved; `status` says so. Raises TaskError where there is none.
        """
        await self.wait(timeout)
        if self._data.results is None and self.status not in ("Failed", "Cancelled"):
            await self.refresh()
        return self._outcome()

    async def stream(self, level: Level = "full", after: int = 0) -> AsyncIterator[TaskEvent]:
        """Give the tree's events from the first one (or behind `after`), each once and in order, until the one that ends it.

        A broken connection is made again and goes on where it was. Raises HortatorError when that fails for two minutes.
        """
        follow = Follow(self._data.root_id or self.id, level, after)
        while not follow.ended:
            error = None
            try:
                async with await self._transport.once(follow.request()) as reply:
                    if reply.status == NOTHING_TO_COME:
                        return
                    async for piece in reply:
                        for event in follow.feed(piece):
                            self._heard(event)
                            yield event
            except HortatorError as failed:
                error = failed
            if not follow.ended:
                await asyncio.sleep(follow.pause(error))

    async def events(self, level: Level = "full", after: int = 0) -> AsyncIterator[TaskEvent]:
        """Give the tree's events that have happened, those behind `after`. Raises HortatorError."""
        more = True
        while more:
            page, after, more = past(read_object(await self._transport.fetch(so_far(self.id, level, after))), after)
            for event in page:
                yield event

    async def cancel(self) -> AsyncTask:
        """Cancel it and all below it; one that has ended stays as it is. Raises HortatorError."""
        self._data = task_data(await self._transport.fetch(cancel(self.id)))
        return self

    async def send(self, text: str) -> TaskEvent:
        """Send a message to its agents, who read it before their next model call. Raises ConflictError when it does not run."""
        return TaskEvent(read_object(await self._transport.fetch(say(self.id, text))))

    async def tree(self) -> Node:
        """Return it with all tasks below it, nested. Raises HortatorError."""
        return Node(read_object(await self._transport.fetch(get(task_path(self.id, "tree")))))

    async def children(self) -> list[AsyncTask]:
        """Return the tasks right below it. Raises HortatorError."""
        found = listed(await self._transport.fetch(get(task_path(self.id, "children"))))
        return [AsyncTask(self._transport, TaskData(each)) for each in found]

    async def ledger(self) -> Ledger:
        """Return every model and tool call and what it cost. Raises HortatorError."""
        return Ledger(read_object(await self._transport.fetch(get(task_path(self.id, "ledger")))))

    async def artifacts(self) -> list[Artifact]:
        """Return the files that its agents made. Raises HortatorError."""
        return [
            Artifact(each)
            for each in listed(await self._transport.fetch(get(task_path(self.id, "artifacts"))), "files")
        ]

    async def read(self, path: str) -> bytes:
        """Return the content of a file. Raises HortatorError."""
        return await self._transport.fetch(artifact(self.id, path))

    async def download(self, path: str | None = None, to: str | Path = ".") -> list[Path]:
        """Fetch a file, or all, into the folder `to`; return where they are. Raises HortatorError, OSError.

        A file is in its place only once it is whole and has the hash that the server told.
        """
        folder = Path(to)
        files = await self.artifacts()
        if path is None:
            return [
                await self._fetch(file.task_id or self.id, file, place) for file, place in destinations(files, folder)
            ]
        chosen = next((file for file in files if file.path == path), Artifact({"path": path}))
        return [await self._fetch(chosen.task_id or self.id, chosen, destination(path, folder))]

    async def _fetch(self, task_id: str, file: Artifact, place: Path) -> Path:
        request = artifact(task_id, file.path)
        tries = Tries(request, self._transport.max_retries)
        while True:
            try:
                async with await self._transport.once(request) as reply:
                    with Landing(place, file.to_dict()) as landing:
                        async for piece in reply:
                            await asyncio.to_thread(landing.write, piece)
                        return landing.done()
            except HortatorError as error:
                await asyncio.sleep(tries.pause(error))


class AsyncTasks:
    """Orders and finds tasks."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self,
        task_type: str | None = None,
        query: str | None = None,
        prompt: str | None = None,
        *,
        config: TaskConfig | Mapping[str, Any] | None = None,
        files: Sequence[FileLike] = (),
        idempotency_key: str | None = None,
        **fields: Unpack[OrderFields],
    ) -> AsyncTask:
        """Order something, and return the task at once. What is to be done is in `query`, `prompt`, `messages` or the files.

        `config`: a TaskConfig, or a mapping whose unknown names are parameters of the domain. `files`: paths, open files, or pairs of a
        name and content. `idempotency_key`: the same again is the same task. Raises HortatorError, OSError for a file that cannot be read.
        """
        order = {"task_type": task_type, "query": query, "prompt": prompt, **fields}
        request = await asyncio.to_thread(order_request, order, config, files, idempotency_key)
        return AsyncTask(self._transport, task_data(await self._transport.fetch(request)))

    async def get(self, id: str) -> AsyncTask:
        """Return a task. Raises NotFoundError."""
        return AsyncTask(self._transport, task_data(await self._transport.fetch(look(id))))

    async def list(
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
    ) -> list[AsyncTask]:
        """Return tasks, newest first; `after`: those older than the one of this id; `all`: also those below roots. Raises HortatorError."""
        request = page(limit, after, all=all, status=status, type=type, model=model, source=source, pattern=pattern)
        return [AsyncTask(self._transport, TaskData(each)) for each in listed(await self._transport.fetch(request))]

    async def cancel(self, id: str) -> AsyncTask:
        """Cancel a task and all below it. Raises NotFoundError."""
        return AsyncTask(self._transport, task_data(await self._transport.fetch(cancel(id))))
