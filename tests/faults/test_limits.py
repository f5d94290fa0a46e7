"""Limits at the door: what a client is told, on memory, on Redis, with two replicas, and while Redis is slow."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests import services
from tests.conftest import started
from tests.door import Connection, Door, Reply, chat
from tests.gateway import MODEL, REFUSED, Gateway, eventually, running_gateway
from tests.upstream.process import Upstream

SMALL = {"max_tokens": 10}
PRICES = 'one:\n  "*": {input: "1000", output: "1000"}\n'
"""A tenth of a cent a token."""


@pytest.fixture(scope="module", params=["memory", "redis"])
def limited(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, upstream: Upstream
) -> Iterator[Gateway]:
    """A gateway that counts in memory, and one that counts on Redis."""
    home = tmp_path_factory.mktemp("limited")
    (home / "prices.yaml").write_text(PRICES)
    changes: dict[str, Any] = {"ledger": {"price_overrides": str(home / "prices.yaml")}}
    if request.param == "redis":
        changes["redis"] = {"url": request.getfixturevalue("redis_url"), "deadline_ms": 5000}
    with running_gateway(home, upstream, **changes) as running:
        yield running


def door(gateway: Gateway, *limits: str, tenant: str = "default") -> Door:
    """The door, as a new key with these limits sees it."""
    options = [word for limit in limits for word in ("--limit", limit)]
    return Door(gateway.port, gateway.new_key("limited", "--tenant", tenant, *options))


def early_in_the_minute() -> None:
    """Wait until the minute has ten seconds to go, so that it does not end in the middle of a test."""
    eventually(lambda: time.time() % 60 < 50, "the next minute")


def at_once(doors: list[Door], mark: str, times: int) -> list[Reply]:
    """Make calls from many threads, at the doors in turn."""
    with ThreadPoolExecutor(40) as threads:
        return list(threads.map(lambda n: doors[n % len(doors)].chat(MODEL, mark, **SMALL), range(times)))


def test_a_limit_of_requests_lets_that_many_through_and_tells_how_long_to_wait(
    limited: Gateway, upstream: Upstream
) -> None:
    """R-000-71."""
    early_in_the_minute()
    one, mark = door(limited, "2 requests/minute"), upstream.plan("ok")
    first, second, third = (one.chat(MODEL, mark) for _ in range(3))
    assert [reply.status for reply in (first, second, third)] == [200, 200, 429]
    assert [reply.header("x-ratelimit-remaining-requests") for reply in (first, second, third)] == ["1", "0", "0"]
    assert first.header("x-ratelimit-limit-requests") == "2"
    assert third.error["code"] == "rate_limit_exceeded"
    assert third.error["type"] == "rate_limit_error"
    assert third.error["message"].startswith("Request rate limit exceeded")
    assert 1 <= int(third.header("retry-after") or 0) <= 60
    assert third.header("x-should-retry") is None
    assert len(upstream.seen(mark)) == 2


def test_what_the_provider_says_of_its_own_limits_is_told_only_to_those_without_limits(
    limited: Gateway, upstream: Upstream
) -> None:
    mark = upstream.plan("ok")
    theirs = limited.door.chat(MODEL, mark)
    ours = door(limited, "1000 tokens/day").chat(MODEL, mark, **SMALL)
    assert ours.header("x-ratelimit-limit-tokens") == "1000"
    assert theirs.header("x-ratelimit-limit-tokens") != "1000"
    named = {name for name, _ in ours.headers if name.startswith("x-ratelimit-")}
    assert named == {f"x-ratelimit-{what}-tokens" for what in ("limit", "remaining", "reset")}


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_call_really_took_is_what_counts(limited: Gateway, upstream: Upstream, stream: bool) -> None:
    """The scripted provider reports 18 tokens."""
    one, mark = door(limited, "1000 tokens/day"), upstream.plan("ok")
    if stream:
        one.stream(MODEL, mark, max_tokens=500)
    else:
        assert one.chat(MODEL, mark, max_tokens=500).status == 200

    def left() -> bool:
        last = one.chat(MODEL, mark, max_tokens=0)
        return int(last.header("x-ratelimit-remaining-tokens") or 0) > 900

    eventually(left, "the rest of the reservation")
    refused = one.chat(MODEL, mark, max_tokens=990)
    assert refused.status == 429
    assert refused.error["code"] == "token_limit_exceeded"
    assert refused.error["message"].startswith("Token limit exceeded")


def test_failed_calls_take_nothing_from_a_budget(limited: Gateway, upstream: Upstream) -> None:
    one = door(limited, "600 tokens/day", "1 concurrent")
    for _ in range(4):
        assert one.chat(REFUSED, upstream.plan("ok"), max_tokens=500).status == 502


def test_money_is_counted_by_the_price_list_and_waiting_is_not_advised(limited: Gateway, upstream: Upstream) -> None:
    """18 tokens at a tenth of a cent: two such calls do not fit in three cents."""
    one, mark = door(limited, "0.03 usd/day"), upstream.plan("ok")
    assert one.chat(MODEL, mark, max_tokens=0).status == 200
    refused = eventually(lambda: _refused(one.chat(MODEL, mark, max_tokens=0)), "the budget to end")
    assert refused.error["code"] == "budget_exceeded"
    assert refused.header("x-should-retry") == "false"
    assert refused.header("retry-after") is not None
    assert len(upstream.seen(mark)) <= 2


def _refused(reply: Reply) -> Reply | None:
    return reply if reply.status == 429 else None


def test_a_model_without_a_price_is_refused_under_a_budget_of_money(limited: Gateway, upstream: Upstream) -> None:
    refused = door(limited, "5 usd/day").chat("two/scripted", upstream.plan("ok"))
    assert (refused.status, refused.error["code"]) == (403, "model_not_priced")


def test_a_place_is_free_again_when_its_client_hangs_up_or_its_answer_ends(
    limited: Gateway, upstream: Upstream
) -> None:
    one, mark = door(limited, "1 concurrent"), upstream.plan("slow_first_byte")
    with one.begin(chat(MODEL, mark)):
        upstream.wait(mark)
        busy = one.chat(MODEL, mark)
        assert (busy.status, busy.error["code"]) == (429, "too_many_concurrent_requests")
        assert busy.header("retry-after") == "1"
    fast = upstream.plan("ok")
    eventually(lambda: one.chat(MODEL, fast).status == 200, "the place of the client that hung up")
    for _ in range(20):
        assert one.chat(MODEL, fast).status == 200


def test_a_changed_limit_works_within_five_seconds_and_a_tenants_binds_its_keys(
    limited: Gateway, upstream: Upstream
) -> None:
    config = ("--config", str(limited.config))
    limited.command("tenants", "create", *config, "--name", "A", "--namespace", f"t{limited.port}", "--models", "one/*")
    one, mark = door(limited, tenant=f"t{limited.port}"), upstream.plan("ok")
    assert one.chat(MODEL, mark).status == 200
    assert one.chat("two/scripted", mark).status == 403
    limited.command("tenants", "set", *config, f"t{limited.port}", "--limit", "0 requests/day")
    refused = eventually(lambda: _refused(one.chat(MODEL, mark)), "the new limit")
    assert refused.header("x-should-retry") == "false" or int(refused.header("retry-after") or 999) <= 120


def test_two_replicas_let_through_together_exactly_what_fits(
    tmp_path: Path, upstream: Upstream, redis_url: str, postgres_database: str
) -> None:
    changes = {
        "store": {"url": postgres_database.replace("+asyncpg", "")},
        "redis": {"url": redis_url, "deadline_ms": 5000},
    }
    homes = [tmp_path / name for name in ("a", "b")]
    for home in homes:
        home.mkdir()
    with (
        running_gateway(homes[0], upstream, **changes) as first,
        running_gateway(homes[1], upstream, **changes) as second,
    ):
        one = door(first, "30 requests/day", "100000 tokens/day")
        other = Door(second.port, one.key)
        mark = upstream.plan("ok")
        codes = Counter(reply.status for reply in at_once([one, other], mark, 200))
    assert codes == {200: 30, 429: 170}
    assert len(upstream.seen(mark)) == 30


@pytest.fixture
def own_redis(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a Redis that is nobody else's: its process may be stopped."""
    monkeypatch.delenv(services.REDIS_VARIABLE, raising=False)
    yield from started(services.redis())


