"""Which deployment is asked first: each strategy, sessions, and the rule that the last candidate is never removed."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from hortator.call import Call, Decision, Deployment
from hortator.dispatch.balance import MAX_PLACES, Balance, Turn
from hortator.dispatch.breaker import Limits
from hortator.errors import ConnectFailed
from tests.dispatch.calls import A, B, C, call, decision, keyed, refusal, route

DOWN = ConnectFailed("down")


def first(balance: Balance, made: Decision, asked: Call | None = None, now: float = 0.0) -> Deployment:
    """Choose as the loop does, without entering."""
    return balance.first(made, asked or call(), now)[1]


def answered(balance: Balance, deployment: Deployment, began: float, seconds: float) -> None:
    turn = balance.enter(deployment, began)
    turn.answered(began + seconds)
    turn.leave(None, began + seconds)


def break_down(balance: Balance, deployment: Deployment, now: float = 0.0) -> None:
    for _ in range(5):
        balance.enter(deployment, now).leave(DOWN, now)


def test_ordered_asks_the_first_that_works() -> None:
    balance, made = Balance(), decision(A, B)
    assert {first(balance, made).id for _ in range(5)} == {A.id}
    break_down(balance, A)
    assert first(balance, made) == B
    assert first(balance, made, now=60.0) == A


def test_least_in_flight_spreads_requests_at_once_and_one_after_the_other() -> None:
    balance, made = Balance(), decision(A, B, C, strategy="least-in-flight")
    turns: list[Turn] = []
    for _ in range(9):
        turns.append(balance.enter(first(balance, made), 0.0))
    assert Counter(turn.place.deployment.id for turn in turns) == {A.id: 3, B.id: 3, C.id: 3}
    for turn in turns:
        if turn.place.deployment == B:
            turn.leave(None, 1.0)
    assert first(balance, made) == B
    alone = Balance()
    row = []
    for _ in range(6):
        row.append(first(alone, made))
        answered(alone, row[-1], 0.0, 1.0)
    assert row == [A, B, C, A, B, C]


def test_weighted_gives_each_its_share_evenly_spread() -> None:
    balance, made = Balance(), decision(A, B, C, strategy="weighted", weights=(3, 1, 0))
    row = [first(balance, made).id[0] for _ in range(8)]
    assert row == list("aabaaaba")
    break_down(balance, A)
    assert {first(balance, made) for _ in range(5)} == {B}
    break_down(balance, B)
    assert first(balance, made) == C, "weight 0: only when the others fail"


def test_lowest_latency_takes_the_quicker_of_two_and_forgives_with_time() -> None:
    balance, made = Balance(random=Random(1)), decision(A, B, strategy="lowest-latency")
    answered(balance, A, 0.0, 2.0)
    answered(balance, B, 0.0, 0.1)
    assert first(balance, made, now=2.0) == B
    busy = [balance.enter(B, 2.0) for _ in range(30)]
    assert first(balance, made, now=2.0) == A, "the quicker one is not quicker any more with thirty requests"
    for turn in busy:
        turn.leave(None, 2.0)
    answered(balance, B, 41.9, 0.1)
    assert first(balance, made, now=42.0) == A, "what was slow forty seconds ago is given another chance"


def test_a_sudden_slow_answer_counts_at_once_and_quick_ones_only_with_time() -> None:
    """Peak EWMA."""
    balance = Balance()
    answered(balance, A, 0.0, 0.1)
    answered(balance, A, 1.0, 5.0)
    answered(balance, A, 6.0, 0.1)
    latency = balance.gauges(7.0)[A.id].latency_ms
    assert latency is not None
    assert 4_000 < latency < 5_000


def test_two_of_many_are_compared_and_the_choice_is_the_seeds() -> None:
    made = decision(A, B, C, strategy="lowest-latency")
    rows = []
    for _ in range(2):
        balance = Balance(random=Random(7))
        for deployment, seconds in ((A, 0.1), (B, 0.2), (C, 0.3)):
            answered(balance, deployment, 0.0, seconds)
        rows.append([first(balance, made, now=1.0).id for _ in range(50)])
    assert rows[0] == rows[1]
    assert set(rows[0]) == {A.id, B.id}, "the slowest of three is never the quicker of two"


def test_a_deployment_that_nobody_knows_gets_one_request_until_it_has_answered() -> None:
    balance, made = Balance(), decision(A, B, strategy="lowest-latency")
    answered(balance, A, 0.0, 0.5)
    for now in (1.0, 500.0):  # new, and forgotten
        chosen = []
        turns = []
        for _ in range(10):
            chosen.append(first(balance, made, now=now))
            turns.append(balance.enter(chosen[-1], now))
        assert chosen.count(B) == 1
        for turn in turns:
            turn.answered(now + 0.5)
            turn.leave(None, now + 0.5)
        balance = Balance()
        answered(balance, A, 499.0, 0.5)
        answered(balance, B, 0.0, 100.0)


def test_cheapest_follows_the_prices_and_what_has_none_comes_last() -> None:
    balance, made = Balance(prices={B.id: 2.0, C.id: 1.0}), decision(A, B, C, strategy="cheapest")
    assert first(balance, made) == C
    break_down(balance, C)
    assert first(balance, made) == B
    break_down(balance, B)
    assert first(balance, made) == A


@pytest.mark.parametrize("strategy", ["least-in-flight", "weighted", "lowest-latency"])
def test_a_session_keeps_its_deployment_and_moves_only_while_it_is_out(strategy: str) -> None:
    balance, made = Balance(), decision(A, B, C, strategy=strategy, weights=(1, 1, 1))
    asked = call(session=b"one conversation")
    home = first(balance, made, asked)
    for _ in range(10):
        balance.enter(home, 0.0)
        assert first(balance, made, asked) == home
    break_down(balance, home)
    away = first(balance, made, asked)
    assert away != home
    assert first(balance, made, asked) == away
    assert first(balance, made, asked, now=60.0) == home
    assert Balance().first(made, asked, 0.0)[1] == home, "another replica sends it to the same place"


def test_sessions_spread_by_weight_and_may_be_named_in_the_body() -> None:
    balance, made = Balance(), decision(A, B, strategy="weighted", weights=(3, 1))
    spread = Counter(first(balance, made, keyed(f"user-{number}")).id for number in range(2_000))
    assert 1_350 < spread[A.id] < 1_650
    again = Counter(first(balance, made, keyed(f"user-{number}")).id for number in range(2_000))
    assert again == spread


def test_a_session_does_not_override_what_the_operator_ordered() -> None:
    balance = Balance(prices={B.id: 1.0})
    for number in range(50):
        asked = call(session=b"%d" % number)
        assert first(balance, decision(A, B, strategy="ordered"), asked) == A
        assert first(balance, decision(A, B, strategy="cheapest"), asked) == B


def test_when_all_are_out_the_one_that_opens_soonest_is_asked_all_the_same() -> None:
    balance, made = Balance(), decision(A, B)
    break_down(balance, A, now=10.0)
    break_down(balance, B, now=0.0)
    assert first(balance, made, now=20.0) == B
    alone = decision(A)
    assert first(balance, alone, now=20.0) == A


def test_when_a_model_is_out_its_fallback_is_asked_and_when_that_is_out_too_the_model_itself() -> None:
    balance, made = Balance(), decision(A, fallbacks=(route(B),))
    break_down(balance, A)
    assert balance.first(made, call(), 0.0) == (1, B)
    break_down(balance, B)
    assert balance.first(made, call(), 0.0) == (0, A)


def test_a_deployment_that_asked_for_a_pause_is_passed_over_until_it_is_over() -> None:
    balance, made = Balance(), decision(A, B)
    balance.enter(A, 0.0).leave(refusal(429, retry_after=3.0), 0.0)
    assert (first(balance, made, now=2.9), first(balance, made, now=3.0)) == (B, A)


def test_a_stream_that_breaks_after_its_first_content_counts_as_a_failure() -> None:
    balance = Balance()
    for number in range(5):
        turn = balance.enter(A, float(number))
        turn.answered(float(number))
        turn.leave(DOWN, float(number))
    assert balance.gauges(5.0)[A.id].state == "open"


def test_a_probe_that_streams_lets_others_in_at_its_first_content() -> None:
    balance = Balance()
    break_down(balance, A)
    probe = balance.enter(A, 60.0)
    assert balance.choose(decision(A), call(), 60.0) is None
    probe.answered(61.0)
    assert balance.choose(decision(A), call(), 61.0) == A
    probe.leave(None, 90.0)
    assert balance.gauges(90.0)[A.id].in_flight == 0


def test_gauges_tell_the_state_of_each_deployment() -> None:
    balance = Balance(Limits(open_seconds=30.0))
    break_down(balance, A)
    gauge = balance.gauges(10.0)[A.id]
    assert (gauge.state, gauge.failures, gauge.in_flight, gauge.retry_in, gauge.latency_ms) == (
        "open",
        5,
        0,
        20.0,
        None,
    )
    assert balance.gauges(31.0)[A.id].state == "half-open"


def test_deployments_whose_names_clients_make_up_do_not_fill_the_memory() -> None:
    balance = Balance()
    break_down(balance, A)
    for number in range(MAX_PLACES + 100):
        made_up = Deployment(id=f"open/{number}", provider=A.provider, model=str(number))
        balance.enter(made_up, 0.0).leave(None, 0.0)
    gauges = balance.gauges(0.0)
    assert len(gauges) <= MAX_PLACES
    assert gauges[A.id].state == "open", "one that is in trouble is remembered longest"
    for number in range(MAX_PLACES + 100):
        break_down(balance, Deployment(id=f"bad/{number}", provider=A.provider, model=str(number)))
    assert len(balance.gauges(0.0)) <= MAX_PLACES


@pytest.mark.parametrize("strategy", ["ordered", "least-in-flight", "weighted", "lowest-latency", "cheapest"])
def test_a_provider_that_is_down_is_asked_last_but_is_asked(strategy: str) -> None:
    balance = Balance()
    made = decision(A, B, strategy=strategy, weights=(1, 1))
    balance.tell(A.provider, False, 0.0)
    for _ in range(4):
        turn = balance.begin(made, call(), 0.0)
        assert turn.place.deployment == B
        assert balance.choose(made, call(), 0.0, {B.id}) == A, "it is the last, not out"
        turn.leave(None, 0.0)
    assert balance.begin(decision(A, strategy=strategy, weights=(1,)), call(), 0.0).place.deployment == A
    balance.tell(B.provider, False, 0.0)
    assert balance.choose(made, call(), 0.0) is not None, "nor are all of them out"


def test_a_session_leaves_a_provider_that_is_down_and_returns_to_it() -> None:
    balance, made = Balance(), decision(A, B, strategy="least-in-flight")
    home = first(balance, made, keyed("s"))
    balance.tell(home.provider, False, 0.0)
    assert first(balance, made, keyed("s")) != home
    balance.tell(home.provider, True, 1.0)
    assert first(balance, made, keyed("s")) == home


@pytest.mark.parametrize("finish", ["done", "answered"])
def test_an_answer_says_that_a_provider_is_up_after_all(finish: str) -> None:
    balance, made = Balance(), decision(A, B)
    balance.tell(A.provider, False, 0.0)
    assert first(balance, made) == B
    getattr(balance.enter(A, 0.0), finish)(1.0)
    assert first(balance, made) == A


def test_a_provider_that_is_back_is_probed_at_once() -> None:
    balance, made = Balance(), decision(A, B)
    balance.tell(A.provider, False, 0.0)
    break_down(balance, A)
    balance.tell(A.provider, True, 5.0)
    assert first(balance, made, now=5.0) == A
    probe = balance.enter(A, 5.0)
    assert first(balance, made, now=5.0) == B, "one request at a time"
    probe.done(6.0)
    assert first(balance, made, now=6.0) == A


def test_failures_make_a_provider_suspect_and_client_errors_do_not() -> None:
    balance, suspects = Balance(), list[str]()
    balance.suspect = suspects.append
    balance.enter(A, 0.0).leave(DOWN, 0.0)
    balance.enter(B, 0.0).leave(refusal(400), 0.0)
    assert suspects == [A.provider]


def test_done_is_answered_and_left() -> None:
    one, two = Balance(), Balance()
    for begun, seconds in ((0.0, 1.0), (2.0, 0.2), (5.0, 3.0)):
        answered(one, A, begun, seconds)
        two.enter(A, begun).done(begun + seconds)
        assert one.gauges(9.0) == two.gauges(9.0)
