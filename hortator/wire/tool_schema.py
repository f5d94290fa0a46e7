"""Tool calling for models that cannot do it by themselves: a request with tools becomes one with a schema-constrained reply.

`providers/local.py` calls `constrain` on a request; the reply's text is then one JSON object that `tool_reply.py` reads back
into `tool_calls`. The object is `{"tool": NAME, "arguments": {...}}`, or `{"tool": "none", "answer": ...}` where the model may
answer itself: naming "no tool" like a tool is what small models decide best. Past calls and results become plain text.
Pure: no I/O, and the client's own values are never changed in place.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any, NamedTuple

import msgspec
from msgspec import Raw, Struct

from hortator.errors import InvalidRequest

Object = dict[str, Raw]

MAX_TOOLS = 128
"""As OpenAI's limit."""
MAX_SCHEMA_DEPTH = 64
MAX_SCHEMA_BYTES = 64 * 1024
MAX_ENUM_VALUES = 500
"""In all schemas of a request. The engine tries every value for every token: with thousands it stands still for minutes."""
MAX_DESCRIPTION = 400
"""Characters of a tool's description shown to the model; every one costs prompt time on a small machine."""
MAX_HINT = 120
"""The same for one parameter's description."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}").fullmatch
_OURS = ("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "logprobs", "top_logprobs")
"""Parameters that the constrained request replaces. Log probabilities would be those of our JSON, not of the answer."""
_SCHEMAS = ("response_format", "tools", "functions", "json_schema", "grammar")
"""Where schemas come in; the last two are the engine's own parameters."""
_NO_TOOL = "No tool is needed: greetings, questions you can answer yourself, writing."
_AFTER_RESULT = 'If this answers my question, reply with the tool "{no_tool}" and tell me the answer.'
"""Without it small models repeat the call whose result they have just been given."""


class Function(Struct):
    """A function as the client declares it."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Struct):
    """A tool of any type; only functions can be served."""

    type: str = "function"
    function: Function | None = None


class Plan(NamedTuple):
    """What the reply's reader must know about a constrained request."""

    no_tool: str | None
    """The name that stands for answering directly; None where a tool must be called."""
    raw_answer: bool
    """The client asked for JSON: the answer is a JSON value, not a string."""
    legacy: bool
    """The client used `functions`, so it gets `function_call`."""


class _Choice(NamedTuple):
    """Which functions may be called, and whether one must be."""

    functions: list[Function]
    required: bool


def constrain(body: Object) -> tuple[Object, Plan | None]:
    """Return the body to send and how to read its reply; None = the reply is an ordinary one.

    Raises InvalidRequest for tools that cannot be served, are not well formed, or ask too much of the engine.
    """
    for key in _SCHEMAS:
        if key in body:
            _bound(key, body[key])
    messages = bytes(body["messages"])
    past = b"tool" in messages or b"function" in messages
    if not past and not any(key in body for key in _OURS[:5]):
        return body, None
    legacy = "functions" in body and "tools" not in body
    choice = _legacy_choice(body) if legacy else _choice(body)
    served = choice is not None and bool(choice.functions)
    keep = ("logprobs", "top_logprobs") if not served else ()
    result = {key: value for key, value in body.items() if key not in _OURS or key in keep}
    listed: list[dict[str, Any]] = msgspec.json.decode(messages)
    if choice is None or not served:
        result["messages"] = _raw(_plain_history(listed, None))
        return result, None
    plan = Plan(None if choice.required else _free_name(choice.functions), _wants_json(body), legacy)
    history = _plain_history(listed, plan)
    result["messages"] = _raw(_with_system(history, _instructions(choice.functions, plan)))
    result["response_format"] = _raw(
        {"type": "json_schema", "json_schema": {"name": "reply", "schema": _reply_schema(choice, plan, body)}}
    )
    return result, plan


