"""The model `auto`: who decides, who stands by, what is never left, and what a client learns when nothing fits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from hortator.call import (
    NO_WISH,
    Call,
    Caller,
    KeyHash,
    Limit,
    ModelId,
    Preferences,
    ProviderId,
    RequestId,
    TenantId,
    Wish,
)
from hortator.errors import HortatorError
from hortator.routing import Cards, Catalogue, Facts, Rules, decide, preview, told
from hortator.settings import load

PROVIDERS = """
providers:
  - {id: groq, base_url: "https://h/v1", models: [llama-3.1-8b-instant, llama-3.3-70b-versatile, openai/gpt-oss-120b]}
  - {id: openai, base_url: "https://h/v1", models: [gpt-4o, gpt-4o-mini]}
  - {id: workers-ai, base_url: "https://h/v1", models: ["@cf/meta/llama-3.3-70b-instruct-fp8-fast"]}
"""
FREE = "routing: {require_task_type: false}\n"
HARD = "Design a complete distributed architecture for a bank, with a migration plan in phases, and implement all services."
PRICES = {
    "llama-3.1-8b-instant": Facts(0.05, 0.05),
    "llama-3.3-70b-versatile": Facts(0.59, 0.59),
    "openai/gpt-oss-120b": Facts(0.15, 0.15),
    "gpt-4o": Facts(2.5, 10.0),
    "gpt-4o-mini": Facts(0.15, 0.15),
    "@cf/meta/llama-3.3-70b-instruct-fp8-fast": Facts(0.011, 0.011),
}
"""What the price book knows, by the model's name."""
HI = [{"role": "user", "content": "hello"}]


class Router:
    """A catalogue with its rules."""

    def __init__(
        self, tmp_path: Path, text: str, local: str | None = "tiny", prices: Mapping[str, Facts] = PRICES
    ) -> None:
        path = tmp_path / "hortator.yaml"
        path.write_text(text)
        settings = load(path, {"HORTATOR_DETECT_PROVIDERS": "false"})
        cards = Cards(settings, lambda _, model: prices.get(model, Facts()))
        self.catalogue = Catalogue(settings, {ProviderId(p.id): () for p in settings.providers}, local, cards)
        self.rules = Rules(settings.routing, 2000, 200)

    def call(self, model: str = "auto", wish: Wish | None = None, **body: Any) -> Call:
        content: Mapping[str, Any] = {"messages": HI, **body}
        raw = {name: Raw(msgspec.json.encode(value)) for name, value in content.items()}
        return Call(
            id=RequestId("r"),
            operation="chat",
            model=ModelId(model),
            body=raw,
            stream=False,
            wants_usage=False,
            started=0.0,
            received_at=0.0,
            wish=wish or NO_WISH,
        )

    def decide(self, model: str = "auto", wish: Wish | None = None, caller: Caller | None = None, **body: Any) -> Any:
        return decide(self.call(model, wish, **body), caller or who(), self.catalogue, self.rules)

    def error(self, *args: Any, **kwargs: Any) -> HortatorError:
        with pytest.raises(HortatorError) as caught:
            self.decide(*args, **kwargs)
        return caught.value


def who(*allowed: str, limits: tuple[Limit, ...] = ()) -> Caller:
    return Caller(
        tenant_id=TenantId("t"), key_hash=KeyHash("k"), key_name="n", allowed_models=allowed or ("*",), limits=limits
    )


def task(name: str, **more: Any) -> Wish:
    return Wish(task_type=name, **more)


def test_auto_needs_a_task_type_unless_the_operator_says_otherwise(tmp_path: Path) -> None:
    """R-003-5, R-003-10, C-1."""
    error = Router(tmp_path, PROVIDERS).error()
    assert (error.status, error.code) == (400, "missing_task_type")
    assert getattr(error, "param", None) == "metadata.task_type"
    assert Router(tmp_path, PROVIDERS + FREE).decide().candidates


def test_other_models_need_no_task_type_and_it_is_inferred(tmp_path: Path) -> None:
    """C-1."""
    router = Router(tmp_path, PROVIDERS)
    for body, kind in (({}, "chat"), ({"tools": [{}]}, "tool-use"), ({"response_format": {}}, "extraction")):
        call = router.call("groq/llama-3.1-8b-instant", **body)
        headers = dict(told(decide(call, who(), router.catalogue, router.rules), call))
        assert headers[b"x-hortator-task-type"] == f"{kind}; inferred".encode()
        assert headers[b"x-hortator-route"] == b"named;groq/llama-3.1-8b-instant;asked for"


def test_the_task_types_table_decides(tmp_path: Path) -> None:
    """R-003-5."""
    text = PROVIDERS + (
        "routing: {task_types: {extraction: {models: [openai/gpt-4o-mini, groq/llama-3.1-8b-instant]}, summary: {tiers: [edge]}}}"
    )
    router = Router(tmp_path, text)
    listed = router.decide(wish=task("extraction"))
    assert listed.candidates[0].id == "openai/gpt-4o-mini"
    assert [route.model for route in listed.fallbacks] == ["groq/llama-3.1-8b-instant"], "and no other"
    assert router.decide(wish=task("summary")).candidates[0].provider == "workers-ai"
    assert (listed.task_type, listed.score) == ("extraction", None)


