"""A chat-completions request as a messages request, for providers that only speak messages.

Dispatch calls `from_chat` on what a door accepted. The extension fields that `messages_to_chat.py` writes are read back, so are
the provider's own top-level fields (`thinking`, `top_k`, ...), which chat clients send as extra fields. What has no place is a
hint (`HINTS`) or is refused as inapplicable: nothing that changes the answer is dropped. Pure: no I/O, no clock.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Raw, Struct

from hortator.errors import Inapplicable, InvalidRequest
from hortator.wire.body import Object
from hortator.wire.fields import given, read

HINTS = frozenset(
    {
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "source",
        "store",
        "stream_options",
        "verbosity",
    }
)
"""Parameters that are left out: they bear on speed, caching, bookkeeping or style at the provider they were made for."""

DEFAULT_MAX_TOKENS = 8192
"""The dialect demands a maximum; this one holds for requests that name none. Every current model takes it."""

_REFUSED = frozenset(
    {"audio", "function_call", "functions", "logit_bias", "moderation", "seed", "top_logprobs", "web_search_options"}
)
_EFFORTS = {"minimal": "low"}
_CHOICES = {"auto": "auto", "required": "any", "none": "none"}
_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16_384, "xhigh": 24_576, "max": 32_000}
_LEAST_BUDGET = 1024

_BUDGETED = re.compile(r"(?:.*[/.])?claude-(?:3|[a-z]+-(?:4-[015]|4-20))").match
"""Models up to 4.5 think by a budget of tokens; the later ones by `adaptive` and an effort."""

_BAD_ID = re.compile(r"[^A-Za-z0-9_-]")
_DATA_URL = re.compile(r"data:([^;,]*)(?:;[^,;]*)*;base64,", re.IGNORECASE)

_encode = msgspec.json.encode
_decode = msgspec.json.decode
_NULL = b"null"
_EMPTY_SCHEMA = Raw(b'{"type":"object","properties":{}}')


class Function(Struct, frozen=True):
    """The function of a tool or of a call."""

    name: str = ""
    arguments: str | None = None
    description: str | None = None
    parameters: Raw = _EMPTY_SCHEMA
    strict: bool | None = None


class ToolCall(Struct):
    """A call in an assistant's message."""

    id: str | None = None
    type: str = "function"
    function: Function = Function()
    cache_control: Any = None


class Tool(Struct):
    """A tool of the request."""

    type: str
    function: Function = Function()
    cache_control: Any = None
    defer_loading: Any = None
    allowed_callers: Any = None
    eager_input_streaming: Any = None
    input_examples: Any = None


class Part(Struct):
    """One part of a message's content; each type uses some of the fields."""

    type: str
    text: str = ""
    refusal: str = ""
    image_url: dict[str, Any] | str = {}
    file: dict[str, Any] = {}
    title: str | None = None
    context: str | None = None
    citations: Any = None
    cache_control: Any = None


class Turn(Struct):
    """One message of the request."""

    role: str
    content: str | list[Part] | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    thinking_blocks: list[dict[str, Any]] | None = None
    function_call: Any = None
    is_error: bool | None = None
    cache_control: Any = None


class Named(Struct, frozen=True):
    """A function by its name."""

    name: str = ""


class AllowedTool(Struct):
    """A tool of `allowed_tools`."""

    function: Named | None = None
    name: str | None = None


class AllowedTools(Struct, frozen=True):
    """Which of the tools may be called."""

    mode: str = "auto"
    tools: list[AllowedTool] = []


class ToolChoice(Struct):
    """A tool choice that is more than a word."""

    type: str
    function: Named = Named()
    allowed_tools: AllowedTools = AllowedTools()


class JsonSchema(Struct):
    """The schema that an answer is to have."""

    schema: Raw = Raw(b"null")


class ResponseFormat(Struct):
    """The form that an answer is to have."""

    type: str = "text"
    json_schema: JsonSchema | None = None


_choice = msgspec.json.Decoder(str | ToolChoice | None)
_format = msgspec.json.Decoder(ResponseFormat)
_config = msgspec.json.Decoder(dict[str, Raw])
_turns = msgspec.json.Decoder(list[Turn])
_tools = msgspec.json.Decoder(list[Tool])


