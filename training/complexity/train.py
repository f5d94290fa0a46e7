"""Train the complexity model: `python training/complexity/train.py` rewrites hortator/routing/data/complexity.json.

A ridge-penalised multinomial logistic model over the features of hortator/routing/features.py and the words that several groups use.
Fitted by Newton's method to convergence, so the result does not depend on a seed; weights are rounded, so the file comes out the same
byte for byte. `--report` prints figures from leave-groups-out cross-validation, `--adversarial` those on the held-out files,
which are never trained on. Needs numpy; the product does not.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hortator.routing.features import describe, read

HERE = Path(__file__).parent
OUTPUT = HERE.parents[1] / "hortator" / "routing" / "data" / "complexity.json"
PATHS = ("fast", "standard", "complex")
HELD_OUT = ("adversarial", "adversarial-2")
FOLDS = 12
FEATURE_PENALTY, WORD_PENALTY = 1.0, 2.0
ROUNDS = 200
MIN_FEATURE_COUNT, MIN_WORD_COUNT, MIN_WORD_GROUPS = 4, 5, 3

Array = npt.NDArray[np.float64]
Row = dict[str, float]


class Requests:
    """A labelled file: groups, labels as 0, 1, 2, and each request's features and words."""

    def __init__(self, path: Path) -> None:
        self.records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        self.groups = [record["group"] for record in self.records]
        self.labels = np.array([PATHS.index(record["label"]) for record in self.records])
        described = [describe(read(record["messages"])) for record in self.records]
        self.features: list[Row] = [features for features, _ in described]
        self.words: list[list[str]] = [words for _, words in described]


class Model:
    """What is learned: a column for each feature and word, a row of weights for each path."""

    def __init__(self, requests: Requests, chosen: list[int]) -> None:
        counts = Counter(name for at in chosen for name in requests.features[at])
        self.names = sorted(name for name, count in counts.items() if count >= MIN_FEATURE_COUNT)
        words = Counter(word for at in chosen for word in requests.words[at])
        groups: dict[str, set[str]] = defaultdict(set)
        for at in chosen:
            for word in requests.words[at]:
                groups[word].add(requests.groups[at])
        self.words = sorted(
            word for word, count in words.items() if count >= MIN_WORD_COUNT and len(groups[word]) >= MIN_WORD_GROUPS
        )
        matrix = self.matrix(requests, chosen)
        penalty = np.array(
            [0.01 if name == "bias" else FEATURE_PENALTY for name in self.names] + [WORD_PENALTY] * len(self.words)
        )
        self.weights = _fit(matrix, np.eye(len(PATHS))[requests.labels[chosen]], penalty)

    def matrix(self, requests: Requests, chosen: list[int]) -> Array:
        column = {name: at for at, name in enumerate(self.names)}
        word_column = {word: at + len(self.names) for at, word in enumerate(self.words)}
        matrix = np.zeros((len(chosen), len(column) + len(word_column)))
        for row, at in enumerate(chosen):
            for name, value in requests.features[at].items():
                if name in column:
                    matrix[row, column[name]] = value
            for word in requests.words[at]:
                if word in word_column:
                    matrix[row, word_column[word]] = 1.0
        return matrix

    def predict(self, requests: Requests, chosen: list[int]) -> tuple[npt.NDArray[np.int64], Array]:
        """Labels, and the probability of each."""
        chances = _chances(self.matrix(requests, chosen), self.weights)
        return chances.argmax(axis=1), chances.max(axis=1)


def _chances(matrix: Array, weights: Array) -> Array:
    logits = matrix @ weights.T
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _fit(matrix: Array, targets: Array, penalty: Array) -> Array:
    """Newton's method, one path's weights after another until none moves; all paths weigh the same."""
    weight = targets @ (len(targets) / (len(PATHS) * targets.sum(axis=0)))
    weights = np.zeros((len(PATHS), matrix.shape[1]))
    for _ in range(ROUNDS):
        largest = 0.0
        for path in range(len(PATHS)):
            chance = _chances(matrix, weights)[:, path]
            gradient = matrix.T @ (weight * (chance - targets[:, path])) + penalty * weights[path]
            curvature = (matrix.T * (weight * chance * (1 - chance))) @ matrix + np.diag(penalty)
            step = np.linalg.solve(curvature, gradient)
            weights[path] -= step
            largest = max(largest, float(np.abs(step).max()))
        if largest < 1e-6:
            break
    return weights


def report(requests: Requests) -> None:
    """Leave-groups-out cross-validation: no request is judged by a model that saw its group."""
    fold = {group: at % FOLDS for at, group in enumerate(sorted(set(requests.groups)))}
    guessed = np.zeros(len(requests.labels), dtype=np.int64)
    confidence = np.zeros(len(requests.labels))
    for held in range(FOLDS):
        inside = [at for at, group in enumerate(requests.groups) if fold[group] == held]
        outside = [at for at, group in enumerate(requests.groups) if fold[group] != held]
        guessed[inside], confidence[inside] = Model(requests, outside).predict(requests, inside)
    print_figures("leave-groups-out", requests, guessed)
    lengths = np.array([sum(len(str(m["content"])) for m in record["messages"]) for record in requests.records])
    print(f"length alone, cut where it does best on the same data: {_by_length(lengths, requests.labels):.3f}")
    for low, high in ((0, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.01)):
        within = (confidence >= low) & (confidence < high)
        right = (guessed == requests.labels)[within]
        print(f"confidence {low:.1f} to {min(high, 1):.1f}: {within.sum():4d} requests, {right.mean():.3f} right")
    by_group = defaultdict(list)
    for group, right in zip(requests.groups, guessed == requests.labels, strict=True):
        by_group[group].append(right)
    for group, rights in sorted(by_group.items(), key=lambda item: float(np.mean(item[1]))):
        print(f"{np.mean(rights):.2f} {group} ({len(rights)})")


def print_figures(title: str, requests: Requests, guessed: npt.NDArray[np.int64]) -> None:
    print(f"{title}: accuracy {(guessed == requests.labels).mean():.3f} of {len(guessed)}")
    for at, path in enumerate(PATHS):
        row = [int(((requests.labels == at) & (guessed == other)).sum()) for other in range(3)]
        print(f"  {path:9s} judged fast, standard, complex: {row}, recall {row[at] / max(sum(row), 1):.3f}")


def _by_length(lengths: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> float:
    cuts = np.quantile(lengths, np.linspace(0, 1, 41))
    return max(
        float((np.where(lengths < low, 0, np.where(lengths < high, 1, 2)) == labels).mean())
        for at, low in enumerate(cuts)
        for high in cuts[at:]
    )


def main() -> None:
    requests = Requests(HERE / "requests.jsonl")
    if "--report" in sys.argv:
        report(requests)
        return
    model = Model(requests, list(range(len(requests.records))))
    if "--adversarial" in sys.argv:
        for name in HELD_OUT:
            unseen = Requests(HERE / f"{name}.jsonl")
            print_figures(name, unseen, model.predict(unseen, list(range(len(unseen.records))))[0])
        return
    weights = [[round(float(weight), 3) for weight in column] for column in model.weights.T]
    data = {
        "features": dict(zip(model.names, weights[: len(model.names)], strict=True)),
        "words": dict(zip(model.words, weights[len(model.names) :], strict=True)),
    }
    parts = []
    for part, entries in data.items():
        rows = ",\n".join(
            f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(entry)}" for key, entry in entries.items()
        )
        parts.append(f'"{part}": {{\n{rows}\n}}')
    OUTPUT.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
