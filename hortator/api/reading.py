"""How doors take a request off the wire: its headers, its body within the limit, and the news that the client hung up.

Every raw ASGI door uses it; it knows no dialect.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

import uuid_utils

from hortator.call import RequestId
from hortator.errors import ClientGone, RequestTimeout, TooLarge, Unauthenticated, UnsupportedMediaType

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

REQUEST_ID = "hortator.request_id"
"""Where the scope has the id that `naming` gave a request."""
BODY_SECONDS = 60.0
"""A body must be complete this long after its head."""

_SANE_ID = re.compile(rb"[A-Za-z0-9._\-]{1,128}").fullmatch


def request_id(headers: dict[bytes, bytes]) -> RequestId:
    """Return the client's `x-request-id` where it is sane (128 letters, digits, `._-`), else a new one."""
    given = headers.get(b"x-request-id")
    if given is not None and _SANE_ID(given):
        return RequestId(given.decode())
    return RequestId(f"req_{uuid_utils.uuid7().hex}")


def naming(scope: Scope, send: Send) -> Send:
    """Return a `send` that puts the request's id on the reply, for apps that do not know it. The scope keeps it too."""
    named_id = scope[REQUEST_ID] = request_id(dict(scope["headers"]))
    id = named_id.encode()

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


class Line(Protocol):
    """A client's connection that knows more than ASGI tells: the body when it is all there, and that the client hung up."""

    def whole_body(self) -> bytes | None:
        """Return the whole body if it has arrived, None while it has not."""
        ...

    def watch(self, hung_up: Callable[[], None] | None) -> None:
        """Call `hung_up` once if the client hangs up during this request; None = nobody is interested any more."""
        ...


async def read_body(headers: dict[bytes, bytes], line: Line | None, receive: Receive, limit: int) -> bytes:
    """Return the body. Raises TooLarge (from Content-Length before a byte is read), ClientGone, RequestTimeout."""
    length = headers.get(b"content-length")
    if length is not None and int(length) > limit:
        raise _too_large(limit)
    body = None if line is None else line.whole_body()
    if body is not None:
        if len(body) > limit:
            raise _too_large(limit)
        return body
    message = await receive()
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


class HangUp:
    """Cancels the door's task when the client hangs up. `with HangUp(...):`, after the body was read."""

    __slots__ = ("_hung_up", "_line", "_receive", "_task", "_watcher")

    def __init__(self, hung_up: Callable[[], None], line: Line | None, receive: Receive) -> None:
        """`hung_up` is called before the task is cancelled, so that it can tell a hang-up from a shutdown.

        `line` is the short way to know; without it a task waits for ASGI's `http.disconnect`.
        """
        self._hung_up = hung_up
        self._line = line
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None
        self._task = asyncio.current_task()

    def __enter__(self) -> None:
        if self._line is not None:
            self._line.watch(self._gone)
        else:
            self._watcher = asyncio.create_task(self._watch())

    def __exit__(self, *_: object) -> None:
        if self._line is not None:
            self._line.watch(None)
        elif self._watcher is not None:
            self._watcher.cancel()

    def _gone(self) -> None:
        self._hung_up()
        if self._task is not None:
            self._task.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone()


def where(error: BaseException) -> str:
    """Return the kind of an unexpected error and where it was raised: enough to find it, nothing of what it held."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return type(error).__name__
    return f"{type(error).__name__} at {trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
