"""Tools between the responses dialect and chat completions: definitions, choices, and the names that calls come back under.

`responses.py` turns a request's tools into chat's; `responses_reply.py` and `responses_stream.py` turn calls back with what
`Toolbox` remembers. Chat knows functions; a free-form (`custom`) tool becomes a function with one string, `input`, where
the provider has no such tools, and a namespace becomes part of its functions' names. Pure: no I/O.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Raw

from hortator.errors import InvalidRequest
from hortator.wire.body import Object
from hortator.wire.fields import (
    fields,
    given,
    is_text,
    objects,
    optional_text,
    raw,
    required,
    required_text,
    text,
    unsupported,
)

_FUNCTION = Raw(b'"function"')
_CUSTOM = Raw(b'"custom"')
_INPUT_ONLY = Raw(
    b'{"type":"object","properties":{"input":{"type":"string","description":"The whole input of the tool, as it is."}},'
    b'"required":["input"],"additionalProperties":false}'
)
_MODES = frozenset(("none", "auto", "required"))
_HOSTED = "the provider of this model speaks chat completions, where only functions and custom tools can be used."


class Name(NamedTuple):
    """What the client calls a tool that goes by another name or another kind in chat."""

    type: Literal["function", "custom"]
    name: str
    namespace: str | None = None


class Toolbox:
    """The tools of one request, as chat has them, and how to name their calls to the client."""

    def __init__(self, custom_tools: bool) -> None:
        """`custom_tools`: the provider takes chat's own `custom` tools."""
        self.custom_tools = custom_tools
        self.definitions: list[tuple[str, Object]] = []
        """(name in chat, definition)."""
        self.names: dict[str, Name] = {}
        """By the name in chat; a function without namespace is not here, because its name is the same."""

    def client_name(self, name: str) -> Name:
        """Return what the client calls the tool that chat calls `name`."""
        return self.names.get(name) or Name("function", name)

    def add(self, tool: Object, param: str, namespace: str | None = None) -> None:
        """Take in one definition. Raises InvalidRequest for a tool that the provider of the tools would have to run itself."""
        kind = required_text(tool, "type", param)
        if kind == "function":
            self._add_function(tool, param, namespace)
        elif kind == "custom":
            self._add_custom(tool, param, namespace)
        elif kind == "namespace" and namespace is None:
            self._add_namespace(tool, param)
        elif not is_offer(kind):
            raise unsupported(param, f"the tool '{kind[:100]}' is not a function, and {_HOSTED}")

    def _add_namespace(self, tool: Object, param: str) -> None:
        """Take in a namespace's tools; what it is for becomes a part of what each of them is for."""
        name = required_text(tool, "name", param)
        described = optional_text(tool, "description", param)
        for index, inner in enumerate(objects(required(tool, "tools", param), f"{param}.tools")):
            where = f"{param}.tools[{index}]"
            own = optional_text(inner, "description", where)
            both = [said for said in (described, own) if said]
            self.add(inner | {"description": raw("\n\n".join(both))} if both else inner, where, name)

    def _add_function(self, tool: Object, param: str, namespace: str | None) -> None:
        if given(tool, "function") is not None:  # chat's own form, as some clients of the chat door send it
            inner = fields(tool["function"], f"{param}.function")
            self.definitions.append((required_text(inner, "name", f"{param}.function"), tool))
            return
        name = required_text(tool, "name", param)
        chat_name = in_chat(name, namespace)
        if namespace is not None:
            self.names[chat_name] = Name("function", name, namespace)
        function = {key: value for key in tool if key != "type" and (value := given(tool, key)) is not None}
        function["name"] = raw(chat_name)
        self.definitions.append((chat_name, {"type": _FUNCTION, "function": raw(function)}))

    def _add_custom(self, tool: Object, param: str, namespace: str | None) -> None:
        if given(tool, "custom") is not None:
            inner = fields(tool["custom"], f"{param}.custom")
        else:
            inner = {key: value for key in tool if key != "type" and (value := given(tool, key)) is not None}
        name = required_text(inner, "name", param)
        chat_name = in_chat(name, namespace)
        self.names[chat_name] = Name("custom", name, namespace)
        inner["name"] = raw(chat_name)
        grammar = _grammar(inner, param)
        if self.custom_tools:
            if grammar:
                inner["format"] = raw({"type": "grammar", "grammar": grammar})
            self.definitions.append((chat_name, {"type": _CUSTOM, "custom": raw(inner)}))
            return
        described = optional_text(inner, "description", param) or ""
        if grammar:
            rule = f"The input must follow this {grammar['syntax']} grammar:\n{grammar['definition']}"
            described = f"{described}\n\n{rule}" if described else rule
        function: dict[str, Any] = {"name": chat_name, "description": described, "parameters": _INPUT_ONLY}
        self.definitions.append((chat_name, {"type": _FUNCTION, "function": raw(function)}))

    def call(self, item: Object, param: str) -> dict[str, Any]:
        """Return a past call of the client's conversation as one of chat's `tool_calls`."""
        kind = required_text(item, "type", param)
        id = required(item, "call_id", param)
        name = in_chat(required_text(item, "name", param), optional_text(item, "namespace", param))
        if kind == "function_call":
            arguments = required(item, "arguments", param)
            return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        given_input = required(item, "input", param)
        if self.custom_tools:
            return {"id": id, "type": "custom", "custom": {"name": name, "input": given_input}}
        wrapped = wrap_input(text(given_input, f"{param}.input"))
        return {"id": id, "type": "function", "function": {"name": name, "arguments": wrapped}}