def _bound(key: str, value: Raw) -> None:
    """Refuse schemas that would keep the engine from everybody else."""
    if len(bytes(value)) > MAX_SCHEMA_BYTES:
        raise InvalidRequest(f"'{key}' is larger than {MAX_SCHEMA_BYTES} bytes.", code="schema_too_large", param=key)
    if b'"enum"' in bytes(value) and _enum_values(msgspec.json.decode(value), 0) > MAX_ENUM_VALUES:
        raise InvalidRequest(
            f"'{key}' has more than {MAX_ENUM_VALUES} enum values.", code="schema_too_large", param=key
        )


def _enum_values(schema: Any, depth: int) -> int:
    """Count the values of every `enum` in a schema."""
    if depth > MAX_SCHEMA_DEPTH:
        raise InvalidRequest("A schema is nested too deeply.", code="too_deep")
    if isinstance(schema, list):
        return sum(_enum_values(item, depth + 1) for item in schema)
    if not isinstance(schema, dict):
        return 0
    own = schema.get("enum")
    count = len(own) if isinstance(own, list) else 0
    return count + sum(_enum_values(value, depth + 1) for value in schema.values())


def _raw(value: Any) -> Raw:
    return Raw(msgspec.json.encode(value))


def _decode(body: Object, key: str, kind: Any) -> Any:
    """Return a parameter in its type, None when absent or null. Raises InvalidRequest."""
    if key not in body or body[key] == b"null":
        return None
    try:
        return msgspec.json.decode(body[key], type=kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise InvalidRequest(f"Invalid '{key}': {error}.", code="invalid_type", param=key) from None


# which functions -------------------------------------------------------------------------------------------------------


def _choice(body: Object) -> _Choice | None:
    """Read `tools` and `tool_choice`. None = no tools in this call."""
    tools = _decode(body, "tools", list[Tool]) or []
    functions = [_function(tool, index) for index, tool in enumerate(tools)]
    _check(functions, "tools")
    wanted = _decode(body, "tool_choice", Any)
    if wanted in (None, "auto", "none"):
        return None if wanted == "none" else _Choice(functions, required=False)
    if not functions:
        raise InvalidRequest("'tool_choice' needs 'tools'.", code="invalid_value", param="tool_choice")
    if wanted == "required":
        return _Choice(functions, required=True)
    if isinstance(wanted, dict):
        if wanted.get("type") == "allowed_tools":
            allowed = wanted.get("allowed_tools") or wanted
            names = [_named(tool) for tool in allowed.get("tools") or []]
            return _Choice(_pick(functions, names), required=allowed.get("mode") == "required")
        return _Choice(_pick(functions, [_named(wanted)]), required=True)
    raise InvalidRequest("Invalid 'tool_choice'.", code="invalid_value", param="tool_choice")


def _legacy_choice(body: Object) -> _Choice | None:
    """Read `functions` and `function_call`, the older names of the same."""
    functions = _decode(body, "functions", list[Function]) or []
    _check(functions, "functions")
    wanted = _decode(body, "function_call", Any)
    if isinstance(wanted, dict):
        return _Choice(_pick(functions, [wanted.get("name")]), required=True)
    return None if wanted == "none" else _Choice(functions, required=False)


def _function(tool: Tool, index: int) -> Function:
    if tool.type != "function" or tool.function is None:
        raise InvalidRequest(
            f"The embedded model serves tools of type 'function' only, not '{tool.type[:40]}'.",
            code="unsupported_tool",
            param=f"tools[{index}].type",
        )
    return tool.function


def _named(wanted: Any) -> object:
    """Return the function name inside `{"type": "function", "function": {"name": ...}}` or its flat form."""
    if not isinstance(wanted, dict):
        return None
    function = wanted.get("function")
    return function.get("name") if isinstance(function, dict) else wanted.get("name")


def _pick(functions: list[Function], names: list[object]) -> list[Function]:
    picked = [function for function in functions if function.name in names]
    if not picked or len({function.name for function in picked}) < len(set(map(str, names))):
        raise InvalidRequest(
            "'tool_choice' names a tool that is not declared.", code="invalid_value", param="tool_choice"
        )
    return picked


def _check(functions: list[Function], param: str) -> None:
    if len(functions) > MAX_TOOLS:
        raise InvalidRequest(f"More than {MAX_TOOLS} tools.", code="too_many_tools", param=param)
    for index, function in enumerate(functions):
        if _NAME(function.name) is None:
            raise InvalidRequest(
                "A tool's name is 1 to 64 letters, digits, '_', '-' and '.'.",
                code="invalid_value",
                param=f"{param}[{index}].name",
            )


def _free_name(functions: list[Function]) -> str:
    """Return a name for "no tool" that no tool has."""
    name = "none"
    while any(function.name == name for function in functions):
        name = f"no_{name}"
    return name


# the schema ------------------------------------------------------------------------------------------------------------


def _wants_json(body: Object) -> bool:
    wanted = _decode(body, "response_format", dict[str, Any]) or {}
    return wanted.get("type") in ("json_object", "json_schema")


def _answer_schema(body: Object) -> dict[str, Any]:
    """Return the schema of a direct answer: a string, or what the client's `response_format` asks for."""
    wanted = _decode(body, "response_format", dict[str, Any]) or {}
    if wanted.get("type") == "json_schema":
        inner = wanted.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, dict) else None
        return schema if isinstance(schema, dict) else {"type": "object"}
    return {"type": "object"} if wanted.get("type") == "json_object" else {"type": "string"}