def test_complexity_decides_where_no_task_type_does(tmp_path: Path) -> None:
    """R-000-34, C-15: below 0.3 fast, from 0.7 on complex."""
    router = Router(tmp_path, PROVIDERS + FREE)
    simple, hard = router.decide(), router.decide(messages=[{"role": "user", "content": HARD}])
    assert (simple.path, hard.path) == ("fast", "complex")
    assert simple.score < 0.3 and hard.score >= 0.7
    assert hard.candidates[0].id == "openai/gpt-4o", "the best"
    assert simple.candidates[0].id != hard.candidates[0].id
    assert hard.confidence and hard.reasons
    shifted = Router(tmp_path, PROVIDERS + "routing: {require_task_type: false, fast_below: 0, complex_from: 0}")
    assert shifted.decide().path == "complex"


def test_auto_works_with_the_embedded_model_alone(tmp_path: Path) -> None:
    assert [d.id for d in Router(tmp_path, FREE).decide().candidates] == ["local/tiny"]
    assert Router(tmp_path, FREE, local=None).error().code == "model_not_found"


def test_routed_streams_start_early(tmp_path: Path) -> None:
    """R-000-43."""
    router = Router(tmp_path, PROVIDERS)
    assert router.decide(wish=task("chat")).status_wait_ms == 200
    assert router.decide("openai/gpt-4o").status_wait_ms == 2000


def test_the_same_tier_stands_by_first_then_primary_edge_flagship(tmp_path: Path) -> None:
    """C-27, R-002-7."""
    router = Router(tmp_path, PROVIDERS)
    decision = router.decide(wish=task("reasoning"))
    tiers = [router.catalogue.cards(route.model)[0].tier for route in (decision, *decision.fallbacks)]
    assert tiers == ["flagship", "flagship", "primary", "primary", "primary", "edge", "local"]
    kept = Router(tmp_path, PROVIDERS + "routing: {fallbacks: tier}").decide(wish=task("reasoning"))
    assert [route.model for route in kept.fallbacks] == ["openai/gpt-4o-mini"]
    assert Router(tmp_path, PROVIDERS + "routing: {fallbacks: none}").decide(wish=task("chat")).fallbacks == ()


def test_a_routed_call_never_leaves_what_its_key_may_use(tmp_path: Path) -> None:
    router = Router(tmp_path, PROVIDERS)
    decision = router.decide(wish=task("reasoning"), caller=who("groq/*"))
    places = [d.provider for route in (decision, *decision.fallbacks) for d in route.candidates]
    assert set(places) == {"groq"}
    assert router.error(wish=task("reasoning"), caller=who("nothing")).code == "model_not_allowed"


@pytest.mark.parametrize("model", ["auto", "mixed", "cloud"])
def test_force_local_keeps_to_local_deployments_and_fallbacks(tmp_path: Path, model: str) -> None:
    """R-003-4: for auto, for a named model with some local deployments, and for one with a local fallback."""
    text = (
        PROVIDERS
        + """
models:
  - id: mixed
    deployments: [{provider: openai, model: gpt-4o}, {provider: local, model: qwen2.5-coder-0.5b}]
    fallbacks: [groq/llama-3.1-8b-instant]
  - {id: cloud, deployments: [{provider: openai, model: gpt-4o}], fallbacks: [openai/gpt-4o-mini, mixed]}
"""
    )
    router = Router(tmp_path, text, "qwen2.5-coder-0.5b")
    decision = router.decide(model, task("chat", force_local=True))
    routes = (decision, *decision.fallbacks, *decision.context_fallbacks, *decision.content_fallbacks)
    assert {d.provider for route in routes for d in route.candidates} == {"local"}


def test_force_local_without_a_local_model_is_an_error(tmp_path: Path) -> None:
    router = Router(tmp_path, PROVIDERS, local=None)
    for model in ("auto", "openai/gpt-4o"):
        error = router.error(model, task("chat", force_local=True))
        assert (error.status, error.code) == (400, "no_local_deployment")


@pytest.mark.parametrize(
    ("model", "body", "code", "said"),
    [
        ("local/tiny", {"messages": [{"role": "user", "content": "word " * 5000}]}, "context_length_exceeded", "4096"),
        ("local/tiny", {"max_tokens": 5000}, "context_length_exceeded", "5000"),
        ("groq/llama-3.1-8b-instant", {"response_format": {"type": "json_schema"}}, "unsupported_by_model", "json_schema"),
        ("local/tiny", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "unsupported_by_model", "vision"),
    ],
)  # fmt: skip
def test_what_a_model_cannot_serve_is_refused_with_the_bound(
    tmp_path: Path, model: str, body: dict[str, Any], code: str, said: str
) -> None:
    router = Router(tmp_path, PROVIDERS)
    error = router.error(model, **body)
    assert (error.status, error.code) == (400, code)
    assert said in error.message and model in error.message
    decision = router.decide(wish=task("chat"), **body)
    assert model not in [decision.model, *(route.model for route in decision.fallbacks)], "another one serves it"


