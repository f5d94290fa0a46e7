"""An order for a team, and the root that it becomes: everything about how it is worked on decided and checked once, before it is kept.

`teams.py` asks. What an order does not say follows from the role, the complexity of the request (R-000-35 to R-000-37) and the operator's
settings; nothing that the key, its limits or the settings do not allow gets through. Pure: no I/O, the moment is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import ROUND_DOWN, Decimal, InvalidOperation
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Any, Final, Literal, NamedTuple, get_args

import msgspec
from msgspec import Struct, structs

from hortator.call import Caller, Priority
from hortator.errors import Forbidden, InvalidRequest, NotFound, TooLarge
from hortator.orchestration import domains, legion
from hortator.orchestration.roles import DEFAULT, GENERALIST, PATTERN, PREFIX, Role, Roles
from hortator.settings import Orchestration
from hortator.store.task_rows import plain
from hortator.store.tasks import NewEvent, NewFile, Task
from hortator.wire.orders import file_path
from hortator.wire.tasks import MAX_AGENTS, Budget, Pattern, Strategy, TaskConfig, Tier, seconds

Path = Literal["fast", "standard", "complex"]

STRATEGIES: Final[Mapping[str, Strategy]] = {"fast": "none", "standard": "balanced", "complex": "aggressive"}
CHATS: Final = frozenset({"chat", "responses", "messages"})
"""Doors where `hortator/...` is a model like any other."""
MODEL_ARGUMENTS: Final = ("orchestrator_model", "worker_model", "generator_model", "evaluator_model")
AUTO: Final = "auto"
_PRIORITIES: Final[Sequence[Priority]] = ("high", "standard", "low")
_PATTERNS: Final[Sequence[Pattern]] = get_args(Pattern)
_TASK_TYPE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,99}")
_NAME: Final = 80
_MODEL: Final = 100
_NANO: Final = 1_000_000_000
_CENT: Final = Decimal("0.0000000001")
_MOST_COST: Final = Decimal(10**9)


class Order(Struct, frozen=True, kw_only=True):
    """Something to be worked on, as a door understood it."""

    messages: Sequence[Mapping[str, Any]]
    """Chat messages; a prompt is one user message."""
    model: str = "hortator/default"
    """`hortator/<role>`, `hortator/{domain}-{role}` or `hortator/pattern-<pattern>`."""
    task_type: str = "chat"
    source: str = "tasks"
    pattern: Pattern = "team"
    arguments: Mapping[str, Any] = {}
    """What the pattern needs besides (Harpoon's field names): `requests`, `orchestrator_model`, `worker_model`, `quality_threshold`, ..."""
    config: TaskConfig = TaskConfig()
    files: Sequence[NewFile] = ()
    """Into `inbox/`; paths without that prefix."""
    callback_url: str | None = None
    callback_events: Sequence[str] | None = None
    """Types of events to send; None = progress and ends."""
    idempotency_key: str | None = None
    interactive: bool = False
    """A client waits for the answer: run in this process, now, so that text streams."""
    path: Path | None = None
    """How complex the request is, where the door knows (R-000-34); None = a team as for `standard`, that may find it needs none."""
    priority: Priority | None = None
    """None = the caller's; never more than that."""


class Root(NamedTuple):
    """What is kept of an order."""

    task: Task
    files: list[NewFile]
    events: list[NewEvent]


def root(
    caller: Caller,
    order: Order,
    roles: Roles,
    settings: Orchestration,
    at: datetime,
    id: str,
    served: Callable[[str], bool] = lambda _: True,
) -> Root:
    """Return the root of a new tree, of that id. `served`: whether there is such a model.

    Raises InvalidRequest, NotFound (`model_not_found`), Forbidden, TooLarge.
    """
    role, pattern = _role(caller, order, roles)
    if not _TASK_TYPE.fullmatch(order.task_type):
        raise InvalidRequest("'task_type' must be a name of letters, digits, `_`, `.` and `-`.", param="task_type")
    _check_models(caller, order, served)
    config = _decided(caller, order, role, pattern, settings)
    files = _files(order, settings)
    budget = config.budget or Budget()
    task = Task(
        id=id,
        tenant_id=caller.tenant_id,
        root_id=id,
        parent_task_id=None,
        key_hash=caller.key_hash,
        name=_name(order.messages) or order.task_type,
        status="Pending",
        task_type=order.task_type,
        model=order.model if len(order.model) <= _MODEL else role.model,
        role=role.name,
        tier=config.tier or "tribune",
        pattern=pattern,
        source=order.source,
        priority=_lower(caller.priority, order.priority),
        depth=0,
        position=0,
        created_at=at,
        request=_request(order),
        config=msgspec.to_builtins(config),
        deadline_at=at + timedelta(seconds=seconds(config.timeout or settings.timeout_seconds, "timeout")),
        max_tokens=budget.max_tokens,
        max_cost=None if budget.max_cost_usd is None else Decimal(budget.max_cost_usd),
        idempotency_key=order.idempotency_key,
        fingerprint=fingerprint(order),
    )
    shown = {"model": task.model, "role": role.name, "task_type": task.task_type, "pattern": pattern}
    fields = {"message": "The task was taken", "task": task.name, "details": shown}
    return Root(task, files, [NewEvent(type="task_created", task_id=id, fields=fields)])


def fingerprint(order: Order) -> str:
    """Return a digest of what an order asks for: the same for the same order, whoever waits for it."""
    parts = msgspec.to_builtins(structs.replace(order, files=(), idempotency_key=None, interactive=False, path=None))
    files = [[each.path, each.media_type, sha256(each.content).hexdigest()] for each in order.files]
    return sha256(msgspec.json.encode(plain([parts, files]), order="deterministic")).hexdigest()


def may_use(caller: Caller, model: str) -> bool:
    """Whether a key may use a model."""
    return any(glob == "*" or fnmatchcase(model, glob) for glob in caller.allowed_models)


def _role(caller: Caller, order: Order, roles: Roles) -> tuple[Role, Pattern]:
    """Who works on an order and how. Raises NotFound, InvalidRequest, Forbidden."""
    name = order.model.removeprefix(PREFIX)
    pattern = order.pattern
    if name.startswith(PATTERN):
        named = next((each for each in _PATTERNS if each == name.removeprefix(PATTERN)), None)
        if named is None:
            raise _unknown(order, [PATTERN + each for each in _PATTERNS])
        if order.pattern not in ("team", named):
            text = f"'pattern' says {order.pattern} and 'model' says {named}."
            raise InvalidRequest(text, code="invalid_value", param="pattern")
        pattern, role = named, roles.find(GENERALIST)
    else:
        role = roles.find(order.model)
        led = roles.for_task(order.task_type) if name == DEFAULT else None
        if led is not None and any(may_use(caller, model) for model in led.spellings):
            return led, pattern
    if role is None:
        raise _unknown(order, roles.similar(name))
    own = role.spellings if pattern == order.pattern else ()
    if not any(may_use(caller, model) for model in (order.model, *own)):
        raise _not_allowed(order.model, "model")
    return role, pattern


def _unknown(order: Order, similar: Sequence[str]) -> InvalidRequest | NotFound:
    if order.source in CHATS:
        hint = f" Did you mean {' or '.join(PREFIX + name for name in similar)}?" if similar else ""
        return NotFound(
            f"The model '{order.model[:200]}' does not exist.{hint} GET /v1/models lists the models you may use.",
            code="model_not_found",
            param="model",
        )
    hint = f" Did you mean {' or '.join(similar)}?" if similar else ""
    return InvalidRequest(f"There is no role '{order.model[:200]}'.{hint}", code="unknown_role", param="model")


def _not_allowed(model: str, param: str) -> Forbidden:
    return Forbidden(f"This key may not use the model '{model[:200]}'.", code="model_not_allowed", param=param)


def _named_models(order: Order) -> Iterable[tuple[str, str]]:
    """The models that an order names for its agents, and where."""
    config = order.config
    if config.model is not None:
        yield config.model, "config.model"
    for tier, model in (config.models or {}).items():
        yield model, f"config.models.{tier}"
    for name in MODEL_ARGUMENTS:
        given = order.arguments.get(name)
        if isinstance(given, str):
            yield given, name
    requests = order.arguments.get("requests")
    for at, request in enumerate(requests if isinstance(requests, list | tuple) else ()):
        given = request.get("model") if isinstance(request, Mapping) else None
        if isinstance(given, str):
            yield given, f"requests[{at}].model"


def _check_models(caller: Caller, order: Order, served: Callable[[str], bool]) -> None:
    """Raises Forbidden, NotFound, InvalidRequest: a team does not ask teams, or there would be no end of it."""
    for model, param in _named_models(order):
        if model.startswith(PREFIX):
            raise InvalidRequest(f"'{param}' must be a model, not a team.", code="invalid_value", param=param)
        if model != AUTO and not may_use(caller, model):
            raise _not_allowed(model, param)
        if model != AUTO and not served(model):
            raise NotFound(f"The model '{model[:200]}' does not exist.", code="model_not_found", param=param)


def _decided(caller: Caller, order: Order, role: Role, pattern: Pattern, settings: Orchestration) -> TaskConfig:
    """Return the configuration with nothing left open but what its tier or role has. Raises InvalidRequest, Forbidden."""
    given = order.config
    tier, strategy = _shape(given, order.path, pattern)
    agents = given.max_agents if pattern == "team" else given.max_agents or MAX_AGENTS
    shaped = structs.replace(given, tier=tier, decomposition_strategy=strategy, max_agents=agents)
    bounds = legion.bounds(shaped)
    timeout = seconds(given.timeout, "config.timeout") if given.timeout is not None else settings.timeout_seconds
    return structs.replace(
        shaped,
        max_agents=bounds.agents,
        max_depth=bounds.depth,
        max_tasks=bounds.tasks,
        timeout=timeout,
        budget=_budget(caller, given.budget or Budget(), timeout, settings),
        capabilities=legion.capabilities(tier, _capabilities(given, settings), None),
        parameters=domains.check(role, order.task_type, given.parameters) or None,
    )


def _shape(given: TaskConfig, path: Path | None, pattern: Pattern) -> tuple[Tier, Strategy]:
    """Who leads, and how much is given to others. A legionary gives nothing to anybody; a pattern has agents to send (R-002-18)."""
    strategy = given.decomposition_strategy or STRATEGIES[path or "standard"]
    if pattern != "team":
        return "tribune", strategy
    tier = given.tier or ("legionary" if strategy == "none" else "tribune")
    return tier, "none" if tier == "legionary" else strategy


def _capabilities(given: TaskConfig, settings: Orchestration) -> Sequence[str]:
    """What agents may use; nothing that was not asked for. Raises Forbidden."""
    offered = {"spawn": True, "shell": settings.shell, "web-fetch": bool(settings.egress)}
    for name in given.capabilities or ():
        if not offered[name]:
            text = f"Agents may not use '{name}' here."
            raise Forbidden(text, code="capability_not_allowed", param="config.capabilities")
    return given.capabilities or ()


def _budget(caller: Caller, given: Budget, timeout: int, settings: Orchestration) -> Budget:
    """Return a tree's budget. Raises InvalidRequest where it could never be used up within the key's own limits."""
    tokens, cost = given.max_tokens, None
    if given.max_cost_usd is not None:
        cost = _dollars(given.max_cost_usd)
    most_tokens = min(
        (limit.amount for limit in caller.limits if limit.kind == "tokens" and limit.window >= timeout), default=None
    )
    nanos = [limit.amount for limit in caller.limits if limit.kind == "money" and limit.window >= timeout]
    most_cost = Decimal(min(nanos)) / _NANO if nanos else None
    if tokens is not None and most_tokens is not None and tokens > most_tokens:
        raise _too_much("max_tokens", f"{most_tokens} tokens")
    if cost is not None and most_cost is not None and cost > most_cost:
        raise _too_much("max_cost_usd", f"{most_cost} US dollars")
    if tokens is None:
        tokens = _least(settings.max_tokens, most_tokens)
    if cost is None:
        cost = _least(None if settings.max_cost_usd is None else _dollars(settings.max_cost_usd), most_cost)
    return Budget(max_tokens=tokens, max_cost_usd=None if cost is None else format(cost, "f"))


def _least(one: Any, other: Any) -> Any:
    return min((each for each in (one, other) if each is not None), default=None)


def _dollars(amount: str | float) -> Decimal:
    """Return US dollars in ten digits behind the point. Raises InvalidRequest."""
    try:
        found = Decimal(str(amount))
    except InvalidOperation:
        found = _MOST_COST
    if not found.is_finite() or not 0 <= found < _MOST_COST:
        param = "config.budget.max_cost_usd"
        raise InvalidRequest(f"'{param}' must be an amount of US dollars.", code="invalid_value", param=param)
    return found.quantize(_CENT, ROUND_DOWN)


def _too_much(name: str, most: str) -> InvalidRequest:
    param = f"config.budget.{name}"
    text = f"'{param}' is more than the key may use in that time: {most}."
    return InvalidRequest(text, code="invalid_value", param=param)


def _files(order: Order, settings: Orchestration) -> list[NewFile]:
    """The order's files in `inbox/`. Raises InvalidRequest, TooLarge."""
    if len(order.files) > settings.max_files:
        raise TooLarge(f"More than {settings.max_files} files.", param="files")
    if sum(len(each.content) for each in order.files) > settings.max_files_bytes:
        raise TooLarge(f"The files have more than {settings.max_files_bytes} bytes together.", param="files")
    found: dict[str, NewFile] = {}
    for each in order.files:
        path = "inbox/" + file_path(each.path, "files")
        if path in found:
            text = f"Two files have the path '{each.path[:100]}'."
            raise InvalidRequest(text, code="invalid_file_path", param="files")
        found[path] = each._replace(path=path, media_type=each.media_type[:200])
    return list(found.values())


def _request(order: Order) -> dict[str, Any]:
    request: dict[str, Any] = {**order.arguments, "messages": list(order.messages)}
    if order.callback_url is not None:
        request["callback_url"] = order.callback_url
        request["callback_events"] = None if order.callback_events is None else list(order.callback_events)
    return request


def _name(messages: Sequence[Mapping[str, Any]]) -> str:
    """The beginning of what is asked, in one line."""
    for message in reversed(messages):
        if message.get("role") == "user":
            content = message.get("content")
            parts = content if isinstance(content, list) else [{"text": content}]
            texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
            said = " ".join(" ".join(text[: 4 * _NAME].split()) for text in texts if isinstance(text, str)).strip()
            if said:
                return said if len(said) <= _NAME else said[: _NAME - 1].rstrip() + "…"
    return ""


def _lower(one: Priority, other: Priority | None) -> Priority:
    return max(one, other or one, key=_PRIORITIES.index)
