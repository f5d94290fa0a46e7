"""The task API's dialect: what clients send to have something worked on, checked, and what they read of it.

Doors (tasks, orchestrations, sockets, chat on `hortator/*`) parse with it, the SDK makes its bodies with it. Field names follow the
specification (R-000-15, R-000-16, R-000-57) and the origin project; both spellings are taken where they differ. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from hortator.errors import InvalidRequest

Tier = Literal["tribune", "centurion", "legionary"]
Strategy = Literal["none", "balanced", "aggressive"]
Capability = Literal["web-fetch", "shell", "spawn"]
Phase = Literal[
    "Pending", "Running", "Waiting", "Completed", "Failed", "BudgetExceeded", "TimedOut", "Cancelled", "Retrying"
]
"""C-29: the origin project's."""
TERMINAL: frozenset[str] = frozenset({"Completed", "Failed", "BudgetExceeded", "TimedOut", "Cancelled"})
Pattern = Literal["team", "parallel", "workers", "optimize", "smart"]

MAX_AGENTS = 25
"""Most agents of a tree at work at once (R-002-18)."""
MAX_DEPTH = 10
MAX_TASKS = 100
"""Most tasks of a tree."""
MAX_TIMEOUT_SECONDS = 7 * 86_400

_DURATION = re.compile(r"(?:(\d{1,7})d)?(?:(\d{1,7})h)?(?:(\d{1,7})m)?(?:(\d{1,7})s)?")
Name = Annotated[str, Meta(min_length=1, max_length=200)]


class Budget(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a tree may use, all agents together. None = no bound of its own; the caller's limits hold anyway."""

    max_tokens: Annotated[int, Meta(ge=1, le=1 << 40)] | None = None
    max_cost_usd: (
        Annotated[str, Meta(pattern=r"^[0-9]{1,9}(\.[0-9]{1,10})?$")] | Annotated[float, Meta(ge=0)] | None
    ) = None


class Retry(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How transient failures of an agent are tried again. None = what its tier has."""

    max_attempts: Annotated[int, Meta(ge=0, le=10)] | None = None
    backoff_seconds: Annotated[float, Meta(ge=0, le=3600)] | None = None
    max_backoff_seconds: Annotated[float, Meta(ge=0, le=3600)] | None = None


class Stuck(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """When an agent counts as stuck, and what is done then."""

    tool_diversity_min: Annotated[float, Meta(ge=0, le=1)] = 0.3
    max_repeated_prompts: Annotated[int, Meta(ge=1, le=100)] = 3
    status_stale_minutes: Annotated[float, Meta(gt=0, le=1440)] = 5
    action: Literal["warn", "kill", "escalate"] = "warn"


class TaskConfig(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How something is to be worked on (R-000-15). What is not said follows from the role and the request's complexity."""

    decomposition_strategy: Strategy | None = None
    max_agents: Annotated[int, Meta(ge=1, le=MAX_AGENTS)] | None = None
    """Agents at work at once, and about as many parts."""
    max_depth: Annotated[int, Meta(ge=1, le=MAX_DEPTH)] | None = None
    max_tasks: Annotated[int, Meta(ge=1, le=MAX_TASKS)] | None = None
    """Tasks of the whole tree."""
    timeout: str | Annotated[int, Meta(ge=1, le=MAX_TIMEOUT_SECONDS)] | None = None
    """Seconds, or a duration such as `45s`, `10m`, `2h` (C-24)."""
    max_iterations: Annotated[int, Meta(ge=1, le=200)] | None = None
    """Model calls of one agent."""
    exit_criteria: Annotated[str, Meta(max_length=4000)] | None = None
    """When the work is good enough, in words; agents are told."""
    budget: Budget | None = None
    tier: Tier | None = None
    """Of the root: a tribune plans, a legionary does it alone."""
    capabilities: tuple[Capability, ...] | None = None
    """What agents may use besides the files of their task. Children never get more than their parent."""
    model: Name | None = None
    """The model that all agents ask, instead of one chosen by tier."""
    models: Mapping[Tier, Name] | None = None
    """The model of each tier."""
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    """Longest answer of one model call."""
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    retry: Retry | None = None
    stuck_detection: Stuck | None = None
    parameters: Mapping[str, Any] | None = None
    """The domain's parameters (R-000-46 to R-000-52); also taken from the configuration's top level."""


def seconds(value: str | int, param: str) -> int:
    """Return a duration in seconds (C-24). Raises InvalidRequest."""
    if isinstance(value, int):
        return value
    text = value.strip()
    match = _DURATION.fullmatch(text)
    total = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0
    if match is not None:
        days, hours, minutes, rest = (int(part or 0) for part in match.groups())
        total = total or ((days * 24 + hours) * 60 + minutes) * 60 + rest
    if not 0 < total <= MAX_TIMEOUT_SECONDS:
        raise InvalidRequest(
            f"Invalid '{param}': expected seconds or a duration such as 45s, 10m or 2h, at most 7 days.",
            code="invalid_value",
            param=param,
        )
    return total


_FIELDS = frozenset(field.encode_name for field in msgspec.structs.fields(TaskConfig))


def config(given: Mapping[str, Any], param: str = "config") -> TaskConfig:
    """Return a configuration, checked. What is not a field of it is a parameter of the domain. Raises InvalidRequest."""
    own = {name: value for name, value in given.items() if name in _FIELDS}
    rest = {name: value for name, value in given.items() if name not in _FIELDS}
    if rest:
        own["parameters"] = {**(own.get("parameters") or {}), **rest}
    try:
        return msgspec.convert(own, TaskConfig)
    except msgspec.ValidationError as error:
        text, _, at = str(error).partition(" - at `$")
        where = param + at.rstrip("`") if at else param
        raise InvalidRequest(f"Invalid '{where}': {text}.", code="invalid_value", param=where) from None
