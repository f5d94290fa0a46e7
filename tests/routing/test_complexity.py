"""Complexity is what is asked for, not which words or how many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hortator.routing.complexity import path_for, score


def path_of(text: str) -> str:
    return score([{"role": "user", "content": text}]).path


@pytest.mark.parametrize(
    "text",
    [
        "hi",
        "what is the word architecture in Spanish",
        "How do you say 'please redesign our whole database' in French?",
        "2026-01-01 12:00:01 ERROR db timeout\n" * 80 + "\nwhat time was the first error?",
    ],
)
def test_big_words_and_long_pastes_do_not_make_a_small_question_complex(text: str) -> None:
    assert path_of(text) == "fast"


@pytest.mark.parametrize("text", ["Port SQLite to Zig", "Design Netflix", "Build a Slack clone"])
def test_a_few_words_can_ask_for_a_huge_thing(text: str) -> None:
    assert path_of(text) == "complex"


def test_the_thresholds_cut_the_score_into_paths() -> None:
    """R-000-34: below 0.3 fast, below 0.7 standard, else complex."""
    for text in ("hi", "Design Netflix", "Write unit tests for a stack class with push, pop and peek in Java"):
        found = score([{"role": "user", "content": text}])
        assert 0 <= found.score <= 1
        assert found.path == ("fast" if found.score < 0.3 else "standard" if found.score < 0.7 else "complex")
        assert found.reasons


def test_the_same_request_gets_the_same_score() -> None:
    message = [{"role": "user", "content": "Refactor this function and add unit tests: def f(x): return x"}]
    assert score(message) == score(message)


def test_callers_may_cut_the_score_elsewhere() -> None:
    found = score([{"role": "user", "content": "Write unit tests for a stack class in Java"}])
    assert path_for(found.score) == found.path == "standard"
    assert path_for(found.score, fast_below=1.0, complex_from=1.0) == "fast"
    assert path_for(found.score, fast_below=0.0, complex_from=0.0) == "complex"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("Leave the platform alone and just tell me: is Redis written in C?", "fast"),
        ("No thanks", "fast"),
        ("w h o   i s   t h e   p r e s i d e n t   o f   f r a n c e", "fast"),
        ("", "fast"),
        (" \n\t", "fast"),
        ("🙏", "fast"),
    ],
)
def test_what_is_asked_in_the_end_counts(text: str, path: str) -> None:
    assert path_of(text) == path


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
PIECES = st.sampled_from(
    [
        "<task>",
        "</task>",
        "<a",
        "```",
        "'",
        '"',
        "\n",
        ": ",
        "- ",
        "{",
        "[",
        "1,000",
        "我们",
        "ال",
        "İ",
        "\ud800",
        "yes",
        "do it",
        "just tell me ",
    ]
)
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system", "tool"]) | ODD,
        "content": st.lists(PIECES | st.text(max_size=20), max_size=60).map("".join)
        | st.lists(
            st.fixed_dictionaries({"type": st.just("text") | ODD, "text": st.text(max_size=40) | ODD}) | ODD,
            max_size=40,
        )
        | ODD,
    }
)


@given(st.lists(MESSAGE | ODD, max_size=6))
@settings(max_examples=300, deadline=None)
def test_no_request_however_odd_makes_it_fail(messages: list[Any]) -> None:
    found = score(messages)
    assert 0 <= found.score <= 1
    assert found.path == path_for(found.score)
    assert 0 < found.confidence <= 1


@pytest.mark.parametrize(("file", "least"), [("adversarial.jsonl", 0.78), ("adversarial-2.jsonl", 0.9)])
def test_the_shipped_weights_judge_requests_they_were_not_trained_on(file: str, least: float) -> None:
    """The requirement is 0.75; the figures are in training/complexity/README.md."""
    lines = (Path(__file__).parents[2] / "training" / "complexity" / file).read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    right = sum(score(record["messages"]).path == record["label"] for record in records)
    assert right / len(records) >= least
