"""Whole replies between the messages dialect and the chat dialect, and what both kinds of translation share: why a model
stopped, and what it used.

`messages_stream.py` does the same for streams. What the other dialect has no place for is carried in extension fields:
`thinking_blocks` and `anthropic_blocks` of a message, `native_finish_reason` and `stop_reason` of a choice. Pure: times and ids are
arguments.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from hortator.errors import InvalidReply
from hortator.wire.chat import TokenDetails, WireUsage
from hortator.wire.chat_to_messages import arguments

FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""`stop_reason` in chat's words. Those that share a word are told apart by `native_finish_reason`."""

STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}

_TIERS = {"standard": "default", "priority": "priority", "batch": "batch"}
_OWN_TIERS = {ours: theirs for theirs, ours in _TIERS.items()}
_encode = msgspec.json.encode


class OutputDetails(Struct):
    """What the output was used for."""

    thinking_tokens: int | None = None


class MessageUsage(Struct):
    """`usage` of a message. Its input leaves out what was read from or written to the cache."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    output_tokens_details: OutputDetails | None = None
    service_tier: str | None = None


class StopDetails(Struct):
    """Why the model refused."""

    explanation: str | None = None


class Message(Struct):
    """A whole message, as far as it can be told in chat."""

    content: list[Raw]
    id: str = ""
    model: str = ""
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: StopDetails | None = None
    usage: MessageUsage | None = None


class Block(Struct):
    """A block of a message's content."""

    type: str
    text: str = ""
    id: str = ""
    name: str = ""
    input: Raw = Raw(b"{}")
    thinking: str = ""
    citations: list[Any] | None = None


class Function(Struct, frozen=True):
    """The function of a call."""

    name: str = ""
    arguments: str | None = None


class ToolCall(Struct):
    """A call of a chat message."""

    id: str = ""
    function: Function = Function()


class ChatMessage(Struct, frozen=True):
    """The message of a choice."""

    content: str | list[dict[str, Any]] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: Function | None = None
    thinking_blocks: list[Raw] | None = None
    anthropic_blocks: list[Raw] | None = None


class Choice(Struct):
    """A choice of a completion."""

    message: ChatMessage = ChatMessage()
    finish_reason: str | None = None
    native_finish_reason: Any = None
    stop_reason: Any = None


class Completion(Struct):
    """A whole chat completion, as far as it can be told as a message."""

    choices: list[Choice]
    model: str | None = None
    usage: WireUsage | None = None
    service_tier: str | None = None


_message = msgspec.json.Decoder(Message)
_block = msgspec.json.Decoder(Block)
_completion = msgspec.json.Decoder(Completion)


def reply_to_chat(body: bytes, created: float) -> bytes:
    """Return a message as a chat completion. `created` is in Unix seconds. Raises InvalidReply."""
    try:
        reply = _message.decode(body)
        message = _chat_message(reply)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidReply("The provider's reply is not a message.") from None
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        **finish(reply.stop_reason or "end_turn", reply.stop_sequence),
    }
    completion: dict[str, Any] = {
        "id": reply.id,
        "object": "chat.completion",
        "created": int(created),
        "model": reply.model,
        "choices": [choice],
    }
    if reply.usage is not None:
        completion["usage"] = chat_usage(reply.usage)
        if reply.usage.service_tier in _TIERS:
            completion["service_tier"] = _TIERS[reply.usage.service_tier]
    return _encode(completion)


def _chat_message(reply: Message) -> dict[str, Any]:
    """Return the assistant's message: texts joined, calls, thinking, and blocks that chat does not know as they came."""
    texts: list[str] = []
    thoughts: list[str] = []
    citations: list[Any] = []
    found: dict[str, list[Any]] = {"thinking_blocks": [], "tool_calls": [], "anthropic_blocks": []}
    for raw in reply.content:
        block = _block.decode(raw)
        if block.type == "text":
            texts.append(block.text)
            citations += block.citations or ()
        elif block.type == "tool_use":
            function = {"name": block.name, "arguments": bytes(block.input).decode()}
            found["tool_calls"].append({"id": block.id, "type": "function", "function": function})
        elif block.type in ("thinking", "redacted_thinking"):
            thoughts.append(block.thinking)
            found["thinking_blocks"].append(raw)
        else:
            found["anthropic_blocks"].append(raw)
    refused = reply.stop_reason == "refusal"
    refusal = (reply.stop_details.explanation if reply.stop_details else None) if refused else None
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) if texts else None, "refusal": refusal}
    if any(thoughts):
        message["reasoning_content"] = "".join(thoughts)
    if citations:
        message["citations"] = citations
    return message | {name: items for name, items in found.items() if items}


def finish(stop_reason: str, stop_sequence: str | None) -> dict[str, Any]:
    """Return what a choice says about its end. The last two keys stand only where chat's word says less."""
    reason = FINISH_REASONS.get(stop_reason, "stop")
    told: dict[str, Any] = {"finish_reason": reason}
    if STOP_REASONS[reason] != stop_reason:
        told["native_finish_reason"] = stop_reason
    if stop_sequence is not None:
        told["stop_reason"] = stop_sequence
    return told


