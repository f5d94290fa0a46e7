"""`GET /metrics`: the counters of `counts.py` and gauges read at this moment, as Prometheus text (version 0.0.4).

The admin door calls `exposition` in a thread; nothing here runs for a request. Names beginning with `gen_ai_` follow
OpenTelemetry's GenAI conventions in Prometheus' spelling, the others are ours. `docs/metrics.md` explains each.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from hortator.ledger.counts import (
    FIRST_TOKEN_SECONDS,
    MAX_SERIES,
    OVERHEAD_SECONDS,
    PER_TOKEN_SECONDS,
    SECONDS,
    TOKENS,
    Counts,
    Histogram,
    Series,
    convention,
)
from hortator.ledger.task_counts import DURATION_SECONDS, TaskCounts
from hortator.store.tables import MONEY_SCALE

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STARTED = time.time()
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Reading(NamedTuple):
    """One gauge or counter as it stands now."""

    name: str
    help: str
    value: float
    labels: Mapping[str, str] = {}


class _Page:
    """Lines of text, family by family."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def family(self, name: str, kind: str, help: str) -> None:
        self.lines += (f"# HELP {name} {help}", f"# TYPE {name} {kind}")

    def sample(self, name: str, labels: Mapping[str, str], value: float | int | Decimal) -> None:
        self.lines.append(f"{name}{_labels(labels)} {_number(value)}")

    def histogram(
        self, name: str, labels: Mapping[str, str], bounds: tuple[float, ...], found: Histogram, unit: float
    ) -> None:
        """`unit` is how many of the base unit one observed unit is: 0.001 for milliseconds. An empty one is left out."""
        buckets = list(found.buckets)
        if not any(buckets):
            return
        total = 0
        begin = f"{name}_bucket{_labels(labels)[:-1]},le="
        for bound, count in zip((*map(_number, bounds), "+Inf"), buckets, strict=True):
            total += count
            self.lines.append(f'{begin}"{bound}"}} {total}')
        self.sample(f"{name}_sum", labels, found.sum * unit)
        self.sample(f"{name}_count", labels, total)


def exposition(counts: Counts, readings: Iterable[Reading], tasks: TaskCounts | None = None) -> bytes:
    """Return the whole page. `tasks`: None = this process has no teams of agents."""
    page = _Page()
    series = counts.series()
    _requests(page, counts, series)
    _consumption(page, series)
    _conventions(page, series)
    _tries(page, counts)
    if tasks is not None:
        _tasks(page, tasks)
    _gauges(page, (*readings, *_process()))
    return ("\n".join(page.lines) + "\n").encode()


def _requests(page: _Page, counts: Counts, series: list[Series]) -> None:
    page.family("hortator_requests_total", "counter", "Requests that ended, by the status the caller got.")
    for each in series:
        labels = each.labels._asdict() | {"status": str(each.labels.status)}
        page.sample("hortator_requests_total", labels, each.requests)
    page.family("hortator_attempts_total", "counter", "Tries at deployments.")
    for (provider, error), count in sorted(counts.attempts.copy().items()):
        page.sample("hortator_attempts_total", {"provider": provider, "error_type": error}, count)
    page.family("hortator_retries_total", "counter", "Second tries at the same deployment.")
    for provider in sorted({provider for provider, _ in counts.attempts.copy()}):
        page.sample("hortator_retries_total", {"provider": provider}, counts.retries.get(provider, 0))
    page.family("hortator_route_decisions_total", "counter", "Requests that were given a deployment, by what decided.")
    for (path, task), count in sorted(counts.decisions.copy().items()):
        page.sample("hortator_route_decisions_total", {"path": path, "task_type": task}, count)
    page.family("hortator_fallbacks_total", "counter", "Requests for which more than one deployment was tried.")
    page.sample("hortator_fallbacks_total", {}, counts.fallbacks)
    page.family(
        "hortator_local_fallbacks_total", "counter", "Requests for which the embedded model stood in for another."
    )
    page.sample("hortator_local_fallbacks_total", {}, counts.local_fallbacks)
    page.family("hortator_overhead_seconds", "histogram", "Time in the gateway, waiting for upstreams not counted.")
    for key, group in _grouped(series, lambda each: (each.labels.operation,)).items():
        found = _merged((each.overhead for each in group), OVERHEAD_SECONDS)
        page.histogram("hortator_overhead_seconds", {"operation": key[0]}, OVERHEAD_SECONDS, found, 0.001)
    page.family("hortator_series", "gauge", "Label sets of models in use.")
    page.sample("hortator_series", {}, len(series))
    page.family("hortator_series_limit", "gauge", "Label sets of models beyond which `_OTHER` is used.")
    page.sample("hortator_series_limit", {}, MAX_SERIES)


