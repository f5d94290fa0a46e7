"""What becomes of trees of tasks, counted from the events that tell of it, for `GET /metrics`.

The hub of events calls `told` with what this process wrote down, after the commit: an event is counted once, by one process. `metrics.py`
reads the counts in a thread. Nothing here is asked for by a request, and no label has more values than are listed here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from hortator.call import TenantId
from hortator.ledger.counts import Histogram
from hortator.wire.events import LEVELS, Event

DURATION_SECONDS = tuple(float(1 << power) for power in range(15))
"""1 s to 16,384 s, as the origin project has them."""
PHASES: Mapping[str, str] = {
    "completed": "Completed",
    "failed": "Failed",
    "cancelled": "Cancelled",
    "budget_exceeded": "BudgetExceeded",
    "timed_out": "TimedOut",
}
"""How a tree ended, by the type of its last event."""
ACTIONS = ("warn", "kill", "escalate")
"""What is done with an agent that is stuck."""


class TaskCounts:
    """Counters of this process; they start at 0 with it."""

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter(dict.fromkeys(PHASES.values(), 0))
        """Trees by phase."""
        self.stuck: Counter[str] = Counter(dict.fromkeys(ACTIONS, 0))
        """By action."""
        self.events: Counter[str] = Counter()
        """By type."""
        self.cost = Decimal(0)
        """US dollars of trees that ended and whose cost is known."""
        self.durations = {phase: Histogram(DURATION_SECONDS) for phase in PHASES.values()}
        """Seconds from the start of the work to its end, by phase; where the last event tells them."""

    def told(self, tenant_id: TenantId, events: Sequence[Event]) -> None:
        """Count new events."""
        for event in events:
            if event.type in LEVELS:
                self.events[event.type] += 1
            if event.type == "stuck_detected" and event.details.get("action") in ACTIONS:
                self.stuck[event.details["action"]] += 1
            phase = PHASES.get(event.type)
            if phase is not None:
                self._end(phase, event.details)

    def _end(self, phase: str, details: Mapping[str, Any]) -> None:
        self.ended[phase] += 1
        milliseconds = details.get("duration_ms")
        if isinstance(milliseconds, int | float):
            self.durations[phase].take([milliseconds / 1000], DURATION_SECONDS)
        try:
            self.cost += Decimal(str(details.get("cost_usd") or 0))
        except InvalidOperation:  # an event of another release
            return
