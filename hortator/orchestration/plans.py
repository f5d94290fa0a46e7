"""Plans of a team: what a model answers, read with patience and checked without; and a plan of our own for when there is none.

`tree.py` asks a tribune for a plan and has it read here; children come from a plan that was `checked`, so it is acyclic and bounded.
The fallback is made by `frames.py` from the request's own words. Pure: no I/O, no chance.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct, structs

from hortator.wire.tasks import Tier

MAX_DESCRIPTION: Final = 2_000
"""Characters of one part's description."""
MAX_TEXT: Final = 200_000
"""Characters of an answer that are searched for a plan."""
_MAX_FOUND: Final = 400
"""Objects looked at in one answer."""
SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {
        "tasks": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "id": {"type": "string"},
                    "description": {"type": "string"},
                    "role": {"type": "string"},
                    "dependencies": {"type": "array", "items": {"type": "string"}},
                    "group": {"type": "string"},
                },
                "required": ["id", "description", "dependencies"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["tasks"],
    "additionalProperties": False,
}
"""What a planner is asked for, as a JSON schema."""
FORMAT: Final[Mapping[str, Any]] = {
    "type": "json_schema",
    "json_schema": {"name": "plan", "schema": SCHEMA},
}
"""The same as a chat completion's `response_format`."""

_FENCE = re.compile(r"```[a-zA-Z0-9_-]*\s*\n(.*?)(?:```|\Z)", re.DOTALL)
_WORD = re.compile(r"\w+")
_SAME: Final = 0.65
"""A part that shares so much of its words with the request is the request."""
_ID = re.compile(r"[^a-z0-9]+")
_LISTS = ("tasks", "subtasks", "parts", "steps", "plan", "agents")
_TEXTS = ("description", "task", "prompt", "instructions", "goal", "content", "title", "name")
_NEEDS = ("dependencies", "depends_on", "dependsOn", "needs", "requires", "after")
_TIERS: Final[Mapping[str, Tier]] = {"tribune": "tribune", "centurion": "centurion", "legionary": "legionary"}


