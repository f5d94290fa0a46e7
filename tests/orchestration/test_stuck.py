"""Whether an agent goes round in circles."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hortator.orchestration import stuck
from hortator.wire.tasks import Stuck


def test_an_agent_that_does_new_things_is_not_stuck() -> None:
    assert stuck.score([f"read_file {n}" for n in range(10)], [f"reading {n}" for n in range(10)], 0.0, Stuck()) == 0


def test_the_same_call_and_the_same_words_again_and_again_are_stuck() -> None:
    value = stuck.score(["read_file a"] * 4, ["again"] * 3, 0.0, Stuck())
    assert value == 0.75 and stuck.stuck(value)


def test_repetition_alone_is_not_enough_and_with_a_long_silence_it_is() -> None:
    repeated = stuck.score([], ["again"] * 3, 0.0, Stuck())
    assert repeated == 0.35 and not stuck.stuck(repeated)
    assert stuck.stuck(stuck.score([], ["Again", " again ", "again"], 400.0, Stuck()))


def test_a_few_calls_say_nothing_of_diversity() -> None:
    assert stuck.score(["a", "a", "a"], [], 0.0, Stuck()) == 0


@given(
    st.lists(st.sampled_from(["a", "b", "c"]), max_size=40),
    st.lists(st.text(max_size=5), max_size=40),
    st.floats(0, 1e6),
    st.floats(0, 1),
)
def test_a_score_lies_between_0_and_1(calls: list[str], said: list[str], idle: float, least: float) -> None:
    assert 0 <= stuck.score(calls, said, idle, Stuck(tool_diversity_min=least)) <= 1
