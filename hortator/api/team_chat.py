"""Chats with `hortator/<role>`: which path a request takes, and what becomes of it there (R-000-32, R-000-14).

The doors for model calls ask `takes` and hand such calls over. Fast: one model call through the corridor with the role's words in front; no engine,
no database. Standard and complex, and patterns: a team (`orchestration/teams.py`), whose answer is said whole here and streamed by
`team_stream.py`. Everything is said in chat's dialect first; `wire/dialects.py` turns it into the client's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from math import inf
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from hortator.api import problem
from hortator.api.inference import EVENT_STREAM, Exchange, Manner, Seen, answer, respond
from hortator.api.reading import HangUp
from hortator.api.team_stream import TeamStream, abandon, outcome
from hortator.call import Call, Caller, Decision, ModelId, Path
from hortator.dispatch import Trace
from hortator.errors import Forbidden, InvalidRequest, NotFound, TaskEnded
from hortator.gateway import Choose, Gateway
from hortator.orchestration import domains
from hortator.orchestration.roles import PATTERN, PREFIX, Role, Roles
from hortator.orchestration.teams import Order, Teams
from hortator.routing import AUTO, Catalogue, decide, rules_of_path
from hortator.routing.auto import judge, route_header
from hortator.routing.catalogue import Entry, may_use
from hortator.routing.needs import needs
from hortator.routing.policy import inferred
from hortator.store.tasks import NewFile
from hortator.wire import dialects, orders, team_chat
from hortator.wire.body import Object
from hortator.wire.dialects import FORMS, Asked
from hortator.wire.fields import given, raw, text
from hortator.wire.orders import TEXT_PARTS
from hortator.wire.tasks import Pattern, TaskConfig, Tier
from hortator.wire.team_chat import Bound, Chunks, Tokens, Wanted

PATTERNS: Final[Mapping[Pattern, str]] = {
    "parallel": "Several requests answered at once",
    "workers": "A planner, workers for the parts, and one who puts them together",
    "optimize": "A text written, judged and improved until it is good enough",
    "smart": "The model that fits the request, within preferences",
}
"""What `hortator/pattern-<pattern>` are (R-002-4 to R-002-7)."""
TIER_OF: Final[Mapping[Path, Tier]] = {"fast": "legionary", "standard": "centurion", "complex": "tribune"}
PATH_OF: Final[Mapping[Tier, Path]] = {tier: path for path, tier in TIER_OF.items()}
"""Of one model call in the place of a team: as good a model as an agent of that tier would ask."""
BRIEF = 256
"""An answer of at most so many tokens is no work for a team."""

_SINGLE = ("tools", "functions", "response_format", "audio", "prediction", "logprobs", "web_search_options")
"""Fields that one model has to answer: the client runs tools itself, or reads what only a model's answer has."""
TEAM_PARTS = (*TEXT_PARTS, "file")
"""Parts of a message that a team can be told."""
_EMPTY = (b"null", b"[]", b"false")
_LIMITS: Final = {"chat": "max_completion_tokens", "responses": "max_output_tokens", "messages": "max_tokens"}
_SYSTEM = ("system", "developer")
_TOOLS = ("tool", "function")


class _Part(Struct):
    type: str = ""


class _Turn(Struct):
    """What of a message says who can answer it."""

    role: str = ""
    content: str | list[_Part] | None = None
    tool_calls: list[Raw] | None = None


class _Format(Struct):
    type: str = ""


_messages = msgspec.json.Decoder(list[Raw])
_turns = msgspec.json.Decoder(list[_Turn])
_format = msgspec.json.Decoder(_Format)


class Asking(NamedTuple):
    """A request to a role or a pattern, understood."""

    role: Role
    pattern: Pattern
    wanted: Wanted
    chat: Object
    """In chat's dialect; empty where it cannot be said there, and one model has to answer."""
    path: Path
    level: Path
    """How good a model has to be where one answers in the place of a team."""
    why: str
    """How the path was chosen, for `x-hortator-route`."""


