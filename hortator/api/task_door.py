"""What the doors of tasks and orchestrations do alike: their routes, and the requests and replies of each.

A door is a `TaskDoor` that says which path it has, how an order is read and how a task is shown. The room of teams does the work; streams of
events are written by `task_events.py`, files by `task_files.py`. Nothing is decided here.
"""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol, get_args

import msgspec
import uuid_utils

from hortator.api import orders, problem, task_events, task_files, task_view
from hortator.api.inference import OPENAI, Exchange, allow, respond, serve
from hortator.api.multipart import Form
from hortator.api.objects import Admit, page
from hortator.api.query import Query, number, only, read_query
from hortator.api.reading import HangUp, Receive, Scope, Send, bearer, expect_json, read_body
from hortator.api.task_events import Views
from hortator.call import Caller
from hortator.dispatch import Trace
from hortator.errors import Conflict, InvalidRequest, NotFound, TooLarge
from hortator.orchestration.teams import Teams
from hortator.store.tasks import Filter, Task
from hortator.wire.orders import BINARY_TYPE, Asked, Attachment, file_path, message
from hortator.wire.task_view import Artifacts, TaskResult, TaskView
from hortator.wire.tasks import TERMINAL, Pattern, Phase

USUAL_PAGE, MAX_PAGE = 20, 100
"""Tasks in one list."""
MAX_WAIT_SECONDS = 60
MAX_PARTS = 256
"""Parts of a form: the order and its files."""
MAX_KEY = 255

_KEY = re.compile(rb"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?").fullmatch
_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII).fullmatch
_JSON = msgspec.json.Encoder()


class Deliveries(Protocol):
    """What was sent to the `callback_url` of tasks. Answers are structs that become JSON."""

    async def page(self, caller: Caller, task_id: str) -> Sequence[Any]:
        """The deliveries of a task's tree, in order; each has an `id`. Raises NotFound (`task_not_found`)."""
        ...

    async def redeliver(self, caller: Caller, task_id: str, delivery_id: str) -> Any:
        """Send one again; returns it. Raises NotFound (`task_not_found`, `delivery_not_found`)."""
        ...


