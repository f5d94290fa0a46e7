"""Upstream faults behind an answer that comes in one piece: what the client gets, what is tried, what is recorded."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.door import Door, Reply, chat
from tests.gateway import CANARIES, MODEL, PAIR, REFUSED, Gateway
from tests.upstream.process import Upstream
from tests.upstream.script import RATE_HEADERS, TEXT, completion, dump
from tests.upstream.script import reply as whole

AGAIN = {"retry-after": "7", **RATE_HEADERS}

FAULTS: list[tuple[str, int, str, dict[str, str]]] = [
    ("status_400", 400, "upstream_400", {}),
    ("status_401", 502, "upstream_auth_failed", {}),
    ("status_403", 502, "upstream_auth_failed", {}),
    ("status_404", 404, "upstream_404", {}),
    ("status_409", 409, "upstream_409", {}),
    ("status_413", 413, "upstream_413", {}),
    ("status_422", 422, "upstream_422", {}),
    ("status_429", 429, "upstream_429", AGAIN),
    ("status_500", 502, "upstream_error", {}),
    ("status_502", 502, "upstream_error", {}),
    ("status_503", 503, "upstream_503", AGAIN),
    ("status_504", 504, "upstream_504", {}),
    ("status_529", 503, "upstream_529", AGAIN),
    ("html_400", 400, "upstream_refused", {}),
    ("html_429", 429, "rate_limit_exceeded", AGAIN),
    ("html_500", 502, "upstream_error", {}),
    ("html_503", 503, "upstream_unavailable", AGAIN),
    ("empty_401", 502, "upstream_auth_failed", {}),
    ("empty_429", 429, "rate_limit_exceeded", AGAIN),
    ("empty_500", 502, "upstream_error", {}),
    ("empty_503", 503, "upstream_unavailable", AGAIN),
    ("error_in_200", 502, "upstream_error", {}),
    ("reset_before_reply", 502, "upstream_connection_lost", {}),
    ("close_before_reply", 502, "upstream_connection_lost", {}),
    ("reset_after_head", 502, "upstream_connection_lost", {}),
    ("truncated_body", 502, "upstream_connection_lost", {}),
    ("cut_chunked", 502, "upstream_connection_lost", {}),
    ("not_http", 502, "upstream_invalid_response", {}),
    ("malformed_json", 502, "upstream_invalid_response", {}),
    ("html_200", 502, "upstream_invalid_response", {}),
    ("empty_200", 502, "upstream_invalid_response", {}),
    ("json_array", 502, "upstream_invalid_response", {}),
    ("no_choices", 502, "upstream_invalid_response", {}),
    ("invalid_utf8", 502, "upstream_invalid_response", {}),
]
CALLERS_FAULT = {"status_400", "html_400", "status_413", "status_422"}
"""What another deployment would refuse as well: the request itself is at fault."""

STALE = {"reset_before_reply", "close_before_reply"}
"""What looks like a stale pooled connection: it is tried once more on a fresh one, within the same attempt."""


def ask(door: Door, model: str, mark: str, **parameters: Any) -> tuple[Reply, str]:
    """Ask for a completion; return the reply and its request id."""
    given = f"fault-{uuid.uuid4().hex}"
    reply = door.post(chat(model, mark, **parameters), x_request_id=given)
    assert reply.header("x-request-id") == given
    return reply, given


@pytest.mark.parametrize(("scenario", "status", "code", "headers"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_fault_becomes_an_error_that_tells_the_truth_and_is_recorded(
    door: Door, gateway: Gateway, upstream: Upstream, scenario: str, status: int, code: str, headers: dict[str, str]
) -> None:
    mark = upstream.plan(scenario)
    reply, request_id = ask(door, MODEL, mark)
    assert (reply.status, reply.error["code"]) == (status, code), reply
    assert reply.error["type"] == {
        429: "rate_limit_error",
        502: "upstream_error",
        503: "service_unavailable_error",
        504: "upstream_error",
    }.get(status, "invalid_request_error")
    assert {name: reply.header(name) for name in AGAIN} == {name: headers.get(name) for name in AGAIN}
    assert reply.header("x-hortator-attempts") == "1"
    assert reply.header("x-hortator-model") == MODEL
    row = gateway.row(request_id)
    assert (row["status"], row["error_code"], row["attempts"]) == (status, code, 1)
    assert (row["complete"], row["stream"], row["model_asked"], row["provider"]) == (0, 0, MODEL, "one")
    assert row["cost"] in (None, 0), "nothing was answered, nothing is charged"
    assert len(upstream.seen(mark)) in ((1, 2) if scenario in STALE else (1,))


@pytest.mark.parametrize("scenario", [fault[0] for fault in FAULTS])
def test_another_deployment_answers_unless_the_request_itself_is_at_fault(
    door: Door, gateway: Gateway, upstream: Upstream, scenario: str
) -> None:
    mark = upstream.plan(one=scenario, two="ok")
    reply, request_id = ask(door, PAIR, mark)
    row = gateway.row(request_id)
    if scenario in CALLERS_FAULT:
        assert reply.status in (400, 413, 422)
        assert reply.header("x-hortator-attempts") == "1"
        assert upstream.seen(mark)[-1].provider == "one"
        return
    assert (reply.status, reply.text) == (200, TEXT)
    assert reply.header("x-hortator-attempts") == "2"
    assert reply.header("x-hortator-model") == "two/scripted"
    assert reply.header("retry-after") is None, "the refusal of a provider that was passed over is not the client's"
    assert (row["status"], row["error_code"], row["attempts"], row["complete"]) == (200, None, 2, 1)
    assert (row["provider"], row["deployment"], row["model_asked"]) == ("two", "two/scripted", PAIR)
    assert (row["input_tokens"], row["output_tokens"], row["usage_source"]) == (11, 7, "reported")


def test_a_refused_connection_is_an_error_of_its_own_and_others_are_tried(
    door: Door, gateway: Gateway, upstream: Upstream
) -> None:
    mark = upstream.plan("ok")
    reply, request_id = ask(door, REFUSED, mark)
    assert (reply.status, reply.error["code"]) == (502, "upstream_connect_failed")
    assert gateway.row(request_id)["error_code"] == "upstream_connect_failed"
    reply, _ = ask(door, "closed-pair", mark)
    assert (reply.status, reply.header("x-hortator-attempts"), reply.header("x-hortator-model")) == (
        200,
        "2",
        "two/scripted",
    )


def test_when_every_deployment_fails_alike_its_own_error_is_told(door: Door, upstream: Upstream) -> None:
    reply, _ = ask(door, PAIR, upstream.plan("status_503"))
    assert (reply.status, reply.error["code"]) == (503, "upstream_503")
    assert (reply.header("x-hortator-attempts"), reply.header("retry-after")) == ("2", "7")


def test_when_every_deployment_fails_in_its_own_way_the_error_is_502(
    door: Door, gateway: Gateway, upstream: Upstream
) -> None:
    """R-003-10."""
    reply, request_id = ask(door, PAIR, upstream.plan(one="status_429", two="malformed_json"))
    assert (reply.status, reply.error["code"]) == (502, "all_deployments_failed")
    assert reply.header("x-hortator-attempts") == "2"
    row = gateway.row(request_id)
    assert (row["status"], row["error_code"], row["attempts"]) == (502, "all_deployments_failed", 2)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429, 500, 503])
@pytest.mark.parametrize("stream", [False, True])
def test_a_provider_that_repeats_its_key_does_not_give_it_away(
    door: Door, upstream: Upstream, status: int, stream: bool
) -> None:
    """R-003-9."""
    mark = upstream.plan(f"echo_{status}")
    reply = door.chat(MODEL, mark, stream=stream)
    assert reply.status >= 400
    shown = reply.body.decode() + str(reply.headers)
    assert not any(key in shown for key in CANARIES.values()), shown
    assert upstream.seen(mark)[0].header("authorization") == f"Bearer {CANARIES['ONE_KEY']}", (
        "the canary was really there"
    )
    assert reply.header("www-authenticate") is None


def test_a_provider_that_repeats_its_key_in_a_stream_does_not_give_it_away(door: Door, upstream: Upstream) -> None:
    _, blocks = door.stream(MODEL, upstream.plan("echo_in_stream"))
    assert '"error"' in blocks[-1]
    assert not any(key in block for key in CANARIES.values() for block in blocks)


def test_the_clients_own_key_never_goes_upstream(door: Door, upstream: Upstream) -> None:
    mark = upstream.plan("ok")
    assert door.chat(MODEL, mark).status == 200
    [seen] = upstream.wait(mark)
    assert door.key not in str(seen)


def test_a_stale_pooled_connection_is_replaced_without_the_client_noticing(door: Door, upstream: Upstream) -> None:
    """The upstream closes an idle connection just after answering on it."""
    for _ in range(5):
        answered = upstream.plan([*whole(200, dump(completion())), ["close"]])
        assert door.chat(MODEL, answered).status == 200


@pytest.mark.parametrize(
    "scenario", ["ok", "chunked", "close_delimited", "tools", "reasoning", "extra_fields", "no_usage"]
)
def test_every_well_formed_reply_is_relayed_byte_for_byte(door: Door, upstream: Upstream, scenario: str) -> None:
    mark = upstream.plan(scenario)
    reply = door.chat(MODEL, mark)
    assert reply.status == 200
    with_python = reply.json
    assert with_python["model"] == "scripted-2026-01-01"
    assert upstream.wait(mark, "finished")[0].scenario == scenario
    if scenario == "extra_fields":
        assert b'"deep":[1.0,"\xc3\xa9",12345678901234567890]' in reply.body
    if scenario in ("ok", "chunked", "close_delimited"):
        assert reply.text == TEXT


@pytest.mark.parametrize(
    ("scenario", "tokens", "source"),
    [
        ("ok", (11, 7, None, None), "reported"),
        ("reasoning", (100, 40, 64, 30), "reported"),
    ],
)
def test_usage_is_recorded_as_reported(
    door: Door, gateway: Gateway, upstream: Upstream, scenario: str, tokens: tuple[int | None, ...], source: str
) -> None:
    _, request_id = ask(door, MODEL, upstream.plan(scenario))
    row = gateway.row(request_id)
    found = (row["input_tokens"], row["output_tokens"], row["cached_tokens"], row["reasoning_tokens"])
    assert (found, row["usage_source"]) == (tokens, source)
    assert (row["complete"], row["status"], row["attempts"]) == (1, 200, 1)
    assert row["model_served"] == "scripted-2026-01-01"
    assert row["price_state"] == "unpriced"
    assert row["cost"] is None, "an unknown model has no price, not a price of 0"
    assert row["latency_ms"] >= row["overhead_ms"] >= 0


def test_usage_that_nobody_reported_is_never_recorded_as_zero(door: Door, gateway: Gateway, upstream: Upstream) -> None:
    _, request_id = ask(door, MODEL, upstream.plan("no_usage"))
    row = gateway.row(request_id)
    assert row["usage_source"] in ("estimated", "unknown")
    assert 0 not in (row["input_tokens"], row["output_tokens"])


def test_the_ledger_agrees_with_the_upstream_after_many_calls_at_once(
    door: Door, gateway: Gateway, upstream: Upstream
) -> None:
    """What was answered is recorded, once, with the tokens that the upstream counted; what was not is not charged."""
    plans = ["ok", "status_500", "late_cut", "ok", "malformed_json", "reasoning", "early_cut", "ok"] * 20
    marks = {upstream.plan(one=scenario, two="ok"): scenario for scenario in plans}

    def call(numbered: tuple[int, str]) -> tuple[str, int]:
        number, mark = numbered
        request_id = f"load-{mark}"
        with door.begin(chat(PAIR, mark, stream=number % 2 == 0), x_request_id=request_id) as connection:
            return request_id, connection.read().status

    with ThreadPoolExecutor(16) as threads:
        replies = dict(threads.map(call, enumerate(marks)))
    for mark, scenario in marks.items():
        row = gateway.row(f"load-{mark}")
        seen = upstream.seen(mark)
        assert row["status"] == replies[f"load-{mark}"] == 200
        if row["complete"]:
            answered = seen[-1].scenario
            assert answered in ("ok", "reasoning")
            tokens = (11, 7) if answered == "ok" else (100, 40)
            assert (row["input_tokens"], row["output_tokens"], row["usage_source"]) == (*tokens, "reported")
        else:
            assert scenario == "late_cut"
            assert row["usage_source"] == "estimated"
    recorded = [row for row in gateway.rows() if row["request_id"].startswith("load-")]
    assert len(recorded) == len(marks)


def test_every_call_leaves_one_record(door: Door, gateway: Gateway, upstream: Upstream) -> None:
    before = len(gateway.rows())
    marks = [
        upstream.plan(one=scenario, two="ok") for scenario in ("ok", "status_500", "status_400", "reset_before_reply")
    ]
    ids = [ask(door, PAIR, mark)[1] for mark in marks * 3]
    assert len({gateway.row(request_id)["id"] for request_id in ids}) == len(ids)
    assert len(gateway.rows()) == before + len(ids)