class TeamChat:
    """One for each generation of rooms."""

    def __init__(self, gateway: Gateway, teams: Teams, roles: Roles, root_path: str = "") -> None:
        """`root_path` stands before addresses that clients are told."""
        self._gateway = gateway
        self._teams = teams
        self._roles = roles
        self._tasks = f"{root_path}/api/v1/tasks"
        self._models: Mapping[Tier, str | None] = {
            "tribune": gateway.agents.tribune,
            "centurion": gateway.agents.centurion,
            "legionary": gateway.agents.legionary,
        }
        found = [(role.model, role.description) for name in roles.names() if (role := roles.find(name)) is not None]
        found += [(f"{PREFIX}{PATTERN}{pattern}", text) for pattern, text in PATTERNS.items()]
        self._entries = [Entry(id=id, owned_by="hortator", description=text) for id, text in found]

    def takes(self, model: str) -> bool:
        """Whether a model is one of ours. What the operator has named `hortator/...` stays his."""
        return model.startswith(PREFIX) and self._gateway.catalogue().resolve(model) is None

    def visible(self, allowed: tuple[str, ...]) -> list[Entry]:
        """Return the roles and patterns that a key with these globs may use, for lists of models."""
        return [entry for entry in self._entries if self._may(allowed, entry.id) and self.takes(entry.id)]

    def entry(self, model: str, allowed: tuple[str, ...]) -> Entry | None:
        """Return the entry of a model by any of its spellings; None for what is not there or not the key's to use."""
        role = self._roles.find(model) if model.startswith(PREFIX) else None
        id = model if role is None else role.model
        found = next((entry for entry in self.visible(allowed) if entry.id == id), None)
        return None if found is None else replace(found, id=model)

    async def answer(
        self,
        exchange: Exchange,
        caller: Caller,
        call: Call,
        trace: Trace,
        manner: Manner,
        seen: Seen | None = None,
    ) -> None:
        """Answer a call to one of our models. Raises what its manner tells."""
        if call.wish.tenant_id is not None:
            caller = await self._gateway.on_behalf(caller, call.wish.tenant_id)
            call = replace(call, wish=replace(call.wish, tenant_id=None))
        later = exchange.headers.get(b"x-hortator-async", b"").lower() == b"true"
        asking = self._understood(caller, call, later=later)
        trace.route = (
            *route_header(asking.path, call.model, asking.why),
            (b"x-hortator-task-type", (call.wish.task_type or f"{inferred(call)}; inferred").encode()),
        )
        if asking.path == "fast" and not later:
            try:
                await self._fast(exchange, caller, call, trace, manner, seen, asking)
            except TaskEnded as ended:  # nobody was asked: the budget allows no answer
                await _unanswered(exchange, call, trace, manner, seen, Bound(ended.code, ended.message))
            return
        order = self._order(exchange, call, asking, interactive=not later)
        if later:
            await self._begin(exchange, caller, order, trace)
        elif call.stream:
            stream = TeamStream(self._teams, exchange, caller, call, trace, manner, seen)
            waits = self._gateway.rules.routed_status_wait_ms / 1000, self._gateway.keep_alive
            await stream.run(order, *waits, reasoning=asking.wanted.reasoning)
        else:
            await self._whole(exchange, caller, call, order, trace, manner, seen)

    # --- which path --------------------------------------------------------------------------------------------------

    def _understood(self, caller: Caller, call: Call, *, later: bool) -> Asking:
        """Say who is asked for what, and choose the path. `later`: a team has to take it. Raises NotFound, Forbidden, InvalidRequest."""
        pattern = _pattern(call.model)
        role = self._role(call.model if pattern == "team" else "default")
        if not self._may(caller.allowed_models, call.model):
            raise Forbidden(
                f"This key may not use the model '{call.model[:200]}'.", code="model_not_allowed", param="model"
            )
        wanted = team_chat.take(call.body, orders.ARGUMENTS[pattern])
        chat, field = _in_chat(call)
        field = field or _for_one(call, chat, pattern)
        if field is not None and (later or pattern != "team"):
            raise InvalidRequest(
                f"'{field}' cannot be served by a team of agents.", code="unsupported_parameter", param=field
            )
        judged = judge(call, self._gateway.rules)
        said = f"complexity={judged.score:.2f}"
        path: Path = judged.path if wanted.mode == "auto" else wanted.mode
        if field is not None:
            return Asking(role, pattern, wanted, chat, "fast", path, f"{said},{field}")
        if wanted.mode != "auto":
            said += ",hortator_mode"
        elif path != "fast" and _is_brief(chat):
            path, said = "fast", f"{said},max_tokens"
        elif path == "fast" and (wanted.config.capabilities or _has_files(chat)):
            path, said = "standard", f"{said},{'x_capabilities' if wanted.config.capabilities else 'files'}"
        if pattern != "team" and path == "fast":
            path = "standard"
        return Asking(role, pattern, wanted, chat, path, "fast", said)

    def _role(self, model: str) -> Role:
        role = self._roles.find(model)
        if role is not None:
            return role
        similar = self._roles.similar(model)
        hint = f" Did you mean {' or '.join(PREFIX + name for name in similar)}?" if similar else ""
        raise NotFound(
            f"The model '{model[:200]}' does not exist.{hint} GET /v1/models lists the models you may use.",
            code="model_not_found",
            param="model",
        )

    def _may(self, allowed: tuple[str, ...], model: str) -> bool:
        """Whether a key may use a role or a pattern, by any of the role's spellings."""
        role = self._roles.find(model)
        spellings = (model,) if role is None else role.spellings
        return any(may_use(allowed, spelling) for spelling in spellings)

    # --- fast: one model ---------------------------------------------------------------------------------------------

    async def _fast(
        self,
        exchange: Exchange,
        caller: Caller,
        call: Call,
        trace: Trace,
        manner: Manner,
        seen: Seen | None,
        asking: Asking,
    ) -> None:
        """Have one model answer as the role would."""
        config, role = asking.wanted.config, asking.role
        parameters = domains.check(role, call.wish.task_type or "chat", config.parameters)
        told = "\n\n".join(text for text in (role.instructions, domains.describe(parameters)) if text)
        _instruct(call, told)
        limits = _limits(call.body)
        longest = role.max_tokens if config.max_tokens is None else config.max_tokens
        if longest is not None and not limits:
            call.body[_LIMITS[call.operation]] = raw(longest)
        temperature = role.temperature if config.temperature is None else config.temperature
        if temperature is not None and given(call.body, "temperature") is None:
            call.body["temperature"] = raw(temperature)
        await answer(self._gateway, exchange, caller, call, trace, manner, seen, self._chooser(caller, call, asking))

    def _chooser(self, caller: Caller, call: Call, asking: Asking) -> Choose:
        """Return who decides where the one call goes: to the tier's model, or as routing chooses for the path."""
        config, rules = asking.wanted.config, self._gateway.rules
        level = asking.level if config.tier is None else PATH_OF[config.tier]
        own = config.model or (config.models or {}).get(TIER_OF[level])
        model = own or self._models[TIER_OF[level]] or AUTO
        # The operator chose what stands behind a role: a key for `hortator/*` alone may use it, but may not name other models.
        chooser = caller if own else replace(caller, allowed_models=("*",))

        def choose(catalogue: Catalogue) -> Decision:
            asked = replace(call, model=ModelId(model), wish=replace(call.wish, task_type=None))
            by = rules_of_path(rules, level) if model == AUTO and AUTO not in catalogue else rules
            found = decide(asked, chooser, catalogue, by)
            _cap(call, config, found, catalogue)
            headers = route_header("fast", found.model, asking.why)
            return replace(found, status_wait_ms=rules.routed_status_wait_ms, headers=headers)

        return choose

    # --- standard and complex: a team --------------------------------------------------------------------------------

    def _order(self, exchange: Exchange, call: Call, asking: Asking, *, interactive: bool) -> Order:
        """Return the order for a team. Raises InvalidRequest."""
        messages, files = team_chat.conversation(asking.chat["messages"])
        said = {"messages": messages, "pattern": asking.pattern, **_bounds(call), **asking.wanted.arguments}
        asked = orders.orchestration(msgspec.json.encode(said))
        key = exchange.headers.get(b"idempotency-key")
        return Order(
            messages=asked.messages,
            model=call.model,
            task_type=call.wish.task_type or "chat",
            source=call.operation,
            pattern=asking.pattern,
            arguments=asked.arguments,
            config=_settled(asking, *team_chat.limits(asking.chat)),
            files=[NewFile(file.path, file.content, file.media_type) for file in files],
            idempotency_key=None if key is None else key.decode("latin-1"),
            interactive=interactive,
            path=asking.path,
        )

    async def _begin(self, exchange: Exchange, caller: Caller, order: Order, trace: Trace) -> None:
        """Take an order that nobody waits for."""
        task = await self._teams.submit(caller, order)
        headers = [problem.JSON, (b"x-request-id", exchange.id.encode()), *trace.route]
        headers.append((b"x-hortator-task-id", task.id.encode()))
        document = {
            "task_id": task.id,
            "namespace": caller.namespace,
            "status": task.status,
            "message": f"Task created. Poll {self._tasks}/{task.id}/artifacts for results.",
        }
        await respond(exchange, 200, headers, msgspec.json.encode(document))

    async def _whole(
        self,
        exchange: Exchange,
        caller: Caller,
        call: Call,
        order: Order,
        trace: Trace,
        manner: Manner,
        seen: Seen | None,
    ) -> None:
        """Wait for the team's answer, and say it in one piece. A client that hangs up cancels the tree."""
        submitting = asyncio.ensure_future(self._teams.submit(caller, order))
        with HangUp(trace.hang_up, exchange.direct, exchange.receive):
            try:
                task = await asyncio.shield(submitting)
                trace.route = (*trace.route, (b"x-hortator-task-id", task.id.encode()))
                task = await self._teams.finished(caller, task.id)
            except asyncio.CancelledError as cancelled:
                if trace.hung_up:
                    await abandon(self._teams, caller, submitting)
                raise trace.failure(cancelled) from None
        content, reason, tokens, bound = outcome(task)
        created = int(call.received_at)
        body = team_chat.completion(f"chatcmpl-{task.id}", call.model, created, content, reason, tokens, bound)
        await _said(exchange, call, trace, manner, seen, body)


