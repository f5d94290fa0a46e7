"""The messages dialect (Anthropic's): what a request must look like, and what a whole reply says about itself.

The messages door parses requests here; dispatch reads whole replies of providers that speak it. As in `chat.py` a request is
kept as its top level, `dict[str, Raw]`, so that what passes through passes unchanged. Translation to and from the pivot, the
chat-completions dialect, is in `messages_to_chat.py`, `chat_to_messages.py`, `messages_reply.py` and `messages_stream.py`.
Source of the field list: the API reference as typed by the anthropic package 2.11.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from hortator.errors import InvalidReply
from hortator.wire.body import Object, ParsedRequest, parse_as
from hortator.wire.chat import WholeReply, WireUsage
from hortator.wire.chat_to_messages import from_chat
from hortator.wire.messages_reply import MessageUsage, reply_from_chat, reply_to_chat, wire_usage
from hortator.wire.messages_to_chat import to_chat, to_plain_chat

__all__ = [
    "estimate_tokens",
    "from_chat",
    "parse",
    "parse_count",
    "read_count",
    "read_whole",
    "reply_from_chat",
    "reply_to_chat",
    "to_chat",
    "to_plain_chat",
]


class ContentBlock(Struct):
    """One block of a message's content. Only its type is checked here: text, image, document, tool_use, tool_result, ..."""

    type: str


class Turn(Struct):
    """One turn. Roles are not closed: user, assistant, system today."""

    role: str
    content: str | list[ContentBlock]


class ClientTool(Struct):
    """A tool; those without a type, or of type `custom`, carry their own schema."""

    name: str | None = None
    type: str | None = None
    input_schema: Object | None = None


class ToolChoice(Struct):
    """`auto`, `any`, `tool` with a name, `none`."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Struct):
    """`enabled` with a budget, `adaptive`, `between_tools`, `disabled`."""

    type: str
    budget_tokens: int | None = None


class OutputConfig(Struct):
    """How hard to think, and the form of the answer."""

    effort: str | None = None
    format: Object | None = None


class Metadata(Struct):
    """About the request."""

    user_id: str | None = None


class CountRequest(Struct):
    """What counting tokens needs; the same fields as a message without its answer."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    messages: Annotated[list[Turn], Meta(min_length=1)]
    system: str | list[ContentBlock] | None = None
    tools: list[ClientTool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: Object | None = None


class MessagesRequest(CountRequest, kw_only=True):
    """The types of all documented parameters; decoding into it is the validation. Unknown fields are ignored here and pass."""

    max_tokens: Annotated[int, Meta(ge=0)]
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    metadata: Metadata | None = None
    container: str | Object | None = None
    diagnostics: Object | None = None
    inference_geo: str | None = None
    service_tier: str | None = None
    speed: str | None = None


class _Whole(Struct):
    """A whole reply, as far as the gateway reads it."""

    type: str | None = None
    model: str | None = None
    content: list[Raw] | UnsetType = UNSET
    usage: MessageUsage | None = None
    error: Any = None


class _Count(Struct):
    """What a provider says when it counts."""

    input_tokens: int


_COUNTED = ("system", "messages", "tools")
_CHARACTERS_A_TOKEN = 4
_ATTACHMENT_TOKENS = 1500
_message = msgspec.json.Decoder(MessagesRequest)
_counted = msgspec.json.Decoder(_Count)
_count = msgspec.json.Decoder(CountRequest)
_whole = msgspec.json.Decoder(_Whole)


def parse(body: bytes) -> ParsedRequest:
    """Validate a request body. Raises InvalidRequest with a stable code and the offending field as `param`.

    `wants_usage` is true for every stream: this dialect always tells it.
    """
    top, request = parse_as(body, _message)
    stream = bool(request.stream)
    return ParsedRequest(top, request.model, stream, stream)


def parse_count(body: bytes) -> ParsedRequest:
    """Validate the body of a request to count tokens. Raises InvalidRequest."""
    top, request = parse_as(body, _count)
    return ParsedRequest(top, request.model, False, False)


def read_whole(body: bytes) -> WholeReply:
    """Check that a whole reply is a message; its usage comes in the pivot's terms. Raises InvalidReply."""
    try:
        if not body.isascii():
            body.decode()
        reply = _whole.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidReply("The provider's reply is not a message.") from None
    if reply.error:
        return WholeReply(error=reply.error)
    if reply.content is UNSET:
        raise InvalidReply("The provider's reply is not a message.")
    usage: WireUsage | None = None if reply.usage is None else wire_usage(reply.usage)
    return WholeReply(choices=[], model=reply.model, usage=usage)


def read_count(body: bytes) -> int | None:
    """Return the tokens that a provider counted, None when it says something else."""
    try:
        return _counted.decode(body).input_tokens
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def estimate_tokens(body: Object) -> int:
    """Estimate a request's tokens, for providers that do not count: four characters a token, and a fixed number an image or file."""
    characters, attachments = 0, 0
    waiting: list[Any] = [msgspec.json.decode(body[name]) for name in _COUNTED if name in body]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            characters += len(value)
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            if value.get("type") in ("base64", "url", "file") and value.keys() & {"data", "url", "file_id"}:
                attachments += 1
                continue
            waiting += value.values()
            characters += sum(map(len, value))
    return max(1, -(-characters // _CHARACTERS_A_TOKEN) + attachments * _ATTACHMENT_TOKENS)
