"""A server that answers as each test says, on real sockets: what it is asked is kept, and it may break off anywhere.

Tests of the SDK's transport use it where a gateway cannot be made to misbehave. A route is a function from the request to pieces of
bytes that are written as they come; `HANG_UP` among them resets the connection.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

HANG_UP = b"\0hang up\0"
CLOSE = b"\0close\0"


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query))

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Route = Callable[[Asked], Iterable[bytes]]


def reply(body: Any, status: int = 200, **headers: str) -> list[bytes]:
    """A whole reply; what is no bytes is JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Whatever", f"content-length: {len(content)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ["\r\n".join([*lines, "", ""]).encode() + content]


def refused(status: int, code: str, message: str = "no", **headers: str) -> list[bytes]:
    """An error in OpenAI's envelope."""
    return reply({"error": {"message": message, "type": "x", "param": None, "code": code}}, status, **headers)


def stream(*pieces: bytes, end: bool = True) -> Iterator[bytes]:
    """A chunked reply, piece by piece. `end=False`: it breaks off by closing."""
    yield b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    for piece in pieces:
        yield piece if piece in (HANG_UP, CLOSE) else b"%x\r\n%s\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n" if end else CLOSE


class Fake:
    """One running server."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listening.getsockname()[1]
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self.port}"
        self.asked: list[Asked] = []
        self.connections = 0
        self.hung_up = threading.Event()
        """A client closed its connection while a reply was being written."""
        self.closed = threading.Semaphore(0)
        """Released for each connection that was closed from here."""
        self._context = context
        self._replies: dict[str, list[Route]] = {}
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self._spawn(self._accept)

    def on(self, path: str, *routes: Route | list[bytes]) -> None:
        """Answer requests at a path, one after the other; the last answer stays."""
        self._replies[path] = [_route(each) for each in routes]

    def _spawn(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            self._spawn(self._serve, connection, self.connections)

    def _serve(self, connection: socket.socket, number: int) -> None:
        with suppress(OSError), connection:
            self._converse(connection, number)
        self.closed.release()

    def _converse(self, connection: socket.socket, number: int) -> None:
        with connection:
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rb") as reading:
                while (asked := _read(reading, number)) is not None:
                    self.asked.append(asked)
                    routes = self._replies.get(asked.path, [lambda _: refused(404, "unknown_url")])
                    route = routes.pop(0) if len(routes) > 1 else routes[0]
                    if not self._write(connection, route(asked)):
                        return

    def _write(self, connection: socket.socket, pieces: Iterable[bytes]) -> bool:
        try:
            for piece in pieces:
                if piece == HANG_UP:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                if piece in (HANG_UP, CLOSE):
                    return False
                connection.sendall(piece)
        except OSError:
            self.hung_up.set()
            return False
        return True

    def close(self) -> None:
        self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for thread in self._threads:
            thread.join(10)


def _route(given: Route | list[bytes]) -> Route:
    return (lambda _: given) if isinstance(given, list) else given


def _read(reading: Any, number: int) -> Asked | None:
    first = reading.readline().decode().split()
    if not first:
        return None
    headers = {}
    while line := reading.readline().decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = reading.read(int(headers.get("content-length", 0)))
    return Asked(first[0], first[1], headers, body, number)


@contextmanager
def running_fake(context: ssl.SSLContext | None = None) -> Iterator[Fake]:
    """Run a server for a while."""
    fake = Fake(context)
    try:
        yield fake
    finally:
        fake.close()
