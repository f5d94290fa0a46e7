"""The parameters of domains and of types of tasks, checked (R-000-46 to R-000-52).

Orders and the chat doors let parameters be checked here; agents' prompts tell them. Everything is text for the agents: no data set is opened
and no repository fetched because it is named. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from hortator.errors import InvalidRequest
from hortator.orchestration.roles import Role, Schema

MAX_TEXT = 500
MAX_ITEMS, MAX_ITEM = 50, 200
MAX_QUERY = 4_000


class Field(NamedTuple):
    """What a parameter may be: text (a whole number counts), a list of texts (one text counts), true or false."""

    kind: Literal["text", "list", "flag"] = "text"
    longest: int = MAX_TEXT
    """Characters of a text."""


TEXT, LIST, FLAG = Field(), Field("list"), Field("flag")
Fields = Mapping[str, Field]

DOMAINS: Mapping[Schema, Fields] = {
    "coding": {
        "languages": LIST,
        "frameworks": LIST,
        "focus_areas": LIST,
        "repository": TEXT,
        "style_guide": TEXT,
    },
    "legal": {
        "jurisdiction": TEXT,
        "expertise_areas": LIST,
        "review_depth": TEXT,
        "regulatory_frameworks": LIST,
        "practice_areas": LIST,
    },
    "research": {"sources": LIST, "time_range": TEXT, "geographic_scope": TEXT, "methodology": TEXT},
    "data": {
        "dataset_location": Field("text", 2_000),
        "analysis_type": TEXT,
        "statistical_methods": LIST,
        "visualization_required": FLAG,
    },
    "content": {
        "audience": TEXT,
        "tone": TEXT,
        "format": TEXT,
        "length": TEXT,
        "keywords": LIST,
        "style_guide": TEXT,
    },
}
"""Domain -> its parameters. R-000-47 to R-000-49; those of coding and content are ours."""

TASK_TYPES: Mapping[str, Fields] = {
    "code_review": {
        "languages": LIST,
        "focus_areas": LIST,
        "review_depth": TEXT,
        "severity_threshold": TEXT,
        "repository": TEXT,
    },
    "document_review": {
        "review_type": TEXT,
        "jurisdiction": TEXT,
        "practice_areas": LIST,
        "urgency": TEXT,
        "review_depth": TEXT,
    },
    "literature_review": {
        "query": Field("text", MAX_QUERY),
        "databases": LIST,
        "date_range": TEXT,
        "citation_style": TEXT,
        "evidence_level": TEXT,
    },
    "architecture_review": {
        "repository": TEXT,
        "focus_areas": LIST,
        "quality_attributes": LIST,
        "constraints": LIST,
    },
}
"""Type of task (R-000-50) -> its parameters, beside those of the role's domain. R-000-51, R-000-52 and our own."""


def known(role: Role | None, task_type: str) -> Fields:
    """Return the parameters that may be given: those of the type of task and of the role's domain; of every domain where it has none."""
    of_type = TASK_TYPES.get(task_type, {})
    if role is not None and role.parameters is not None:
        return {**DOMAINS[role.parameters], **of_type}
    return {**{name: field for fields in DOMAINS.values() for name, field in fields.items()}, **of_type}


def check(
    role: Role | None, task_type: str, parameters: Mapping[str, Any] | None, param: str = "hortator_config"
) -> dict[str, Any]:
    """Return parameters, checked and in one form: text, a list of texts, or a bool; those that are null are left out.

    Raises InvalidRequest (`invalid_domain_parameter`, at `<param>.<name>`) for a name that is not known here, or a value of another
    kind or size.
    """
    fields = known(role, task_type)
    found: dict[str, Any] = {}
    for name, value in (parameters or {}).items():
        where = f"{param}.{str(name)[:100]}"
        field = fields.get(name)
        if field is None:
            raise _wrong(where, f"it is not known here; known are {', '.join(sorted(fields))}")
        if value is not None:
            found[name] = _value(value, field, where)
    return found


def _value(value: object, field: Field, where: str) -> Any:
    if field.kind == "flag":
        if not isinstance(value, bool):
            raise _wrong(where, "expected true or false")
        return value
    if field.kind == "text":
        return _text(value, field.longest, where)
    items = value if isinstance(value, list | tuple) else [value]
    if not 0 < len(items) <= MAX_ITEMS:
        raise _wrong(where, f"expected 1 to {MAX_ITEMS} texts")
    return [_text(item, MAX_ITEM, where) for item in items]


def _text(value: object, longest: int, where: str) -> str:
    """Return a text in one line."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value) if abs(value) < 10**18 else None
    text = " ".join(value.split()) if isinstance(value, str) and len(value) <= longest else ""
    if not text:
        raise _wrong(where, f"expected text of 1 to {longest} characters")
    return text


def _wrong(where: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{where}': {problem}.", code="invalid_domain_parameter", param=where)


def describe(parameters: Mapping[str, Any]) -> str:
    """Return checked parameters as agents are told of them; empty where there are none."""
    lines = [f"- {name.replace('_', ' ')}: {_said(value)}" for name, value in parameters.items()]
    return "Work within these parameters:\n" + "\n".join(lines) if lines else ""


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(str(item) for item in value) if isinstance(value, list | tuple) else str(value)
