"""What `/metrics` says: valid text, true sums, a closed set of error types, and a bounded number of lines."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from hortator.call import Attempt, Deployment, Outcome, ProviderId, TenantId, Usage
from hortator.errors import CODES
from hortator.ledger import PriceBook
from hortator.ledger.counts import MAX_SERIES, OTHER, Counts
from hortator.ledger.metrics import Reading, exposition
from hortator.ledger.records import MAX_TASKS, Recorder
from hortator.ledger.task_counts import TaskCounts
from hortator.wire.events import Event
from tests.outcomes import attempt, outcome

ROOT = Path(__file__).resolve().parents[2]
MODEL = "groq/llama-3.1-8b-instant"


def counted(*outcomes: Outcome, known: bool = True) -> Counts:
    """Counters that took these."""
    counts, recorder = Counts(lambda _: known), Recorder(PriceBook())
    counts.add([(each, recorder.row(each)) for each in outcomes])
    return counts


def scraped(
    counts: Counts, *readings: Reading, tasks: TaskCounts | None = None
) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Samples by name, as Prometheus' own parser reads them."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(exposition(counts, readings, tasks).decode()):
        assert family.documentation
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def one(found: list[tuple[dict[str, str], float]], **labels: str) -> float:
    (value,) = [value for have, value in found if labels.items() <= have.items()]
    return value


def test_calls_tokens_and_dollars_add_up() -> None:
    usage = Usage(input=100, output=10, cached=40, source="reported")
    found = scraped(counted(*(outcome(n, usage=usage) for n in range(3)), outcome(4, usage=Usage())))
    assert one(found["hortator_requests_total"], model=MODEL, status="200", error_type="") == 4
    assert one(found["hortator_tokens_total"], kind="input") == 300
    assert one(found["hortator_tokens_total"], kind="cached") == 120
    assert one(found["hortator_unpriced_requests_total"]) == 1
    assert 0 < one(found["hortator_cost_dollars_total"]) < 0.0001
    assert one(found["gen_ai_client_token_usage_count"], gen_ai_token_type="output") == 3
    assert one(found["gen_ai_client_token_usage_sum"], gen_ai_token_type="output") == 30
    assert one(found["gen_ai_server_request_duration_seconds_count"]) == 4
    assert round(one(found["gen_ai_server_request_duration_seconds_sum"]), 4) == round(4 * 0.1234567, 4)
    assert one(found["gen_ai_server_time_to_first_token_seconds_count"]) == 4
    assert one(found["gen_ai_server_time_per_output_token_seconds_count"]) == 3


def test_histograms_put_each_value_under_the_first_bound_it_is_not_over() -> None:
    times = [10.0, 10.1, 80.0, 81_920.0, 1e9]
    found = scraped(counted(*(outcome(n, latency_ms=ms) for n, ms in enumerate(times))))
    buckets = found["gen_ai_server_request_duration_seconds_bucket"]
    under = {labels["le"]: value for labels, value in buckets}
    assert [under[le] for le in ("0.01", "0.02", "0.04", "0.08", "40.96", "81.92", "+Inf")] == [1, 2, 2, 3, 3, 4, 5]


def test_failures_attempts_and_fallbacks_are_told_apart() -> None:
    local = Deployment(id="local/q", provider=ProviderId("local"), model="q")
    tries = (attempt(None, "upstream_connect_failed"), attempt(200))
    elsewhere = (
        attempt(500, "upstream_error"),
        Attempt(deployment="local/q", provider=ProviderId("local"), status=200, code=None, duration_ms=1),
    )
    found = scraped(
        counted(
            outcome(1, attempts=tries),
            outcome(2, attempts=elsewhere, deployment=local, local_fallback=True),
            outcome(3, status=502, code="upstream_error", attempts=(attempt(500, "upstream_error"),)),
            outcome(4, status=404, code="model_not_found", deployment=None, attempts=()),
        )
    )
    attempts = found["hortator_attempts_total"]
    assert one(attempts, provider="groq", error_type="upstream_connect_failed") == 1
    assert one(attempts, provider="groq", error_type="upstream_error") == 2
    assert one(attempts, provider="groq", error_type="") == 1
    assert one(attempts, provider="local", error_type="") == 1
    assert (one(found["hortator_fallbacks_total"]), one(found["hortator_local_fallbacks_total"])) == (1, 1)
    assert one(found["hortator_requests_total"], provider="", error_type="model_not_found") == 1


def test_second_tries_at_one_deployment_are_counted_apart_from_tries_elsewhere() -> None:
    failed = attempt(500, "upstream_error")
    other = msgspec.structs.replace(failed, deployment="groq/other")
    found = scraped(counted(outcome(1, attempts=(failed, other, failed, attempt(200))), outcome(2)))
    assert one(found["hortator_retries_total"], provider="groq") == 2
    durations = found["gen_ai_client_operation_duration_seconds_count"]
    assert one(durations, gen_ai_provider_name="groq", error_type="upstream_error") == 3
    assert sum(value for _, value in durations) == 5


def test_operations_have_the_names_of_the_conventions_and_no_sample_comes_twice() -> None:
    asked = ("chat", "messages", "responses", "completions", "embeddings")
    page = exposition(counted(*(outcome(n, operation=name) for n, name in enumerate(asked))), ()).decode()
    samples = [line.rpartition(" ")[0] for line in page.splitlines() if not line.startswith("#")]
    assert len(samples) == len(set(samples))
    assert set(re.findall(r'gen_ai_operation_name="(\w+)"', page)) == {"chat", "text_completion", "embeddings"}


def test_decisions_are_counted_by_path_and_by_the_task_types_that_the_configuration_names() -> None:
    counts = Counts(lambda _: True, lambda task: task == "extraction")
    asked = [("fast", "extraction"), (None, None), (None, None), *(("complex", f"made-up-{n}") for n in range(1000))]
    outcomes = [outcome(n, path=path, task_type=task) for n, (path, task) in enumerate(asked)]
    outcomes.append(outcome(2000, deployment=None, attempts=(), task_type="extraction", status=403, code="forbidden"))
    recorder = Recorder(PriceBook())
    counts.add([(each, recorder.row(each)) for each in outcomes])
    found = {(each["path"], each["task_type"]): n for each, n in scraped(counts)["hortator_route_decisions_total"]}
    assert found == {("fast", "extraction"): 1, ("named", ""): 2, ("complex", "other"): 1000}


def test_a_thousand_task_types_have_sums_of_their_own_and_no_more() -> None:
    recorder = Recorder(PriceBook())
    kept = [recorder.row(outcome(n, task_type=f"{n}-" + "x" * 200)).task_type or "" for n in range(1500)]
    assert len(set(kept)) == MAX_TASKS + 1
    assert max(map(len, kept)) == 100
    assert kept[-1] == "other"
    assert recorder.row(outcome(1, task_type="0-" + "x" * 200)).task_type == kept[0], "those that are known stay"


def test_what_a_provider_calls_its_errors_is_not_a_label() -> None:
    codes = [None, "upstream_error", *(f'{n} "odd"\n\\ \ud800' for n in range(1000))]
    found = scraped(counted(*(outcome(n, code=code) for n, code in enumerate(codes))))
    assert {labels["error_type"] for labels, _ in found["hortator_requests_total"]} == {"", "upstream_error", OTHER}
    assert one(found["hortator_requests_total"], error_type=OTHER) == 1000


def test_ten_thousand_unknown_models_are_one_series() -> None:
    found = scraped(counted(*(outcome(n, model=f"nobody/{n}", status=404) for n in range(10_000)), known=False))
    assert [(labels["model"], value) for labels, value in found["hortator_requests_total"]] == [(OTHER, 10_000)]


def test_ten_thousand_catalogued_models_stay_within_the_bound() -> None:
    counts = counted(*(outcome(n, model=f"groq/{n}") for n in range(10_000)))
    found = scraped(counts)["hortator_requests_total"]
    assert len(found) == MAX_SERIES + 1
    assert sum(value for _, value in found) == 10_000
    assert len(exposition(counts, ()).splitlines()) < 60_000


def test_readings_of_one_name_are_one_family_and_text_is_escaped() -> None:
    odd = 'a "quoted"\nline \\'
    readings = [
        Reading("up", "Help.", 1, {"x": odd}),
        Reading("other_total", "Help.", 2.5),
        Reading("up", "Help.", 0, {"x": "b"}),
    ]
    found = scraped(counted(), *readings)
    assert found["up"] == [({"x": odd}, 1), ({"x": "b"}, 0)]
    assert found["other_total"] == [({}, 2.5)]
    assert found["process_resident_memory_bytes"][0][1] > 1_000_000


def test_every_code_a_call_can_end_with_is_in_the_closed_list() -> None:
    raised = re.compile(r'(?:code|default_code)\s*=\s*"([a-z_]+)"')
    rooms = [path for room in ("dispatch", "providers", "routing") for path in (ROOT / "hortator" / room).rglob("*.py")]
    codes = {code for path in rooms for code in raised.findall(path.read_text("utf-8"))}
    assert codes - CODES == set()


def test_each_metric_is_explained() -> None:
    """Of both kinds: those that the counters make, and the gauges that the composition root reads."""
    page = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    documented = set(re.findall(r"^\| `([a-z_]+)`", page, re.MULTILINE))
    families = set(
        re.findall(r"^# TYPE (\S+)", exposition(counted(outcome()), (), TaskCounts()).decode(), re.MULTILINE)
    )
    for file in ("app.py", "orchestrating.py"):
        families |= set(re.findall(r'Reading\(\s*"([a-z_]+)"', (ROOT / "hortator" / file).read_text("utf-8")))
    assert families == documented


def told(type: str, **details: object) -> Event:
    return Event(seq=1, task_id="root", type=type, timestamp="2026-11-21T12:00:00.000Z", details=details)


def test_trees_are_counted_by_their_last_event() -> None:
    tasks = TaskCounts()
    ends = [
        told("completed", duration_ms=1500, cost_usd="0.0012"),
        told("completed", duration_ms=3000, cost_usd="0.1"),
        told("failed", duration_ms=20),
        told("budget_exceeded", code="task_budget_exceeded", cost_usd="1"),
    ]
    others = [told("task_created"), told("progress"), told("progress"), told("stuck_detected", action="kill")]
    strange = [told("stuck_detected", action="x" * 1000), told("of another release"), told("failed", cost_usd="much")]
    tasks.told(TenantId("t"), [*others, *ends, *strange])
    found = scraped(Counts(lambda _: True), tasks=tasks)
    phases = {labels["phase"]: value for labels, value in found["hortator_tasks_total"]}
    assert phases == {"Completed": 2, "Failed": 2, "Cancelled": 0, "BudgetExceeded": 1, "TimedOut": 0}
    assert one(found["hortator_budget_exceeded_total"]) == 1
    assert one(found["hortator_task_cost_usd_total"]) == 1.1012
    assert one(found["hortator_task_duration_seconds_sum"], phase="Completed") == 4.5
    assert one(found["hortator_task_duration_seconds_bucket"], phase="Completed", le="2") == 1
    assert one(found["hortator_task_duration_seconds_bucket"], phase="Failed", le="1") == 1
    assert {labels["action"]: value for labels, value in found["hortator_stuck_detected_total"]} == {
        "warn": 0,
        "kill": 1,
        "escalate": 0,
    }
    events = {labels["type"]: value for labels, value in found["hortator_task_events_total"]}
    assert (events["progress"], events["completed"], set(events) - {each.type for each in [*others, *ends]}) == (
        2,
        2,
        set(),
    )
