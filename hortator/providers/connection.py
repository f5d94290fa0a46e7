"""One HTTP/1.1 connection to an upstream, and the reply that comes over it.

Below `providers/pool.py`, which opens, keeps and hands out connections; `providers/upstream.py` sends a request over one and
gives the `UpstreamResponse` to an adapter. Bytes come in through asyncio's protocol callbacks and are cut up by httptools.
Each connection has one timer, re-armed lazily: when it fires, it looks at the timestamps. No task is made, nothing is
retried here, and a connection whose reply did not end cleanly is never used again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from hortator.errors import ConnectionLost, FirstByteTimeout, IdleTimeout, InvalidReply, TotalTimeout, UpstreamError

HIGH_WATER = 256 * 1024
"""Unread body bytes beyond which the socket is no longer read."""
MAX_HEAD = 64 * 1024
"""Bytes of a reply's head; also of chunk extensions and trailers between two pieces of body."""
MAX_HEADERS = 256
MAX_BODY = 64 * 1024 * 1024
"""What `read` accepts when it is not told otherwise, bytes."""
MAX_ERROR_BODY = 1024 * 1024
"""What it takes of a reply that is not 2xx; the rest is cut off, as its status says enough."""
SLICE = 256 * 1024
"""A request up to this size is one write; a longer body follows in slices of this size as the socket takes them."""

