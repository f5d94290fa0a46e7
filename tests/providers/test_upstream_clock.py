"""What the one timer of a connection does as time goes by, on a clock that the test turns."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from hortator.errors import FirstByteTimeout, IdleTimeout, TotalTimeout, UpstreamError
from hortator.providers.connection import HIGH_WATER, Timeouts
from tests.providers.fed import Exchange

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n"
SHORT = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time stands still until it is turned."""

    now = 1000.0

    def time(self) -> float:
        return self.now

    def turn(self, seconds: float) -> None:
        self.now += seconds
        self.call_soon(self.stop)
        self.run_forever()


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    yield clock
    clock.close()


def failure(exchange: Exchange) -> type[UpstreamError] | None:
    return exchange.result().error if exchange.wire.aborted else None


def test_a_head_that_trickles_does_not_move_the_first_byte_limit(clock: Clock) -> None:
    exchange = Exchange(clock, Timeouts(first_byte=10))
    exchange.feed([b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"])
    for _ in range(9):
        clock.turn(1)
        exchange.feed([b"x: y\r\n"])
        assert failure(exchange) is None
    clock.turn(1)
    assert failure(exchange) is FirstByteTimeout


def test_a_body_that_keeps_coming_is_not_idle(clock: Clock) -> None:
    exchange = Exchange(clock, Timeouts(idle=10))
    exchange.feed([HEAD])
    for _ in range(6):
        clock.turn(9)
        exchange.feed([b"x"])
        assert failure(exchange) is None
    clock.turn(5)
    assert failure(exchange) is None
    exchange.close()


def test_a_body_that_stops_is_idle(clock: Clock) -> None:
    exchange = Exchange(clock, Timeouts(first_byte=50, idle=10))
    clock.turn(40)
    exchange.feed([HEAD])
    clock.turn(9.9)
    assert failure(exchange) is None
    clock.turn(0.1)
    assert failure(exchange) is IdleTimeout


def test_a_body_that_trickles_past_the_deadline_is_a_total_timeout(clock: Clock) -> None:
    exchange = Exchange(clock, Timeouts(idle=10))
    exchange.feed([HEAD])
    for _ in range(59):
        clock.turn(1)
        exchange.feed([b"x"])
        assert failure(exchange) is None
    clock.turn(1)
    assert failure(exchange) is TotalTimeout


def test_silence_while_we_refuse_to_read_is_not_the_upstreams(clock: Clock) -> None:
    exchange = Exchange(clock, Timeouts(idle=10))
    exchange.feed([HEAD + b"x" * HIGH_WATER, b"x"])
    assert not exchange.wire.reading
    clock.turn(30)
    assert failure(exchange) is None
    clock.run_until_complete(exchange.reply.next())
    assert exchange.wire.reading
    clock.turn(9)
    assert failure(exchange) is None
    clock.turn(1)
    assert failure(exchange) is IdleTimeout


def test_a_reader_that_never_comes_back_meets_the_deadline(clock: Clock) -> None:
    exchange = Exchange(clock, Timeouts(idle=10))
    exchange.feed([HEAD + b"x" * HIGH_WATER, b"x"])
    clock.turn(60)
    assert failure(exchange) is TotalTimeout


def test_a_reply_that_is_complete_has_no_deadline(clock: Clock) -> None:
    exchange = Exchange(clock)
    exchange.feed([SHORT])
    clock.turn(1000)
    assert exchange.result().body == b"ok"
    exchange.close()


def test_a_limit_of_one_request_does_not_reach_the_next_on_its_connection(clock: Clock) -> None:
    exchange = Exchange(clock, Timeouts(first_byte=1, idle=1))
    exchange.feed([SHORT])
    exchange.timeouts = Timeouts(first_byte=None, idle=None)
    exchange.reply = exchange.ask(1000)
    clock.turn(500)
    exchange.feed([HEAD])
    clock.turn(499)
    assert failure(exchange) is None
    clock.turn(1)
    assert failure(exchange) is TotalTimeout


def test_a_shorter_limit_after_a_longer_one_holds(clock: Clock) -> None:
    exchange = Exchange(clock, Timeouts(first_byte=50, idle=50))
    exchange.feed([SHORT])
    exchange.timeouts = Timeouts(first_byte=2)
    exchange.reply = exchange.ask()
    clock.turn(2)
    assert failure(exchange) is FirstByteTimeout


def test_a_connection_that_waits_for_a_request_closes_when_its_time_is_over(clock: Clock) -> None:
    exchange = Exchange(clock)
    exchange.feed([SHORT])
    clock.turn(59)
    assert not exchange.wire.aborted
    clock.turn(1)
    assert exchange.wire.aborted
    exchange.close()


def test_the_socket_taking_more_of_the_request_moves_the_first_byte_limit(clock: Clock) -> None:
    exchange = Exchange(clock, Timeouts(first_byte=10))
    exchange.connection.pause_writing()
    clock.turn(9)
    exchange.connection.resume_writing()
    clock.turn(9)
    assert failure(exchange) is None
    clock.turn(1)
    assert failure(exchange) is FirstByteTimeout


def test_without_limits_only_the_deadline_ends_a_wait(clock: Clock) -> None:
    exchange = Exchange(clock, Timeouts(first_byte=None, idle=None))
    clock.turn(59)
    assert failure(exchange) is None
    clock.turn(1)
    assert failure(exchange) is TotalTimeout
