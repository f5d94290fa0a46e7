"""More calls than the gateway is to carry: a short queue by priority, then an honest 503."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.door import Door, chat
from tests.gateway import MODEL, Gateway, eventually, running_gateway
from tests.upstream.process import Upstream


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Gateway]:
    """A gateway with one place and a queue for one."""
    changes = {"admission": {"max_concurrent": 1, "max_queue": 1, "max_wait_ms": 20_000}}
    with running_gateway(tmp_path_factory.mktemp("crowded"), upstream, **changes) as running:
        yield running


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Gateway]:
    """A gateway with one place, where nobody waits longer than a twentieth of a second."""
    changes = {"admission": {"max_concurrent": 1, "max_queue": 9, "max_wait_ms": 50}}
    with running_gateway(tmp_path_factory.mktemp("impatient"), upstream, **changes) as running:
        yield running


def test_what_finds_no_place_in_time_gets_503_and_is_recorded(impatient: Gateway, upstream: Upstream) -> None:
    held, mark = upstream.plan("slow_first_byte"), upstream.plan("ok")
    with impatient.door.begin(chat(MODEL, held)):
        upstream.wait(held)
        refused = impatient.door.chat(MODEL, mark)
        assert (refused.status, refused.error["code"]) == (503, "overloaded")
        assert refused.error["type"] == "service_unavailable_error"
        assert refused.header("retry-after") == "1"
        assert upstream.seen(mark) == []
        row = impatient.row(refused.header("x-request-id") or "")
        assert (row["status"], row["error_code"], row["attempts"]) == (503, "overloaded", 0)
    eventually(lambda: impatient.door.chat(MODEL, mark).status == 200, "the place of the client that hung up")


def test_a_refused_call_takes_nothing_from_its_budget(impatient: Gateway, upstream: Upstream) -> None:
    held, mark = upstream.plan("slow_first_byte"), upstream.plan("ok")
    one = Door(impatient.port, impatient.new_key("limited", "--limit", "1 requests/day"))
    with impatient.door.begin(chat(MODEL, held)):
        upstream.wait(held)
        for _ in range(3):
            assert one.chat(MODEL, mark).status == 503
    eventually(lambda: one.chat(MODEL, mark).status == 200, "a place")
    assert one.chat(MODEL, mark).status == 429


def test_a_stream_keeps_its_place_until_its_end(impatient: Gateway, upstream: Upstream) -> None:
    mark = upstream.plan("ok")
    for _ in range(3):
        impatient.door.stream(MODEL, mark)
    silent = upstream.plan("content_then_silence")
    with impatient.door.begin(chat(MODEL, silent, stream=True)) as connection:
        upstream.wait(silent)
        assert connection.read_head().status == 200
        assert impatient.door.chat(MODEL, mark).status == 503
    eventually(lambda: impatient.door.chat(MODEL, mark).status == 200, "the place of the stream")


def test_a_call_that_waits_gets_the_place_and_one_that_hangs_up_leaves_the_queue(
    crowded: Gateway, upstream: Upstream
) -> None:
    held, left, mark = upstream.plan("slow_first_byte"), upstream.plan("ok"), upstream.plan("ok")
    with crowded.door.begin(chat(MODEL, held)) as first:
        upstream.wait(held)
        with crowded.door.begin(chat(MODEL, left)):
            eventually(lambda: queued(crowded) == 1, "the call to wait")
            refused = crowded.door.chat(MODEL, mark)
            assert (refused.status, refused.error["code"]) == (503, "overloaded")
        eventually(lambda: queued(crowded) == 0, "the call to leave the queue")
        with crowded.door.begin(chat(MODEL, mark)) as second:
            eventually(lambda: queued(crowded) == 1, "the call to wait")
            assert upstream.seen(mark) == []
            upstream.release(held)
            assert (first.read().status, second.read().status) == (200, 200)
    assert upstream.seen(left) == []


def queued(gateway: Gateway) -> int:
    return sum(gateway.door.call("GET", "/ready").json["admission"]["queued"].values())