class TaskDoor(ABC):
    """Everything under one path."""

    path: str
    source: str
    """What tasks that came through this door have as `source`."""

    def __init__(
        self,
        admit: Admit,
        teams: Teams,
        max_body_bytes: int,
        *,
        root_path: str = "",
        deliveries: Deliveries | None = None,
        views: Views | None = None,
    ) -> None:
        """`root_path` stands before the path in addresses that clients are told. Without `deliveries` there are none.

        `views`: where requests that wait are counted.
        """
        self._admit = admit
        self._teams = teams
        self._max_body_bytes = max_body_bytes
        self._root_path = root_path
        self._deliveries = deliveries
        self._views = Views() if views is None else views
        self._reads: dict[str, Callable[[Exchange, Caller, Trace, str], Awaitable[None]]] = {
            "children": self._children,
            "tree": self._tree,
            "result": self._result,
            "artifacts": self._artifacts,
            "events": self._events,
            "ledger": self._ledger,
            "deliveries": self._delivered,
        }
        self._acts: dict[str, Callable[[Exchange, Caller, str], Awaitable[None]]] = {
            "cancel": self._cancel,
            "messages": self._say,
        }

    @abstractmethod
    def parse(self, body: bytes, attached: Sequence[Attachment]) -> Asked:
        """Read an order. Raises InvalidRequest."""

    @abstractmethod
    async def shown(self, caller: Caller, tasks: Sequence[Task]) -> Sequence[TaskView]:
        """Return tasks as this door's clients see them."""

    @abstractmethod
    def nested(self, task: Task, tree: Sequence[Task]) -> TaskView:
        """Return a task with those below it."""

    @abstractmethod
    def filtered(self, asked: Query) -> Filter:
        """Return which tasks are to be listed; `limit` and `after` are not its business. Raises InvalidRequest."""

    async def find(self, caller: Caller, id: str) -> Task:
        """Return a task that this door knows. Raises NotFound."""
        return await self._teams.find(caller, id)

    def __call__(self, scope: Scope, receive: Receive, send: Send, path: str) -> Awaitable[None]:
        """Answer one request to `path` (below the root path)."""
        return serve(scope, receive, send, OPENAI, partial(self._answer, path))

    async def _answer(self, path: str, exchange: Exchange, trace: Trace) -> None:
        caller = await self._admit(bearer(exchange.headers))
        match path[len(self.path) :].split("/"):
            case [""]:
                allow(exchange, "GET", "HEAD", "POST")
                await (self._add if exchange.method == "POST" else self._list)(exchange, caller)
            case ["", id] if id:
                allow(exchange, "GET", "HEAD")
                await self._one(exchange, caller, trace, id)
            case ["", id, name] if id and name in self._reads:
                allow(exchange, "GET", "HEAD")
                await self._reads[name](exchange, caller, trace, id)
            case ["", id, name] if id and name in self._acts:
                allow(exchange, "POST")
                await self._acts[name](exchange, caller, id)
            case ["", id, "artifacts", *rest] if id:
                allow(exchange, "GET", "HEAD")
                only(read_query(exchange.query))
                await self.find(caller, id)
                await task_files.one(exchange, self._teams, caller, id, "/".join(rest))
            case ["", id, "deliveries", delivery, "redeliver"] if id and delivery:
                allow(exchange, "POST")
                await self._redeliver(exchange, caller, id, delivery)
            case _:
                raise NotFound(f"Unknown request URL: {exchange.method} {path[:200]}.")

    async def _add(self, exchange: Exchange, caller: Caller) -> None:
        key = idempotency_key(exchange.headers)
        asked = await self._order(exchange)
        id = str(uuid_utils.uuid7())
        task = await self._teams.submit(caller, orders.taken(asked, self.source, key), id=id)
        also = [
            (b"location", f"{self._root_path}{self.path}/{task.id}".encode()),
            (b"x-hortator-task-id", task.id.encode()),
        ]
        [shown] = await self.shown(caller, [task])
        await _reply(exchange, shown, 202 if task.id == id else 200, also)

    async def _order(self, exchange: Exchange) -> Asked:
        """Read an order: JSON, or a form with the order as its part `task` and files."""
        kind = exchange.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"multipart/form-data":
            return self.parse(await self._json(exchange), ())
        if int(exchange.headers.get(b"content-length", b"0")) > self._max_body_bytes:
            raise _too_large(self._max_body_bytes)
        body: bytes | None = None
        files: list[Attachment] = []
        left = self._max_body_bytes
        form = Form(exchange.headers[b"content-type"], exchange.receive, MAX_PARTS)
        async for part in form.parts():
            content = bytearray()
            async for piece in part.content():
                content += piece
                if len(content) > left:
                    raise _too_large(self._max_body_bytes)
            left -= len(content)
            if part.name == "task" and body is None:
                body = bytes(content)
            elif part.name == "task":
                raise InvalidRequest("The form has more than one part 'task'.", code="invalid_form", param="task")
            elif part.filename is None:
                name = part.name[:100]
                raise InvalidRequest(f"Unknown parameter: '{name}'.", code="unknown_parameter", param=name)
            else:
                path = file_path(part.filename, f"files[{len(files)}].filename")
                files.append(Attachment(path, bytes(content), BINARY_TYPE))
        if body is None:
            raise InvalidRequest("Missing required parameter: 'task'.", code="missing_required_parameter", param="task")
        return self.parse(body, files)

    async def _json(self, exchange: Exchange) -> bytes:
        expect_json(exchange.headers)
        return await read_body(exchange.headers, exchange.direct, exchange.receive, self._max_body_bytes)

    async def _list(self, exchange: Exchange, caller: Caller) -> None:
        asked = read_query(exchange.query)
        chosen = self.filtered(asked)
        limit = number(asked, "limit", USUAL_PAGE, 1, MAX_PAGE)
        after = asked.get("after")
        if after is not None and not _ID(after):
            raise InvalidRequest("'after' must be the id of a task.", code="invalid_value", param="after")
        found = await self._teams.page(caller, chosen, after, limit + 1)
        data = await self.shown(caller, found[:limit])
        await _reply(exchange, page(data, len(found) > limit))

    async def _one(self, exchange: Exchange, caller: Caller, trace: Trace, id: str) -> None:
        [shown] = await self.shown(caller, [await self._waited(exchange, caller, trace, id)])
        await _reply(exchange, shown)

    async def _waited(self, exchange: Exchange, caller: Caller, trace: Trace, id: str) -> Task:
        """Return a task, once it has ended or the time that the client waits is over."""
        asked = read_query(exchange.query)
        only(asked, "wait")
        seconds = number(asked, "wait", 0, 0, MAX_WAIT_SECONDS)
        task = await self.find(caller, id)
        if not seconds or task.status in TERMINAL or exchange.method == "HEAD":
            return task
        with self._views.opened(), HangUp(trace.hang_up, exchange.direct, exchange.receive):
            try:
                return await self._teams.finished(caller, id, seconds)
            except asyncio.CancelledError as cancelled:
                raise trace.failure(cancelled) from None

    async def _cancel(self, exchange: Exchange, caller: Caller, id: str) -> None:
        await self.find(caller, id)
        [shown] = await self.shown(caller, [await self._teams.cancel(caller, id)])
        await _reply(exchange, shown)

    async def _say(self, exchange: Exchange, caller: Caller, id: str) -> None:
        text = message(await self._json(exchange))
        await self.find(caller, id)
        await _reply(exchange, await self._teams.say(caller, id, text), 202)

    async def _children(self, exchange: Exchange, caller: Caller, _: Trace, id: str) -> None:
        only(read_query(exchange.query))
        task = await self.find(caller, id)
        tree = await self._teams.tree(caller, id)
        found = sorted((each for each in tree if each.parent_task_id == task.id), key=lambda each: each.position)
        await _reply(exchange, page([task_view.shown(each) for each in found], more=False))

    async def _tree(self, exchange: Exchange, caller: Caller, _: Trace, id: str) -> None:
        only(read_query(exchange.query))
        task = await self.find(caller, id)
        await _reply(exchange, self.nested(task, await self._teams.tree(caller, task.id)))

    async def _result(self, exchange: Exchange, caller: Caller, trace: Trace, id: str) -> None:
        task = await self._waited(exchange, caller, trace, id)
        if task.status not in TERMINAL:
            raise Conflict(f"The task has not ended: it is {task.status}.", code="task_not_terminal")
        files = await self._teams.files(caller, task.id)
        result = TaskResult(
            task_id=task.id,
            status=task.status,
            results=task.results,
            error=task_view.error(task),
            artifacts=[task_view.artifact(file) for file in files],
        )
        await _reply(exchange, result)

    async def _artifacts(self, exchange: Exchange, caller: Caller, trace: Trace, id: str) -> None:
        asked = read_query(exchange.query)
        only(asked, "download")
        if asked.get("download", "tar") != "tar":
            raise InvalidRequest("'download' must be tar.", code="invalid_value", param="download")
        task = await self.find(caller, id)
        files = await self._teams.files(caller, task.id)
        if "download" in asked:
            await task_files.tar(exchange, trace, self._teams, caller, task.id, files)
            return
        shown = [task_view.artifact(file) for file in files]
        await _reply(exchange, Artifacts(task_id=task.id, phase=task.status, files=shown))

    async def _events(self, exchange: Exchange, caller: Caller, trace: Trace, id: str) -> None:
        asked = task_events.read(exchange)
        task = await self.find(caller, id)
        if asked.stream:
            await task_events.stream(exchange, trace, self._teams, caller, task.id, asked, self._views)
        else:
            await _reply(exchange, await task_events.listed(self._teams, caller, task.id, asked))

    async def _ledger(self, exchange: Exchange, caller: Caller, _: Trace, id: str) -> None:
        only(read_query(exchange.query))
        task = await self.find(caller, id)
        steps = await self._teams.steps(caller, task.id)
        tree = await self._teams.tree(caller, task.id)
        await _reply(exchange, task_view.ledger(task.id, steps, tree))

    async def _delivered(self, exchange: Exchange, caller: Caller, _: Trace, id: str) -> None:
        only(read_query(exchange.query))
        task = await self.find(caller, id)
        found = [] if self._deliveries is None else await self._deliveries.page(caller, task.id)
        await _reply(exchange, page(found, more=False))

    async def _redeliver(self, exchange: Exchange, caller: Caller, id: str, delivery: str) -> None:
        task = await self.find(caller, id)
        if self._deliveries is None:
            raise NotFound("There is no such delivery.", code="delivery_not_found")
        await _reply(exchange, await self._deliveries.redeliver(caller, task.id, delivery))


