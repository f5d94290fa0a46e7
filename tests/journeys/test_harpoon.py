"""Harpoon's clients at a real gateway: prompts, batches, the model list, in exactly the fields that they read (R-002-8, R-002-9)."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.door import PATIENCE, Connection, Door, Reply
from tests.gateway import Gateway, eventually, running_gateway
from tests.upstream.process import Upstream, running_upstream
from tests.upstream.script import TEXT, completion, dump, reply

PLACES = {
    "swift": ("llama-small", "primary", "0.05", 6.0),
    "rim": ("@cf/meta/tiny", "edge", "0.01", 5.5),
    "grand": ("gpt-best", "flagship", "2.5", 9.0),
    "odd": ("openai/gpt-oss-20b", "primary", "0.075", 7.2),
}
"""Provider -> the name, tier, price and quality of its model."""
SIMPLE = "What is the capital of France?"
FIELDS = ["content", "model", "provider", "tier", "usage", "performance", "cost", "routing"]


@pytest.fixture(scope="module")
def own() -> Iterator[Upstream]:
    """An upstream of its own: Harpoon's requests carry no mark, so what is planned here is for all of them."""
    with running_upstream() as running:
        yield running


@pytest.fixture(scope="module")
def harpoon(tmp_path_factory: pytest.TempPathFactory, own: Upstream) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("harpoon")
    prices = {id: {name: {"input": price, "output": price}} for id, (name, _, price, _) in PLACES.items()}
    (folder / "prices.yaml").write_text(json.dumps(prices))
    providers = [
        {"id": id, "kind": "openai", "base_url": own.base_url(id), "models": [name]}
        for id, (name, *_) in PLACES.items()
    ]
    cards = {
        f"{id}/{name}": {
            "tier": tier,
            "quality": quality,
            "speed": 100,
            "context_window": 8192,
            "capabilities": ["chat"],
            "description": id,
        }
        for id, (name, tier, _, quality) in PLACES.items()
    }
    with running_gateway(
        folder,
        own,
        providers=providers,
        models=[{"id": "mine", "deployments": [{"provider": "odd", "model": PLACES["odd"][0]}]}],
        routing={"cards": cards},
        ledger={"price_overrides": str(folder / "prices.yaml")},
    ) as running:
        yield running


@pytest.fixture
def door(harpoon: Gateway, own: Upstream) -> Door:
    for provider in PLACES:
        own.control("plan", mark="", provider=provider, scenario="ok")
    return harpoon.door


def post(door: Door, path: str, document: Any, **headers: str | None) -> Reply:
    return door.call("POST", path, json.dumps(document).encode(), **headers)


def ask(door: Door, **fields: Any) -> dict[str, Any]:
    answer = post(door, "/api/chat", {"prompt": SIMPLE, **fields})
    assert answer.status == 200, answer
    found: dict[str, Any] = answer.json
    assert list(found) == FIELDS
    return found


def flat(answer: Reply, status: int, code: str) -> str:
    """The message of a flat error (C-4)."""
    assert answer.status == status, answer
    document = answer.json
    assert list(document) == ["success", "error", "code", "request_id"]
    assert (document["success"], document["code"]) == (False, code)
    assert document["request_id"] == answer.header("x-request-id")
    message: str = document["error"]
    return message


