"""What calls may use is counted exactly, in memory and on Redis alike."""

from __future__ import annotations

import asyncio
import socket
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hortator.call import (
    UNKNOWN_USAGE,
    Attempt,
    Call,
    Caller,
    Deployment,
    KeyHash,
    ModelId,
    Operation,
    ProviderId,
    RequestId,
    TenantId,
    Usage,
)
from hortator.errors import Forbidden, HortatorError, LimitsUnavailable, RateLimited
from hortator.tenancy.budgets import Budgets, Price, Reservation, go_duration
from hortator.tenancy.counters import Counters, Hold, MemoryCounters, Used
from hortator.tenancy.limits import MONTH, limits_of, window
from hortator.tenancy.redis_counters import RedisCounters
from hortator.tenancy.redis_wire import address, connect
from hortator.tenancy.spending import Spent, StoreSilent

PLACE = Deployment(id="one/m", provider=ProviderId("one"), model="m")
OPEN = {"requests": True, "concurrent": True, "tokens": False, "money": False}
PATIENCE = 20


CENT = 10_000_000


def cents(deployment: Deployment, model: str | None, usage: Usage) -> int | None:
    """A token costs a cent; nothing is known of the model `unknown`."""
    return None if deployment.model == "unknown" else CENT * ((usage.input or 0) + (usage.output or 0))


def budgets(counters: Counters, price: Price = cents) -> Budgets:
    return Budgets(counters, price, default_max_output_tokens=50, fail_open=OPEN)


def caller(*limits: str, tenant: Sequence[str] = ()) -> Caller:
    """A key of a tenant of its own."""
    tenant_id, key_hash = TenantId(str(uuid.uuid4())), KeyHash(uuid.uuid4().hex)
    found = limits_of(tenant_id, {"limits": list(tenant)}, key_hash, {"limits": list(limits)})
    return Caller(tenant_id=tenant_id, key_hash=key_hash, key_name="test", limits=found)


def call(size: int = 40, **fields: Any) -> Call:
    """A call whose messages are `size` bytes."""
    return Call(
        id=RequestId("same-for-all"),
        operation="chat",
        model=ModelId("one/m"),
        body={
            "messages": msgspec.Raw(b'"' + b"x" * (size - 2) + b'"'),
            **{name: msgspec.Raw(msgspec.json.encode(value)) for name, value in fields.items()},
        },
        stream=False,
        wants_usage=False,
        started=0,
        received_at=0,
    )


NewCounters = Callable[[], "asyncio.Future[Counters]"]


@pytest.fixture(params=["memory", "redis"])
async def counters(request: pytest.FixtureRequest) -> AsyncIterator[Counters]:
    """Each of the two."""
    made: Counters = MemoryCounters()
    if request.param == "redis":
        made = redis_counters(request.getfixturevalue("redis_url"))
    await made.start()
    yield made
    await made.close()


def redis_counters(url: str, hold_seconds: int = 100, deadline: float = 5.0) -> RedisCounters:
    """A deadline that a busy machine does not miss, where a test is about something else."""
    return RedisCounters(url, deadline=deadline, hold_seconds=hold_seconds, prefix=f"test-{uuid.uuid4().hex}")


async def early(seconds: int = 3600) -> None:
    """Wait until the running window has at least ten seconds to go, so that it does not end in the middle of a test."""
    async with asyncio.timeout(PATIENCE):
        while window(seconds, time.time())[1] - time.time() < 10:
            await asyncio.sleep(0.1)


async def race(rooms: Sequence[Budgets], who: Caller, what: Call, times: int) -> tuple[list[Reservation], Counter[str]]:
    """Reserve many times at once; return what was reserved and count the codes of what was not."""
    asked = [rooms[n % len(rooms)].reserve(who, what, [PLACE]) for n in range(times)]
    replies = await asyncio.gather(*asked, return_exceptions=True)
    codes = Counter(str(reply.code) for reply in replies if isinstance(reply, HortatorError))
    held = [reply for reply in replies if isinstance(reply, Reservation)]
    assert len(held) + codes.total() == times
    return held, codes


@pytest.mark.parametrize(
    ("limit", "code"),
    [
        ("100 requests/hour", "rate_limit_exceeded"),
        ("2000 tokens/hour", "token_limit_exceeded"),
        ("20 usd/hour", "budget_exceeded"),
        ("100 concurrent", "too_many_concurrent_requests"),
    ],
)
async def test_of_a_thousand_calls_at_once_exactly_as_many_as_fit_are_admitted(
    counters: Counters, limit: str, code: str
) -> None:
    await early()
    who, room = caller(limit), budgets(counters)
    held, codes = await race([room], who, call(max_tokens=10), 1000)
    assert (len(held), codes) == (100, {code: 900})


