"""Requests over real sockets: what goes out, what is sent twice, what a cancelled caller leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import tracemalloc
from collections.abc import AsyncIterator

import pytest

from hortator.errors import ConfigError, ConnectFailed, ConnectionLost, FirstByteTimeout, InvalidRequest
from hortator.providers.upstream import (
    Origin,
    Timeouts,
    Upstream,
    UpstreamResponse,
    header_lines,
    request_head,
)
from tests.providers.raw_server import PATIENCE, Peer, RawServer, ask, serve


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    client = Upstream()
    yield client
    await client.close()


@pytest.fixture
async def server() -> AsyncIterator[RawServer]:
    async with serve() as listening:
        yield listening


async def body_of(task: asyncio.Task[UpstreamResponse]) -> bytes:
    reply = await task
    try:
        return await reply.read()
    finally:
        reply.close()


async def warm(upstream: Upstream, server: RawServer) -> Peer:
    """Leave one connection in the pool that has served a request."""
    task = ask(upstream, server.url())
    peer = await server.accept()
    await peer.reply()
    assert await body_of(task) == b"ok"
    assert upstream.idle_connections == 1
    return peer


def test_an_origin_is_read_from_a_base_url() -> None:
    assert Origin.of("https://api.example.com/v1") == Origin("https", "api.example.com", 443)
    assert Origin.of("http://[::1]:8080/v1") == Origin("http", "::1", 8080)
    assert Origin.of("https://api.example.com/v1").authority == b"api.example.com"
    assert Origin.of("http://api.example.com:8080").authority == b"api.example.com:8080"
    assert Origin.of("https://api.example.com:80").authority == b"api.example.com:80"
    assert Origin.of("http://[::1]").authority == b"[::1]"
    assert Origin.of("https://bücher.example").host == "xn--bcher-kva.example"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a",
        "a.example",
        "http://",
        "http://u:hunter2@a",
        "http://a:0",
        "http://a:99999",
        "http://[::1",
        "http://a b",
    ],
)
def test_a_base_url_that_is_not_one_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Origin.of(url)
    assert "hunter2" not in raised.value.message


def test_headers_from_outside_cannot_start_another_header() -> None:
    assert header_lines([(b"x-a", b"1"), (b"X-B", "caf\xe9".encode("latin-1"))]) == b"x-a: 1\r\nX-B: caf\xe9\r\n"
    for name, value in [
        (b"x-a", b"1\r\nx-b: 2"),
        (b"x-a", b"1\n"),
        (b"x-a", b"1\r"),
        (b"x-a", b"\0"),
        (b"x a", b"1"),
        (b"x-a:", b"1"),
        (b"x-a\n", b"1"),
        (b"", b"1"),
        (b"Content-Length", b"1"),
        (b"transfer-encoding", b"chunked"),
        (b"host", b"other"),
    ]:
        with pytest.raises(InvalidRequest) as raised:
            header_lines([(name, value)])
        assert raised.value.code == "invalid_header"


def test_a_request_head_that_cannot_be_sent_is_a_configuration_error() -> None:
    origin = Origin.of("http://a")
    for method, target, headers in [
        ("POST", "/a b", []),
        ("POST", "/a\r\nx: y", []),
        ("POST", "v1", []),
        ("HEAD", "/", []),
        ("PO ST", "/", []),
        ("POST", "/", [(b"authorization", b"Bearer hunter2\n")]),
    ]:
        with pytest.raises(ConfigError) as raised:
            request_head(origin, method, target, headers)
        assert "hunter2" not in raised.value.message


async def test_a_request_goes_out_as_given_with_host_length_and_identity(upstream: Upstream, server: RawServer) -> None:
    task = ask(upstream, server.url(), b'{"a": 1}')
    peer = await server.accept()
    head, body = await peer.request()
    assert body == b'{"a": 1}'
    assert head.split(b"\r\n") == [
        b"POST /v1/chat/completions HTTP/1.1",
        b"host: 127.0.0.1:%d" % server.port,
        b"accept-encoding: identity",
        b"content-type: application/json",
        b"content-length: 8",
    ]
    peer.send(b"HTTP/1.1 429 Slow down\r\nRetry-After: 3\r\ncontent-length: 2\r\n\r\nno")
    reply = await task
    assert (reply.status, reply.headers[0]) == (429, (b"retry-after", b"3"))
    assert await reply.read() == b"no"


async def test_an_ipv6_address_is_a_host(upstream: Upstream) -> None:
    async with serve("::1") as server:
        task = ask(upstream, server.url("[::1]"))
        peer = await server.accept()
        assert b"host: [::1]:%d" % server.port in await peer.reply()
        assert await body_of(task) == b"ok"


async def test_a_warm_connection_is_used_again(upstream: Upstream, server: RawServer) -> None:
    peer = await warm(upstream, server)
    task = ask(upstream, server.url())
    await peer.reply(b"again")
    assert await body_of(task) == b"again"
    assert server.count == 1


async def test_a_stream_is_passed_on_piece_by_piece(upstream: Upstream, server: RawServer) -> None:
    task = ask(upstream, server.url())
    peer = await server.accept()
    await peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    reply = await task
    for piece in (b"data: 1\n\n", b"data: 2\n\n"):
        peer.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        assert await reply.next() == piece
    peer.send(b"0\r\n\r\n")
    assert await reply.next() is None
    assert await reply.next() is None
    assert upstream.idle_connections == 1


async def test_a_stream_that_is_cut_is_lost_after_its_last_byte(upstream: Upstream, server: RawServer) -> None:
    for cut in (Peer.close, Peer.reset):
        task = ask(upstream, server.url())
        peer = await server.accept()
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n")
        reply = await task
        assert await reply.next() == b"hi"
        cut(peer)
        with pytest.raises(ConnectionLost, match="in the middle of its reply"):
            await reply.next()
        assert upstream.open_connections == 0


async def test_no_listener_is_connect_failed(upstream: Upstream) -> None:
    async with serve() as server:
        url = server.url()
    with pytest.raises(ConnectFailed, match=r"127\.0\.0\.1:\d+: Connection refused$"):
        await ask(upstream, url)
    assert upstream.open_connections == 0


async def test_an_unknown_host_is_connect_failed(upstream: Upstream) -> None:
    with pytest.raises(ConnectFailed, match=r"no-such-host\.invalid:80: its name cannot be looked up"):
        await ask(upstream, "http://no-such-host.invalid/v1")


# ---- a kept connection that the upstream has closed


@pytest.mark.parametrize("body", [b"{}", b"x" * 1_000_000])
async def test_a_request_on_a_stale_connection_is_sent_again_on_a_new_one(
    upstream: Upstream, server: RawServer, body: bytes
) -> None:
    peer = await warm(upstream, server)
    task = ask(upstream, server.url(), body)
    await peer.request()
    peer.reset()
    second = await server.accept()
    _, received = await second.request()
    assert received == body
    second.send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfresh")
    assert await body_of(task) == b"fresh"
    assert server.count == 2
    assert upstream.open_connections == 1


async def test_a_request_is_not_sent_a_third_time(upstream: Upstream, server: RawServer) -> None:
    peer = await warm(upstream, server)
    task = ask(upstream, server.url())
    await peer.request()
    peer.close()
    second = await server.accept()
    await second.request()
    second.close()
    with pytest.raises(ConnectionLost, match="before it replied"):
        await task
    assert server.count == 2


async def test_a_request_on_a_new_connection_is_sent_once(upstream: Upstream, server: RawServer) -> None:
    task = ask(upstream, server.url())
    peer = await server.accept()
    await peer.request()
    peer.close()
    with pytest.raises(ConnectionLost):
        await task
    assert server.count == 1


@pytest.mark.parametrize("start", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\n"])
async def test_a_request_is_not_sent_again_after_one_byte_of_reply(
    upstream: Upstream, server: RawServer, start: bytes
) -> None:
    peer = await warm(upstream, server)
    task = ask(upstream, server.url())
    await peer.request()
    peer.send(start)
    peer.close()
    with pytest.raises(ConnectionLost, match="in the middle"):
        await task
    assert server.count == 1


async def test_a_request_that_timed_out_is_not_sent_again(upstream: Upstream, server: RawServer) -> None:
    peer = await warm(upstream, server)
    with pytest.raises(FirstByteTimeout):
        await ask(upstream, server.url(), timeouts=Timeouts(first_byte=0.05))
    assert await peer.hung_up()
    assert server.count == 1


# ---- cancellation and close


async def test_a_cancelled_request_closes_its_socket(upstream: Upstream, server: RawServer) -> None:
    task = ask(upstream, server.url())
    peer = await server.accept()
    await peer.request()
    task.cancel()
    assert await peer.hung_up()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert upstream.open_connections == 0


@pytest.mark.parametrize("method", ["read", "next"])
async def test_a_cancelled_reader_closes_its_socket(upstream: Upstream, server: RawServer, method: str) -> None:
    task = ask(upstream, server.url())
    peer = await server.accept()
    await peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n")
    reply = await task
    reading = asyncio.create_task(getattr(reply, method)())
    await asyncio.sleep(0)
    reading.cancel()
    assert await peer.hung_up()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert upstream.open_connections == 0


async def test_a_request_cancelled_while_its_body_goes_out_closes_its_socket(
    upstream: Upstream, server: RawServer
) -> None:
    task = ask(upstream, server.url(), b"x" * 20_000_000)
    peer = await server.accept()
    async with asyncio.timeout(PATIENCE):
        await peer.reader.readuntil(b"\r\n\r\n")
    task.cancel()
    assert await peer.hung_up()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert upstream.open_connections == 0


async def test_closing_an_unfinished_reply_closes_its_socket(upstream: Upstream, server: RawServer) -> None:
    task = ask(upstream, server.url())
    peer = await server.accept()
    await peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nsome")
    reply = await task
    reply.close()
    reply.close()
    assert await peer.hung_up()
    assert upstream.open_connections == 0


async def test_closing_the_client_ends_requests_and_refuses_new_ones(server: RawServer) -> None:
    upstream = Upstream()
    await warm(upstream, server)
    waiting = ask(upstream, server.url())
    await asyncio.sleep(0)
    peer = server.peers.get_nowait() if not server.peers.empty() else None
    await upstream.close()
    with pytest.raises(ConnectionLost):
        await waiting
    with pytest.raises(ConnectFailed, match="closed"):
        await ask(upstream, server.url())
    assert upstream.open_connections == 0
    assert peer is None


# ---- bodies larger than the socket takes at once


async def test_a_large_body_arrives_whole_and_the_connection_stays(upstream: Upstream, server: RawServer) -> None:
    body = bytes(range(256)) * 80_000
    task = ask(upstream, server.url(), body)
    peer = await server.accept()
    _, received = await peer.request()
    assert hashlib.sha256(received).digest() == hashlib.sha256(body).digest()
    peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
    assert await body_of(task) == b"ok"
    assert upstream.idle_connections == 1


async def test_a_reply_before_the_body_is_sent_is_read_and_the_connection_dropped(
    upstream: Upstream, server: RawServer
) -> None:
    task = ask(upstream, server.url(), b"x" * 20_000_000)
    peer = await server.accept()
    async with asyncio.timeout(PATIENCE):
        await peer.reader.readuntil(b"\r\n\r\n")
    peer.send(b"HTTP/1.1 413 Too large\r\ncontent-length: 7\r\n\r\ntoo big")
    reply = await task
    assert (reply.status, await reply.read()) == (413, b"too big")
    assert await peer.hung_up()
    assert upstream.open_connections == 0


async def test_a_body_of_which_the_upstream_reads_nothing_is_not_copied(upstream: Upstream, server: RawServer) -> None:
    body = b"x" * 20_000_000
    tracemalloc.start()
    try:
        task = ask(upstream, server.url(), body, Timeouts(first_byte=0.2))
        peer = await server.accept()
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        with pytest.raises(FirstByteTimeout):
            await task
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


# ---- a reader slower than the upstream


async def test_an_upstream_is_held_back_while_nobody_reads(upstream: Upstream, server: RawServer) -> None:
    task = ask(upstream, server.url())
    peer = await server.accept()
    await peer.request()
    size = 64 * 1024 * 1024
    peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < size:
            peer.send(b"x" * 65536)
            sent += 65536
            async with asyncio.timeout(0.3):
                await peer.writer.drain()
    assert sent < size / 2, "the upstream could send everything though nobody read"

    async def rest(sent: int) -> None:
        while sent < size:
            peer.send(b"x" * 65536)
            sent += 65536
            await peer.writer.drain()

    reply = await task
    sending = asyncio.create_task(rest(sent))
    received = 0
    while (piece := await reply.next()) is not None:
        assert len(piece) < 1024 * 1024
        received += len(piece)
    await sending
    assert received == size
    assert upstream.idle_connections == 1