@contextmanager
def paused(redis_url: str) -> Iterator[None]:
    """Redis keeps its connections and answers nobody."""
    with Connection(urlsplit(redis_url).port or 6379) as control:
        control.send(b"INFO server\r\n")
        lines = iter(control.line, b"# end")
        process = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"process_id:"))
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def test_while_redis_is_slow_requests_pass_and_budgets_do_not_and_then_both_count_again(
    tmp_path: Path, upstream: Upstream, own_redis: str
) -> None:
    with running_gateway(tmp_path, upstream, redis={"url": own_redis, "deadline_ms": 50}) as gateway:
        hasty, spending, mark = door(gateway, "1 requests/day"), door(gateway, "900 tokens/day"), upstream.plan("ok")
        assert spending.chat(MODEL, mark, **SMALL).status == 200
        with paused(own_redis):
            for _ in range(3):
                passed = hasty.chat(MODEL, mark)
                assert (passed.status, passed.header("x-hortator-degraded")) == (200, "limits")
                refused = spending.chat(MODEL, mark, **SMALL)
                assert (refused.status, refused.error["code"]) == (503, "limits_unavailable")
                assert refused.header("x-hortator-degraded") == "limits"
                assert refused.header("retry-after") == "1"
            assert gateway.door.call("GET", "/ready").json["limits"]["degraded"] is True
            assert gateway.door.chat(MODEL, mark).status == 200
        eventually(lambda: spending.chat(MODEL, mark, **SMALL).status == 200, "Redis to be trusted again")
        back = spending.chat(MODEL, mark, **SMALL)
        assert back.header("x-hortator-degraded") is None
        assert gateway.door.call("GET", "/ready").json["limits"]["degraded"] is False