def from_chat(body: Object) -> Object:
    """Return the messages request for a chat request. Raises Inapplicable, or InvalidRequest for content of a wrong shape."""
    sent: Object = {"model": body["model"]}
    system, turns = _conversation(read(_turns, body["messages"], "messages"))
    if system:
        sent["system"] = Raw(_encode(system))
    sent["messages"] = Raw(_encode(turns))
    if given(body, "output_config") is not None:
        sent["output_config"] = body["output_config"]
    for name, value in body.items():
        if name in ("model", "messages") or bytes(value) == _NULL:
            continue
        if name in _REFUSED and bytes(value) not in (b"{}", b"[]"):
            raise _unsupported(name)
        write = _WRITERS.get(name)
        if write is not None:
            write(sent, value)
        elif name not in HINTS and name not in _REFUSED:
            sent[name] = value
    if "max_tokens" not in sent:
        sent["max_tokens"] = Raw(b"%d" % DEFAULT_MAX_TOKENS)
    _tool_choice(sent, body)
    _thinking(sent, body)
    return sent


def _unsupported(param: str, why: str | None = None) -> Inapplicable:
    why = why or f"'{param}' is not supported by this model's provider."
    return Inapplicable(why, code="unsupported_parameter", param=param)


def _conversation(turns: list[Turn]) -> tuple[Any, list[dict[str, Any]]]:
    """Return the system prompt, and turns in which the user's and the assistant's alternate.

    System and developer messages all go to the front, as the dialect keeps them apart from the conversation.
    """
    system: list[dict[str, Any]] = []
    said: list[dict[str, Any]] = []
    for at, turn in enumerate(turns):
        where = f"messages[{at}]"
        if turn.role in ("system", "developer"):
            system += _blocks(where, turn)
            continue
        role, blocks = _turn(where, turn)
        if not blocks:
            continue
        if said and said[-1]["role"] == role:
            said[-1]["content"] += blocks
        else:
            said.append({"role": role, "content": blocks})
    if not said:
        raise InvalidRequest("'messages' must hold a message of the user.", code="invalid_value", param="messages")
    for one in said:
        one["content"] = _short(one["content"])
    return _short(system), said


def _short(blocks: list[dict[str, Any]]) -> Any:
    """Return a single plain text as a string."""
    if len(blocks) == 1 and blocks[0].keys() == {"type", "text"}:
        return blocks[0]["text"]
    return blocks


def _turn(where: str, turn: Turn) -> tuple[str, list[dict[str, Any]]]:
    if turn.role == "user":
        return "user", _blocks(where, turn)
    if turn.role == "assistant":
        return "assistant", _assistant(where, turn)
    if turn.role == "tool":
        result: dict[str, Any] = {"type": "tool_result", "tool_use_id": _id(turn.tool_call_id)}
        content = _short(_blocks(where, turn, marked=False))
        if content:
            result["content"] = content
        if turn.is_error:
            result["is_error"] = True
        return "user", [_marked(result, turn.cache_control)]
    raise _unsupported(f"{where}.role", f"The role '{turn.role[:60]}' is not supported by this model's provider.")


def _assistant(where: str, turn: Turn) -> list[dict[str, Any]]:
    """Return an assistant's turn: signed thinking first, as the provider demands, then text, then calls.

    Thinking without a signature is another model's; the provider would refuse it.
    """
    if turn.function_call is not None:
        raise _unsupported(f"{where}.function_call", "Use 'tool_calls' instead of 'function_call' with this model.")
    proved = [
        block for block in turn.thinking_blocks or () if block.get("signature") or block.get("type") != "thinking"
    ]
    blocks = [{key: value for key, value in block.items() if key != "index"} for block in proved]
    blocks += _blocks(where, turn)
    if turn.refusal:
        blocks.append({"type": "text", "text": turn.refusal})
    for at, call in enumerate(turn.tool_calls or ()):
        if call.type != "function":
            raise _unsupported(
                f"{where}.tool_calls[{at}]", "Custom tool calls are not supported by this model's provider."
            )
        block = {"type": "tool_use", "id": _id(call.id), "name": call.function.name}
        blocks.append(_marked(block | {"input": arguments(call.function.arguments)}, call.cache_control))
    return blocks


def _blocks(where: str, turn: Turn, *, marked: bool = True) -> list[dict[str, Any]]:
    """Return a message's content as blocks; empty texts, which the provider refuses, are left out."""
    if not isinstance(turn.content, list):
        text = {"type": "text", "text": turn.content}
        return [_marked(text, turn.cache_control if marked else None)] if turn.content else []
    blocks: list[dict[str, Any]] = []
    for at, part in enumerate(turn.content):
        block = _block(f"{where}.content[{at}]", part)
        if block.get("text") != "":
            blocks.append(_marked(block, part.cache_control))
    return blocks


