"""What a path means for agents."""

from __future__ import annotations

import msgspec

from hortator.routing.tribune import DECISIONS, analyze_complexity, route_request

HUGE = [{"role": "user", "content": "Design Netflix"}]


def test_each_path_has_the_bounds_of_the_specification() -> None:
    """R-000-35, R-000-36, R-000-37."""
    fast, standard, complex_ = DECISIONS["fast"], DECISIONS["standard"], DECISIONS["complex"]
    assert (fast.agent_type, fast.max_time, fast.decompose) == ("generalist", "2s", False)
    assert (standard.decompose, standard.max_agents, standard.max_time) == (True, 3, "15s")
    assert (complex_.decompose_strategy, complex_.max_agents, complex_.max_time) == ("aggressive", 8, "60s")
    for path, decision in DECISIONS.items():
        assert decision.path == path
        assert decision.max_time == f"{decision.max_time_ms // 1000}s"


def test_a_request_is_routed_by_its_complexity_and_the_callers_cut_points() -> None:
    """R-000-33."""
    assert route_request([{"role": "user", "content": "hi"}]) is DECISIONS["fast"]
    assert route_request(HUGE) is DECISIONS["complex"]
    assert route_request(HUGE, fast_below=0.5, complex_from=1.01) is DECISIONS["standard"]


def test_the_analysis_has_a_score_and_a_line_of_reasons() -> None:
    """R-000-33, R-000-39."""
    found = analyze_complexity(HUGE)
    assert found.score >= 0.7
    assert found.reasoning
    assert msgspec.to_builtins(found).keys() == {"score", "reasoning"}
