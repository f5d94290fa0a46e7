"""The same contract through an HTTP proxy, which the tests play themselves."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import pytest

from hortator.errors import (
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    FirstByteTimeout,
    IdleTimeout,
    InvalidReply,
    TotalTimeout,
    UpstreamError,
)
from hortator.providers.proxy import ProxyReply
from hortator.providers.upstream import Origin, Timeouts, Upstream, request_head
from tests.providers.raw_server import PATIENCE, RawServer, serve

ORIGIN = Origin.of("http://provider.test/v1")
HEAD = request_head(
    ORIGIN, "POST", "/v1/chat%2Fx?a=b", [(b"content-type", b"application/json"), (b"x-twice", b"1"), (b"x-twice", b"2")]
)


@pytest.fixture
async def proxy() -> AsyncIterator[RawServer]:
    async with serve() as listening:
        yield listening


@pytest.fixture
async def upstream(proxy: RawServer) -> AsyncIterator[Upstream]:
    client = Upstream(proxy_url=f"http://user:hunter2@127.0.0.1:{proxy.port}")
    yield client
    await client.close()


def ask(
    upstream: Upstream, timeouts: Timeouts | None = None, within: float = PATIENCE, body: bytes = b"{}"
) -> asyncio.Task[ProxyReply]:
    deadline = asyncio.get_running_loop().time() + within

    async def request() -> ProxyReply:
        reply = await upstream.request(ORIGIN, HEAD, body, timeouts or Timeouts(), deadline)
        assert isinstance(reply, ProxyReply)
        return reply

    return asyncio.create_task(request())


async def test_a_request_goes_to_the_proxy_with_nothing_added(upstream: Upstream, proxy: RawServer) -> None:
    task = ask(upstream)
    peer = await proxy.accept()
    head, body = await peer.request()
    assert body == b"{}"
    start, *lines = head.split(b"\r\n")
    assert start == b"POST http://provider.test/v1/chat%2Fx?a=b HTTP/1.1"
    names = sorted(line.split(b":")[0].lower() for line in lines)
    assert names == [
        b"accept-encoding",
        b"content-length",
        b"content-type",
        b"host",
        b"proxy-authorization",
        b"x-twice",
        b"x-twice",
    ]
    peer.send(b"HTTP/1.1 429 Slow down\r\nRetry-After: 3\r\ncontent-length: 2\r\n\r\nno")
    reply = await task
    assert (reply.status, reply.headers[0]) == (429, (b"retry-after", b"3"))
    assert await reply.read() == b"no"
    reply.close()
    task = ask(upstream)
    await peer.reply(b"again")
    assert await (await task).read() == b"again"
    assert proxy.count == 1


async def test_a_stream_is_passed_on_piece_by_piece_and_can_be_poked(upstream: Upstream, proxy: RawServer) -> None:
    task = ask(upstream)
    peer = await proxy.accept()
    await peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    reply = await task
    for piece in (b"data: 1\n\n", b"data: 2\n\n"):
        waiting = asyncio.create_task(reply.next())
        await asyncio.sleep(0)
        reply.poke()
        assert await waiting == b""
        peer.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        assert await reply.next() == piece
    reply.poke()
    assert await reply.next() == b""
    peer.send(b"0\r\n\r\n")
    assert await reply.next() is None
    assert await reply.next() is None
    reply.close()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", ConnectionLost),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello", ConnectionLost),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", ConnectionLost),
        (b"SSH-2.0-OpenSSH\r\n\r\n", InvalidReply),
        (b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\nhi", InvalidReply),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n", UpstreamError),
    ],
)
async def test_a_broken_reply_is_one_of_our_errors(
    upstream: Upstream, proxy: RawServer, data: bytes, error: type[UpstreamError]
) -> None:
    task = ask(upstream)
    peer = await proxy.accept()
    await peer.request()
    peer.send(data)
    peer.close()
    with pytest.raises(error) as raised:
        await (await task).read()
    assert "hunter2" not in raised.value.message


async def test_read_refuses_a_body_over_its_limit(upstream: Upstream, proxy: RawServer) -> None:
    task = ask(upstream)
    await (await proxy.accept()).reply(b"x" * 11)
    with pytest.raises(InvalidReply, match="longer than 10"):
        await (await task).read(10)


async def test_a_proxy_that_is_not_there_is_connect_failed() -> None:
    async with serve() as gone:
        port = gone.port
    upstream = Upstream(proxy_url=f"http://user:hunter2@127.0.0.1:{port}")
    with pytest.raises(ConnectFailed) as raised:
        await ask(upstream)
    assert "hunter2" not in raised.value.message
    await upstream.close()


async def test_a_proxy_that_refuses_to_connect_is_connect_failed(proxy: RawServer, upstream: Upstream) -> None:
    origin = Origin.of("https://provider.test")
    deadline = asyncio.get_running_loop().time() + PATIENCE
    task = asyncio.create_task(upstream.request(origin, HEAD, b"", Timeouts(), deadline))
    peer = await proxy.accept()
    async with asyncio.timeout(PATIENCE):
        assert (await peer.reader.readuntil(b"\r\n\r\n")).startswith(b"CONNECT provider.test:443 HTTP/1.1\r\n")
    peer.send(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
    with pytest.raises(ConnectFailed, match="answered 407"):
        await task


async def test_each_way_to_be_slow_has_its_error(upstream: Upstream, proxy: RawServer) -> None:
    with pytest.raises(FirstByteTimeout):
        await ask(upstream, Timeouts(connect=0.05, first_byte=0.05))
    assert await (await proxy.accept()).hung_up()
    with pytest.raises(TotalTimeout):
        await ask(upstream, within=0.05)
    assert await (await proxy.accept()).hung_up()
    for timeouts, within, error in ((Timeouts(idle=0.05), PATIENCE, IdleTimeout), (Timeouts(), 0.3, TotalTimeout)):
        task = ask(upstream, timeouts, within)
        peer = await proxy.accept()
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")
        reply = await task
        assert await reply.next() == b"hello"
        with pytest.raises(error):
            await reply.next()
        with pytest.raises(error):
            await reply.next()
        assert await peer.hung_up()


async def test_a_cancelled_caller_closes_its_socket(upstream: Upstream, proxy: RawServer) -> None:
    task = ask(upstream)
    peer = await proxy.accept()
    await peer.request()
    task.cancel()
    assert await peer.hung_up()
    task = ask(upstream)
    peer = await proxy.accept()
    await peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n")
    reply = await task
    reading = asyncio.create_task(reply.next())
    await asyncio.sleep(0)
    reading.cancel()
    assert await peer.hung_up()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_closing_an_unfinished_reply_closes_its_socket(upstream: Upstream, proxy: RawServer) -> None:
    task = ask(upstream)
    peer = await proxy.accept()
    await peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")
    reply = await task
    reply.close()
    reply.close()
    assert await peer.hung_up()
    with pytest.raises(ConnectionLost):
        await reply.next()


async def test_a_closed_client_refuses_requests(upstream: Upstream) -> None:
    await upstream.close()
    with pytest.raises(ConnectFailed, match="closed"):
        await ask(upstream)


@pytest.mark.parametrize("url", ["socks5://127.0.0.1:1", "http://", "127.0.0.1:8080"])
def test_a_proxy_url_that_is_not_one_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigError):
        Upstream(proxy_url=url)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ConfigError, match=r"pip install 'hortator\[proxy\]'"):
        Upstream(proxy_url="http://127.0.0.1:1")


def test_without_a_proxy_aiohttp_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    Upstream()
