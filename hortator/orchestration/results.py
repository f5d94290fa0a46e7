"""What a tree gives: the summary, the parts, and the findings or papers that its type of task has, read from agents' texts.

`tree.py` makes results here. Agents write findings as lines, because a text that streams to people cannot be JSON, and small models
write lines better. Pure: no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from hortator.orchestration.prompts import Done

Severity = Literal["critical", "high", "medium", "low"]
MAX_FINDINGS: Final = 200
_MAX_SUMMARY: Final = 500
_SEVERITIES: Final[Mapping[str, Severity]] = {
    "critical": "critical", "blocker": "critical", "high": "high", "major": "high", "medium": "medium", "moderate": "medium",
    "low": "low", "minor": "low", "info": "low",
}  # fmt: skip
_FINDING = re.compile(
    r"^[\s>*#\-\d.()`|]*(?:FINDING|RISK)\b[\s:*`]*[\[(]?\s*("
    + "|".join(_SEVERITIES)
    + r")\s*[\])]?[\s*`:|-]*(.+?)\s*$",
    re.IGNORECASE | re.MULTILINE,
)
_DOCUMENT = re.compile(
    r"^[`*\[]*([\w./\\-]{1,200}?(?:\.\w{1,8}(?::\d+)?|/[\w.-]+))[`*\]]*\s*(?:[:|]|\s[-–—])\s*(.+)$", re.DOTALL
)
_PAPER = re.compile(
    r"^[\s>*#\-\d.()`]*PAPER\b[\s:*`]*(.+?)(?:\s*\|\s*themes?\s*:?\s*(.*?))?\s*$", re.IGNORECASE | re.MULTILINE
)
_RECOMMENDATION = re.compile(r"^[\s>*#\-\d.()`]*RECOMMENDATION\b[\s:*`]*(.+?)\s*$", re.IGNORECASE | re.MULTILINE)
FINDINGS: Final = (
    "Report each finding on a line of its own, so: FINDING [critical|high|medium|low] file-or-clause: description. "
    "Report only what is really there. Write each recommendation on a line of its own, so: RECOMMENDATION: what to do."
)
PAPERS: Final = (
    "Report each source on a line of its own, so: PAPER: full citation | themes: theme one, theme two. "
    "Name only sources you are sure of; say where there are none."
)


def report(task_type: str) -> str:
    """Return how agents are to write down what a type of task adds to results; empty where it adds nothing."""
    if task_type == "literature_review":
        return PAPERS
    return FINDINGS if task_type.endswith("_review") else ""


def findings(text: str) -> list[dict[str, str]]:
    """Return the findings that a text reports: `severity`, `description`, `document` (empty = not said); none twice."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for match in _FINDING.finditer(text):
        severity, rest = _SEVERITIES[match.group(1).casefold()], match.group(2).strip(" *`")
        named = _DOCUMENT.match(rest)
        document, description = (named.group(1), named.group(2).strip()) if named else ("", rest)
        if len(found) < MAX_FINDINGS and description:
            found.setdefault(
                (document, description.casefold()),
                {"severity": severity, "description": description[:2_000], "document": document},
            )
    return list(found.values())


def papers(text: str) -> list[dict[str, Any]]:
    """Return the papers that a text reports: `citation`, `themes`; none twice."""
    found: dict[str, dict[str, Any]] = {}
    for match in _PAPER.finditer(text):
        citation = match.group(1).strip(" *`")
        themes = [theme.strip(" *`.") for theme in (match.group(2) or "").split(",")]
        if citation and len(found) < MAX_FINDINGS:
            found.setdefault(
                citation.casefold(), {"citation": citation[:2_000], "themes": [theme for theme in themes if theme]}
            )
    return list(found.values())


def recommendations(text: str) -> list[str]:
    """Return the recommendations that a text makes; none twice."""
    said = [match.group(1).strip(" *`")[:2_000] for match in _RECOMMENDATION.finditer(text)]
    return list({line.casefold(): line for line in said if line}.values())[:MAX_FINDINGS]


def added(task_type: str, texts: Sequence[str]) -> dict[str, Any]:
    """Return what a type of task adds to results, gathered from texts, the first of what is reported twice."""
    whole = "\n".join(texts)
    if task_type == "literature_review":
        return {"papers": papers(whole)}
    if not task_type.endswith("_review"):
        return {}
    return {"findings": findings(whole), "recommendations": recommendations(whole)}


def summary(text: str) -> str:
    """Return the first paragraph of a text that says something, without marks of a heading, cut at 500 characters."""
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        plain = " ".join(
            line.strip() for line in paragraph.splitlines() if not line.lstrip().startswith(("#", "```", "|"))
        )
        if plain.strip(" -*_"):
            return plain if len(plain) <= _MAX_SUMMARY else plain[: _MAX_SUMMARY - 1].rstrip() + "…"
    return " ".join(text.split())[:_MAX_SUMMARY]


def joined(parts: Sequence[Done]) -> str:
    """Return what parts achieved as one text, without a model: the answer of a tree that may not ask one any more."""
    kept = [(name, text.strip()) for name, _, text in parts if text.strip()]
    return kept[0][1] if len(kept) == 1 else "\n\n".join(f"## {name}\n\n{text}" for name, text in kept)