async def test_two_replicas_admit_together_exactly_what_fits(redis_url: str) -> None:
    await early()
    prefix = f"test-{uuid.uuid4().hex}"
    async with AsyncExitStack() as stack:
        rooms = []
        for _ in range(2):
            one = RedisCounters(redis_url, deadline=5.0, hold_seconds=100, prefix=prefix)
            await one.start()
            stack.push_async_callback(one.close)
            rooms.append(budgets(one))
        held, codes = await race(rooms, caller("2000 tokens/day"), call(max_tokens=10), 1000)
    assert (len(held), codes) == (100, {"token_limit_exceeded": 900})


async def test_what_was_not_used_is_given_back_and_what_was_stays(counters: Counters) -> None:
    await early()
    who, room = caller("100 tokens/hour"), budgets(counters)
    first = await room.reserve(who, call(max_tokens=80), [PLACE])
    with pytest.raises(RateLimited):
        await room.reserve(who, call(max_tokens=1), [PLACE])
    room.settle(first, Usage(input=12, output=8, source="reported"), PLACE, None, True)
    again = await room.reserve(who, call(max_tokens=70), [PLACE])
    with pytest.raises(RateLimited):
        await room.reserve(who, call(max_tokens=1), [PLACE])
    room.settle(again, UNKNOWN_USAGE, None, None, False)
    third = await room.reserve(who, call(max_tokens=70), [PLACE])
    assert dict(third.headers)[b"x-ratelimit-remaining-tokens"] == b"0"


async def test_settling_twice_changes_nothing(counters: Counters) -> None:
    await early()
    who, room = caller("100 tokens/hour", "1 concurrent"), budgets(counters)
    first = await room.reserve(who, call(max_tokens=80), [PLACE])
    used = Used(1, 30, 0)
    counters.settle(first.hold, used)
    counters.settle(first.hold, used)
    held = await room.reserve(who, call(max_tokens=60), [PLACE])
    assert dict(held.headers)[b"x-ratelimit-remaining-tokens"] == b"0"


async def test_a_refused_call_consumes_nothing_of_any_limit(counters: Counters) -> None:
    await early()
    who, room = caller("10 requests/hour", tenant=["15 tokens/hour"]), budgets(counters)
    for _ in range(20):
        with pytest.raises(RateLimited):
            await room.reserve(who, call(max_tokens=10), [PLACE])
    held = await room.reserve(who, call(max_tokens=5), [PLACE])
    assert dict(held.headers)[b"x-ratelimit-remaining-requests"] == b"9"


async def test_a_call_that_failed_gives_back_its_tokens_its_money_and_its_place(counters: Counters) -> None:
    await early()
    who, room = caller("60 tokens/hour", "0.6 usd/day", "1 concurrent"), budgets(counters)
    for _ in range(5):
        held = await room.reserve(who, call(), [PLACE])
        room.settle(held, UNKNOWN_USAGE, PLACE, None, False)


async def test_an_answer_that_took_more_than_was_reserved_counts_in_full(counters: Counters) -> None:
    await early()
    who, room = caller("100 tokens/hour"), budgets(counters)
    held = await room.reserve(who, call(max_tokens=1), [PLACE])
    room.settle(held, Usage(input=10, output=85, source="reported"), PLACE, None, True)
    with pytest.raises(RateLimited):
        await room.reserve(who, call(size=4, max_tokens=5), [PLACE])


async def test_money_is_what_the_dearest_candidate_costs_and_then_what_was_paid(counters: Counters) -> None:
    await early()

    def price(deployment: Deployment, model: str | None, usage: Usage) -> int:
        return CENT * (2 if model == "dear" else 1) * ((usage.input or 0) + (usage.output or 0))

    who, room = caller("1 usd/day"), budgets(counters, price)
    held = await room.reserve(who, call(max_tokens=90), [PLACE])
    room.settle(held, Usage(input=10, output=15, source="reported"), PLACE, "dear", True)
    await room.reserve(who, call(max_tokens=40), [PLACE])
    with pytest.raises(RateLimited) as refused:
        await room.reserve(who, call(size=4, max_tokens=0), [PLACE])
    assert refused.value.code == "budget_exceeded"


