"""Fits the weights of the complexity score to what became of an operator's own requests: `hortator router train`.

`router.py` reads the outcomes and calls `train`. The weights move away from those that are shipped as far as the outcomes argue for
it; words keep their weights, because outcomes do not hold any. The only file that needs numpy (the extra `hortator[train]`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

from hortator.routing.complexity import Model, Path, Weights

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

PATHS: tuple[Path, ...] = ("fast", "standard", "complex")
HELD_OUT = 4
"""One of so many is held out."""
PULL = 5.0
"""How strongly a weight is held where it was; about as many outcomes must argue against it."""
ROUNDS = 500


class MissingNumpy(Exception):
    """The extra `hortator[train]` is not installed."""


class Example(NamedTuple):
    """One outcome or labelled request."""

    id: str
    """Decides whether it is held out."""
    features: Mapping[str, float]
    words: Weights
    path: Path
    """The one that would have been right, as far as is known."""
    escalated: bool


class Figures(NamedTuple):
    """How weights do on held-out examples."""

    agreed: float
    """Share that takes the path that would have been right."""
    foreseen: int
    """Escalated ones that take at least that path."""
    loss: float
    """Mean logarithmic loss."""
    paths: tuple[int, int, int]
    """How many take each."""


class Trained(NamedTuple):
    """What came of it. Figures are of held-out examples only."""

    features: dict[str, Weights]
    held_out: int
    escalated: int
    """Of those held out."""
    before: Figures
    after: Figures


def train(examples: Sequence[Example], shipped: Model, current: Model, weight: float) -> Trained:
    """Fit. `current`: the weights in force, for comparison. `weight`: what an escalation counts for. Raises MissingNumpy."""
    try:
        import numpy  # noqa: PLC0415 - an optional extra, and this file is its owner
    except ImportError:
        raise MissingNumpy from None
    fit = Fit(numpy, list(shipped.features))
    held = [one for one in examples if crc32(one.id.encode()) % HELD_OUT == 0]
    used = [one for one in examples if crc32(one.id.encode()) % HELD_OUT != 0]
    start, known = fit.weights(shipped), fit.weights(current)
    fitted = fit.fitted(used, start, weight)
    rows = zip(fit.names, fitted.T.tolist(), strict=True)
    features: dict[str, Weights] = {
        name: (round(fast, 3), round(standard, 3), round(complex_, 3)) for name, (fast, standard, complex_) in rows
    }
    escalated = sum(one.escalated for one in held)
    new = fit.weights(Model(features, {}))
    return Trained(features, len(held), escalated, fit.figures(held, known), fit.figures(held, new))


class Fit:
    """The arithmetic: a row an example, a column a feature."""

    def __init__(self, numpy: ModuleType, names: Sequence[str]) -> None:
        self._np = numpy
        self.names = names
        self._column = {name: at for at, name in enumerate(names)}

    def weights(self, model: Model) -> Array:
        """Return a model's weights, a row a path."""
        nothing = (0.0, 0.0, 0.0)
        found: Array = self._np.array([model.features.get(name, nothing) for name in self.names]).T
        return found

    def fitted(self, examples: Sequence[Example], start: Array, weight: float) -> Array:
        """Fit one path's weights after another, drawn back to `start`, until none moves.

        Steps divide by an upper bound of the curvature (a quarter of the features' own), so that none is too long: where the
        start is certain of what is wrong, Newton's would be.
        """
        np = self._np
        matrix, words, targets = self._matrix(examples)
        counts = np.array([weight if one.escalated else 1.0 for one in examples])
        bound = (matrix.T * (counts / 4)) @ matrix
        bound[np.diag_indices_from(bound)] += PULL
        inverse = np.linalg.inv(bound)
        weights = start.copy()
        for _ in range(ROUNDS):
            largest = 0.0
            for path in range(len(PATHS)):
                chance = self._chances(matrix, words, weights)[:, path]
                gradient = matrix.T @ (counts * (chance - targets[:, path])) + PULL * (weights[path] - start[path])
                step = inverse @ gradient
                weights[path] -= step
                largest = max(largest, float(np.abs(step).max()))
            if largest < 1e-3:
                break
        return weights

    def figures(self, examples: Sequence[Example], weights: Array) -> Figures:
        """Return how weights do."""
        np = self._np
        matrix, words, targets = self._matrix(examples)
        chances = self._chances(matrix, words, weights)
        chosen, right = chances.argmax(axis=1), targets.argmax(axis=1)
        escalated = np.array([one.escalated for one in examples])
        counts = [int((chosen == path).sum()) for path in range(len(PATHS))]
        return Figures(
            agreed=float((chosen == right).mean()),
            foreseen=int((escalated & (chosen >= right)).sum()),
            loss=float(-np.log(np.maximum((chances * targets).sum(axis=1), 1e-12)).mean()),
            paths=(counts[0], counts[1], counts[2]),
        )

    def _matrix(self, examples: Sequence[Example]) -> tuple[Array, Array, Array]:
        """Features, what words add, and the right path as 0 and 1."""
        np = self._np
        matrix = np.zeros((len(examples), len(self.names)))
        for row, example in enumerate(examples):
            for name, value in example.features.items():
                column = self._column.get(name)
                if column is not None:
                    matrix[row, column] = value
        words = np.array([example.words for example in examples])
        return matrix, words, np.eye(len(PATHS))[[PATHS.index(example.path) for example in examples]]

    def _chances(self, matrix: Array, words: Array, weights: Array) -> Array:
        """The probability of each path."""
        logits = matrix @ weights.T + words
        powers = self._np.exp(logits - logits.max(axis=1, keepdims=True))
        found: Array = powers / powers.sum(axis=1, keepdims=True)
        return found
