"""What is served: every model id and the deployments behind it. Immutable; the composition root replaces it as a whole.

Built from the settings, from what providers list, and from the embedded model. `policy.decide` asks it; `/v1/models` shows it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from fnmatch import translate
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from msgspec import UNSET, Struct, UnsetType

from hortator.call import Decision, Deployment, ModelId, ProviderId, Route
from hortator.routing.cards import Card, Cards
from hortator.routing.needs import Guard
from hortator.settings import LOCAL, NamedModel, Settings

CREATED = 1_763_683_200
"""`created` of every entry, Unix seconds: providers' own dates are not known, and clients only want a number."""
MAX_MODELS = 50_000
_SEARCHED, _COMPARED, _COMPARED_LENGTH = 2_000, 40, 100
"""Bounds of the search for a misspelt id: ids looked at, ids and characters compared. Comparing is slow."""
_LOCAL_NOTE = "Embedded model for trying out, smoke tests and offline fallback; small, and not for serious work."


class Entry(Struct, frozen=True, kw_only=True):
    """One model as `GET /v1/models` shows it."""

    id: str
    object: str = "model"
    created: int = CREATED
    owned_by: str
    description: str | UnsetType = UNSET


class Candidate(NamedTuple):
    """A model that may be chosen, and what is known of each of its deployments."""

    route: Route
    cards: tuple[Card, ...]


