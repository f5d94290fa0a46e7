"""Who agents are: the roles behind `hortator/<role>`, built in and the operator's own (R-000-44, R-000-45).

Made once from `data/roles/*.yaml` and the operator's folder. The chat doors, the list of models, the orders of tasks and the agents' prompts ask
it; it calls nobody. A role says how an agent works, never what it may do beyond what its order allows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from hortator.errors import ConfigError
from hortator.settings.build import MISSING, Builder
from hortator.settings.tree import Node, Problems, Variables, read_tree
from hortator.wire.tasks import Capability, Tier

PREFIX = "hortator/"
PATTERN = "pattern-"
"""Begins the names of models that are patterns, which no role may have."""
GENERALIST = "generalist"
DEFAULT = "default"
"""Another name of the generalist."""
Schema = Literal["coding", "legal", "research", "data", "content"]
"""Whose parameters a role understands; `domains.py` has them."""

MAX_FILES = 500
MAX_LINES = 20
_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_TASK_TYPE = re.compile(r"[A-Za-z0-9._-]+")
_BUILT_IN = Path(__file__).with_name("data") / "roles"
_ENDINGS = (".yaml", ".yml")

Name = Annotated[str, Meta(min_length=1, max_length=63)]
Line = Annotated[str, Meta(min_length=1, max_length=600)]


class Role(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One role, as its file says it."""

    name: Name
    """Small letters, digits and single hyphens; the model is `hortator/<name>`."""
    domain: Name
    """Also in the model's other spelling, `hortator/<domain>-<name>`."""
    description: Annotated[str, Meta(min_length=1, max_length=300)]
    """For the list of models, and for agents that choose who does a part."""
    prompt: Annotated[str, Meta(min_length=1, max_length=12_000)]
    """How to work, said to the model."""
    rules: tuple[Line, ...] = ()
    anti_patterns: tuple[Line, ...] = ()
    """What to avoid."""
    capabilities: tuple[Capability, ...] = ()
    """What it works better with. Given only where the order allows it."""
    tiers: tuple[Tier, ...] = ()
    """The tiers it is made for; empty = all."""
    task_types: tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...] = ()
    """Types of tasks that it is good at."""
    leads: tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...] = ()
    """Types of tasks that come to it where an order names no role."""
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    """Of its model calls where the order does not say. None = the provider's own."""
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    """Longest answer of one of its model calls where the order does not say. None = the provider's own."""
    parameters: Schema | None = None
    """Whose parameters it understands besides those of its task's type. None = those of every domain."""

    @property
    def model(self) -> str:
        """The model's id."""
        return PREFIX + self.name

    @property
    def spellings(self) -> tuple[str, ...]:
        """The ids that are this role's; a key that may use one of them may use the role."""
        own = (self.model, f"{PREFIX}{self.domain}-{self.name}")
        return (*own, PREFIX + DEFAULT) if self.name == GENERALIST else own

    @property
    def instructions(self) -> str:
        """Everything that a model is told of the role, ready for a system message."""
        said = [self.prompt.strip()]
        if self.rules:
            said.append("Rules:\n" + "\n".join(f"- {rule}" for rule in self.rules))
        if self.anti_patterns:
            said.append("Avoid:\n" + "\n".join(f"- {line}" for line in self.anti_patterns))
        return "\n\n".join(said)


class Roles:
    """All roles. Immutable."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: the operator's files; a role of the same name takes the built-in one's place. Raises ConfigError."""
        found = {role.name: role for role in _read(_BUILT_IN)}
        if folder is not None:
            found |= {role.name: role for role in _read(folder)}
        self._roles = dict(sorted(found.items()))
        self._spellings: dict[str, Role] = {}
        for role in self._roles.values():
            self._spellings.setdefault(f"{role.domain}-{role.name}", role)
        self._spellings |= self._roles
        self._spellings[DEFAULT] = self._roles[GENERALIST]

    def find(self, name_or_model: str) -> Role | None:
        """Return a role by its name or its model: `coding-expert`, `hortator/coding-expert`, `hortator/coding-coding-expert`,
        `hortator/default`; None when there is no such role."""
        return self._spellings.get(name_or_model.removeprefix(PREFIX))

    def for_task(self, task_type: str) -> Role | None:
        """Return the role that leads tasks of a type; None = none does. Of several the one whose name comes first."""
        return next((role for role in self._roles.values() if task_type in role.leads), None)

    def names(self) -> tuple[str, ...]:
        """Return the names of all roles, sorted."""
        return tuple(self._roles)

    def similar(self, name_or_model: str) -> list[str]:
        """Return up to three names that may have been meant."""
        return get_close_matches(name_or_model.removeprefix(PREFIX)[:100], self._spellings, n=3)

    def for_tier(self, tier: Tier) -> tuple[Role, ...]:
        """Return the roles that agents of a tier may have, by name: those made for it, and those made for all."""
        return tuple(role for role in self._roles.values() if not role.tiers or tier in role.tiers)


def _read(folder: Path) -> Iterable[Role]:
    """Return the roles of a folder's files. Raises ConfigError with one line for each problem, `file:line: key: what to do`."""
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix in _ENDINGS and not file.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"{folder}: the roles cannot be read: {error.strerror or 'unknown reason'}") from None
    if len(files) > MAX_FILES:
        raise ConfigError(f"{folder}: more than {MAX_FILES} role files")
    problems = Problems()
    found: dict[str, tuple[Role, Path]] = {}
    for file in files:
        node = read_tree(file, Variables({}), problems)
        role = Builder(folder, problems).build(Role, node, "")
        if role is MISSING:
            continue
        _check(role, node, problems)
        if role.name in found:
            problems.add(
                node.at("name").where, "name", f"`{role.name}` is also in {found[role.name][1].name}; keep one"
            )
        found[role.name] = role, file
    problems.raise_any()
    return [role for role, _ in found.values()]


def _check(role: Role, node: Node, problems: Problems) -> None:
    """Note what is wrong with a role beyond the types of its fields."""
    for field in ("name", "domain"):
        if not _NAME.fullmatch(getattr(role, field)):
            problems.add(node.at(field).where, field, "expected small letters, digits and single hyphens between them")
    if role.name.startswith(PATTERN):
        problems.add(node.at("name").where, "name", f"names with `{PATTERN}` are those of patterns; choose another")
    if role.name == DEFAULT:
        problems.add(node.at("name").where, "name", f"`{DEFAULT}` is the role `{GENERALIST}`; give a role of that name")
    for field in ("rules", "anti_patterns", "task_types", "leads"):
        lines = getattr(role, field)
        if len(lines) > MAX_LINES:
            problems.add(node.at(field).where, field, f"at most {MAX_LINES} of them")
    for field, types in (("task_types", role.task_types), ("leads", role.leads)):
        for index, type_ in enumerate(types):
            if not _TASK_TYPE.fullmatch(type_):
                where = node.at(field, index).where
                problems.add(where, f"{field}[{index}]", "expected letters, digits, `.`, `_` and `-`")
