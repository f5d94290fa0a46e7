"""Failures behind several deployments: second tries, breakers, fallback models, and how little an outage is multiplied."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.door import Door, Reply, chat, content_of, events
from tests.gateway import MODEL, PAIR, Gateway, eventually, running_gateway
from tests.upstream.process import Upstream
from tests.upstream.script import TEXT, Script, error_body, head, reply

ONE, TWO = ({"provider": name, "model": "scripted"} for name in ("one", "two"))
CONTEXT = reply(400, error_body("too long", "context_length_exceeded", "invalid_request_error", "messages"))
FILTER = reply(400, error_body("not this", "content_filter", "invalid_request_error"))
MODELS = [
    {"id": PAIR, "strategy": "ordered", "deployments": [ONE, TWO]},
    {"id": "alone", "deployments": [ONE]},
    {"id": "backed", "deployments": [ONE], "fallbacks": ["two/scripted"]},
    {"id": "long", "deployments": [ONE], "fallbacks": ["one/deep/name@v1"], "context_fallbacks": ["two/scripted"]},
    {"id": "frank", "deployments": [ONE], "content_fallbacks": ["two/scripted"]},
    {"id": "shared", "deployments": [ONE, TWO]},
    {"id": "parted", "strategy": "weighted", "deployments": [{**ONE, "weight": 3}, TWO]},
]


@pytest.fixture(scope="module")
def persistent(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Gateway]:
    """A gateway that tries again soon and often; failures leave nothing behind."""
    with running_gateway(
        tmp_path_factory.mktemp("persistent"), upstream, models=MODELS, retry={"delay_ms": 5, "floor": 100_000}
    ) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Gateway]:
    """A gateway whose breakers open after three failures, for half a second."""
    with running_gateway(
        tmp_path_factory.mktemp("guarded"),
        upstream,
        models=MODELS,
        breaker={"failures": 3, "open_ms": 500},
    ) as running:
        yield running


def ask(
    gateway: Gateway, model: str, mark: str, stream: bool = False, **headers: Any
) -> tuple[Reply, str, dict[str, Any]]:
    """Ask; return the reply, the text of a good answer, and the usage record."""
    request_id = uuid.uuid4().hex
    with gateway.door.begin(chat(model, mark, stream=stream), x_request_id=request_id, **headers) as connection:
        reply = connection.read_head()
        if stream and reply.status == 200:
            text = content_of(list(events(connection.blocks()))[:-1])
        else:
            reply = Reply(reply.status, reply.headers, connection.file.read(int(reply.header("content-length") or "0")))
            text = reply.text if reply.status == 200 else ""
    return reply, text, gateway.row(request_id)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["status_500", "reset_after_head", "status_504"])
def test_a_moments_failure_of_the_only_deployment_does_not_show(
    persistent: Gateway, upstream: Upstream, fault: str, stream: bool
) -> None:
    """R-001-9."""
    mark = upstream.plan(f"{fault} {fault} ok")
    got, text, row = ask(persistent, MODEL, mark, stream)
    assert (got.status, text, got.header("x-hortator-attempts")) == (200, TEXT, "3")
    assert (row["attempts"], row["status"], row["complete"], row["input_tokens"]) == (3, 200, 1, 11)
    assert len(upstream.seen(mark)) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_an_outage_costs_three_attempts_after_the_first_and_its_own_error_is_told(
    persistent: Gateway, upstream: Upstream, stream: bool
) -> None:
    """R-001-9, C-6."""
    for model, providers in (("alone", ["one"] * 4), (PAIR, ["one", "two"] * 2), ("backed", ["one"] * 3 + ["two"])):
        mark = upstream.plan("status_500")
        got, _, row = ask(persistent, model, mark, stream)
        assert (got.status, got.error["code"], got.header("x-hortator-attempts")) == (502, "upstream_error", "4")
        assert [one.provider for one in upstream.seen(mark)] == providers
        assert (row["attempts"], row["error_code"]) == (4, "upstream_error")


def test_the_attempts_are_listed_when_they_failed_in_different_ways(persistent: Gateway, upstream: Upstream) -> None:
    """R-003-10."""
    got, _, _ = ask(persistent, PAIR, upstream.plan(one="status_401", two="malformed_json"))
    assert (got.status, got.error["code"]) == (502, "all_deployments_failed")
    for part in ("one/scripted: upstream_auth_failed", "two/scripted: upstream_invalid_response"):
        assert part in got.error["message"]


@pytest.mark.parametrize(
    ("fault", "status", "count"), [("status_400", 400, 1), ("status_422", 422, 1), ("status_429", 429, 1)]
)
def test_client_errors_and_long_retry_afters_are_told_at_once(
    persistent: Gateway, upstream: Upstream, fault: str, status: int, count: int
) -> None:
    mark = upstream.plan(fault)
    got, _, _ = ask(persistent, "alone", mark)
    assert (got.status, len(upstream.seen(mark))) == (status, count)
    assert got.header("retry-after") == ("7" if status == 429 else None)


def test_a_short_retry_after_is_obeyed(persistent: Gateway, upstream: Upstream) -> None:
    busy = reply(429, error_body("slow down"), {"retry-after-ms": "30"})
    mark = upstream.plan(one=busy, two="ok")
    assert ask(persistent, PAIR, mark)[1] == TEXT, "elsewhere at once"
    mark = upstream.plan(busy)
    got, _, _ = ask(persistent, "alone", mark)
    assert (got.status, len(upstream.seen(mark))) == (429, 4)


def test_a_request_that_says_so_is_sent_once(persistent: Gateway, upstream: Upstream) -> None:
    mark = upstream.plan(one="status_500", two="ok")
    got, _, _ = ask(persistent, PAIR, mark, x_hortator_no_retry="true")
    assert (got.status, len(upstream.seen(mark))) == (502, 1)


def test_a_client_that_retries_itself_is_not_multiplied(persistent: Gateway, upstream: Upstream) -> None:
    mark = upstream.plan("status_500")
    got, _, _ = ask(persistent, PAIR, mark, x_stainless_retry_count="1")
    assert (got.status, len(upstream.seen(mark))) == (502, 2)


def test_nothing_is_sent_again_after_the_commit_point(persistent: Gateway, upstream: Upstream) -> None:
    mark = upstream.plan(one="late_cut", two="ok")
    _, blocks = persistent.door.stream(PAIR, mark)
    assert '"error"' in blocks[-1]
    assert len(upstream.seen(mark)) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_errors_of_length_and_content_go_to_the_models_made_for_them(
    persistent: Gateway, upstream: Upstream, stream: bool
) -> None:
    for model, fault in (("long", CONTEXT), ("frank", FILTER)):
        mark = upstream.plan(one=fault, two="ok")
        got, text, row = ask(persistent, model, mark, stream)
        assert (got.status, text, got.header("x-hortator-model")) == (200, TEXT, "two/scripted")
        assert (row["attempts"], row["model_asked"], row["deployment"]) == (2, model, "two/scripted")
        mark = upstream.plan(one=fault, two="ok")
        assert ask(persistent, "backed", mark, stream)[0].status == 400, "an ordinary fallback is not made for them"
        assert len(upstream.seen(mark)) == 1


def test_a_fallback_model_must_be_allowed_to_the_key(persistent: Gateway, upstream: Upstream) -> None:
    narrow = Door(persistent.port, persistent.new_key("narrow", "--models", "backed"))
    mark = upstream.plan(one="status_500", two="ok")
    assert narrow.chat("backed", mark).status == 502
    assert {one.provider for one in upstream.seen(mark)} == {"one"}
    assert persistent.door.chat("backed", upstream.plan(one="status_500", two="ok")).status == 200


def test_strategies_spread_requests_over_deployments(persistent: Gateway, upstream: Upstream) -> None:
    """R-004-3."""
    for model, expected in (("shared", (10, 10)), ("parted", (15, 5))):
        mark = upstream.plan("ok")
        for _ in range(20):
            assert persistent.door.chat(model, mark).status == 200
        seen = [one.provider for one in upstream.seen(mark)]
        assert (seen.count("one"), seen.count("two")) == expected


def test_a_session_stays_at_one_deployment(persistent: Gateway, upstream: Upstream) -> None:
    mark = upstream.plan("ok")
    homes = set()
    for number in range(12):
        by_header = [persistent.door.post(chat("shared", mark), x_hortator_session=f"s{number}") for _ in range(3)]
        by_body = [persistent.door.chat("shared", mark, prompt_cache_key=f"s{number}") for _ in range(3)]
        for replies in (by_header, by_body):
            [home] = {one.header("x-hortator-model") for one in replies}
            homes.add(home)
    assert len(homes) == 2, "and sessions spread"


@pytest.mark.parametrize("stream", [False, True])
def test_an_outage_is_not_multiplied(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, stream: bool
) -> None:
    """The global ratio, without a breaker's help: 200 requests while everything fails are 220 attempts at most."""
    with running_gateway(
        tmp_path_factory.mktemp("outage"), upstream, models=MODELS, retry={"delay_ms": 5, "floor": 5}
    ) as running:
        mark = upstream.plan("status_500")
        with ThreadPoolExecutor(16) as threads:
            replies = list(threads.map(lambda _: ask(running, "alone", mark, stream)[0], range(200)))
        assert {one.status for one in replies} == {502}
        count = len(upstream.seen(mark))
        assert 205 <= count <= 220, "a tenth more at most"
        assert sum(int(one.header("x-hortator-attempts") or "0") for one in replies) == count


