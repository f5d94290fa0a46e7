"""The corridor as agents see it: their model calls are admitted, limited, priced and recorded like a client's.

The composition of orchestration makes one and gives it to the room as its `ports.Corridor`. It turns an `Ask` into a `Call` in the chat
dialect, lets the gateway of the moment walk it, and reads the answer. It chooses no model but by handing routing the path of the tier.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import msgspec
import uuid_utils
from msgspec import UNSET, Raw, Struct
from msgspec.structs import replace

from hortator.call import (
    Call,
    Caller,
    Decision,
    Deployment,
    KeyHash,
    ModelId,
    Path,
    Priority,
    ProviderId,
    RequestId,
    TenantId,
    Usage,
    Wish,
)
from hortator.dispatch import Trace
from hortator.errors import HortatorError, InvalidReply
from hortator.gateway import Gateway
from hortator.ledger import PriceBook
from hortator.ledger.records import Recorder
from hortator.orchestration.ports import Answer, Ask, Estimate, Spent, ToolCall
from hortator.routing import AUTO, Catalogue, Rules, decide, rules_by_tier, rules_of_path
from hortator.settings import TierModels
from hortator.store.tables import MONEY_SCALE
from hortator.tenancy import Identity
from hortator.tenancy.admission import CLASSES
from hortator.wire.body import Object
from hortator.wire.chat_stream import Chunk
from hortator.wire.sse import EventSplitter

BYTES_A_TOKEN = 4
PATHS: Mapping[str, Path] = {"tribune": "complex", "centurion": "standard", "legionary": "fast"}
"""The order of models for agents of a tier, where none is named: who plans and writes needs a good one, who works a cheap one."""


class _Function(Struct, frozen=True):
    name: str = ""
    arguments: str = ""


class _Called(Struct, frozen=True):
    id: str = ""
    function: _Function = _Function()


class _Message(Struct, frozen=True):
    content: str | None = None
    tool_calls: list[_Called] | None = None


class _Choice(Struct, frozen=True):
    message: _Message
    finish_reason: str | None = None


class _Completion(Struct, frozen=True):
    choices: list[_Choice]


_ANYONE = Caller(tenant_id=TenantId(""), key_hash=KeyHash(""), key_name="")
_whole = msgspec.json.Decoder(_Completion)
_chunk = msgspec.json.Decoder(Chunk)


class AgentCalls:
    """One per process; `current` tells the gateway and the prices of the configuration that serves now."""

    def __init__(
        self,
        current: Callable[[], tuple[Gateway, PriceBook]],
        identity: Identity,
        models: TierModels,
        newer_limit: frozenset[str],
    ) -> None:
        """`newer_limit`: providers whose models want `max_completion_tokens`."""
        self._current = current
        self._identity = identity
        self._models: Mapping[str, str | None] = {
            "tribune": models.tribune,
            "centurion": models.centurion,
            "legionary": models.legionary,
        }
        self._newer_limit = newer_limit
        self._rules: tuple[Rules, dict[str, Rules]] | None = None
        """By tier; the tier `auto` has what is right for the request's complexity."""

    async def caller(self, key_hash: str, priority: str) -> Caller:
        """Who an agent works for, at the lower of its key's priority and this one. Raises Unauthenticated, Unavailable.

        What the key may name was checked when the tree was ordered: a key for `hortator/*` alone gets a team that works with any model.
        """
        caller = await self._identity.holder(KeyHash(key_hash))
        asked: Priority = "high" if priority == "high" else "low" if priority == "low" else "standard"
        lower = max(caller.priority, asked, key=CLASSES.index)
        return replace(caller, priority=lower, allowed_models=("*",))

    def estimate(self, caller: Caller, ask: Ask) -> Estimate:
        """What a call may take. Raises what routing raises."""
        gateway, prices = self._current()
        decision = self._decide(gateway, caller, ask.tier, self._call(ask, stream=False), gateway.catalogue())
        places = _places(decision)
        size = len(msgspec.json.encode((ask.messages, ask.tools, ask.response_format)))
        tokens = Usage(input=1_000_000, output=0), Usage(input=0, output=1_000_000)
        read, written = (_dearest(prices, places, usage) for usage in tokens)
        return Estimate(input_tokens=size // BYTES_A_TOKEN + 1, input_price=read, output_price=written)

    async def ask(self, caller: Caller, ask: Ask) -> Answer:
        """Make a call. Raises HortatorError, or Spent around one that was charged for."""
        gateway, prices = self._current()
        call = self._call(ask, stream=ask.on_text is not None)
        decision: list[Decision] = []

        def choose(catalogue: Catalogue) -> Decision:
            decision.append(self._decide(gateway, caller, ask.tier, call, catalogue))
            self._limit(call.body, ask, decision[0])
            return decision[0]

        trace = Trace()
        # Whoever cancels such a call wants no answer any more: it is recorded like one whose client hung up.
        trace.hang_up()
        try:
            if ask.on_text is None:
                message = _read_whole(await gateway.complete(caller, call, trace, choose))
            else:
                message = await _read_stream(gateway, caller, call, trace, choose, ask.on_text)
        except Exception as error:
            cost = _cost(prices, trace, call)
            if cost:
                raise Spent(trace.usage, cost) from error
            raise
        text, tools, finish = message
        deployment, chosen = trace.deployment, decision[0]
        assert deployment is not None
        return Answer(
            text=text,
            tool_calls=tools,
            finish_reason=finish,
            usage=trace.usage,
            cost=_cost(prices, trace, call),
            deployment=deployment.id,
            request_id=call.id,
            latency_ms=(time.monotonic() - call.started) * 1000,
            attempts=trace.tries,
            chosen=chosen.model,
            reasoning=_reasoning(chosen),
            fell_back=deployment not in chosen.candidates,
        )

    def served(self, model: str) -> bool:
        """Whether there is a model of that name."""
        gateway, _ = self._current()
        return gateway.catalogue().resolve(model) is not None

    def providers(self) -> set[ProviderId]:
        """Where routing would send agents of each tier first."""
        gateway, _ = self._current()
        catalogue = gateway.catalogue()
        found: set[ProviderId] = set()
        for tier in PATHS:
            ask = Ask(task_id="", root_id="", messages=({"role": "user", "content": ""},), tier=tier)
            try:
                decision = self._decide(gateway, _ANYONE, tier, self._call(ask, stream=False), catalogue)
            except HortatorError:
                continue  # nothing is served for that tier now; its first agent will be told
            found.add(decision.candidates[0].provider)
        return found

    def _call(self, ask: Ask, *, stream: bool) -> Call:
        """Return the call that an agent's question means."""
        body: dict[str, Any] = {"messages": ask.messages}
        for name in ("temperature", "tools", "response_format"):
            value = getattr(ask, name)
            if value not in (None, ()):
                body[name] = value
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        model = ask.model or self._models.get(ask.tier) or AUTO
        return Call(
            id=RequestId(ask.request_id or f"req_{uuid_utils.uuid7().hex}"),
            operation="chat",
            model=ModelId(model),
            body={name: Raw(msgspec.json.encode(value)) for name, value in {"model": model, **body}.items()},
            stream=stream,
            wants_usage=stream,
            started=time.monotonic(),
            received_at=time.time(),
            session=ask.root_id.encode(),
            wish=Wish(task_type=ask.task_type, preferences=ask.preferences),
            task_id=ask.task_id,
        )

    def _decide(self, gateway: Gateway, caller: Caller, tier: str, call: Call, catalogue: Catalogue) -> Decision:
        """Decide for the model that is named, or let routing choose by the path of the agent's tier."""
        if call.model != AUTO or AUTO in catalogue:
            return decide(call, caller, catalogue, gateway.rules)
        if self._rules is None or self._rules[0] is not gateway.rules:
            rules = {path: rules_of_path(gateway.rules, path) for path in PATHS.values()}
            self._rules = (
                gateway.rules,
                {**{tier: rules[path] for tier, path in PATHS.items()}, AUTO: _free(gateway.rules)},
            )
        free = replace(call, wish=replace(call.wish, task_type=None))
        by = self._rules[1]
        return decide(free, caller, catalogue, by.get(tier) or by["centurion"])

    def _limit(self, body: Object, ask: Ask, decision: Decision) -> None:
        """Say how long the answer may be, in the field that the provider wants."""
        if ask.max_tokens is not None:
            newer = any(place.provider in self._newer_limit for place in _places(decision))
            body["max_completion_tokens" if newer else "max_tokens"] = Raw(b"%d" % ask.max_tokens)


def _free(rules: Rules) -> Rules:
    """Return rules by which a request's complexity decides."""
    return rules_by_tier(rules)[None]


def _reasoning(decision: Decision) -> str:
    """Return why routing chose a model; empty where it was named."""
    if decision.path is None:
        return ""
    score = "" if decision.score is None else f"complexity {decision.score:.2f}, "
    return f"{score}path {decision.path}" + (f": {'; '.join(decision.reasons)}" if decision.reasons else "")


def _places(decision: Decision) -> list[Deployment]:
    """Return everywhere a call may go."""
    return [*decision.candidates, *(place for route in decision.fallbacks for place in route.candidates)]


def _dearest(prices: PriceBook, places: list[Deployment], usage: Usage) -> Decimal | None:
    """Return the dearest price of one token of that kind; None where no place has a price."""
    costs = [cost for place in places if (cost := prices.cost(place, None, usage)) is not None]
    return max(costs) / 1_000_000 if costs else None


def _cost(prices: PriceBook, trace: Trace, call: Call) -> Decimal | None:
    """Return what a call cost, as its record says."""
    units = Recorder(prices).cost(
        trace.deployment, tuple(trace.attempts), trace.response_model, call.received_at, trace.usage
    )
    return None if units is None else Decimal(units).scaleb(-MONEY_SCALE)


Message = tuple[str, tuple[ToolCall, ...], str]


def _read_whole(body: bytes) -> Message:
    """Return text, tool calls and finish reason of a completion. Raises InvalidReply."""
    try:
        choice = _whole.decode(body).choices[0]
    except (msgspec.DecodeError, IndexError):
        raise InvalidReply("The provider's answer is not a chat completion with text.") from None
    called = choice.message.tool_calls or []
    tools = tuple(ToolCall(id=one.id, name=one.function.name, arguments=one.function.arguments) for one in called)
    return choice.message.content or "", tools, choice.finish_reason or "stop"


async def _read_stream(
    gateway: Gateway,
    caller: Caller,
    call: Call,
    trace: Trace,
    choose: Callable[[Catalogue], Decision],
    on_text: Callable[[str], None],
) -> Message:
    """Take a streamed answer in, telling its text as it comes. Raises what ended it early."""
    streamed = await gateway.stream(caller, call, trace, choose)
    reader = _Reader(on_text)
    failure: BaseException | None = None
    try:
        while (piece := await streamed.next()) is not None:
            reader.feed(piece)
    except BaseException as error:
        failure = error
        raise
    finally:
        await streamed.finish(failure)
    return reader.message()


class _Reader:
    """Puts a streamed answer together."""

    def __init__(self, on_text: Callable[[str], None]) -> None:
        self._on_text = on_text
        self._events = EventSplitter()
        self._text: list[str] = []
        self._tools: dict[int, list[str]] = {}
        self._finish = "stop"

    def feed(self, piece: bytes) -> None:
        """Take events in."""
        for payload in self._events.feed(piece):
            if payload != b"[DONE]":
                self._chunk(_chunk.decode(payload))

    def _chunk(self, chunk: Chunk) -> None:
        choices = chunk.choices
        if not isinstance(choices, list) or not choices:
            return
        choice = choices[0]
        if isinstance(choice.finish_reason, str):
            self._finish = choice.finish_reason
        delta = choice.delta
        if delta is None or delta is UNSET:
            return
        if isinstance(delta.content, str) and delta.content:
            self._text.append(delta.content)
            self._on_text(delta.content)
        if isinstance(delta.tool_calls, list):
            for place, tool in enumerate(delta.tool_calls):
                parts = self._tools.setdefault(tool.index if isinstance(tool.index, int) else place, ["", "", ""])
                if isinstance(tool.id, str):
                    parts[0] = tool.id
                if tool.function is not None and tool.function is not UNSET:
                    parts[1] += tool.function.name if isinstance(tool.function.name, str) else ""
                    parts[2] += tool.function.arguments if isinstance(tool.function.arguments, str) else ""

    def message(self) -> Message:
        """Return text, tool calls and finish reason."""
        tools = tuple(ToolCall(id=id, name=name, arguments=said) for id, name, said in self._tools.values())
        return "".join(self._text), tools, self._finish
