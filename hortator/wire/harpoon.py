"""Harpoon v2's dialect, `/api`: what its clients send and read, and how a prompt becomes a chat completion and back.

The door parses requests and writes replies here. Field names are theirs (`costPer1M`, `contextWindow`); numbers that nobody knows are
null.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from hortator.errors import InvalidReply, InvalidRequest
from hortator.wire.body import Object, parse_as

Tier = Literal["primary", "edge", "flagship", "local"]

TEMPERATURE = 0.7
MAX_TOKENS = 1024
MAX_BATCH = 100
"""Most requests of a batch."""


class ChatOrder(Struct, frozen=True):
    """A prompt. Fields that are not known are passed over, as Harpoon does."""

    prompt: str | None = None
    model: Annotated[str, Meta(min_length=1, max_length=512)] | None = None
    """None = smart routing, among the models of `tier` where it is given."""
    tier: Tier | None = None
    temperature: float | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None


class BatchOrder(Struct, frozen=True):
    """Several prompts."""

    requests: Annotated[list[Raw], Meta(max_length=MAX_BATCH)] | None = None


class Model(Struct, frozen=True, rename="camel", kw_only=True):
    """One model."""

    id: str
    provider: str
    tier: Tier | None
    speed: float | None
    """Tokens a second."""
    cost_per_1m: Annotated[float | None, Meta(description="US dollars, one blended figure")] = msgspec.field(
        name="costPer1M"
    )
    context_window: int | None
    capabilities: list[str]
    description: str


class ModelList(Struct, frozen=True):
    """The models that a key may use."""

    total: int
    models: list[Model]


class Tokens(Struct, frozen=True):
    """What a prompt and its answer took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Performance(Struct, frozen=True):
    """How quick it was."""

    latency_ms: int
    tokens_per_second: float


class Cost(Struct, frozen=True):
    """What it cost; null = no price is known."""

    amount: Decimal | None
    currency: Literal["USD"] = "USD"


class Routed(Struct, frozen=True):
    """Which model was chosen, and why."""

    decision: str
    reasoning: str


class ChatReply(Struct, frozen=True, kw_only=True):
    """An answer."""

    content: str
    model: str
    """The deployment that answered."""
    provider: str
    tier: Tier | None
    usage: Tokens
    performance: Performance
    cost: Cost
    routing: Routed


class RouteDecision(Struct, frozen=True, kw_only=True):
    """Which model would answer."""

    selected_model: Model
    fallback_models: list[Model]
    """Up to two that stand by."""
    reasoning: str
    estimated_cost: float | None
    """US dollars; null = no price is known."""
    estimated_latency: float | None
    """Milliseconds; null = not known."""


class RouteReply(Struct, frozen=True):
    """What would be done with a prompt."""

    decision: RouteDecision
    explanation: str
    """The same for people, in Markdown."""


class _Message(Struct):
    content: str | None = None


class _Choice(Struct):
    message: _Message


class _Completion(Struct):
    choices: list[_Choice]


SCHEMAS: tuple[type[Struct], ...] = (ChatOrder, ChatReply, BatchOrder, Model, ModelList, RouteReply)

_chat = msgspec.json.Decoder(ChatOrder)
_batch = msgspec.json.Decoder(BatchOrder)
_completion = msgspec.json.Decoder(_Completion)


def parse_chat(body: bytes) -> ChatOrder:
    """Read a prompt. Raises InvalidRequest."""
    _, order = parse_as(body, _chat)
    if not order.prompt:
        raise InvalidRequest("Prompt is required", code="missing_required_parameter", param="prompt")
    return order


def parse_batch(body: bytes) -> list[Raw]:
    """Read the requests of a batch; each is read later, so that one bad request fails alone. Raises InvalidRequest."""
    _, order = parse_as(body, _batch)
    if order.requests is None:
        raise InvalidRequest("requests array is required", code="missing_required_parameter", param="requests")
    return order.requests


def completion_body(order: ChatOrder, model: str) -> Object:
    """Return the chat completion that a prompt asks for."""
    document: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": order.prompt}],
        "temperature": TEMPERATURE if order.temperature is None else order.temperature,
        "max_tokens": order.max_tokens or MAX_TOKENS,
    }
    return {name: Raw(msgspec.json.encode(value)) for name, value in document.items()}


def content_of(completion: bytes) -> str:
    """Return the text of a chat completion. Raises InvalidReply."""
    try:
        found = _completion.decode(completion)
    except (msgspec.DecodeError, RecursionError):
        raise InvalidReply("The provider's reply holds no text.") from None
    return "" if not found.choices else found.choices[0].message.content or ""
