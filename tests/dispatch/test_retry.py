"""Delays, the global ratio, and which errors a moment's wait may mend (R-001-9, C-6)."""

from __future__ import annotations

from random import Random

import pytest

from hortator.dispatch.refusal import refused
from hortator.dispatch.retry import Budget, Limits, Retry, is_filtered, is_too_long, may_repeat
from hortator.errors import ConnectFailed, ConnectionLost, FirstByteTimeout, HortatorError, IdleTimeout, InvalidReply
from hortator.wire.refusal import Refusal
from tests.dispatch.calls import refusal


def test_delays_double_from_100_ms_with_a_quarter_of_jitter() -> None:
    """C-6: 100, 200, 400."""
    retry = Retry(random=Random(3))
    for number, base in enumerate((0.1, 0.2, 0.4)):
        delays = [retry.delay(number) for _ in range(200)]
        assert min(delays) >= base * 0.75
        assert max(delays) <= base * 1.25
        assert max(delays) - min(delays) > base * 0.4, "spread, so that clients do not come back in step"


def test_a_tenth_of_the_requests_may_be_sent_again() -> None:
    budget = Budget(Limits(ratio=0.1, floor=0))
    for _ in range(1_000):
        budget.request(5.0)
    assert sum(budget.take(5.0) for _ in range(1_000)) == 100


def test_a_few_second_tries_are_always_allowed() -> None:
    budget = Budget(Limits(ratio=0.1, floor=10))
    budget.request(0.0)
    assert sum(budget.take(0.0) for _ in range(50)) == 10


def test_the_window_slides() -> None:
    budget = Budget(Limits(ratio=0.1, floor=1))
    for second in range(10):
        for _ in range(10):
            budget.request(float(second))
    assert sum(budget.take(9.5) for _ in range(50)) == 10
    assert not budget.take(18.9)
    assert budget.take(19.0), "ten seconds later the old tries are forgotten"
    assert not budget.take(19.0), "and the old requests as well"


def test_nothing_at_all_is_sent_again_when_ratio_and_floor_are_0() -> None:
    budget = Budget(Limits(ratio=0.0, floor=0))
    for _ in range(100):
        budget.request(0.0)
    assert not budget.take(0.0)


REPEATABLE: list[tuple[HortatorError, bool]] = [
    *((refusal(status), True) for status in (408, 429, 500, 502, 503, 504, 529)),
    *((refusal(status), False) for status in (400, 401, 402, 403, 404, 409, 413, 422)),
    (refusal(429, code="insufficient_quota"), False),
    (ConnectFailed("x"), True),
    (FirstByteTimeout("x"), True),
    (ConnectionLost("x"), True),
    (ConnectFailed("x", code="upstream_pool_full"), False),
    (IdleTimeout("x"), False),
    (InvalidReply("x"), False),
]


@pytest.mark.parametrize(("error", "expected"), REPEATABLE)
def test_only_what_a_moment_may_mend_is_repeated(error: HortatorError, expected: bool) -> None:
    """R-001-9: network, time-outs, 5xx, rate limits; never a client error."""
    assert may_repeat(error) is expected


@pytest.mark.parametrize(
    ("error", "too_long", "filtered"),
    [
        (refusal(400, code="context_length_exceeded"), True, False),
        (refusal(400, text="This model's maximum context length is 8192 tokens."), True, False),
        (refusal(400, text="prompt is too long: 210000 tokens > 200000 maximum"), True, False),
        (refusal(413, text="exceeds the context window"), True, False),
        (refusal(500, text="context window"), False, False),
        (refusal(400, code="content_filter"), False, True),
        (refusal(400, code="content_policy_violation"), False, True),
        (refusal(400, text="temperature must be at most 2"), False, False),
        (IdleTimeout("x"), False, False),
    ],
)
def test_errors_that_have_fallbacks_of_their_own_are_known(
    error: HortatorError, too_long: bool, filtered: bool
) -> None:
    assert (is_too_long(error), is_filtered(error)) == (too_long, filtered)


class Plain:
    """A provider without secrets."""

    def scrub(self, text: str) -> str:
        return text


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([(b"retry-after", b"7")], 7.0),
        ([(b"retry-after", b"1.5")], 1.5),
        ([(b"retry-after-ms", b"250"), (b"retry-after", b"1")], 0.25),
        ([(b"retry-after", b"Wed, 21 Oct 2015 07:28:00 GMT")], 0.0),
        ([(b"retry-after", b"soon")], None),
        ([(b"retry-after", b"9" * 400)], None),
        ([(b"retry-after", b"-5")], None),
        ([], None),
    ],
)
def test_every_form_of_retry_after_is_read(headers: list[tuple[bytes, bytes]], seconds: float | None) -> None:
    """RFC 9110, 10.2.3."""
    assert refused(Plain(), 429, headers, Refusal(None)).retry_after == seconds  # type: ignore[arg-type]