def _reply_schema(choice: _Choice, plan: Plan, body: Object) -> dict[str, Any]:
    """Return the schema of the whole reply: one alternative a tool, so that the arguments fit the tool that was chosen."""
    branches = [(function.name, "arguments", _arguments_schema(function)) for function in choice.functions]
    if plan.no_tool is not None:
        branches.insert(0, (plan.no_tool, "answer", _answer_schema(body)))
    definitions: dict[str, Any] = {}
    alternatives = []
    for index, (name, key, schema) in enumerate(branches):
        if b'"$ref"' in msgspec.json.encode(schema):
            definitions[f"t{index}"] = _rebased(schema, f"#/$defs/t{index}", 0)
            schema = {"$ref": f"#/$defs/t{index}"}
        alternatives.append(
            {
                "type": "object",
                "properties": {"tool": {"const": name}, key: schema},
                "required": ["tool", key],
                "additionalProperties": False,
            }
        )
    return {"anyOf": alternatives, **({"$defs": definitions} if definitions else {})}


def _arguments_schema(function: Function) -> dict[str, Any]:
    """Return a function's parameters as a closed object; OpenAI reads absent parameters as an empty list of them."""
    schema = dict(function.parameters or {"properties": {}})
    schema.setdefault("type", "object")
    if "properties" in schema:
        schema.setdefault("additionalProperties", False)
    return schema


