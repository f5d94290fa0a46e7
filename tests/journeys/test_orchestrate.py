"""Harpoon's orchestrations at a real gateway, and what they save and gain on a scripted upstream (R-002-4 to R-002-7, R-002-10, R-002-14).

Prices, qualities and judgements are scripted: the tests show that the arithmetic and the loop are right, not how good any model is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from tests.door import Connection, Door, Reply, head
from tests.gateway import Gateway, eventually, running_gateway
from tests.upstream.process import Upstream, running_upstream
from tests.upstream.script import completion, dump, reply

WORKER, ORCHESTRATOR, FLAGSHIP, EDGE = (
    "groq/llama-3.1-8b-instant",
    "openai/gpt-4o-mini",
    "openai/gpt-4o",
    "rim/@cf/meta/tiny",
)
PLACES = {
    WORKER: ("primary", "0.05", 6.0),
    ORCHESTRATOR: ("flagship", "0.15", 7.5),
    FLAGSHIP: ("flagship", "2.5", 9.0),
    EDGE: ("edge", "0.01", 5.5),
}
"""Model -> tier, US dollars a million tokens (Harpoon's figures), quality."""
TOKENS = 120
"""Of every answer of the scripted team: 100 read, 20 written."""
METADATA = {"pattern", "duration_ms", "cost_estimate", "models_used"}


def price(model: str, calls: int) -> Decimal:
    """What so many calls of a model cost."""
    return calls * TOKENS * Decimal(PLACES[model][1]) / 1_000_000


@pytest.fixture(scope="module")
def own() -> Iterator[Upstream]:
    with running_upstream() as running:
        yield running


@pytest.fixture(scope="module")
def harpoon(tmp_path_factory: pytest.TempPathFactory, own: Upstream) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("orchestrate")
    named = {
        id: [model.partition("/")[2] for model in PLACES if model.startswith(f"{id}/")]
        for id in ("groq", "openai", "rim")
    }
    prices: dict[str, dict[str, Any]] = {id: {} for id in named}
    for model, (_, dollars, _) in PLACES.items():
        id, _, name = model.partition("/")
        prices[id][name] = {"input": dollars, "output": dollars}
    (folder / "prices.yaml").write_text(json.dumps(prices))
    cards = {
        model: {"tier": tier, "quality": quality, "speed": 100, "context_window": 32_768, "capabilities": ["chat"]}
        for model, (tier, _, quality) in PLACES.items()
    }
    with running_gateway(
        folder,
        own,
        providers=[
            {"id": id, "kind": "openai", "base_url": own.base_url(id), "models": names} for id, names in named.items()
        ],
        models=[],
        orchestration={"enabled": True},
        routing={"cards": cards},
        ledger={"price_overrides": str(folder / "prices.yaml")},
    ) as running:
        for id in named:
            own.control("plan", mark="", provider=id, scenario="team")
        yield running


@pytest.fixture
def door(harpoon: Gateway) -> Door:
    return harpoon.door


def post(door: Door, path: str, document: Any) -> Reply:
    return door.call("POST", path, json.dumps(document).encode())


def orchestrated(door: Door, pattern: str, **fields: Any) -> dict[str, Any]:
    """A pattern's whole reply."""
    answer = post(door, f"/api/orchestrate/{pattern}", fields)
    assert answer.status == 200, answer
    found: dict[str, Any] = json.loads(answer.body, parse_float=Decimal)
    assert set(found["metadata"]) == METADATA
    assert answer.header("x-hortator-task-id")
    return found


def test_parallel_is_answered_in_harpoons_fields(door: Door) -> None:
    """R-002-4."""
    requests = [{"messages": [{"role": "user", "content": f"Number {n}"}]} for n in range(3)]
    found = orchestrated(door, "parallel", requests=requests)
    assert list(found) == ["success", "data", "metadata"]
    assert found["success"] is True
    assert {name: found["data"][name] for name in ("total", "successful", "failed")} == {
        "total": 3,
        "successful": 3,
        "failed": 0,
    }
    assert [list(one) for one in found["data"]["results"]] == [["index", "status", "data", "error"]] * 3
    first = found["data"]["results"][0]["data"]
    assert (first["model"], first["usage"]["total_tokens"]) == (WORKER, TOKENS)
    assert first["content"].startswith("The answer of the team")
    assert found["metadata"]["pattern"] == "parallelization"
    assert found["metadata"]["models_used"] == [WORKER]
    assert found["metadata"]["cost_estimate"] == price(WORKER, 3)


def test_a_request_of_parallel_that_fails_is_told_beside_the_others(door: Door) -> None:
    failing = {"prompt": "# Your part\npart-1 [fail:part-1]"}
    found = orchestrated(door, "parallel", requests=[{"prompt": "One"}, failing])
    assert (found["success"], found["error"]) == (False, "1 of 2 requests failed")
    assert [one["status"] for one in found["data"]["results"]] == ["fulfilled", "rejected"]
    assert "refused" in found["data"]["results"][1]["error"]


def test_parallel_of_which_nothing_was_answered_says_why_of_each(door: Door) -> None:
    """R-002-4: success is that none failed; a failure of all is told like one of some."""
    failing = {"prompt": "# Your part\npart-1 [fail:part-1]"}
    found = orchestrated(door, "parallel", requests=[failing, failing])
    assert (found["success"], found["data"]["successful"], found["data"]["failed"]) == (False, 0, 2)
    assert all("refused" in one["error"] for one in found["data"]["results"])
    assert "None of 2 requests was answered" in found["error"]


def test_workers_is_answered_in_harpoons_fields(door: Door) -> None:
    """R-002-5, R-002-11: `jq .data.final_answer` works, and the models are the documented ones."""
    found = orchestrated(door, "workers", prompt="Do much. [parts:5]")
    assert found["success"] is True
    assert list(found["data"]) == ["plan", "task_results", "final_answer"]
    assert found["data"]["plan"][1] == {"id": "part-2", "description": "Do part-2 of the work.", "dependencies": []}
    assert found["data"]["task_results"]["part-3"] == "What part-3 found: everything that was asked for."
    assert found["data"]["final_answer"] == "The answer of the team, from part-1, part-2, part-3, part-4, part-5."
    assert found["metadata"]["pattern"] == "orchestrator-workers"
    assert found["metadata"]["models_used"] == [ORCHESTRATOR, WORKER]


def test_workers_costs_less_than_a_quarter_of_the_flagship_alone(door: Door) -> None:
    """The claim of 80 % savings (R-002-5), simulated: the same calls at the flagship, at Harpoon's prices."""
    prompt = "Compare everything with everything. [parts:5]"
    cheap = orchestrated(door, "workers", prompt=prompt)
    dear = orchestrated(door, "workers", prompt=prompt, orchestrator_model="gpt-4o", worker_model=FLAGSHIP)
    assert dear["metadata"]["models_used"] == [FLAGSHIP]
    assert cheap["data"]["final_answer"] == dear["data"]["final_answer"]
    assert cheap["metadata"]["cost_estimate"] == price(ORCHESTRATOR, 2) + price(WORKER, 5)
    assert dear["metadata"]["cost_estimate"] == price(FLAGSHIP, 7)
    assert cheap["metadata"]["cost_estimate"] <= dear["metadata"]["cost_estimate"] / 4


def test_optimize_raises_the_score_as_the_judge_predicts(door: Door) -> None:
    """The claim of better quality in two or three iterations (R-002-6), simulated: the judge's scores are scripted."""
    found = orchestrated(
        door, "optimize", task="Write a poem. [score:6,7.5,8.6,9.9]", quality_threshold=8.5, max_iterations=5
    )
    data = found["data"]
    assert [one["score"] for one in data["history"]] == [6, Decimal("7.5"), Decimal("8.6")]
    assert (data["final_score"], data["iterations"], data["threshold_met"]) == (Decimal("8.6"), 3, True)
    assert data["final_score"] / data["history"][0]["score"] >= Decimal("1.3")
    assert [list(one) for one in data["history"]] == [["iteration", "output", "score", "feedback"]] * 3
    assert found["metadata"]["pattern"] == "evaluator-optimizer"
    assert set(found["metadata"]["models_used"]) == {WORKER, ORCHESTRATOR}


def test_smart_honours_preferences_and_says_what_it_did(door: Door) -> None:
    """R-002-7: Harpoon's own router ignores preferences."""
    plain = orchestrated(door, "smart", prompt="What is a tuple?")
    assert plain["data"]["model_used"] == EDGE
    good = orchestrated(door, "smart", prompt="What is a tuple?", preferences={"minQuality": 8})
    assert list(good["data"]) == ["answer", "routing_decision", "model_used", "attempts", "used_fallback"]
    assert good["data"]["model_used"] == FLAGSHIP
    assert good["data"]["routing_decision"]["selected_model"]["id"] == FLAGSHIP
    assert set(good["data"]["routing_decision"]) == {
        "selected_model",
        "fallback_models",
        "reasoning",
        "estimated_cost",
        "estimated_latency",
    }
    assert (good["data"]["attempts"], good["data"]["used_fallback"]) == (1, False)
    assert good["metadata"]["pattern"] == "smart-router"
    refused = post(door, "/api/orchestrate/smart", {"prompt": "Hi", "preferences": {"minQuality": 10}})
    assert (refused.status, refused.json["code"]) == (400, "preferences_unsatisfiable")


def test_smart_falls_back_when_the_chosen_model_fails(door: Door, own: Upstream) -> None:
    """R-002-7: Primary, Edge, Flagship; C-27."""
    own.control("plan", mark="", provider="rim", scenario="status_500")
    try:
        found = orchestrated(door, "smart", prompt="What is a tuple?")
    finally:
        own.control("plan", mark="", provider="rim", scenario="team")
    assert found["data"]["model_used"] != EDGE
    assert (found["data"]["attempts"], found["data"]["used_fallback"]) == (2, True)
    assert found["data"]["routing_decision"]["selected_model"]["id"] == EDGE


@pytest.mark.parametrize(
    ("pattern", "body", "error"),
    [
        ("parallel", {}, "requests array is required"),
        ("parallel", {"requests": []}, "requests array is required"),
        ("workers", {"prompt": ""}, "prompt is required"),
        ("optimize", {"prompt": "x"}, "task is required"),
        ("smart", {}, "prompt is required"),
    ],
)
def test_what_is_missing_is_said_in_harpoons_words(door: Door, pattern: str, body: Any, error: str) -> None:
    answer = post(door, f"/api/orchestrate/{pattern}", body)
    assert (answer.status, answer.json["error"]) == (400, error)
    assert list(answer.json) == ["success", "error", "code", "request_id"]


def test_unknown_models_addresses_and_callers_are_refused(door: Door) -> None:
    for body, status, code in (
        ({"prompt": "x", "worker_model": "nobody/nothing"}, 404, "model_not_found"),
        ({"prompt": "x", "worker_model": 5}, 400, "invalid_type"),
        ({"prompt": "x", "worker_model": "hortator/default"}, 404, "model_not_found"),
    ):
        answer = post(door, "/api/orchestrate/workers", body)
        assert (answer.status, answer.json["code"]) == (status, code), answer
    assert post(door, "/api/orchestrate/everything", {"prompt": "x"}).status == 404
    assert door.call("GET", "/api/orchestrate/smart").status == 405
    assert Door(door.port, "hrt_sk_wrong").call("POST", "/api/orchestrate/smart", b"{}").status == 401


def test_a_plan_that_goes_in_a_circle_is_an_error(door: Door, own: Upstream) -> None:
    circle = {
        "tasks": [
            {"id": "a", "description": "x", "dependencies": ["b"]},
            {"id": "b", "description": "y", "dependencies": ["a"]},
        ]
    }
    steps = reply(200, dump(completion({"role": "assistant", "content": json.dumps(circle)})))
    own.control("plan", mark="", provider="openai", steps=steps)
    try:
        answer = post(door, "/api/orchestrate/workers", {"prompt": "x"})
    finally:
        own.control("plan", mark="", provider="openai", scenario="team")
    assert (answer.status, answer.json["error"]) == (502, "Circular dependency detected in task plan")


def test_a_client_that_hangs_up_cancels_the_tree(door: Door, own: Upstream) -> None:
    for provider in ("groq", "openai", "rim"):
        own.control("plan", mark="gone", provider=provider, scenario="team")
    body = json.dumps({"prompt": "Do much. [mark:gone] [hold]"}).encode()
    headers = {"Host": "x", "Authorization": f"Bearer {door.key}", "Content-Type": "application/json"}
    with Connection(door.port) as connection:
        connection.send(head("POST", "/api/orchestrate/workers", {**headers, "Content-Length": str(len(body))}) + body)
        tasks = eventually(lambda: working(door), "workers at work")
    eventually(lambda: status(door, tasks) == "Cancelled", "the tree to end")


def working(door: Door) -> str | None:
    """The id of the newest tree of Harpoon's door, once its agents are at work."""
    listed = door.call("GET", "/api/v1/tasks?source=harpoon&limit=1").json["data"]
    return listed[0]["id"] if listed and listed[0]["status"] == "Waiting" else None


def status(door: Door, id: str) -> str:
    found: str = door.call("GET", f"/api/v1/tasks/{id}").json["status"]
    return found


def test_patterns_are_models_and_orders_too(door: Door) -> None:
    """The same trees through the chat door and `/api/v1/orchestrations`."""
    chat = {"model": "hortator/pattern-workers", "messages": [{"role": "user", "content": "Do much. [parts:2]"}]}
    answer = post(door, "/v1/chat/completions", chat)
    assert answer.status == 200, answer
    assert answer.json["choices"][0]["message"]["content"] == "The answer of the team, from part-1, part-2."
    order = {"pattern": "optimize", "task": "Write. [score:9]", "quality_threshold": 8}
    taken = post(door, "/api/v1/orchestrations", order)
    assert taken.status == 202, taken
    id = taken.json["id"]
    ended = door.call("GET", f"/api/v1/orchestrations/{id}?wait=30").json
    assert (ended["status"], ended["results"]["data"]["final_score"]) == ("Completed", 9.0)


def test_the_status_of_agents_is_told(door: Door) -> None:
    """R-002-10, C-26."""
    answer = door.call("GET", "/api/agents/status")
    assert answer.status == 200
    assert list(answer.json) == ["agents_enabled", "mode", "mediator", "orchestrator", "websockets", "message"]
    assert answer.json["agents_enabled"] is True


def test_agents_that_are_switched_off_are_503_and_their_addresses_unknown(gateway: Gateway) -> None:
    """C-26. The gateway of the other journeys has none."""
    answer = gateway.door.call("GET", "/api/agents/status")
    assert (answer.status, answer.json["agents_enabled"]) == (503, False)
    assert post(gateway.door, "/api/orchestrate/smart", {"prompt": "x"}).status == 404


def test_a_patterns_answer_streams_through_the_chat_door(door: Door) -> None:
    for pattern, text in (
        ("workers", "The answer of the team, from part-1, part-2."),
        ("optimize", "The answer of the team"),
    ):
        chat = {
            "model": f"hortator/pattern-{pattern}",
            "stream": True,
            "messages": [{"role": "user", "content": "Do it. [parts:2]"}],
        }
        answer = post(door, "/v1/chat/completions", chat)
        assert answer.status == 200, answer
        lines = [line for line in answer.body.decode().split("\n") if line.startswith("data: {")]
        pieces = [choice["delta"].get("content") or "" for line in lines for choice in json.loads(line[6:])["choices"]]
        assert "".join(pieces).startswith(text)
        assert answer.body.rstrip().endswith(b"data: [DONE]")