@pytest.mark.parametrize("on_redis", [False, True])
def test_a_restart_of_the_gateway_or_of_redis_grants_nobody_a_fresh_budget(
    tmp_path: Path, upstream: Upstream, own_redis: str, on_redis: bool
) -> None:
    """The scripted provider reports 18 tokens a call."""
    changes = {"redis": {"url": own_redis, "deadline_ms": 5000}} if on_redis else {}
    with running_gateway(tmp_path, upstream, **changes) as gateway:
        one, mark = door(gateway, "400 tokens/month"), upstream.plan("ok")
        ids = [one.chat(MODEL, mark, **SMALL).header("x-request-id") or "" for _ in range(5)]
        for request_id in ids:
            gateway.row(request_id)
        if on_redis:
            with Connection(urlsplit(own_redis).port or 6379) as control:
                control.send(b"FLUSHALL\r\n")
                assert control.file.readline() == b"+OK\r\n"
        else:
            gateway.terminate()
            assert gateway.wait() == 0
            gateway.start()
        kept = eventually(lambda: _counted(one.chat(MODEL, mark, **SMALL)), "the budget to be known again")
        assert int(kept.header("x-ratelimit-remaining-tokens") or 400) <= 400 - 5 * 18


def _counted(reply: Reply) -> Reply | None:
    return reply if reply.status == 200 and reply.header("x-hortator-degraded") is None else None


def test_a_gateway_starts_and_serves_without_its_redis(tmp_path: Path, upstream: Upstream) -> None:
    with running_gateway(tmp_path, upstream, redis={"url": "redis://127.0.0.1:1/0"}) as gateway:
        mark = upstream.plan("ok")
        assert gateway.door.chat(MODEL, mark).status == 200
        assert door(gateway, "5 requests/day").chat(MODEL, mark).header("x-hortator-degraded") == "limits"
        assert door(gateway, "5000 tokens/day").chat(MODEL, mark).status == 503
