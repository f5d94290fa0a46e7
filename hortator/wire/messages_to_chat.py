"""A messages request as a chat-completions request, for providers that only speak chat.

Dispatch calls `to_chat` on what `messages.parse` accepted. What chat has no place for is carried in extension fields
(`thinking_blocks`, `cache_control`, `is_error`, ...: `chat_to_messages.py` reads them back), is a hint whose absence changes
no answer (`HINTS`), or is refused as inapplicable, so that another provider may be asked. `to_plain_chat` is for providers
that refuse fields they do not know. Pure: no I/O, no clock.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Raw, Struct

from hortator.errors import Inapplicable
from hortator.wire.body import Object
from hortator.wire.fields import given, read

HINTS = frozenset({"cache_control", "context_management", "diagnostics", "speed"})
"""Top-level parameters that another provider does not need: they bear on Anthropic's caching, speed and accounting."""

_REFUSED = frozenset({"container", "inference_geo", "mcp_servers", "user_profile_id", "workspace_id"})
_TOOL_HINTS = ("cache_control", "defer_loading", "allowed_callers", "eager_input_streaming", "input_examples")
_CUSTOM_TOOLS = (None, "custom")
_LOW_BUDGET, _MEDIUM_BUDGET = 4096, 16_384
_MAX_USER = 64
_PARAGRAPH = "\n\n"

_NEWER_LIMIT = re.compile(r"(?:.*/)?(?:gpt-(?!oss)|chatgpt|o\d)").match
"""Models of OpenAI's own, which take `max_completion_tokens` only; older servers know only `max_tokens`."""

_encode = msgspec.json.encode
_decode = msgspec.json.decode
_NULL = b"null"


class Block(Struct):
    """Any block of content; each type uses some of the fields."""

    type: str
    text: str = ""
    source: dict[str, Any] = {}
    id: str = ""
    name: str = ""
    input: Raw = Raw(b"{}")
    tool_use_id: str = ""
    content: str | list[Raw] | None = None
    is_error: bool | None = None
    thinking: str = ""
    title: str | None = None
    context: str | None = None
    citations: Any = None
    cache_control: Any = None


class Turn(Struct):
    """One message of the request."""

    role: str
    content: str | list[Raw]


_block = msgspec.json.Decoder(Block)
_turns = msgspec.json.Decoder(list[Turn])
_system = msgspec.json.Decoder(str | list[Raw])
_raws = msgspec.json.Decoder(list[Raw])


def unsupported(param: str, why: str) -> Inapplicable:
    """Return the error for something that the model's provider has no word for."""
    return Inapplicable(why, code="unsupported_parameter", param=param)


def to_chat(body: Object) -> Object:
    """Return the chat request for a messages request. Raises Inapplicable that names what cannot be said."""
    return _Translation(True).request(body)


def to_plain_chat(body: Object) -> Object:
    """Return the chat request without extension fields. Raises Inapplicable.

    Cache marks and the thinking of earlier turns are left out, what a tool returned besides text follows in the user's turn,
    and the text of a failed result begins with `Error: `.
    """
    return _Translation(False).request(body)


