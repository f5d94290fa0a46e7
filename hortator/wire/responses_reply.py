"""A chat completion as a response: the response object with the request's parameters, its output items, its usage.

Called for whole answers (`from_chat`); `responses_stream.py` builds its events from the same pieces. Pure: ids and times are
arguments.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import Raw, Struct

from hortator.errors import InvalidReply
from hortator.wire.body import Object
from hortator.wire.chat import TokenDetails, WireUsage
from hortator.wire.fields import NULL, fields, given, is_list, is_object, objects, optional_text, raw
from hortator.wire.responses_tools import Toolbox, is_offer, read_tools, unwrap_input

_encode = msgspec.json.encode

_ECHO: dict[str, Raw] = {
    "background": Raw(b"false"),
    "instructions": NULL,
    "max_output_tokens": NULL,
    "max_tool_calls": NULL,
    "metadata": Raw(b"{}"),
    "parallel_tool_calls": Raw(b"true"),
    "previous_response_id": NULL,
    "prompt_cache_key": NULL,
    "safety_identifier": NULL,
    "service_tier": Raw(b'"default"'),
    "store": Raw(b"true"),
    "temperature": Raw(b"1.0"),
    "tool_choice": Raw(b'"auto"'),
    "tools": Raw(b"[]"),
    "top_logprobs": Raw(b"0"),
    "top_p": Raw(b"1.0"),
    "truncation": Raw(b'"disabled"'),
    "user": NULL,
}
"""Parameters that a response repeats, and what the API says where the request left them out."""
_REASONING = {"effort": None, "summary": None}
_TEXT = {"format": {"type": "text"}}
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_NO_EFFECT = ("truncation", "max_tool_calls", "image", "access_programs", "client_metadata")
_MARKS = (b'"encrypted_content"', b'"web_search')
_REASONING_KNOWN = frozenset(("effort", "summary", "generate_summary"))


class FunctionCall(Struct):
    """The function that a call names."""

    name: str = ""
    arguments: str | None = None


class CustomCall(Struct):
    """The custom tool that a call names."""

    name: str = ""
    input: str | None = None


class ToolCall(Struct):
    """One of chat's `tool_calls`."""

    id: str | int | None = None
    function: FunctionCall | None = None
    custom: CustomCall | None = None


class Logprobs(Struct):
    """A choice's `logprobs`; its entries look the same in both dialects."""

    content: list[Raw] | None = None


class TextPart(Struct):
    """A part of content, where a provider sends it as a list."""

    text: str = ""


class Message(Struct):
    """A completion's message. `reasoning` and `reasoning_content` are the names providers use for thinking."""

    content: str | list[TextPart] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: FunctionCall | None = None
    annotations: list[Object] | None = None


class Choice(Struct):
    """One choice of a completion."""

    message: Message
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class Completion(Struct):
    """A chat completion, as far as a response repeats it."""

    choices: list[Choice]
    model: str | None = None
    usage: WireUsage | None = None
    service_tier: str | None = None


_completion = msgspec.json.Decoder(Completion)
_strings = msgspec.json.Decoder(list[str])


class Frame:
    """A response without its answer: its names and the request's parameters, encoded once however often they are sent."""

    def __init__(
        self,
        request: Object,
        id: str,
        created: float,
        model: str,
        service_tier: str | None = None,
        *,
        translated: bool = True,
    ) -> None:
        """`translated`: the provider was asked in chat, and what was left out for that is to be named."""
        document: dict[str, Any] = {"id": id, "object": "response", "created_at": created, "model": model}
        for key, default in _ECHO.items():
            value = request.get(key)
            document[key] = default if value is None or value == NULL else value
        if service_tier is not None:
            document["service_tier"] = service_tier
        reasoning, text = given(request, "reasoning"), given(request, "text")
        document["reasoning"] = _REASONING if reasoning is None else {**_REASONING, **fields(reasoning, "reasoning")}
        document["text"] = _TEXT if text is None else {**_TEXT, **fields(text, "text")}
        left_out = omitted(request) if translated else None
        if left_out:
            document["hortator_omitted"] = left_out
        self._head = _encode(document)[:-1]

    def response(
        self,
        status: str,
        output: Iterable[object],
        *,
        error: object = None,
        incomplete: str | None = None,
        usage: WireUsage | None = None,
    ) -> Raw:
        """Return the response object in one of its states."""
        tail = _encode(
            {
                "status": status,
                "error": error,
                "incomplete_details": None if incomplete is None else {"reason": incomplete},
                "output": list(output),
                "usage": None if usage is None else response_usage(usage),
            }
        )
        return Raw(self._head + b"," + tail[1:])


