"""Tiers, capabilities, bounds, pauses and shares of a team."""

from __future__ import annotations

from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hortator.orchestration import legion
from hortator.wire.tasks import Capability, Retry, TaskConfig, Tier

TIERS: list[Tier] = ["tribune", "centurion", "legionary"]


@pytest.mark.parametrize(
    ("tier", "to"),
    [("tribune", {"centurion", "legionary"}), ("centurion", {"legionary"}), ("legionary", set())],
)
def test_a_tier_delegates_only_downwards(tier: str, to: set[str]) -> None:
    assert {other for other in TIERS if legion.may_delegate(tier, other)} == to


def test_a_child_never_has_more_than_its_parent_and_spawn_comes_with_the_tier() -> None:
    parent = legion.capabilities("tribune", ["web-fetch"], None)
    assert parent == ("spawn", "web-fetch")
    assert legion.capabilities("legionary", ["shell", "web-fetch", "spawn"], parent) == ("web-fetch",)
    assert legion.capabilities("centurion", None, parent) == ("spawn", "web-fetch")
    assert legion.capabilities("legionary", [], parent) == ()


CAPABILITIES: list[Capability] = ["web-fetch", "shell", "spawn"]


@given(st.lists(st.sampled_from(CAPABILITIES)), st.lists(st.sampled_from(CAPABILITIES)), st.sampled_from(TIERS))
def test_no_order_of_delegation_adds_a_capability(
    first: list[Capability], second: list[Capability], tier: Tier
) -> None:
    config = TaskConfig(tier="tribune", capabilities=legion.capabilities("tribune", first, None))
    child = legion.child_config(config, tier, second)
    assert set(child.capabilities or ()) - {"spawn"} <= set(first) & set(second)


def test_retries_follow_the_tier_and_double_with_a_jitter_that_is_always_the_same() -> None:
    legionary = legion.retries("legionary", None)
    assert (legionary.attempts, legionary.backoff) == (3, 15.0)
    assert legion.retries("centurion", None)[:2] == (1, 30.0)
    assert legion.retries("tribune", None).attempts == 0
    assert legion.retries("tribune", Retry(max_attempts=2)).attempts == 2
    for attempt in range(1, 12):
        pause = legion.pause(legionary, attempt, "task")
        base = min(15.0 * 2 ** (attempt - 1), 300.0)
        assert base * 0.75 <= pause <= base * 1.25
        assert pause == legion.pause(legionary, attempt, "task")


@pytest.mark.parametrize("source", ["chat", "responses", "messages", "harpoon"])
def test_agents_that_a_client_waits_for_try_again_at_once(source: str) -> None:
    """R-000-30: a client on an open connection is gone before fifteen seconds have doubled twice."""
    waited = [legion.retries("legionary", None, source), legion.retries("centurion", None, source)]
    assert [(how.attempts, how.backoff) for how in waited] == [(3, 0.5), (1, 0.5)]
    assert legion.retries("legionary", Retry(backoff_seconds=9), source).backoff == 9
    assert legion.retries("legionary", None, "tasks").backoff == 15.0


def test_bounds_hold_whatever_is_asked() -> None:
    assert legion.bounds(TaskConfig()) == (3, 10, 100)
    assert legion.bounds(TaskConfig(decomposition_strategy="aggressive")).agents == 8
    assert legion.bounds(TaskConfig(max_agents=25, max_depth=2, max_tasks=7)) == (25, 2, 7)


def test_planning_is_bounded_by_the_tier() -> None:
    assert legion.plannings("tribune", TaskConfig()) == 5
    assert legion.plannings("centurion", TaskConfig()) == 3
    assert legion.plannings("tribune", TaskConfig(max_iterations=2)) == 2
    assert legion.turns(TaskConfig(max_iterations=4)) == 4


@given(st.integers(0, 10**9), st.decimals(0, 1000, places=6), st.lists(st.integers(1, 9), min_size=1, max_size=25))
def test_shares_together_never_exceed_what_is_left(tokens: int, cost: Decimal, weights: list[int]) -> None:
    given_ = legion.shares(tokens, cost, weights)
    assert sum(share[0] or 0 for share in given_) <= tokens
    assert sum((share[1] or Decimal(0) for share in given_), Decimal(0)) <= cost
    assert legion.shares(None, None, weights) == [(None, None)] * len(weights)


@given(st.uuids(), st.text(max_size=50), st.integers(0, 24))
def test_a_childs_id_is_a_uuid_of_version_7_and_always_the_same(parent: UUID, name: str, position: int) -> None:
    id = legion.child_id(str(parent), name, position)
    assert UUID(id).version == 7 and str(UUID(id)) == id
    assert id == legion.child_id(str(parent), name, position)
    assert id != legion.child_id(str(parent), name + "x", position)
