"""What follows a failure: other deployments at once, second tries after a wait, fallback models, or the end."""

from __future__ import annotations

from random import Random

import pytest

from hortator.call import Call, Decision, Deployment
from hortator.dispatch import Dispatch
from hortator.dispatch.attempts import Plan
from hortator.dispatch.balance import Balance
from hortator.dispatch.breaker import Limits as BreakerLimits
from hortator.dispatch.retry import Limits, Retry
from hortator.errors import HortatorError, InvalidReply
from tests.dispatch.calls import A, B, C, D, call, decision, refusal, route

FAULT = refusal(500)
MANY = Limits(floor=1_000)


class Walk:
    """One call that fails wherever it goes. The clock stands still but for the waits."""

    def __init__(
        self, made: Decision, asked: Call | None = None, limits: Limits = MANY, deadline: float = 600.0
    ) -> None:
        self.balance = Balance(BreakerLimits())
        dispatch = Dispatch({}, self.balance, Retry(limits, Random(1)))
        self.plan = Plan(dispatch, asked or call(), made, 0, deadline)
        self.now = 0.0

    def fail(self, deployment: Deployment, error: HortatorError = FAULT) -> tuple[Deployment, float] | None:
        """One attempt fails; return what comes next."""
        self.balance.enter(deployment, self.now).leave(error, self.now)
        step = self.plan.after(deployment, error, self.now)
        if step is not None:
            self.now += step[1]
        return step

    def row(self, start: Deployment, error: HortatorError = FAULT) -> str:
        """Fail to the end; return the deployments asked, `.` for each wait."""
        asked = start.id[0]
        current = start
        while (step := self.fail(current, error)) is not None:
            current, wait = step
            asked += "." * (wait > 0) + current.id[0]
        return asked


def test_a_single_deployment_is_asked_three_times_more_with_growing_waits() -> None:
    """R-001-9, C-6."""
    walk = Walk(decision(A))
    waits = []
    while (step := walk.fail(A)) is not None:
        waits.append(step[1])
    assert [round(wait, 1) for wait in waits] == pytest.approx([0.1, 0.2, 0.4], abs=0.1)
    assert len(waits) == 3


@pytest.mark.parametrize(
    ("made", "row"),
    [
        (decision(A, B), "ab.a.b"),
        (decision(A, B, C, D), "abcd"),
        (decision(A, fallbacks=(route(B),)), "a.a.ab"),
        (decision(A, B, fallbacks=(route(C),)), "ab.ac"),
        (decision(A, fallbacks=(route(A, B), route(C))), "a.a.ab"),
    ],
)
def test_other_deployments_come_first_then_second_tries_then_other_models(made: Decision, row: str) -> None:
    """R-003-10, C-5, C-27: at most three attempts after the first, over all of them; one is kept for a model that stands by."""
    assert Walk(made).row(A) == row


@pytest.mark.parametrize(("retries", "row"), [(0, "a"), (1, "ab"), (2, "abc"), (3, "ab.ac")])
def test_the_number_of_retries_is_for_the_whole_request(retries: int, row: str) -> None:
    made = decision(A, B, fallbacks=(route(C),))
    assert Walk(made, limits=Limits(max_retries=retries, floor=9)).row(A) == row


def test_a_request_that_may_not_be_sent_twice_is_sent_once() -> None:
    assert Walk(decision(A, B, fallbacks=(route(C),)), call(resend="never")).row(A) == "a"


def test_a_request_whose_client_retries_itself_only_goes_elsewhere() -> None:
    assert Walk(decision(A, B, fallbacks=(route(C),)), call(resend="elsewhere")).row(A) == "abc"


def test_nobody_is_asked_twice_when_the_global_ratio_is_used_up() -> None:
    limits = Limits(ratio=0.0, floor=0)
    assert Walk(decision(A), limits=limits).row(A) == "a"
    assert Walk(decision(A, B, fallbacks=(route(C),)), limits=limits).row(A) == "abc", "others may always be asked"


def test_a_client_error_ends_the_call() -> None:
    for status in (400, 413, 422):
        assert Walk(decision(A, B, fallbacks=(route(C),))).row(A, refusal(status)) == "a"


def test_a_broken_reply_is_not_asked_for_again_where_it_came_from() -> None:
    assert Walk(decision(A, B)).row(A, InvalidReply("x")) == "ab"


def test_a_refused_key_is_tried_elsewhere_and_never_again() -> None:
    assert Walk(decision(A, B)).row(A, refusal(401)) == "ab"


def test_a_short_retry_after_is_waited_for() -> None:
    step = Walk(decision(A)).fail(A, refusal(429, retry_after=2.0))
    assert step == (A, 2.0)


def test_a_retry_after_that_is_too_long_is_not_waited_for() -> None:
    assert Walk(decision(A)).row(A, refusal(429, retry_after=7.0)) == "a"
    assert Walk(decision(A, B)).row(A, refusal(503, retry_after=7.0)) == "ab"
    assert Walk(decision(A), deadline=1.0).row(A, refusal(429, retry_after=2.0)) == "a", "nor past the deadline"


def test_the_deadline_is_for_all_attempts_and_waits_together() -> None:
    assert Walk(decision(A), deadline=0.2).row(A) == "a.a"


def test_a_deployment_whose_breaker_is_open_is_not_asked_a_second_time() -> None:
    """An outage costs each request one attempt, and not four."""
    walk = Walk(decision(A))
    for _ in range(5):
        walk.balance.enter(A, 0.0).leave(FAULT, 0.0)
    assert walk.row(A) == "a"


def test_deployments_that_are_out_are_not_asked_after_one_that_failed() -> None:
    walk = Walk(decision(A, B), limits=Limits(ratio=0, floor=0))
    for _ in range(5):
        walk.balance.enter(B, 0.0).leave(FAULT, 0.0)
    assert walk.row(A) == "a"


TOO_LONG = refusal(400, code="context_length_exceeded")
FILTERED = refusal(400, code="content_filter")


def test_errors_of_length_and_content_go_to_the_models_made_for_them_only() -> None:
    made = decision(
        A, B, fallbacks=(route(B),), context_fallbacks=(route(C),), content_fallbacks=(route(D, model="d"),)
    )
    assert Walk(made).row(A, TOO_LONG) == "ac"
    assert Walk(made).row(A, FILTERED) == "ad"
    assert Walk(decision(A, B, fallbacks=(route(C),))).row(A, TOO_LONG) == "a", "without them it is the client's 400"


def test_a_model_made_for_long_requests_is_retried_like_any_other() -> None:
    walk = Walk(decision(A, fallbacks=(route(B),), context_fallbacks=(route(C),)))
    assert walk.fail(A, TOO_LONG) == (C, 0.0)
    step = walk.fail(C)
    assert step is not None
    assert step[0] == C
    assert step[1] > 0


def test_the_only_model_made_for_an_error_is_asked_even_if_it_is_out() -> None:
    walk = Walk(decision(A, context_fallbacks=(route(C),)))
    for _ in range(5):
        walk.balance.enter(C, 0.0).leave(FAULT, 0.0)
    assert walk.fail(A, TOO_LONG) == (C, 0.0)