def _rebased(schema: Any, prefix: str, depth: int) -> Any:
    """Return a copy whose `#/...` references point below `prefix`, where the schema now stands."""
    if depth > MAX_SCHEMA_DEPTH:
        raise InvalidRequest("A tool's schema is nested too deeply.", code="too_deep", param="tools")
    if isinstance(schema, list):
        return [_rebased(item, prefix, depth + 1) for item in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {key: _rebased(value, prefix, depth + 1) for key, value in schema.items()}
    reference = copy.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        copy["$ref"] = prefix + reference[1:]
    return copy


# the text --------------------------------------------------------------------------------------------------------------


def _instructions(functions: list[Function], plan: Plan) -> str:
    """Return what the model is told about its tools. The same tools give the same text, so that the prompt cache hits."""
    lines = ["You have these tools:"]
    lines += [f"- {_signature(function)}" for function in functions]
    if plan.no_tool is None:
        lines.append('Reply in JSON: {"tool": "<name>", "arguments": {...}}.')
    else:
        lines.append(f"- {plan.no_tool}(): {_NO_TOOL}")
        answer = "<your reply>" if not plan.raw_answer else "<JSON>"
        lines.append(
            f'Reply in JSON: {{"tool": "<name>", "arguments": {{...}}}} or '
            f'{{"tool": "{plan.no_tool}", "answer": "{answer}"}}.'
        )
    return "\n".join(lines)


def _signature(function: Function) -> str:
    """Return `name(required, optional?): description` and the descriptions of parameters that have one."""
    schema = function.parameters or {}
    properties = schema.get("properties")
    required = schema.get("required")
    names: list[str] = []
    hints: list[str] = []
    for name, value in properties.items() if isinstance(properties, dict) else ():
        names.append(name if isinstance(required, list) and name in required else f"{name}?")
        hint = value.get("description") if isinstance(value, dict) else None
        if isinstance(hint, str) and hint:
            hints.append(f"{name}: {hint[:MAX_HINT]}")
    text = f"{function.name}({', '.join(names)}): {(function.description or '')[:MAX_DESCRIPTION]}"
    return f"{text} ({'; '.join(hints)})" if hints else text


def _with_system(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """Add `text` to the first system message, or put one in front: chat templates know one system message at most."""
    if messages and messages[0].get("role") in ("system", "developer"):
        content = messages[0].get("content")
        joined = (
            [*content, {"type": "text", "text": text}] if isinstance(content, list) else f"{content or ''}\n\n{text}"
        )
        return [{**messages[0], "content": joined}, *messages[1:]]
    return [{"role": "system", "content": f"You are a helpful assistant. {text}"}, *messages]


def _plain_history(messages: list[dict[str, Any]], plan: Plan | None) -> list[dict[str, Any]]:
    """Return the messages with past calls and their results as text that any chat template can show.

    With a plan, calls look as the model is to write them now; without one they are told in words, so that it does not go on
    writing calls that nobody reads.
    """
    names: dict[str, str] = {}
    result: list[dict[str, Any]] = []
    for message in messages:
        calls = _past_calls(message)
        if calls:
            names.update({str(call.get("id")): _called(call)[0] for call in calls})
            result.append({"role": "assistant", "content": _told(message, calls, plan)})
        elif message.get("role") in ("tool", "function"):
            name = names.get(str(message.get("tool_call_id"))) or message.get("name") or "the tool"
            text = f"Result of {name}:\n{_text(message.get('content'))}"
            if result and result[-1].get("_result"):
                result[-1]["content"] += f"\n\n{text}"
            else:
                result.append({"role": "user", "content": text, "_result": True})
        else:
            result.append(message)
    if result and result[-1].get("_result"):
        if plan is None:
            result[-1]["content"] += "\n\nTell me the answer to my question."
        elif plan.no_tool is not None:
            result[-1]["content"] += f"\n\n{_AFTER_RESULT.format(no_tool=plan.no_tool)}"
    return [{key: value for key, value in message.items() if key != "_result"} for message in result]


def _past_calls(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the tool calls in an assistant message, the older `function_call` too."""
    if message.get("role") != "assistant":
        return []
    calls = message.get("tool_calls") or []
    if not calls and isinstance(message.get("function_call"), dict):
        calls = [{"function": message["function_call"]}]
    return [call for call in calls if isinstance(call, dict)]


def _called(call: dict[str, Any]) -> tuple[str, Any]:
    """Return a past call's function name and arguments (decoded where they are JSON)."""
    function = call.get("function")
    if not isinstance(function, dict):
        return "the tool", {}
    arguments = function.get("arguments") or "{}"
    with contextlib.suppress(msgspec.DecodeError, RecursionError):  # broken JSON from an earlier turn stays a string
        arguments = msgspec.json.decode(arguments) if isinstance(arguments, str) else arguments
    return str(function.get("name") or "the tool"), arguments


def _told(message: dict[str, Any], calls: list[dict[str, Any]], plan: Plan | None) -> str:
    """Return the text of an assistant message that called tools."""
    lines = [text] if (text := _text(message.get("content"))) else []
    for name, arguments in map(_called, calls):
        if plan is None:
            lines.append(f"I called {name} with {msgspec.json.encode(arguments).decode()}.")
        else:
            lines.append(msgspec.json.encode({"tool": name, "arguments": arguments}).decode())
    return "\n".join(lines)


def _text(content: Any) -> str:
    """Return a message's content as text."""
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""