async def _said(
    exchange: Exchange, call: Call, trace: Trace, manner: Manner, seen: Seen | None, completion: bytes
) -> None:
    """Write a whole answer in the client's dialect."""
    about = Asked(call.body, call.id, call.received_at, True)
    body = completion if call.operation == "chat" else dialects.reply(call.operation, "chat", completion, about)
    if seen is not None:
        seen(body)
    headers = [problem.JSON, (b"x-request-id", exchange.id.encode()), *trace.route]
    if manner.also is not None:
        headers += manner.also([], exchange.id)
    await respond(exchange, 200, headers, body)


async def _unanswered(
    exchange: Exchange, call: Call, trace: Trace, manner: Manner, seen: Seen | None, bound: Bound
) -> None:
    """Write an answer of no text that says which bound allowed none (C-21)."""
    id, created, nothing = f"chatcmpl-{exchange.id}", int(call.received_at), Tokens(0, 0)
    if not call.stream:
        whole = team_chat.completion(id, call.model, created, "", "length", nothing, bound)
        await _said(exchange, call, trace, manner, seen, whole)
        return
    headers = [*EVENT_STREAM, (b"x-request-id", exchange.id.encode()), *trace.route]
    if manner.also is not None:
        headers += manner.also([], exchange.id)
    chunks = Chunks(id, call.model, created, call.wants_usage)
    reader = dialects.reader(call.operation, "chat", Asked(call.body, call.id, call.received_at, call.wants_usage))
    body = reader.feed([chunks.role(), chunks.finish("length", bound), chunks.usage(nothing)]) + reader.end()
    if seen is not None:
        seen(body)
    await respond(exchange, 200, headers, body)


