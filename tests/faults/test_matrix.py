"""Every upstream fault, whole and streamed, with and without a fallback model: what the client gets and what is recorded.

Two gateways share a scripted upstream, so that each case is one request. Without a fallback the single deployment is asked once
(this gateway asks nobody twice); with one, the fallback answers after every fault that another deployment may not have.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NamedTuple

import pytest

from tests.door import Door, Reply, chat, content_of, envelope, events
from tests.gateway import Gateway, running_gateway
from tests.upstream.process import Upstream
from tests.upstream.script import ROLE, TEXT, Script, error_body, head, reply, sse, stream_head, usage_chunk

FIRST_BYTE_MS = 300
BUSY = error_body("too many requests", "rate_limit_exceeded", "rate_limit_error")
MODELS = [
    {"id": "alone", "deployments": [{"provider": "one", "model": "scripted"}]},
    {
        "id": "backed",
        "deployments": [{"provider": "one", "model": "scripted"}],
        "fallbacks": ["two/scripted"],
        "context_fallbacks": ["two/scripted"],
        "content_fallbacks": ["two/scripted"],
    },
    {"id": "dead", "deployments": [{"provider": "closed", "model": "scripted"}]},
    {
        "id": "dead-backed",
        "deployments": [{"provider": "closed", "model": "scripted"}],
        "fallbacks": ["two/scripted"],
    },
]
PRICES = """
one: {"*": {input: "1", output: "2"}}
two: {"*": {input: "3", output: "4"}}
closed: {"*": {input: "5", output: "6"}}
"""
USED = Decimal(11 * 3 + 7 * 4) / 1_000_000
"""What the fallback's answer costs."""


class Fault(NamedTuple):
    """One way to fail. `script` None = the provider's port is closed."""

    name: str
    script: str | Script | None
    status: int
    """What a client without fallback gets."""
    code: str
    upstream_status: int | None = None
    """What the record says of the attempt."""
    retry_after: str | None = None
    only: str = ""
    """`whole` or `stream`; empty = both."""
    committed: bool = False
    """Content had reached the client: no other deployment may answer."""
    billed: bool = False
    """An answer had begun: its attempt has an estimate and a cost, or what was reported."""


REPORTED = [stream_head(), *sse(ROLE, usage_chunk()), ["close"]]
GARBAGE: Script = [["send", "HTTP/9.9 banana\r\nno colon here\r\n\r\n"], ["close"]]
HALF: Script = [
    ["send", head(200, {"content-type": "application/json", "content-length": "5000"}) + '{"id":"x","choi'],
    ["close"],
]
FAULTS = [
    Fault("connect refused", None, 502, "upstream_connect_failed"),
    Fault("reset before head", "reset_before_reply", 502, "upstream_connection_lost"),
    Fault("closed before head", "close_before_reply", 502, "upstream_connection_lost"),
    Fault("no first byte", "hang", 504, "upstream_first_byte_timeout"),
    Fault("429", reply(429, BUSY), 429, "rate_limit_exceeded", 429),
    Fault("429 with Retry-After", reply(429, BUSY, {"retry-after": "7"}), 429, "rate_limit_exceeded", 429, "7"),
    Fault("500", "status_500", 502, "upstream_error", 500),
    Fault("503", reply(503, error_body("down", "overloaded")), 503, "overloaded", 503),
    Fault("503 with Retry-After", "status_503", 503, "upstream_503", 503, "7"),
    Fault("401", "status_401", 502, "upstream_auth_failed", 401),
    Fault("garbage head", GARBAGE, 502, "upstream_invalid_response"),
    Fault("bad JSON", "malformed_json", 502, "upstream_invalid_response", 200, only="whole"),
    Fault("truncated body", HALF, 502, "upstream_connection_lost", 200, only="whole"),
    Fault("cut before content", "early_cut", 502, "upstream_connection_lost", 200, only="stream", billed=True),
    Fault("reported, then cut", REPORTED, 502, "upstream_connection_lost", 200, only="stream", billed=True),
    Fault("no finish", "early_no_finish", 502, "upstream_truncated_stream", 200, only="stream", billed=True),
    Fault("bad event", "early_malformed_event", 502, "upstream_invalid_response", 200, only="stream", billed=True),
    Fault("error event before content", "early_error_event", 502, "upstream_error", 200, only="stream"),
    Fault("cut after content", "late_cut", 200, "upstream_connection_lost", 200, None, "stream", True, True),
    Fault("error event after content", "late_error_event", 200, "upstream_error", 200, None, "stream", True, True),
]
CASES = [
    pytest.param(
        fault, stream, backed, id=f"{fault.name}-{'stream' if stream else 'whole'}-{'backed' if backed else 'alone'}"
    )
    for fault in FAULTS
    for stream in (False, True)
    for backed in (False, True)
    if fault.only in ("", "stream" if stream else "whole")
]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("matrix")
    prices = folder / "prices.yaml"
    prices.write_text(PRICES)
    with running_gateway(
        folder,
        upstream,
        models=MODELS,
        timeouts={"first_byte_ms": FIRST_BYTE_MS},
        # A kept connection that turns out to be closed is replaced, which the upstream would count as one more request.
        upstream={"idle_seconds": 0},
        ledger={"price_overrides": str(prices)},
    ) as running:
        yield running