def _block(where: str, part: Part) -> dict[str, Any]:
    if part.type == "text":
        return {"type": "text", "text": part.text}
    if part.type == "refusal":
        return {"type": "text", "text": part.refusal}
    if part.type == "image_url":
        url = part.image_url.get("url") if isinstance(part.image_url, dict) else part.image_url
        return {"type": "image", "source": _source(f"{where}.image_url", url)}
    if part.type == "file":
        return _document(where, part)
    raise _unsupported(where, f"Parts of type '{part.type[:60]}' are not supported by this model's provider.")


def _source(where: str, url: Any) -> dict[str, Any]:
    if not isinstance(url, str):
        raise InvalidRequest(f"Invalid '{where}': expected a URL.", code="invalid_type", param=where)
    data = _DATA_URL.match(url)
    if data is not None:
        return {"type": "base64", "media_type": data[1].lower(), "data": url[data.end() :]}
    if url.startswith("data:"):
        raise _unsupported(where, "Data URLs must be base64 for this model's provider.")
    return {"type": "url", "url": url}


def _document(where: str, part: Part) -> dict[str, Any]:
    file = part.file
    block: dict[str, Any] = {"type": "document"}
    if isinstance(file.get("file_id"), str):
        block["source"] = {"type": "file", "file_id": file["file_id"]}
    else:
        block["source"] = _source(f"{where}.file", file.get("file_data"))
    title = part.title or file.get("filename")
    told = {"title": title, "context": part.context, "citations": part.citations}
    return block | {name: value for name, value in told.items() if value is not None}


def _marked(block: dict[str, Any], mark: Any) -> dict[str, Any]:
    if mark is not None:
        block["cache_control"] = mark
    return block


def _id(id: str | None) -> str:
    """Return a call's id in the letters that the provider takes; calls and results are changed alike."""
    return _BAD_ID.sub("_", id or "call_0")


def arguments(text: str | None) -> Raw | dict[str, str]:
    """Return a call's arguments as the object that the dialect keeps them in.

    A text that is no object (a call cut off by the token limit) is told as `{"INVALID_JSON": text}`, the provider's own advice.
    """
    if not text or not text.strip():
        return {}
    try:
        _objects.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return {"INVALID_JSON": text}
    return Raw(text.encode())


_objects = msgspec.json.Decoder(dict[str, Raw])


def _max_tokens(sent: Object, value: Raw) -> None:
    sent["max_tokens"] = value


def _completion_tokens(sent: Object, value: Raw) -> None:
    sent["max_tokens"] = value


def _stop(sent: Object, value: Raw) -> None:
    stop = _decode(value)
    sent["stop_sequences"] = Raw(_encode([stop])) if isinstance(stop, str) else value


def _user(sent: Object, value: Raw) -> None:
    sent["metadata"] = Raw(b'{"user_id":%b}' % bytes(value))


def _safety(sent: Object, value: Raw) -> None:
    if "metadata" not in sent:
        _user(sent, value)


def _tools_of(sent: Object, value: Raw) -> None:
    written: list[dict[str, Any]] = []
    for at, tool in enumerate(read(_tools, value, "tools")):
        if tool.type != "function":
            why = f"The tool type '{tool.type[:60]}' is not supported by this model's provider."
            raise Inapplicable(why, code="unsupported_tool", param=f"tools[{at}]")
        function = tool.function
        told: dict[str, Any] = {"name": function.name, "description": function.description}
        told["input_schema"] = _EMPTY_SCHEMA if bytes(function.parameters) == _NULL else function.parameters
        told["strict"] = function.strict or None
        for name in ("cache_control", "defer_loading", "allowed_callers", "eager_input_streaming", "input_examples"):
            told[name] = getattr(tool, name)
        written.append({name: item for name, item in told.items() if item is not None})
    if written:
        sent["tools"] = Raw(_encode(written))


def _tool_choice(sent: Object, body: Object) -> None:
    """Say which tools may or must be called. `allowed_tools` becomes a shorter list."""
    choice = read(_choice, body["tool_choice"], "tool_choice") if given(body, "tool_choice") is not None else None
    parallel = given(body, "parallel_tool_calls") is None or _decode(body["parallel_tool_calls"])
    if "tools" not in sent:
        return
    if isinstance(choice, ToolChoice) and choice.type == "allowed_tools":
        names = {(one.function.name if one.function else one.name) for one in choice.allowed_tools.tools}
        tools = _decode(sent["tools"], type=list[dict[str, Raw]])
        sent["tools"] = Raw(_encode([tool for tool in tools if _decode(tool["name"]) in names]))
        choice = choice.allowed_tools.mode
    told: dict[str, Any] | None = None
    if isinstance(choice, ToolChoice) and choice.type == "function":
        told = {"type": "tool", "name": choice.function.name}
    elif isinstance(choice, str) and choice in _CHOICES:
        told = {"type": _CHOICES[choice]}
    elif choice is not None:
        raise _unsupported("tool_choice")
    if not parallel and (told or {}).get("type") != "none":
        told = (told or {"type": "auto"}) | {"disable_parallel_tool_use": True}
    if told is not None:
        sent["tool_choice"] = Raw(_encode(told))


