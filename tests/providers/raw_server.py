"""A server that a test plays by hand, byte for byte, to see what the upstream client makes of it.

`async with serve() as server` listens on loopback; `await server.accept()` is the next connection. Every wait has a limit, so
that a test which is wrong fails instead of hanging.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from hortator.providers.upstream import Origin, Timeouts, Upstream, UpstreamResponse, request_head

PATIENCE = 10.0
"""Seconds after which a test gives up."""


@dataclass
class Peer:
    """The server's end of one connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def request(self) -> tuple[bytes, bytes]:
        """Return the next request: its head (without the empty line) and its body."""
        async with asyncio.timeout(PATIENCE):
            head = (await self.reader.readuntil(b"\r\n\r\n"))[:-4]
            lengths = [
                line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
            ]
            return head, await self.reader.readexactly(int(lengths[0]))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self, body: bytes = b"ok", headers: bytes = b"") -> bytes:
        """Read one request and answer it properly. Returns the request's head."""
        head, _ = await self.request()
        self.send(b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n\r\n%b" % (headers, len(body), body))
        return head

    async def hung_up(self) -> bool:
        """Wait until the client has closed the connection."""
        async with asyncio.timeout(PATIENCE):
            try:
                while await self.reader.read(65536):
                    pass
            except ConnectionError:
                pass
            return True

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        self.writer.transport.abort()


@dataclass
class RawServer:
    port: int
    scheme: str
    peers: asyncio.Queue[Peer] = field(default_factory=asyncio.Queue)
    count: int = 0

    def url(self, host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}/v1"

    async def accept(self) -> Peer:
        async with asyncio.timeout(PATIENCE):
            return await self.peers.get()


@asynccontextmanager
async def serve(host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[RawServer]:
    writers: list[asyncio.StreamWriter] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        server.count += 1
        server.peers.put_nowait(Peer(reader, writer))

    listener = await asyncio.start_server(connected, host, 0, ssl=tls, limit=1024 * 1024)
    server = RawServer(listener.sockets[0].getsockname()[1], "http" if tls is None else "https")
    try:
        yield server
    finally:
        listener.close()
        for writer in writers:
            writer.transport.abort()
        await listener.wait_closed()


def ask(
    upstream: Upstream,
    url: str,
    body: bytes = b"{}",
    timeouts: Timeouts | None = None,
    within: float = PATIENCE,
) -> asyncio.Task[UpstreamResponse]:
    """Start a POST whose deadline is `within` seconds away."""
    origin = Origin.of(url)
    head = request_head(origin, "POST", "/v1/chat/completions", [(b"content-type", b"application/json")])
    deadline = asyncio.get_running_loop().time() + within

    async def request() -> UpstreamResponse:
        reply = await upstream.request(origin, head, body, timeouts or Timeouts(), deadline)
        assert isinstance(reply, UpstreamResponse)
        return reply

    return asyncio.create_task(request())
