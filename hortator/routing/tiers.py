"""Rules for who is not a client of `auto`: Harpoon's smart routing, where a tier may be named (R-002-9), and agents, whose path is given.

Their doors decide and preview with these; everything else is `auto.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from hortator.call import Path
from hortator.routing.auto import Rules
from hortator.settings import Choice, Paths, Tier

TIERS: tuple[Tier, ...] = ("primary", "edge", "flagship", "local")


def rules_of_path(rules: Rules, path: Path) -> Rules:
    """Return rules by which every request takes `path`, and needs no task type: for agents, whose tier says what they need."""
    below, above = {"fast": (2.0, 3.0), "standard": (-1.0, 2.0), "complex": (-1.0, -1.0)}[path]
    return rules._replace(routing=replace(rules.routing, require_task_type=False, fast_below=below, complex_from=above))


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
