"""The order of a team: tiers, who may send whom, what each may, and the bounds of a tree.

`tree.py` and `agent.py` ask here before they spawn, try again or share a budget. A tribune plans, centurions coordinate groups,
legionaries do one piece each; nobody gets more than who sent it. Pure: no I/O, no clock, no chance; the same question has the
same answer after a crash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_DOWN, Decimal
from typing import Final, NamedTuple

from msgspec import structs

from hortator.wire.tasks import MAX_AGENTS, MAX_DEPTH, MAX_TASKS, Capability, Retry, TaskConfig, Tier

RANKS: Final[Mapping[str, int]] = {"legionary": 0, "centurion": 1, "tribune": 2}
_DELEGATES: Final[Mapping[str, tuple[Tier, ...]]] = {
    "tribune": ("centurion", "legionary"),
    "centurion": ("legionary",),
    "legionary": (),
}
_ABOVE: Final[Mapping[str, Tier]] = {"legionary": "centurion", "centurion": "tribune", "tribune": "tribune"}
_PLANNING: Final[Mapping[str, int]] = {"tribune": 5, "centurion": 3}
"""Times that a tier may ask for a plan, where its model writes ones that cannot be used."""
_TURNS: Final = 20
"""Model calls of one agent where its configuration does not say."""
_MAX_TURNS: Final = 200
_CENT: Final = Decimal("0.0000000001")
SYNTHESIS_SHARE: Final = Decimal("0.25")
"""Part of what is left of a budget that children do not get: it is for the answer."""


class Retries(NamedTuple):
    """How often an agent's transient failures are tried again, and the pauses between, seconds."""

    attempts: int
    backoff: float
    most: float


_RETRIES: Final[Mapping[str, Retries]] = {
    "legionary": Retries(3, 15.0, 300.0),
    "centurion": Retries(1, 30.0, 300.0),
    "tribune": Retries(0, 30.0, 300.0),
}
_WAITED_FOR: Final = frozenset({"chat", "responses", "messages", "harpoon"})
"""Doors whose clients wait for the answer, on an open connection (R-000-30: 5 to 30 s)."""
_SOON: Final = 0.5
"""Seconds before the first try again where somebody waits; what a provider asks for (`Retry-After`) is waited all the same."""


class Bounds(NamedTuple):
    """How large a tree may get."""

    agents: int
    """At work at once, and about as many parts of a plan."""
    depth: int
    """Of its deepest task; the root has 0."""
    tasks: int
    """With the root."""


def may_delegate(tier: str, to: str) -> bool:
    """Whether an agent of one tier may send one of another."""
    return to in _DELEGATES.get(tier, ())


def above(tier: str) -> Tier:
    """Return the tier above, whose model is better; a tribune's is its own."""
    return _ABOVE.get(tier, "tribune")


def capabilities(tier: str, asked: Iterable[str] | None, parent: Iterable[str] | None) -> tuple[Capability, ...]:
    """Return what an agent may use, sorted: what is asked for and its parent has (None = no parent: all of it); None asked = all the parent has.

    `spawn` comes with the tier: tribunes and centurions have it, legionaries never.
    """
    has = set(parent) if parent is not None else None
    wanted = set(asked) if asked is not None else (has or set())
    given = wanted if has is None else wanted & has
    given.discard("spawn")
    if _DELEGATES.get(tier):
        given.add("spawn")
    order: tuple[Capability, ...] = ("shell", "spawn", "web-fetch")
    return tuple(name for name in order if name in given)


def turns(config: TaskConfig) -> int:
    """Return how many model calls an agent may make."""
    return min(config.max_iterations or _TURNS, _MAX_TURNS)


def plannings(tier: str, config: TaskConfig) -> int:
    """Return how many times an agent may ask for its plan."""
    return min(_PLANNING.get(tier, 1), config.max_iterations or _MAX_TURNS)


def retries(tier: str, given: Retry | None, source: str = "") -> Retries:
    """Return how an agent tries again: what its configuration says, else what its tier has. `source`: the door its tree came through."""
    own = _RETRIES.get(tier, _RETRIES["legionary"])
    if source in _WAITED_FOR:
        own = own._replace(backoff=_SOON)
    if given is None:
        return own
    return Retries(
        own.attempts if given.max_attempts is None else given.max_attempts,
        own.backoff if given.backoff_seconds is None else given.backoff_seconds,
        own.most if given.max_backoff_seconds is None else given.max_backoff_seconds,
    )


def pause(how: Retries, attempt: int, seed: str) -> float:
    """Return the seconds before the `attempt`th try again (from 1): doubling, bounded, and up to a quarter more or less by `seed`."""
    base = min(how.backoff * 2.0 ** min(attempt - 1, 20), how.most)
    lot = hashlib.sha256(f"{seed}:{attempt}".encode()).digest()[0] / 255.0
    return base * (0.75 + 0.5 * lot)


def bounds(config: TaskConfig) -> Bounds:
    """Return a tree's bounds; what is not said follows from its strategy (C-16: 3 agents, 8 where it is `aggressive`)."""
    agents = config.max_agents or (8 if config.decomposition_strategy == "aggressive" else 3)
    return Bounds(
        min(agents, MAX_AGENTS),
        min(config.max_depth or MAX_DEPTH, MAX_DEPTH),
        min(config.max_tasks or MAX_TASKS, MAX_TASKS),
    )


def child_id(parent_id: str, name: str, position: int) -> str:
    """Return the id of a child: the same whenever it is asked for, and listed with its parent (both count the same milliseconds)."""
    digest = hashlib.sha256(f"{parent_id}/{name}".encode()).hexdigest()
    plain = parent_id.replace("-", "")
    raw = f"{plain[:12]}7{position & 0xFFF:03x}{'89ab'[int(digest[0], 16) % 4]}{digest[1:16]}"
    return f"{raw[:8]}-{raw[8:12]}-{raw[12:16]}-{raw[16:20]}-{raw[20:]}"


def shares(tokens: int | None, cost: Decimal | None, weights: Sequence[int]) -> list[tuple[int | None, Decimal | None]]:
    """Share out what is left of a budget (tokens, US dollars; None = no bound), by weight; a part of it stays for the answer.

    The shares together are never more than what is left.
    """
    total = sum(weights) or 1
    keep = 1 - SYNTHESIS_SHARE
    return [
        (
            None if tokens is None else max(0, int(tokens * keep * weight / total)),
            None if cost is None else max(Decimal(0), (cost * keep * weight / total).quantize(_CENT, ROUND_DOWN)),
        )
        for weight in weights
    ]


def child_config(parent: TaskConfig, tier: Tier, asked: Iterable[str] | None = None) -> TaskConfig:
    """Return the configuration of a child: its parent's, with its own tier and no more than its parent's capabilities."""
    return structs.replace(
        parent,
        tier=tier,
        capabilities=capabilities(tier, asked, parent.capabilities or ()),
        decomposition_strategy="none" if tier == "legionary" else "balanced",
        budget=None,
        timeout=None,
    )
