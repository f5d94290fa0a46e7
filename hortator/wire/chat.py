"""The chat-completions dialect: what a request must look like, and what a whole reply says about itself.

The door parses requests here; dispatch reads whole replies here (streams: `chat_stream.py`). Values are never re-encoded:
a request is kept as its top level, `dict[str, Raw]`, so that unknown fields and number spellings survive to the upstream.
Source of the field list: the OpenAI API reference as typed by openai-python 3.52.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from hortator.errors import InvalidReply
from hortator.wire.body import Object, ParsedRequest, parse_as


class Part(Struct):
    """One part of a message's content. Only its type is ours to check: text, image_url, input_audio, file, refusal, ..."""

    type: str


class Message(Struct):
    """One message. Roles are not closed: developer, system, user, assistant, tool, function today."""

    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[Object] | None = None
    tool_call_id: str | None = None


class Tool(Struct):
    """A tool the model may call: `function`, `custom`, or what a provider adds."""

    type: str


class StreamOptions(Struct):
    """`include_usage` asks for the usage chunk; other options pass through."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatRequest(Struct):
    """The types of all documented parameters; decoding into it is the validation. Unknown fields are ignored here and pass."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    messages: Annotated[list[Message], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    audio: Object | None = None
    frequency_penalty: float | None = None
    function_call: str | Object | None = None
    functions: list[Object] | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    metadata: dict[str, str | bool | int | float | None] | None = None
    modalities: list[str] | None = None
    n: int | None = None
    parallel_tool_calls: bool | None = None
    prediction: Object | None = None
    presence_penalty: float | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Object | None = None
    prompt_cache_retention: str | None = None
    reasoning_effort: str | None = None
    response_format: Object | None = None
    safety_identifier: str | None = None
    seed: int | None = None
    service_tier: str | None = None
    stop: str | list[str] | None = None
    store: bool | None = None
    temperature: float | None = None
    tool_choice: str | Object | None = None
    tools: list[Tool] | None = None
    top_logprobs: int | None = None
    top_p: float | None = None
    user: str | None = None
    verbosity: str | None = None
    web_search_options: Object | None = None


class TokenDetails(Struct):
    """Details of either side of the usage; each provider fills some."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None


class WireUsage(Struct):
    """`usage` as providers send it. `prompt_cache_hit_tokens` is DeepSeek's name for cached tokens."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: TokenDetails | None = None
    completion_tokens_details: TokenDetails | None = None
    prompt_cache_hit_tokens: int | None = None


class WholeReply(Struct):
    """What the gateway reads of a completion that came in one piece."""

    choices: list[Raw] | UnsetType = UNSET
    model: str | None = None
    usage: WireUsage | None = None
    error: Any = None


_request = msgspec.json.Decoder(ChatRequest)
_whole_reply = msgspec.json.Decoder(WholeReply)


def parse(body: bytes) -> ParsedRequest:
    """Validate a request body. Raises InvalidRequest with a stable code and the offending field as `param`."""
    top, request = parse_as(body, _request)
    options = request.stream_options
    stream = bool(request.stream)
    return ParsedRequest(top, request.model, stream, bool(stream and options and options.include_usage))


def read_whole(body: bytes) -> WholeReply:
    """Check that a whole reply is a chat completion. Raises InvalidReply."""
    try:
        if not body.isascii():
            body.decode()  # the decoder does not look into the values that pass through
        reply = _whole_reply.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidReply("The provider's reply is not a chat completion.") from None
    if reply.choices is UNSET and not reply.error:
        raise InvalidReply("The provider's reply is not a chat completion.")
    return reply
