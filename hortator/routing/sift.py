"""Which candidates can serve a request, and what excludes the others: the client's bounds, the model's, the operator's.

`policy.py` sifts what may be chosen, and turns what is left into a decision or `refusal` into the client's error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from hortator.call import Caller, Route, Wish
from hortator.errors import InvalidRequest
from hortator.routing.cards import Card
from hortator.routing.catalogue import Candidate
from hortator.routing.estimates import over
from hortator.routing.needs import Needs, lacking

_TOLD = 10
"""Models that an error names."""


class Excluded(Struct, frozen=True):
    """Why a model is no candidate."""

    bound: str
    """`force_local`, `context_window`, `capabilities`, `price`, `maxCost`, `maxLatency` or `minQuality`."""
    why: str


class Sifted(NamedTuple):
    """A model after the look at it."""

    route: Route
    """With the deployments that can serve; all of them when none can."""
    card: Card
    """Of the first of them."""
    excluded: Excluded | None


class Terms(NamedTuple):
    """What candidates must fulfil."""

    needs: Needs
    wish: Wish
    priced: bool
    """Only models whose price is known."""


def terms(needs: Needs, wish: Wish, caller: Caller) -> Terms:
    """Return what candidates for this caller's request must fulfil. Budgets of money need prices."""
    return Terms(needs, wish, any(limit.kind == "money" for limit in caller.limits))


def sift(candidate: Candidate, terms: Terms) -> Sifted:
    """Look at one model: keep its deployments that can serve."""
    route, cards = candidate
    kept: list[int] = []
    first: Excluded | None = None
    for place, card in enumerate(cards):
        why = _exclusion(card, terms)
        if why is None:
            kept.append(place)
        else:
            first = first or why
    if not kept:
        return Sifted(route, cards[0], first)
    if len(kept) < len(cards):
        weights = tuple(route.weights[place] for place in kept) if route.weights else ()
        route = replace(route, candidates=tuple(route.candidates[place] for place in kept), weights=weights)
    return Sifted(route, cards[kept[0]], None)


def _exclusion(card: Card, terms: Terms) -> Excluded | None:
    if terms.wish.force_local and not card.local:
        return Excluded("force_local", "not on the operator's own machines")
    found = lacking(card, terms.needs)
    if found is None and terms.priced and not card.priced:
        found = "price", "has no price, which the caller's budget of money needs"
    if found is None and terms.wish.preferences is not None:
        found = over(card, terms.needs, terms.wish.preferences)
    return None if found is None else Excluded(found[0], found[1])


def refusal(sifted: Sequence[Sifted]) -> InvalidRequest:
    """Return the error of a request that no candidate can serve, saying which bound excluded which model."""
    bounds = {one.excluded.bound for one in sifted if one.excluded is not None}
    told = [
        f"{one.route.model[:200]}: {one.excluded.bound} ({one.excluded.why})"
        for one in sifted
        if one.excluded is not None
    ]
    more = f"; and {len(told) - _TOLD} more" if len(told) > _TOLD else ""
    listed = "; ".join(told[:_TOLD]) + more
    if bounds == {"force_local"}:
        said, code, param = "No local model can answer this request", "no_local_deployment", "metadata.force_local"
    elif bounds & {"maxCost", "maxLatency", "minQuality"}:
        said, code, param = "No model satisfies the preferences", "preferences_unsatisfiable", "hortator_preferences"
    elif "context_window" in bounds and bounds <= {"context_window", "force_local"}:
        said, code, param = "The request is too long", "context_length_exceeded", "messages"
    else:
        said, code, param = "No model can serve this request", "unsupported_by_model", "model"
    return InvalidRequest(f"{said}: {listed}.", code=code, param=param)
