"""A tree of agents as text: what `live.py` paints while it works, made of its events and nothing else.

Pure: events and the time go in, lines come out. What agents and models wrote is shown without control characters, so that it cannot
move the cursor or hide anything.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from hortator.client import Node, TaskEvent

WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"
_MARKS = {WAITING: "·", DONE: "✓", FAILED: "✗", CANCELLED: "–"}
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_MAX_NAME = 40
_MAX_AGENTS = 500
"""More are counted and not shown; a tree has a hundred tasks."""
_AWAKE = frozenset(
    {"agent_started", "agent_message", "model_call", "tool_call", "task_started", "retrying", "task_decomposed"}
)
_TOLD = frozenset(
    {
        "task_created",
        "task_decomposed",
        "agent_spawned",
        "partial_result",
        "agent_failed",
        "agent_cancelled",
        "artifact_created",
        "risk_identified",
        "replanned",
        "retrying",
        "stuck_detected",
        "synthesis_started",
        "iteration",
        "user_message",
        "completed",
        "failed",
        "cancelled",
        "budget_exceeded",
        "timed_out",
    }
)
"""Types that become a line where there is no terminal to paint on."""


@dataclass
class Agent:
    """One task of the tree."""

    name: str
    role: str = ""
    tier: str = ""
    parent: str | None = None
    state: str = WAITING
    began: float | None = None
    ended: float | None = None
    calls: int = 0
    tokens: int = 0
    cost: Decimal = Decimal(0)
    children: list[str] = field(default_factory=list)


class Picture:
    """What is known of one tree. Times are seconds of one clock."""

    def __init__(self, task_id: str, title: str, role: str, now: float) -> None:
        self._root = task_id
        self._began = now
        self._ended: float | None = None
        self._agents = {task_id: Agent(clean(title), role, state=RUNNING, began=now)}
        self._note = ""
        self.unplaced = False
        """An agent has come whose parent nobody has told."""

    def take(self, event: TaskEvent, now: float) -> None:
        """Take over what an event says."""
        id = event.agent_id or self._root
        if event.type == "agent_spawned":
            self._spawned(id, event)
        elif (agent := self._agents.get(id)) is not None:
            self._change(agent, event, now)
        if event.type in ("progress", "synthesis_started", "replanned", "iteration", "task_decomposed"):
            self._note = _remark(event)
        if event.ends:
            self._end(event, now)

    def place(self, node: Node) -> None:
        """Take over who is below whom."""
        self.unplaced = False
        for child in node.children or ():
            if (
                (agent := self._agents.get(child.id)) is not None
                and agent.parent != node.id
                and node.id in self._agents
            ):
                if agent.parent in self._agents:
                    self._agents[agent.parent].children.remove(child.id)
                agent.parent = node.id
                self._agents[node.id].children.append(child.id)
            self.place(child)

    def lines(self, width: int, height: int, now: float) -> list[str]:
        """Return the picture, at most `height` lines of `width` columns."""
        found = [self._line(self._root, "", now)]
        found += self._below(self._root, "", now)
        if len(found) > height - 1:
            hidden = len(found) - height + 2
            found = [*found[: height - 2], f"  … {hidden} more agents"]
        if self._note and self._ended is None:
            found.append(f"  {self._note}")
        return [shortened(line, width) for line in found]

    def summary(self) -> str:
        """Return what all of it took, in words."""
        agents = len(self._agents)
        tokens = sum(agent.tokens for agent in self._agents.values())
        cost = sum((agent.cost for agent in self._agents.values()), Decimal(0))
        calls = sum(agent.calls for agent in self._agents.values())
        span = _span((self._ended or self._began) - self._began)
        parts = [span, _counted(agents, "agent"), _counted(calls, "model call"), f"{tokens:,} tokens"]
        return ", ".join([*parts, f"${cost:.4f}"] if cost else parts)

    def _spawned(self, id: str, event: TaskEvent) -> None:
        if id in self._agents or len(self._agents) >= _MAX_AGENTS:
            return
        details = event.details.to_dict()
        parent = details.get("parent_id")
        if parent not in self._agents:
            self.unplaced = self.unplaced or parent is None
            parent = self._root
        name = clean(event.task or id)[:_MAX_NAME]
        self._agents[id] = Agent(name, clean(details.get("role", "")), clean(details.get("tier", "")), parent)
        self._agents[parent].children.append(id)

    def _change(self, agent: Agent, event: TaskEvent, now: float) -> None:
        if event.type in _AWAKE and agent.state == WAITING:
            agent.state, agent.began = RUNNING, now
        if event.type == "model_call":
            details = event.details.to_dict()
            agent.calls += 1
            agent.tokens += _number(details.get("input_tokens")) + _number(details.get("output_tokens"))
            agent.cost += _amount(details.get("cost_usd"))
        ended = {"partial_result": DONE, "agent_failed": FAILED, "agent_cancelled": CANCELLED}.get(event.type)
        if ended is not None and agent is not self._agents[self._root] and agent.state in (WAITING, RUNNING):
            agent.state, agent.ended = ended, now

    def _end(self, event: TaskEvent, now: float) -> None:
        root = self._agents[self._root]
        root.state = {"completed": DONE, "cancelled": CANCELLED}.get(event.type, FAILED)
        self._ended = root.ended = now
        for agent in self._agents.values():
            if agent.state in (WAITING, RUNNING):
                agent.state, agent.ended = (DONE if event.type == "completed" else CANCELLED), now

    def _below(self, id: str, lead: str, now: float) -> list[str]:
        found = []
        children = self._agents[id].children
        for place, child in enumerate(children):
            last = place == len(children) - 1
            found.append(self._line(child, lead + ("└─ " if last else "├─ "), now))
            found += self._below(child, lead + ("   " if last else "│  "), now)
        return found

    def _line(self, id: str, lead: str, now: float) -> str:
        agent = self._agents[id]
        mark = _MARKS.get(agent.state) or _SPINNER[int(now * 10) % len(_SPINNER)]
        role = " ".join(word for word in (agent.tier, agent.role) if word)
        parts = [agent.name if not role else f"{agent.name} ({role})", agent.state]
        if agent.began is not None:
            parts.append(_span((agent.ended or now) - agent.began))
        if agent.calls:
            parts += [_counted(agent.calls, "call"), f"{agent.tokens:,} tokens"]
        if agent.cost:
            parts.append(f"${agent.cost:.4f}")
        return f"{lead}{mark} {'  '.join(parts)}"


def told(event: TaskEvent, began: float, now: float) -> str | None:
    """Return an event as one line, where there is no terminal to paint on. None = it is not worth one."""
    if event.type not in _TOLD:
        return None
    who = f" [{clean(event.task)}]" if event.task else ""
    return f"{_span(now - began):>6}  {event.type}{who}{_said(event)}"


def logged(event: TaskEvent) -> str:
    """Return an event as a line of a log."""
    who = f" [{clean(event.task)}]" if event.task else ""
    details = event.details.to_dict()
    more = " ".join(f"{clean(name)}={clean(_plain(value))}" for name, value in details.items())
    return f"{event.timestamp} {event.seq:>4} {clean(event.type)}{who}{_said(event)}{f'  {more}' if more else ''}"


def clean(text: Any) -> str:
    """Return text on one line, without what a terminal would obey."""
    return " ".join("".join(char if char.isprintable() else " " for char in str(text)).split())


def visible(text: str) -> str:
    """Return a text of several lines without what a terminal would obey."""
    return "".join(char for char in text if char in "\n\t" or char.isprintable())


def shortened(line: str, width: int) -> str:
    """Return as much of a line as fits `width` columns; wide characters take two."""
    taken = 0
    for at, char in enumerate(line):
        taken += 0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        if taken > width:
            return line[: max(0, at - 1)] + "…"
    return line


def _said(event: TaskEvent) -> str:
    text = event.risk_description or event.message or event.content or ""
    if event.type == "partial_result":
        text = event.content or text
    return f": {shortened(clean(text), 160)}" if text else ""


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _remark(event: TaskEvent) -> str:
    details = event.details.to_dict()
    text = clean(event.message or event.type.replace("_", " "))
    left = details.get("estimated_time_remaining") or details.get("estimated_time")
    return f"{text}, about {clean(left)} left" if left else text


def _span(seconds: float) -> str:
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{max(0.0, seconds):.1f} s"
    return (
        f"{whole // 60}:{whole % 60:02d}"
        if whole < 3600
        else f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
    )


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _amount(value: Any) -> Decimal:
    try:
        found = Decimal(str(value)) if value is not None else Decimal(0)
    except InvalidOperation:
        return Decimal(0)
    return found if found.is_finite() else Decimal(0)
