"""How doors take a request off the wire: its headers, its body within the limit, and the news that the client hung up.

Every raw ASGI door uses it; it knows no dialect.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from time import monotonic
from typing import Any

import uuid_utils

from hortator.call import RequestId
from hortator.errors import ClientGone, RequestTimeout, TooLarge, Unauthenticated, UnsupportedMediaType

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

BODY_SECONDS = 60.0
"""A body must be complete this long after its head."""
HANG_UP_GRACE = 0.05
"""Seconds after which a whole answer that has not come yet is watched for a hang-up; most come sooner and cost no watcher."""

SWEEP_SLACK = 0.005
"""How much too early or too late a watcher may start, seconds."""

_SANE_ID = re.compile(rb"[A-Za-z0-9._\-]{1,128}").fullmatch


def request_id(headers: dict[bytes, bytes]) -> RequestId:
    """Return the client's `x-request-id` where it is sane (128 letters, digits, `._-`), else a new one."""
    given = headers.get(b"x-request-id")
    if given is not None and _SANE_ID(given):
        return RequestId(given.decode())
    return RequestId(f"req_{uuid_utils.uuid7().hex}")


def naming(scope: Scope, send: Send) -> Send:
    """Return a `send` that puts the request's id on the reply, for apps that do not know it."""
    id = request_id(dict(scope["headers"])).encode()

    async def named(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", id)]
        await send(message)

    return named


def bearer(headers: dict[bytes, bytes]) -> bytes:
    """Return the caller's token. Raises Unauthenticated when there is none."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    token = token.strip()
    if scheme.lower() != b"bearer" or not token:
        raise Unauthenticated("No API key was given: send `Authorization: Bearer hrt_sk_...`.", code="missing_api_key")
    return token


def expect_json(headers: dict[bytes, bytes]) -> None:
    """Raise UnsupportedMediaType unless the body is announced as JSON, uncompressed, in UTF-8."""
    media = headers.get(b"content-type", b"")
    if media != b"application/json" and not media.startswith(b"application/json;"):
        name = media.partition(b";")[0].strip().lower()
        if name != b"application/json" and not (name.startswith(b"application/") and name.endswith(b"+json")):
            raise UnsupportedMediaType("The body must be sent as `Content-Type: application/json`.")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise UnsupportedMediaType("Compressed bodies are not accepted.", code="unsupported_content_encoding")


async def read_body(headers: dict[bytes, bytes], receive: Receive, limit: int) -> bytes:
    """Return the body. Raises TooLarge (from Content-Length before a byte is read), ClientGone, RequestTimeout."""
    length = headers.get(b"content-length")
    if length is not None and int(length) > limit:
        raise _too_large(limit)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        return body
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _rest(message, receive, limit)
    except TimeoutError:
        raise RequestTimeout("The body did not arrive in time.") from None


async def _rest(message: MutableMapping[str, Any], receive: Receive, limit: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGone("The client hung up while it sent its request.")
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > limit:
            raise _too_large(limit)
        if not message.get("more_body"):
            return b"".join(pieces)
        message = await receive()


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is over the limit of {limit} bytes.")


class HangUps:
    """Starts the watchers of calls that take longer than `HANG_UP_GRACE`. One timer serves all calls of a door."""

    __slots__ = ("_loop", "_pending", "_timer")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pending: deque[HangUp] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, watch: HangUp) -> None:
        """Start the watcher after the grace, unless the call has ended by then."""
        self._pending.append(watch)
        if self._timer is None:
            self._timer = self._loop.call_later(HANG_UP_GRACE, self._sweep)

    def _sweep(self) -> None:
        now = monotonic()
        pending = self._pending
        while pending and pending[0].due <= now + SWEEP_SLACK:
            pending.popleft().start()
        delay = max(SWEEP_SLACK, pending[0].due - now) if pending else 0
        self._timer = self._loop.call_later(delay, self._sweep) if pending else None


class HangUp:
    """Watches for the client's hang-up; says so and cancels the door's task then. `with HangUp(...):`, after the body was read."""

    __slots__ = ("_hang_ups", "_hung_up", "_receive", "_task", "_watcher", "due")

    def __init__(self, receive: Receive, hung_up: Callable[[], None], began: float, hang_ups: HangUps | None) -> None:
        """`hung_up` is called before the task is cancelled, so that it can tell a hang-up from a shutdown.

        `began`: `time.monotonic()` of the call's start. `hang_ups`: who starts the watcher; None = at once.
        """
        self._receive: Receive | None = receive
        self._hung_up: Callable[[], None] | None = hung_up
        self._hang_ups = hang_ups
        self._watcher: asyncio.Task[None] | None = None
        self._task: asyncio.Task[Any] | None = None
        self.due = began + HANG_UP_GRACE

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        if self._hang_ups is None:
            self.start()
        else:
            self._hang_ups.add(self)

    def __exit__(self, *_: object) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        # The sweep forgets us a moment later; the request's memory must be free for the next one before that.
        self._task = self._receive = self._hung_up = None

    def start(self) -> None:
        """Begin to watch, if the call is still running."""
        if self._task is not None and self._receive is not None and self._hung_up is not None:
            self._watcher = self._task.get_loop().create_task(_watch(self._receive, self._hung_up, self._task))


async def _watch(receive: Receive, hung_up: Callable[[], None], task: asyncio.Task[Any]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    hung_up()
    task.cancel()


def where(error: BaseException) -> str:
    """Return the kind of an unexpected error and where it was raised: enough to find it, nothing of what it held."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return type(error).__name__
    return f"{type(error).__name__} at {trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