def test_a_breaker_opens_tells_so_and_lets_traffic_back(guarded: Gateway, upstream: Upstream) -> None:
    """R-001-8."""
    failing = upstream.plan(one="status_500", two="ok")
    for _ in range(6):
        assert guarded.door.chat(PAIR, failing).status == 200
    seen = [one.provider for one in upstream.seen(failing)]
    assert seen.count("one") in (3, 4), "three failures, and perhaps a probe"
    assert ready(guarded)["one/scripted"]["state"] in ("open", "half-open")
    well = upstream.plan("ok")
    eventually(
        lambda: guarded.door.chat(PAIR, well).header("x-hortator-model") == "one/scripted", "traffic to come back"
    )
    assert ready(guarded)["one/scripted"] | {"latency_ms": 0} == {
        "state": "closed",
        "in_flight": 0,
        "failures": 0,
        "retry_in": 0.0,
        "latency_ms": 0,
    }


def test_the_last_deployment_is_never_removed(guarded: Gateway, upstream: Upstream) -> None:
    """However broken it is, the client sees what the provider says, with its Retry-After."""
    for stream in (False, True):
        failing = upstream.plan("status_503")
        for _ in range(10):
            got, _, row = ask(guarded, "alone", failing, stream)
            assert (got.status, got.error["code"], got.header("retry-after")) == (503, "upstream_503", "7")
            assert row["attempts"] == 1
        assert len(upstream.seen(failing)) == 10
        failing = upstream.plan("status_503")
        for _ in range(4):
            assert ask(guarded, PAIR, failing, stream)[0].error["code"] == "upstream_503"
        assert len(upstream.seen(failing)) >= 4