def from_chat(reply: bytes, request: Object, id: str, created: float) -> bytes:
    """Return a whole chat completion as a response to `request` (this dialect's). `created` in Unix seconds. Raises InvalidReply."""
    try:
        completion = _completion.decode(reply)
    except (msgspec.DecodeError, RecursionError):
        raise InvalidReply("The provider's reply is not a chat completion.") from None
    if not completion.choices:
        raise InvalidReply("The provider's reply holds no answer.")
    choice = completion.choices[0]
    items = Items(id, read_tools(request, custom_tools=False), wants_summary(request))
    reason = _INCOMPLETE.get(choice.finish_reason or "")
    output = items.of(choice)
    if reason is not None:
        output[-1]["status"] = "incomplete"
    frame = Frame(request, id, created, completion.model or _model(request), completion.service_tier)
    return bytes(
        frame.response(
            "completed" if reason is None else "incomplete",
            output,
            incomplete=reason,
            usage=completion.usage,
        )
    )


def unanswered(request: Object, id: str, created: float) -> Raw:
    """Return the response object of a request that waits to be worked on."""
    return Frame(request, id, created, _model(request), translated=False).response("queued", ())


def response_id(request_id: str, created: float) -> str:
    """Return the id of the response to a request. Clients choose request ids, so the moment is part of it."""
    return "resp_" + blake2b(f"{request_id} {created!r}".encode(), digest_size=20).hexdigest()


def incomplete_reason(finish_reason: str | None) -> str | None:
    """Return why an answer is incomplete, None when it is complete."""
    return _INCOMPLETE.get(finish_reason or "")


def wants_summary(request: Object) -> bool:
    """Whether the client asked for a summary of the reasoning. It gets the model's reasoning as one; else as it is, as content."""
    reasoning = given(request, "reasoning")
    if reasoning is None:
        return False
    found = fields(reasoning, "reasoning")
    return given(found, "summary") is not None or given(found, "generate_summary") is not None


def _model(request: Object) -> str:
    model: str = msgspec.json.decode(request["model"])
    return model


class Items:
    """Makes output items. Their ids follow from the response's id and their place."""

    def __init__(self, response_id: str, toolbox: Toolbox, summary: bool) -> None:
        self._suffix = response_id.partition("_")[2] or response_id
        self.toolbox = toolbox
        self.summary = summary

    def id(self, prefix: str, place: int) -> str:
        """Return the id of the item at `place` in the output."""
        return f"{prefix}_{self._suffix}{place:02x}"

    def of(self, choice: Choice) -> list[dict[str, Any]]:
        """Return the items of a whole answer: reasoning, message, calls. There is always one at least."""
        message = choice.message
        output: list[dict[str, Any]] = []
        thinking = message.reasoning_content or message.reasoning
        if thinking:
            output.append(self.reasoning(len(output), thinking))
        parts = []
        text = joined(message.content)
        logprobs = choice.logprobs.content if choice.logprobs else None
        calls = message.tool_calls or ([ToolCall(function=message.function_call)] if message.function_call else [])
        if text or not (message.refusal or calls or thinking):
            parts.append(text_part(text, logprobs or [], [annotation(one) for one in message.annotations or ()]))
        if message.refusal:
            parts.append(refusal_part(message.refusal))
        if parts:
            output.append(self.message(len(output), parts))
        for call in calls:
            output.append(self.call(len(output), call))
        return output

    def reasoning(self, place: int, text: str | None, status: str = "completed") -> dict[str, Any]:
        """Return a reasoning item; None = one that has just begun."""
        item: dict[str, Any] = {"id": self.id("rs", place), "type": "reasoning", "status": status, "summary": []}
        if self.summary:
            item["summary"] = [] if text is None else [{"type": "summary_text", "text": text}]
        else:
            item["content"] = [] if text is None else [{"type": "reasoning_text", "text": text}]
        return item

    def message(self, place: int, parts: list[dict[str, Any]], status: str = "completed") -> dict[str, Any]:
        """Return a message item."""
        id = self.id("msg", place)
        return {"id": id, "type": "message", "status": status, "role": "assistant", "content": parts}

    def call(self, place: int, call: ToolCall) -> dict[str, Any]:
        """Return the item of a whole call."""
        name, written = "", ""
        if call.function is not None:
            name, written = call.function.name, call.function.arguments or ""
        elif call.custom is not None:
            return self.call_item(place, call.id, call.custom.name, call.custom.input or "", custom=True)
        if self.toolbox.client_name(name).type == "custom":
            written = unwrap_input(written)
        return self.call_item(place, call.id, name, written)

    def call_item(
        self,
        place: int,
        call_id: str | int | None,
        chat_name: str,
        written: str,
        status: str = "completed",
        *,
        custom: bool = False,
    ) -> dict[str, Any]:
        """Return the item of a call; `written` is its arguments, or the input of a custom tool."""
        named = self.toolbox.client_name(chat_name)
        id = str(call_id) if call_id else self.id("call", place)
        if custom or named.type == "custom":
            item: dict[str, Any] = {"id": self.id("ctc", place), "type": "custom_tool_call", "status": status}
            item |= {"call_id": id, "name": named.name, "input": written}
        else:
            item = {"id": self.id("fc", place), "type": "function_call", "status": status}
            item |= {"call_id": id, "name": named.name, "arguments": written}
        if named.namespace is not None:
            item["namespace"] = named.namespace
        return item