class Catalogue:
    """All models. Ids are `provider/model`, where `model` may itself hold slashes, or the names the operator gave."""

    def __init__(
        self,
        settings: Settings,
        discovered: Mapping[ProviderId, tuple[str, ...]],
        local: str | None = None,
        cards: Cards | None = None,
    ) -> None:
        """`discovered` holds what providers listed; it counts for those without `models`. `local` is the embedded model's name.
        `cards` knows about models; None = what the settings and the built-in list say, without prices.

        A provider marked `detect` is here once it has listed something. A named model keeps the deployments that can be
        had; one with none left is not here either.
        """
        self._models: dict[str, tuple[Deployment, ...]] = {}
        self._named: dict[str, tuple[Route, NamedModel]] = {}
        self._entries: dict[str, Entry] = {}
        self._open: dict[str, ProviderId] = {}
        self._tails: dict[str, list[str]] = {}
        providers = [p for p in settings.providers if not p.detect or discovered.get(ProviderId(p.id))]
        cards = cards or Cards(settings)
        self._card = cards.card
        self._cards: dict[str, tuple[Card, ...]] = {}
        self._carded = frozenset(settings.routing.cards)
        self._pool: tuple[Candidate, ...] | None = None
        self._unlisted = [
            f"{provider.id}/{name}"
            for provider in providers
            if provider.models is None and not discovered.get(ProviderId(provider.id))
            for name in cards.built_in(provider.id)
        ]
        self.decisions: dict[tuple[str, tuple[str, ...], int], tuple[Decision, Guard | None]] = {}
        """Decisions about named models that were made before; `policy.py` keeps them here, as they are as old as the catalogue."""
        here = {provider.id for provider in providers} | ({LOCAL} if local is not None else set())
        for model in settings.models:
            places = [place for place in model.deployments if place.provider in here]
            chosen = tuple(_deployment(ProviderId(place.provider), place.model) for place in places)
            if chosen:
                self._add(model.id, "hortator", chosen, model.description)
                weights = tuple(place.weight for place in places)
                route = Route(model=ModelId(model.id), candidates=chosen, strategy=model.strategy, weights=weights)
                self._named[model.id] = route, model
        if local is not None:
            self._add(f"{LOCAL}/{local}", "hortator", (_deployment(ProviderId(LOCAL), local),), _LOCAL_NOTE)
        for provider in providers:
            key = ProviderId(provider.id)
            if provider.models is None:
                self._open[provider.id] = key
            names = provider.models if provider.models is not None else discovered.get(key, ())
            for name in names:
                self._add(f"{provider.id}/{name}", provider.id, (_deployment(key, name),))

    def resolve(self, model: str) -> tuple[Deployment, ...] | None:
        """Return the deployments of a model id, best first; None when there is no such model.

        The full id is looked up first. Else it is split on its first `/`, and any name is passed to a provider whose models
        are not listed in the settings: `groq/openai/gpt-oss-20b` is `openai/gpt-oss-20b` at `groq`.
        """
        found = self._models.get(model)
        if found is None:
            prefix, slash, name = model.partition("/")
            provider = self._open.get(prefix)
            if provider is not None and slash and name:
                return (_deployment(provider, name),)
        return found

    def named(self, model: str) -> tuple[Route, NamedModel] | None:
        """Return a named model's deployments and its settings; None when `model` is not one, or has none left."""
        return self._named.get(model)

    def routes(self, models: tuple[str, ...], allowed: tuple[str, ...]) -> tuple[Route, ...]:
        """Return those of `models` that are served now and that a key with these globs may use."""
        if not models:
            return ()
        found: list[Route] = []
        for model in models:
            named = self._named.get(model)
            candidates = self.resolve(model)
            if candidates is not None and may_use(allowed, model):
                found.append(named[0] if named else Route(model=ModelId(model), candidates=candidates))
        return tuple(found)

    def cards(self, model: str) -> tuple[Card, ...]:
        """Return what is known of each deployment of a model, in their order; empty when there is no such model."""
        found = self._cards.get(model)
        if found is None:
            id = model if model in self._named else None
            found = tuple(self._card(deployment, id) for deployment in self.resolve(model) or ())
            if len(self._cards) >= MAX_MODELS:  # clients may make up names at an open provider
                self._cards.clear()
            self._cards[model] = found
        return found

    def card(self, model: str) -> Card | None:
        """Return what is known of a model: of its first deployment where it has several; None when there is no such model."""
        cards = self.cards(model)
        return cards[0] if cards else None

    def listed(self, allowed: tuple[str, ...]) -> list[Card]:
        """Return the cards of the models in the list that a key with these globs may use."""
        return [self.cards(model)[0] for model in self._entries if may_use(allowed, model)]

    def candidate(self, model: str) -> Candidate | None:
        """Return a model as routing may choose it; None when there is no such model."""
        candidates = self.resolve(model)
        if candidates is None:
            return None
        named = self._named.get(model)
        return Candidate(named[0] if named else Route(model=ModelId(model), candidates=candidates), self.cards(model))

    def pool(self) -> tuple[Candidate, ...]:
        """Return the models that routing may choose by itself: those whose quality is known, each deployment once where it can.

        A model of the operator's naming counts where it has a deployment that cannot be had by its own id, or a card of its own.
        """
        if self._pool is None:
            models = [*self._entries, *self._unlisted]
            direct = set(models)
            named = {id for id, (route, _) in self._named.items() if not any(d.id in direct for d in route.candidates)}
            found = [self.candidate(id) for id in models if id not in self._named or id in named or id in self._carded]
            self._pool = tuple(c for c in found if c is not None and c.cards[0].quality is not None)
        return self._pool

    def named_deployments(self) -> set[str]:
        """Return the ids of all deployments of named models."""
        return {deployment.id for route, _ in self._named.values() for deployment in route.candidates}

    def __contains__(self, model: object) -> bool:
        """Whether this very id is in the list: not so for names that are only passed on."""
        return model in self._models

    def visible(self, allowed: tuple[str, ...]) -> list[Entry]:
        """Return the entries a key with these globs may use."""
        return [entry for model, entry in self._entries.items() if may_use(allowed, model)]

    def similar(self, model: str, allowed: tuple[str, ...]) -> list[str]:
        """Return up to three ids that `model` may have been meant to be, of those a key with these globs may use.

        Ids with the same last part come first (a forgotten provider); then a bounded number that begin alike is compared.
        """
        asked = model[:_COMPARED_LENGTH]
        same = [known for known in self._tails.get(_tail(asked), ()) if may_use(allowed, known)]
        if same:
            return same[:3]
        start = _tail(asked)[:2]
        alike = (known for known in islice(self._entries, _SEARCHED) if _tail(known).startswith(start))
        usable = (known for known in alike if may_use(allowed, known))
        return get_close_matches(asked, islice(usable, _COMPARED), n=3)

    def _add(self, model: str, owner: str, deployments: tuple[Deployment, ...], note: str | None = None) -> None:
        """Add a model unless its id is taken: the operator's own names are added first."""
        if model in self._models or len(self._models) >= MAX_MODELS:
            return
        self._models[model] = deployments
        self._entries[model] = Entry(id=model, owned_by=owner, description=UNSET if note is None else note)
        self._tails.setdefault(_tail(model), []).append(model)


def _tail(model: str) -> str:
    return model.rpartition("/")[2].lower()


def _deployment(provider: ProviderId, name: str) -> Deployment:
    return Deployment(id=f"{provider}/{name}", provider=provider, model=name)


def may_use(allowed: tuple[str, ...], model: str) -> bool:
    """Whether a key with these globs may use a model. Case sensitive; `*` matches slashes too."""
    return "*" in allowed or _pattern(allowed).match(model) is not None


@lru_cache(maxsize=4096)
def _pattern(allowed: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(translate(glob) for glob in allowed) or r"(?!)")
