"""Clients that leave, clients that do not read, and servers that are told to stop or are killed."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from tests.door import Connection, Door, chat, content_of, envelope, events, head
from tests.gateway import MODEL, PAIR, Gateway, eventually, running_gateway
from tests.upstream.process import Upstream
from tests.upstream.scenarios import FLOOD_EVENT_BYTES, FLOOD_EVENTS
from tests.upstream.script import PIECES, TEXT

MEBIBYTE = 1024 * 1024


def test_a_client_that_hangs_up_cancels_its_upstream_call(door: Door, gateway: Gateway, upstream: Upstream) -> None:
    mark = upstream.plan("hang")
    request_id = uuid.uuid4().hex
    with door.begin(chat(PAIR, mark), x_request_id=request_id):
        upstream.wait(mark)
    upstream.wait(mark, "aborted")
    row = gateway.row(request_id)
    assert (row["status"], row["complete"], row["stream"]) == (499, 0, 0)
    assert row["error_code"] == "client_closed_request"
    assert row["usage_source"] != "reported"
    assert len(upstream.seen(mark)) == 1, "nobody is left for whom another deployment could be asked"


@pytest.mark.parametrize("scenario", ["hang", "role_then_silence", "content_then_silence", "late_silence"])
def test_a_client_that_hangs_up_cancels_its_upstream_stream(
    door: Door, gateway: Gateway, upstream: Upstream, scenario: str
) -> None:
    mark = upstream.plan(scenario)
    request_id = uuid.uuid4().hex
    with door.begin(chat(MODEL, mark, stream=True), x_request_id=request_id) as connection:
        upstream.wait(mark)
        if scenario in ("content_then_silence", "late_silence"):
            assert connection.read_head().status == 200
            found = events(connection.blocks())
            assert content_of([next(found), next(found)]) == PIECES[0]
    upstream.wait(mark, "aborted")
    row = gateway.row(request_id)
    assert (row["status"], row["complete"], row["stream"]) == (499, 0, 1)
    assert row["error_code"] == "client_closed_request"
    if scenario in ("content_then_silence", "late_silence"):
        assert row["usage_source"] == "estimated"
        assert row["output_tokens"] > 0, "the partial answer has cost something"


def test_a_client_that_breaks_off_while_sending_leaves_no_trace_upstream(door: Door, upstream: Upstream) -> None:
    mark = upstream.plan("ok")
    with Connection(door.port) as connection:
        connection.send(
            head("POST", "/v1/chat/completions", door.headers(b"", {"content-length": "5000"})) + b'{"model": "'
        )
    assert door.chat(MODEL, mark).status == 200
    assert len(upstream.seen(mark)) == 1


def test_a_client_that_leaves_in_the_middle_of_a_flood_stops_it(
    door: Door, gateway: Gateway, upstream: Upstream
) -> None:
    mark = upstream.plan("flood")
    request_id = uuid.uuid4().hex
    with door.begin(chat(MODEL, mark, stream=True), x_request_id=request_id) as connection:
        blocks = connection.blocks()
        assert connection.read_head().status == 200
        for _ in range(5):
            next(blocks)
    [seen] = upstream.wait(mark, "aborted")
    assert seen.sent < FLOOD_EVENTS * FLOOD_EVENT_BYTES / 2
    assert gateway.row(request_id)["status"] == 499


def test_a_client_that_does_not_read_costs_no_memory(door: Door, gateway: Gateway, upstream: Upstream) -> None:
    """The upstream offers 67 MB; with backpressure both ways it can only get rid of what the sockets hold."""
    warm_up(door, upstream)
    before = gateway.memory()
    mark = upstream.plan("flood")
    with door.begin(chat(MODEL, mark, stream=True), receive_buffer=64 * 1024) as connection:
        assert connection.read_head().status == 200
        sent = settled(upstream, mark)
        assert sent < 30 * MEBIBYTE, "the gateway reads ahead of its client"
        assert gateway.memory() - before < 20 * MEBIBYTE
        found = list(events(connection.blocks()))
    assert found[-1] == "[DONE]"
    assert len(content_of(found)) > 60 * MEBIBYTE
    assert gateway.memory() - before < 20 * MEBIBYTE


def warm_up(door: Door, upstream: Upstream) -> None:
    """Let the server take the memory that it takes once."""
    for scenario in ("ok", "huge_event", "ok"):
        reply, blocks = door.stream(MODEL, upstream.plan(scenario))
        assert reply.status == 200
        assert blocks[-1] == "data: [DONE]"


def settled(upstream: Upstream, mark: str) -> int:
    """The bytes that the upstream could send before nobody took any more: the figure has stopped growing."""
    seen = [-1] * 25

    def still() -> int:
        seen.append(upstream.seen(mark)[0].sent)
        return seen[-1] if seen[-1] > 0 and len(set(seen[-25:])) == 1 else 0

    return eventually(still, "the flood to stop")


def test_a_server_told_to_stop_finishes_its_streams_and_writes_its_records(tmp_path: Path, upstream: Upstream) -> None:
    with running_gateway(tmp_path, upstream) as gateway:
        mark = upstream.plan("content_then_silence")
        request_id = uuid.uuid4().hex
        with gateway.door.begin(chat(MODEL, mark, stream=True), x_request_id=request_id) as connection:
            assert connection.read_head().status == 200
            found = events(connection.blocks())
            begun = [next(found), next(found)]
            gateway.terminate()
            eventually(lambda: not accepts(gateway.door), "the door to close")
            upstream.release(mark)
            rest = list(found)
        assert content_of(begun + rest) == TEXT
        assert rest[-1] == "[DONE]"
        assert gateway.wait() == 0
        [row] = gateway.rows(request_id)
        assert (row["status"], row["complete"], row["output_tokens"]) == (200, 1, 7)


def test_a_stream_that_outlasts_the_drain_is_cut_off_with_an_honest_error(tmp_path: Path, upstream: Upstream) -> None:
    with running_gateway(tmp_path, upstream, server={"drain_seconds": 1}) as gateway:
        mark = upstream.plan("content_then_silence")
        request_id = uuid.uuid4().hex
        with gateway.door.begin(chat(MODEL, mark, stream=True), x_request_id=request_id) as connection:
            assert connection.read_head().status == 200
            found = events(connection.blocks())
            begun = [next(found), next(found)]
            gateway.terminate()
            rest = list(found)
        assert content_of(begun) == PIECES[0]
        assert [envelope(one)["code"] for one in rest] == ["draining"]
        upstream.wait(mark, "aborted")
        assert gateway.wait() == 0
        [row] = gateway.rows(request_id)
        assert (row["complete"], row["error_code"]) == (0, "draining")


def accepts(door: Door) -> bool:
    """Whether new requests are still taken: the port answers, with anything but 503."""
    try:
        with Connection(door.port) as connection:
            connection.send(head("GET", "/v1/models", door.headers(None)))
            return connection.read("GET").status != 503
    except (ConnectionError, AssertionError):
        return False


def test_a_killed_server_starts_again_and_its_records_are_neither_doubled_nor_spoilt(
    tmp_path: Path, upstream: Upstream
) -> None:
    with running_gateway(tmp_path, upstream) as gateway:
        ids = [uuid.uuid4().hex for _ in range(30)]
        mark = upstream.plan("ok")
        for request_id in ids:
            assert gateway.door.post(chat(MODEL, mark), x_request_id=request_id).status == 200
        for request_id in ids[:20]:
            gateway.row(request_id)
        gateway.kill()
        gateway.start()
        last = uuid.uuid4().hex
        assert gateway.door.post(chat(MODEL, mark), x_request_id=last).status == 200, "the key still works"
        gateway.row(last)
        recorded = [row["request_id"] for row in gateway.rows()]
        assert len(recorded) == len(set(recorded)), "a record is there twice"
        assert set(ids[:20]) | {last} <= set(recorded) <= set(ids) | {last}
