"""How much work a request asks for: a score from 0 to 1, the path it points to, and why (R-000-31 to 39, readings C-15 and C-16).

Routing asks it which tier of model a request without a named model deserves; `features.py` finds what the
last user turn asks and describes it; a small linear model, trained by training/complexity/train.py, weighs the features for each path.
Plain Python and deterministic: the same messages give the same score. It never sees the store, providers or HTTP, and never calls a
model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from importlib.resources import files
from math import exp
from operator import mul
from pathlib import Path as File
from typing import Final, Literal

import msgspec

from hortator.errors import ConfigError
from hortator.routing.features import Message, describe, read

Path = Literal["fast", "standard", "complex"]
Weights = tuple[float, float, float]
"""For fast, standard and complex."""

FAST_BELOW: Final = 0.3
COMPLEX_FROM: Final = 0.7
"""Cut points of R-000-34: below the first fast, from the second on complex, between them standard."""
_PATHS: Final[tuple[Path, ...]] = ("fast", "standard", "complex")
_MAX_REASONS = 3


class Complexity(msgspec.Struct, frozen=True, kw_only=True):
    """What a request asks for, judged."""

    score: float
    """0 = one cheap model answers at once; 1 = planning, several parts, research, a large change."""
    path: Path
    """What the score means with the caller's cut points."""
    confidence: float
    """Estimated probability that the path for the usual cut points is right, 0.33 to 1."""
    reasons: tuple[str, ...]
    """At most three, strongest first, for people: "asks to design a whole product or institution"."""
    features: dict[str, float]
    """What the score was computed from: feature -> value; words with a weight of their own as `word x`."""
    words: Weights
    """What those words add up to, for fast, standard and complex."""


Arguments = dict[str, tuple[float, str]]
"""Features that can be told in words -> how far one of it argues for a path, and the words."""


class Model(msgspec.Struct, frozen=True):
    """The trained weights: feature or word -> its weight for fast, standard and complex."""

    features: dict[str, Weights]
    words: dict[str, Weights]
    arguments: Mapping[Path, Arguments] = {}
    """Made by `load`: what `_reasons` goes by."""


def load(file: File | None = None) -> Model:
    """Read weights: those that are shipped, or a file that `hortator router train` has written. Raises ConfigError."""
    if file is None:
        content = files("hortator.routing").joinpath("data/complexity.json").read_bytes()
    else:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ConfigError(f"{file}: the weights of the complexity score cannot be read: {error.strerror}") from None
    try:
        model = msgspec.json.decode(content, type=Model)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file}: these are no weights of the complexity score: {error}") from None
    return Model(model.features, model.words, _arguments(model.features))


def score(
    messages: Iterable[Message],
    *,
    fast_below: float = FAST_BELOW,
    complex_from: float = COMPLEX_FROM,
    model: Model | None = None,
) -> Complexity:
    """Judge what the last user turn of `messages` asks for, in the light of the turns before it.

    `messages` are chat messages as mappings: `role`, and `content` as a string or a list of parts. System prompts, tool results and
    pasted matter are not judged. Never raises for odd messages; without any user text the request is fast.
    `model`: other weights than those that are shipped.
    """
    chosen = SHIPPED if model is None else model
    features, words = describe(read(messages))
    own, of_words = chosen.features, chosen.words
    weighed = {name: value for name, value in features.items() if name in own}
    heard = [word for word in words if word in of_words]
    said = _sums([of_words[word] for word in heard], ())
    fast, standard, complex_ = _chances(_sums([own[name] for name in weighed], weighed.values()), said)
    scored = _scored(fast, standard, complex_)
    usual = path_for(scored, FAST_BELOW, COMPLEX_FROM)
    reasons = _reasons(weighed, usual, chosen.arguments)
    for word in heard:
        weighed["word " + word] = 1.0
    return Complexity(
        score=scored,
        path=path_for(scored, fast_below, complex_from),
        confidence=round(max(fast, standard, complex_), 4),
        reasons=reasons,
        features=weighed,
        words=said,
    )


def _sums(weights: list[Weights], values: Collection[float]) -> Weights:
    """What features add up to for each path; without `values`, each of them is there once."""
    if not weights:
        return 0.0, 0.0, 0.0
    fast, standard, complex_ = zip(*weights, strict=True)
    if not values:
        return sum(fast), sum(standard), sum(complex_)
    return sum(map(mul, fast, values)), sum(map(mul, standard, values)), sum(map(mul, complex_, values))


def _chances(features: Weights, words: Weights) -> Weights:
    """The probability of each path."""
    fast, standard, complex_ = features[0] + words[0], features[1] + words[1], features[2] + words[2]
    highest = max(fast, standard, complex_)
    powers = exp(fast - highest), exp(standard - highest), exp(complex_ - highest)
    total = sum(powers)
    return powers[0] / total, powers[1] / total, powers[2] / total


