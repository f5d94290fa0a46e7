"""Requests over asyncio's streams: what `connection.py` is for threads. One transport belongs to one event loop.

Cancelling a task that waits here closes its connection, which the server takes as hanging up.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from types import TracebackType

from hortator.client.connection import CONNECT_SECONDS, KEPT_SECONDS, MAX_KEPT, PIECE, broken, readable
from hortator.client.errors import HortatorConnectionError, HortatorError, refusal
from hortator.client.exchange import MAX_WHOLE_BYTES, Exchange, encode
from hortator.client.request import Address, Request, Tries


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.timeout = 0.0
        """Seconds without a byte."""

    @property
    def usable(self) -> bool:
        """Whether an idle connection still lives."""
        opened = self._writer.get_extra_info("socket")
        dead = self._reader.at_eof() or self._writer.is_closing() or self._reader.exception() is not None
        return not dead and opened is not None and not readable(opened.fileno())

    async def send(self, data: bytes) -> None:
        """Write. Raises OSError."""
        self._writer.write(data)
        async with asyncio.timeout(self.timeout):
            await self._writer.drain()

    async def receive(self, exchange: Exchange) -> None:
        """Wait for bytes. Raises HortatorConnectionError."""
        try:
            async with asyncio.timeout(self.timeout):
                data = await self._reader.read(PIECE)
        except OSError as error:
            raise broken(error, None) from None
        if data:
            exchange.feed(data)
        else:
            exchange.end()

    async def head(self, exchange: Exchange) -> None:
        """Wait for the reply's head. Raises HortatorConnectionError."""
        while not exchange.status:
            await self.receive(exchange)

    def close(self) -> None:
        """Close, at once and without waiting for the other side."""
        self._writer.transport.abort()


class AsyncReply:
    """A reply whose head is there. Its connection is free again when it was read to its end, and closed otherwise."""

    def __init__(self, transport: AsyncTransport, wire: Wire, exchange: Exchange) -> None:
        self._transport = transport
        self._wire: Wire | None = wire
        self._exchange = exchange
        self.status = exchange.status
        self.headers = exchange.headers

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Give the body as it comes. Raises HortatorConnectionError."""
        try:
            while True:
                if piece := self._exchange.take():
                    yield piece
                if self._exchange.complete or self._wire is None:
                    break
                await self._wire.receive(self._exchange)
            if self._exchange.reusable and self._wire is not None:
                self._transport.keep(self._wire)
                self._wire = None
        finally:
            self.close()

    async def read(self) -> bytes:
        """Return the whole body. Raises HortatorConnectionError."""
        pieces, size = [], 0
        async for piece in self:
            pieces.append(piece)
            size += len(piece)
            if size > MAX_WHOLE_BYTES:
                self.close()
                raise HortatorConnectionError("the reply is too large")
        return b"".join(pieces)

    def close(self) -> None:
        """Hang up, unless the reply has been read to its end."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    async def __aenter__(self) -> AsyncReply:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()


class AsyncTransport:
    """The connections of one client to one server."""

    def __init__(
        self, address: Address, api_key: str, *, timeout: float, max_retries: int, context: ssl.SSLContext | None
    ) -> None:
        self.address = address
        self._api_key = api_key
        self._timeout = timeout
        self.max_retries = max_retries
        self._context = (context or ssl.create_default_context()) if address.tls else None
        self._kept: list[tuple[float, Wire]] = []
        self._closed = False

    async def fetch(self, request: Request) -> bytes:
        """Send a request and return its reply's body. Raises HortatorError."""
        tries = Tries(request, self.max_retries)
        while True:
            try:
                async with await self.once(request) as reply:
                    return await reply.read()
            except HortatorError as error:
                await asyncio.sleep(tries.pause(error))

    async def open(self, request: Request) -> AsyncReply:
        """Send a request and return its reply to be read in pieces. Raises HortatorError."""
        tries = Tries(request, self.max_retries)
        while True:
            try:
                return await self.once(request)
            except HortatorError as error:
                await asyncio.sleep(tries.pause(error))

    async def once(self, request: Request) -> AsyncReply:
        """Send a request a single time. Raises HortatorError, also for a reply that is no success."""
        head = encode(request, self.address, self._api_key)
        wire = await self._connection(self._timeout if request.timeout is None else request.timeout)
        exchange = Exchange()
        try:
            try:
                await wire.send(head + request.body)
            except OSError as error:
                # It may have answered before it had read all of a body that it does not want.
                with contextlib.suppress(HortatorConnectionError):
                    await wire.head(exchange)
                if not exchange.status:
                    raise broken(error, self.address) from None
            await wire.head(exchange)
        except BaseException:
            wire.close()
            raise
        reply = AsyncReply(self, wire, exchange)
        if not 200 <= reply.status < 300:
            async with reply:
                raise refusal(reply.status, reply.headers, await reply.read())
        return reply

    def keep(self, wire: Wire) -> None:
        """Take back a connection that can carry another request."""
        if self._closed or len(self._kept) >= MAX_KEPT:
            wire.close()
        else:
            self._kept.append((time.monotonic(), wire))

    async def close(self) -> None:
        """Close what is kept; requests under way end by themselves, new ones are refused."""
        self._closed = True
        kept, self._kept = self._kept, []
        for _, wire in kept:
            wire.close()
        await asyncio.sleep(0)  # asyncio closes sockets at its next turn

    async def _connection(self, timeout: float) -> Wire:
        """Return a connection: the one that was used last and still lives, else a new one. Raises HortatorConnectionError."""
        if self._closed:
            raise HortatorError("The client is closed.", code="client_closed")
        while self._kept:
            since, wire = self._kept.pop()
            if time.monotonic() - since < KEPT_SECONDS and wire.usable:
                wire.timeout = timeout
                return wire
            wire.close()
        try:
            async with asyncio.timeout(min(timeout, CONNECT_SECONDS)):
                reader, writer = await asyncio.open_connection(
                    self.address.host,
                    self.address.port,
                    ssl=self._context,
                    server_hostname=self.address.host if self._context else None,
                )
        except ssl.SSLCertVerificationError as error:
            raise HortatorConnectionError(f"{self.address}: {error.verify_message}") from None
        except OSError as error:
            failed = broken(error, self.address)
            failed.again = True
            raise failed from None
        if (opened := writer.get_extra_info("socket")) is not None:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire = Wire(reader, writer)
        wire.timeout = timeout
        return wire
