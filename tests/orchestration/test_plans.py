"""Plans, read from what models write, checked, and made without a model (R-000-36, R-000-37, R-000-75)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hortator.orchestration import frames, plans
from hortator.orchestration.plans import BadPlan, Part
from hortator.wire.tasks import Strategy

PLAN = {
    "tasks": [
        {"id": "a", "description": "do a", "dependencies": []},
        {
            "id": "b",
            "description": "do b",
            "dependencies": ["a"],
            "role": "coding-expert",
            "tier": "legionary",
            "group": "g 1",
        },
    ]
}


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps(PLAN),
        f"Sure! Here is the plan:\n```json\n{json.dumps(PLAN, indent=2)}\n```\nTell me if you need more.",
        f"```\n{json.dumps(PLAN)}",
        "My {thoughts}: [see] " + json.dumps({"plan": PLAN}) + " done",
        json.dumps({"subtasks": [{"id": "A", "task": "do a"}, {"id": "B", "prompt": "do b", "depends_on": "a", "role": "coding-expert", "tier": "Legionary", "group": "G-1"}]}),
        json.dumps(PLAN["tasks"]),
        json.dumps(PLAN)[:-2],
    ],
)  # fmt: skip
def test_a_plan_is_found_in_whatever_a_model_puts_around_it(answer: str) -> None:
    first, second = plans.checked(plans.read(answer), 5)
    assert first == Part(id="a", description="do a")
    assert second == Part(
        id="b", description="do b", role="coding-expert", tier="legionary", dependencies=("a",), group="g-1"
    )


def test_a_list_of_strings_is_a_plan() -> None:
    parts = plans.read('Plan: ["look at storage", "look at security"]')
    assert [part.description for part in parts] == ["look at storage", "look at security"]
    assert len({part.id for part in parts}) == 2


def test_whole_parts_of_an_answer_that_was_cut_off_are_kept() -> None:
    cut = '{"tasks": [{"id": "a", "description": "do a"}, {"id": "b", "description": "do b"}, {"id": "c", "descr'
    assert [part.id for part in plans.read(cut)] == ["a", "b"]


@pytest.mark.parametrize(
    "answer", ["", "I would first look at A and then at B.", "{}", '{"tasks": []}', "[1, 2]", "[" * 5000, '"x"']
)
def test_an_answer_without_a_plan_is_unreadable(answer: str) -> None:
    with pytest.raises(BadPlan) as caught:
        plans.read(answer)
    assert caught.value.unreadable


@given(st.text(max_size=400))
def test_no_text_breaks_the_reader(text: str) -> None:
    try:
        found = len(plans.read(text))
    except BadPlan as error:
        found = -int(error.unreadable)
    assert found


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.sampled_from(["tasks", "id", "description", "dependencies", "role", "tier", "group", "x"]),
            inner,
            max_size=6,
        )
    ),
    max_leaves=30,
)


@given(json_values, st.integers(1, 6))
def test_whatever_json_a_model_writes_its_mended_plan_can_be_carried_out(value: Any, most: int) -> None:
    try:
        parts = plans.mended(plans.read("Here: " + json.dumps(value)), most)
    except BadPlan:
        return
    assert 1 <= len(parts) <= most
    assert sorted(id for wave in plans.waves(parts) for id in wave) == sorted(part.id for part in parts)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([], "no tasks"),
        ([Part(id="a", description="x"), Part(id="a", description="y")], "used twice"),
        ([Part(id="a", description="x", dependencies=("z",))], "'z', which is not in the plan"),
        (
            [Part(id="a", description="x", dependencies=("b",)), Part(id="b", description="y", dependencies=("a",))],
            "circle",
        ),
        ([Part(id=str(n), description="x") for n in range(6)], "at most 5"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused_with_the_reason(parts: list[Part], says: str) -> None:
    with pytest.raises(BadPlan, match=says) as caught:
        plans.checked(parts, 5)
    assert not caught.value.unreadable


def test_a_plan_that_only_repeats_the_request_is_none() -> None:
    request = "Compare three ways to store sessions and recommend one"
    again = [
        Part(id=id, description=text) for id, text in (("a", request), ("b", "Compare three ways to store sessions."))
    ]
    with pytest.raises(BadPlan) as caught:
        plans.useful(again, request)
    assert caught.value.unreadable
    good = [
        Part(id="c", description="Look at cookies"),
        Part(id="d", description="Look at  cookies"),
        Part(id="e", description="Look at Redis", dependencies=("a", "c")),
    ]
    assert plans.useful([*again, *good], request) == [
        good[0],
        Part(id="e", description="Look at Redis", dependencies=("c",)),
    ]
    assert plans.useful(good[:1], request) == good[:1]


def test_a_long_description_is_cut_and_a_need_of_itself_dropped() -> None:
    (part,) = plans.checked([Part(id="a", description="x" * 9000, dependencies=("a",))], 3)
    assert len(part.description) == plans.MAX_DESCRIPTION and part.dependencies == ()


def test_mending_drops_what_goes_in_a_circle_and_what_is_too_much() -> None:
    parts = [
        Part(id="a", description="one", dependencies=("b", "nowhere")),
        Part(id="b", description="two", dependencies=("a",)),
        Part(id="b", description="three"),
        Part(id="c", description="ONE"),
        Part(id="d", description="four"),
    ]
    plan = plans.mended(parts, 3)
    assert [(part.id, part.dependencies) for part in plan] == [("a", ()), ("b", ("a",)), ("b-3", ())]


def test_parts_of_a_group_become_one_unit_and_needs_across_groups_are_the_groups() -> None:
    parts = [
        Part(id="a1", description="x", group="a"),
        Part(id="a2", description="x", group="a", dependencies=("a1",)),
        Part(id="b1", description="x", group="b", dependencies=("a2",)),
        Part(id="b2", description="x", group="b"),
        Part(id="c", description="x", dependencies=("b1",)),
    ]
    first, second, third = plans.units(parts, grouped=True)
    assert (first.name, first.group, first.dependencies) == ("a", True, ())
    assert first.parts[1].dependencies == ("a1",)
    assert (second.name, second.dependencies, second.parts[0].dependencies) == ("b", ("a",), ())
    assert (third.name, third.group, third.dependencies) == ("c", False, ("b",))
    assert len(plans.units(parts, grouped=False)) == 5


def test_groups_that_would_wait_for_each_other_are_not_made() -> None:
    parts = [
        Part(id="a1", description="x", group="a"),
        Part(id="a2", description="x", group="a", dependencies=("b1",)),
        Part(id="b1", description="x", group="b", dependencies=("a1",)),
        Part(id="b2", description="x", group="b"),
    ]
    assert not any(unit.group for unit in plans.units(parts, grouped=True))


def test_one_group_of_everything_needs_no_centurion() -> None:
    parts = [Part(id="a", description="x", group="g"), Part(id="b", description="x", group="g")]
    assert not any(unit.group for unit in plans.units(parts, grouped=True))


@pytest.mark.parametrize(
    ("request_", "ids", "words"),
    [
        (
            "Compare three ways to store sessions and recommend one",
            4,
            ("one of the ways to store sessions (the most common", "the simplest", "criteria"),
        ),
        ("Compare Redis, Postgres and signed cookies for session storage", 3, ("Redis", "Postgres", "signed cookies")),
        ("Compare TCP with UDP", 2, ("TCP", "UDP")),
        ("Redis vs Memcached for caching?", 2, ("Redis", "Memcached")),
        ("Should we use Kafka or RabbitMQ?", 2, ("Kafka", "RabbitMQ")),
        ("Review this:\n- authentication\n- logging\n- tests", 3, ("authentication", "logging", "tests")),
        ("Do this: 1) write a parser 2) write tests", 2, ("write a parser", "write tests")),
        ("What is a mutex? Why do deadlocks happen?", 2, ("What is a mutex", "deadlocks")),
        ("Give me five ideas for a party", 4, ("one of the ideas for a party", "special needs")),
        ("Write a small web shop", 4, ("inputs", "design", "wrong", "test")),
    ],
)
def test_without_a_readable_plan_the_request_is_cut_by_its_own_words(
    request_: str, ids: int, words: tuple[str, ...]
) -> None:
    parts = frames.fallback(request_, "coding", "balanced", 4)
    assert len(plans.checked(parts, 4)) == min(ids, 4)
    text = " ".join(f"{part.id} {part.description}" for part in parts)
    assert all(word in text for word in words)


def test_a_list_that_is_too_long_keeps_everything_in_the_last_part() -> None:
    request_ = "Deal with:\n" + "\n".join(f"- topic {n}" for n in range(1, 8))
    parts = frames.fallback(request_, "", "balanced", 3)
    assert len(parts) == 3 and all(f"topic {n}" in parts[-1].description for n in range(3, 8))


def test_an_aggressive_plan_looks_at_each_option_from_several_sides_in_groups() -> None:
    parts = frames.fallback("Compare Redis, Postgres and signed cookies", "", "aggressive", 12)
    assert len(parts) == 9
    assert [unit.group for unit in plans.units(parts, grouped=True)] == [True, True, True]


strategies: list[Strategy] = ["none", "balanced", "aggressive"]


@given(
    st.text(max_size=600),
    st.sampled_from(["coding", "legal", "research", "content", "other"]),
    st.sampled_from(strategies),
    st.integers(1, 25),
)
def test_a_fallback_plan_can_always_be_carried_out_and_is_always_the_same(
    text: str, domain: str, strategy: Strategy, most: int
) -> None:
    parts = frames.fallback(text, domain, strategy, most)
    assert plans.checked(parts, most) == parts
    assert frames.fallback(text, domain, strategy, most) == parts
    if strategy == "none":
        assert len(parts) == 1
