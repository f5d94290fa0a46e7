"""Harpoon's smart routing: the rules of `auto` without a task type, and only among the models of a tier where one is named (R-002-9).

The Harpoon door decides and previews with these; everything else is `auto.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from hortator.routing.auto import Rules
from hortator.settings import Choice, Paths, Tier

TIERS: tuple[Tier, ...] = ("primary", "edge", "flagship", "local")


def rules_by_tier(rules: Rules) -> Mapping[Tier | None, Rules]:
    """Return the rules for each tier that a prompt may name; None = it names none."""
    free = rules._replace(routing=replace(rules.routing, require_task_type=False))

    def only(choice: Choice, tier: Tier) -> Choice:
        return replace(choice, models=(), tiers=(tier,))

    def confined(tier: Tier) -> Rules:
        paths = free.routing.paths
        kept = Paths(
            fast=only(paths.fast, tier), standard=only(paths.standard, tier), complex=only(paths.complex, tier)
        )
        return free._replace(routing=replace(free.routing, paths=kept))

    return {None: free, **{tier: confined(tier) for tier in TIERS}}