def test_what_only_looks_like_a_need_excludes_nothing(tmp_path: Path) -> None:
    router = Router(tmp_path, PROVIDERS)
    wordy = [{"role": "user", "content": "image_url"}]
    escaped = [{"role": "user", "content": "x" * 3000 + '"image_url"'}]
    text = PROVIDERS + '  - {id: own, base_url: "https://h/v1"}\n'
    for messages in (wordy, escaped):
        assert router.decide("local/tiny", messages=messages).candidates
    assert router.decide("workers-ai/@cf/meta/llama-3.3-70b-instruct-fp8-fast", tools=[]).candidates
    huge = [{"role": "user", "content": "word " * 300_000}]
    assert Router(tmp_path, text).decide("own/unknown", messages=huge).candidates


def test_a_request_too_long_goes_to_the_fallbacks_for_that(tmp_path: Path) -> None:
    text = (
        PROVIDERS
        + """
models:
  - id: short
    deployments: [{provider: local, model: qwen2.5-coder-0.5b}]
    fallbacks: [groq/llama-3.1-8b-instant]
    context_fallbacks: [openai/gpt-4o]
"""
    )
    router = Router(tmp_path, text, "qwen2.5-coder-0.5b")
    long = [{"role": "user", "content": "word " * 6000}]
    assert router.decide("short", messages=long).candidates[0].id == "openai/gpt-4o"
    assert router.decide("short").candidates[0].id == "local/qwen2.5-coder-0.5b"


def test_preferences_filter_and_then_the_cheapest_answers(tmp_path: Path) -> None:
    """R-002-7."""
    router = Router(tmp_path, PROVIDERS)
    wish = task("reasoning", preferences=Preferences(max_cost=0.001, max_latency=2000, min_quality=7.5))
    decision = router.decide(wish=wish)
    assert decision.candidates[0].id == "groq/openai/gpt-oss-120b"
    for route in (decision, *decision.fallbacks):
        assert (router.catalogue.cards(route.model)[0].quality or 0) >= 7.5


def test_impossible_preferences_name_the_bound_of_each_model(tmp_path: Path) -> None:
    router = Router(tmp_path, PROVIDERS)
    error = router.error(wish=task("chat", preferences=Preferences(max_cost=0.001, min_quality=8.9)))
    assert (error.status, error.code) == (400, "preferences_unsatisfiable")
    assert "openai/gpt-4o: maxCost (" in error.message
    assert "groq/llama-3.1-8b-instant: minQuality (6, the bound is 8.9)" in error.message


def test_a_budget_of_money_keeps_to_models_with_a_price(tmp_path: Path) -> None:
    limit = Limit(key="key:k:money:60", text="1 usd/minute", kind="money", window=60, amount=10**9)
    decision = Router(tmp_path, PROVIDERS, prices={"gpt-4o": PRICES["gpt-4o"]}).decide(
        wish=task("chat"), caller=who(limits=(limit,))
    )
    assert {route.model for route in (decision, *decision.fallbacks)} == {"openai/gpt-4o", "local/tiny"}


def test_the_same_request_gets_the_same_decision(tmp_path: Path) -> None:
    first, second = (Router(tmp_path, PROVIDERS + FREE) for _ in range(2))
    for text in ("hello", HARD, "Fix this bug: x = 1 / 0"):
        messages = [{"role": "user", "content": text}]
        decisions = {str(router.decide(messages=messages)) for router in (first, second) for _ in range(20)}
        assert len(decisions) == 1


def test_an_operators_model_called_auto_is_his(tmp_path: Path) -> None:
    text = PROVIDERS + "models: [{id: auto, deployments: [{provider: openai, model: gpt-4o}]}]"
    assert Router(tmp_path, text).decide().reason == "named"


def test_the_preview_tells_what_the_decision_will_be(tmp_path: Path) -> None:
    """R-002-9, R-000-35 to 37, C-25."""
    router = Router(tmp_path, PROVIDERS)
    wish = task("reasoning", preferences=Preferences(min_quality=7.5))
    shown = preview(router.call(wish=wish), who(), router.catalogue, router.rules)
    decision = router.decide(wish=wish)
    assert (shown.model, shown.fallbacks) == (decision.model, tuple(r.model for r in decision.fallbacks))
    assert (shown.path, shown.task_type, shown.task_type_inferred) == ("complex", "reasoning", False)
    assert shown.hints["max_agents"] == 8 and shown.hints["max_time"] == "60s" and shown.hints["max_time_ms"] == 60_000
    excluded = {one.model: one.excluded.bound for one in shown.candidates if one.excluded is not None}
    assert excluded["groq/llama-3.1-8b-instant"] == "minQuality" and shown.model not in excluded
    assert shown.features and shown.estimated_cost and shown.estimated_latency_ms
    plain = preview(router.call("openai/gpt-4o"), who(), router.catalogue, router.rules)
    assert (plain.model, plain.reason, [one.model for one in plain.candidates]) == (
        "openai/gpt-4o",
        "named",
        ["openai/gpt-4o"],
    )
