"""Tool calling through constrained replies: what the model is asked for."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from hortator.errors import InvalidRequest
from hortator.wire.tool_schema import Object, Plan, constrain

LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look at something.",
        "parameters": {
            "type": "object",
            "properties": {"at": {"type": "string", "description": "what"}, "how": {"enum": ["near", "far"]}},
            "required": ["at"],
        },
    },
}
STOP = {"type": "function", "function": {"name": "stop"}}


def asked(**more: Any) -> tuple[dict[str, Any], Plan | None]:
    request = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **more}
    body: Object = msgspec.json.decode(msgspec.json.encode(request), type=Object)
    before = {key: bytes(value) for key, value in body.items()}
    result, plan = constrain(body)
    assert {key: bytes(value) for key, value in body.items()} == before, "the client's body was changed in place"
    return json.loads(msgspec.json.encode(result)), plan


def alternatives(body: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the schema's alternatives by tool name."""
    schema = body["response_format"]["json_schema"]["schema"]
    return {one["properties"]["tool"]["const"]: one["properties"] for one in schema["anyOf"]}


def test_a_request_without_tools_is_not_touched() -> None:
    body, plan = asked(temperature=1, stop=["x"])
    assert plan is None
    assert body == {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 1, "stop": ["x"]}


def test_auto_offers_every_tool_and_an_answer() -> None:
    body, plan = asked(tools=[LOOK, STOP], parallel_tool_calls=True, temperature=0)
    assert plan == Plan(no_tool="none", raw_answer=False, legacy=False)
    offered = alternatives(body)
    assert list(offered) == ["none", "look", "stop"]
    assert offered["none"]["answer"] == {"type": "string"}
    assert offered["look"]["arguments"]["required"] == ["at"]
    assert offered["look"]["arguments"]["additionalProperties"] is False
    assert offered["stop"]["arguments"] == {"type": "object", "properties": {}, "additionalProperties": False}
    assert body["temperature"] == 0
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & body.keys()


def test_the_model_is_told_of_its_tools_in_one_system_message() -> None:
    body, _ = asked(
        tools=[LOOK], messages=[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "x"}]
    )
    system, user = body["messages"]
    assert system["content"].startswith(
        "Be kind.\n\nYou have these tools:\n- look(at, how?): Look at something. (at: what)"
    )
    assert user == {"role": "user", "content": "x"}


def test_the_same_tools_give_the_same_system_text() -> None:
    first, _ = asked(tools=[LOOK, STOP])
    second, _ = asked(tools=[LOOK, STOP], messages=[{"role": "user", "content": "something else"}])
    assert first["messages"][0] == second["messages"][0]


@pytest.mark.parametrize(
    ("choice", "offered"),
    [
        ("required", ["look", "stop"]),
        ({"type": "function", "function": {"name": "stop"}}, ["stop"]),
        ({"type": "function", "name": "stop"}, ["stop"]),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"name": "look"}]}}, ["look"]),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"name": "look"}]}}, ["none", "look"]),
        ("auto", ["none", "look", "stop"]),
        (None, ["none", "look", "stop"]),
    ],
)
def test_tool_choice_decides_what_is_offered(choice: Any, offered: list[str]) -> None:
    body, plan = asked(tools=[LOOK, STOP], tool_choice=choice)
    assert list(alternatives(body)) == offered
    assert plan is not None
    assert (plan.no_tool is None) == ("none" not in offered)


def test_tool_choice_none_is_an_ordinary_request() -> None:
    body, plan = asked(tools=[LOOK], tool_choice="none", logprobs=True)
    assert plan is None
    assert "response_format" not in body
    assert body["logprobs"] is True
    assert body["messages"] == [{"role": "user", "content": "hi"}]


def test_a_tool_named_none_does_not_stand_for_no_tool() -> None:
    body, plan = asked(tools=[{"type": "function", "function": {"name": "none"}}])
    assert plan is not None
    assert plan.no_tool == "no_none"
    assert list(alternatives(body)) == ["no_none", "none"]


