"""The circuit breaker: what opens it, what a probe does, what is not the deployment's failure (R-001-8)."""

from __future__ import annotations

import asyncio

import pytest

from hortator.dispatch.breaker import Breaker, Limits, Verdict, judge
from hortator.errors import (
    ClientGone,
    ConnectFailed,
    ConnectionLost,
    ConnectTimeout,
    FirstByteTimeout,
    IdleTimeout,
    InvalidReply,
    RateLimited,
    TotalTimeout,
    TruncatedStream,
    Unavailable,
)
from tests.dispatch.calls import refusal


def failed(breaker: Breaker, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        breaker.end("failed", now, probe=breaker.begin(now))


def test_five_consecutive_failures_open_it_for_a_minute() -> None:
    """R-001-8."""
    breaker = Breaker(Limits())
    failed(breaker, 4)
    assert (breaker.state(0.0), breaker.lets(0.0)) == ("closed", True)
    failed(breaker, 1)
    assert (breaker.state(59.9), breaker.lets(59.9)) == ("open", False)
    assert (breaker.state(60.0), breaker.lets(60.0)) == ("half-open", True)


def test_an_answer_between_failures_begins_the_count_again() -> None:
    breaker = Breaker(Limits())
    for _ in range(10):
        failed(breaker, 4)
        breaker.end("alive", 0.0, probe=False)
    assert breaker.state(0.0) == "closed"


def test_one_request_probes_and_the_others_stay_away() -> None:
    breaker = Breaker(Limits())
    failed(breaker, 5)
    assert breaker.begin(60.0) is True
    assert breaker.lets(60.0) is False
    assert breaker.begin(60.0) is False


def test_a_probe_that_fails_opens_it_again_for_as_long() -> None:
    breaker = Breaker(Limits())
    failed(breaker, 5)
    failed(breaker, 1, now=60.0)
    assert (breaker.lets(119.9), breaker.lets(120.0)) == (False, True)


def test_a_probe_that_is_answered_closes_it() -> None:
    breaker = Breaker(Limits())
    failed(breaker, 5)
    breaker.end("alive", 61.0, probe=breaker.begin(61.0))
    assert (breaker.state(61.0), breaker.failures, breaker.lets(61.0)) == ("closed", 0, True)


def test_a_probe_whose_client_hangs_up_leaves_the_next_one_to_probe() -> None:
    breaker = Breaker(Limits())
    failed(breaker, 5)
    breaker.end("unknown", 60.0, probe=breaker.begin(60.0))
    assert (breaker.state(60.0), breaker.lets(60.0)) == ("half-open", True)


def test_failures_of_requests_that_were_under_way_do_not_keep_it_open_for_longer() -> None:
    breaker = Breaker(Limits())
    failed(breaker, 5)
    breaker.end("failed", 59.0, probe=False)
    assert breaker.lets(60.0)
    breaker.begin(60.0)
    breaker.end("failed", 60.5, probe=False)
    assert breaker.state(60.5) == "half-open", "only the probe decides"


def test_an_answer_to_a_request_that_came_all_the_same_closes_it() -> None:
    breaker = Breaker(Limits())
    failed(breaker, 5)
    breaker.end("alive", 10.0, probe=False)
    assert breaker.state(10.0) == "closed"


def test_zero_failures_switch_it_off() -> None:
    breaker = Breaker(Limits(failures=0))
    failed(breaker, 1000)
    assert breaker.lets(0.0)


def test_a_retry_after_is_a_pause_within_bounds_and_not_a_failure() -> None:
    breaker = Breaker(Limits())
    breaker.end("alive", 0.0, probe=False, pause=7.0)
    assert (breaker.lets(6.9), breaker.lets(7.0), breaker.state(1.0)) == (False, True, "closed")
    breaker.end("alive", 10.0, probe=False, pause=86_400.0)
    assert (breaker.lets(69.9), breaker.lets(70.0)) == (False, True)


JUDGED: list[tuple[BaseException | None, Verdict]] = [
    (None, "alive"),
    *((refusal(status), "failed") for status in (401, 402, 408, 500, 502, 503, 504, 529)),
    *((refusal(status), "alive") for status in (400, 403, 404, 409, 413, 422, 429)),
    *(
        (kind("x"), "failed")
        for kind in (ConnectFailed, ConnectTimeout, FirstByteTimeout, IdleTimeout, ConnectionLost, InvalidReply)
    ),
    (TruncatedStream("x"), "failed"),
    (Unavailable("x", code="local_model_loading"), "failed"),
    (ConnectFailed("x", code="upstream_pool_full"), "unknown"),
    (RateLimited("x", code="local_model_busy"), "unknown"),
    (TotalTimeout("x"), "unknown"),
    (ClientGone("x"), "unknown"),
    (asyncio.CancelledError(), "unknown"),
    (ValueError("a defect of ours"), "unknown"),
]


@pytest.mark.parametrize(("error", "verdict"), JUDGED, ids=[getattr(e, "code", type(e).__name__) for e, _ in JUDGED])
def test_what_counts_as_a_failure_of_the_deployment(error: BaseException | None, verdict: Verdict) -> None:
    assert judge(error) == verdict
