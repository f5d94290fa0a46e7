"""The parameters of domains and types of tasks (R-000-46 to R-000-52)."""

from __future__ import annotations

from typing import Any

import pytest

from hortator.errors import InvalidRequest
from hortator.orchestration import domains
from hortator.orchestration.roles import Role, Roles

ROLES = Roles()

LEGAL = {
    "jurisdiction": "EU",
    "expertise_areas": ["privacy", "ai"],
    "review_depth": "comprehensive",
    "regulatory_frameworks": ["GDPR", "AI_Act"],
}
RESEARCH = {
    "sources": ["academic", "industry_reports"],
    "time_range": "2020-2026",
    "geographic_scope": "global",
    "methodology": "systematic_review",
}
DATA = {
    "dataset_location": "s3://bucket/sales.parquet",
    "analysis_type": "exploratory",
    "statistical_methods": ["regression", "clustering"],
    "visualization_required": True,
}
DOCUMENT = {
    "review_type": "change_analysis",
    "jurisdiction": "New York",
    "practice_areas": ["securities", "m_and_a"],
    "urgency": "high",
}
LITERATURE = {
    "query": "multi-agent orchestration",
    "databases": ["arxiv", "ieee", "springer"],
    "date_range": "2020-present",
    "citation_style": "APA",
    "evidence_level": "systematic_review",
}


def role(name: str) -> Role:
    found = ROLES.find(name)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "task_type", "given"),
    [
        ("legal-reviewer", "chat", LEGAL),
        ("researcher", "chat", RESEARCH),
        ("data-analyst", "analysis", DATA),
        ("legal-reviewer", "document_review", DOCUMENT),
        ("researcher", "literature_review", LITERATURE),
        (
            "coding-expert",
            "architecture_review",
            {"repository": "https://git.example/app", "constraints": ["no cloud"]},
        ),
        ("security-reviewer", "code_review", {"focus_areas": ["auth"], "severity_threshold": "high"}),
        ("copywriter", "chat", {"audience": "founders", "tone": "dry", "keywords": ["audit"]}),
    ],
)
def test_what_the_specification_shows_is_accepted_as_it_is(name: str, task_type: str, given: dict[str, Any]) -> None:
    """R-000-47 to R-000-52."""
    assert domains.check(role(name), task_type, given) == given


@pytest.mark.parametrize("task_type", ["chat", "document_review"])
def test_a_generalist_understands_every_domain(task_type: str) -> None:
    given = {"jurisdiction": "EU", "methodology": "survey", "analysis_type": "exploratory"}
    assert domains.check(role("generalist"), task_type, given) == given
    assert domains.check(None, task_type, given) == given


def test_one_text_stands_for_a_list_and_a_year_for_a_text() -> None:
    given = {"sources": "academic", "time_range": 2024, "methodology": None}
    assert domains.check(role("researcher"), "chat", given) == {"sources": ["academic"], "time_range": "2024"}
    assert domains.check(role("researcher"), "chat", None) == {}


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequest) as refused:
        domains.check(role("coding-expert"), "chat", {"jurisdiction": "EU"})
    assert refused.value.code == "invalid_domain_parameter"
    assert refused.value.param == "hortator_config.jurisdiction"
    assert "focus_areas, frameworks, languages, repository, style_guide" in refused.value.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jurisdiction", ""),
        ("jurisdiction", "  "),
        ("jurisdiction", "x" * 501),
        ("jurisdiction", ["EU"]),
        ("jurisdiction", True),
        ("jurisdiction", 10**30),
        ("regulatory_frameworks", []),
        ("regulatory_frameworks", ["x"] * 51),
        ("regulatory_frameworks", ["x" * 201]),
        ("regulatory_frameworks", [{"name": "GDPR"}]),
        ("visualization_required", "yes"),
    ],
)
def test_a_value_of_another_kind_or_size_is_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as refused:
        domains.check(None, "chat", {name: value}, "config")
    assert (refused.value.code, refused.value.param) == ("invalid_domain_parameter", f"config.{name}")


def test_agents_are_told_parameters_in_words() -> None:
    said = domains.describe(domains.check(role("data-analyst"), "chat", DATA | {"analysis_type": "two\n lines"}))
    assert said.splitlines() == [
        "Work within these parameters:",
        "- dataset location: s3://bucket/sales.parquet",
        "- analysis type: two lines",
        "- statistical methods: regression, clustering",
        "- visualization required: yes",
    ]
    assert domains.describe({}) == ""
