"""Upstreams that keep silent: each kind of waiting ends with an error of its own, and the client hears comments meanwhile."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.door import Door, chat, content_of, envelope, events
from tests.gateway import MODEL, PAIR, UNREACHABLE, Gateway, running_gateway
from tests.upstream.process import Upstream
from tests.upstream.script import PIECES, TEXT


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Gateway]:
    """A gateway that gives up on a silent upstream after less than a second."""
    timeouts = {"connect_ms": 600, "first_byte_ms": 700, "idle_ms": 700, "total_ms": 60_000}
    with running_gateway(tmp_path_factory.mktemp("impatient"), upstream, timeouts=timeouts) as running:
        yield running


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Gateway]:
    """A gateway that opens its streams at once and says soon that it is alive; a request may take three seconds in all."""
    with running_gateway(
        tmp_path_factory.mktemp("chatty"),
        upstream,
        timeouts={"total_ms": 3_000},
        stream={"status_wait_ms": 50, "keep_alive_ms": 100},
    ) as running:
        yield running


WAITS = [
    (UNREACHABLE, "ok", "upstream_connect_timeout"),
    (MODEL, "hang", "upstream_first_byte_timeout"),
    (MODEL, "half_body_then_silence", "upstream_idle_timeout"),
]


@pytest.mark.parametrize(("model", "scenario", "code"), WAITS)
def test_each_kind_of_waiting_ends_with_its_own_error(
    impatient: Gateway, upstream: Upstream, model: str, scenario: str, code: str
) -> None:
    request_id = uuid.uuid4().hex
    mark = upstream.plan(scenario)
    reply = impatient.door.post(chat(model, mark), x_request_id=request_id)
    assert (reply.status, reply.error["code"]) == (504, code)
    row = impatient.row(request_id)
    assert (row["status"], row["error_code"], row["complete"]) == (504, code, 0)
    if model == MODEL:
        upstream.wait(mark, "aborted")


@pytest.mark.parametrize("scenario", ["hang", "half_body_then_silence"])
def test_another_deployment_answers_for_a_silent_one(impatient: Gateway, upstream: Upstream, scenario: str) -> None:
    mark = upstream.plan(one=scenario, two="ok")
    reply = impatient.door.chat(PAIR, mark)
    assert (reply.status, reply.text, reply.header("x-hortator-attempts")) == (200, TEXT, "2")
    assert [one.provider for one in upstream.wait(mark, "aborted")] == ["one"]


def test_a_stream_that_falls_silent_before_its_content_gets_a_true_status(
    impatient: Gateway, upstream: Upstream
) -> None:
    reply, _ = impatient.door.stream(MODEL, upstream.plan("early_silence"))
    assert (reply.status, reply.error["code"]) == (504, "upstream_idle_timeout")


def test_a_stream_that_falls_silent_after_its_content_ends_with_an_error_event(
    impatient: Gateway, upstream: Upstream
) -> None:
    mark = upstream.plan("late_silence")
    reply, blocks = impatient.door.stream(MODEL, mark)
    found = list(events(iter(blocks)))
    assert (reply.status, content_of(found[:-1])) == (200, PIECES[0])
    assert envelope(found[-1])["code"] == "upstream_idle_timeout"
    upstream.wait(mark, "aborted")


def test_the_whole_request_has_a_time_limit(chatty: Gateway, upstream: Upstream) -> None:
    mark = upstream.plan("hang")
    reply = chatty.door.chat(PAIR, mark)
    assert (reply.status, reply.error["code"]) == (504, "upstream_total_timeout")
    assert len(upstream.wait(mark, "aborted")) == 1, "no time is left for another deployment"


def test_the_whole_stream_has_a_time_limit_even_when_it_lives(chatty: Gateway, upstream: Upstream) -> None:
    mark = upstream.plan("late_silence")
    _, blocks = chatty.door.stream(MODEL, mark)
    found = list(events(iter(blocks)))
    assert envelope(found[-1])["code"] == "upstream_total_timeout"
    upstream.wait(mark, "aborted")


def test_the_wait_for_a_provider_is_not_told_as_the_gateways_overhead(gateway: Gateway, upstream: Upstream) -> None:
    """R-004-4. The stream opens because the wait for its status, 2 s, is over."""
    mark = upstream.plan("slow_first_byte")
    with gateway.door.begin(chat(MODEL, mark, stream=True)) as connection:
        opened = connection.read_head()
        upstream.release(mark)
        assert opened.status == 200
        assert 0 < float(opened.header("x-hortator-overhead-ms") or 0) < 2_000


def test_a_silent_upstream_does_not_keep_the_stream_closed(chatty: Gateway, upstream: Upstream) -> None:
    """R-000-43, C-17: the stream opens with a comment, comments follow, then the content, as if nothing had been."""
    mark = upstream.plan("slow_first_byte")
    with chatty.door.begin(chat(MODEL, mark, stream=True)) as connection:
        assert connection.read_head().status == 200
        blocks = connection.blocks()
        opening = next(blocks)
        assert opening.startswith(":")
        assert [next(blocks), next(blocks)] == [": keep-alive"] * 2
        upstream.release(mark)
        found = list(events(blocks))
    assert (content_of(found), found[-1]) == (TEXT, "[DONE]")


@pytest.mark.parametrize("scenario", ["role_then_silence", "content_then_silence"])
def test_comments_fill_the_silence_within_a_stream(chatty: Gateway, upstream: Upstream, scenario: str) -> None:
    mark = upstream.plan(scenario)
    with chatty.door.begin(chat(MODEL, mark, stream=True)) as connection:
        assert connection.read_head().status == 200
        blocks = connection.blocks()
        seen: list[str] = []
        while seen.count(": keep-alive") < 3:
            seen.append(next(blocks))
        upstream.release(mark)
        found = list(events(iter([*seen, *blocks])))
    assert (content_of(found), found[-1]) == (TEXT, "[DONE]")


def test_an_error_after_the_status_line_is_an_error_event(chatty: Gateway, upstream: Upstream) -> None:
    mark = upstream.plan("slow_500")
    request_id = uuid.uuid4().hex
    with chatty.door.begin(chat(MODEL, mark, stream=True), x_request_id=request_id) as connection:
        assert connection.read_head().status == 200
        blocks = connection.blocks()
        assert next(blocks).startswith(":")
        upstream.release(mark)
        found = list(events(blocks))
    assert [envelope(one)["code"] for one in found] == ["upstream_error"]
    row = chatty.row(request_id)
    assert (row["error_code"], row["complete"]) == ("upstream_error", 0)


def test_another_deployment_may_still_answer_after_the_status_line(chatty: Gateway, upstream: Upstream) -> None:
    mark = upstream.plan(one="slow_500", two="ok")
    with chatty.door.begin(chat(PAIR, mark, stream=True)) as connection:
        assert connection.read_head().status == 200
        blocks = connection.blocks()
        assert next(blocks).startswith(":")
        upstream.release(mark)
        found = list(events(blocks))
    assert (content_of(found), found[-1]) == (TEXT, "[DONE]")


def test_an_error_within_the_wait_keeps_its_status(door: Door, upstream: Upstream) -> None:
    """The wait of a directly named model is 2 seconds."""
    reply, _ = door.stream(MODEL, upstream.plan("status_429"))
    assert (reply.status, reply.header("retry-after")) == (429, "7")