def test_references_inside_a_tool_still_point_into_it() -> None:
    point = {"type": "object", "properties": {"x": {"type": "number"}, "next": {"$ref": "#/$defs/point"}}}
    parameters = {"type": "object", "properties": {"to": {"$ref": "#/$defs/point"}}, "$defs": {"point": point}}
    tool = {"type": "function", "function": {"name": "go", "parameters": parameters}}
    body, _ = asked(tools=[tool], tool_choice="required")
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["anyOf"][0]["properties"]["arguments"] == {"$ref": "#/$defs/t0"}
    moved = schema["$defs"]["t0"]
    assert moved["properties"]["to"] == {"$ref": "#/$defs/t0/$defs/point"}
    assert moved["$defs"]["point"]["properties"]["next"] == {"$ref": "#/$defs/t0/$defs/point"}


def test_a_response_format_beside_tools_is_the_answers_schema() -> None:
    wanted = {"type": "object", "properties": {"n": {"type": "integer"}}}
    body, plan = asked(
        tools=[LOOK], response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": wanted}}
    )
    assert alternatives(body)["none"]["answer"] == wanted
    assert plan is not None
    assert plan.raw_answer


def test_past_calls_and_results_become_text() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at":"sea"}'}}
    again = {"id": "c2", "type": "function", "function": {"name": "stop", "arguments": "{broken"}}
    messages = [
        {"role": "user", "content": "Look!"},
        {"role": "assistant", "content": None, "tool_calls": [call, again]},
        {"role": "tool", "tool_call_id": "c1", "content": "blue"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "halted"}]},
    ]
    body, _ = asked(tools=[LOOK, STOP], messages=messages)
    _, user, assistant, result = body["messages"]
    assert user == {"role": "user", "content": "Look!"}
    assert assistant["content"] == '{"tool":"look","arguments":{"at":"sea"}}\n{"tool":"stop","arguments":"{broken"}'
    assert result["role"] == "user"
    assert result["content"].startswith("Result of look:\nblue\n\nResult of stop:\nhalted\n\n")
    assert set(result) == {"role", "content"}


def test_without_tools_past_calls_are_told_in_words() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at":"sea"}'}}
    messages = [
        {"role": "assistant", "content": "Wait.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "blue"},
        {"role": "user", "content": "So?"},
    ]
    body, plan = asked(messages=messages)
    assert plan is None
    assert [message["content"] for message in body["messages"]] == [
        'Wait.\nI called look with {"at":"sea"}.',
        "Result of look:\nblue",
        "So?",
    ]


def test_the_older_functions_work_too() -> None:
    messages = [
        {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": "{}"}},
        {"role": "function", "name": "look", "content": "blue"},
    ]
    body, plan = asked(messages=messages, functions=[LOOK["function"]], function_call={"name": "look"})
    assert plan == Plan(no_tool=None, raw_answer=False, legacy=True)
    assert list(alternatives(body)) == ["look"]
    assert not {"functions", "function_call"} & body.keys()
    assert body["messages"][2]["content"].startswith("Result of look:\nblue")


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "unsupported_tool", "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "invalid_value", "tools[0].name"),
        ({"tools": [{"type": "function", "function": {"name": "x", "parameters": 1}}]}, "invalid_type", "tools"),
        ({"tools": [STOP] * 129}, "too_many_tools", "tools"),
        ({"tools": [STOP], "tool_choice": "sometimes"}, "invalid_value", "tool_choice"),
        (
            {"tools": [STOP], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "invalid_value",
            "tool_choice",
        ),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
        ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "invalid_value", "tool_choice"),
    ],
)
def test_tools_that_cannot_be_served_are_refused(more: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        asked(**more)
    assert (caught.value.code, caught.value.param) == (code, param)


@pytest.mark.parametrize("key", ["response_format", "json_schema", "tools"])
def test_a_schema_that_would_stop_the_engine_is_refused(key: str) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": list(range(300))}, "b": {"items": {"enum": list(range(300))}}},
    }
    tool = {"type": "function", "function": {"name": "x", "parameters": schema}}
    wanted = {
        "response_format": {"type": "json_schema", "json_schema": {"schema": schema}},
        "json_schema": schema,
        "tools": [tool],
    }
    for value in (wanted[key], {"x": "y" * 70_000}):
        with pytest.raises(InvalidRequest) as caught:
            asked(**{key: value})
        assert (caught.value.code, caught.value.param) == ("schema_too_large", key)


def test_a_schema_without_end_is_refused() -> None:
    schema: dict[str, Any] = {"$ref": "#"}
    for _ in range(100):
        schema = {"properties": {"a": schema}}
    with pytest.raises(InvalidRequest) as caught:
        asked(tools=[{"type": "function", "function": {"name": "deep", "parameters": schema}}])
    assert caught.value.code == "too_deep"