def _consumption(page: _Page, series: list[Series]) -> None:
    """Tokens and dollars by provider and model."""
    groups = _grouped([each for each in series if each.labels.provider], lambda e: (e.labels.provider, e.labels.model))
    page.family(
        "hortator_tokens_total", "counter", "Tokens, by kind; cached, reasoning, cache_write are parts of others."
    )
    for (provider, model), group in groups.items():
        sums = {
            "input": sum(each.input.sum for each in group),
            "output": sum(each.output.sum for each in group),
            "cached": sum(each.cached for each in group),
            "reasoning": sum(each.reasoning for each in group),
            "cache_write": sum(each.cache_write for each in group),
        }
        for kind, value in sums.items():
            page.sample("hortator_tokens_total", {"provider": provider, "model": model, "kind": kind}, value)
    page.family("hortator_cost_dollars_total", "counter", "US dollars, of the calls that have a price.")
    for (provider, model), group in groups.items():
        cost = Decimal(sum(each.cost for each in group)).scaleb(-MONEY_SCALE)
        page.sample("hortator_cost_dollars_total", {"provider": provider, "model": model}, cost)
    page.family("hortator_unpriced_requests_total", "counter", "Requests whose cost is not known.")
    for (provider, model), group in groups.items():
        unpriced = sum(each.unpriced for each in group)
        page.sample("hortator_unpriced_requests_total", {"provider": provider, "model": model}, unpriced)


def _conventions(page: _Page, series: list[Series]) -> None:
    """The metrics of the GenAI conventions. A call without a deployment never was an operation of a provider."""
    served = [each for each in series if each.labels.provider]
    name = "gen_ai_server_request_duration_seconds"
    page.family(name, "histogram", "Time from a request's head to the end of its reply.")
    for key, group in _grouped(served, lambda e: (*_asked(e), e.labels.error_type)).items():
        labels = _convention(key) | ({"error_type": key[3]} if key[3] else {})
        page.histogram(name, labels, SECONDS, _merged((each.duration for each in group), SECONDS), 0.001)
    groups = _grouped(served, _asked)
    name = "gen_ai_server_time_to_first_token_seconds"
    page.family(name, "histogram", "Streams: time from a request's head to the first content byte.")
    for key, group in groups.items():
        found = _merged((each.first_token for each in group), FIRST_TOKEN_SECONDS)
        page.histogram(name, _convention(key), FIRST_TOKEN_SECONDS, found, 0.001)
    name = "gen_ai_server_time_per_output_token_seconds"
    page.family(name, "histogram", "Streams: mean time between tokens after the first.")
    for key, group in groups.items():
        found = _merged((each.per_token for each in group), PER_TOKEN_SECONDS)
        page.histogram(name, _convention(key), PER_TOKEN_SECONDS, found, 0.001)
    name = "gen_ai_client_token_usage"
    page.family(name, "histogram", "Tokens of one call; calls whose usage is unknown are not observed.")
    for key, group in groups.items():
        for kind, histograms in (("input", [e.input for e in group]), ("output", [e.output for e in group])):
            labels = _convention(key) | {"gen_ai_token_type": kind}
            page.histogram(name, labels, TOKENS, _merged(histograms, TOKENS), 1)


