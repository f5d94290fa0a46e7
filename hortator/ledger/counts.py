"""What the metrics are made of: plain counters, one `Series` for each operation, provider, model, status and error.

The ledger's worker thread adds each batch of outcomes here, off the request path; `metrics.py` reads at scrape time, in another
thread, from copies. The number of series is bounded whatever clients ask for: only catalogued models have one of their own, at
most `MAX_SERIES` in all, and error types come from a closed list; everything else is `_OTHER`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from hortator.call import Outcome
from hortator.errors import CODES
from hortator.store.usage import UsageRow

OTHER = "_OTHER"
"""The label of everything that has none of its own (the name is the GenAI conventions')."""
OPERATIONS: Mapping[str, str] = {"completions": "text_completion", "responses": "chat", "messages": "chat"}
"""Operations whose name in the GenAI conventions is another."""
OTHER_TASK = "other"
"""The label of task types that the configuration does not name."""
MAX_SERIES = 500
"""Series with a model's name. Each costs about 2 KB, and up to 50 lines in a scrape."""

SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS = tuple(4**power for power in range(14))
OVERHEAD_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5)
"""Upper bounds of the buckets; all but the last are those of the GenAI conventions."""

_DURATION, _FIRST, _PER_TOKEN, _OVERHEAD = (
    tuple(bound * 1000 for bound in bounds)
    for bounds in (SECONDS, FIRST_TOKEN_SECONDS, PER_TOKEN_SECONDS, OVERHEAD_SECONDS)
)


class Labels(NamedTuple):
    """What tells series apart."""

    operation: str
    provider: str
    """Empty when no deployment was chosen."""
    model: str
    """As asked for, where it is catalogued."""
    status: int
    error_type: str
    """Empty when there was none."""


