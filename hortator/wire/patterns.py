"""Harpoon's patterns, `/api/orchestrate`: what its clients send and read (R-002-4 to R-002-7), and what becomes of a tree in its words.

The door parses requests and writes replies here. Fields that are not known are passed over, as Harpoon does; the room of teams gets the
pattern's fields under Harpoon's names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from hortator.errors import InvalidRequest
from hortator.wire.body import parse_as
from hortator.wire.chat import Message
from hortator.wire.orders import MAX_REQUESTS
from hortator.wire.tasks import Name, Pattern

NAMES: Mapping[Pattern, str] = {
    "parallel": "parallelization",
    "workers": "orchestrator-workers",
    "optimize": "evaluator-optimizer",
    "smart": "smart-router",
}
"""What Harpoon calls them in `metadata.pattern`; keys are the last parts of their paths."""


class OnePrompt(Struct, frozen=True, kw_only=True):
    """One request of `parallel`: messages, or a prompt."""

    messages: list[Message] | None = None
    prompt: str | None = None
    model: Name | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None


class ParallelOrder(Struct, frozen=True, kw_only=True):
    """The body of `POST /api/orchestrate/parallel`."""

    requests: Annotated[list[OnePrompt], Meta(max_length=MAX_REQUESTS)] | None = None


class WorkersOrder(Struct, frozen=True, kw_only=True):
    """The body of `POST /api/orchestrate/workers`."""

    prompt: str | None = None
    context: str | None = None
    orchestrator_model: Name | None = None
    worker_model: Name | None = None


class OptimizeOrder(Struct, frozen=True, kw_only=True):
    """The body of `POST /api/orchestrate/optimize`."""

    task: str | None = None
    quality_threshold: Annotated[float, Meta(ge=0, le=10)] | None = None
    max_iterations: Annotated[int, Meta(ge=1)] | None = None
    generator_model: Name | None = None
    evaluator_model: Name | None = None


class Preferred(Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Bounds on the model that may answer."""

    max_cost: Annotated[float, Meta(ge=0, description="US dollars")] | None = None
    max_latency: Annotated[float, Meta(ge=0, description="milliseconds")] | None = None
    min_quality: Annotated[float, Meta(ge=0, le=10)] | None = None


class SmartOrder(Struct, frozen=True, kw_only=True):
    """The body of `POST /api/orchestrate/smart`."""

    prompt: str | None = None
    preferences: Preferred | None = None


class OrchestrationMetadata(Struct, frozen=True, kw_only=True):
    """How an orchestration went."""

    pattern: str
    duration_ms: int
    cost_estimate: Annotated[Decimal | None, Meta(description="US dollars; null = no price is known")]
    models_used: list[str]


class OrchestrationReply(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The reply of every pattern. `data` is the pattern's own; it is there too where only a part succeeded."""

    success: bool
    data: Any = None
    error: str | None = None
    metadata: OrchestrationMetadata


class AgentsStatus(Struct, frozen=True, kw_only=True):
    """The reply of `GET /api/agents/status`."""

    agents_enabled: bool
    mode: Literal["embedded", "disabled"]
    mediator: str | None
    """Where requests go that may become a team's."""
    orchestrator: str | None
    """Where teams are ordered."""
    websockets: str | None
    message: str


class Wanted(NamedTuple):
    """An order, understood."""

    messages: tuple[Mapping[str, Any], ...]
    arguments: dict[str, Any]
    """Fields of the pattern that were said."""


SCHEMAS: tuple[type[Struct], ...] = (
    ParallelOrder,
    WorkersOrder,
    OptimizeOrder,
    SmartOrder,
    OrchestrationReply,
    AgentsStatus,
)
MODELS = ("orchestrator_model", "worker_model", "generator_model", "evaluator_model")
"""Fields that name a model; each request of `parallel` has a `model`."""

_ORDERS: Mapping[Pattern, tuple[type[Struct], str]] = {
    "parallel": (ParallelOrder, "requests"),
    "workers": (WorkersOrder, "prompt"),
    "optimize": (OptimizeOrder, "task"),
    "smart": (SmartOrder, "prompt"),
}
"""The body of each pattern, and the field that it needs."""
_decoders = {pattern: msgspec.json.Decoder(kind) for pattern, (kind, _) in _ORDERS.items()}


def parse(pattern: Pattern, body: bytes) -> Wanted:
    """Read an order. Raises InvalidRequest."""
    top, said = parse_as(body, _decoders[pattern])
    needed = _ORDERS[pattern][1]
    given = getattr(said, needed)
    if not given or (isinstance(given, str) and not given.strip()):
        text = "requests array is required" if needed == "requests" else f"{needed} is required"
        raise InvalidRequest(text, code="missing_required_parameter", param=needed)
    if isinstance(said, ParallelOrder):
        whole = msgspec.json.decode(top["requests"])
        return Wanted((), {"requests": [_one(at, one, whole[at]) for at, one in enumerate(said.requests or ())]})
    fields = {name: getattr(said, name) for name in said.__struct_fields__ if name != needed}
    arguments = {name: msgspec.to_builtins(value) for name, value in fields.items() if value is not None}
    return Wanted(({"role": "user", "content": given},), arguments)


def _one(at: int, one: OnePrompt, whole: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request of `parallel`; its messages are kept as they came."""
    if not one.messages and not one.prompt:
        text = f"requests[{at}] needs messages or a prompt"
        raise InvalidRequest(text, code="missing_required_parameter", param=f"requests[{at}].messages")
    messages = whole["messages"] if one.messages else [{"role": "user", "content": one.prompt}]
    fields = {name: getattr(one, name) for name in ("model", "temperature", "max_tokens")}
    return {"messages": messages, **{name: value for name, value in fields.items() if value is not None}}


def names(arguments: Mapping[str, Any]) -> Sequence[str]:
    """Return every model that an order names."""
    listed = [one.get("model") for one in arguments.get("requests", ())]
    return [name for name in (*(arguments.get(field) for field in MODELS), *listed) if name]


def renamed(arguments: Mapping[str, Any], to: Mapping[str, str]) -> dict[str, Any]:
    """Return an order's fields with its models under other names."""
    found = {name: to.get(value, value) if name in MODELS else value for name, value in arguments.items()}
    if "requests" in found:
        found["requests"] = [{**one, "model": to[one["model"]]} if "model" in one else one for one in found["requests"]]
    return found
