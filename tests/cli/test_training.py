"""Fitting weights to outcomes: away from the shipped ones only as far as they argue for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hortator.cli.training import Example, MissingNumpy, train
from hortator.errors import ConfigError
from hortator.routing.complexity import SHIPPED, Model, load, score
from hortator.routing.complexity import Path as Way

TEXTS = ["What is the capital of France?", "Write unit tests for a stack class in Java", "Design Netflix"]


def example(number: int, text: str, path: Way | None = None) -> Example:
    judged = score([{"role": "user", "content": text}])
    features = {name: value for name, value in judged.features.items() if not name.startswith("word ")}
    return Example(f"r{number}", features, judged.words, path or judged.path, escalated=path is not None)


def test_outcomes_that_agree_change_no_path() -> None:
    trained = train([example(number, TEXTS[number % 3]) for number in range(90)], SHIPPED, SHIPPED, 4.0)
    model = Model(trained.features, SHIPPED.words)
    for text in [*TEXTS, "hello", "Refactor this function and add unit tests", "Port SQLite to Zig"]:
        messages = [{"role": "user", "content": text}]
        assert score(messages, model=model).path == score(messages).path
    assert trained.after.agreed == trained.before.agreed == 1.0


def test_what_is_held_out_is_judged_by_both_weights_and_learnt_from_by_none() -> None:
    examples = [example(number, TEXTS[0], "standard") for number in range(60)]
    trained = train(examples, SHIPPED, SHIPPED, 4.0)
    assert 5 < trained.held_out == trained.escalated < 30
    assert (trained.before.foreseen, trained.after.foreseen) == (0, trained.held_out)
    assert trained.before.paths == (trained.held_out, 0, 0)
    assert trained.after.loss < trained.before.loss
    assert train(examples, SHIPPED, SHIPPED, 4.0) == trained


def test_without_numpy_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(MissingNumpy):
        train([example(1, TEXTS[0])], SHIPPED, SHIPPED, 4.0)


@pytest.mark.parametrize("content", ["", "[]", '{"features": {"bias": [1, 2]}, "words": {}}'])
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "complexity.json"
    with pytest.raises(ConfigError, match=r"complexity\.json: the weights of the complexity score cannot be read"):
        load(file)
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"complexity\.json: these are no weights of the complexity score"):
        load(file)