class _Translation:
    """One request on its way."""

    def __init__(self, extensions: bool) -> None:
        self._extensions = extensions

    def request(self, body: Object) -> Object:
        chat: Object = {"model": body["model"]}
        messages: list[Any] = []
        if given(body, "system") is not None:
            messages.append(self._system(body["system"]))
        for index, turn in enumerate(read(_turns, body["messages"], "messages")):
            messages += self._turn(f"messages[{index}]", turn)
        chat["messages"] = Raw(_encode(messages))
        for name, value in body.items():
            if name in ("model", "messages", "system") or bytes(value) == _NULL:
                continue
            if name in _REFUSED:
                raise unsupported(name, f"'{name}' is not supported by this model's provider.")
            write = _WRITERS.get(name)
            if write is not None:
                write(chat, value)
            elif name == "tools":
                chat["tools"] = Raw(_encode([self._tool(at, tool) for at, tool in enumerate(read(_raws, value, name))]))
            elif name not in HINTS or self._extensions:
                chat[name] = value
        for name in ("thinking", "output_config"):
            if self._extensions and given(body, name) is not None:
                chat[name] = body[name]
        _effort(chat, body)
        if "tools" not in chat:
            chat.pop("tool_choice", None)
            chat.pop("parallel_tool_calls", None)
        return chat

    def _system(self, raw: Raw) -> dict[str, Any]:
        content = read(_system, raw, "system")
        if not isinstance(content, str):
            content = self._content([self._text("system", block) for block in content], _PARAGRAPH)
        return {"role": "system", "content": content}

    def _text(self, where: str, raw: Raw) -> dict[str, Any]:
        block = read(_block, raw, where)
        if block.type != "text":
            raise unsupported(where, f"Blocks of type '{block.type[:60]}' are not supported here.")
        return self._marked({"type": "text", "text": block.text}, block)

    def _turn(self, where: str, turn: Turn) -> list[dict[str, Any]]:
        if isinstance(turn.content, str):
            return [{"role": turn.role, "content": turn.content}]
        blocks = [(f"{where}.content[{at}]", read(_block, raw, where), raw) for at, raw in enumerate(turn.content)]
        if turn.role == "assistant":
            return [self._assistant(blocks)]
        said = self._user(blocks)
        if turn.role != "user" and said:
            said[-1]["role"] = turn.role
        return said

    def _assistant(self, blocks: list[tuple[str, Block, Raw]]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": None}
        texts: list[dict[str, Any]] = []
        calls: list[dict[str, Any]] = []
        thoughts: list[tuple[str, Raw]] = []
        for where, block, raw in blocks:
            if block.type == "text":
                texts.append(self._marked({"type": "text", "text": block.text}, block))
            elif block.type == "tool_use":
                function = {"name": block.name, "arguments": bytes(block.input).decode()}
                calls.append(self._marked({"id": block.id, "type": "function", "function": function}, block))
            elif block.type in ("thinking", "redacted_thinking"):
                thoughts.append((block.thinking, raw))
            else:
                raise unsupported(
                    where, f"Blocks of type '{block.type[:60]}' are not supported by this model's provider."
                )
        if texts:
            message["content"] = self._content(texts, "")
        if calls:
            message["tool_calls"] = calls
        elif not texts:
            message["content"] = ""
        if thoughts and self._extensions:
            message["reasoning_content"] = "".join(text for text, _ in thoughts)
            message["thinking_blocks"] = [raw for _, raw in thoughts]
        return message

    def _user(self, blocks: list[tuple[str, Block, Raw]]) -> list[dict[str, Any]]:
        """Return the results of tools as messages of their own, then what the user says."""
        messages: list[dict[str, Any]] = []
        parts: list[dict[str, Any]] = []
        for where, block, _ in blocks:
            if block.type == "tool_result":
                messages.append(self._result(where, block, parts))
            else:
                parts += self._parts(where, block)
        if parts or not messages:
            only = parts[0] if len(parts) == 1 else {}
            plain = only.get("type") == "text" and only.keys() == {"type", "text"}
            messages.append({"role": "user", "content": only["text"] if plain else parts or ""})
        return messages

    def _result(self, where: str, block: Block, following: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a tool's result; what a provider may not take in there goes to the `following` user turn."""
        message: dict[str, Any] = {"role": "tool", "tool_call_id": block.tool_use_id}
        content: Any = block.content or ""
        if not isinstance(content, str):
            parts: list[dict[str, Any]] = []
            for at, raw in enumerate(content):
                inner = read(_block, raw, where)
                parts += self._parts(f"{where}.content[{at}]", inner)
            others = [part for part in parts if part["type"] != "text"]
            if others and not self._extensions:
                parts = [part for part in parts if part["type"] == "text"]
                following += [{"type": "text", "text": f"Returned by tool call {block.tool_use_id}:"}, *others]
            content = self._content(parts, _PARAGRAPH)
        if block.is_error and not self._extensions and isinstance(content, str):
            content = f"Error: {content}"
        elif block.is_error:
            message["is_error"] = True
        message["content"] = content
        return self._marked(message, block)

    def _parts(self, where: str, block: Block, *, documents: bool = True) -> list[dict[str, Any]]:
        """Return the parts for a block of the user's: text, an image, a document."""
        if block.type == "text":
            return [self._marked({"type": "text", "text": block.text}, block)]
        if block.type == "image":
            return [self._marked({"type": "image_url", "image_url": {"url": _url(where, block.source)}}, block)]
        if block.type == "document" and documents:
            return self._document(where, block)
        raise unsupported(where, f"Blocks of type '{block.type[:60]}' are not supported by this model's provider.")

    def _document(self, where: str, block: Block) -> list[dict[str, Any]]:
        source = block.source
        if isinstance(block.citations, dict) and block.citations.get("enabled") and not self._extensions:
            raise unsupported(f"{where}.citations", "Citations are not supported by this model's provider.")
        kind = source.get("type")
        if kind == "text":
            head = f"{block.title}\n\n" if block.title else ""
            return [self._marked({"type": "text", "text": f"{head}{source.get('data', '')}"}, block)]
        if kind == "content":
            inner = read(_system, Raw(_encode(source.get("content", ""))), f"{where}.source.content")
            if isinstance(inner, str):
                return [{"type": "text", "text": inner}]
            blocks = [read(_block, raw, f"{where}.source.content") for raw in inner]
            return [part for one in blocks for part in self._parts(where, one, documents=False)]
        if kind == "base64":
            url = f"data:{source.get('media_type')};base64,{source.get('data')}"
            file = {"filename": block.title or "document.pdf", "file_data": url}
        elif kind == "file":
            file = {"file_id": str(source.get("file_id"))}
        else:
            raise unsupported(f"{where}.source", "Documents by URL are not supported by this model's provider.")
        part: dict[str, Any] = {"type": "file", "file": file}
        if self._extensions:
            told = {"title": block.title, "context": block.context, "citations": block.citations}
            part |= {name: value for name, value in told.items() if value is not None}
        return [self._marked(part, block)]

    def _marked(self, part: dict[str, Any], block: Block) -> dict[str, Any]:
        if self._extensions and block.cache_control is not None:
            part["cache_control"] = block.cache_control
        return part

    def _content(self, parts: list[dict[str, Any]], joiner: str) -> str | list[dict[str, Any]]:
        """Return texts as one string where nothing is lost by it: many servers take no list here."""
        bare = all(part.keys() == {"type", "text"} for part in parts)
        if bare and (len(parts) < 2 or not self._extensions):
            return joiner.join(part["text"] for part in parts)
        return parts

    def _tool(self, at: int, raw: Raw) -> dict[str, Any]:
        tool = read(_object, raw, f"tools[{at}]")
        kind = _decode(tool["type"]) if "type" in tool else None
        if kind not in _CUSTOM_TOOLS:
            why = f"The tool type '{str(kind)[:60]}' is not supported by this model's provider."
            raise Inapplicable(why, code="unsupported_tool", param=f"tools[{at}]")
        function: dict[str, Any] = {"name": tool.get("name", Raw(b'""'))}
        for theirs, ours in (("description", "description"), ("input_schema", "parameters"), ("strict", "strict")):
            if given(tool, theirs) is not None:
                function[ours] = tool[theirs]
        carried = {name: tool[name] for name in _TOOL_HINTS if name in tool} if self._extensions else {}
        return {"type": "function", "function": function, **carried}


_object = msgspec.json.Decoder(dict[str, Raw])


def _url(where: str, source: dict[str, Any]) -> str:
    kind = source.get("type")
    if kind == "base64":
        return f"data:{source.get('media_type')};base64,{source.get('data')}"
    if kind == "url":
        return str(source.get("url"))
    raise unsupported(f"{where}.source", "Images by file id are not supported by this model's provider.")


def _max_tokens(chat: Object, value: Raw) -> None:
    model = str(_decode(chat["model"]))
    chat["max_completion_tokens" if _NEWER_LIMIT(model) else "max_tokens"] = value


def _tool_choice(chat: Object, value: Raw) -> None:
    choice = _decode(value)
    kind = choice.get("type")
    words: dict[Any, Any] = {
        "auto": "auto",
        "any": "required",
        "none": "none",
        "tool": {"type": "function", "function": {"name": choice.get("name", "")}},
    }
    if kind not in words:
        raise unsupported(
            "tool_choice", f"The tool choice '{str(kind)[:60]}' is not supported by this model's provider."
        )
    chat["tool_choice"] = Raw(_encode(words[kind]))
    if choice.get("disable_parallel_tool_use"):
        chat["parallel_tool_calls"] = Raw(b"false")


def _metadata(chat: Object, value: Raw) -> None:
    user = _decode(value).get("user_id")
    if isinstance(user, str):
        # OpenAI takes 64 characters; a longer name is told by its digest, which is as good at telling users apart.
        name = user if len(user) <= _MAX_USER else hashlib.sha256(user.encode()).hexdigest()
        chat["user"] = Raw(_encode(name))


def _output_config(chat: Object, value: Raw) -> None:
    form = _decode(value, type=dict[str, Raw]).get("format")
    if form is None or bytes(form) == _NULL:
        return
    document = _decode(form, type=dict[str, Raw])
    schema = {"name": "output", "schema": document.get("schema", Raw(b"{}")), "strict": True}
    chat["response_format"] = Raw(_encode({"type": "json_schema", "json_schema": schema}))


def _service_tier(chat: Object, value: Raw) -> None:
    chat["service_tier"] = Raw(b'"default"') if _decode(value) == "standard_only" else value


def _nothing(chat: Object, value: Raw) -> None:
    """Another field's writer reads it too."""


def _effort(chat: Object, body: Object) -> None:
    """Say how hard to think: `output_config.effort`, else what the budget for thinking amounts to."""
    effort = _decode(body["output_config"]).get("effort") if given(body, "output_config") is not None else None
    thinking = _decode(body["thinking"]) if given(body, "thinking") is not None else {}
    if thinking.get("type") == "disabled":
        return
    if effort is None and thinking.get("type") == "enabled":
        budget = thinking.get("budget_tokens", 0)
        effort = "low" if budget <= _LOW_BUDGET else "medium" if budget <= _MEDIUM_BUDGET else "high"
    if effort is not None:
        chat["reasoning_effort"] = Raw(_encode(effort))


def _same(theirs: str) -> Callable[[Object, Raw], None]:
    def write(chat: Object, value: Raw) -> None:
        chat[theirs] = value

    return write


_WRITERS: dict[str, Callable[[Object, Raw], None]] = {
    "max_tokens": _max_tokens,
    "stop_sequences": _same("stop"),
    "tool_choice": _tool_choice,
    "metadata": _metadata,
    "output_config": _output_config,
    "service_tier": _service_tier,
    "thinking": _nothing,
}
