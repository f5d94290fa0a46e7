"""What an operator may write as a limit, and what a caller carries of it."""

from __future__ import annotations

import pytest

from hortator.call import KeyHash, TenantId
from hortator.errors import InvalidRequest
from hortator.tenancy.limits import MONTH, both, checked, limits_of, parse, priority_of

TENANT, KEY = TenantId("t"), KeyHash("k")


@pytest.mark.parametrize(
    ("text", "kind", "window", "amount"),
    [
        ("1000 tokens/hour", "tokens", 3600, 1000),
        ("5000 tokens/hour", "tokens", 3600, 5000),
        ("60 requests/minute", "requests", 60, 60),
        ("1 request / day", "requests", 86_400, 1),
        ("  10   CONCURRENT ", "concurrent", 0, 10),
        ("3 concurrent requests", "concurrent", 0, 3),
        ("5 usd/day", "money", 86_400, 5_000_000_000),
        ("0.000000001 USD/month", "money", MONTH, 1),
    ],
)
def test_a_limit_is_read_as_it_is_written(text: str, kind: str, window: int, amount: int) -> None:
    """R-000-67."""
    limit = parse(text, "tenant", "t")
    assert limit is not None
    assert (limit.kind, limit.window, limit.amount) == (kind, window, amount)
    assert parse(limit.text, "tenant", "t") == limit


def test_unlimited_is_no_limit() -> None:
    """R-000-67."""
    assert parse("unlimited", "tenant", "t") is None
    assert checked(["unlimited"]) == []


@pytest.mark.parametrize(
    "text",
    [
        *("", "1000", "tokens/hour", "-5 usd/day", "1.5 tokens/hour", "5 eur/day", "9 tokens/week", "1e3 tokens/hour"),
        *("9" * 16, "2000000 usd/day", "0.0000000001 usd/day", "10 concurrently"),
    ],
)
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse(text, "tenant", "t")
    assert refused.value.code == "invalid_limit"


def test_two_limits_of_the_same_are_refused() -> None:
    with pytest.raises(InvalidRequest):
        checked(["5 tokens/hour", "6 tokens/hour"])
    assert checked(["5 tokens/hour", "6 tokens/day"]) == ["5 tokens/hour", "6 tokens/day"]


def test_a_caller_must_fit_its_tenants_and_its_keys_limits() -> None:
    found = limits_of(TENANT, {"limits": ["5 tokens/hour"]}, KEY, {"limits": ["5 tokens/hour", "1 concurrent"]})
    assert [limit.key for limit in found] == ["tenant:t:tokens:3600", "key:k:tokens:3600", "key:k:concurrent:0"]
    assert limits_of(TENANT, {}, KEY, {}) == ()


@pytest.mark.parametrize("stored", [["lots"], "5 tokens/hour or so", 7, [None], {"a": 1}])
def test_a_stored_limit_that_cannot_be_read_admits_nothing(stored: object) -> None:
    (limit,) = limits_of(TENANT, {}, KEY, {"limits": stored})
    assert limit.amount == 0


@pytest.mark.parametrize(
    ("tenant", "key", "allowed"),
    [
        (["*"], ("a/*", "b"), {"a/*", "b"}),
        (["hortator/legal-*"], ("*",), {"hortator/legal-*"}),
        (["hortator/legal-*"], ("hortator/legal-small", "hortator/research"), {"hortator/legal-small"}),
        (["hortator/legal-small"], ("hortator/*",), {"hortator/legal-small"}),
        (["a"], ("b",), set()),
        ([], ("*",), set()),
        ("*", ("*",), set()),
    ],
)
def test_a_key_may_use_what_its_tenant_may_too(tenant: object, key: tuple[str, ...], allowed: set[str]) -> None:
    """R-000-67."""
    assert set(both({"allowed_models": tenant}, key)) == allowed


@pytest.mark.parametrize(
    ("tenant", "key", "priority"),
    [
        ({}, {}, "standard"),
        ({"priority": "high"}, {}, "high"),
        ({"priority": "batch"}, {}, "low"),
        ({"priority": "high"}, {"priority": "low"}, "low"),
        ({"priority": "standard"}, {"priority": "high"}, "standard"),
        ({}, {"priority": "high"}, "standard"),
        ({"priority": 7}, {}, "low"),
    ],
)
def test_a_key_never_goes_before_its_tenant(tenant: dict[str, object], key: dict[str, object], priority: str) -> None:
    """R-000-72: high, standard, and anything else is less."""
    assert priority_of(tenant, key) == priority