async def test_attempts_before_the_last_are_counted_where_they_took_something(counters: Counters) -> None:
    await early()
    some, nothing = Usage(input=10, output=10, source="estimated"), UNKNOWN_USAGE

    def tries(*usages: Usage) -> list[Attempt]:
        kept: dict[str, Any] = {
            "deployment": PLACE.id,
            "provider": PLACE.provider,
            "status": 200,
            "code": None,
            "duration_ms": 1.0,
        }
        return [Attempt(usage=usage, **kept) for usage in usages]

    who, room = caller("1000 tokens/day"), budgets(counters, lambda *_: 1)
    for last, complete, attempts, used in (
        (some, True, tries(some), 20),
        (some, True, tries(some, nothing, some), 40),
        (nothing, False, tries(some, nothing), 20),
        (nothing, False, tries(nothing, nothing), 0),
        (nothing, True, tries(some, nothing), 120),
    ):
        before = room.gauges
        held = await room.reserve(who, call(max_tokens=90), [PLACE])
        room.settle(held, last, PLACE, None, complete, attempts)
        after = room.gauges
        assert after.tokens[1] - before.tokens[1] == used
        assert after.refunded - before.refunded == (used == 0)


async def test_a_model_without_a_price_cannot_be_used_under_a_budget_of_money(counters: Counters) -> None:
    unknown = Deployment(id="one/unknown", provider=ProviderId("one"), model="unknown")
    with pytest.raises(Forbidden) as refused:
        await budgets(counters).reserve(caller("5 usd/day"), call(), [PLACE, unknown])
    assert refused.value.code == "model_not_priced"
    await budgets(counters).reserve(caller("500 tokens/day"), call(), [unknown])


async def test_keys_of_a_tenant_share_its_limit_and_tenants_share_nothing(counters: Counters) -> None:
    await early()
    room, one, other = budgets(counters), caller(tenant=["2 requests/hour"]), caller(tenant=["2 requests/hour"])
    sibling = msgspec.structs.replace(one, key_hash=KeyHash("another"))
    await room.reserve(one, call(), [PLACE])
    await room.reserve(sibling, call(), [PLACE])
    with pytest.raises(RateLimited):
        await room.reserve(sibling, call(), [PLACE])
    await room.reserve(other, call(), [PLACE])


async def test_a_new_window_begins_anew_and_late_settlements_leave_it_alone(counters: Counters) -> None:
    """C-23."""
    who = caller("10 tokens/minute")
    (minute,) = who.limits
    second = msgspec.structs.replace(minute, window=1)
    full = Hold("first", who.tenant_id, (second,), [10])
    async with asyncio.timeout(PATIENCE):
        verdict = await counters.reserve(full)
        assert verdict is not None and verdict.fits and verdict.ends[0] <= 1
        for number in range(1_000_000):
            verdict = await counters.reserve(Hold(f"next-{number}", who.tenant_id, (second,), [9]))
            assert verdict is not None
            if verdict.fits:
                break
            await asyncio.sleep(0.01)
        assert verdict.used == [0]
        counters.settle(full, Used(1, 0, 0))
        verdict = await counters.reserve(Hold("last", who.tenant_id, (msgspec.structs.replace(second, amount=0),), [1]))
    assert verdict is not None
    assert verdict.used in ([9], [0])


async def test_a_month_is_the_calendars(counters: Counters) -> None:
    who, room = caller("10 requests/month"), budgets(counters)
    held = await room.reserve(who, call(), [PLACE])
    left = window(MONTH, time.time())[1] - time.time()
    assert dict(held.headers)[b"x-ratelimit-reset-requests"][:3] == go_duration(left)[:3]
    assert window(MONTH, 1_709_164_799.5) == (1_706_745_600, 1_709_251_200)  # February 2024
    assert window(MONTH, 1_735_689_599) == (1_733_011_200, 1_735_689_600)  # December 2024


