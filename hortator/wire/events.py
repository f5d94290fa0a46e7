"""What happens in a task tree, as every view of it says it: one event, and the text of an answer while it is being written.

The store keeps events, in order and for good (`task_events`); SSE, WebSocket, webhooks, the chat stream and the SDK show them. Text
deltas are not kept: whoever comes later reads the finished text. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct

Level = Literal["default", "verbose", "full"]
"""Who is shown it (R-000-22): `full` viewers see everything, `verbose` ones milestones, `default` ones only how the tree began and ended."""

LEVELS: dict[str, Level] = {
    # The tree's beginning and its one end.
    "task_created": "default",
    "completed": "default",
    "failed": "default",
    "cancelled": "default",
    "budget_exceeded": "default",
    "timed_out": "default",
    # Milestones.
    "task_started": "verbose",
    "task_decomposed": "verbose",
    "agent_spawned": "verbose",
    "partial_result": "verbose",
    "agent_failed": "verbose",
    "agent_cancelled": "verbose",
    "progress": "verbose",
    "risk_identified": "verbose",
    "artifact_created": "verbose",
    "replanned": "verbose",
    "retrying": "verbose",
    "stuck_detected": "verbose",
    "synthesis_started": "verbose",
    "iteration": "verbose",
    "user_message": "verbose",
    # Every message of an agent, resources, metrics.
    "agent_started": "full",
    "agent_message": "full",
    "model_call": "full",
    "tool_call": "full",
    "resource": "full",
}
"""Every type of event and its level."""
ENDS = frozenset({"completed", "failed", "cancelled", "budget_exceeded", "timed_out"})
"""Types that end a tree: its last event is one of them, and it has no other of them."""
_RANKS = {"default": 0, "verbose": 1, "full": 2}


class Event(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a tree's log. `task_id` is the tree's root; `seq` counts from 1 without a gap."""

    seq: int
    task_id: str
    type: str
    timestamp: str
    """RFC 3339, UTC, milliseconds, `Z`."""
    message: str = ""
    """For people."""
    agent_id: str | None = None
    """The task in the tree that it is about; missing where that is the root."""
    task: str | None = None
    """Its name in the plan."""
    content: str | None = None
    """Text of an agent or of a user."""
    result: Any = None
    """Of `completed`: the tree's result."""
    document: str | None = None
    risk_description: str | None = None
    severity: str | None = None
    details: Mapping[str, Any] = {}

    @property
    def level(self) -> Level:
        """Who is shown it."""
        return LEVELS.get(self.type, "full")


class Delta(Struct, frozen=True, kw_only=True):
    """A piece of the answer that is being written. Lossy: whoever misses one reads the result."""

    task_id: str
    """The tree's root."""
    run: int
    """Which attempt at the answer it belongs to; a later run begins anew at offset 0."""
    offset: int
    """Characters of this run before it."""
    text: str


_encoder = msgspec.json.Encoder()


def shown(event: Event, level: Level) -> bool:
    """Whether a viewer of this level sees an event."""
    return _RANKS[event.level] <= _RANKS[level]


def encode(event: Event) -> bytes:
    """Return an event as JSON, the same bytes in every view."""
    return _encoder.encode(event)


def sse(event: Event) -> bytes:
    """Return an event for an event stream, with its `seq` as the id to resume from."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.seq, event.type.encode(), encode(event))
