"""Routing decides, without I/O, which deployments may answer a call. The gateway calls `decide` with the `Catalogue` of the moment."""

from __future__ import annotations

from hortator.routing.auto import AUTO, Rules
from hortator.routing.cards import Card, Cards, Facts
from hortator.routing.catalogue import Catalogue
from hortator.routing.policy import decide, told
from hortator.routing.preview import Preview, preview
from hortator.routing.repeats import Repeats
from hortator.routing.tiers import rules_by_tier, rules_of_path

__all__ = [
    "AUTO",
    "Card",
    "Cards",
    "Catalogue",
    "Facts",
    "Preview",
    "Repeats",
    "Rules",
    "decide",
    "preview",
    "rules_by_tier",
    "rules_of_path",
    "told",
]
