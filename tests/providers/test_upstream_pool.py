"""Who gets which connection, and when connections end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from hortator.errors import ConnectFailed, ConnectionLost
from hortator.providers.upstream import Origin, PoolLimits, Timeouts, Upstream, UpstreamResponse
from tests.providers.raw_server import PATIENCE, Peer, RawServer, ask, serve


async def settle(task: asyncio.Task[UpstreamResponse], peer: Peer, body: bytes = b"ok") -> None:
    await peer.reply(body)
    assert await (await task).read() == body


async def two_idle(upstream: Upstream, server: RawServer) -> tuple[Peer, Peer]:
    """Leave two connections in the pool; the second was used last."""
    first, second = ask(upstream, server.url()), ask(upstream, server.url())
    one, two = await server.accept(), await server.accept()
    await settle_any({first, second}, one)
    await settle_any({first, second}, two)
    assert upstream.idle_connections == 2
    return one, two


async def settle_any(tasks: set[asyncio.Task[UpstreamResponse]], peer: Peer) -> None:
    pending = {task for task in tasks if not task.done()}
    await peer.reply()
    done, _ = await asyncio.wait(pending, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
    assert await done.pop().result().read() == b"ok"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0)


async def test_the_connection_used_last_goes_out_first() -> None:
    async with serve() as server:
        upstream = Upstream()
        _, last = await two_idle(upstream, server)
        await settle(ask(upstream, server.url()), last)
        await upstream.close()


async def test_an_idle_connection_is_closed_after_its_time() -> None:
    async with serve() as server:
        upstream = Upstream(limits=PoolLimits(idle_seconds=0.1))
        task = ask(upstream, server.url())
        peer = await server.accept()
        await settle(task, peer)
        assert await peer.hung_up()
        assert (upstream.open_connections, upstream.idle_connections) == (0, 0)
        await upstream.close()


async def test_an_old_connection_is_not_used_again() -> None:
    async with serve() as server:
        upstream = Upstream(limits=PoolLimits(max_age_seconds=0.1))
        task = ask(upstream, server.url())
        peer = await server.accept()
        await settle(task, peer)
        assert await peer.hung_up()
        assert upstream.open_connections == 0
        await upstream.close()


async def test_no_more_than_max_idle_connections_are_kept() -> None:
    async with serve() as server:
        upstream = Upstream(limits=PoolLimits(max_idle=1))
        first, second = ask(upstream, server.url()), ask(upstream, server.url())
        one, two = await server.accept(), await server.accept()
        await settle_any({first, second}, one)
        await settle_any({first, second}, two)
        assert (upstream.open_connections, upstream.idle_connections) == (1, 1)
        await upstream.close()


@pytest.mark.parametrize("end", [Peer.close, Peer.reset])
async def test_an_idle_connection_that_the_upstream_closes_leaves_the_pool(end: Callable[[Peer], None]) -> None:
    async with serve() as server:
        upstream = Upstream()
        task = ask(upstream, server.url())
        peer = await server.accept()
        await settle(task, peer)
        end(peer)
        await until(lambda: upstream.open_connections == 0)
        assert upstream.idle_connections == 0
        task = ask(upstream, server.url())
        await settle(task, await server.accept())
        assert server.count == 2
        await upstream.close()


async def test_bytes_on_an_idle_connection_close_it() -> None:
    async with serve() as server:
        upstream = Upstream()
        task = ask(upstream, server.url())
        peer = await server.accept()
        await settle(task, peer)
        peer.send(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
        assert await peer.hung_up()
        assert upstream.open_connections == 0
        await upstream.close()


async def test_origins_do_not_share_connections() -> None:
    async with serve() as server, serve() as other:
        upstream = Upstream()
        task = ask(upstream, server.url())
        await settle(task, await server.accept())
        task = ask(upstream, other.url())
        await settle(task, await other.accept())
        assert upstream.idle_connections == 2
        await upstream.close()


async def test_requests_over_the_limit_wait_and_are_served_in_order() -> None:
    async with serve() as server:
        upstream = Upstream(limits=PoolLimits(per_host=1))
        tasks = [ask(upstream, server.url(), b"%d" % number) for number in range(4)]
        peer = await server.accept()
        assert upstream.waiting_requests == 3
        for number, task in enumerate(tasks):
            _, body = await peer.request()
            assert body == b"%d" % number
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            assert await (await task).read() == b"ok"
        assert server.count == 1
        assert (upstream.open_connections, upstream.waiting_requests) == (1, 0)
        await upstream.close()


async def test_a_waiter_gets_the_slot_of_a_connection_that_breaks() -> None:
    async with serve() as server:
        upstream = Upstream(limits=PoolLimits(per_host=1))
        first, second = ask(upstream, server.url()), ask(upstream, server.url())
        peer = await server.accept()
        await peer.request()
        peer.close()
        with pytest.raises(ConnectionLost):
            await first
        await settle(second, await server.accept())
        await upstream.close()


async def test_a_waiter_gets_the_slot_of_a_connection_that_cannot_be_opened() -> None:
    async with serve() as server:
        url = server.url()
    upstream = Upstream(limits=PoolLimits(per_host=1))
    tasks = [ask(upstream, url) for _ in range(3)]
    for task in tasks:
        with pytest.raises(ConnectFailed):
            await task
    assert (upstream.open_connections, upstream.waiting_requests) == (0, 0)
    await upstream.close()


async def test_waiters_are_bounded() -> None:
    async with serve() as server:
        upstream = Upstream(limits=PoolLimits(per_host=1, max_waiting=1))
        tasks = [ask(upstream, server.url()) for _ in range(2)]
        peer = await server.accept()
        with pytest.raises(ConnectFailed) as raised:
            await ask(upstream, server.url())
        assert raised.value.code == "upstream_pool_full"
        for task in tasks:
            await settle(task, peer)
        await upstream.close()


async def test_a_cancelled_waiter_leaves_the_queue() -> None:
    async with serve() as server:
        upstream = Upstream(limits=PoolLimits(per_host=1))
        tasks = [ask(upstream, server.url()) for _ in range(3)]
        peer = await server.accept()
        tasks[1].cancel()
        await until(lambda: upstream.waiting_requests == 1)
        await settle(tasks[0], peer)
        await settle(tasks[2], peer)
        await upstream.close()


@pytest.mark.parametrize("broken", [False, True])
async def test_a_waiter_cancelled_as_it_is_served_loses_nothing(broken: bool) -> None:
    """The hand-over and the cancellation meet in the same turn of the loop: the connection (or slot) goes to the next."""
    async with serve() as server:
        upstream = Upstream(limits=PoolLimits(per_host=1))
        tasks = [ask(upstream, server.url()) for _ in range(3)]
        peer = await server.accept()
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n")
        reply = await tasks[0]
        if broken:
            reply.close()
        else:
            peer.send(b"x" * 100)
            await until(lambda: upstream.waiting_requests == 1)
        assert upstream.waiting_requests == 1
        tasks[1].cancel()
        await settle(tasks[2], await server.accept() if broken else peer)
        assert tasks[1].cancelled()
        assert (upstream.open_connections, upstream.waiting_requests) == (1, 0)
        await upstream.close()


async def test_a_request_cancelled_while_it_connects_frees_its_slot() -> None:
    async with serve() as server:
        upstream = Upstream(limits=PoolLimits(per_host=1))
        for turns in range(6):
            task = ask(upstream, server.url())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: upstream.open_connections == 0)
        assert upstream.waiting_requests == 0
        await upstream.close()


async def test_a_stale_connection_is_replaced_even_when_the_pool_is_full() -> None:
    async with serve() as server:
        upstream = Upstream(limits=PoolLimits(per_host=2))
        one, two = await two_idle(upstream, server)
        task = ask(upstream, server.url())
        await two.request()
        other = ask(upstream, server.url())
        await one.request()
        two.reset()
        await settle(task, await server.accept(), b"fresh")
        one.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        assert await (await other).read() == b"ok"
        assert upstream.open_connections == 2
        await upstream.close()


async def test_a_second_try_does_not_use_another_kept_connection() -> None:
    async with serve() as server:
        upstream = Upstream(limits=PoolLimits(per_host=2))
        one, two = await two_idle(upstream, server)
        task = ask(upstream, server.url())
        await two.request()
        two.reset()
        await settle(task, await server.accept(), b"fresh")
        assert server.count == 3
        assert upstream.open_connections <= 2
        one.close()
        await upstream.close()


async def test_a_second_try_that_had_to_wait_opens_a_new_connection_in_the_slot_it_gets() -> None:
    async with serve() as server:
        upstream = Upstream(limits=PoolLimits(per_host=1))
        task = ask(upstream, server.url())
        stale = await server.accept()
        await settle(task, stale)
        task, other = ask(upstream, server.url(), b"first"), ask(upstream, server.url(), b"second")
        await stale.request()
        stale.reset()
        kept = await server.accept()
        assert (await kept.request())[1] == b"second"
        kept.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        assert await (await other).read() == b"ok"
        new = await server.accept()
        assert (await new.request())[1] == b"first"
        assert await kept.hung_up()
        new.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        assert await (await task).read() == b"ok"
        assert (upstream.open_connections, server.count) == (1, 3)
        await upstream.close()


async def test_a_closed_client_sends_its_waiters_away() -> None:
    async with serve() as server:
        upstream = Upstream(limits=PoolLimits(per_host=1))
        first, second = ask(upstream, server.url()), ask(upstream, server.url())
        peer = await server.accept()
        await upstream.close()
        with pytest.raises(ConnectionLost):
            await first
        with pytest.raises(ConnectFailed):
            await second
        assert await peer.hung_up()
        assert upstream.open_connections == 0


async def test_many_requests_at_once_share_few_connections() -> None:
    async with serve() as server:
        upstream = Upstream(limits=PoolLimits(per_host=5))
        tasks = [ask(upstream, server.url(), timeouts=Timeouts()) for _ in range(200)]

        async def answer(peer: Peer) -> None:
            while True:
                await peer.reply()

        answering = [asyncio.create_task(answer(await server.accept())) for _ in range(5)]
        for task in tasks:
            assert await (await task).read() == b"ok"
        assert server.count == 5
        assert upstream.open_connections == 5
        for peer in answering:
            peer.cancel()
        await upstream.close()


async def test_connections_to_what_is_still_configured_are_kept() -> None:
    async with serve() as server:
        upstream = Upstream()
        await two_idle(upstream, server)
        upstream.keep([Origin.of(server.url())])
        assert upstream.idle_connections == 2
        upstream.keep([])
        assert upstream.idle_connections == 0
        await upstream.close()


async def test_connections_are_opened_before_they_are_needed() -> None:
    """R-000-41."""
    async with serve() as server:
        upstream = Upstream()
        origin = Origin.of(server.url())
        await upstream.warm(origin, 2, PATIENCE)
        assert (upstream.open_connections, upstream.idle_connections) == (2, 2)
        await upstream.warm(origin, 2, PATIENCE)
        assert upstream.open_connections == 2
        first, second = await server.accept(), await server.accept()
        tasks = {ask(upstream, server.url()), ask(upstream, server.url())}
        await settle_any(tasks, first)
        await settle_any(tasks, second)
        assert upstream.open_connections == 2
        await upstream.close()


async def test_what_cannot_be_reached_is_not_kept_warm() -> None:
    upstream = Upstream()
    async with serve() as server:
        origin = Origin.of(server.url())
    await upstream.warm(origin, 2, PATIENCE)
    assert upstream.open_connections == 0
    await upstream.close()