def is_offer(kind: str) -> bool:
    """Whether a hosted tool only offers to look something up: without it the model answers from what it knows.

    Some clients (Codex) always offer it. It is left out where the provider has none, and `responses_reply.omitted` says so.
    """
    return kind.startswith("web_search")


def in_chat(name: str, namespace: str | None) -> str:
    """Return a tool's name in chat, where there are no namespaces."""
    return name if namespace is None else f"{namespace}__{name}"


def wrap_input(given_input: str) -> str:
    """Return a custom tool's input as the arguments of the function that stands for it."""
    return msgspec.json.encode({"input": given_input}).decode()


def unwrap_input(arguments: str) -> str:
    """Return a custom tool's input from the arguments of the function that stands for it; a model may have ignored the form."""
    try:
        document = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        return arguments
    found = document.get("input") if isinstance(document, dict) and len(document) == 1 else document
    return found if isinstance(found, str) else arguments


def _grammar(tool: Object, param: str) -> dict[str, str] | None:
    """Return the grammar of a custom tool's input, None when it is free text."""
    format = given(tool, "format")
    if format is None:
        return None
    found = fields(format, f"{param}.format")
    if required_text(found, "type", f"{param}.format") != "grammar":
        return None
    inner = given(found, "grammar")
    if inner is not None:
        found = fields(inner, f"{param}.format.grammar")
    return {key: required_text(found, key, f"{param}.format") for key in ("syntax", "definition")}


def read_tools(body: Object, custom_tools: bool) -> Toolbox:
    """Return a request's tools. Raises InvalidRequest for those that chat cannot express."""
    toolbox = Toolbox(custom_tools)
    tools = given(body, "tools")
    if tools is not None:
        for index, tool in enumerate(objects(tools, "tools")):
            toolbox.add(tool, f"tools[{index}]")
    return toolbox


def put_tools(body: Object, toolbox: Toolbox, chat: Object) -> None:
    """Write the tools, and which of them may be called, into the chat request. Raises InvalidRequest."""
    definitions = toolbox.definitions
    choice = given(body, "tool_choice")
    if choice is not None:
        if is_text(choice):
            if text(choice, "tool_choice") not in _MODES:
                raise InvalidRequest(
                    "tool_choice must be none, auto or required.", code="invalid_value", param="tool_choice"
                )
        else:
            chosen = fields(choice, "tool_choice")
            if required_text(chosen, "type", "tool_choice") == "allowed_tools":
                allowed, choice = _allowed(chosen)
                definitions = [pair for pair in definitions if pair[0] in allowed]
            else:
                choice = _one(chosen, toolbox)
    if not definitions:
        if choice is not None and choice not in (raw("auto"), raw("none")):
            raise InvalidRequest(
                "tool_choice names a tool, but there are none.", code="invalid_value", param="tool_choice"
            )
        chat.pop("parallel_tool_calls", None)  # chat refuses both where there is no tool
        return
    chat["tools"] = raw([definition for _, definition in definitions])
    if choice is not None:
        chat["tool_choice"] = choice


def _one(choice: Object, toolbox: Toolbox) -> Raw:
    """Return the choice of one tool as chat writes it."""
    kind = required_text(choice, "type", "tool_choice")
    if kind not in ("function", "custom"):
        raise unsupported("tool_choice", f"'{kind[:100]}' is not a function, and {_HOSTED}")
    if given(choice, kind) is not None:
        return raw(choice)
    name = in_chat(required_text(choice, "name", "tool_choice"), optional_text(choice, "namespace", "tool_choice"))
    if kind == "custom" and not toolbox.custom_tools:
        kind = "function"
    return raw({"type": kind, kind: {"name": name}})


def _allowed(choice: Object) -> tuple[set[str], Raw]:
    """Return the chat names of the tools that may be called, and the mode."""
    where = "tool_choice.tools"
    inner = given(choice, "allowed_tools")
    if inner is not None:
        choice, where = fields(inner, "tool_choice.allowed_tools"), "tool_choice.allowed_tools.tools"
    names = set()
    for index, tool in enumerate(objects(required(choice, "tools", "tool_choice"), where)):
        param = f"{where}[{index}]"
        kind = required_text(tool, "type", param)
        if kind not in ("function", "custom"):
            raise unsupported(param, f"'{kind[:100]}' is not a function, and {_HOSTED}")
        nested = given(tool, kind)
        named = tool if nested is None else fields(nested, param)
        names.add(in_chat(required_text(named, "name", param), optional_text(named, "namespace", param)))
    return names, required(choice, "mode", "tool_choice")
