"""Models and decisions in Harpoon's words, for the doors on its addresses."""

from __future__ import annotations

from hortator.routing import Card, Catalogue
from hortator.routing.preview import Preview
from hortator.settings import Tier
from hortator.wire import harpoon
from hortator.wire.harpoon import Model

MAX_FALLBACKS = 2


def shown(card: Card) -> Model:
    """Return a model as Harpoon's clients read it."""
    return Model(
        id=card.id,
        provider=card.provider,
        tier=card.tier,
        speed=card.speed,
        cost_per_1m=card.price,
        context_window=card.context_window,
        capabilities=list(card.capabilities or ()),
        description=card.description or "",
    )


def found(catalogue: Catalogue, allowed: tuple[str, ...], wanted: str) -> Card | None:
    """Return the card of a model by its id, or by the provider's own name for it, which Harpoon's ids were."""
    cards = catalogue.listed(allowed)
    for card in cards:
        if card.id == wanted:
            return card
    same = [card for card in cards if card.model == wanted]
    own = (card for card in same if card.id == f"{card.provider}/{card.model}")  # before a name that stands for several
    return next(own, same[0] if same else None)


def decided(previewed: Preview, catalogue: Catalogue, why: str) -> harpoon.RouteDecision:
    """Return how a prompt would be routed."""
    standing_by = [card for id in previewed.fallbacks[:MAX_FALLBACKS] if (card := catalogue.card(id)) is not None]
    return harpoon.RouteDecision(
        selected_model=shown(catalogue.card(previewed.model) or previewed.card),
        fallback_models=[shown(card) for card in standing_by],
        reasoning=why,
        estimated_cost=previewed.estimated_cost,
        estimated_latency=previewed.estimated_latency_ms,
    )


def reasoning(path: str | None, score: float | None, reasons: tuple[str, ...], tier: Tier | None = None) -> str:
    """Return why a model was chosen, in a sentence. No path: it was named."""
    if path is None:
        return "The model was asked for."
    said = f"complexity {0.0 if score is None else score:.2f}, path {path}"
    if reasons:
        said += f": {'; '.join(reasons)}"
    return said if tier is None else f"{said}; only tier {tier}"
