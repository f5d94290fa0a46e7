"""What agents are told: the words for planners, workers, the one who writes the answer, and for planning again.

`tree.py` and `agent.py` make messages here from what they know. Every section has a share of a `Room`, so that a small model with 4,096
tokens of context is served like a large one; what does not fit is cut with a visible mark. Pure: no I/O.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from msgspec import Struct

Message = dict[str, Any]


class Room(NamedTuple):
    """Tokens that a model call may have."""

    input: int
    output: int


WIDE: Final = Room(24_000, 4_000)
TIGHT: Final = Room(2_300, 1_200)
"""For a model of 4,096 tokens of context: taken once a model has said that a request is too long for it."""
_PLAN_OUTPUT: Final = 1_200
_PART_OUTPUT: Final = 1_500
_BYTES_A_TOKEN: Final = 3.5
_LEAST_KEPT: Final = 200
"""Characters: a result of a tool that is cut to make room keeps so many."""


class Brief(Struct, frozen=True, kw_only=True):
    """What every agent of a tree is told alike."""

    role: str = "generalist"
    instructions: str = ""
    request: str
    exit_criteria: str | None = None
    parameters: str = ""
    """Of the domain, in words."""
    inputs: tuple[tuple[str, str], ...] = ()
    """Files: path and text."""
    said: tuple[str, ...] = ()
    """Messages of the user since the order."""
    report: str = ""
    """How findings or papers are to be written down, where the type of task has them."""


class Done(NamedTuple):
    """What became of a part."""

    name: str
    status: str
    text: str


def tokens(text: str) -> int:
    """Estimate how many tokens a text has, rather too many."""
    return int(len(text.encode("utf-8", "surrogatepass")) / _BYTES_A_TOKEN) + 1


def cut(text: str, most: int) -> str:
    """Return a text of at most about `most` tokens: its beginning and its end, with a mark that says how much is missing."""
    if tokens(text) <= most:
        return text
    size = len(text.encode("utf-8", "surrogatepass"))
    keep = max(0, int(len(text) * (most * _BYTES_A_TOKEN) / size) - 50)
    head = keep * 7 // 10
    tail = keep - head
    return (
        f"{text[:head]}\n[... {len(text) - keep} characters left out ...]\n{text[len(text) - tail :] if tail else ''}"
    )


def fitted(sections: Sequence[tuple[str, str]], most: int) -> str:
    """Return sections (title, text) as one text of at most about `most` tokens. Empty ones are left out; the long ones share what the short ones leave."""
    kept = [(title, text.strip()) for title, text in sections if text.strip()]
    need = [tokens(title) + tokens(text) + 4 for title, text in kept]
    give = list(need)
    if sum(need) > most:
        left, open_ = most, sorted(range(len(kept)), key=lambda index: need[index])
        for place, index in enumerate(open_):
            give[index] = min(need[index], left // (len(open_) - place))
            left -= give[index]
    parts = [
        f"# {title}\n{cut(text, max(8, give[index] - tokens(title) - 4))}" for index, (title, text) in enumerate(kept)
    ]
    return "\n\n".join(parts)


def conversation(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return a chat as one text. A single message of a user is itself; roles are named where there are others."""
    lines = [(str(message.get("role", "user")), _content(message.get("content"))) for message in messages]
    lines = [(role, text) for role, text in lines if text.strip()]
    if len(lines) == 1 and lines[0][0] == "user":
        return lines[0][1]
    names = {"system": "System context", "developer": "System context", "assistant": "Earlier answer", "user": "User"}
    return "\n\n".join(f"[{names.get(role, role)}]\n{text}" for role, text in lines)


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
        return "\n".join(texts)
    return ""


def _files(brief: Brief) -> str:
    return "\n\n".join(f"--- {path}\n{text}" for path, text in brief.inputs)


def _shared(brief: Brief) -> list[tuple[str, str]]:
    return [
        ("Parameters", brief.parameters),
        ("Input files", _files(brief)),
        ("Messages of the user since", "\n".join(f"- {text}" for text in brief.said)),
        ("Done when", brief.exit_criteria or ""),
    ]


