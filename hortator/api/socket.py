"""The door of `/ws` and `/ws/tasks/{id}`: a client orders, watches, talks to and cancels trees of tasks over one connection.

`app.py` sends `websocket` scopes here. Who calls is settled before the first frame and looked at again all the time; the room of teams does the
work. Each subscription is a view of one log that reads only as fast as the client does: nothing waits in memory but the frame that is
being written, and a client that does not read has to go. It comes back with the last `seq` it saw and misses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, cast, get_args

import msgspec
from msgspec import Meta, Raw, Struct

from hortator.api import orders, problem, task_view
from hortator.api.objects import Admit
from hortator.api.query import number, only, read_query
from hortator.api.reading import Receive, Scope, Send, bearer, request_id, where
from hortator.api.websocket import DROP, Drop
from hortator.call import Caller, KeyHash
from hortator.errors import (
    ClientGone,
    HortatorError,
    InvalidRequest,
    NotFound,
    RateLimited,
    Unauthenticated,
    Unavailable,
)
from hortator.orchestration.teams import Teams
from hortator.store.tasks import Task
from hortator.wire import orders as wire
from hortator.wire.body import parse_as
from hortator.wire.events import Delta, Level, encode, shown

PATH = "/ws"
TASKS = "/ws/tasks/"
PROTOCOL, KEY_PROTOCOL = "hortator.v1", "hortator.key."
"""What a client names as subprotocols. The second is followed by a key: browsers cannot set headers."""
MAX_SUBSCRIPTIONS = 64
MAX_OF_KEY = 100
"""Connections of one key, of a process."""
STALL_SECONDS = 20.0
"""A client that takes nothing for so long has to go."""
RECHECK_SECONDS = 20.0
"""How often a key is looked at again while it is connected."""
DONE, BAD, LATER = 1000, 1008, 1013
NO_KEY, NO_TASK, UNREAD, TOO_MANY = 4401, 4404, 4408, 4429
_MOST = (1 << 53) - 1
_ENCODER = msgspec.json.Encoder()

log = logging.getLogger(__name__)

Ref = Annotated[str, Meta(max_length=200)] | int | None
Id = Annotated[str, Meta(min_length=1, max_length=100)]
Seq = Annotated[int, Meta(ge=0, le=_MOST)]


class Action(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="action", tag=str.lower):
    """What every frame of a client has."""

    ref: Ref = None
    """Its answer says the same."""


class Subscribe(Action, frozen=True, kw_only=True):
    """Show a tree's log from behind `after`, in place of an earlier subscription to the same tree."""

    task_id: Id
    after: Seq = 0
    level: Level = "full"
    deltas: bool = False


class Unsubscribe(Action, frozen=True, kw_only=True):
    """Show it no longer."""

    task_id: Id


