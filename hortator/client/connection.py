"""Requests over sockets: connections that are kept, timeouts, another try where a failure is harmless, and replies whole or in pieces.

`sync.py` has one `Transport` a client; it may be used from several threads at once, each request has a connection of its own.
`async_connection.py` is the same for asyncio.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from types import TracebackType

from hortator.client.errors import HortatorConnectionError, HortatorError, HortatorTimeout, refusal
from hortator.client.exchange import MAX_WHOLE_BYTES, Exchange, encode
from hortator.client.request import Address, Request, Tries

CONNECT_SECONDS = 10.0
MAX_KEPT = 8
"""Idle connections of a client."""
KEPT_SECONDS = 60.0
"""An idle connection is used again for so long; the server keeps them longer."""
PIECE = 64 * 1024


class Reply:
    """A reply whose head is there. Its connection is free again when it was read to its end, and closed otherwise."""

    def __init__(self, transport: Transport, connection: socket.socket, exchange: Exchange) -> None:
        self._transport = transport
        self._connection: socket.socket | None = connection
        self._exchange = exchange
        self.status = exchange.status
        self.headers = exchange.headers

    def __iter__(self) -> Iterator[bytes]:
        """Give the body as it comes. Raises HortatorConnectionError."""
        try:
            while True:
                if piece := self._exchange.take():
                    yield piece
                if self._exchange.complete or self._connection is None:
                    break
                _receive(self._connection, self._exchange)
            if self._exchange.reusable and self._connection is not None:
                self._transport.keep(self._connection)
                self._connection = None
        finally:
            self.close()

    def read(self) -> bytes:
        """Return the whole body. Raises HortatorConnectionError."""
        pieces, size = [], 0
        for piece in self:
            pieces.append(piece)
            size += len(piece)
            if size > MAX_WHOLE_BYTES:
                self.close()
                raise HortatorConnectionError("the reply is too large")
        return b"".join(pieces)

    def close(self) -> None:
        """Hang up, unless the reply has been read to its end."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Reply:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Transport:
    """The connections of one client to one server."""

    def __init__(
        self, address: Address, api_key: str, *, timeout: float, max_retries: int, context: ssl.SSLContext | None
    ) -> None:
        self.address = address
        self._api_key = api_key
        self._timeout = timeout
        self.max_retries = max_retries
        self._context = (context or ssl.create_default_context()) if address.tls else None
        self._kept: list[tuple[float, socket.socket]] = []
        self._lock = threading.Lock()
        self._closed = False

    def fetch(self, request: Request) -> bytes:
        """Send a request and return its reply's body. Raises HortatorError."""
        tries = Tries(request, self.max_retries)
        while True:
            try:
                with self.once(request) as reply:
                    return reply.read()
            except HortatorError as error:
                time.sleep(tries.pause(error))

    def open(self, request: Request) -> Reply:
        """Send a request and return its reply to be read in pieces. Raises HortatorError."""
        tries = Tries(request, self.max_retries)
        while True:
            try:
                return self.once(request)
            except HortatorError as error:
                time.sleep(tries.pause(error))

    def once(self, request: Request) -> Reply:
        """Send a request a single time. Raises HortatorError, also for a reply that is no success."""
        timeout = self._timeout if request.timeout is None else request.timeout
        head = encode(request, self.address, self._api_key)
        connection = self._connection(timeout)
        exchange = Exchange()
        try:
            try:
                connection.sendall(head + request.body)
            except OSError as error:
                # It may have answered before it had read all of a body that it does not want.
                with contextlib.suppress(HortatorConnectionError):
                    _head(connection, exchange)
                if not exchange.status:
                    raise broken(error, self.address) from None
            _head(connection, exchange)
        except BaseException:
            connection.close()
            raise
        reply = Reply(self, connection, exchange)
        if not 200 <= reply.status < 300:
            with reply:
                raise refusal(reply.status, reply.headers, reply.read())
        return reply

    def keep(self, connection: socket.socket) -> None:
        """Take back a connection that can carry another request."""
        with self._lock:
            if not self._closed and len(self._kept) < MAX_KEPT:
                self._kept.append((time.monotonic(), connection))
                return
        connection.close()

    def close(self) -> None:
        """Close what is kept; requests under way end by themselves, new ones are refused."""
        with self._lock:
            self._closed = True
            kept, self._kept = self._kept, []
        for _, connection in kept:
            connection.close()

    def _connection(self, timeout: float) -> socket.socket:
        """Return a connection: the one that was used last and still lives, else a new one. Raises HortatorConnectionError."""
        while True:
            with self._lock:
                if self._closed:
                    raise HortatorError("The client is closed.", code="client_closed")
                since, connection = self._kept.pop() if self._kept else (0.0, None)
            if connection is None:
                break
            if time.monotonic() - since < KEPT_SECONDS and not readable(connection.fileno()):
                connection.settimeout(timeout)
                return connection
            connection.close()
        try:
            connection = self._connect(min(timeout, CONNECT_SECONDS))
        except ssl.SSLCertVerificationError as error:
            raise HortatorConnectionError(f"{self.address}: {error.verify_message}") from None
        except OSError as error:
            failed = broken(error, self.address)
            failed.again = True
            raise failed from None
        connection.settimeout(timeout)
        return connection

    def _connect(self, timeout: float) -> socket.socket:
        connection = socket.create_connection((self.address.host, self.address.port), timeout)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                return self._context.wrap_socket(connection, server_hostname=self.address.host)
        except BaseException:
            connection.close()
            raise
        return connection


def _head(connection: socket.socket, exchange: Exchange) -> None:
    while not exchange.status:
        _receive(connection, exchange)


def _receive(connection: socket.socket, exchange: Exchange) -> None:
    """Wait for bytes. Raises HortatorConnectionError."""
    try:
        data = connection.recv(PIECE)
    except OSError as error:
        raise broken(error, None) from None
    if data:
        exchange.feed(data)
    else:
        exchange.end()


def readable(descriptor: int) -> bool:
    """Whether an idle connection has something to read: its end, as there was no question."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def broken(error: OSError, address: Address | None) -> HortatorConnectionError:
    """Return what a failure of the socket means; `address` while nothing has come from there."""
    if isinstance(error, TimeoutError):
        return HortatorTimeout(f"{address} did not answer in time" if address else "the server did not go on in time")
    why = error.strerror or type(error).__name__
    return HortatorConnectionError(f"cannot reach {address}: {why}" if address else f"the connection broke: {why}")