async def test_a_refusal_says_what_is_exceeded_when_it_ends_and_what_is_left(counters: Counters) -> None:
    """R-000-71."""
    await early(60)
    who, room = caller("1 requests/minute", "1000 tokens/minute"), budgets(counters)
    await room.reserve(who, call(), [PLACE])
    with pytest.raises(RateLimited) as refused:
        await room.reserve(who, call(), [PLACE])
    error, headers = refused.value, dict(refused.value.headers)
    assert error.message.startswith("Request rate limit exceeded: 1 requests/minute for this key.")
    assert error.retry_after is not None and 1 <= error.retry_after <= 60
    assert headers[b"x-ratelimit-limit-requests"] == b"1"
    assert headers[b"x-ratelimit-remaining-requests"] == b"0"
    assert headers[b"x-ratelimit-limit-tokens"] == b"1000"
    assert headers[b"x-ratelimit-remaining-tokens"] == b"940"
    assert headers[b"x-ratelimit-reset-tokens"].endswith(b"s")


async def test_a_call_that_never_fits_is_not_told_to_wait(counters: Counters) -> None:
    with pytest.raises(RateLimited) as refused:
        await budgets(counters).reserve(caller("100 tokens/hour"), call(max_tokens=1000), [PLACE])
    assert refused.value.code == "token_limit_exceeded"
    assert refused.value.message.startswith("Token limit exceeded: 100 tokens/hour")
    assert refused.value.retry_after is None


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, 60),
        ({"max_tokens": 7}, 17),
        ({"max_completion_tokens": 7, "max_tokens": 9}, 17),
        ({"max_tokens": None}, 60),
        ({"max_tokens": 7, "n": 3}, 31),
        ({"max_tokens": -5, "n": -5}, 10),
        ({"tools": "y" * 398}, 160),
    ],
)
async def test_what_is_reserved_is_the_input_and_the_longest_answer(fields: dict[str, Any], tokens: int) -> None:
    held = await budgets(MemoryCounters()).reserve(caller("1000 tokens/hour"), call(**fields), [PLACE])
    assert held.hold.needs == [tokens]


@pytest.mark.parametrize(
    ("operation", "fields", "tokens"),
    [
        ("responses", {"input": "x" * 38, "max_output_tokens": 7}, 17),
        ("responses", {"input": "x" * 38, "instructions": "x" * 38}, 70),
        ("messages", {"system": "x" * 38, "max_tokens": 7}, 27),
        ("completions", {"prompt": "x" * 38, "max_tokens": 7, "n": 2}, 24),
        ("embeddings", {"input": "x" * 38}, 10),
        ("moderations", {"input": "x" * 38}, 10),
        ("completions", {"prompt": "x" * 38, "max_tokens": "many"}, 60),
    ],
)
async def test_each_dialect_is_reserved_by_its_own_fields(
    operation: Operation, fields: dict[str, Any], tokens: int
) -> None:
    asked = msgspec.structs.replace(call(**fields), operation=operation)
    held = await budgets(MemoryCounters()).reserve(caller("1000 tokens/hour"), asked, [PLACE])
    assert held.hold.needs == [tokens]


async def test_an_embedded_image_is_not_counted_by_its_bytes() -> None:
    image = "data:image/png;base64," + "A" * 1_000_000
    held = await budgets(MemoryCounters()).reserve(
        caller("10000 tokens/hour"), call(max_tokens=0, tools=image), [PLACE]
    )
    assert 1000 < held.hold.needs[0] < 1100


async def test_what_a_dead_replica_held_returns(redis_url: str) -> None:
    prefix = f"test-{uuid.uuid4().hex}"
    who = caller("1 concurrent", "100 tokens/day")
    dead = RedisCounters(redis_url, deadline=5.0, hold_seconds=1, prefix=prefix)
    alive = RedisCounters(redis_url, deadline=5.0, hold_seconds=60, prefix=prefix)
    await dead.start()
    await alive.start()
    lost = await budgets(dead).reserve(who, call(max_tokens=90), [PLACE])
    room = budgets(alive)
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                held = await room.reserve(who, call(max_tokens=50), [PLACE])
            except RateLimited:
                await asyncio.sleep(0.05)
            else:
                break
    assert dict(held.headers)[b"x-ratelimit-remaining-tokens"] == b"40"
    # It was not dead after all: what it used counts, once.
    budgets(dead).settle(lost, Usage(input=10, output=20, source="reported"), PLACE, None, True)
    await dead.close()
    last = await room.reserve(msgspec.structs.replace(who, limits=who.limits[1:]), call(size=4, max_tokens=0), [PLACE])
    assert dict(last.headers)[b"x-ratelimit-remaining-tokens"] == b"9"
    await alive.close()


