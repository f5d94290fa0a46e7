"""What becomes of a reply's bytes, however the network cuts them: the connection is fed by hand, without a socket."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hortator.errors import ConnectionLost, InvalidReply
from hortator.providers.connection import HIGH_WATER, MAX_HEAD, MAX_HEADERS
from tests.providers.fed import Exchange, Result


def play(loop: asyncio.AbstractEventLoop, pieces: Sequence[bytes], eof: bool = False) -> Result:
    exchange = Exchange(loop)
    try:
        exchange.feed(pieces)
        return exchange.result(eof)
    finally:
        exchange.close()


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def cut(data: bytes, positions: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted({position % (len(data) + 1) for position in positions}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


JSON = (b"content-type", b"application/json")
FIXED = {
    "length": (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\nhello",
        Result(200, (JSON, (b"content-length", b"5")), b"hello", True, None),
    ),
    "chunked with extensions and trailers": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
        b'3;a=b\r\nhel\r\n2;c="d;e"\r\nlo\r\n0;last\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n',
        Result(200, ((b"transfer-encoding", b"Chunked"),), b"hello", True, None),
    ),
    "interim replies": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
        b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\nok",
        Result(201, ((b"content-length", b"2"),), b"ok", True, None),
    ),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", Result(204, (), b"", True, None)),
    "not modified": (
        b"HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n",
        Result(304, ((b"content-length", b"7"),), b"", True, None),
    ),
    "empty": (
        b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n",
        Result(500, ((b"content-length", b"0"),), b"", True, None),
    ),
    "connection close": (
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        Result(200, ((b"connection", b"close"), (b"content-length", b"2")), b"ok", False, None),
    ),
    "http 1.0": (
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        Result(200, ((b"content-length", b"2"),), b"ok", False, None),
    ),
    "http 1.0 that stays": (
        b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok",
        Result(200, ((b"connection", b"keep-alive"), (b"content-length", b"2")), b"ok", True, None),
    ),
    "offered upgrade": (
        b"HTTP/1.1 200 OK\r\nupgrade: h2c\r\nconnection: upgrade\r\ncontent-length: 2\r\n\r\nok",
        Result(200, ((b"upgrade", b"h2c"), (b"connection", b"upgrade"), (b"content-length", b"2")), b"ok", True, None),
    ),
    "identity": (
        b"HTTP/1.1 200 OK\r\ncontent-encoding: identity\r\ncontent-length: 2\r\n\r\nok",
        Result(200, ((b"content-encoding", b"identity"), (b"content-length", b"2")), b"ok", True, None),
    ),
}


@pytest.mark.parametrize("name", FIXED)
def test_a_reply_cut_at_any_byte_reads_the_same(loop: asyncio.AbstractEventLoop, name: str) -> None:
    data, expected = FIXED[name]
    for position in range(len(data) + 1):
        assert play(loop, [data[:position], data[position:]]) == expected, position
    assert play(loop, [data[i : i + 1] for i in range(len(data))]) == expected


@pytest.mark.parametrize("name", FIXED)
def test_a_reply_that_ends_early_is_never_a_clean_end(loop: asyncio.AbstractEventLoop, name: str) -> None:
    data, expected = FIXED[name]
    for length in range(len(data)):
        result = play(loop, [data[:length]], eof=True)
        assert result.error is ConnectionLost, data[:length]
        assert expected.body.startswith(result.body)
        assert not result.reused


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_reply_without_a_length_ends_with_the_connection(loop: asyncio.AbstractEventLoop, version: bytes) -> None:
    head = b"HTTP/" + version + b" 200 OK\r\nserver: old\r\n\r\n"
    for position in range(len(head), len(head) + 6):
        data = head + b"hello"
        result = play(loop, [data[:position], data[position:]], eof=True)
        assert result == Result(200, ((b"server", b"old"),), b"hello", False, None)


def test_a_reply_without_a_length_that_is_reset_is_lost(loop: asyncio.AbstractEventLoop) -> None:
    exchange = Exchange(loop)
    exchange.feed([b"HTTP/1.1 200 OK\r\n\r\nhel"])
    exchange.connection.connection_lost(ConnectionResetError())
    result = exchange.result()
    assert (result.body, result.error) == (b"hel", ConnectionLost)


tokens = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=12).map(lambda s: b"x-" + s.encode())
values = st.text("abcXYZ 0123456789/;=,", max_size=30).map(lambda s: s.strip().encode())
interims = st.sampled_from((b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n"))


@st.composite
def replies(draw: st.DrawFn) -> tuple[bytes, Result]:
    status = draw(st.sampled_from((200, 201, 400, 401, 429, 500, 503, 529)))
    headers = draw(st.lists(st.tuples(tokens, values), max_size=8))
    chunks = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=8))
    body = b"".join(chunks)
    keep = draw(st.booleans())
    if not keep:
        headers.append((b"connection", b"close"))
    if draw(st.booleans()):
        headers.append((b"transfer-encoding", b"chunked"))
        extension = draw(st.sampled_from((b"", b";x", b";x=y")))
        trailer = draw(st.sampled_from((b"", b"x-trailer: 1\r\n")))
        payload = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
        payload += b"0\r\n" + trailer + b"\r\n"
    else:
        headers.append((b"content-length", b"%d" % len(body)))
        payload = body
    lines = b"".join(b"%b: %b\r\n" % (name.upper(), value) for name, value in headers)
    data = draw(interims) + b"HTTP/1.1 %d Any Reason\r\n%b\r\n%b" % (status, lines, payload)
    return data, Result(status, tuple(headers), body, keep, None)


@settings(max_examples=300, deadline=None)
@given(replies(), st.lists(st.integers(0, 5000), max_size=12))
def test_any_reply_cut_anywhere_reads_the_same(reply: tuple[bytes, Result], positions: list[int]) -> None:
    data, expected = reply
    loop = asyncio.new_event_loop()
    try:
        assert play(loop, cut(data, positions)) == expected
    finally:
        loop.close()


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.tuples(replies(), st.integers(0, 400), st.binary(min_size=1, max_size=3)).map(
            lambda t: t[0][0][: t[1]] + t[2] + t[0][0][t[1] :]
        ),
    ),
    st.lists(st.integers(0, 5000), max_size=6),
)
def test_any_bytes_end_in_a_reply_or_one_of_our_errors(data: bytes, positions: list[int]) -> None:
    loop = asyncio.new_event_loop()
    try:
        result = play(loop, cut(data, positions), eof=True)
        assert result.error in (None, ConnectionLost, InvalidReply)
        assert not (result.error and result.reused)
    finally:
        loop.close()


OK = b"HTTP/1.1 200 OK\r\n"
BAD = {
    "not http": b"SSH-2.0-OpenSSH_9.2\r\n",
    "lines without cr": b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok",
    "http 2": b"HTTP/2.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    "switching protocols": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    "status 000": b"HTTP/1.1 000 What\r\ncontent-length: 2\r\n\r\nok",
    "status 999": b"HTTP/1.1 999 What\r\ncontent-length: 2\r\n\r\nok",
    "two lengths": OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\nok!",
    "length list": OK + b"content-length: 2, 3\r\n\r\nok!",
    "length not a number": OK + b"content-length: two\r\n\r\nok",
    "negative length": OK + b"content-length: -1\r\n\r\nok",
    "huge length": OK + b"content-length: 99999999999999999999999\r\n\r\nok",
    "length, then chunked": OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunked, then length": OK + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "unknown transfer coding": OK + b"transfer-encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunked not last": OK + b"transfer-encoding: chunked, gzip\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "gzip": OK + b"content-encoding: gzip\r\ncontent-length: 2\r\n\r\nok",
    "bad chunk size": OK + b"transfer-encoding: chunked\r\n\r\nzz\r\nok\r\n0\r\n\r\n",
    "chunk without end": OK + b"transfer-encoding: chunked\r\n\r\n2\r\nokX0\r\n\r\n",
    "space in a header's name": OK + b"content-length : 2\r\n\r\nok",
    "too many headers": OK + b"x: 1\r\n" * (MAX_HEADERS + 1) + b"content-length: 2\r\n\r\nok",
    "too long headers": OK + b"x: " + b"y" * MAX_HEAD + b"\r\ncontent-length: 2\r\n\r\nok",
    "endless header": OK + b"x: " + b"y" * (6 * MAX_HEAD),
    "endless interim replies": b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000,
    "endless trailers": OK + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n" + b"x: yyyyyyyyyyyyyyy\r\n" * 20_000,
    "endless extension": OK + b"transfer-encoding: chunked\r\n\r\n2;" + b"x" * (6 * MAX_HEAD),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("size", [7, 1000, 256 * 1024])
def test_a_reply_that_breaks_the_rules_is_invalid(loop: asyncio.AbstractEventLoop, name: str, size: int) -> None:
    data = BAD[name]
    result = play(loop, [data[i : i + size] for i in range(0, len(data), size)])
    assert result.error is InvalidReply
    assert not result.reused


def test_an_encoded_reply_is_named_as_such(loop: asyncio.AbstractEventLoop) -> None:
    exchange = Exchange(loop)
    exchange.feed([BAD["gzip"]])
    with pytest.raises(InvalidReply, match=r"upstream.test:80 sent a reply with content-encoding 'gzip'"):
        loop.run_until_complete(exchange.reply.next())
    exchange.close()


SURPLUS = {
    "junk": b"junk",
    "another reply": OK + b"content-length: 2\r\n\r\nno",
    "the start of one": b"HT",
}


@pytest.mark.parametrize("name", SURPLUS)
@pytest.mark.parametrize("together", [True, False])
def test_bytes_after_a_reply_close_the_connection(loop: asyncio.AbstractEventLoop, name: str, together: bool) -> None:
    data = FIXED["length"][0]
    exchange = Exchange(loop)
    exchange.feed([data + SURPLUS[name]] if together else [data, SURPLUS[name]])
    result = exchange.result()
    assert (result.body, result.error) == (b"hello", None)
    assert result.headers == FIXED["length"][1].headers
    assert exchange.wire.aborted
    assert exchange.shelf.forgotten == 1
    exchange.close()


def test_a_connection_serves_one_reply_after_another(loop: asyncio.AbstractEventLoop) -> None:
    exchange = Exchange(loop)
    for data, expected in FIXED.values():
        if not expected.reused:
            continue
        exchange.feed([data])
        result = exchange.result()
        assert (result.status, result.headers, result.body) == (expected.status, expected.headers, expected.body)
        exchange.reply = exchange.ask()
    assert not exchange.wire.aborted
    exchange.close()


def test_reading_stops_while_nobody_takes_the_body_and_goes_on_after(loop: asyncio.AbstractEventLoop) -> None:
    exchange = Exchange(loop)
    exchange.feed([OK + b"content-length: 1000000\r\n\r\n" + b"a" * HIGH_WATER])
    assert exchange.wire.reading
    exchange.feed([b"b"])
    assert not exchange.wire.reading
    assert loop.run_until_complete(exchange.reply.next()) == b"a" * HIGH_WATER + b"b"
    assert exchange.wire.reading
    exchange.close()


def test_a_reply_that_ends_while_reading_is_paused_gives_back_a_connection_that_reads(
    loop: asyncio.AbstractEventLoop,
) -> None:
    exchange = Exchange(loop)
    exchange.feed([OK + b"content-length: %d\r\n\r\n" % (HIGH_WATER + 2) + b"a" * (HIGH_WATER + 1)])
    assert not exchange.wire.reading
    exchange.feed([b"b"])  # TLS may deliver what it had already decrypted
    assert exchange.wire.reading
    assert exchange.result().reused
    exchange.close()


def test_read_refuses_a_body_over_its_limit(loop: asyncio.AbstractEventLoop) -> None:
    for early in (True, False):
        exchange = Exchange(loop)
        head = OK + b"content-length: 11\r\n\r\n"
        exchange.feed([head + b"12345678901"] if early else [head])
        reading = loop.create_task(exchange.reply.read(10))
        if not early:
            loop.run_until_complete(asyncio.sleep(0))
            exchange.feed([b"123456", b"78901"])
        with pytest.raises(InvalidReply, match="longer than 10 bytes"):
            loop.run_until_complete(reading)
        exchange.close()


def test_read_does_not_pause(loop: asyncio.AbstractEventLoop) -> None:
    exchange = Exchange(loop)
    size = HIGH_WATER * 4
    exchange.feed([OK + b"content-length: %d\r\n\r\n" % size])
    reading = loop.create_task(exchange.reply.read())
    loop.run_until_complete(asyncio.sleep(0))
    for _ in range(4):
        exchange.feed([b"x" * HIGH_WATER])
        assert exchange.wire.reading
    assert loop.run_until_complete(reading) == b"x" * size
    exchange.close()


def test_next_joins_what_has_arrived(loop: asyncio.AbstractEventLoop) -> None:
    exchange = Exchange(loop)
    exchange.feed([OK + b"transfer-encoding: chunked\r\n\r\n", b"1\r\na\r\n1\r\nb\r\n", b"1\r\nc\r\n"])
    assert loop.run_until_complete(exchange.reply.next()) == b"abc"
    exchange.close()


def test_a_poke_makes_a_waiting_next_return_nothing(loop: asyncio.AbstractEventLoop) -> None:
    exchange = Exchange(loop)
    exchange.feed([OK + b"content-length: 2\r\n\r\n"])
    waiting = loop.create_task(exchange.reply.next())
    loop.run_until_complete(asyncio.sleep(0))
    exchange.reply.poke()
    assert loop.run_until_complete(waiting) == b""
    exchange.reply.poke()
    assert loop.run_until_complete(exchange.reply.next()) == b""
    exchange.feed([b"ok"])
    assert exchange.result().body == b"ok"
    exchange.close()


def test_closing_a_reply_drops_the_connection_only_before_its_end(loop: asyncio.AbstractEventLoop) -> None:
    done = Exchange(loop)
    done.feed([FIXED["length"][0]])
    done.reply.close()
    done.reply.close()
    assert not done.wire.aborted
    half = Exchange(loop)
    half.feed([FIXED["length"][0][:-1]])
    half.reply.close()
    half.reply.close()
    assert half.wire.aborted
    with pytest.raises(ConnectionLost):
        loop.run_until_complete(half.reply.next())
    done.close()
    half.close()
