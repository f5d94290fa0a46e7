"""What is known about models, and who says it."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from hortator.call import ProviderId
from hortator.ledger import PriceBook
from hortator.rooms import facts
from hortator.routing import Card, Cards, Catalogue, Facts
from hortator.settings import load

ORIGIN = {
    "groq/llama-3.1-8b-instant": ("primary", 560, 0.05, 131072, "chat code reasoning function-calling"),
    "groq/llama-3.3-70b-versatile": ("primary", 280, 0.59, 131072, "chat code reasoning function-calling complex-tasks"),
    "groq/openai/gpt-oss-20b": ("primary", 1000, 0.075, 131072, "chat code reasoning function-calling"),
    "groq/openai/gpt-oss-120b": ("primary", 500, 0.15, 131072, "chat code reasoning function-calling complex-tasks"),
    "groq/qwen/qwen3-32b": ("primary", 450, 0.10, 131072, "chat code multilingual reasoning"),
    "workers-ai/@cf/meta/llama-3.3-70b-instruct-fp8-fast": ("edge", 200, 0.011, 8192, "chat code reasoning"),
    "workers-ai/@cf/meta/llama-3.1-8b-instruct-fast": ("edge", 400, 0.011, 8192, "chat code simple-tasks"),
    "workers-ai/@cf/qwen/qwen2.5-7b-instruct-awq": ("edge", 350, 0.011, 32768, "chat code multilingual"),
    "openai/gpt-4o": ("flagship", 50, 2.50, 128000, "chat code reasoning complex-tasks vision function-calling"),
    "openai/gpt-4o-mini": ("flagship", 100, 0.15, 128000, "chat code reasoning function-calling"),
}  # fmt: skip
PROVIDERS = """
providers:
  - {id: groq, base_url: "https://h/v1"}
  - {id: openai, base_url: "https://h/v1"}
  - {id: workers-ai, base_url: "https://h/v1"}
"""


def catalogue(tmp_path: Path, text: str, **known: Facts) -> Catalogue:
    path = tmp_path / "hortator.yaml"
    path.write_text(text)
    settings = load(path, {"HORTATOR_DETECT_PROVIDERS": "false"})
    cards = Cards(settings, lambda provider, _: known.get(provider, Facts()))
    return Catalogue(settings, {ProviderId("groq"): ("new",)}, settings.local.name, cards)


def card(catalogue: Catalogue, model: str) -> Card:
    found = catalogue.card(model)
    assert found is not None
    return found


@pytest.mark.parametrize("model", ORIGIN)
def test_the_ten_models_of_the_origin_are_known(tmp_path: Path, model: str) -> None:
    """R-002-8, R-002-12."""
    found = card(catalogue(tmp_path, PROVIDERS), model)
    tier, speed, price, window, capabilities = ORIGIN[model]
    assert (found.tier, found.speed, found.price, found.context_window) == (tier, speed, price, window)
    assert found.capabilities == tuple(capabilities.split())
    assert found.id == model and f"{found.provider}/{found.model}" == model
    assert found.description and found.quality


def test_openai_gpt_oss_20b_at_groq_is_groqs_and_at_openai_unknown(tmp_path: Path) -> None:
    """The prefix trap: the built-in list is asked about the rest of the id, at the provider before the first slash."""
    models = catalogue(tmp_path, PROVIDERS)
    assert card(models, "groq/openai/gpt-oss-20b").provider == "groq"
    assert card(models, "openai/gpt-oss-20b").speed is None


def test_a_router_in_front_of_providers_serves_their_models(tmp_path: Path) -> None:
    text = "providers: [{id: edge, preset: cloudflare-gateway, account: a, gateway: g}]"
    models = catalogue(tmp_path, text)
    assert card(models, "edge/groq/openai/gpt-oss-20b").speed == 1000
    assert card(models, "edge/workers-ai/@cf/qwen/qwen2.5-7b-instruct-awq").tier == "edge"


def test_one_line_adds_the_four_local_services(tmp_path: Path) -> None:
    """R-004-2 and R-004-3: their ports in the order of the list, and one model over all four."""
    path = tmp_path / "hortator.yaml"
    path.write_text("local_services: true")
    settings = load(path, {})
    addresses = {p.id: p.base_url for p in settings.providers if p.id != "ollama"}
    assert addresses == {
        "mixtral": "http://127.0.0.1:11400/v1",
        "hermes": "http://127.0.0.1:11401/v1",
        "openchat": "http://127.0.0.1:11402/v1",
        "phi": "http://127.0.0.1:11403/v1",
    }
    models = Catalogue(settings, {}, None)
    cards = models.cards("local-services")
    assert [c.model for c in cards] == ["Mixtral-8x7B", "Hermes-2", "OpenChat-3.5", "Phi-3-Mini"]
    assert all(c.local and c.price == 0 for c in cards)
    assert models.card("phi/Phi-3-Mini") == replace(cards[3], id="phi/Phi-3-Mini")


def test_local_services_leave_ids_alone_that_the_operator_uses(tmp_path: Path) -> None:
    path = tmp_path / "hortator.yaml"
    path.write_text('local_services: true\nproviders: [{id: phi, base_url: "http://h/v1"}]')
    settings = load(path, {})
    assert [p.base_url for p in settings.providers if p.id == "phi"] == ["http://h/v1"]
    assert "local-services" not in Catalogue(settings, {}, None)


@pytest.mark.parametrize(
    ("provider", "model", "tier"),
    [
        ('{id: a, base_url: "http://127.0.0.1:9/v1"}', "x", "local"),
        ('{id: a, base_url: "http://[::1]:9/v1"}', "x", "local"),
        ('{id: a, base_url: "http://127.0.0.1:9/v1", tier: edge}', "x", "edge"),
        ('{id: a, base_url: "https://far.example/v1"}', "x", None),
        ('{id: a, base_url: "http://10.0.0.7/v1", tier: local}', "x", "local"),
        ('{id: a, preset: groq, api_key: k, base_url: "http://127.0.0.1:9/v1"}', "llama-3.1-8b-instant", "primary"),
        ('{id: a, preset: groq, api_key: k, base_url: "http://127.0.0.1:9/v1"}', "new", "primary"),
        ("{id: a, preset: ollama}", "llama3", "local"),
        ("{id: a, preset: ollama}", "gpt-oss:120b-cloud", None),
        ("{id: a, preset: cloudflare-gateway, account: a, gateway: g}", "nobody/new", None),
    ],
)
def test_what_is_local_is_said_or_at_a_loopback_address(
    tmp_path: Path, provider: str, model: str, tier: str | None
) -> None:
    assert card(catalogue(tmp_path, f"providers: [{provider}]"), f"a/{model}").tier == tier


def test_the_operators_word_goes_over_the_list_and_a_models_over_its_deployments(tmp_path: Path) -> None:
    text = (
        PROVIDERS
        + """