async def test_the_counters_in_memory_are_bounded_and_full_ones_fail_as_they_should() -> None:
    now = [0.0]
    counters = MemoryCounters(clock=lambda: now[0], max_scopes=3)
    room = budgets(counters)
    for _ in range(3):
        await room.reserve(caller("60 tokens/hour"), call(), [PLACE])
    assert counters.gauges.scopes == 3
    with pytest.raises(LimitsUnavailable):
        await room.reserve(caller("60 tokens/hour"), call(), [PLACE])
    passed = await room.reserve(caller("60 requests/hour"), call(), [PLACE])
    assert passed.headers == [(b"x-hortator-degraded", b"limits")]
    assert counters.gauges.degraded
    now[0] = 3600.0
    await room.reserve(caller("60 tokens/hour"), call(), [PLACE])
    assert counters.gauges.scopes == 1
    assert not counters.gauges.degraded


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 40), st.one_of(st.none(), st.integers(0, 40)), st.booleans()), min_size=1, max_size=60
    )
)
@settings(max_examples=100, deadline=None)
def test_no_order_of_calls_ever_reserves_more_than_the_limit(steps: list[tuple[int, int | None, bool]]) -> None:
    """Reserve, settle or leave open, in any order: what is used and held never exceeds the cap by more than overruns."""

    async def walk() -> None:
        room, who = budgets(MemoryCounters(clock=lambda: 0.0)), caller("100 tokens/hour")
        held: list[tuple[Reservation, int]] = []
        spent = 0
        for asked, actual, settle in steps:
            need = 1 + asked
            try:
                one = await room.reserve(who, call(size=4, max_tokens=asked), [PLACE])
            except RateLimited:
                assert spent + sum(n for _, n in held) + need > 100
                continue
            held.append((one, need))
            assert spent + sum(n for _, n in held) <= 100
            if settle:
                one, need = held.pop(0)
                known = UNKNOWN_USAGE if actual is None else Usage(input=0, output=min(actual, need), source="reported")
                room.settle(one, known, PLACE, None, False)
                spent += 0 if actual is None else min(actual, need)

    asyncio.run(walk())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, b"0ms"),
        (0.0123, b"13ms"),
        (1, b"1s"),
        (59.2, b"1m0s"),
        (360, b"6m0s"),
        (3600, b"1h0m0s"),
        (90_061, b"25h1m1s"),
    ],
)
def test_durations_are_written_as_clients_read_them(seconds: float, text: bytes) -> None:
    assert go_duration(seconds) == text


async def spent(who: Caller, **amounts: int) -> list[Spent]:
    """What a ledger would say of a caller's counters, by kind."""
    now = time.time()
    found = []
    for limit in who.limits:
        start, end = window(limit.window, now)
        found.append(Spent(who.tenant_id, limit.key, start, end, amounts[limit.kind]))
    return found


def left(held: Reservation, kind: bytes) -> int:
    return int(dict(held.headers)[b"x-ratelimit-remaining-" + kind])


async def test_counters_that_begin_anew_begin_with_what_the_ledger_knows(redis_url: str) -> None:
    """A restart of the process, or of Redis, grants nobody a fresh budget."""
    await early()
    who = caller("1000 tokens/month", "10 usd/month", tenant=["5 requests/day"])

    async def read(now: float) -> list[Spent]:
        return await spent(who, requests=3, tokens=800, money=9 * 10**9)

    prefix = f"test-{uuid.uuid4().hex}"
    redis = RedisCounters(redis_url, deadline=5.0, hold_seconds=100, prefix=prefix, spending=read)
    for counters in (MemoryCounters(spending=read), redis):
        await counters.start()
        room = budgets(counters)
        held = await room.reserve(who, call(max_tokens=40), [PLACE])
        assert (left(held, b"tokens"), left(held, b"requests")) == (150, 1)
        with pytest.raises(RateLimited) as refused:
            await room.reserve(who, call(max_tokens=60), [PLACE])
        assert refused.value.code == "budget_exceeded"
        await counters.close()


