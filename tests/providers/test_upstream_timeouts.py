"""Each way to be too slow has an error of its own."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import pytest

from hortator.errors import ConnectTimeout, FirstByteTimeout, IdleTimeout, TotalTimeout
from hortator.providers.upstream import PoolLimits, Timeouts, Upstream
from tests.providers.raw_server import RawServer, ask, serve

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n"
PATIENT = Timeouts(connect=None, first_byte=None, idle=None)


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    client = Upstream()
    yield client
    await client.close()


@pytest.fixture
async def server() -> AsyncIterator[RawServer]:
    async with serve() as listening:
        yield listening


async def test_a_handshake_that_never_comes_is_a_connect_timeout(upstream: Upstream, server: RawServer) -> None:
    """TLS is part of connecting, and giving up closes the socket."""
    task = ask(upstream, f"https://127.0.0.1:{server.port}/v1", timeouts=Timeouts(connect=0.1))
    peer = await server.accept()
    with pytest.raises(ConnectTimeout, match=f"127.0.0.1:{server.port}"):
        await task
    assert await peer.hung_up()
    assert upstream.open_connections == 0


async def test_a_port_that_does_not_answer_is_a_connect_timeout(upstream: Upstream) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        try:
            with pytest.raises(ConnectTimeout):
                await ask(upstream, f"http://127.0.0.1:{port}", timeouts=Timeouts(connect=0.1))
            with pytest.raises(TotalTimeout):
                await ask(upstream, f"http://127.0.0.1:{port}", timeouts=PATIENT, within=0.1)
        finally:
            for filler in fillers:
                filler.close()
    assert upstream.open_connections == 0


async def test_no_reply_is_a_first_byte_timeout(upstream: Upstream, server: RawServer) -> None:
    with pytest.raises(FirstByteTimeout, match=r"within 0.05 s"):
        await ask(upstream, server.url(), timeouts=Timeouts(first_byte=0.05))
    assert await (await server.accept()).hung_up()


async def test_silence_in_the_body_is_an_idle_timeout_after_what_had_come(
    upstream: Upstream, server: RawServer
) -> None:
    task = ask(upstream, server.url(), timeouts=Timeouts(idle=0.1))
    peer = await server.accept()
    await peer.request()
    peer.send(HEAD + b"some")
    reply = await task
    assert await peer.hung_up()
    assert await reply.next() == b"some"
    with pytest.raises(IdleTimeout, match=r"for 0.1 s"):
        await reply.next()
    with pytest.raises(IdleTimeout):
        await reply.read()
    assert upstream.open_connections == 0


async def test_the_deadline_covers_the_head(upstream: Upstream, server: RawServer) -> None:
    with pytest.raises(TotalTimeout):
        await ask(upstream, server.url(), timeouts=PATIENT, within=0.05)


async def test_the_deadline_covers_the_body(upstream: Upstream, server: RawServer) -> None:
    task = ask(upstream, server.url(), timeouts=PATIENT, within=0.2)
    peer = await server.accept()
    await peer.request()
    peer.send(HEAD)
    reply = await task
    with pytest.raises(TotalTimeout):
        await reply.read()
    assert await peer.hung_up()


async def test_a_deadline_in_the_past_sends_nothing(upstream: Upstream, server: RawServer) -> None:
    with pytest.raises(TotalTimeout):
        await ask(upstream, server.url(), within=0.0)
    assert server.count == 0


async def test_the_deadline_covers_waiting_for_a_connection(server: RawServer) -> None:
    upstream = Upstream(limits=PoolLimits(per_host=1))
    first = ask(upstream, server.url())
    await server.accept()
    with pytest.raises(TotalTimeout, match="became free"):
        await ask(upstream, server.url(), within=0.05)
    assert upstream.waiting_requests == 0
    first.cancel()
    await upstream.close()
