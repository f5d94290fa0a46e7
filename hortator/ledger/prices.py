"""What a token costs: the operator's overrides first, then the price list that `genai-prices` carries. No network.

The ledger's writer asks `PriceBook.price` for each record, off the request path, and keeps the unit prices with the record.
A model without a price is *unpriced*, a state to be seen, never a cost of 0; local models are *free*.
The list's data (20 MB of memory) is loaded at the first look-up of a model that it may know and no override names.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from math import ceil
from pathlib import Path
from typing import Any, Final, Literal

import genai_prices
import msgspec
import yaml
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices

from hortator.call import Deployment, Usage
from hortator.errors import ConfigError

MILLION = Decimal(1_000_000)
KINDS: Final = ("input", "output", "cached", "cache_write", "reasoning")
"""Kinds of tokens that may have a price of their own."""

PRESETS: Final[Mapping[str, str | None]] = {
    "openai": "openai",
    "anthropic": "anthropic",
    "groq": "groq",
    "workers-ai": "cloudflare",
    "local": None,
    "ollama": None,
    "vllm": None,
    "fake": None,
}
"""Our provider presets and the list's names for them; None = runs on the operator's own machines, free."""

LISTED: Final = frozenset(
    (
        "anthropic arcee avian aws azure baseten cerebras cloudflare cohere cursor databricks deepseek doubleword "
        "elevenlabs fireworks github-copilot google groq huggingface_cerebras huggingface_fireworks-ai "
        "huggingface_groq huggingface_hyperbolic huggingface_nebius huggingface_novita huggingface_nscale "
        "huggingface_ovhcloud huggingface_publicai huggingface_sambanova huggingface_together meta minimax mistral "
        "modal moonshotai novita openai openai-decisions openrouter ovhcloud perplexity quicksilverpro together "
        "typesafe voyageai x-ai zai zhipuai "
    ).split()
)
"""Providers in the price list. Kept here so that the list's 20 MB are loaded only where they can help; a test compares."""

ROUTERS: Final = frozenset({"cloudflare-gateway"})
"""Presets that pass calls on to other providers, which the model's name names first: `openai/gpt-5.1`."""

_LIST_KINDS = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cached",
    "cache_write_mtok": "cache_write",
    "output_reasoning_mtok": "reasoning",
}
_MAX_CACHED = 4096
NANO = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Rate:
    """US dollars a token. With tiers, the whole call costs the rate of the highest tier its input is over."""

    base: Decimal
    tiers: tuple[tuple[int, Decimal], ...] = ()
    """(input tokens above which it applies, dollars a token), highest first."""

    def at(self, input_tokens: int) -> Decimal:
        """The rate for a call with that many input tokens."""
        for start, rate in self.tiers:
            if input_tokens > start:
                return rate
        return self.base


