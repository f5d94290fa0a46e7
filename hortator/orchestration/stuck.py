"""Whether an agent goes round in circles: a score from its tools, its words and the time since something new happened.

`agent.py` asks before every turn. The weights and defaults are the origin project's (0.40 diversity, 0.35 repetition, 0.25 staleness,
stuck from 0.5). Pure: the clock is told, not read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from hortator.wire.tasks import Stuck

DIVERSITY: Final = 0.40
REPETITION: Final = 0.35
STALENESS: Final = 0.25
THRESHOLD: Final = 0.5
_LEAST_CALLS: Final = 4
"""Fewer tool calls say nothing of diversity."""
_WORDS = re.compile(r"\s+")


def _diversity(calls: Sequence[str], least: float) -> float:
    """0 where the calls differ as much as they should, 1 where they are all the same."""
    if len(calls) < _LEAST_CALLS or least <= 0:
        return 0.0
    different = len(set(calls)) / len(calls)
    lowest = 1 / len(calls)
    if different >= least:
        return 0.0
    return min(1.0, (least - different) / max(least - lowest, 1e-9))


def _repetition(said: Sequence[str], most: int) -> float:
    """How near the most repeated text is to the number of times that is too often."""
    plain = [_WORDS.sub(" ", text).strip().casefold() for text in said]
    counts = Counter(text for text in plain if text)
    often = max(counts.values(), default=0)
    return 0.0 if often < 2 else min(1.0, often / most)


def score(calls: Sequence[str], said: Sequence[str], idle_seconds: float, how: Stuck) -> float:
    """Return 0 (moving) to 1 (stuck).

    `calls`: tool calls so far, each as its name and arguments; `said`: what the agent asked for and said, turn by turn;
    `idle_seconds` since something of its work was last written down.
    """
    stale = min(1.0, max(0.0, idle_seconds) / (how.status_stale_minutes * 60))
    total = (
        DIVERSITY * _diversity(calls, how.tool_diversity_min)
        + REPETITION * _repetition(said, how.max_repeated_prompts)
        + STALENESS * stale
    )
    return round(total, 3)


def stuck(value: float) -> bool:
    """Whether a score says that the agent is stuck."""
    return value >= THRESHOLD