FOREVER = float("inf")
_TICK = 0.001
"""Resolution of uvloop's clock, seconds."""
_WATCHED = frozenset((b"content-encoding", b"transfer-encoding"))


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long an upstream may take, seconds; None = no limit of its own (the request's deadline always holds)."""

    connect: float | None = 5.0
    """Name lookup, TCP and TLS together."""
    first_byte: float | None = 60.0
    """From the request's last byte (or, while it is being sent, the last one the socket took) to the reply's head."""
    idle: float | None = 60.0
    """Between two pieces of the body, while we are willing to read."""


class Keeper(Protocol):
    """What a connection needs of its pool."""

    def release(self, connection: Connection, now: float) -> None:
        """Take back a connection that is fit for another request."""

    def forget(self, connection: Connection) -> None:
        """Free the slot of a connection that is of no more use."""

    def gone(self, connection: Connection) -> None:
        """Note that a connection's socket is closed."""


class UpstreamResponse:
    """An upstream's answer; satisfies `hortator.providers.base.Reply`. Made by `Connection.start`.

    Its connection returns to the pool when the reply's last byte arrives, read or not; `close` before that drops it.
    """

    __slots__ = (
        "_capacity",
        "_connection",
        "_ended",
        "_error",
        "_loop",
        "_pieces",
        "_poked",
        "_sink",
        "_size",
        "_waiter",
        "_whole",
        "headers",
        "status",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: Connection) -> None:
        self.status = 0
        """0 until the head is there."""
        self.headers: list[tuple[bytes, bytes]] = []
        self._loop = loop
        self._connection: Connection | None = connection
        self._pieces: list[bytes] = []
        self._size = 0
        self._capacity = HIGH_WATER
        self._ended = False
        self._whole = False
        self._poked = False
        self._error: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Callable[[bytes], bool] | None = None

    async def read(self, limit: int | None = None) -> bytes:
        """Return the whole body. Raises UpstreamError: InvalidReply when it is longer than `limit` (`MAX_BODY`) bytes.

        Without a limit an error's body is cut after `MAX_ERROR_BODY` bytes instead.
        """
        cut = limit is None and not 200 <= self.status < 300
        if limit is None:
            limit = MAX_ERROR_BODY if cut else MAX_BODY
        self._whole = True
        self._capacity = limit
        if self._connection is not None and self._size <= limit:
            self._connection.resume_reading()
        while not self._ended and self._error is None and self._size <= limit:
            await self._wait()
        if cut and self._size > limit:
            body = b"".join(self._pieces)[:limit]
            self.close()
            return body
        if self._error is not None:
            raise self._error
        if self._size > limit:
            self.close()
            raise _too_long(limit)
        pieces, self._pieces, self._size = self._pieces, [], 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def next(self) -> bytes | None:
        """Return the body bytes that have arrived, waiting for the first; `b""` when poked, None at the end.

        Raises UpstreamError once everything that arrived before the failure has been returned.
        """
        while True:
            if self._poked:
                self._poked = False
                return b""
            pieces = self._pieces
            if pieces:
                self._pieces = []
                self._size = 0
                if self._connection is not None:
                    self._connection.resume_reading()
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            await self._wait()

    async def flow(self, sink: Callable[[bytes], bool]) -> None:
        """Give pieces to `sink` as they arrive, without waking a task, for as long as it returns True.

        Returns when `sink` returned False, or when there is something that only `next` can tell: an end, a failure, a poke.
        """
        if self._pieces or self._ended or self._poked or self._error is not None:
            return
        self._sink = sink
        try:
            await self._wait()
        finally:
            self._sink = None

    def poke(self) -> None:
        """Make a waiting (or else the next) `next` return `b""` now."""
        self._poked = True
        self._wake()

    def close(self) -> None:
        """Drop the connection unless the reply has ended. Never fails; may be called twice."""
        connection = self._connection
        if connection is not None:
            connection.fail(ConnectionLost("the reply was closed before its end"))
        self._pieces.clear()
        self._size = 0

    async def _wait(self) -> None:
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._waiter = None

    def _arrived(self) -> None:
        """Pieces have come: they go to the sink, or wake who waits."""
        if self._sink is not None:
            pieces = self._pieces
            self._pieces = []
            self._size = 0
            if self._sink(pieces[0] if len(pieces) == 1 else b"".join(pieces)):
                return
            self._sink = None
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _end(self, error: UpstreamError | None) -> None:
        self._connection = None
        if error is None:
            self._ended = True
        else:
            self._error = error
        self._wake()


class Connection(asyncio.Protocol):
    """One socket: at most one request on it at a time. States: idle (`reply` is None), waiting for a head, in a body, dead."""

    __slots__ = (
        "_barren",
        "_clogged",
        "_complete",
        "_deadline",
        "_first_byte",
        "_idle",
        "_interim",
        "_keep",
        "_loop",
        "_parser",
        "_paused",
        "_reply",
        "_sent",
        "_since",
        "_timer",
        "_timer_at",
        "_transport",
        "born",
        "dead",
        "good_until",
        "heard",
        "holds_slot",
        "keeper",
        "name",
        "served",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, keeper: Keeper, name: str) -> None:
        self.keeper = keeper
        self.name = name
        """`host:port`, for messages."""
        self.born = loop.time()
        self.dead = False
        self.good_until = FOREVER
        """`loop.time()` until which an idle connection may be used again. Set by the pool."""
        self.holds_slot = False
        """It counts against the pool's limit. Set by the pool."""
        self.served = 0
        """Requests answered over it."""
        self.heard = False
        """A byte of the current reply has arrived."""
        self._loop = loop
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        self._reply: UpstreamResponse | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = FOREVER
        self._clogged = False
        self._paused = False

    # ---- the sending side

    def start(self, data: bytes, whole: bool, timeouts: Timeouts, deadline: float) -> UpstreamResponse:
        """Write `data` and expect a reply. `whole` = this is all of the request; otherwise `pump` the rest."""
        now = self._loop.time()
        reply = self._reply = UpstreamResponse(self._loop, self)
        self.heard = False
        self._barren = 0
        self._complete = False
        self._interim = False
        self._keep = False
        self._sent = whole
        self._since = now
        self._deadline = deadline
        self._first_byte = FOREVER if timeouts.first_byte is None else timeouts.first_byte
        self._idle = FOREVER if timeouts.idle is None else timeouts.idle
        if self.dead:
            self.fail(self._lost())
            return reply
        self._transport.write(data)
        due = now + self._first_byte
        self._arm(min(deadline, due))
        return reply

    async def pump(self, reply: UpstreamResponse, body: bytes) -> None:
        """Write `body` as fast as the socket takes it; stop early when the reply's head or an error comes first."""
        view = memoryview(body)
        for offset in range(0, len(view), SLICE):
            while self._clogged and not reply.status and reply._error is None:
                await reply._wait()
            if reply.status or reply._error is not None:
                return
            self._since = self._loop.time()
            self._transport.write(view[offset : offset + SLICE])
        self._sent = True

    async def head(self, reply: UpstreamResponse) -> UpstreamError | None:
        """Wait for the reply's head; return what went wrong, if anything did."""
        while not reply.status and reply._error is None:
            await reply._wait()
        return None if reply.status else reply._error

    def abort(self) -> None:
        """Close the socket now and free the slot. May be called twice."""
        if not self.dead:
            self._retire()
            self._transport.abort()

    def fail(self, error: UpstreamError) -> None:
        """End the reply with `error` and close the socket."""
        reply, self._reply = self._reply, None
        self.abort()
        if reply is not None:
            reply._end(error)

    def resume_reading(self) -> None:
        """Read on after a pause; the upstream's silence counts from here."""
        if self._paused:
            self._paused = False
            if not self.dead:
                self._transport.resume_reading()
                self._since = self._loop.time()
                self._arm(min(self._since + self._idle, self._deadline))

    # ---- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        reply = self._reply
        if reply is None or self._parser is None:
            # Bytes nobody asked for, or a last read of a socket that is being closed.
            self.abort()
            return
        self.heard = True
        self._barren += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            if not self._complete:
                cause = error.__context__
                self.fail(cause if isinstance(cause, UpstreamError) else self._not_http(str(error)))
                return
            self._keep = False
        if self._complete:
            self._finish(reply)
        elif self._barren > MAX_HEAD:
            self.fail(InvalidReply(f"{self.name} sent more than {MAX_HEAD} bytes of headers, extensions or trailers"))
        elif reply.status:
            self._since = self._loop.time()
            if reply._size > reply._capacity:
                self._overflow(reply)
            if reply._pieces and not reply._whole:
                reply._arrived()

    def eof_received(self) -> None:
        reply = self._reply
        if reply is None:
            self.abort()
        elif reply.status and self._close_delimited(reply):
            self._keep = False
            self._finish(reply)
        else:
            self.fail(self._lost())

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.dead:
            self._retire()
        self.fail(self._lost())
        self._parser = None
        self.keeper.gone(self)

    def pause_writing(self) -> None:
        self._clogged = True

    def resume_writing(self) -> None:
        self._clogged = False
        reply = self._reply
        if reply is not None and not reply.status:
            self._since = self._loop.time()
            reply._wake()

    # ---- httptools' callbacks; an UpstreamError raised here ends the reply (see data_received)

    def on_message_begin(self) -> None:
        if self._complete:
            raise self._not_http("bytes after the reply's end")

    def on_header(self, name: bytes, value: bytes) -> None:
        reply = self._reply
        if reply is None or reply.status:
            return  # a trailer
        name = name.lower()
        if name in _WATCHED:
            coding = value.strip().lower()
            if coding != (b"identity" if name == b"content-encoding" else b"chunked"):
                shown = coding[:40].decode("latin-1")
                raise InvalidReply(f"{self.name} sent a reply with {name.decode()} {shown!r}, which was not asked for")
        reply.headers.append((name, value))

    def on_headers_complete(self) -> None:
        reply, parser = self._reply, self._parser
        if reply is None or parser is None:
            return
        status = parser.get_status_code()
        headers = reply.headers
        if len(headers) > MAX_HEADERS or (
            self._barren > MAX_HEAD and sum(len(name) + len(value) + 4 for name, value in headers) > MAX_HEAD
        ):
            raise InvalidReply(f"{self.name} sent more than {MAX_HEADERS} headers or {MAX_HEAD} bytes of them")
        if not 200 <= status <= 599:
            if not 100 <= status <= 199 or status == 101:
                raise self._not_http(f"status {status}")
            self._interim = True
            reply.headers = []
            return
        self._keep = parser.should_keep_alive()
        if not self._keep and parser.get_http_version() not in ("1.0", "1.1"):
            raise self._not_http("unknown version")
        self._barren = 0
        self._since = now = self._loop.time()
        reply.status = status
        reply._wake()
        due = now + self._idle
        if due < self._timer_at:
            self._arm(due)

    def on_body(self, body: bytes) -> None:
        reply = self._reply
        if reply is not None:
            reply._pieces.append(body)
            reply._size += len(body)
            self._barren = 0

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
        else:
            self._complete = True

    # ---- inside

    def _finish(self, reply: UpstreamResponse) -> None:
        """The reply is complete: give the connection back if both sides are in step, else close it."""
        self._reply = None
        reply._end(None)
        if self._keep and self._sent and not self.dead and self._transport.get_write_buffer_size() == 0:
            if self._paused:
                self._paused = False
                self._transport.resume_reading()
            self.served += 1
            self.keeper.release(self, self._loop.time())
            if not self.dead:
                self._arm(self.good_until)
        else:
            self.abort()

    def _retire(self) -> None:
        self.dead = True
        self._disarm()
        self.keeper.forget(self)

    def _overflow(self, reply: UpstreamResponse) -> None:
        if reply._whole:
            self.fail(_too_long(reply._capacity))
        elif not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _close_delimited(self, reply: UpstreamResponse) -> bool:
        return not any(name in (b"content-length", b"transfer-encoding") for name, _ in reply.headers)

    def _lost(self) -> ConnectionLost:
        when = "in the middle of its reply" if self.heard else "before it replied"
        return ConnectionLost(f"{self.name} closed the connection {when}")

    def _not_http(self, reason: str) -> InvalidReply:
        return InvalidReply(f"{self.name} sent something that is not a proper HTTP/1.1 reply: {reason}")

    # ---- the timer

    def _arm(self, due: float) -> None:
        """See to it that the timer fires at `due` or earlier."""
        if due < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(due, self._fire)
            self._timer_at = due

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = FOREVER

    def _fire(self) -> None:
        self._timer = None
        self._timer_at = FOREVER
        reply = self._reply
        soon = self._loop.time() + _TICK
        if reply is None:
            due = self.good_until
            if soon >= due:
                self.abort()
                return
        else:
            due = self._deadline
            if soon >= due:
                self.fail(TotalTimeout(f"{self.name} did not finish its reply within the time for the whole request"))
                return
            if not self._paused:
                limit = self._since + (self._idle if reply.status else self._first_byte)
                if soon >= limit:
                    self.fail(self._silent(reply))
                    return
                due = min(due, limit)
        self._arm(due)

    def _silent(self, reply: UpstreamResponse) -> UpstreamError:
        if reply.status:
            return IdleTimeout(f"{self.name} began its reply, then sent nothing for {self._idle:g} s")
        return FirstByteTimeout(f"{self.name} did not begin its reply within {self._first_byte:g} s")


def _too_long(limit: int) -> InvalidReply:
    return InvalidReply(f"the reply's body is longer than {limit} bytes")
