"""Prices: exact, the operator's first, and unpriced is not free."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from math import ceil
from pathlib import Path
from typing import Any

import genai_prices
import pytest
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st

from hortator.call import Usage
from hortator.errors import ConfigError
from hortator.ledger import PriceBook
from hortator.ledger.prices import LISTED as LISTED_PROVIDERS

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
MILLION = 1_000_000
LISTED = [
    ("openai", "openai", "gpt-5.1"),
    ("groq", "groq", "llama-3.3-70b-versatile"),
    ("workers-ai", "cloudflare", "@cf/meta/llama-3.1-8b-instruct"),
    ("anthropic", "anthropic", "claude-sonnet-4-5"),
    ("openai", "openai", "gpt-4o-2024-08-06"),
]


@given(
    listed=st.sampled_from(LISTED),
    tokens=st.integers(0, 2_000_000),
    cached=st.integers(0, 1_000_000),
    written=st.integers(0, 1_000_000),
    output=st.integers(0, 200_000),
)
def test_a_cost_is_what_the_price_list_says(
    listed: tuple[str, str, str], tokens: int, cached: int, written: int, output: int
) -> None:
    """Tiers and cached tokens included; the list's own calculation is the oracle."""
    provider, listed_provider, model = listed
    cached = min(cached, tokens)
    written = min(written, tokens - cached)
    price = PriceBook().price(provider, model, at=NOON.timestamp())
    assert price is not None
    usage = Usage(input=tokens, output=output, cached=cached, cache_write=written, source="reported")
    expected = genai_prices.calc_price(
        genai_prices.Usage(
            input_tokens=tokens, output_tokens=output, cache_read_tokens=cached, cache_write_tokens=written
        ),
        model,
        provider_id=listed_provider,
        genai_request_timestamp=NOON,
    )
    assert price.cost(usage) == expected.total_price


def test_the_unit_prices_and_their_source_are_kept_with_the_record() -> None:
    price = PriceBook().price("groq", "llama-3.1-8b-instant")
    assert price is not None
    assert json.loads(price.record) == {
        "source": "genai-prices",
        "version": genai_prices.__version__,
        "model": "llama-3.1-8b-instant",
        "input": "0.05",
        "output": "0.08",
    }


@pytest.mark.parametrize("usage", [Usage(), Usage(input=1), Usage(output=1)])
def test_an_unknown_usage_has_no_cost(usage: Usage) -> None:
    price = PriceBook().price("groq", "llama-3.1-8b-instant")
    assert price is not None
    assert price.cost(usage) is None


@pytest.mark.parametrize("where", [("groq", "no-such-model"), ("my-own-openai", "gpt-5.1")])
def test_what_has_no_price_is_unpriced(where: tuple[str, str]) -> None:
    """A provider that merely sounds like a listed one is not priced like it."""
    assert PriceBook().price(*where) is None


@pytest.mark.parametrize("provider", ["local", "ollama", "vllm", "desk"])
def test_models_on_our_own_machines_are_free(provider: str) -> None:
    price = PriceBook(providers={"desk": None}).price(provider, "anything")
    assert price is not None
    assert price.state == "free"
    assert price.cost(Usage()) == 0


def test_a_provider_is_priced_by_its_preset() -> None:
    book = PriceBook(providers={"fast": "groq", "edge": "workers-ai", "router": "openrouter"})
    assert book.price("fast", "llama-3.1-8b-instant") is not None
    assert book.price("edge", "@cf/meta/llama-3.1-8b-instruct") is not None
    assert book.price("router", "openai/gpt-5.1") is not None


def test_a_call_through_a_router_is_priced_by_the_provider_behind_it() -> None:
    book = PriceBook(providers={"edge": "cloudflare-gateway"})
    direct = PriceBook().price("openai", "gpt-5.1")
    assert direct is not None
    assert book.price("edge", "openai/gpt-5.1") == direct
    assert book.price("edge", "openai/gpt-5.1", "gpt-5.1") == direct
    hosted = book.price("edge", "workers-ai/@cf/meta/llama-3.1-8b-instruct")
    assert hosted == PriceBook().price("workers-ai", "@cf/meta/llama-3.1-8b-instruct")
    assert book.price("edge", "nobody/x") is None