def idempotency_key(headers: dict[bytes, bytes]) -> str | None:
    """Return the client's key. Raises InvalidRequest."""
    given = headers.get(b"idempotency-key")
    if given is None:
        return None
    if len(given) > MAX_KEY or not _KEY(given):
        raise InvalidRequest(
            f"Idempotency-Key must be 1 to {MAX_KEY} printable ASCII characters.",
            code="invalid_value",
            param="Idempotency-Key",
        )
    return given.decode("ascii")


def choice(asked: Query, name: str, choices: Sequence[str]) -> str | None:
    """Return a parameter that has a closed list of values, None where it is not given. Raises InvalidRequest."""
    value = asked.get(name)
    if value is not None and value not in choices:
        raise InvalidRequest(f"'{name}' must be one of {', '.join(choices)}.", code="invalid_value", param=name)
    return value


def tree_filter(asked: Query, *, roots: bool) -> Filter:
    """Return the filter that both doors' lists have."""
    return Filter(
        status=choice(asked, "status", get_args(Phase)),
        task_type=asked.get("type"),
        model=asked.get("model"),
        source=asked.get("source"),
        pattern=choice(asked, "pattern", get_args(Pattern)),
        roots=roots,
    )


async def _reply(exchange: Exchange, document: Any, status: int = 200, also: problem.Headers | None = None) -> None:
    headers = [problem.JSON, (b"x-request-id", exchange.id.encode()), *(also or ())]
    await respond(exchange, status, headers, _JSON.encode(document))


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is over the limit of {limit} bytes.")
