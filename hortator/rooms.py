"""One generation of the configuration at work: its providers, its prices, what they serve, and the gateway over them.

`app.py` makes one at the start and another for every change of the configuration, and swaps one reference: running requests
end on the generation they began with. What holds state, connections or tasks is `Lasting` and goes from one to the next.
A generation that cannot be made (ConfigError) changes nothing; `take_over` is the only step that others notice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from time import monotonic
from typing import NamedTuple

import msgspec

from hortator.call import ProviderId, Usage
from hortator.dispatch import Dispatch, breaker, retry
from hortator.dispatch.balance import Balance
from hortator.dispatch.health import Health, ProviderHealth
from hortator.gateway import Gateway
from hortator.ledger import Ledger, PriceBook, Tracer
from hortator.providers.anthropic import AnthropicProvider
from hortator.providers.base import Provider
from hortator.providers.local import LocalProvider
from hortator.providers.local_model import LocalModel
from hortator.providers.openai import SPOKEN, OpenAIProvider
from hortator.providers.upstream import Origin, Timeouts, Upstream
from hortator.routing import Cards, Catalogue, Facts, Repeats
from hortator.settings import LOCAL, Settings
from hortator.settings import Provider as ProviderSettings
from hortator.tenancy import Admission, Budgets, Identity

RemoteProvider = OpenAIProvider | AnthropicProvider


class Lasting(NamedTuple):
    """What outlives a change of the configuration."""

    identity: Identity
    budgets: Budgets
    ledger: Ledger
    upstream: Upstream
    balance: Balance
    admission: Admission
    tracer: Tracer | None
    local: LocalModel | None


class Rooms:
    """A generation. Only its catalogue changes: when a provider lists other models."""

    def __init__(self, settings: Settings, prices: PriceBook, lasting: Lasting, before: Rooms | None = None) -> None:
        """`before` is the generation that this one follows. Raises ConfigError."""
        self.settings = settings
        self.prices = prices
        self._lasting = lasting
        self._remote: dict[ProviderId, RemoteProvider] = {}
        known: dict[ProviderId, ProviderHealth] = {}
        old = {} if before is None else {provider.id: provider for provider in before.settings.providers}
        for provider in settings.providers:
            id = ProviderId(provider.id)
            if before is not None and old.get(provider.id) == provider:
                self._remote[id], known[id] = before._remote[id], before.health.states[id]
            else:
                self._remote[id] = remote_provider(provider, lasting.upstream)
        self._changed = {ProviderId(id) for id in old if id not in known}
        self._new = self._remote.keys() - known.keys()
        providers: dict[ProviderId, Provider] = dict(self._remote)
        if lasting.local is not None:
            providers[ProviderId(LOCAL)] = LocalProvider(lasting.local)
        optional = frozenset(ProviderId(p.id) for p in settings.providers if p.detect)
        self.health: Health = Health(self._remote, optional, self._list_models, known)
        self._cards = Cards(settings, facts(prices))
        self.catalogue: Catalogue
        self._list_models()
        self._retry: retry.Retry = retry.Retry(
            _retry_limits(settings), budget=None if before is None else before._retry.budget
        )
        dispatch = Dispatch(providers, lasting.balance, self._retry)
        self._repeats: Repeats = Repeats() if before is None else before._repeats
        self.gateway = Gateway(
            settings,
            lasting.identity,
            lambda: self.catalogue,
            dispatch,
            lasting.ledger,
            lasting.budgets,
            lasting.admission,
            lasting.tracer,
            self._repeats if settings.routing.record_outcomes else None,
        )

    def origins(self, providers: Collection[ProviderId]) -> list[Origin]:
        """Where these providers are; those that are not asked over HTTP are left out."""
        return [self._remote[id].origin for id in providers if id in self._remote]

    async def prepare(self) -> None:
        """Get ready beside the generation before: certificates, and a first look at the providers that are new."""
        await self._lasting.upstream.expect([provider.origin for provider in self._remote.values()])
        await self.health.look(self._new)

    def take_over(self) -> None:
        """Hand what lasts over to this generation. Providers that are gone or changed are forgotten."""
        lasting, settings = self._lasting, self.settings
        looks = settings.breaker.look
        self.health.found = (lambda id, up: lasting.balance.tell(id, up, monotonic())) if looks else None
        lasting.balance.configure(
            breaker_limits(settings),
            usual_prices(settings, self.prices),
            self._changed,
            self.health.suspect if looks else None,
        )
        self._retry.budget.limits = self._retry.limits
        lasting.budgets.configure(
            self.prices.billionths,
            default_max_output_tokens=settings.limits.default_max_output_tokens,
            fail_open=msgspec.structs.asdict(settings.limits.fail_open),
        )
        lasting.ledger.use(self.prices)
        lasting.upstream.keep([provider.origin for provider in self._remote.values()])

    def _list_models(self) -> None:
        local = self._lasting.local
        name = local.name if local is not None and local.state != "disabled" else None
        self.catalogue = Catalogue(self.settings, self.health.served, name, self._cards)


def price_book(settings: Settings, before: Mapping[str, str] | None = None) -> PriceBook:
    """Return the prices; reads a file. `before`: providers whose last calls may still have to be priced. Raises ConfigError."""
    return PriceBook(settings.ledger.price_overrides, {**(before or {}), **price_lists(settings)})


def price_lists(settings: Settings) -> dict[str, str]:
    """Return by whose price list each provider goes: its preset's, else its dialect's owner's, else that of its id.

    One that the operator says is local costs nothing, as the embedded model does; a loopback address alone does not say so.
    """
    return {
        p.id: LOCAL if p.tier == "local" else p.preset or (p.kind if p.kind != "openai" else p.id)
        for p in settings.providers
    }


def facts(book: PriceBook) -> Callable[[str, str], Facts]:
    """Return what routing asks about prices and windows: dollars a million tokens."""

    def known(provider: str, model: str) -> Facts:
        price = book.price(provider, model)
        window = book.context_window(provider, model)
        if price is None:
            return Facts(context_window=window)
        million = 1_000_000
        read, written = price.cost(Usage(input=million, output=0)), price.cost(Usage(input=0, output=million))
        dollars = [None if cost is None else float(cost) for cost in (read, written)]
        return Facts(dollars[0], dollars[1], window)

    return known


def breaker_limits(settings: Settings) -> breaker.Limits:
    """Return when a deployment is left alone."""
    chosen = settings.breaker
    return breaker.Limits(chosen.failures, chosen.open_ms / 1000, chosen.max_pause_ms / 1000)


def usual_prices(settings: Settings, book: PriceBook) -> dict[str, float]:
    """Return what a common call costs at each deployment among which the cheapest is to be chosen."""
    usual = Usage(input=3000, output=1000)
    found: dict[str, float] = {}
    for place in (place for model in settings.models if model.strategy == "cheapest" for place in model.deployments):
        price = book.price(place.provider, place.model)
        cost = None if price is None else price.cost(usual)
        if cost is not None:
            found[f"{place.provider}/{place.model}"] = float(cost)
    return found


def remote_provider(settings: ProviderSettings, client: Upstream) -> RemoteProvider:
    """Return the adapter of one configured provider."""
    limits = settings.timeouts
    timeouts = Timeouts(limits.connect_ms / 1000, limits.first_byte_ms / 1000, limits.idle_ms / 1000)
    place = (ProviderId(settings.id), client, settings.base_url, timeouts)
    if settings.kind == "anthropic":
        return AnthropicProvider(*place, api_key=settings.api_key, headers=settings.headers)
    responses = settings.preset == "openai" if settings.responses is None else settings.responses
    return OpenAIProvider(
        *place,
        api_key=settings.api_key,
        headers=settings.headers,
        dialects=SPOKEN | {"responses"} if responses else SPOKEN,
        extensions=settings.extensions,
    )


def _retry_limits(settings: Settings) -> retry.Limits:
    chosen = settings.retry
    seconds = (chosen.delay_ms / 1000, chosen.max_wait_ms / 1000)
    return retry.Limits(chosen.max_retries, *seconds, chosen.ratio, chosen.floor)
