"""Decides where a call may go. Pure: the same request, caller, catalogue and rules give the same decision.

The gateway calls `decide` for every request. A directly named model costs a dictionary look-up and a check of its bounds; the model
`auto` is chosen by the request's task type or its complexity (`auto.py`). `preview.py` tells how a decision came about.
"""

from __future__ import annotations

from urllib.parse import quote

from msgspec.structs import replace

from hortator.call import NO_WISH, Call, Caller, Decision, ModelId, Route
from hortator.errors import Forbidden, NotFound
from hortator.routing import auto
from hortator.routing.catalogue import Candidate, Catalogue, may_use
from hortator.routing.needs import Guard, guard, may_matter, needs
from hortator.routing.sift import Sifted, Terms, refusal, sift, terms

_REMEMBERED = 4096
_ROUTED = frozenset({"chat", "messages", "responses"})
"""Dialects in which `auto` is a model: those that converse."""

Header = tuple[bytes, bytes]
_INFERRED = {
    name: (b"x-hortator-task-type", f"{name}; inferred".encode()) for name in ("chat", "extraction", "tool-use")
}


def decide(call: Call, caller: Caller, catalogue: Catalogue, rules: auto.Rules) -> Decision:
    """Return the deployments for a call.

    Raises NotFound for an unknown model and Forbidden for one the key may not use, neither naming models hidden from the key;
    InvalidRequest when no model can serve the request as it is.
    """
    if is_routed(call, catalogue):
        return auto.choose(call, caller, catalogue, rules).decision
    decision, bounds = _named(call.model, caller.allowed_models, catalogue, rules.status_wait_ms)
    if call.wish is not NO_WISH or (bounds is not None and may_matter(bounds, call.body)):
        return fitted(decision, call, caller, catalogue)[0]
    return decision


def is_routed(call: Call, catalogue: Catalogue) -> bool:
    """Whether the call's model is to be chosen. An operator's own model called `auto` is a named one."""
    return call.model == auto.AUTO and call.operation in _ROUTED and auto.AUTO not in catalogue


def told(decision: Decision, call: Call) -> tuple[Header, ...]:
    """Return the reply headers that tell of a decision: the route, and the task type, inferred from the request's form (C-1)."""
    task_type = call.wish.task_type
    if task_type is not None:
        return (*decision.headers, (b"x-hortator-task-type", task_type.encode()))
    if call.operation not in _ROUTED:
        return decision.headers
    return (*decision.headers, _INFERRED[inferred(call)])


def inferred(call: Call) -> str:
    """Return the task type that the form of a request tells."""
    if "response_format" in call.body:
        return "extraction"
    return "tool-use" if "tools" in call.body else "chat"


def named(model: ModelId, allowed: tuple[str, ...], catalogue: Catalogue, status_wait_ms: int) -> Decision:
    """Return the deployments of a directly named model, whatever a request needs. Raises NotFound, Forbidden."""
    candidates = catalogue.resolve(model)
    if candidates is None:
        similar = catalogue.similar(model, allowed)
        hint = f" Did you mean {' or '.join(similar)}?" if similar else ""
        raise NotFound(
            f"The model '{model[:200]}' does not exist.{hint} GET /v1/models lists the models you may use.",
            code="model_not_found",
            param="model",
        )
    if not may_use(allowed, model):
        raise Forbidden(f"This key may not use the model '{model[:200]}'.", code="model_not_allowed", param="model")
    found = catalogue.named(model)
    headers = ((b"x-hortator-route", f"named;{quote(model[:200], safe='/@:+ ')};asked for".encode()),)
    if found is None:
        return Decision(
            model=model, candidates=candidates, reason="named", status_wait_ms=status_wait_ms, headers=headers
        )
    route, chosen = found
    return Decision(
        model=model,
        candidates=candidates,
        reason="named",
        status_wait_ms=status_wait_ms,
        strategy=route.strategy,
        weights=route.weights,
        fallbacks=catalogue.routes(chosen.fallbacks, allowed),
        context_fallbacks=catalogue.routes(chosen.context_fallbacks, allowed),
        content_fallbacks=catalogue.routes(chosen.content_fallbacks, allowed),
        hedge_ms=chosen.hedge_ms,
        headers=headers,
    )


def _named(
    model: ModelId, allowed: tuple[str, ...], catalogue: Catalogue, status_wait_ms: int
) -> tuple[Decision, Guard | None]:
    """Return the decision for a named model, and the tightest bounds of all that it may meet. Both are remembered."""
    key = (model, allowed, status_wait_ms)
    found = catalogue.decisions.get(key)
    if found is None:
        decision = named(model, allowed, catalogue, status_wait_ms)
        routes = (*decision.fallbacks, *decision.context_fallbacks, *decision.content_fallbacks)
        cards = (card for id in (model, *(route.model for route in routes)) for card in catalogue.cards(id))
        if len(catalogue.decisions) >= _REMEMBERED:
            catalogue.decisions.clear()
        found = catalogue.decisions[key] = decision, guard(cards)
    return found


def fitted(decision: Decision, call: Call, caller: Caller, catalogue: Catalogue) -> tuple[Decision, Sifted]:
    """Return a named model's decision without what cannot serve the request, and what became of the model itself.

    Where no deployment of it can, its fallbacks do, unless the request wants none: those for long requests when it is too long.
    Raises InvalidRequest.
    """
    conditions = terms(needs(call.body), call.wish, caller)._replace(priced=False)  # limits say so themselves
    own = sift(Candidate(_route(decision), catalogue.cards(decision.model)), conditions)
    decision = replace(
        decision,
        candidates=own.route.candidates,
        weights=own.route.weights,
        fallbacks=_usable(decision.fallbacks, catalogue, conditions),
        context_fallbacks=_usable(decision.context_fallbacks, catalogue, conditions),
        content_fallbacks=_usable(decision.content_fallbacks, catalogue, conditions),
    )
    if own.excluded is None:
        return decision, own
    is_long = own.excluded.bound == "context_window"
    if not call.fallback:
        raise refusal([own])
    instead = decision.context_fallbacks if is_long else decision.fallbacks
    if not instead:
        raise refusal([own])
    first, *rest = instead
    changed = replace(
        decision,
        candidates=first.candidates,
        strategy=first.strategy,
        weights=first.weights,
        reason=f"{decision.model} cannot serve it: {own.excluded.bound}",
        fallbacks=tuple(rest),
        context_fallbacks=tuple(rest) if is_long else decision.context_fallbacks,
        headers=auto.route_header("named", first.model, own.excluded.bound),
    )
    return changed, own


def _route(decision: Decision) -> Route:
    return Route(
        model=decision.model,
        candidates=decision.candidates,
        strategy=decision.strategy,
        weights=decision.weights,
    )


def _usable(routes: tuple[Route, ...], catalogue: Catalogue, conditions: Terms) -> tuple[Route, ...]:
    if not routes:
        return ()
    sifted = (sift(Candidate(route, catalogue.cards(route.model)), conditions) for route in routes)
    return tuple(one.route for one in sifted if one.excluded is None)