models:
  - {id: mine, deployments: [{provider: groq, model: llama-3.1-8b-instant}, {provider: groq, model: new}]}
routing:
  cards:
    groq/llama-3.1-8b-instant: {quality: 3, context_window: 1000}
    mine: {quality: 4, lacks: [tools]}
"""
    )
    models = catalogue(tmp_path, text)
    one = card(models, "groq/llama-3.1-8b-instant")
    assert (one.quality, one.context_window, one.speed) == (3, 1000, 560)
    first, second = models.cards("mine")
    assert (first.quality, first.context_window, set(first.lacks), first.id) == (4, 1000, {"tools"}, "mine")
    assert (second.quality, second.context_window, set(second.lacks)) == (4, None, {"tools"})


def test_what_nobody_knows_is_none(tmp_path: Path) -> None:
    found = card(catalogue(tmp_path, 'providers: [{id: a, base_url: "https://far.example/v1"}]'), "a/x")
    assert found == Card(id="a/x", provider="a", model="x")
    assert catalogue(tmp_path, "{}").card("nobody/x") is None


def test_prices_and_windows_come_from_the_price_book(tmp_path: Path) -> None:
    text = PROVIDERS + '  - {id: own, base_url: "https://far.example/v1"}\n'
    models = catalogue(tmp_path, text, own=Facts(2.0, 10.0, 4242), groq=Facts(0.05, 0.08))
    assert (card(models, "own/x").price, card(models, "own/x").context_window) == (4.0, 4242)
    llama = card(models, "groq/llama-3.1-8b-instant")
    assert (llama.price_input, llama.price_output, llama.price) == (0.05, 0.08, 0.05)


def test_a_figure_that_the_price_book_does_not_have_is_shown_and_never_reckoned_with(tmp_path: Path) -> None:
    """The built-in list's blended figures are its source's; what a request costs is what the ledger would say it did."""
    awq = card(catalogue(tmp_path, PROVIDERS), "workers-ai/@cf/qwen/qwen2.5-7b-instruct-awq")
    assert (awq.price, awq.price_input, awq.price_output, awq.priced) == (0.011, None, None, False)


def test_the_price_book_tells_dollars_a_million_and_windows() -> None:
    known = facts(PriceBook({}, {"here": None}))
    assert known("openai", "gpt-4o") == Facts(2.5, 10.0, 128000)
    assert known("here", "x") == Facts(0.0, 0.0, None)
    assert known("nobody", "x") == Facts()


def test_the_list_of_cards_shows_what_the_key_may_use(tmp_path: Path) -> None:
    models = catalogue(tmp_path, PROVIDERS)
    assert [c.id for c in models.listed(("*",))] == ["local/qwen2.5-coder-0.5b", "groq/new"]
    assert [c.id for c in models.listed(("groq/*",))] == ["groq/new"]
    embedded = models.listed(("local/*",))[0]
    assert (embedded.tier, embedded.price, embedded.context_window) == ("local", 0.0, 4096)