class Histogram:
    """Observations by bucket, and their sum in the observed unit."""

    __slots__ = ("buckets", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.buckets = [0] * (len(bounds) + 1)
        self.sum: float = 0

    def take(self, values: list[float] | list[int], bounds: tuple[float, ...]) -> None:
        """Observe these values; `bounds` are the buckets' upper ends in the values' unit."""
        if not values:
            return
        self.sum += sum(values)
        values.sort()
        below = 0
        for place, bound in enumerate(bounds):
            upto = bisect_right(values, bound, below)
            if upto > below:
                self.buckets[place] += upto - below
                below = upto
                if below == len(values):
                    return
        self.buckets[-1] += len(values) - below


class Series:
    """The counters of one set of labels. Times are in milliseconds, cost in 1e-10 US dollars."""

    __slots__ = (
        "cache_write",
        "cached",
        "cost",
        "duration",
        "first_token",
        "input",
        "labels",
        "output",
        "overhead",
        "per_token",
        "reasoning",
        "requests",
        "unpriced",
    )

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.requests = self.unpriced = self.cost = 0
        self.cached = self.reasoning = self.cache_write = 0
        self.duration = Histogram(SECONDS)
        self.overhead = Histogram(OVERHEAD_SECONDS)
        self.first_token = Histogram(FIRST_TOKEN_SECONDS)
        self.per_token = Histogram(PER_TOKEN_SECONDS)
        self.input = Histogram(TOKENS)
        self.output = Histogram(TOKENS)


class Counts:
    """Every counter of the process. `add` from one thread only."""

    def __init__(
        self, catalogued: Callable[[str], bool] = lambda _: False, task_known: Callable[[str], bool] = lambda _: False
    ) -> None:
        """`catalogued` says whether a model is in the catalogue, and so may have series of its own; `task_known` the same
        of task types.
        """
        self._catalogued = catalogued
        self._task_known = task_known
        self._series: dict[tuple[str, str, str, int, str | None], Series] = {}
        self.attempts: dict[tuple[str, str], int] = {}
        """Tries by provider and error type."""
        self.tries: dict[tuple[str, str, str], Histogram] = {}
        """How long they took, milliseconds, by operation, provider and error type."""
        self.fallbacks = 0
        """Requests for which more than one deployment was tried."""
        self.local_fallbacks = 0
        """Requests for which the embedded model stood in for another one."""
        self.decisions: dict[tuple[str, str], int] = {}
        """Requests by path and task type."""
        self.retries: dict[str, int] = {}
        """Second tries at the same deployment, by provider."""

    def series(self) -> list[Series]:
        """Every series, as of now."""
        return list(self._series.values())

    def add(self, pairs: Iterable[tuple[Outcome, UsageRow]]) -> None:
        """Count these calls. A `UsageRow` has what was made plausible: tokens and cost.

        They are sorted by series first: a histogram takes many values at once for half the cost of one by one.
        """
        groups: dict[tuple[str, str, str, int, str | None], list[tuple[Outcome, UsageRow]]] = {}
        key: tuple[str, str, str, int, str | None]
        for pair in pairs:
            outcome, row = pair
            key = (outcome.operation, row.provider or "", outcome.model, outcome.status, outcome.code)
            group = groups.get(key)
            if group is None:
                groups[key] = [pair]
            else:
                group.append(pair)
        for key, group in groups.items():
            self._add((self._series.get(key) or self._new(*key)), group)

    def _add(self, series: Series, group: list[tuple[Outcome, UsageRow]]) -> None:
        """Count calls that belong to one series."""
        series.requests += len(group)
        series.duration.take([outcome.latency_ms for outcome, _ in group], _DURATION)
        series.overhead.take([outcome.overhead_ms for outcome, _ in group], _OVERHEAD)
        series.input.take([row.input_tokens for _, row in group if row.input_tokens is not None], TOKENS)
        series.output.take([row.output_tokens for _, row in group if row.output_tokens is not None], TOKENS)
        costs = [row.cost for _, row in group if row.cost is not None]
        series.cost += sum(costs)
        series.unpriced += len(group) - len(costs)
        streamed = [pair for pair in group if pair[0].stream and pair[0].first_byte_ms is not None]
        if streamed:
            series.first_token.take([outcome.first_byte_ms or 0.0 for outcome, _ in streamed], _FIRST)
            series.per_token.take([pace for pair in streamed if (pace := _pace(*pair)) is not None], _PER_TOKEN)
        for _, row in group:
            if row.cached_tokens or row.reasoning_tokens or row.cache_write_tokens:
                series.cached += row.cached_tokens or 0
                series.reasoning += row.reasoning_tokens or 0
                series.cache_write += row.cache_write_tokens or 0
        if series.labels.error_type:
            retried = group
        else:
            retried = [pair for pair in group if len(pair[0].attempts) != 1]
            plain = (series.labels.provider, "")
            self.attempts[plain] = self.attempts.get(plain, 0) + len(group) - len(retried)
            times = [outcome.attempts[0].duration_ms for outcome, _ in group if len(outcome.attempts) == 1]
            self._took(series.labels.operation, *plain, times)
        for outcome, _ in retried:
            self._try(outcome)
        for outcome, _ in group:
            self.local_fallbacks += outcome.local_fallback
            self._decide(outcome)

    def _decide(self, outcome: Outcome) -> None:
        """Count what routing decided. A request that failed before it has no deployment, and no decision."""
        if outcome.deployment is None:
            return
        task = outcome.task_type
        key = (outcome.path or "named", "" if task is None else task if self._task_known(task) else OTHER_TASK)
        self.decisions[key] = self.decisions.get(key, 0) + 1

    def _try(self, outcome: Outcome) -> None:
        """Count the attempts of a call that did not succeed at once."""
        tried = set()
        for attempt in outcome.attempts:
            key = (attempt.provider, error_type(attempt.code))
            self.attempts[key] = self.attempts.get(key, 0) + 1
            self._took(outcome.operation, *key, [attempt.duration_ms])
            if attempt.deployment in tried:
                self.retries[attempt.provider] = self.retries.get(attempt.provider, 0) + 1
            tried.add(attempt.deployment)
        if len({attempt.deployment for attempt in outcome.attempts}) > 1:
            self.fallbacks += 1

    def _took(self, operation: str, provider: str, error: str, times: list[float]) -> None:
        """Observe how long tries took."""
        if times:
            key = (convention(operation), provider, error)
            histogram = self.tries.get(key)
            if histogram is None:
                histogram = self.tries[key] = Histogram(SECONDS)
            histogram.take(times, _DURATION)

    def _new(self, operation: str, provider: str, model: str, status: int, code: str | None) -> Series:
        """Find or make the series of what was not met before. Only catalogued models are remembered by their own name."""
        named = len(self._series) < MAX_SERIES and self._catalogued(model)
        known = code if code is None or code in CODES else OTHER
        key = (operation, provider, model if named else OTHER, status, known)
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = Series(Labels(*key[:4], known or ""))
        return series


def _pace(outcome: Outcome, row: UsageRow) -> float | None:
    """Milliseconds a token after a stream's first one; None when there was but one, or nobody counted."""
    if row.output_tokens is None or row.output_tokens < 2 or outcome.first_byte_ms is None:
        return None
    return max(0.0, outcome.latency_ms - outcome.first_byte_ms) / (row.output_tokens - 1)


def convention(operation: str) -> str:
    """Return an operation's name in the GenAI conventions."""
    return OPERATIONS.get(operation, operation)


def error_type(code: str | None) -> str:
    """The label of an error code: itself where it is ours, `_OTHER` for a provider's, empty for none."""
    if code is None:
        return ""
    return code if code in CODES else OTHER
