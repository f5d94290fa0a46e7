"""What is not HTTP, or too much of it: one error reply at most, then a closed connection, and the next client is served."""

from __future__ import annotations

import json

import pytest

from tests.door import CHAT, Connection, Door, Reply, chat, head
from tests.gateway import MODEL
from tests.upstream.process import Upstream

SMUGGLED = b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n"


def refused(door: Door, raw: bytes) -> Reply:
    """Send bytes that end the connection; return the one reply and show that nothing follows and that others are served."""
    with Connection(door.port) as connection:
        connection.send(raw)
        reply = connection.read()
        assert connection.at_end(), "a second reply follows"
    assert door.call("GET", "/v1/models").status == 200
    return reply


def post(door: Door, body: bytes, *lines: bytes) -> bytes:
    """A POST with these header lines beside the ordinary ones."""
    ordinary = [b"host: a", b"authorization: Bearer " + door.key.encode(), b"content-type: application/json"]
    return b"\r\n".join([b"POST " + CHAT.encode() + b" HTTP/1.1", *ordinary, *lines]) + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    "raw",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /v1/models\r\n\r\n",
        b"GET /v1/models HTTP/9.9\r\nhost: a\r\n\r\n",
        b"G\x00T /v1/models HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nno colon here\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: a\r\nbad\x00name: b\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: a\r\nname : space before the colon\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: a\r\nx: a\x00b\r\n\r\n",
    ],
)
def test_what_is_not_http_gets_one_400(door: Door, raw: bytes) -> None:
    reply = refused(door, raw)
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
    assert reply.error["code"] == "malformed_http"
    assert reply.header("x-request-id")


def test_a_request_without_host_gets_400(door: Door) -> None:
    """RFC 9112, 3.2."""
    with Connection(door.port) as connection:
        connection.send(b"GET /v1/models HTTP/1.1\r\nauthorization: Bearer " + door.key.encode() + b"\r\n\r\n")
        reply = connection.read()
    assert reply.status == 400
    assert reply.error


@pytest.mark.parametrize(
    "lines",
    [
        (b"content-length: 5", b"transfer-encoding: chunked"),
        (b"transfer-encoding: chunked", b"content-length: 5"),
        (b"content-length: 5", b"content-length: 6"),
        (b"content-length: -1",),
        (b"content-length: +5",),
        (b"content-length: five",),
        (b"content-length: 5, 5",),
        (b"content-length: 99999999999999999999999999",),
        (b"transfer-encoding: chunked, identity",),
        (b"transfer-encoding: \x0bchunked",),
    ],
)
def test_a_body_of_doubtful_length_gets_one_400_and_no_second_request_is_read_from_it(
    door: Door, lines: tuple[bytes, ...]
) -> None:
    """RFC 9112, 6.3: request smuggling."""
    reply = refused(door, post(door, b"0\r\n\r\n" + SMUGGLED, *lines))
    assert reply.status == 400, reply
    assert reply.error


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloworld\r\n0\r\n\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"ffffffffffffffffffff\r\nhello",
        b"0x5\r\nhello\r\n0\r\n\r\n",
    ],
)
def test_a_broken_chunk_gets_one_400(door: Door, chunks: bytes) -> None:
    reply = refused(door, post(door, chunks, b"transfer-encoding: chunked"))
    assert reply.status == 400
    assert reply.error


def test_a_bad_chunk_after_good_ones_gets_one_400(door: Door, upstream: Upstream) -> None:
    mark = upstream.plan("ok")
    document = json.dumps(chat(MODEL, mark)).encode()
    chunk = b"%x\r\n%b\r\n" % (len(document), document)
    reply = refused(door, post(door, chunk + b"nonsense\r\n\r\n", b"transfer-encoding: chunked"))
    assert reply.status == 400
    assert upstream.seen(mark) == []


@pytest.mark.parametrize("count", [201, 1_000, 10_000])
def test_too_many_headers_get_one_431(door: Door, count: int) -> None:
    lines = b"".join(b"x-%d: y\r\n" % number for number in range(count))
    reply = refused(door, b"GET /v1/models HTTP/1.1\r\nhost: a\r\n" + lines + b"\r\n")
    assert (reply.status, reply.error["code"]) == (431, "headers_too_large")