def stopped(finish_reason: str | None, native: Any, stop: Any) -> tuple[str, str | None]:
    """Return a message's stop reason and stop sequence, from what a choice says about its end."""
    sequence = stop if isinstance(stop, str) and finish_reason == "stop" else None
    if isinstance(native, str) and native in FINISH_REASONS:
        return native, sequence
    if sequence is not None:
        return "stop_sequence", sequence
    return STOP_REASONS.get(finish_reason or "stop", "end_turn"), None


def reply_from_chat(body: bytes, message_id: str) -> bytes:
    """Return a chat completion as a message: its first choice. Raises InvalidReply."""
    try:
        reply = _completion.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidReply("The provider's reply is not a chat completion.") from None
    if not reply.choices:
        raise InvalidReply("The provider's reply holds no answer.")
    choice = reply.choices[0]
    content, called = _content(choice.message)
    reason, sequence = stopped(choice.finish_reason, choice.native_finish_reason, choice.stop_reason)
    if called and reason == "end_turn":
        reason = "tool_use"
    details = None
    if choice.message.refusal and reason == "end_turn":
        reason = "refusal"
    if reason == "refusal":
        details = refusal_details(choice.message.refusal)
    usage = message_usage(reply.usage)
    if reply.service_tier in _OWN_TIERS:
        usage["service_tier"] = _OWN_TIERS[reply.service_tier]
    message = {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": reply.model or "",
        "content": content,
        "stop_reason": reason,
        "stop_sequence": sequence,
        "stop_details": details,
        "usage": usage,
    }
    return _encode(message)


def _content(message: ChatMessage) -> tuple[list[Any], bool]:
    """Return a chat message as blocks, and whether it calls tools."""
    content: list[Any] = list(message.thinking_blocks or ())
    thinking = message.reasoning_content or message.reasoning
    if thinking and not content:
        content.append({"type": "thinking", "thinking": thinking, "signature": ""})
    content += message.anthropic_blocks or ()
    text = message.content
    if isinstance(text, list):
        text = "".join(part["text"] for part in text if isinstance(part.get("text"), str))
    content += [{"type": "text", "text": said} for said in (text, message.refusal) if said]
    calls = message.tool_calls or ([ToolCall("call_0", message.function_call)] if message.function_call else [])
    for call in calls:
        block = {"type": "tool_use", "id": call.id, "name": call.function.name}
        content.append(block | {"input": arguments(call.function.arguments)})
    return content, bool(calls)


def refusal_details(explanation: str | None) -> dict[str, Any]:
    """Return a message's `stop_details` for a refusal."""
    return {"type": "refusal", "category": None, "explanation": explanation}


def wire_usage(usage: MessageUsage) -> WireUsage:
    """Return a message's usage in the pivot's terms, where the input includes what the cache took or gave."""
    if usage.input_tokens is None and usage.output_tokens is None:
        return WireUsage()
    read, written = usage.cache_read_input_tokens, usage.cache_creation_input_tokens
    taken = (usage.input_tokens or 0) + (read or 0) + (written or 0)
    details = usage.output_tokens_details
    return WireUsage(
        prompt_tokens=taken,
        completion_tokens=usage.output_tokens,
        total_tokens=taken + (usage.output_tokens or 0),
        prompt_tokens_details=TokenDetails(cached_tokens=read, cache_write_tokens=written),
        completion_tokens_details=None if details is None else TokenDetails(reasoning_tokens=details.thinking_tokens),
    )


def chat_usage(usage: MessageUsage) -> dict[str, Any]:
    """Return a message's usage as a chat completion tells it."""
    wire = wire_usage(usage)
    told: dict[str, Any] = {
        "prompt_tokens": wire.prompt_tokens or 0,
        "completion_tokens": wire.completion_tokens or 0,
        "total_tokens": wire.total_tokens or 0,
    }
    for side in ("prompt_tokens_details", "completion_tokens_details"):
        details = getattr(wire, side)
        counts = {} if details is None else msgspec.structs.asdict(details)
        counts = {name: count for name, count in counts.items() if count is not None}
        if counts:
            told[side] = counts
    return told


def message_usage(usage: WireUsage | None) -> dict[str, Any]:
    """Return a chat completion's usage as a message tells it; zeros where nobody counted."""
    if usage is None:
        return {"input_tokens": 0, "output_tokens": 0}
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    read = prompt.cached_tokens if prompt and prompt.cached_tokens is not None else usage.prompt_cache_hit_tokens
    written = prompt.cache_write_tokens if prompt else None
    told: dict[str, Any] = {
        "input_tokens": max(0, (usage.prompt_tokens or 0) - (read or 0) - (written or 0)),
        "output_tokens": usage.completion_tokens or 0,
    }
    if read is not None:
        told["cache_read_input_tokens"] = read
    if written is not None:
        told["cache_creation_input_tokens"] = written
    if completion and completion.reasoning_tokens is not None:
        told["output_tokens_details"] = {"thinking_tokens": completion.reasoning_tokens}
    return told