def text_part(text: str, logprobs: list[Raw] | None = None, annotations: list[Any] | None = None) -> dict[str, Any]:
    """Return a message's text."""
    return {"type": "output_text", "text": text, "annotations": annotations or [], "logprobs": logprobs or []}


def refusal_part(text: str) -> dict[str, Any]:
    """Return a message's refusal."""
    return {"type": "refusal", "refusal": text}


def annotation(found: Object) -> Any:
    """Return an annotation of chat (`{"type": "url_citation", "url_citation": {...}}`) as it is written here, without nesting."""
    inner = found.get("url_citation")
    return (
        found if inner is None or not is_object(inner) else {"type": found.get("type"), **fields(inner, "annotations")}
    )


def joined(content: str | list[TextPart] | None) -> str:
    """Return a message's text; some providers send it in parts."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join([part.text for part in content])


def response_usage(usage: WireUsage) -> dict[str, Any]:
    """Return a completion's usage under this dialect's names; what the provider did not say is 0, as the fields are required."""
    taken, made = usage.prompt_tokens_details or TokenDetails(), usage.completion_tokens_details or TokenDetails()
    cached = taken.cached_tokens if taken.cached_tokens is not None else usage.prompt_cache_hit_tokens
    put_in, put_out = usage.prompt_tokens or 0, usage.completion_tokens or 0
    return {
        "input_tokens": put_in,
        "input_tokens_details": {"cached_tokens": cached or 0, "cache_write_tokens": taken.cache_write_tokens or 0},
        "output_tokens": put_out,
        "output_tokens_details": {"reasoning_tokens": made.reasoning_tokens or 0},
        "total_tokens": put_in + put_out if usage.total_tokens is None else usage.total_tokens,
    }


def omitted(request: Object) -> list[str]:
    """Return the names of what a request holds that has no meaning in chat and does not change what the answer says.

    The answer lists them as `hortator_omitted`, so that nothing is left out in silence.
    """
    found = [key for key in _NO_EFFECT if given(request, key) not in (None, raw("disabled"))]
    include = given(request, "include")
    if include is not None:
        names = (name for name in _strings.decode(include) if name != "message.output_text.logprobs")
        found += [f"include[{name[:100]}]" for name in names]
    reasoning = given(request, "reasoning")
    if reasoning is not None:
        asked = fields(reasoning, "reasoning")
        found += [f"reasoning.{key[:100]}" for key in asked if key not in _REASONING_KNOWN and asked[key] != NULL]
    for key in ("tools", "input"):
        value = given(request, key)
        if value is not None and is_list(value) and any(mark in bytes(value) for mark in _MARKS):
            for index, one in enumerate(objects(value, key)):
                if is_offer(optional_text(one, "type", key) or ""):
                    found.append(f"{key}[{index}]")
                elif given(one, "encrypted_content") is not None:
                    found.append(f"{key}[{index}].encrypted_content")
    return found