async def test_a_redis_that_lost_its_counts_is_told_them_once_whoever_notices(redis_url: str) -> None:
    await early()
    who, prefix, reads = caller("1000 tokens/month"), f"test-{uuid.uuid4().hex}", list[float]()

    async def read(now: float) -> list[Spent]:
        reads.append(now)
        return await spent(who, tokens=600)

    async with AsyncExitStack() as stack:
        both = []
        for _ in range(2):
            one = RedisCounters(redis_url, deadline=5.0, hold_seconds=100, prefix=prefix, spending=read)
            await one.start()
            stack.push_async_callback(one.close)
            both.append(one)
        assert len(reads) == 1
        control = await connect(address(redis_url), lambda wire: None)
        stack.callback(control.abort)
        keys = await control.ask(
            b"EVAL", b"return cjson.encode(redis.call('KEYS', ARGV[1]))", b"0", f"{prefix}:*".encode()
        )
        await control.ask(b"DEL", *(key.encode() for key in msgspec.json.decode(keys, type=list[str])))
        rooms = [budgets(one) for one in both]
        for room in rooms:
            with pytest.raises(LimitsUnavailable):
                await room.reserve(who, call(max_tokens=10), [PLACE])
        async with asyncio.timeout(PATIENCE):
            while any(one.gauges.degraded for one in both):
                await asyncio.sleep(0.01)
        held, codes = await race(rooms, who, call(max_tokens=10), 100)
    assert (len(held), codes) == (20, {"token_limit_exceeded": 80})
    assert sum(one.gauges.rebuilt for one in both) >= 2


@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_until_the_ledger_answers_limits_hold_as_when_redis_is_gone(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hortator.tenancy.counters.RETRY_SECONDS", 0.01)
    who, down = caller("1000 tokens/month"), True

    async def read(now: float) -> list[Spent]:
        if down:
            raise StoreSilent
        return await spent(who, tokens=900)

    counters: Counters = MemoryCounters(spending=read)
    if kind == "redis":
        url, prefix = request.getfixturevalue("redis_url"), f"test-{uuid.uuid4().hex}"
        counters = RedisCounters(url, deadline=5.0, hold_seconds=100, prefix=prefix, spending=read)
    await counters.start()
    room = budgets(counters)
    assert counters.gauges.degraded
    with pytest.raises(LimitsUnavailable):
        await room.reserve(who, call(max_tokens=10), [PLACE])
    assert (await room.reserve(caller("5 requests/hour"), call(), [PLACE])).headers == [
        (b"x-hortator-degraded", b"limits")
    ]
    down = False
    async with asyncio.timeout(PATIENCE):
        while counters.gauges.degraded:
            await asyncio.sleep(0.01)
    with pytest.raises(RateLimited):
        await room.reserve(who, call(max_tokens=100), [PLACE])
    await counters.close()


async def test_the_gauges_say_what_became_of_calls_and_why_others_were_refused(counters: Counters) -> None:
    await early()
    who, room = caller("100 tokens/hour", "3 concurrent"), budgets(counters)
    first = await room.reserve(who, call(max_tokens=40), [PLACE])
    second = await room.reserve(who, call(max_tokens=40), [PLACE])
    with pytest.raises(RateLimited):
        await room.reserve(who, call(max_tokens=40), [PLACE])
    room.settle(first, Usage(input=10, output=7, source="reported"), PLACE, None, True)
    room.settle(second, UNKNOWN_USAGE, PLACE, None, False)
    found = room.gauges
    assert (found.reserved, found.settled, found.refunded) == (2, 1, 1)
    assert found.tokens == (100, 17)
    assert found.refused == {"requests": 0, "tokens": 1, "money": 0, "concurrent": 0}


async def test_a_redis_that_is_not_there_at_the_start_is_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        counters = RedisCounters(f"redis://127.0.0.1:{closed.getsockname()[1]}/0", deadline=0.05, hold_seconds=100)
        await counters.start()
        await counters.close()
    assert counters.gauges.degraded
    assert "redis cannot be used" in caplog.text


async def test_a_redis_that_forgot_the_script_is_told_it_again(redis_url: str) -> None:
    await early()
    who, counters = caller("1000 tokens/hour"), redis_counters(redis_url)
    await counters.start()
    room = budgets(counters)
    first = await room.reserve(who, call(max_tokens=90), [PLACE])
    control = await connect(address(redis_url), lambda wire: None)
    await control.ask(b"SCRIPT", b"FLUSH")
    control.abort()
    with pytest.raises(LimitsUnavailable):
        await room.reserve(who, call(max_tokens=10), [PLACE])
    room.settle(first, Usage(input=10, output=10, source="reported"), PLACE, None, True)
    async with asyncio.timeout(PATIENCE):
        while counters.gauges.degraded:
            await asyncio.sleep(0.01)
    held = await room.reserve(who, call(max_tokens=70), [PLACE])
    assert left(held, b"tokens") == 900
    await counters.close()