def ask(
    gateway: Gateway, model: str, mark: str, stream: bool, door: Door | None = None, **parameters: Any
) -> tuple[Reply, str, dict[str, Any] | None, dict[str, Any]]:
    """Ask; return the reply, its text, its error and its usage record."""
    request_id = uuid.uuid4().hex
    asked = chat(model, mark, stream=stream, **parameters)
    with (door or gateway.door).begin(asked, x_request_id=request_id) as connection:
        got = connection.read_head()
        if (got.header("content-type") or "").startswith("text/event-stream"):
            found = list(events(connection.blocks()))
            failed = isinstance(found[-1], dict) and "error" in found[-1]
            return got, content_of(found), envelope(found[-1]) if failed else None, gateway.row(request_id)
        body = connection.file.read(int(got.header("content-length") or "0"))
    whole = Reply(got.status, got.headers, body)
    if got.status == 200:
        return whole, whole.text, None, gateway.row(request_id)
    return whole, "", whole.error, gateway.row(request_id)


def costs(row: dict[str, Any]) -> Decimal | None:
    """The sum of what the attempts cost, None when nothing is known; checks that the row has the same."""
    known = [Decimal(one["cost"]) for one in json.loads(row["metadata"])["attempts"] if "cost" in one]
    total = sum(known, Decimal(0)) if known else None
    assert row["cost"] == (None if total is None else int(total.scaleb(10)))
    return total


@pytest.mark.parametrize(("fault", "stream", "backed"), CASES)
def test_a_fault_is_told_truly_recorded_whole_and_mended_where_it_may_be(
    matrix: Gateway, upstream: Upstream, fault: Fault, stream: bool, backed: bool
) -> None:
    """R-001-8, R-001-9, R-003-10: status, code, attempts as the client, the upstream and the ledger count them, and the cost."""
    mark = upstream.plan(two="ok", **({} if fault.script is None else {"one": fault.script}))
    model = (
        ("alone" if fault.script is not None else "dead")
        if not backed
        else ("backed" if fault.script else "dead-backed")
    )
    got, text, error, row = ask(matrix, model, mark, stream)
    attempts = json.loads(row["metadata"])["attempts"]
    mended = backed and not fault.committed

    seen = [one.provider for one in upstream.seen(mark)]
    assert seen == ["one"] * (fault.script is not None) + ["two"] * mended
    assert (got.header("x-hortator-attempts"), row["attempts"], len(attempts)) == (str(1 + mended),) + (1 + mended,) * 2
    first = attempts[0]
    assert (first["status"], first["code"]) == (fault.upstream_status, fault.code)
    assert (first["usage"] != "unknown") is (fault.billed or (fault.upstream_status == 200 and fault.only == "whole"))
    assert ("cost" in first) is (fault.billed or fault.name == "bad JSON")
    total = costs(row)
    if mended:
        assert (got.status, text, error) == (200, TEXT, None)
        assert (row["status"], row["error_code"], row["complete"], row["deployment"]) == (200, None, 1, "two/scripted")
        assert (attempts[1]["status"], attempts[1]["code"], attempts[1]["usage"]) == (200, None, "reported")
        assert Decimal(attempts[1]["cost"]) == USED
        assert total == USED + Decimal(first.get("cost", "0"))
        return
    assert error is not None
    assert (got.status, error["code"]) == (fault.status, fault.code)
    assert (row["status"], row["error_code"], row["complete"]) == (fault.status, fault.code, 0)
    assert got.header("retry-after") == fault.retry_after
    assert "attempts" not in error, "one attempt needs no list"
    assert "127.0.0.1" not in error["message"]


