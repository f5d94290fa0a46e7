"""Chooses a model for `auto`: by the request's task type where the client says it, else by its complexity (R-003-5, R-000-34).

`policy.decide` and `preview.py` call `choose`. The models that may answer come from the settings or the catalogue's pool; those that
cannot serve the request are sifted out, the rest is ranked, and what is not chosen stands by in the order of C-27.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from hortator.call import Call, Caller, Decision, Path
from hortator.errors import Forbidden, InvalidRequest, NotFound
from hortator.routing.cards import Card
from hortator.routing.catalogue import Candidate, Catalogue, may_use
from hortator.routing.complexity import SHIPPED, Complexity, Model, score
from hortator.routing.estimates import cost, latency
from hortator.routing.needs import Needs, needs
from hortator.routing.sift import Sifted, refusal, sift, terms
from hortator.settings import Choice, Routing

AUTO: Final = "auto"
MAX_FALLBACKS = 8
_TURNS = 60
"""Messages looked at for the complexity, from the end."""
TASK_TYPES: Final[Mapping[str, Choice]] = {
    **dict.fromkeys(("extraction", "classification", "summary", "translation"), Choice(path="fast")),
    **dict.fromkeys(("code", "creative", "chat"), Choice()),
    **dict.fromkeys(("reasoning", "research"), Choice(path="complex")),
}
"""The built-in table; the operator's goes over it."""
_TIERS: Final = ("primary", "edge", "flagship", "local", None)
"""The order of C-27; what is local or of unknown tier comes after it."""

_items = msgspec.json.Decoder(list[Raw])


class Rules(NamedTuple):
    """What the operator wants of routing."""

    routing: Routing
    status_wait_ms: int
    """How long a named model's stream waits for its status, milliseconds."""
    routed_status_wait_ms: int
    """The same for `auto` (R-000-43)."""
    model: Model = SHIPPED
    """The weights of the complexity score."""


class Chosen(NamedTuple):
    """A decision for `auto`, and how it came about."""

    decision: Decision
    judged: Complexity | None
    """None = the task type said enough."""
    sifted: tuple[Sifted, ...]
    """Every model that was looked at."""
    needs: Needs


def choose(call: Call, caller: Caller, catalogue: Catalogue, rules: Rules) -> Chosen:
    """Choose a model. Raises InvalidRequest (`missing_task_type`, or no model can serve the request), Forbidden, NotFound."""
    routing, task_type = rules.routing, call.wish.task_type
    if task_type is None and routing.require_task_type:
        raise InvalidRequest(
            "The model 'auto' needs a task type: send `metadata.task_type` or the header `X-Hortator-Task-Type`.",
            code="missing_task_type",
            param="metadata.task_type",
        )
    choice = Choice()
    if task_type is not None:
        choice = routing.task_types.get(task_type) or TASK_TYPES.get(task_type) or choice
    judged: Complexity | None = None
    path = choice.path
    if path is None and not choice.models:
        judged = judge(call, rules)
        path = judged.path
    choice = _with_path(choice, path, routing)
    found = _candidates(choice, caller.allowed_models, catalogue)
    needed = needs(call.body)
    conditions = terms(needed, call.wish, caller)
    sifted = tuple(sift(candidate, conditions) for candidate in found)
    usable = [one for one in sifted if one.excluded is None]
    if not usable:
        raise refusal(sifted)
    if call.wish.preferences is not None:
        usable.sort(
            key=lambda one: (_or_inf(cost(one.card, needed)), _or_inf(latency(one.card, needed)), one.route.model)
        )
    elif not choice.models:
        usable.sort(key=lambda one: _rank(one.card, path, choice, needed))
    first, later = usable[0], _later(usable, choice, routing)
    why = f"task_type={task_type}" if task_type is not None else f"complexity={judged.score:.2f}" if judged else "auto"
    if call.wish.preferences is not None:
        why += ",preferences"
    if call.wish.force_local:
        why += ",force_local"
    window = first.card.context_window
    decision = Decision(
        model=first.route.model,
        candidates=first.route.candidates,
        reason=why,
        status_wait_ms=rules.routed_status_wait_ms,
        strategy=first.route.strategy,
        weights=first.route.weights,
        fallbacks=tuple(one.route for one in later),
        context_fallbacks=tuple(one.route for one in later if _is_wider(one.card, window)),
        path=path,
        score=None if judged is None else judged.score,
        confidence=None if judged is None else judged.confidence,
        features={} if judged is None else judged.features,
        words=(0.0, 0.0, 0.0) if judged is None else judged.words,
        reasons=() if judged is None else judged.reasons,
        task_type=task_type,
        headers=route_header(path or "listed", first.route.model, why),
    )
    return Chosen(decision, judged, sifted, needed)