@pytest.mark.parametrize("scenario", ["hang", "role_then_silence", "content_then_silence", "half_body_then_silence"])
def test_a_client_that_hangs_up_leaves_nothing_in_flight_and_no_failure(
    guarded: Gateway, upstream: Upstream, scenario: str
) -> None:
    for stream in (False, True):
        marks = [upstream.plan(scenario) for _ in range(5)]
        for mark in marks:
            with guarded.door.begin(chat("two/scripted", mark, stream=stream)):
                upstream.wait(mark)
            upstream.wait(mark, "aborted")
    eventually(lambda: ready(guarded)["two/scripted"].get("in_flight") == 0, "every attempt to end")
    assert guarded.door.chat(PAIR, upstream.plan("ok")).status == 200
    assert ready(guarded)["two/scripted"]["state"] == "closed"


def ready(gateway: Gateway) -> dict[str, Any]:
    """What `/ready` says about deployments."""
    document = gateway.door.call("GET", "/ready").json
    deployments: dict[str, Any] = document["deployments"]
    return deployments


@pytest.mark.parametrize(
    ("switch", "model", "count", "status"),
    [
        ("hortator_retry", PAIR, 1, 502),
        ("hortator_retry", "alone", 1, 502),
        ("hortator_retry", "backed", 1, 502),
        ("hortator_fallback", "backed", 4, 502),
        ("hortator_fallback", PAIR, 2, 200),
    ],
)
def test_a_body_that_says_so_is_not_sent_again_or_to_another_model(
    persistent: Gateway, upstream: Upstream, switch: str, model: str, count: int, status: int
) -> None:
    mark = upstream.plan(one="status_500", two="ok")
    got = persistent.door.chat(model, mark, **{switch: False})
    seen = upstream.seen(mark)
    assert (got.status, len(seen)) == (status, count)
    assert all(switch not in one.json for one in seen), "it is ours and not the provider's"


def test_a_body_without_fallback_keeps_errors_of_length_and_content(persistent: Gateway, upstream: Upstream) -> None:
    for model, fault in (("long", CONTEXT), ("frank", FILTER)):
        mark = upstream.plan(one=fault, two="ok")
        assert persistent.door.chat(model, mark, hortator_fallback=False).status == 400
        mark = upstream.plan(one=fault, two="ok")
        assert persistent.door.chat(model, mark, hortator_fallback=True).status == 200
    wrong = persistent.door.chat("alone", upstream.plan("ok"), hortator_retry="no")
    assert (wrong.status, wrong.error["code"], wrong.error["param"]) == (400, "invalid_type", "hortator_retry")


def test_an_error_body_without_end_is_cut_and_keeps_its_status(persistent: Gateway, upstream: Upstream) -> None:
    size = 200 * 1024 * 1024
    flood: Script = [
        ["send", head(429, {"content-type": "application/json", "transfer-encoding": "chunked", "retry-after": "60"})],
        ["flood", "x" * 65536, size // 65536],
    ]
    for stream in (False, True):
        mark = upstream.plan(flood)
        got, _, _ = ask(persistent, "alone", mark, stream)
        assert (got.status, got.header("retry-after")) == (429, "60"), got.body
        [seen] = upstream.wait(mark, "aborted")
        assert seen.sent < 16 * 1024 * 1024
