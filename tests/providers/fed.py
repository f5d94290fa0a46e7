"""A connection without a socket: the test feeds it the upstream's bytes and sees what becomes of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from hortator.errors import UpstreamError
from hortator.providers.connection import Connection, Timeouts, UpstreamResponse


class Wire(asyncio.Transport):
    """A transport that goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.aborted = False
        self.reading = True

    def write(self, data: bytes | bytearray | memoryview[int]) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def abort(self) -> None:
        self.aborted = True


class Shelf:
    """A pool that only notes what it is told."""

    def __init__(self) -> None:
        self.released = 0
        self.forgotten = 0

    def release(self, connection: Connection, now: float) -> None:
        connection.good_until = now + 60
        self.released += 1

    def forget(self, connection: Connection) -> None:
        self.forgotten += 1

    def gone(self, connection: Connection) -> None:
        pass


@dataclass(frozen=True)
class Result:
    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    reused: bool
    error: type[UpstreamError] | None


class Exchange:
    """One request on a connection of its own, its reply fed by the test."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timeouts: Timeouts | None = None) -> None:
        self.loop = loop
        self.timeouts = timeouts or Timeouts()
        self.wire = Wire()
        self.shelf = Shelf()
        self.connection = Connection(loop, self.shelf, "upstream.test:80")
        self.connection.connection_made(self.wire)
        self.reply = self.ask()

    def ask(self, within: float = 60.0) -> UpstreamResponse:
        return self.connection.start(b"POST / HTTP/1.1\r\n\r\n", True, self.timeouts, self.loop.time() + within)

    def feed(self, pieces: Sequence[bytes]) -> None:
        for piece in pieces:
            if piece and not self.wire.aborted:
                self.connection.data_received(piece)

    def result(self, eof: bool = False) -> Result:
        if eof and not self.wire.aborted:
            self.connection.eof_received()
        reply = self.reply
        body = b""
        error: type[UpstreamError] | None = None
        try:
            while (piece := self.loop.run_until_complete(reply.next())) is not None:
                body += piece
        except UpstreamError as raised:
            error = type(raised)
        return Result(reply.status, tuple(reply.headers), body, bool(self.shelf.released), error)

    def close(self) -> None:
        self.connection.connection_lost(None)