def _pattern(model: str) -> Pattern:
    """Return the pattern that a model is; `team` for roles."""
    return next((pattern for pattern in PATTERNS if model == f"{PREFIX}{PATTERN}{pattern}"), "team")


def _in_chat(call: Call) -> tuple[Object, str | None]:
    """Return a request in chat's dialect; nothing, and the field in the way, where only a model of its own dialect can be told it."""
    into = FORMS[call.operation].to_chat
    if into is None:
        return call.body, None
    try:
        return into(call.body), None
    except InvalidRequest as error:
        return {}, error.param or "input"


def _for_one(call: Call, chat: Object, pattern: Pattern) -> str | None:
    """Return the first field that one model has to answer; None = a team can."""
    if call.wish.force_local:
        return "metadata.force_local"
    if call.wish.preferences is not None and pattern != "smart":
        return "hortator_preferences"
    for field in _SINGLE:
        if field not in chat or bytes(chat[field]) in _EMPTY:
            continue
        if field != "response_format" or _format.decode(chat[field]).type != "text":
            return field
    if given(chat, "n") not in (None, Raw(b"1")):
        return "n"
    turns = _turns.decode(chat["messages"])
    alone = any(turn.tool_calls or turn.role in _TOOLS or _is_seen_or_heard(turn) for turn in turns)
    return None if not alone and any(turn.role == "user" and turn.content for turn in turns) else "messages"


