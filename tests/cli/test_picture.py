"""Trees of agents as text: what is shown of events, and that nobody's words move the cursor."""

from __future__ import annotations

from typing import Any

from hortator.cli.picture import Picture, clean, logged, shortened, told, visible
from hortator.client import Node, TaskEvent


def event(type: str, agent: str | None = None, **fields: Any) -> TaskEvent:
    said = {"seq": 7, "task_id": "root", "type": type, "timestamp": "2026-11-21T12:00:00.000Z", **fields}
    return TaskEvent(said if agent is None else {**said, "agent_id": agent})


def spawned(agent: str, name: str, **details: Any) -> TaskEvent:
    return event("agent_spawned", agent, task=name, details={"role": "researcher", "tier": "legionary", **details})


def called(agent: str, cost: str | None = "0.001") -> TaskEvent:
    return event("model_call", agent, details={"input_tokens": 1000, "output_tokens": 234, "cost_usd": cost})


def picture() -> Picture:
    return Picture("root", "Compare three ways", "generalist", 0.0)


def test_agents_are_shown_as_they_come_work_and_end() -> None:
    shown = picture()
    for each in (spawned("a", "read"), spawned("b", "weigh"), event("agent_started", "a")):
        shown.take(each, 1.0)
    shown.take(called("a"), 2.0)
    lines = shown.lines(100, 30, 4.0)
    assert lines[0].endswith("Compare three ways (generalist)  running  4.0 s")
    assert "├─ " in lines[1]
    assert "read (legionary researcher)  running  3.0 s  1 call  1,234 tokens  $0.0010" in lines[1]
    assert lines[2] == "└─ · weigh (legionary researcher)  waiting"
    shown.take(event("partial_result", "a", content="Found."), 5.0)
    shown.take(event("agent_failed", "b"), 6.0)
    _, first, second = shown.lines(100, 30, 9.0)
    assert first.startswith("├─ ✓ read")
    assert "4.0 s" in first
    assert second.startswith("└─ ✗ weigh")
    shown.take(event("completed"), 61.0)
    assert shown.lines(100, 30, 99.0)[0].startswith("✓ ")
    assert shown.summary() == "1:01, 3 agents, 1 model call, 1,234 tokens, $0.0010"


def test_a_tree_without_prices_says_nothing_of_money() -> None:
    shown = picture()
    shown.take(called("root", None), 1.0)
    assert "$" not in shown.lines(100, 30, 2.0)[0] + shown.summary()


def test_groups_stand_below_who_coordinates_them() -> None:
    shown = picture()
    shown.take(spawned("c", "group", tier="centurion"), 1.0)
    shown.take(spawned("d", "deep"), 1.0)
    assert shown.unplaced
    deep = {"id": "d", "children": []}
    shown.place(Node({"id": "root", "children": [{"id": "c", "children": [deep]}, {"id": "unknown", "children": []}]}))
    assert not shown.unplaced
    assert [line[:6] for line in shown.lines(100, 30, 1.0)[1:]] == ["└─ · g", "   └─ "]
    told_at_once = picture()
    told_at_once.take(spawned("c", "group", parent_id="root"), 1.0)
    told_at_once.take(spawned("d", "deep", parent_id="c"), 1.0)
    assert told_at_once.lines(100, 30, 1.0)[2].startswith("   └─ · deep")
    assert not told_at_once.unplaced


def test_a_large_tree_fits_the_terminal() -> None:
    shown = picture()
    for number in range(100):
        shown.take(spawned(f"a{number}", f"part {number}"), 1.0)
    shown.take(event("progress", message="5 of 100 parts", details={"estimated_time_remaining": "40s"}), 1.0)
    lines = shown.lines(30, 10, 2.0)
    assert len(lines) == 10
    assert lines[-2] == "  … 93 more agents"
    assert lines[-1] == "  5 of 100 parts, about 40s l…"
    assert all(len(line) <= 30 for line in lines)


def test_words_of_agents_cannot_move_the_cursor() -> None:
    evil = "a\x1b[2J\x1b]0;title\x07b\r\nc\u202ed\u009b1m"
    shown = picture()
    shown.take(spawned("a", evil, role=evil), 1.0)
    shown.take(event("progress", message=evil), 1.0)
    everything = [*shown.lines(200, 30, 1.0), told(event("agent_failed", "a", task=evil, message=evil), 0.0, 1.0) or ""]
    everything += [logged(event("tool_call", "a", task=evil, details={evil: [evil]})), clean(evil)]
    assert all(char.isprintable() for line in everything for char in line)
    assert visible("one\n\ttwo\x1b[2J") == "one\n\ttwo[2J"


def test_wide_characters_take_two_columns() -> None:
    assert shortened("日本語", 6) == "日本語"
    assert shortened("日本語", 5) == "日…"
    assert shortened("e\u0301e\u0301", 2) == "e\u0301e\u0301"


def test_without_a_terminal_only_what_matters_is_a_line() -> None:
    assert told(called("a"), 0.0, 1.0) is None
    assert told(event("partial_result", "a", task="read", content="It  is\nso."), 10.0, 12.5) == (
        " 2.5 s  partial_result [read]: It is so."
    )
    risk = event("risk_identified", document="x", risk_description="No exit.", severity="high")
    assert (told(risk, 0.0, 3661.0) or "").startswith("1:01:01  risk_identified: No exit.")


def test_a_log_line_has_everything() -> None:
    line = logged(event("tool_call", "a", task="read", message="done", details={"tool": "web_fetch", "ok": True}))
    assert line == "2026-11-21T12:00:00.000Z    7 tool_call [read]: done  tool=web_fetch ok=true"


def test_numbers_that_are_none_break_nothing() -> None:
    shown = picture()
    shown.take(
        event("model_call", "root", details={"input_tokens": None, "output_tokens": "x", "cost_usd": "NaN"}), 1.0
    )
    shown.take(event("brand_new", "nobody"), 1.0)
    assert "1 call  0 tokens" in shown.lines(100, 30, 1.0)[0]
