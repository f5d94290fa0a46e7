"""What each path of complexity means for a request that agents work on: R-000-33 to R-000-37 as data.

The preview tells it beside a decision; who runs agents reads its bounds here. It calls `complexity.py` and nothing else, and starts
nothing: a path is a proposal, the caller decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal

import msgspec

from hortator.routing.complexity import COMPLEX_FROM, FAST_BELOW, Path, score
from hortator.routing.features import Message


class RoutingDecision(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a request is to be worked on. Fields that a path does not speak of are None, or False."""

    path: Path
    agent_type: str | None = None
    decompose: bool = False
    """Split the request into parts."""
    decompose_strategy: Literal["aggressive"] | None = None
    max_agents: int = 1
    max_time: str
    """As the specification writes it, e.g. `15s`."""
    max_time_ms: int
    """The same in milliseconds."""


DECISIONS: Final[Mapping[Path, RoutingDecision]] = {
    "fast": RoutingDecision(path="fast", agent_type="generalist", max_time="2s", max_time_ms=2_000),
    "standard": RoutingDecision(path="standard", decompose=True, max_agents=3, max_time="15s", max_time_ms=15_000),
    "complex": RoutingDecision(
        path="complex",
        decompose=True,
        decompose_strategy="aggressive",
        max_agents=8,
        max_time="60s",
        max_time_ms=60_000,
    ),
}
"""R-000-35, R-000-36 and R-000-37."""


class ComplexityScore(msgspec.Struct, frozen=True):
    """What `analyze_complexity` says (R-000-33)."""

    score: float
    reasoning: str


def analyze_complexity(messages: Iterable[Message]) -> ComplexityScore:
    """The score of a request and its reasons in one line."""
    found = score(messages)
    return ComplexityScore(found.score, "; ".join(found.reasons))


def route_request(
    messages: Iterable[Message], *, fast_below: float = FAST_BELOW, complex_from: float = COMPLEX_FROM
) -> RoutingDecision:
    """How to work on a request, by its complexity and the caller's cut points."""
    return DECISIONS[score(messages, fast_below=fast_below, complex_from=complex_from).path]