def test_what_was_served_is_priced_before_what_was_asked() -> None:
    book = PriceBook()
    assert book.price("openai", "my-alias", "gpt-5.1") == book.price("openai", "gpt-5.1")
    assert book.price("openai", "gpt-5.1", "unheard-of") == book.price("openai", "gpt-5.1")


def test_the_operators_price_wins(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(
        'groq:\n  llama-3.1-8b-instant: {input: "1", output: "2", cached: "0.5", reasoning: "4", currency: USD}\n'
        'desk:\n  "*": free\n  big: {input: "0.1", output: 3}\n'
    )
    book = PriceBook(path)
    price = book.price("groq", "llama-3.1-8b-instant", "llama-3.1-8b-instant-2030")
    assert price is not None
    usage = Usage(input=10 * MILLION, output=10 * MILLION, cached=4 * MILLION, reasoning=5 * MILLION)
    assert price.cost(usage) == 6 * 1 + 4 * Decimal("0.5") + 5 * 2 + 5 * 4
    assert json.loads(price.record)["source"] == "override"
    big, small = book.price("desk", "big"), book.price("desk", "small")
    assert big is not None
    assert small is not None
    assert (big.state, small.state) == ("priced", "free")
    assert big.cost(Usage(input=3, output=1)) == Decimal("0.0000033")


@pytest.mark.parametrize(
    "content",
    [
        {"groq": "free"},
        {"groq": {"x": {}}},
        {"groq": {"x": {"input": 0.1, "output": "1"}}},
        {"groq": {"x": {"input": "-1", "output": "1"}}},
        {"groq": {"x": {"input": "NaN"}}},
        {"groq": {"x": {"input": "cheap"}}},
        {"groq": {"x": {"input": True}}},
        {"groq": {"x": {"input": "1", "outptu": "1"}}},
        {"groq": {"x": {"input": "1", "currency": "EUR"}}},
    ],
)
def test_a_price_that_cannot_be_meant_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="groq"):
        PriceBook(content)


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "\xff"])
def test_a_file_that_is_not_prices_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"prices\.yaml"):
        PriceBook(path)
    with pytest.raises(ConfigError, match="missing"):
        PriceBook(tmp_path / "missing.yaml")


def test_the_answers_kept_are_bounded() -> None:
    book = PriceBook({"desk": {"*": "free"}})
    for number in range(10_000):
        book.price("desk", f"model-{number}")
    assert len(book._answers) <= 4096


def test_the_names_of_listed_providers_are_those_of_the_list() -> None:
    """They decide whether the list is loaded at all; a newer list with another provider must be noticed."""
    assert {provider.id for provider in get_snapshot().providers} == LISTED_PROVIDERS


@given(
    rates=st.dictionaries(
        st.sampled_from(["input", "output", "cached", "reasoning"]),
        st.decimals(0, 100, places=4, allow_nan=False),
        min_size=1,
    ).filter(lambda found: bool({"input", "output"} & found.keys())),
    counts=st.lists(st.one_of(st.none(), st.integers(0, 10**7)), min_size=4, max_size=4),
)
def test_what_a_budget_counts_is_the_cost_in_billionths_rounded_up(
    rates: dict[str, Decimal], counts: list[int | None]
) -> None:
    book = PriceBook({"one": {"m": {kind: str(rate) for kind, rate in rates.items()}}})
    price = book.price("one", "m")
    assert price is not None
    given, output, cached, reasoning = counts
    usage = Usage(input=given, output=output, cached=cached, reasoning=reasoning)
    cost = price.cost(usage)
    if cost is None or (cached or 0) > (given or 0) or (reasoning or 0) > (output or 0):
        return
    assert price.billionths(usage) == ceil(cost * 10**9)
