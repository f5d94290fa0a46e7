"""What a request would cost and how long it would take at a model, and whether that is within a client's preferences (R-002-7).

`policy.py` asks for each candidate. Only what is known can be within a bound: a model without a price is over every `maxCost`.
"""

from __future__ import annotations

from typing import Final

from hortator.call import Preferences
from hortator.routing.cards import Card
from hortator.routing.needs import Needs

USUAL_OUTPUT: Final = 200
"""Tokens of an answer where the request does not say, and the most that the estimated latency counts: a limit is not a wish."""


def cost(card: Card, needed: Needs) -> float | None:
    """US dollars for the whole request with the longest answer it asks for; None = the price is not known."""
    if card.price_input is None or card.price_output is None:
        return None
    output = USUAL_OUTPUT if needed.output_tokens is None else needed.output_tokens
    return (card.price_input * needed.input_tokens + card.price_output * output) / 1_000_000


def latency(card: Card, needed: Needs) -> float | None:
    """Milliseconds to the end of a usual answer; None = it is not known."""
    if card.first_token_ms is None or card.speed is None:
        return None
    output = USUAL_OUTPUT if needed.output_tokens is None else min(needed.output_tokens, USUAL_OUTPUT)
    return card.first_token_ms + 1000 * output / card.speed


def over(card: Card, needed: Needs, preferences: Preferences) -> tuple[str, str] | None:
    """Return the first bound that a model is over, and how; None = it is within all."""
    found = (
        ("maxCost", preferences.max_cost, cost(card, needed), "dollars"),
        ("maxLatency", preferences.max_latency, latency(card, needed), "ms"),
    )
    for name, bound, value, unit in found:
        if bound is not None and (value is None or value > bound):
            return name, f"{'unknown' if value is None else f'{value:.6g} {unit}'}, the bound is {bound:.6g}"
    bound = preferences.min_quality
    if bound is not None and (card.quality is None or card.quality < bound):
        return "minQuality", f"{'unknown' if card.quality is None else f'{card.quality:.6g}'}, the bound is {bound:.6g}"
    return None
