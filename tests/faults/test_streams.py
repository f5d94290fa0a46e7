"""Upstream faults in a streamed answer, before and after its first content: the commit point decides what the client gets."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from tests.door import Connection, Door, Reply, chat, content_of, envelope, events
from tests.gateway import MODEL, PAIR, REFUSED, Gateway
from tests.upstream.process import Upstream
from tests.upstream.script import CONTENT, PIECES, ROLE, TEXT, sse, stream_head

EARLY: list[tuple[str, int, set[str]]] = [
    ("early_malformed_event", 502, {"upstream_invalid_response"}),
    ("early_error_event", 502, {"upstream_error"}),
    ("early_named_error_event", 502, {"upstream_error"}),
    ("early_no_finish", 502, {"upstream_truncated_stream"}),
    ("early_done_without_finish", 502, {"upstream_truncated_stream"}),
    ("early_cut", 502, {"upstream_connection_lost"}),
    ("early_cut_in_event", 502, {"upstream_connection_lost"}),
    ("early_reset", 502, {"upstream_connection_lost"}),
    ("reset_after_head", 502, {"upstream_connection_lost"}),
    ("reset_before_reply", 502, {"upstream_connection_lost"}),
    ("close_before_reply", 502, {"upstream_connection_lost"}),
    ("not_http", 502, {"upstream_invalid_response"}),
    ("chunked", 502, {"upstream_invalid_response", "upstream_truncated_stream"}),
    ("html_200", 502, {"upstream_invalid_response", "upstream_truncated_stream"}),
    ("empty_200", 502, {"upstream_invalid_response", "upstream_truncated_stream"}),
    ("malformed_json", 502, {"upstream_invalid_response", "upstream_truncated_stream"}),
    ("status_400", 400, {"upstream_400"}),
    ("status_401", 502, {"upstream_auth_failed"}),
    ("status_404", 404, {"upstream_404"}),
    ("status_422", 422, {"upstream_422"}),
    ("status_429", 429, {"upstream_429"}),
    ("status_500", 502, {"upstream_error"}),
    ("status_503", 503, {"upstream_503"}),
    ("status_529", 503, {"upstream_529"}),
    ("html_500", 502, {"upstream_error"}),
    ("empty_503", 503, {"upstream_unavailable"}),
]
LATE: list[tuple[str, str]] = [
    ("late_malformed_event", "upstream_invalid_response"),
    ("late_error_event", "upstream_error"),
    ("late_named_error_event", "upstream_error"),
    ("late_no_finish", "upstream_truncated_stream"),
    ("late_done_without_finish", "upstream_truncated_stream"),
    ("late_cut", "upstream_connection_lost"),
    ("late_cut_in_event", "upstream_connection_lost"),
]
"""Without `late_reset`: a reset may overtake the content before it, and then the fault is an early one."""


def ask(door: Door, model: str, mark: str, **parameters: Any) -> tuple[Reply, list[Any], str]:
    """Ask for a stream; return its head (or whole error reply), its events and the request id."""
    request_id = f"stream-{uuid.uuid4().hex}"
    with door.begin(chat(model, mark, stream=True, **parameters), x_request_id=request_id) as connection:
        reply = connection.read_head()
        assert reply.header("x-request-id") == request_id
        if reply.status != 200:
            body = connection.file.read(int(reply.header("content-length") or 0))
            return Reply(reply.status, reply.headers, body), [], request_id
        assert (reply.header("content-type") or "").startswith("text/event-stream")
        return reply, list(events(connection.blocks())), request_id


@pytest.mark.parametrize(("scenario", "status", "codes"), EARLY, ids=[fault[0] for fault in EARLY])
def test_a_fault_before_the_first_content_gets_its_true_status(
    door: Door, gateway: Gateway, upstream: Upstream, scenario: str, status: int, codes: set[str]
) -> None:
    reply, _, request_id = ask(door, MODEL, upstream.plan(scenario))
    assert reply.status == status, reply
    assert reply.error["code"] in codes
    assert reply.header("x-hortator-attempts") == "1"
    if status in (429, 503):
        assert reply.header("retry-after") == "7"
        assert reply.header("x-ratelimit-remaining-requests") == "0"
    row = gateway.row(request_id)
    assert (row["status"], row["stream"], row["complete"], row["attempts"]) == (status, 1, 0, 1)
    assert row["error_code"] in codes


@pytest.mark.parametrize("scenario", [fault[0] for fault in EARLY if fault[0] not in ("status_400", "status_422")])
def test_a_fault_before_the_first_content_sends_the_call_to_another_deployment(
    door: Door, gateway: Gateway, upstream: Upstream, scenario: str
) -> None:
    reply, found, request_id = ask(door, PAIR, upstream.plan(one=scenario, two="ok"))
    assert reply.status == 200
    assert (reply.header("x-hortator-attempts"), reply.header("x-hortator-model")) == ("2", "two/scripted")
    assert (content_of(found), found[-1]) == (TEXT, "[DONE]")
    roles = [chunk["choices"][0]["delta"].get("role") for chunk in found[:-1]]
    assert roles.count("assistant") == 1, "nothing of the failed attempt may show"
    row = gateway.row(request_id)
    assert (row["status"], row["error_code"], row["attempts"], row["complete"]) == (200, None, 2, 1)
    assert (row["provider"], row["input_tokens"], row["output_tokens"]) == ("two", 11, 7)


def test_a_refused_connection_gets_its_true_status(door: Door, upstream: Upstream) -> None:
    reply, _, _ = ask(door, REFUSED, upstream.plan("ok"))
    assert (reply.status, reply.error["code"]) == (502, "upstream_connect_failed")


@pytest.mark.parametrize("model", [MODEL, PAIR])
@pytest.mark.parametrize(("scenario", "code"), LATE, ids=[fault[0] for fault in LATE])
def test_a_fault_after_the_first_content_is_an_error_event_and_never_a_clean_end(
    door: Door, gateway: Gateway, upstream: Upstream, scenario: str, code: str, model: str
) -> None:
    mark = upstream.plan(one=scenario, two="ok")
    reply, found, request_id = ask(door, model, mark)
    assert (reply.status, reply.header("x-hortator-attempts")) == (200, "1")
    assert content_of(found[:-1]) == PIECES[0], "what came before the fault is not lost, and nothing is sent twice"
    assert envelope(found[-1])["code"] == code
    assert "[DONE]" not in found
    assert [one.provider for one in upstream.seen(mark)] == ["one"], "a committed answer is never asked for again"
    row = gateway.row(request_id)
    assert (row["status"], row["error_code"], row["complete"], row["attempts"]) == (200, code, 0, 1)
    assert row["usage_source"] == "estimated"
    assert row["output_tokens"] > 0, "a partial answer is recorded as partial"


@pytest.mark.parametrize("model", [MODEL, PAIR])
@pytest.mark.parametrize("fault", ["reset", "close"])
def test_a_fault_long_after_the_content_was_read_is_an_error_event(
    door: Door, upstream: Upstream, fault: str, model: str
) -> None:
    mark = upstream.plan(one=[stream_head(), *sse(ROLE, CONTENT[0]), ["gate", "go"], [fault]], two="ok")
    with door.begin(chat(model, mark, stream=True)) as connection:
        assert connection.read_head().status == 200
        blocks = connection.blocks()
        seen = [next(blocks), next(blocks)]
        upstream.release(mark)
        found = [*events(iter(seen)), *events(blocks)]
    assert content_of(found[:-1]) == PIECES[0]
    assert envelope(found[-1])["code"] == "upstream_connection_lost"


def test_content_reaches_the_client_while_the_upstream_still_works(door: Door, upstream: Upstream) -> None:
    mark = upstream.plan("content_then_silence")
    with door.begin(chat(MODEL, mark, stream=True)) as connection:
        assert connection.read_head().status == 200
        found = events(connection.blocks())
        assert next(found)["choices"][0]["delta"]["role"] == "assistant"
        assert next(found)["choices"][0]["delta"]["content"] == PIECES[0]
        assert upstream.seen(mark)[0].state == "open"
        upstream.release(mark)
        rest = list(found)
    assert (content_of(rest), rest[-1]) == ("".join(PIECES[1:]), "[DONE]")


def test_the_connection_is_sane_after_a_stream_and_after_a_broken_one(door: Door, upstream: Upstream) -> None:
    with Connection(door.port) as connection:
        for scenario in ("ok", "late_cut", "early_cut", "late_error_event", "ok"):
            connection.send(door.raw(json.dumps(chat(MODEL, upstream.plan(scenario), stream=True)).encode()))
            reply = connection.read()
            assert reply.status == (502 if scenario == "early_cut" else 200)
            if reply.header("connection") == "close":
                break
            assert (b"data: [DONE]\n\n" in reply.body) == (scenario == "ok")


def test_streamed_calls_are_recorded_with_their_usage(door: Door, gateway: Gateway, upstream: Upstream) -> None:
    for scenario, tokens in (
        ("ok", (11, 7, None, None)),
        ("reasoning", (100, 40, 64, 30)),
        ("usage_in_last_chunk", (100, 40, 64, 30)),
    ):
        _, found, request_id = ask(door, MODEL, upstream.plan(scenario))
        assert found[-1] == "[DONE]"
        row = gateway.row(request_id)
        assert (row["input_tokens"], row["output_tokens"], row["cached_tokens"], row["reasoning_tokens"]) == tokens
        assert (row["usage_source"], row["complete"], row["status"], row["error_code"]) == ("reported", 1, 200, None)
        assert row["first_byte_ms"] is not None
        assert row["first_byte_ms"] <= row["latency_ms"]


def test_streamed_usage_that_nobody_reported_is_estimated_and_said_to_be(
    door: Door, gateway: Gateway, upstream: Upstream
) -> None:
    _, found, request_id = ask(door, MODEL, upstream.plan("no_usage"))
    assert found[-1] == "[DONE]"
    row = gateway.row(request_id)
    assert row["usage_source"] == "estimated"
    assert row["output_tokens"] > 0
    assert row["input_tokens"] != 0


@pytest.mark.parametrize("asked", [None, False, True])
def test_the_usage_chunk_is_for_those_who_ask_but_the_upstream_is_always_asked(
    door: Door, upstream: Upstream, asked: bool | None
) -> None:
    mark = upstream.plan("ok")
    options = {} if asked is None else {"stream_options": {"include_usage": asked, "include_obfuscation": False}}
    _, found, _ = ask(door, MODEL, mark, **options)
    sent = upstream.wait(mark)[0].json["stream_options"]
    assert sent["include_usage"] is True
    assert asked is None or sent["include_obfuscation"] is False, "the client's other options survive"
    with_usage = [chunk for chunk in found[:-1] if chunk.get("usage")]
    assert len(with_usage) == (1 if asked else 0)
    if asked:
        assert (found[-2]["choices"], found[-2]["usage"]["total_tokens"]) == ([], 18)
    else:
        assert all(chunk["choices"] for chunk in found[:-1]), "a chunk without choices breaks clients that did not ask"


def test_whole_answers_are_not_asked_for_stream_options(door: Door, upstream: Upstream) -> None:
    mark = upstream.plan("ok")
    assert door.chat(MODEL, mark).status == 200
    assert "stream_options" not in upstream.wait(mark)[0].json