def _tries(page: _Page, counts: Counts) -> None:
    """The metric of the conventions for what we are ourselves: a client of providers. One observation a try."""
    name = "gen_ai_client_operation_duration_seconds"
    page.family(name, "histogram", "Time from the start of a try at a deployment to its end.")
    for (operation, provider, error), found in sorted(counts.tries.copy().items()):
        labels = {"gen_ai_operation_name": operation, "gen_ai_provider_name": provider}
        page.histogram(name, labels | ({"error_type": error} if error else {}), SECONDS, found, 0.001)


def _asked(series: Series) -> tuple[str, ...]:
    return (convention(series.labels.operation), series.labels.provider, series.labels.model)


def _convention(key: tuple[str, ...]) -> dict[str, str]:
    return {
        "gen_ai_operation_name": key[0],
        "gen_ai_provider_name": key[1],
        "gen_ai_request_model": key[2],
    }


def _grouped(series: Iterable[Series], key: Callable[[Series], tuple[str, ...]]) -> dict[tuple[str, ...], list[Series]]:
    groups: dict[tuple[str, ...], list[Series]] = {}
    for each in series:
        groups.setdefault(key(each), []).append(each)
    return groups


def _merged(histograms: Iterable[Histogram], bounds: tuple[float, ...]) -> Histogram:
    total = Histogram(bounds)
    for each in histograms:
        total.buckets = [ours + theirs for ours, theirs in zip(total.buckets, each.buckets, strict=True)]
        total.sum += each.sum
    return total


def _tasks(page: _Page, tasks: TaskCounts) -> None:
    page.family("hortator_tasks_total", "counter", "Trees of tasks that ended, by how.")
    for phase, count in tasks.ended.items():
        page.sample("hortator_tasks_total", {"phase": phase}, count)
    page.family("hortator_task_duration_seconds", "histogram", "From the start of the work on a tree to its end.")
    for phase, found in tasks.durations.items():
        page.histogram("hortator_task_duration_seconds", {"phase": phase}, DURATION_SECONDS, found, 1)
    page.family("hortator_task_cost_usd_total", "counter", "US dollars of trees that ended.")
    page.sample("hortator_task_cost_usd_total", {}, tasks.cost)
    page.family("hortator_budget_exceeded_total", "counter", "Trees that their budget ended.")
    page.sample("hortator_budget_exceeded_total", {}, tasks.ended["BudgetExceeded"])
    page.family("hortator_stuck_detected_total", "counter", "Agents that were found stuck, by what was done.")
    for action, count in tasks.stuck.items():
        page.sample("hortator_stuck_detected_total", {"action": action}, count)
    page.family("hortator_task_events_total", "counter", "Events written to the logs of trees.")
    for type, count in sorted(tasks.events.copy().items()):
        page.sample("hortator_task_events_total", {"type": type}, count)


def _gauges(page: _Page, readings: Iterable[Reading]) -> None:
    """Readings of one name stand together; a name that ends in `_total` is a counter."""
    families: dict[str, list[Reading]] = {}
    for reading in readings:
        families.setdefault(reading.name, []).append(reading)
    for name, family in families.items():
        page.family(name, "counter" if name.endswith("_total") else "gauge", family[0].help)
        for reading in family:
            page.sample(name, reading.labels, reading.value)


def _process() -> list[Reading]:
    """What the system knows of this process, under the names that every client library uses."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return [
        Reading("process_resident_memory_bytes", "Resident memory.", pages * _PAGE),
        Reading("process_cpu_seconds_total", "User and system CPU time.", used.ru_utime + used.ru_stime),
        Reading("process_open_fds", "Open file descriptors.", len(os.listdir("/proc/self/fd"))),
        Reading("process_start_time_seconds", "Start of the process, Unix time.", _STARTED),
    ]


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").encode("utf-8", "replace").decode()


def _number(value: float | int | Decimal) -> str:
    """Numbers in full, without an exponent where it can be helped."""
    if isinstance(value, Decimal):
        return f"{value:f}"
    return repr(float(value)) if isinstance(value, float) and not value.is_integer() else str(int(value))