@pytest.mark.parametrize("size", [70_000, 2_000_000])
def test_too_large_a_header_gets_one_431(door: Door, size: int) -> None:
    reply = refused(door, b"GET /v1/models HTTP/1.1\r\nhost: a\r\nx: " + b"y" * size + b"\r\n\r\n")
    assert (reply.status, reply.error["code"]) == (431, "headers_too_large")


def test_too_long_an_address_gets_one_431(door: Door) -> None:
    reply = refused(door, b"GET /v1/" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n")
    assert reply.status in (414, 431)


def test_a_head_that_never_ends_does_not_keep_others_waiting(door: Door) -> None:
    with Connection(door.port) as slow:
        slow.send(b"GET /v1/models HTTP/1.1\r\nhost: a\r\nx: y")
        assert door.call("GET", "/v1/models").status == 200


def test_requests_sent_ahead_are_answered_in_order(door: Door, upstream: Upstream) -> None:
    """Pipelining, RFC 9112, 9.3.2."""
    marks = [upstream.plan("ok") for _ in range(5)]
    with Connection(door.port) as connection:
        connection.send(
            b"".join(door.raw(json.dumps(chat(MODEL, mark)).encode(), {"x-request-id": mark}) for mark in marks)
        )
        replies = [connection.read() for _ in marks]
    assert [(reply.status, reply.header("x-request-id")) for reply in replies] == [(200, mark) for mark in marks]


def test_garbage_after_a_good_request_does_not_spoil_its_answer(door: Door, upstream: Upstream) -> None:
    document = json.dumps(chat(MODEL, upstream.plan("ok"))).encode()
    with Connection(door.port) as connection:
        connection.send(door.raw(document))
        assert connection.read().status == 200
        connection.send(b"\x00\x01garbage\r\n\r\n")
        reply = connection.read()
        assert reply.status == 400
        assert connection.at_end()


def test_a_connection_is_reused_for_many_requests(door: Door, upstream: Upstream) -> None:
    mark = upstream.plan("ok")
    raw = door.raw(json.dumps(chat(MODEL, mark)).encode())
    with Connection(door.port) as connection:
        for _ in range(20):
            connection.send(raw)
            assert connection.read().status == 200
    seen = upstream.wait(mark, count=20)
    assert len({one.connection for one in seen}) == 1, "the upstream's connection is reused as well"


def test_http_1_0_is_answered_and_closed(door: Door) -> None:
    raw = head("GET", "/v1/models", {"authorization": f"Bearer {door.key}"}).replace(b"HTTP/1.1", b"HTTP/1.0")
    with Connection(door.port) as connection:
        connection.send(raw)
        assert connection.read("GET").status == 200
        assert connection.at_end()


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_an_offered_upgrade_is_ignored_and_the_request_is_answered(door: Door, upstream: Upstream, cut: int) -> None:
    """RFC 9110, 7.8. Java's HTTP client offers h2c with its first request, whose body must not be lost."""
    body = json.dumps(chat(MODEL, upstream.plan("ok"))).encode()
    upgrade = (b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAEAAEAAAAIAAAAB")
    whole = post(door, body, *upgrade, b"content-length: %d" % len(body))
    with Connection(door.port) as connection:
        connection.send(whole[: len(whole) - cut])
        connection.send(whole[len(whole) - cut :])
        reply = connection.read()
        assert connection.at_end(), "the parser has stopped: nothing else may come over this connection"
    assert reply.status == 200
    assert reply.json["choices"]


def test_an_offered_upgrade_without_a_body_is_ignored_too(door: Door) -> None:
    upgrade = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-key": "eA==",
        "sec-websocket-version": "13",
    }
    with Connection(door.port) as connection:
        connection.send(head("GET", "/v1/models", door.headers(None) | upgrade))
        assert connection.read("GET").status == 200
        assert connection.at_end()
