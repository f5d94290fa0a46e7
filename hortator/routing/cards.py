"""What is known about models: tier, price, speed, window, abilities. The catalogue asks for a deployment's card when it is wanted.

Sources, the first that knows wins: the operator's `routing.cards`, the built-in list (`data/models.json`), what the price book
knows, what the provider tells of all its models. What nobody knows is None, and that excludes nothing. No I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from hortator.call import Deployment
from hortator.settings import LOCAL, Feature, Provider, Settings, Tier, is_loopback
from hortator.settings import Card as Chosen

FIRST_TOKEN_MS: Final[Mapping[Tier, float]] = {"primary": 125, "edge": 200, "flagship": 1000, "local": 300}
"""Usual milliseconds to the first token, by tier (R-002-13: 50-200, 100-300, 500-1500); what is local is our own estimate."""
_PRESET_TIERS: Final[Mapping[str, Tier]] = {"groq": "primary", "workers-ai": "edge", "openai": "flagship"}
_ROUTER = "cloudflare-gateway"
"""The preset whose models begin with the id of the provider that really serves them."""
_INPUT_SHARE = 0.75
"""Part of the tokens of a common call that are input: how one blended price is made of two."""


class Facts(NamedTuple):
    """What the price book knows of a model. Dollars a million tokens; None = it does not know."""

    input: float | None = None
    output: float | None = None
    context_window: int | None = None


Known = Callable[[str, str], Facts]
"""`(provider id, provider's model name) -> Facts`."""


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """One model as it is known. None = unknown, which excludes nothing."""

    id: str
    """What clients ask for: `provider/model`, or the operator's name."""
    provider: str
    """Id of the provider, of the first deployment where there are several."""
    model: str
    """The provider's own name for the model."""
    tier: Tier | None = None
    quality: float | None = None
    """0 to 10; the maintainers' rough order, not a measurement."""
    speed: float | None = None
    """Tokens a second."""
    first_token_ms: float | None = None
    price_input: float | None = None
    """US dollars a million tokens, as the ledger reckons; 0 = free."""
    price_output: float | None = None
    price: float | None = None
    """One blended figure of the two, dollars a million tokens, for lists; the built-in list's own where it has one."""
    priced: bool = False
    """The ledger has its price too: it can be used under a budget of money."""
    context_window: int | None = None
    """Tokens of question and answer together."""
    max_output: int | None = None
    capabilities: tuple[str, ...] | None = None
    lacks: frozenset[Feature] = frozenset()
    """What it is known not to take."""
    description: str | None = None

    @property
    def local(self) -> bool:
        """Whether a request that must stay local may go there."""
        return self.tier == "local"


class _Listed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An entry of the built-in list. `price` is the blended figure of the list's source."""

    tier: Tier
    capabilities: tuple[str, ...]
    lacks: tuple[Feature, ...]
    quality: float
    description: str
    price: float
    speed: float | None = None
    context_window: int | None = None
    max_output: int | None = None


_LIST: Final[Mapping[str, Mapping[str, _Listed]]] = msgspec.json.decode(
    files("hortator.routing").joinpath("data/models.json").read_bytes(), type=dict[str, dict[str, _Listed]]
)
_NOTHING = Chosen()


def nothing_known(_provider: str, _model: str) -> Facts:
    """Know nothing: a price book for when there is none."""
    return Facts()


class Cards:
    """Makes cards from the settings, the built-in list and the price book."""

    def __init__(self, settings: Settings, known: Known = nothing_known) -> None:
        self._chosen = settings.routing.cards
        self._providers = {provider.id: provider for provider in settings.providers}
        self._local_context = settings.local.context
        self._known = known

    def built_in(self, provider: str) -> tuple[str, ...]:
        """Return the names of the models that the built-in list knows at a provider, for one that lists none itself."""
        settings = self._providers[provider]
        return tuple(_LIST.get(settings.preset or settings.id, ()))

    def card(self, deployment: Deployment, id: str | None = None) -> Card:
        """Return the card of a deployment; `id` is the operator's name that it is part of, whose own card goes first."""
        own = self._chosen.get(deployment.id, _NOTHING)
        if id is not None and id != deployment.id and id in self._chosen:
            own = _over(self._chosen[id], own)
        if deployment.provider == LOCAL:
            built_in = Chosen(
                tier="local",
                quality=2.0,
                speed=20.0,
                context_window=self._local_context,
                capabilities=("chat", "code", "function-calling", "json-schema", "simple-tasks"),
                lacks=("vision",),
                description="Embedded model for trying out, smoke tests and offline fallback.",
            )
            return _made(deployment, id, _over(own, built_in), Facts(0.0, 0.0), 0.0)
        provider = self._providers[deployment.provider]
        served_by, name = provider.preset or provider.id, deployment.model
        if served_by == _ROUTER:
            served_by, _, name = name.partition("/")
        listed = _LIST.get(served_by, {}).get(name)
        told = _NOTHING if listed is None else _from_list(listed)
        if provider.tier is not None:
            told = msgspec.structs.replace(told, tier=provider.tier)
        told = _over(own, _over(told, Chosen(tier=_tier(provider, served_by, name))))
        facts = self._known(deployment.provider, deployment.model)
        return _made(deployment, id, told, facts, None if listed is None else listed.price)


def _from_list(listed: _Listed) -> Chosen:
    return Chosen(
        tier=listed.tier,
        quality=listed.quality,
        speed=listed.speed,
        context_window=listed.context_window,
        max_output=listed.max_output,
        capabilities=listed.capabilities,
        lacks=listed.lacks,
        description=listed.description,
    )


def _over(first: Chosen, second: Chosen) -> Chosen:
    """Return what `first` says, and `second` where it is silent."""
    said = {field: value for field in first.__struct_fields__ if (value := getattr(first, field)) is not None}
    return msgspec.structs.replace(second, **said)


def _tier(provider: Provider, served_by: str, model: str) -> Tier | None:
    """Return what a provider's address and preset tell of its models. Ollama's `-cloud` models run elsewhere."""
    tier = _PRESET_TIERS.get(served_by)
    if tier is not None or provider.preset == _ROUTER:
        return tier
    if provider.preset == "ollama" and model.endswith(("-cloud", ":cloud")):
        return None
    return "local" if is_loopback(urlsplit(provider.base_url).hostname or "") else None


def _made(deployment: Deployment, id: str | None, told: Chosen, facts: Facts, blended: float | None) -> Card:
    tier = told.tier
    price_in, price_out = facts.input, facts.output
    if blended is None and price_in is not None and price_out is not None:
        blended = round(price_in * _INPUT_SHARE + price_out * (1 - _INPUT_SHARE), 6)
    return Card(
        id=id or deployment.id,
        provider=deployment.provider,
        model=deployment.model,
        tier=tier,
        quality=told.quality,
        speed=told.speed,
        first_token_ms=told.first_token_ms or (None if tier is None else FIRST_TOKEN_MS[tier]),
        price_input=price_in,
        price_output=price_out,
        price=blended,
        priced=facts.input is not None and facts.output is not None,
        context_window=told.context_window or facts.context_window,
        max_output=told.max_output,
        capabilities=told.capabilities,
        lacks=frozenset(told.lacks or ()),
        description=told.description,
    )