class Part(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One piece of a plan."""

    id: str
    """Unique in its plan; also the name of its task."""
    description: str
    role: str | None = None
    tier: Tier | None = None
    dependencies: tuple[str, ...] = ()
    group: str | None = None
    """Parts of one group work under a centurion."""


class BadPlan(Exception):
    """A plan cannot be used; the text says why, for the model that wrote it. `unreadable`: there is no plan in the answer at all."""

    def __init__(self, reason: str, *, unreadable: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.unreadable = unreadable


def _identifier(value: Any, fallback: str) -> str:
    text = str(value).strip().casefold() if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    return _ID.sub("-", text).strip("-")[:60] or fallback


def _values(text: str) -> Iterable[Any]:
    """Yield the JSON values in an answer, most promising first: in fences, whole, then wherever an object or a list begins."""
    decoder = json.JSONDecoder()
    for source in [*(match.group(1) for match in _FENCE.finditer(text)), text]:
        at = tried = 0
        while tried < _MAX_FOUND:
            starts = [found for found in (source.find("{", at), source.find("[", at)) if found >= 0]
            if not starts:
                break
            at, tried = min(starts), tried + 1
            try:
                value, at = decoder.raw_decode(source, at)
            except (ValueError, RecursionError):
                at += 1
                continue
            yield value


def _items(value: Any) -> list[Any]:
    """Return the list of parts that a value is or holds; empty where it is none."""
    if isinstance(value, Mapping):
        for name in _LISTS:
            inner = value.get(name)
            found = _items(inner) if isinstance(inner, (list, Mapping)) else []
            if found:
                return found
        return []
    return [item for item in value if isinstance(item, (str, Mapping))] if isinstance(value, list) else []


def _part(item: Any, number: int) -> Part | None:
    """Return an item as a part; None where it says nothing that could be done."""
    if isinstance(item, str):
        return Part(id=f"part-{number}", description=item.strip()) if item.strip() else None
    texts = [item[name].strip() for name in _TEXTS if isinstance(item.get(name), str) and item[name].strip()]
    if not texts:
        return None
    needs = next((item[name] for name in _NEEDS if name in item), ())
    needs = [needs] if isinstance(needs, (str, int)) else needs
    role, group = item.get("role"), item.get("group")
    return Part(
        id=_identifier(item.get("id"), f"part-{number}"),
        description=texts[0],
        role=role.strip()[:100] if isinstance(role, str) and role.strip() else None,
        tier=_TIERS.get(str(item.get("tier")).strip().casefold()),
        dependencies=tuple(dict.fromkeys(_identifier(need, "") for need in needs)) if isinstance(needs, list) else (),
        group=_identifier(group, "") or None,
    )


def read(answer: str) -> list[Part]:
    """Return the parts that an answer names, as they are: in fences or prose, under other names, or cut off in the middle.

    Raises BadPlan (`unreadable`) where there are none.
    """
    text = answer[:MAX_TEXT]
    loose: list[Any] = []
    for value in _values(text):
        items = _items(value)
        parts = [part for number, item in enumerate(items, 1) if (part := _part(item, number)) is not None]
        if parts and any(isinstance(item, Mapping) for item in items):
            return parts
        if len(parts) > 1 and not loose:
            return parts
        if isinstance(value, Mapping) and "description" in value:
            loose.append(value)
    parts = [part for number, item in enumerate(loose, 1) if (part := _part(item, number)) is not None]
    if not parts:
        raise BadPlan("There is no JSON object with a list 'tasks' in the answer.", unreadable=True)
    return parts


def useful(parts: Sequence[Part], request: str) -> list[Part]:
    """Return the parts that say something: none twice, and none that only says the request again, as small models do.

    Raises BadPlan (`unreadable`) where no plan is left of it.
    """
    whole = _words(request)
    kept: dict[str, Part] = {}
    for part in parts:
        words = _words(part.description)
        same = len(words & whole) / (len(words | whole) or 1)
        if same < _SAME:
            kept.setdefault(" ".join(part.description.casefold().split()), part)
    if not kept or len(kept) < min(len(parts), 2):
        raise BadPlan("The tasks only repeat the request.", unreadable=True)
    ids = {part.id for part in kept.values()}
    gone = {part.id for part in parts} - ids
    return [
        structs.replace(part, dependencies=tuple(need for need in part.dependencies if need not in gone))
        for part in kept.values()
    ]


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()[:MAX_DESCRIPTION]))


def checked(parts: Sequence[Part], most: int) -> list[Part]:
    """Return a plan that can be carried out. What is clearly meant is mended: too long texts are cut, a part's need of itself dropped.

    Raises BadPlan: no parts, more than `most`, an id twice, an unknown dependency, a cycle.
    """
    if not parts:
        raise BadPlan("The plan has no tasks.")
    if len(parts) > most:
        raise BadPlan(f"The plan has {len(parts)} tasks; at most {most} are allowed.")
    ids = [part.id for part in parts]
    twice = sorted({id for id in ids if ids.count(id) > 1})
    if twice:
        raise BadPlan(f"The id '{twice[0]}' is used twice.")
    plan = [
        structs.replace(
            part,
            description=part.description[:MAX_DESCRIPTION],
            dependencies=tuple(need for need in part.dependencies if need and need != part.id),
        )
        for part in parts
    ]
    for part in plan:
        for need in part.dependencies:
            if need not in ids:
                raise BadPlan(f"The task '{part.id}' depends on '{need}', which is not in the plan.")
    waves(plan)
    return plan


def mended(parts: Sequence[Part], most: int) -> list[Part]:
    """Return the nearest plan that can be carried out: for a model that was told what is wrong and did not do better.

    Repeated parts and those beyond `most` are dropped, and so are dependencies that are unknown or point at what comes later.
    """
    plan: list[Part] = []
    texts: set[str] = set()
    for part in parts:
        text = part.description.casefold()
        if len(plan) >= most or text in texts:
            continue
        known = {other.id for other in plan}
        id = part.id if part.id not in known else f"{part.id}-{len(plan) + 1}"
        needs = tuple(need for need in part.dependencies if need in known)
        plan.append(structs.replace(part, id=id, description=part.description[:MAX_DESCRIPTION], dependencies=needs))
        texts.add(text)
    return checked(plan, most)


def waves(parts: Sequence[Part]) -> list[list[str]]:
    """Return ids in the order they can be worked on: each list needs only what is in those before it. Raises BadPlan on a cycle."""
    left = {part.id: set(part.dependencies) for part in parts}
    order: list[list[str]] = []
    while left:
        ready = [part.id for part in parts if part.id in left and not left[part.id] & left.keys()]
        if not ready:
            raise BadPlan(f"The dependencies go in a circle: {', '.join(sorted(left))}.")
        order.append(ready)
        for id in ready:
            del left[id]
    return order


class Unit(Struct, frozen=True, kw_only=True):
    """What becomes one child of the planner: a part, or a group of them under a centurion."""

    name: str
    parts: tuple[Part, ...]
    dependencies: tuple[str, ...]
    """Names of other units."""

    @property
    def group(self) -> bool:
        """Whether a centurion is needed."""
        return len(self.parts) > 1


def units(parts: Sequence[Part], *, grouped: bool) -> list[Unit]:
    """Return a plan's parts as units, in its order. `grouped`: parts of one group become one unit, where there are several groups
    and no two units then need each other.
    """
    plain = [Unit(name=part.id, parts=(part,), dependencies=part.dependencies) for part in parts]
    groups = {part.group for part in parts if part.group}
    if not grouped or len({part.group or part.id for part in parts}) < 2:
        return plain
    names = {group: group if group not in {part.id for part in parts} else f"{group}-group" for group in sorted(groups)}
    home = {part.id: names[part.group] if part.group else part.id for part in parts}
    members: dict[str, list[Part]] = {}
    for part in parts:
        members.setdefault(home[part.id], []).append(part)
    found: list[Unit] = []
    for name, inside in members.items():
        own = {part.id for part in inside}
        outer = tuple(dict.fromkeys(home[need] for part in inside for need in part.dependencies if need not in own))
        inner = tuple(
            structs.replace(part, dependencies=tuple(need for need in part.dependencies if need in own))
            for part in inside
        )
        found.append(Unit(name=name if len(inside) > 1 else inside[0].id, parts=inner, dependencies=outer))
    renamed = {home[unit.parts[0].id]: unit.name for unit in found}
    found = [structs.replace(unit, dependencies=tuple(renamed[need] for need in unit.dependencies)) for unit in found]
    try:
        waves([Part(id=unit.name, description="-", dependencies=unit.dependencies) for unit in found])
    except BadPlan:
        return plain
    return found