def judge(call: Call, rules: Rules) -> Complexity:
    """Judge a call's complexity."""
    cuts = rules.routing
    return score(turns(call.body), fast_below=cuts.fast_below, complex_from=cuts.complex_from, model=rules.model)


def route_header(path: str, model: str, why: str) -> tuple[tuple[bytes, bytes], ...]:
    """Return `x-hortator-route`."""
    return ((b"x-hortator-route", f"{path};{quote(model[:200], safe='/@:+ ')};{why}".encode()),)


def turns(body: Mapping[str, Raw]) -> list[Mapping[str, Any]]:
    """Return the last messages of a request's body, as the complexity score reads them; other shapes are left out."""
    field = body.get("messages") or body.get("input")
    if field is None:
        return []
    if bytes(field)[:1] == b'"':
        return [{"role": "user", "content": msgspec.json.decode(field)}]
    messages = [msgspec.json.decode(item) for item in _items.decode(field)[-_TURNS:]]
    return [message for message in messages if isinstance(message, dict)]


def _with_path(choice: Choice, path: Path | None, routing: Routing) -> Choice:
    """Return what a task type says, and its path's choice where it is silent."""
    if path is None:
        return choice
    below: Choice = getattr(routing.paths, path)
    if choice.models:
        return choice
    tiers = choice.tiers or below.tiers
    least = below.min_quality if choice.min_quality is None else choice.min_quality
    models = () if choice.tiers else below.models
    return replace(below, models=models, tiers=tiers, min_quality=least)


def _candidates(choice: Choice, allowed: tuple[str, ...], catalogue: Catalogue) -> list[Candidate]:
    """Return the models that may answer, of those that the key may use. Raises Forbidden or NotFound when there are none."""
    found: Iterable[Candidate | None]
    found = [catalogue.candidate(model) for model in choice.models] if choice.models else catalogue.pool()
    served = [one for one in found if one is not None]
    if choice.tiers:
        served = [one for one in served if any(card.tier in choice.tiers for card in one.cards)]
    usable = [one for one in served if may_use(allowed, one.route.model)]
    if usable:
        return usable
    if served:
        raise Forbidden(
            "This key may use none of the models that 'auto' would choose from.",
            code="model_not_allowed",
            param="model",
        )
    raise NotFound("No model is served that 'auto' could choose.", code="model_not_found", param="model")


def _rank(card: Card, path: Path | None, choice: Choice, needed: Needs) -> tuple[float, float, float, str]:
    """Order of models: the best first on the path complex; else the cheapest of those that are good enough, then the better ones."""
    quality = card.quality or 0.0
    dollars = _or_inf(cost(card, needed))
    if path != "complex" and quality >= (choice.min_quality or 0.0):
        return 0, dollars, -quality, card.id
    return 1, -quality, dollars, card.id


def _later(usable: list[Sifted], choice: Choice, routing: Routing) -> list[Sifted]:
    """Return what stands by: a list's rest as it is, else the first one's tier, then the others in the order of C-27."""
    first, *rest = usable
    if routing.fallbacks == "none":
        return []
    same = [one for one in rest if one.card.tier == first.card.tier]
    if routing.fallbacks == "tier":
        return same[:MAX_FALLBACKS]
    if choice.models:
        return rest[:MAX_FALLBACKS]
    others = [one for tier in _TIERS if tier != first.card.tier for one in rest if one.card.tier == tier]
    return (same + others)[:MAX_FALLBACKS]


def _is_wider(card: Card, window: int | None) -> bool:
    return window is not None and (card.context_window is None or card.context_window > window)


def _or_inf(value: float | None) -> float:
    return inf if value is None else value
