"""Decides where a call may go. Pure: the same model, key and catalogue give the same decision.

The gateway calls `decide` for every request, so it costs a dictionary look-up and a cached pattern.
"""

from __future__ import annotations

from hortator.call import Decision, ModelId
from hortator.errors import Forbidden, NotFound
from hortator.routing.catalogue import Catalogue, may_use


def decide(model: ModelId, allowed: tuple[str, ...], catalogue: Catalogue, status_wait_ms: int) -> Decision:
    """Return the deployments for a directly named model.

    Raises NotFound for an unknown model and Forbidden for one the key may not use; neither names models hidden from the key.
    """
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
    named = catalogue.named(model)
    if named is None:
        return Decision(model=model, candidates=candidates, reason="named", status_wait_ms=status_wait_ms)
    route, chosen = named
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
    )