@pytest.mark.parametrize("limit", ["1000 tokens/day", "0.0001 usd/day"])
def test_budgets_count_every_attempt_that_was_billed(matrix: Gateway, upstream: Upstream, limit: str) -> None:
    """Both attempts report 11 + 7 tokens, at 25 and at 61 millionths of a dollar."""
    door = Door(matrix.port, matrix.new_key("budgeted", "--limit", limit))
    mark = upstream.plan(one=REPORTED, two="ok")
    got, text, _, row = ask(matrix, "backed", mark, True, door, max_tokens=10)
    assert (got.status, text, row["attempts"]) == (200, TEXT, 2)
    assert costs(row) == USED + Decimal(25) / 1_000_000
    if "tokens" in limit:
        refused = door.chat("alone", mark, max_tokens=5000)
        assert (refused.status, refused.header("x-ratelimit-remaining-tokens")) == (429, "964")
    else:
        refused = door.chat("alone", mark, max_tokens=5)
        assert (refused.status, refused.error["code"]) == (429, "budget_exceeded"), "20 of 14 left, not of 39"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("status", "code"), [(400, "content_filter"), (400, "context_length_exceeded")])
def test_what_the_request_is_refused_for_goes_only_to_models_made_for_it(
    matrix: Gateway, upstream: Upstream, stream: bool, status: int, code: str
) -> None:
    fault = reply(status, error_body("not this", code, "invalid_request_error"))
    mark = upstream.plan(one=fault, two="ok")
    got, _, error, row = ask(matrix, "alone", mark, stream)
    assert error is not None
    assert (got.status, error["code"], got.header("x-hortator-attempts"), row["error_code"]) == (400, code, "1", code)
    mark = upstream.plan(one=fault, two="ok")
    got, text, _, row = ask(matrix, "backed", mark, stream)
    assert (got.status, text, got.header("x-hortator-attempts")) == (200, TEXT, "2")
    assert [one["code"] for one in json.loads(row["metadata"])["attempts"]] == [code, None]
    assert costs(row) == USED


@pytest.mark.parametrize("stream", [False, True])
def test_attempts_that_all_failed_are_listed_to_the_client_and_in_the_record(
    matrix: Gateway, upstream: Upstream, stream: bool
) -> None:
    mark = upstream.plan(one="echo_401", two="reset_before_reply")
    got, _, error, row = ask(matrix, "backed", mark, stream)
    assert error is not None
    assert (got.status, error["code"], row["error_code"]) == (502, "all_deployments_failed", "all_deployments_failed")
    assert error["attempts"] == [
        {"model": "one/scripted", "status": 401, "code": "upstream_auth_failed"},
        {"model": "two/scripted", "status": None, "code": "upstream_connection_lost"},
    ]
    assert [one["code"] for one in json.loads(row["metadata"])["attempts"]] == [
        one["code"] for one in error["attempts"]
    ]
    mark = upstream.plan("status_503")
    got, _, error, _ = ask(matrix, "backed", mark, stream)
    assert error is not None
    assert (got.status, got.header("retry-after"), len(error["attempts"])) == (503, "7", 2), "alike: the provider's own"
