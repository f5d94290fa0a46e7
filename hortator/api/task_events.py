"""The log of a tree as the doors of tasks and orchestrations write it: an event stream that can be resumed, or a list.

The room of teams gives the log; each client has its own view of it, which reads only as fast as the client does. A client that hangs up ends
its view and nothing else. An event is the same bytes in every view (`wire/events.py`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, get_args

from msgspec import Raw

from hortator.api import problem
from hortator.api.inference import EVENT_STREAM, Exchange, respond
from hortator.api.query import number, only, read_query
from hortator.api.reading import HangUp, where
from hortator.call import Caller
from hortator.dispatch import Trace
from hortator.dispatch.trace import draining
from hortator.errors import HortatorError, InvalidRequest
from hortator.orchestration.teams import Teams
from hortator.wire.chat_stream import KEEP_ALIVE, OPENING
from hortator.wire.events import Delta, Event, Level, encode, shown, sse
from hortator.wire.tasks import TERMINAL

QUIET_SECONDS = 15.0
"""After so long without an event a comment is written, so that nothing between takes the stream for dead."""
HEAD_SECONDS = 0.5
"""So long the head of a stream waits for its first event: what is wrong with the request is a status until then."""
STALL_SECONDS = 120.0
"""A client that takes nothing for so long loses its view; it can resume."""
USUAL_LIST, MAX_LIST = 100, 1000
_MOST = (1 << 53) - 1

log = logging.getLogger(__name__)


class AskedEvents(NamedTuple):
    """Which part of a log is wanted, and how."""

    after: int
    level: Level
    stream: bool
    limit: int
    """Of a list."""


class Views:
    """The requests that wait for something to happen in a tree. A server that stops ends them first: they can be made again elsewhere."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Task[Any]] = set()
        self._closed = False

    @property
    def open(self) -> int:
        """How many there are."""
        return len(self._waiting)

    def close(self) -> None:
        """End all, and those to come."""
        self._closed = True
        for task in self._waiting:
            task.cancel()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Count the running request among them while it waits. Raises Unavailable (`draining`)."""
        task = asyncio.current_task()
        if self._closed or task is None:
            raise draining()
        self._waiting.add(task)
        try:
            yield
        finally:
            self._waiting.discard(task)


class _Stalled(Exception):
    """The client takes nothing."""


def read(exchange: Exchange) -> AskedEvents:
    """Read the query and `Last-Event-ID`, which a browser sends when it reconnects and which then wins. Raises InvalidRequest."""
    asked = read_query(exchange.query)
    only(asked, "after", "level", "stream", "limit")
    level: Any = asked.get("level", "full")
    if level not in get_args(Level):
        raise InvalidRequest("'level' must be default, verbose or full.", code="invalid_value", param="level")
    stream = asked.get("stream", "true")
    if stream not in ("true", "false"):
        raise InvalidRequest("'stream' must be true or false.", code="invalid_value", param="stream")
    if stream == "true" and "limit" in asked:
        raise InvalidRequest("'limit' is of a list: stream=false.", code="invalid_value", param="limit")
    after = _seq(asked.get("after", "0"), "after")
    last = exchange.headers.get(b"last-event-id", b"").decode("latin-1").strip()
    if last:
        after = _seq(last, "Last-Event-ID")
    return AskedEvents(after, level, stream == "true", number(asked, "limit", USUAL_LIST, 1, MAX_LIST))


def _seq(text: str, param: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 16 or int(text) > _MOST:
        raise InvalidRequest(f"'{param}' must be the number of an event.", code="invalid_value", param=param)
    return int(text)


async def listed(teams: Teams, caller: Caller, id: str, asked: AskedEvents) -> dict[str, Any]:
    """Return a page of the log. `last_seq` is where the next one begins, also where the level hides the last events."""
    page = await teams.events(caller, id, asked.after, asked.limit)
    last = page[-1].seq if page else asked.after
    return {
        "object": "list",
        "data": [Raw(encode(event)) for event in page if shown(event, asked.level)],
        "last_seq": last,
        "has_more": len(page) == asked.limit and bool(await teams.events(caller, id, last, 1)),
    }


async def stream(
    exchange: Exchange, trace: Trace, teams: Teams, caller: Caller, id: str, asked: AskedEvents, views: Views
) -> None:
    """Write the log behind `after`, then what comes, until the tree's end; 204 where there is nothing to come.

    A browser that is told 204 does not ask again. Raises HortatorError before the head; later it is an event `error`.
    """
    if exchange.method == "HEAD":
        await respond(exchange, 200, _head(exchange), b"")
        return
    view = teams.follow(caller, id, asked.after)
    page = _View(exchange, asked.level)
    first = asyncio.ensure_future(anext(view, None))
    failure: HortatorError | None = None
    try:
        with views.opened(), HangUp(trace.hang_up, exchange.direct, exchange.receive):
            try:
                await asyncio.wait({first}, timeout=HEAD_SECONDS)
                if first.done() and first.result() is None and await _ended(teams, caller, id):
                    await _nothing(exchange)
                else:
                    await page.write(first, view)
            except asyncio.CancelledError as cancelled:
                failure = trace.failure(cancelled)
                if trace.hung_up or not page.begun:
                    raise failure from None
        if failure is not None:
            await page.end(failure)
    finally:  # out of reach of a client that hangs up now
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        if isinstance(view, AsyncGenerator):
            await view.aclose()


class _View:
    """One client's stream, from its head to its end."""

    def __init__(self, exchange: Exchange, level: Level) -> None:
        self._exchange = exchange
        self._level = level
        self._written = time.monotonic()
        self.begun = False
        """Whether the status line has gone out."""

    async def write(self, first: asyncio.Future[Event | Delta | None], view: AsyncIterator[Event | Delta]) -> None:
        """Write everything. A client that stalls is left without an end, which closes its connection."""
        self.begun = True
        await self._exchange.send({"type": "http.response.start", "status": 200, "headers": _head(self._exchange)})
        await self._send(OPENING)
        quiet = asyncio.create_task(self._keep_alive(), name="keep-alive")
        failure: HortatorError | None = None
        try:
            if (event := await first) is not None:
                await self._event(event)
                async for event in view:
                    await self._event(event)
        except _Stalled:
            log.info("a client does not read its events: request=%s", self._exchange.id)
            if self._exchange.direct is not None:
                self._exchange.direct.transport.abort()  # closing would wait for it
            return
        except HortatorError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - the outermost edge of a stream, whose status line has gone out
            log.error("internal error: request=%s %s", self._exchange.id, where(error))
            failure = HortatorError("The gateway failed to handle this request.")
        finally:
            quiet.cancel()
        await self.end(failure)

    async def end(self, failure: HortatorError | None) -> None:
        """Write the end, and before it what went wrong. That has no id: to resume is to ask behind the last event."""
        last = b"" if failure is None else b"event: error\n" + problem.event(failure)
        await self._exchange.send({"type": "http.response.body", "body": last, "more_body": False})

    async def _event(self, event: Event | Delta) -> None:
        if isinstance(event, Event) and shown(event, self._level):
            await self._send(sse(event))

    async def _send(self, piece: bytes) -> None:
        """Write a piece once the client has taken those before it. Raises _Stalled."""
        try:
            async with asyncio.timeout(STALL_SECONDS):
                await self._exchange.send({"type": "http.response.body", "body": piece, "more_body": True})
        except TimeoutError:
            raise _Stalled from None
        self._written = time.monotonic()

    async def _keep_alive(self) -> None:
        while True:
            rest = self._written + QUIET_SECONDS - time.monotonic()
            if rest > 0:
                await asyncio.sleep(rest)
            else:
                await self._exchange.send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})
                self._written = time.monotonic()


async def _ended(teams: Teams, caller: Caller, id: str) -> bool:
    """Whether the tree has ended: a view ends also where the process stops."""
    task = await teams.find(caller, id)
    root = task if task.id == task.root_id else await teams.find(caller, task.root_id)
    return root.status in TERMINAL


async def _nothing(exchange: Exchange) -> None:
    """Write 204, which has no content and no length of one."""
    headers = [(b"x-request-id", exchange.id.encode())]
    await exchange.send({"type": "http.response.start", "status": 204, "headers": headers})
    await exchange.send({"type": "http.response.body", "body": b""})


def _head(exchange: Exchange) -> problem.Headers:
    return [*EVENT_STREAM, (b"x-request-id", exchange.id.encode())]