def _messages(system: str, sections: Sequence[tuple[str, str]], last: str, room: Room) -> list[Message]:
    head = cut(system, room.input // 3)
    rest = room.input - tokens(head) - tokens(last)
    return [
        {"role": "system", "content": head},
        {"role": "user", "content": f"{fitted(sections, rest)}\n\n{last}"},
    ]


def _results(done: Sequence[Done], most: int) -> str:
    """Return what parts found, each with its share of `most` tokens."""
    return (
        fitted(
            [
                (name if status == "Completed" else f"{name} ({status}: not complete)", text or "(no result)")
                for name, status, text in done
            ],
            most,
        )
        .replace("# ", "## ", 1)
        .replace("\n\n# ", "\n\n## ")
    )


def planner(brief: Brief, roles: Sequence[tuple[str, str]], most: int, strategy: str, room: Room) -> list[Message]:
    """Return what a tribune is told to get a plan of at most `most` parts. `roles`: name and description of those it may give parts to."""
    how = (
        "Split it into as many independent parts as are useful; put parts that belong together in one 'group'."
        if strategy == "aggressive"
        else "Use few parts; only split what can be worked on independently."
    )
    last = (
        f"Plan how a team answers the request. {how} Use 2 to {most} tasks. Do not answer the request itself. "
        "Each task's description must say all that its worker needs, in one to three sentences. 'dependencies' lists ids of tasks "
        "whose results are needed first; leave it empty where possible. Do not add a task that only combines the results. "
        'Answer with JSON only: {"tasks": [{"id": "short-name", "description": "...", "dependencies": []}]}'
    )
    listed = "\n".join(f"- {name}: {text}" for name, text in roles)
    sections = [("Request", brief.request), *_shared(brief), ("Roles that a task's 'role' may name", listed)]
    system = (
        f"You are the planner of a team of agents ({brief.role}). You break a request into parts and answer in JSON."
    )
    return _messages(system, sections, last, room)


def mend(messages: Sequence[Message], answer: str, reason: str, room: Room) -> list[Message]:
    """Return what a planner is told whose plan cannot be used."""
    return [
        *messages,
        {"role": "assistant", "content": cut(answer, room.input // 3)},
        {"role": "user", "content": f"That plan cannot be used: {reason} Answer with the corrected JSON only."},
    ]


def replanner(brief: Brief, done: Sequence[Done], lost: Sequence[Done], most: int, room: Room) -> list[Message]:
    """Return what a planner is told when parts failed: what there is, what is missing."""
    missing = "\n".join(f"- {name}: {text}" for name, _, text in lost)
    sections = [
        ("Request", brief.request),
        *_shared(brief),
        ("Results so far", _results(done, room.input // 3)),
        ("Parts that failed", missing),
    ]
    last = (
        f"Plan other tasks, 1 to {most}, that get what the failed parts should have given, in another or simpler way. "
        'Answer with JSON only: {"tasks": [{"id": "short-name", "description": "...", "dependencies": []}]}'
    )
    system = (
        f"You are the planner of a team of agents ({brief.role}). Some parts of the plan failed. You answer in JSON."
    )
    return _messages(system, sections, last, room)


def worker(brief: Brief, part: str, done: Sequence[Done], room: Room, *, tools: bool = False) -> list[Message]:
    """Return what a legionary is told: its part, the whole it belongs to, and the results it builds on."""
    system = f"You are one agent of a team ({brief.role}).\n{brief.instructions}"
    sections = [
        ("The whole request, for context", brief.request),
        *_shared(brief),
        ("Results of earlier parts", _results(done, room.input // 3)),
        ("Your part", part),
    ]
    use = " Use the tools where they help; when you are done, answer without calling one." if tools else ""
    last = (
        "Do only your part; others do the rest. Answer with the result itself, concrete and complete, in at most about 250 words "
        f"unless your part asks for more. No introduction.{use}{_line(brief.report)}"
    )
    return _messages(system, sections, last, room)


def single(brief: Brief, messages: Sequence[Mapping[str, Any]], room: Room) -> list[Message]:
    """Return what an agent is told that does a whole request alone: the conversation as it is, with the role before it."""
    last = _line(brief.report).strip()
    extra = fitted([*_shared(brief), ("How to report", last)], room.input // 3)
    system = "\n\n".join(text for text in (cut(brief.instructions.strip(), room.input // 3), extra) if text)
    own: list[Message] = [dict(message) for message in messages]
    plain = all(isinstance(message.get("content"), str) for message in own)
    left = room.input - tokens(system)
    if plain and sum(tokens(message["content"]) for message in own) > left:
        own = [{"role": "user", "content": cut(conversation(own), left)}]
    return [{"role": "system", "content": system}, *own] if system else own


def synthesiser(brief: Brief, done: Sequence[Done], room: Room, *, group: str | None = None) -> list[Message]:
    """Return what who writes the answer is told. `group`: it is a centurion, who puts together what its group found."""
    system = f"You write the answer of a team of agents ({brief.role}).\n{brief.instructions}"
    sections = [
        ("Request", brief.request),
        *_shared(brief),
        ("What the group was to do", group or ""),
        ("Results of the team", _results(done, room.input * 2 // 3)),
    ]
    task = (
        "Put the results together into one text that does what the group was to do."
        if group
        else "Write the final answer to the request from these results."
    )
    last = (
        f"{task} Resolve contradictions, leave out repetitions, keep what is concrete (code, figures, names). Answer the request directly; "
        f"do not mention the team, its parts or these instructions. Say so where something could not be found out.{_line(brief.report)}"
    )
    return _messages(system, sections, last, room)


def _line(report: str) -> str:
    return f" {report}" if report else ""


def output(kind: str, asked: int | None, room: Room) -> int:
    """Return how long an answer may be, tokens: of a `plan`, a `part`, or anything else. `asked`: what the order or the role says."""
    own = _PLAN_OUTPUT if kind == "plan" else _PART_OUTPUT if kind == "part" else room.output
    wanted = min(asked or own, own) if kind == "plan" else asked or own
    return min(wanted, room.output) if room is TIGHT else wanted


def trimmed(messages: Sequence[Message], room: Room) -> list[Message]:
    """Return an agent's conversation so that it fits: the first two messages and the last four whole, tools' results before them cut."""
    size = [tokens(json.dumps(message, ensure_ascii=False, default=str)) for message in messages]
    total = sum(size)
    result = [dict(message) for message in messages]
    for index in range(2, len(result)):
        if total <= room.input:
            break
        text = result[index].get("content")
        if not isinstance(text, str) or len(text) <= _LEAST_KEPT * 2:
            continue
        keep = 60 if index < len(result) - 4 else max(60, room.input // 6)
        short = cut(text, keep)
        total -= tokens(text) - tokens(short)
        result[index]["content"] = short
    return result