@dataclass(frozen=True, slots=True)
class Price:
    """The unit prices of one model. A kind without a rate is priced as what it is part of (`input` or `output`)."""

    state: Literal["priced", "free"]
    record: str
    """JSON kept with each record: dollars per million tokens as strings, `source`, `version`."""
    input: Rate | None = None
    output: Rate | None = None
    cached: Rate | None = None
    cache_write: Rate | None = None
    reasoning: Rate | None = None
    request: Decimal = Decimal(0)
    """US dollars a request."""
    fast: tuple[int, int, int] | None = field(init=False, repr=False, compare=False, default=None)
    """Of a price whose rates are the same for every call: a request, an input and an output token, in 1e-18 dollars."""

    def __post_init__(self) -> None:
        """Find out whether the price is that simple."""
        known = (
            self.request,
            *(rate.base for rate in (self.input, self.output) if rate is not None and not rate.tiers),
        )
        whole = [amount.scaleb(18) for amount in known]
        if len(known) == 3 and all(amount == int(amount) for amount in whole):
            object.__setattr__(self, "fast", tuple(map(int, whole)))

    def billionths(self, usage: Usage) -> int | None:
        """`cost` in billionths of a dollar, rounded up: for budgets, which ask twice a call."""
        fast = self.fast
        if fast is not None and not (usage.cached or usage.cache_write or usage.reasoning):
            tokens, output = usage.input, usage.output
            if tokens is not None and output is not None and tokens >= 0 and output >= 0:
                return -(-(fast[0] + fast[1] * tokens + fast[2] * output) // NANO)
        cost = self.cost(usage)
        return None if cost is None else ceil(cost * NANO)

    def cost(self, usage: Usage) -> Decimal | None:
        """US dollars, exact. None when the usage is not known, or has tokens that have no price."""
        if self.state == "free":
            return Decimal(0)
        tokens, output = usage.input, usage.output
        if tokens is None or output is None:
            return None
        total = self.request
        plain = tokens
        if self.cached is not None and usage.cached:
            plain -= usage.cached
            total += self.cached.at(tokens) * usage.cached
        if self.cache_write is not None and usage.cache_write:
            plain -= usage.cache_write
            total += self.cache_write.at(tokens) * usage.cache_write
        if self.reasoning is not None and usage.reasoning:
            output -= usage.reasoning
            total += self.reasoning.at(tokens) * usage.reasoning
        if plain > 0:
            if self.input is None:
                return None
            total += (self.input.at(tokens) if self.input.tiers else self.input.base) * plain
        if output > 0:
            if self.output is None:
                return None
            total += (self.output.at(tokens) if self.output.tiers else self.output.base) * output
        return total


FREE = Price(state="free", record='{"source":"free"}')


class PriceBook:
    """Prices by provider and model. Cheap to ask again; at most 4,096 answers are kept."""

    def __init__(
        self, overrides: Path | Mapping[str, Any] | None = None, providers: Mapping[str, str | None] | None = None
    ) -> None:
        """`overrides`: a YAML file or its content, `{provider: {model: {input: "0.05", output: "0.08"}}}`, in US dollars per
        million tokens, as strings; a model may be `"*"` and prices may be `free`. `providers`: our provider ids to their preset
        (see `PRESETS`) or to the list's own provider id; None = free. An id that is not in it stands for itself.
        Raises ConfigError.
        """
        source = str(overrides) if isinstance(overrides, Path) else "prices"
        self._overrides = _overrides(_load(overrides) if isinstance(overrides, Path) else overrides or {}, source)
        self._providers = dict(providers or {})
        self._listed: dict[str, Provider] | None = None
        self._answers: dict[tuple[str, str, str | None], tuple[int | None, Price | None]] = {}

    def cost(self, deployment: Deployment, response_model: str | None, usage: Usage) -> Decimal | None:
        """US dollars of a usage at a deployment that names its model so; None when no price is known."""
        price = self.price(deployment.provider, deployment.model, response_model)
        return None if price is None else price.cost(usage)

    def billionths(self, deployment: Deployment, response_model: str | None, usage: Usage) -> int | None:
        """Billionths of a US dollar of a usage at a deployment, rounded up; None when no price is known."""
        price = self.price(deployment.provider, deployment.model, response_model)
        return None if price is None else price.billionths(usage)

    def price(
        self, provider: str, model: str, response_model: str | None = None, at: float | None = None
    ) -> Price | None:
        """The price of `model` at that moment (Unix seconds, now by default); None when there is none.

        `response_model`, the name in the provider's reply, is tried first: it says what was really served.
        """
        key = (provider, model, response_model)
        known = self._answers.get(key)
        if known is not None:
            minute, price = known
            if minute is None or minute == int((time.time() if at is None else at) // 60):
                return price
        return self._look_up(key, time.time() if at is None else at)

    def context_window(self, provider: str, model: str) -> int | None:
        """The tokens of question and answer that the list says a model takes; None when it does not say."""
        _, found = self._listed_model(provider, [model])
        return None if found is None else found.context_window

    def _look_up(self, key: tuple[str, str, str | None], at: float) -> Price | None:
        """Find a price and remember the answer: for good, or for a minute when the model's price depends on the time."""
        provider, model, response_model = key
        names = [name for name in (response_model, model) if name]
        minute, price = None, self._overridden(provider, names)
        if price is None:
            minute, price = self._from_list(provider, names, at)
        if len(self._answers) >= _MAX_CACHED:
            self._answers.clear()
        self._answers[key] = (minute, price)
        return price

    def _overridden(self, provider: str, names: list[str]) -> Price | None:
        models = self._overrides.get(provider)
        if models is None:
            return None
        return next((models[name] for name in (*names, "*") if name in models), None)

    def _from_list(self, provider: str, names: list[str], at: float) -> tuple[int | None, Price | None]:
        free, found = self._listed_model(provider, names)
        if found is None:
            return None, FREE if free else None
        return (int(at // 60) if isinstance(found.prices, list) else None), _listed_price(found, at)

    def _listed_model(self, provider: str, names: list[str]) -> tuple[bool, ModelInfo | None]:
        """Whether a provider is free, and the list's entry of the first of these names that it knows."""
        preset = self._providers.get(provider, provider)
        if preset in ROUTERS:
            preset = names[-1].partition("/")[0]
            names = [name.removeprefix(f"{preset}/") for name in names]
        listed_id = PRESETS.get(preset, preset) if preset is not None else None
        if listed_id not in LISTED:
            return listed_id is None, None
        if self._listed is None:
            self._listed = {listed.id: listed for listed in get_snapshot().providers}
        listed = self._listed[listed_id]
        everyone = list(self._listed.values())
        for name in names:
            found = listed.find_model(name, all_providers=everyone)
            if found is not None:
                return False, found
        return False, None


def _listed_price(model: ModelInfo, at: float) -> Price | None:
    """Translate an entry of the list; None when it has no price for tokens."""
    prices: ModelPrice = model.get_prices(datetime.fromtimestamp(at, UTC))
    rates: dict[str, Rate] = {}
    record: dict[str, Any] = {"source": "genai-prices", "version": genai_prices.__version__, "model": model.id}
    for name, value in vars(prices).items():
        kind = _LIST_KINDS.get(name)
        if kind is None or value is None:
            continue
        if isinstance(value, TieredPrices):
            tiers = tuple((tier.start, tier.price / MILLION) for tier in reversed(value.tiers))
            rates[kind] = Rate(value.base / MILLION, tiers)
            record[kind] = {"base": str(value.base), "over": {str(tier.start): str(tier.price) for tier in value.tiers}}
        else:
            rates[kind] = Rate(value / MILLION)
            record[kind] = str(value)
    if "input" not in rates and "output" not in rates:
        return None
    per_thousand = vars(prices).get("requests_kcount")
    request = per_thousand / 1000 if isinstance(per_thousand, Decimal) else Decimal(0)
    if request:
        record["request"] = str(request)
    return _priced(record, rates, request)


def _load(path: Path) -> Mapping[str, Any]:
    """Read an override file. Raises ConfigError."""
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {type(error).__name__}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(f"{path}:{mark.line + 1 if mark else 1}: not YAML") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected providers and their models")
    return content


def _overrides(content: Mapping[str, Any], source: str) -> dict[str, dict[str, Price]]:
    """Check overrides and make prices of them. Raises ConfigError naming the key."""
    book: dict[str, dict[str, Price]] = {}
    for provider, models in content.items():
        if not isinstance(models, Mapping):
            raise ConfigError(f"{source}: {provider}: expected models and their prices")
        book[str(provider)] = {
            str(model): _override(value, f"{source}: {provider}: {model}") for model, value in models.items()
        }
    return book


def _override(value: object, where: str) -> Price:
    if value == "free":
        return FREE
    if not isinstance(value, Mapping) or not {"input", "output"} & value.keys():
        raise ConfigError(f'{where}: expected "free" or prices for input and output')
    unknown = sorted(set(map(str, value)) - {*KINDS, "currency"})
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]}")
    if value.get("currency", "USD") != "USD":
        raise ConfigError(f"{where}: currency: only USD is supported")
    amounts = {kind: _amount(value[kind], f"{where}: {kind}") for kind in KINDS if kind in value}
    record = {"source": "override"} | {kind: str(amount) for kind, amount in amounts.items()}
    return _priced(record, {kind: Rate(amount / MILLION) for kind, amount in amounts.items()})


def _amount(value: object, where: str) -> Decimal:
    """Dollars per million tokens. A YAML float is refused: it is not the number that was written."""
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        try:
            amount = Decimal(value)
        except InvalidOperation:
            amount = Decimal(-1)
        if amount.is_finite() and amount >= 0:
            return amount
    raise ConfigError(f'{where}: expected US dollars per million tokens in quotes, e.g. "0.05"')


def _priced(record: Mapping[str, Any], rates: Mapping[str, Rate], request: Decimal = Decimal(0)) -> Price:
    return Price(
        state="priced",
        record=msgspec.json.encode(record).decode(),
        input=rates.get("input"),
        output=rates.get("output"),
        cached=rates.get("cached"),
        cache_write=rates.get("cache_write"),
        reasoning=rates.get("reasoning"),
        request=request,
    )