def _is_seen_or_heard(turn: _Turn) -> bool:
    """Whether a message holds what agents are not given: an image, sound."""
    return isinstance(turn.content, list) and any(part.type not in TEAM_PARTS for part in turn.content)


def _has_files(chat: Object) -> bool:
    contents = (turn.content for turn in _turns.decode(chat["messages"]))
    return any(part.type == "file" for content in contents if isinstance(content, list) for part in content)


def _is_brief(chat: Object) -> bool:
    longest, _ = team_chat.limits(chat)
    return longest is not None and longest <= BRIEF


def _limits(body: Object) -> list[str]:
    """Return the fields of a request that say how long the answer may be."""
    return [field for field in ("max_tokens", *_LIMITS.values()) if given(body, field) is not None]


def _instruct(call: Call, told: str) -> None:
    """Put the role's words in front of a request. They become one text with a system message that is there: many models take one."""
    body = call.body
    if call.operation == "responses":
        own = given(body, "instructions")
        body["instructions"] = raw(told if own is None else f"{told}\n\n{text(own, 'instructions')}")
        return
    if call.operation == "messages":
        system = msgspec.json.decode(body.get("system", b"null"))
        if isinstance(system, list):
            body["system"] = raw([{"type": "text", "text": told}, *system])
        else:
            body["system"] = raw(f"{told}\n\n{system}" if system else told)
        return
    if b'"file"' in bytes(body["messages"]):
        body["messages"] = team_chat.readable(body["messages"])
    first, *rest = _messages.decode(body["messages"])
    message = msgspec.json.decode(first)
    if message.get("role") not in _SYSTEM:
        body["messages"] = raw([{"role": "system", "content": told}, first, *rest])
        return
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = [{"type": "text", "text": told}, *content]
    else:
        message["content"] = f"{told}\n\n{content}" if content else told
    body["messages"] = raw([message, *rest])


def _cap(call: Call, config: TaskConfig, decision: Decision, catalogue: Catalogue) -> None:
    """Let the one answer be no longer than the budget allows. Raises TaskEnded where it allows none."""
    budget = config.budget
    if budget is None:
        return
    needed = needs(call.body)
    most = inf if budget.max_tokens is None else budget.max_tokens - needed.input_tokens
    if budget.max_cost_usd is not None:
        models = (decision.model, *(route.model for route in decision.fallbacks))
        for card in (card for model in models for card in catalogue.cards(model)):
            left = float(budget.max_cost_usd) * 1_000_000 - (card.price_input or 0) * needed.input_tokens
            most = min(most, left / card.price_output if card.price_output else inf if left >= 0 else 0)
    if most == inf:
        return
    if most < 1:
        raise TaskEnded("The budget allows no answer to a request of this length.", code="task_budget_exceeded")
    if needed.output_tokens is None or needed.output_tokens > most:
        for field in _limits(call.body) or [_LIMITS[call.operation]]:
            call.body[field] = raw(int(most))


def _bounds(call: Call) -> dict[str, Any]:
    """Return the client's preferences as the pattern `smart` is told them."""
    chosen = call.wish.preferences
    if chosen is None:
        return {}
    said = {"maxCost": chosen.max_cost, "maxLatency": chosen.max_latency, "minQuality": chosen.min_quality}
    return {"preferences": {name: value for name, value in said.items() if value is not None}}


def _settled(asking: Asking, longest: int | None, temperature: float | None) -> TaskConfig:
    """Return how a team is to work, with what chat's own fields say. What nobody says follows from the path (R-000-36, R-000-37)."""
    config = asking.wanted.config
    decided = {"max_tokens": longest, "temperature": temperature}
    return replace(config, **{name: value for name, value in decided.items() if getattr(config, name) is None})
