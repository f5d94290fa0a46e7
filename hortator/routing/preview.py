"""Tells how a call would be routed, and calls nothing (R-002-9). The doors of previews show what `preview` returns."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from hortator.call import Call, Caller, Decision, Deployment, ModelId, Path, Route
from hortator.routing import auto
from hortator.routing.cards import Card
from hortator.routing.catalogue import Candidate, Catalogue
from hortator.routing.estimates import cost, latency
from hortator.routing.needs import Needs, needs
from hortator.routing.policy import fitted, inferred, is_routed, named
from hortator.routing.sift import Excluded, Sifted, sift, terms

HINTS: Final[dict[Path, dict[str, Any]]] = {
    "fast": {"agent_type": "generalist", "max_time": "2s", "max_time_ms": 2_000},
    "standard": {"decompose": True, "max_agents": 3, "max_time": "15s", "max_time_ms": 15_000},
    "complex": {"decompose_strategy": "aggressive", "max_agents": 8, "max_time": "60s", "max_time_ms": 60_000},
}
"""What a path means to whoever works on it (R-000-35 to 37; C-17: not deadlines)."""


class Looked(msgspec.Struct, frozen=True, kw_only=True):
    """One model that was looked at."""

    model: str
    tier: str | None
    quality: float | None
    excluded: Excluded | None
    """None = it can serve the request."""
    estimated_cost: float | None
    """US dollars."""
    estimated_latency_ms: float | None


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """How a call would be routed."""

    model: str
    """The one chosen."""
    deployments: tuple[str, ...]
    strategy: str
    reason: str
    path: Path
    score: float
    """Complexity, 0 to 1. It decides only where the model is `auto` and no task type does."""
    confidence: float
    reasons: tuple[str, ...]
    features: dict[str, float]
    hints: dict[str, Any]
    task_type: str
    task_type_inferred: bool
    candidates: tuple[Looked, ...]
    fallbacks: tuple[str, ...]
    context_fallbacks: tuple[str, ...]
    content_fallbacks: tuple[str, ...]
    input_tokens: int
    """Estimated."""
    estimated_cost: float | None
    """US dollars; None = the price is not known."""
    estimated_latency_ms: float | None
    card: Card
    """What is known of the first deployment."""


def preview(call: Call, caller: Caller, catalogue: Catalogue, rules: auto.Rules) -> Preview:
    """Return how a call would be routed. Raises what `policy.decide` raises."""
    sifted: tuple[Sifted, ...]
    if is_routed(call, catalogue):
        decision, judged, sifted, needed = auto.choose(call, caller, catalogue, rules)
    else:
        decision = named(call.model, caller.allowed_models, catalogue, rules.status_wait_ms)
        needed, judged = needs(call.body), None
        conditions = terms(needed, call.wish, caller)._replace(priced=False)
        places = zip(decision.candidates, catalogue.cards(call.model), strict=True)
        sifted = tuple(sift(Candidate(_alone(place), (card,)), conditions) for place, card in places)
        decision, _ = fitted(decision, call, caller, catalogue)
    if judged is None:
        judged = auto.judge(call, rules)
    card = _card(decision, catalogue)
    path = decision.path or judged.path
    return Preview(
        model=decision.model,
        deployments=tuple(deployment.id for deployment in decision.candidates),
        strategy=decision.strategy,
        reason=decision.reason,
        path=path,
        score=judged.score,
        confidence=judged.confidence,
        reasons=judged.reasons,
        features=judged.features,
        hints=HINTS[path],
        task_type=call.wish.task_type or inferred(call),
        task_type_inferred=call.wish.task_type is None,
        candidates=tuple(_looked(one, needed) for one in sifted),
        fallbacks=tuple(route.model for route in decision.fallbacks),
        context_fallbacks=tuple(route.model for route in decision.context_fallbacks),
        content_fallbacks=tuple(route.model for route in decision.content_fallbacks),
        input_tokens=needed.input_tokens,
        estimated_cost=cost(card, needed),
        estimated_latency_ms=latency(card, needed),
        card=card,
    )


def _alone(deployment: Deployment) -> Route:
    return Route(model=ModelId(deployment.id), candidates=(deployment,))


def _card(decision: Decision, catalogue: Catalogue) -> Card:
    """Return what is known of the first deployment, as its model sees it."""
    first = decision.candidates[0]
    own = (card for card in catalogue.cards(decision.model) if f"{card.provider}/{card.model}" == first.id)
    return next(own, None) or catalogue.cards(first.id)[0]


def _looked(one: Sifted, needed: Needs) -> Looked:
    return Looked(
        model=one.route.model,
        tier=one.card.tier,
        quality=one.card.quality,
        excluded=one.excluded,
        estimated_cost=cost(one.card, needed),
        estimated_latency_ms=latency(one.card, needed),
    )
