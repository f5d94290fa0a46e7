"""Complexity is what is asked for, not which words or how many."""

from __future__ import annotations

import pytest

from hortator.routing.complexity import score


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