class Submit(Action, frozen=True, kw_only=True):
    """Have something worked on: `order` is the body of `POST /api/v1/tasks`."""

    order: Raw
    idempotency_key: Annotated[str, Meta(max_length=255, pattern=r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$")] | None = (
        None
    )
    """As the header `Idempotency-Key`."""


class Cancel(Action, frozen=True, kw_only=True):
    """Cancel a task and all below it."""

    task_id: Id


class Message(Action, frozen=True, kw_only=True):
    """Say something to the agents of a tree."""

    task_id: Id
    content: Annotated[str, Meta(min_length=1)]


class Ping(Action, frozen=True, kw_only=True):
    """Ask whether anybody is there."""


Actions = Subscribe | Unsubscribe | Submit | Cancel | Message | Ping
_frame = msgspec.json.Decoder(Actions)
_fields = msgspec.json.Decoder(dict[str, Raw])
_reference: msgspec.json.Decoder[Ref] = msgspec.json.Decoder(Ref)


class _Refused(Exception):
    """The connection ends with a close code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class SocketDoor:
    """One per process: it counts the connections of each key."""

    def __init__(
        self,
        admit: Admit,
        teams: Teams,
        *,
        recheck_seconds: float = RECHECK_SECONDS,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self._admit = admit
        self._teams = teams
        self._recheck = recheck_seconds
        self._stall = stall_seconds
        self._open: Counter[KeyHash] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        """Serve one connection to `path` (below the root path). Never raises but for cancellation."""
        headers = dict(scope["headers"])
        id = request_id(headers)
        try:
            await receive()
            if path != PATH and not path.startswith(TASKS):
                await _refuse(send, path)
                return
            offered = scope["subprotocols"]
            await send({"type": "websocket.accept", "subprotocol": PROTOCOL if PROTOCOL in offered else None})
            drop = scope["extensions"][DROP]
            try:
                await self._serve(scope["query_string"], _token(headers, offered), path, receive, send, drop)
            except _Refused as refused:
                await send({"type": "websocket.close", "code": refused.code, "reason": refused.reason})
        except (ClientGone, OSError):
            return
        except Exception as error:  # noqa: BLE001 - the outermost edge of a connection: the client gets no word of what it was
            log.error("internal error: request=%s %s", id, where(error), extra={"request_id": id})

    async def _serve(
        self, query: bytes, token: bytes | None, path: str, receive: Receive, send: Send, drop: Drop
    ) -> None:
        """Let a client in and serve it to its end. Raises _Refused, ClientGone, OSError."""
        caller = await self._known(token)
        if self._open[caller.key_hash] >= MAX_OF_KEY:
            raise _Refused(TOO_MANY, "too_many_connections")
        self._open[caller.key_hash] += 1
        try:
            connection = Connection(self._teams, caller, send, drop, self._stall)
            watch = asyncio.create_task(self._watch(connection, token, drop), name="socket")
            try:
                if (wanted := _subscription(path, query)) is not None:
                    await connection.subscribe(wanted)
                while (message := await receive())["type"] == "websocket.receive":
                    await connection.take(message.get("text"))
            except NotFound as error:
                raise _Refused(NO_TASK, error.code) from None
            except HortatorError as error:
                raise _Refused(LATER if isinstance(error, Unavailable) else BAD, error.code) from None
            finally:
                watch.cancel()
                await asyncio.gather(watch, connection.close(), return_exceptions=True)
        finally:
            self._open[caller.key_hash] -= 1
            if not self._open[caller.key_hash]:
                del self._open[caller.key_hash]

    async def _known(self, token: bytes | None) -> Caller:
        if token is None:
            raise _Refused(NO_KEY, "missing_api_key")
        try:
            return await self._admit(token)
        except Unauthenticated as error:
            raise _Refused(NO_KEY, error.code) from None
        except Unavailable as error:
            raise _Refused(LATER, error.code) from None

    async def _watch(self, connection: Connection, token: bytes | None, drop: Drop) -> None:
        """Look at the key again, so that one that is revoked ends its connections. A store that is down ends none."""
        while True:
            await asyncio.sleep(self._recheck)
            try:
                connection.caller = await self._known(token)
            except _Refused as refused:
                if refused.code == NO_KEY:
                    drop(refused.code, refused.reason)
                    return


class Connection:
    """One client."""

    def __init__(self, teams: Teams, caller: Caller, send: Send, drop: Drop, stall: float) -> None:
        self.caller = caller
        self._teams = teams
        self._send = send
        self._drop = drop
        self._stall = stall
        self._writing = asyncio.Lock()
        self._views: dict[str, asyncio.Task[None]] = {}
        """Subscriptions by the root of their tree."""

    async def close(self) -> None:
        """End all subscriptions."""
        views = list(self._views.values())
        for view in views:
            view.cancel()
        await asyncio.gather(*views, return_exceptions=True)

    async def subscribe(self, asked: Subscribe) -> None:
        """Show the one tree that the connection is for, and end with it. Raises NotFound, Unavailable."""
        task = await self._teams.find(self.caller, asked.task_id)
        self._show(task.root_id, asked, last=True)

    async def take(self, text: str | None) -> None:
        """Do what a frame asks and answer it. Raises ClientGone, OSError."""
        ref = None if text is None else _ref(text)
        try:
            if text is None:
                raise InvalidRequest("Send text frames.", code="invalid_type")
            _, action = parse_as(text.encode(), _frame)
            answer = await self._do(action)
        except HortatorError as error:
            await self._tell(ref, error)
            return
        except Exception as error:  # noqa: BLE001 - the outermost edge of a frame: the client gets no word of what it was
            log.error("internal error: %s", where(error))
            await self._tell(ref, HortatorError("The gateway failed to handle this frame."))
            return
        await self._write(_ENCODER.encode({"type": "pong" if answer is None else "ack", "ref": ref, **(answer or {})}))
        if answer is not None and isinstance(action, Subscribe):
            self._show(answer["root_id"], action)

    async def _do(self, action: Actions) -> dict[str, Any] | None:
        """Do what is asked; return the answer, None = a pong. Raises HortatorError."""
        match action:
            case Submit():
                asked = wire.order(bytes(action.order))
                order = orders.taken(asked, "socket", action.idempotency_key)
                return _said("submit", await self._teams.submit(self.caller, order))
            case Cancel():
                return _said("cancel", await self._teams.cancel(self.caller, action.task_id))
            case Message():
                text = wire.message(_ENCODER.encode({"content": action.content}))
                event = await self._teams.say(self.caller, action.task_id, text)
                return {"action": "message", "task_id": action.task_id, "seq": event.seq}
            case Subscribe():
                task = await self._teams.find(self.caller, action.task_id)
                await self._hide(task.root_id)
                if len(self._views) >= MAX_SUBSCRIPTIONS:
                    most = f"A connection may have {MAX_SUBSCRIPTIONS} subscriptions."
                    raise RateLimited(most, code="too_many_subscriptions")
                return {"action": "subscribe", "task_id": task.id, "root_id": task.root_id}
            case Unsubscribe():
                task = await self._teams.find(self.caller, action.task_id)
                await self._hide(task.root_id)
                return {"action": "unsubscribe", "task_id": task.id, "root_id": task.root_id}
            case Ping():
                return None

    def _show(self, root_id: str, asked: Subscribe, *, last: bool = False) -> None:
        self._views[root_id] = asyncio.create_task(self._view(root_id, asked, last=last), name="view")

    async def _hide(self, root_id: str) -> None:
        if (view := self._views.pop(root_id, None)) is not None:
            view.cancel()
            await asyncio.gather(view, return_exceptions=True)

    async def _view(self, root_id: str, asked: Subscribe, *, last: bool) -> None:
        """Write a log as it grows. `last`: with the end of the tree the connection ends."""
        try:
            await self._follow(root_id, asked)
            if last:
                self._drop(DONE, "the task has ended")
        except (ClientGone, OSError):
            return
        except HortatorError as error:
            await self._last_word(asked.ref, error)
        except Exception as error:  # noqa: BLE001 - the outermost edge of a view
            log.error("internal error: %s", where(error))
            await self._last_word(asked.ref, HortatorError("The gateway failed to show this task."))
        finally:
            if self._views.get(root_id) is asyncio.current_task():
                del self._views[root_id]

    async def _follow(self, root_id: str, asked: Subscribe) -> None:
        events = self._teams.follow(self.caller, root_id, asked.after, deltas=asked.deltas)
        try:
            async for each in events:
                if isinstance(each, Delta):
                    await self._write(_delta(each))
                elif shown(each, asked.level):
                    await self._write(b'{"type":"event","event":%b}' % encode(each))
        finally:
            if isinstance(events, AsyncGenerator):
                await events.aclose()

    async def _last_word(self, ref: Ref, error: HortatorError) -> None:
        """Tell of an error where nobody is left to hear of a failure to do so."""
        try:
            await self._tell(ref, error)
        except (ClientGone, OSError):
            return

    async def _tell(self, ref: Ref, error: HortatorError) -> None:
        await self._write(_ENCODER.encode({"type": "error", "ref": ref, "error": problem.content(error)}))

    async def _write(self, frame: bytes) -> None:
        """Write a frame once the client has taken those before it. Raises ClientGone, OSError."""
        async with self._writing:
            try:
                async with asyncio.timeout(self._stall):
                    await self._send({"type": "websocket.send", "text": frame.decode()})
            except TimeoutError:
                self._drop(UNREAD, "the client does not read")
                raise ClientGone("The client does not read.") from None


def _token(headers: dict[bytes, bytes], offered: Sequence[str]) -> bytes | None:
    """Return the caller's token: the header's, else the one that a subprotocol holds."""
    if b"authorization" in headers:
        try:
            return bearer(headers)
        except Unauthenticated:
            return None
    found = (name[len(KEY_PROTOCOL) :] for name in offered if name.startswith(KEY_PROTOCOL))
    return next((key.encode("latin-1") for key in found if key), None)


def _subscription(path: str, query: bytes) -> Subscribe | None:
    """Return what an address subscribes to, None = nothing. Raises InvalidRequest."""
    asked = read_query(query)
    if path == PATH:
        only(asked)
        return None
    only(asked, "after", "level", "deltas")
    level, deltas = asked.get("level", "full"), asked.get("deltas", "false")
    if level not in get_args(Level) or deltas not in ("true", "false"):
        raise InvalidRequest("'level' must be default, verbose or full; 'deltas' true or false.", code="invalid_value")
    after = number(asked, "after", 0, 0, 999_999_999)
    return Subscribe(task_id=path[len(TASKS) :], after=after, level=cast(Level, level), deltas=deltas == "true")


def _ref(text: str) -> Ref:
    """Return a frame's `ref` as far as it can be read."""
    try:
        return _reference.decode(_fields.decode(text).get("ref", Raw(b"null")))
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None


def _said(action: str, task: Task) -> dict[str, Any]:
    return {"action": action, "task_id": task.id, "root_id": task.root_id, "task": task_view.shown(task)}


def _delta(delta: Delta) -> bytes:
    said = {"type": "delta", "task_id": delta.task_id, "run": delta.run, "offset": delta.offset, "text": delta.text}
    return _ENCODER.encode(said)


async def nowhere(_: Scope, receive: Receive, send: Send, path: str) -> None:
    """The door where there are no teams to talk to."""
    await receive()
    with contextlib.suppress(OSError):
        await _refuse(send, path)


async def _refuse(send: Send, path: str) -> None:
    """Refuse the handshake: there is nothing at this path."""
    error = NotFound(f"Unknown request URL: GET {path[:200]}.")
    await send({"type": "websocket.http.response.start", "status": error.status, "headers": [problem.JSON]})
    await send({"type": "websocket.http.response.body", "body": problem.body(error)})