def test_a_prompt_is_answered_in_harpoons_fields(harpoon: Gateway, door: Door, own: Upstream) -> None:
    """R-002-9."""
    answer = post(door, "/api/chat", {"prompt": SIMPLE}, x_request_id="harpoon-1")
    found = answer.json
    assert list(found) == FIELDS
    assert found["content"] == TEXT
    assert (found["model"], found["provider"], found["tier"]) == ("rim/@cf/meta/tiny", "rim", "edge")
    assert found["usage"] == {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    assert set(found["performance"]) == {"latency_ms", "tokens_per_second"}
    assert found["performance"]["tokens_per_second"] > 0
    exact = json.loads(answer.body, parse_float=Decimal)
    assert exact["cost"] == {"amount": Decimal(18) * Decimal("0.01") / 1_000_000, "currency": "USD"}
    assert found["routing"]["decision"] == "rim/@cf/meta/tiny"
    assert "complexity" in found["routing"]["reasoning"]
    assert answer.header("x-hortator-model") == "rim/@cf/meta/tiny"
    row = harpoon.row("harpoon-1")
    assert (row["deployment"], row["input_tokens"], row["price_state"]) == ("rim/@cf/meta/tiny", 11, "priced")
    assert row["cost"] == 18 * 100


def test_what_is_sent_on_has_harpoons_defaults(door: Door, own: Upstream) -> None:
    ask(door)
    ask(door, temperature=0.1, max_tokens=5)
    plain, chosen = [json.loads(one.body) for one in own.seen()[-2:]]
    assert (plain["temperature"], plain["max_tokens"]) == (0.7, 1024)
    assert (chosen["temperature"], chosen["max_tokens"]) == (0.1, 5)
    assert plain["messages"] == [{"role": "user", "content": SIMPLE}]


@pytest.mark.parametrize(("tier", "provider"), [("primary", "swift"), ("edge", "rim"), ("flagship", "grand")])
def test_a_tier_is_the_only_one(door: Door, tier: str, provider: str) -> None:
    found = ask(door, tier=tier)
    assert (found["tier"], found["provider"]) == (tier, provider)
    assert f"only tier {tier}" in found["routing"]["reasoning"]


def test_when_the_chosen_model_fails_another_answers(door: Door, own: Upstream) -> None:
    """R-002-3."""
    own.control("plan", mark="", provider="rim", scenario="status_500")
    found = ask(door)
    assert found["routing"]["decision"] == "rim/@cf/meta/tiny"
    assert found["provider"] == "swift"


def test_a_preview_says_what_a_prompt_would_get_and_calls_nothing(door: Door, own: Upstream) -> None:
    """R-002-9."""
    before = len(own.seen())
    found = post(door, "/api/route", {"prompt": SIMPLE}).json
    assert list(found) == ["decision", "explanation"], found
    decision = found["decision"]
    assert list(decision) == ["selected_model", "fallback_models", "reasoning", "estimated_cost", "estimated_latency"]
    assert decision["selected_model"] == door.call("GET", "/api/models/rim/@cf/meta/tiny").json
    assert len(decision["fallback_models"]) == 2
    assert decision["estimated_cost"] > 0
    assert decision["estimated_latency"] > 0
    assert "rim/@cf/meta/tiny" in found["explanation"]
    assert len(own.seen()) == before
    answered = ask(door)["routing"]
    assert answered == {"decision": decision["selected_model"]["id"], "reasoning": decision["reasoning"]}
    best = post(door, "/api/route", {"prompt": SIMPLE, "tier": "flagship"}).json["decision"]
    assert (best["selected_model"]["provider"], best["fallback_models"]) == ("grand", [])
    named = post(door, "/api/route", {"prompt": SIMPLE, "model": "openai/gpt-oss-20b"}).json["decision"]
    assert named["selected_model"]["provider"] == "odd"
    assert flat(post(door, "/api/route", {}), 400, "missing_required_parameter") == "Prompt is required"


@pytest.mark.parametrize("name", ["odd/openai/gpt-oss-20b", "openai/gpt-oss-20b"])
def test_a_model_is_named_with_or_without_its_provider(door: Door, name: str) -> None:
    found = ask(door, model=name)
    assert (found["provider"], found["routing"]["decision"]) == ("odd", "odd/openai/gpt-oss-20b")
    described = door.call("GET", f"/api/models/{name}")
    assert described.json["id"] == "odd/openai/gpt-oss-20b"


def test_the_model_list_has_harpoons_fields_and_filters(door: Door) -> None:
    """R-002-8."""
    listed = door.call("GET", "/api/models").json
    assert list(listed) == ["total", "models"]
    assert listed["total"] == len(listed["models"]) == len(PLACES) + 1
    assert next(model for model in listed["models"] if model["provider"] == "rim") == {
        "id": "rim/@cf/meta/tiny",
        "provider": "rim",
        "tier": "edge",
        "speed": 100.0,
        "costPer1M": 0.01,
        "contextWindow": 8192,
        "capabilities": ["chat"],
        "description": "rim",
    }
    primary = door.call("GET", "/api/models?tier=primary").json
    assert [model["id"] for model in primary["models"]] == ["mine", "swift/llama-small", "odd/openai/gpt-oss-20b"]
    assert door.call("GET", "/api/models?tier=primary&provider=odd").json["total"] == 2
    flat(door.call("GET", "/api/models?tier=high"), 400, "invalid_value")
    flat(door.call("GET", "/api/models?colour=red"), 400, "unknown_parameter")
    assert flat(door.call("GET", "/api/models/nobody/nothing"), 404, "model_not_found") == "Model not found"


def test_health_needs_no_key(harpoon: Gateway) -> None:
    """R-002-8."""

    def looked() -> dict[str, Any] | None:
        connection = http.client.HTTPConnection("127.0.0.1", harpoon.port, timeout=PATIENCE)
        with closing(connection):
            connection.request("GET", "/api/health")
            document: dict[str, Any] = json.loads(connection.getresponse().read())
        return document if all(one["available"] for one in document["providers"].values()) else None

    document = eventually(looked, "all providers to answer")
    assert list(document) == ["status", "version", "timestamp", "providers"]
    assert (document["status"], document["version"]) == ("ok", "2.0.0")
    assert datetime.fromisoformat(document["timestamp"]).tzinfo is not None
    assert set(document["providers"]) == set(PLACES)
    assert document["providers"]["rim"]["latency_ms"] >= 0


def test_a_batch_tells_who_succeeded_in_order(harpoon: Gateway, door: Door) -> None:
    """R-002-9."""
    requests = [
        {"prompt": SIMPLE},
        {"prompt": ""},
        {"prompt": SIMPLE, "model": "nobody/nothing"},
        {"prompt": SIMPLE, "tier": "flagship"},
        7,
    ]
    answer = post(door, "/api/batch", {"requests": requests}, x_request_id="batch-1")
    found = answer.json
    assert list(found) == ["total", "successful", "failed", "results"]
    assert (found["total"], found["successful"], found["failed"]) == (5, 2, 3)
    first, empty, unknown, best, odd = found["results"]
    assert list(first) == ["success", *FIELDS]
    assert (first["provider"], best["provider"]) == ("rim", "grand")
    assert (empty["success"], empty["error"]) == (False, "Prompt is required")
    assert (unknown["code"], odd["code"]) == ("model_not_found", "invalid_type")
    assert harpoon.row("batch-1.0")["status"] == 200
    assert harpoon.row("batch-1.2")["status"] == 404
    assert post(door, "/api/batch", {"requests": []}).json == {"total": 0, "successful": 0, "failed": 0, "results": []}


def test_the_requests_of_a_batch_run_side_by_side_and_not_all_at_once(door: Door, own: Upstream) -> None:
    """Eight are with the upstream before the first is answered, and no more."""
    answered = reply(200, dump(completion()))
    own.control("plan", mark="", provider="rim", steps=[["gate", "go"], *answered])
    before = len(own.seen())
    with Connection(door.port) as connection:
        body = json.dumps({"requests": [{"prompt": SIMPLE}] * 12}).encode()
        connection.send(door.raw(body, path="/api/batch"))
        eventually(lambda: len(own.seen()) - before >= 8, "eight requests")
        assert len(own.seen()) - before == 8
        own.release("")
        assert connection.read().json["successful"] == 12


def test_a_client_that_hangs_up_cancels_its_whole_batch(harpoon: Gateway, door: Door, own: Upstream) -> None:
    own.control("plan", mark="", provider="rim", scenario="hang")
    before = len(own.seen())
    connection = Connection(door.port)
    body = json.dumps({"requests": [{"prompt": SIMPLE}] * 3}).encode()
    connection.send(door.raw(body, {"x-request-id": "left"}, "/api/batch"))
    eventually(lambda: len(own.seen()) - before == 3, "three requests")
    connection.close()
    for number in range(3):
        row = harpoon.row(f"left.{number}")
        assert (row["status"], row["error_code"]) == (499, "client_closed_request")


@pytest.mark.parametrize(
    ("document", "code", "message"),
    [
        ({}, "missing_required_parameter", "Prompt is required"),
        ({"prompt": None}, "missing_required_parameter", "Prompt is required"),
        ({"prompt": 7}, "invalid_type", "prompt"),
        ({"prompt": "x", "tier": "best"}, "invalid_value", "tier"),
        ({"prompt": "x", "max_tokens": 0}, "invalid_value", "max_tokens"),
        ([], "invalid_type", "JSON object"),
    ],
)
def test_what_is_wrong_with_a_prompt_is_told_flat(door: Door, document: Any, code: str, message: str) -> None:
    """C-4."""
    assert message in flat(post(door, "/api/chat", document), 400, code)


def test_other_mistakes_are_told_flat_too(harpoon: Gateway, door: Door, own: Upstream) -> None:
    """C-4."""
    assert flat(post(door, "/api/batch", {}), 400, "missing_required_parameter") == "requests array is required"
    flat(post(door, "/api/chat", {"prompt": "x"}, authorization=None), 401, "missing_api_key")
    flat(post(door, "/api/chat", {"prompt": "x", "tier": "local"}), 404, "model_not_found")
    flat(door.call("GET", "/api/chat"), 405, "method_not_allowed")
    flat(door.call("GET", "/api/nothing"), 404, "unknown_url")
    flat(post(door, "/api/chat", {"prompt": "x"}, content_type="text/plain"), 415, "unsupported_media_type")
    for provider in PLACES:
        own.control("plan", mark="", provider=provider, scenario="status_500")
    flat(post(door, "/api/chat", {"prompt": SIMPLE, "model": "rim/@cf/meta/tiny"}), 502, "upstream_error")


def test_limits_and_allowed_models_count_here_too(harpoon: Gateway, door: Door) -> None:
    key = harpoon.new_key("narrow", "--models", "swift/*", "--limit", "2 requests/hour")
    narrow = Door(harpoon.port, key)
    assert [model["provider"] for model in narrow.call("GET", "/api/models").json["models"]] == ["swift"]
    assert ask(narrow)["provider"] == "swift"
    flat(post(narrow, "/api/chat", {"prompt": "x", "tier": "edge"}), 404, "model_not_found")
    flat(post(narrow, "/api/chat", {"prompt": "x", "model": "rim/@cf/meta/tiny"}), 403, "model_not_allowed")
    refused = post(narrow, "/api/batch", {"requests": [{"prompt": SIMPLE}] * 3}).json
    assert (refused["successful"], refused["failed"]) == (1, 2)
    assert [one["code"] for one in refused["results"] if not one["success"]] == ["rate_limit_exceeded"] * 2


def test_the_addresses_of_the_admin_api_stay_its_own(door: Door) -> None:
    answer = door.call("GET", "/api/v1/admin/keys")
    assert answer.error["code"] == "permission_required"


def test_harpoon_is_served_under_a_root_path(tmp_path: Path, own: Upstream) -> None:
    """R-000-53."""
    with running_gateway(tmp_path, own, server={"root_path": "/hortator"}) as running:
        assert running.door.call("GET", "/api/models").json["total"] > 0