def _scored(fast: float, standard: float, complex_: float) -> float:
    """One number: the most probable path says between which of the usual cut points, the probabilities say where there."""
    if complex_ >= max(fast, standard):
        value = COMPLEX_FROM + (1 - COMPLEX_FROM) * (complex_ * 3 - 1) / 2
    elif fast >= standard:
        value = min(FAST_BELOW * (1 - fast) * 1.5, FAST_BELOW - 0.0001)
    else:
        share = 0.5 + 0.5 * (complex_ - fast) / standard
        value = min(FAST_BELOW + (COMPLEX_FROM - FAST_BELOW) * share, COMPLEX_FROM - 0.0001)
    return round(value, 4)


def path_for(scored: float, fast_below: float = FAST_BELOW, complex_from: float = COMPLEX_FROM) -> Path:
    """The path a score means (R-000-34): below the first cut point fast, from the second on complex, else standard."""
    if scored < fast_below:
        return "fast"
    return "complex" if scored >= complex_from else "standard"


# --- reasons ---------------------------------------------------------------------------------------------------------

_ACTS: Final = {
    "build": "build", "design": "design", "transform": "change or move", "research": "research", "plan": "plan", "write": "write",
    "judge": "assess", "explain": "explain", "debug": "repair", "rework": "rework", "solve": "solve",
}  # fmt: skip
_OBJECTS: Final = {
    "huge": "something that is a large work in itself",
    "named": "something of the size of a known product",
    "system": "a system or an application",
    "medium": "one document or one piece of code",
    "small": "a word, a number or a line",
    "scope": "something whole or all of something",
    "scale": "something for production scale",
    "programme": "something with phases, budgets or duties",
}
_TOLD: Final = {
    "mentions": "words are asked about or translated, not meant",
    "mentions something big": "big words appear only as words: asked about or translated",
    "asks a fact": "asks for a fact",
    "asks a fact about something big": "asks for a fact about a large subject",
    "has brevity": "wants a very short answer",
    "has define": "asks for a meaning or a translation",
    "has micro": "asks for a small edit",
    "has social": "greets or thanks",
    "has fact": "asks who, when, where or how many",
    "has pick": "asks to pick out or sort something",
    "only social": "only greets or thanks",
    "quotes": "part of it is only a quotation",
    "payload": "the rest is only material to work on",
    "pasted, asked briefly": "a short question about pasted matter",
    "big and wide": "large and wide at once",
    "wide reach": "of wide reach",
    "has scope": "covers the whole of something",
    "has scale": "speaks of scale or production",
    "has programme": "speaks of phases, budgets or duties",
    "has huge": "is about something large",
    "has items": "lists several parts",
    "items": "lists several parts",
    "commas": "names many parts",
    "follows": "continues the turn before",
    "follows, for all of it": "continues the turn before, for all of it",
    "has explain": "asks for an explanation",
    "has judge": "asks for a judgement",
    "has debug": "asks to find a fault",
    "has medium": "is about one document or piece of code",
    "has write": "asks for a text",
    "has solve": "asks to work something out",
    "code": "brings code along",
    "number>1000": "names a large number",
    "number>50000": "names a very large number",
    "asks what, for a judgement": "asks for a judgement",
    "only medium": "is about one document or piece of code",
    "only small": "is about a word, a number or a line",
    "big and medium": "asks for something large",
    "empty": "asks nothing",
}
_PLAIN: Final[Mapping[Path, str]] = {
    "fast": "nothing in it asks for more",
    "standard": "of middling size",
    "complex": "its words are those of large work",
}


def _reason(name: str) -> str | None:
    told = _TOLD.get(name)
    if told:
        return told
    first, _, second = name.partition(" ")
    if first in _ACTS and second in _OBJECTS:
        return f"asks to {_ACTS[first]} {_OBJECTS[second]}"
    if first == "head" and second in _ACTS:
        return f"its main verb asks to {_ACTS[second]}"
    return None


def _arguments(features: Mapping[str, Weights]) -> dict[Path, Arguments]:
    """For each path, the features that argue for it against the other two, and can be told in words."""
    found: dict[Path, Arguments] = {path: {} for path in _PATHS}
    for name, weights in features.items():
        reason = _reason(name)
        if reason:
            half = sum(weights) / 2
            for path, weight in zip(_PATHS, weights, strict=True):
                if weight * 1.5 > half:
                    found[path][name] = weight * 1.5 - half, reason
    return found


def _reasons(features: Mapping[str, float], path: Path, arguments: Mapping[Path, Arguments]) -> tuple[str, ...]:
    """The features that argue most for the path, in words; at least one."""
    told = arguments.get(path, {})
    strengths: list[tuple[float, str]] = []
    for name in features.keys() & told.keys():
        strength, reason = told[name]
        strength *= features[name]
        if strength > 0.1:
            strengths.append((-strength, reason))
    strengths.sort()
    reasons = tuple(dict.fromkeys(reason for _, reason in strengths))
    return reasons[:_MAX_REASONS] or (_PLAIN[path],)


SHIPPED: Final = load()
"""The weights that training/complexity/train.py has made."""