def _response_format(sent: Object, value: Raw) -> None:
    """Say the form of the answer; the dialect knows schemas, but no JSON without one."""
    form = read(_format, value, "response_format")
    if form.type == "text":
        return
    if form.type != "json_schema" or form.json_schema is None or bytes(form.json_schema.schema) == _NULL:
        raise _unsupported(
            "response_format", "This model's provider takes only 'json_schema' with a schema, or 'text'."
        )
    config: dict[str, Any] = _output_config(sent)
    config["format"] = {"type": "json_schema", "schema": form.json_schema.schema}
    sent["output_config"] = Raw(_encode(config))


def _output_config(sent: Object) -> dict[str, Raw]:
    config: dict[str, Raw] = read(_config, sent.get("output_config", Raw(b"{}")), "output_config")
    return config


def _thinking(sent: Object, body: Object) -> None:
    """Say how hard to think, in the words of the model; the provider's own `thinking` or effort in the request goes first."""
    effort = _decode(body["reasoning_effort"]) if given(body, "reasoning_effort") is not None else None
    config = _output_config(sent)
    if effort is None or "thinking" in sent or "effort" in config:
        return
    named = "max_tokens" in body or "max_completion_tokens" in body
    if effort == "none":
        sent["thinking"] = Raw(b'{"type":"disabled"}')
    elif _BUDGETED(str(_decode(sent["model"]))):
        _budget(sent, effort, named=named)
    else:
        sent["thinking"] = Raw(b'{"type":"adaptive"}')
        if not named:
            sent["max_tokens"] = Raw(b"%d" % (DEFAULT_MAX_TOKENS + _BUDGETS["xhigh"]))
        config["effort"] = Raw(_encode(_EFFORTS.get(effort, effort)))
        sent["output_config"] = Raw(_encode(config))


def _budget(sent: Object, effort: str, *, named: bool) -> None:
    """Give the thinking its share of the maximum, which counts it; a maximum that has no room for it leaves it off."""
    budget = _BUDGETS.get(effort)
    if budget is None:
        raise InvalidRequest(
            f"Invalid 'reasoning_effort': '{effort[:60]}'.", code="invalid_value", param="reasoning_effort"
        )
    most = _decode(sent["max_tokens"])
    if not named:
        sent["max_tokens"] = Raw(b"%d" % (most + budget))
    elif most <= budget:
        budget = most // 2
    if budget >= _LEAST_BUDGET:
        sent["thinking"] = Raw(_encode({"type": "enabled", "budget_tokens": budget}))


def _service_tier(sent: Object, value: Raw) -> None:
    tier = _decode(value)
    if tier in ("auto", "default", "standard_only"):
        sent["service_tier"] = Raw(b'"auto"' if tier == "auto" else b'"standard_only"')


def _penalty(name: str) -> Callable[[Object, Raw], None]:
    def check(sent: Object, value: Raw) -> None:
        if _decode(value) != 0:
            raise _unsupported(name)

    return check


def _single(sent: Object, value: Raw) -> None:
    if _decode(value) != 1:
        raise _unsupported("n", "This model's provider gives one answer; 'n' must be 1.")


def _logprobs(sent: Object, value: Raw) -> None:
    if _decode(value):
        raise _unsupported("logprobs")


def _modalities(sent: Object, value: Raw) -> None:
    if _decode(value) != ["text"]:
        raise _unsupported("modalities")


def _later(sent: Object, value: Raw) -> None:
    """Said at the end, when the rest is known."""


_WRITERS: dict[str, Callable[[Object, Raw], None]] = {
    "max_tokens": _max_tokens,
    "max_completion_tokens": _completion_tokens,
    "stop": _stop,
    "user": _user,
    "safety_identifier": _safety,
    "tools": _tools_of,
    "tool_choice": _later,
    "parallel_tool_calls": _later,
    "reasoning_effort": _later,
    "output_config": _later,
    "response_format": _response_format,
    "service_tier": _service_tier,
    "frequency_penalty": _penalty("frequency_penalty"),
    "presence_penalty": _penalty("presence_penalty"),
    "n": _single,
    "logprobs": _logprobs,
    "modalities": _modalities,
}
