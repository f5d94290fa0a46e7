"""Requests and whole answers between the responses dialect and chat: nothing is lost there and back, and nothing goes in silence."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response
from pydantic import TypeAdapter

from hortator.errors import Inapplicable, InvalidReply, InvalidRequest
from hortator.wire import responses, responses_items

RESPONSE = TypeAdapter(Response)
Json = dict[str, Any]

PATCH = {"type": "custom", "name": "apply_patch", "description": "Edits files."}
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}
NAMESPACE = {"type": "namespace", "name": "git", "description": "", "tools": [{"type": "function", "name": "log"}]}


def body(**fields: Any) -> dict[str, msgspec.Raw]:
    return responses.parse(json.dumps({"model": "m", "input": "Salve!", **fields}).encode()).body


def chat(*, custom_tools: bool = False, **fields: Any) -> Json:
    document: Json = json.loads(msgspec.json.encode(responses.to_chat(body(**fields), custom_tools=custom_tools)))
    return document


def messages(*items: Json, **fields: Any) -> list[Json]:
    found: list[Json] = chat(input=list(items), **fields)["messages"]
    return found


def answer(message: Json, finish: str = "stop", request: Json | None = None, **more: Any) -> Json:
    """A chat completion as the client of the responses dialect gets it."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", **message}}
    reply = json.dumps({"id": "c", "model": "m-dated", "choices": [choice], **more}).encode()
    document: Json = json.loads(responses.from_chat(reply, body(**(request or {})), "resp_01", 7.0))
    RESPONSE.validate_python(document)
    return document


def call(name: str, arguments: str, id: str = "call_1") -> Json:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_parameters_go_where_chat_keeps_them() -> None:
    schema = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}
    asked = chat(
        instructions="Be brief.",
        max_output_tokens=9,
        reasoning={"effort": "low", "summary": "auto"},
        text={"format": schema, "verbosity": "low"},
        temperature=0.5,
        top_p=None,
        top_logprobs=2,
        parallel_tool_calls=False,
        metadata={"a": "b"},
        store=True,
        unknown=1,
        tools=[WEATHER],
        tool_choice={"type": "function", "name": "weather"},
    )
    assert asked == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Salve!"}],
        "max_completion_tokens": 9,
        "reasoning_effort": "low",
        "verbosity": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True},
        },
        "temperature": 0.5,
        "logprobs": True,
        "top_logprobs": 2,
        "parallel_tool_calls": False,
        "metadata": {"a": "b"},
        "unknown": 1,
        "tools": [
            {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}, "strict": True}}
        ],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
    }


def test_images_files_and_texts_become_chats_parts_and_keep_what_else_they_say() -> None:
    [message] = messages(
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "what?", "prompt_cache_breakpoint": {"mode": "explicit"}},
                {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "low"},
                {"type": "input_file", "file_data": "data:x", "filename": "a.pdf"},
            ],
        }
    )
    assert message["content"] == [
        {"type": "text", "text": "what?", "prompt_cache_breakpoint": {"mode": "explicit"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}},
        {"type": "file", "file": {"file_data": "data:x", "filename": "a.pdf"}},
    ]


def test_reasoning_text_and_parallel_calls_become_one_message_and_outputs_follow_it() -> None:
    found = messages(
        {"role": "user", "content": "go"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "ok", "annotations": []}]},
        {"type": "function_call", "call_id": "a", "name": "weather", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "b", "name": "apply_patch", "input": 'x"y'},
        {"type": "function_call_output", "call_id": "a", "output": "sun"},
        {"type": "custom_tool_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "done"}]},
        {"role": "assistant", "content": "so"},
        {"role": "assistant", "content": "and so"},
        tools=[WEATHER, PATCH],
    )
    assert found == [
        {"role": "user", "content": "go"},
        {
            "role": "assistant",
            "content": "ok",
            "reasoning_content": "hm",
            "tool_calls": [call("weather", "{}", "a"), call("apply_patch", '{"input":"x\\"y"}', "b")],
        },
        {"role": "tool", "tool_call_id": "a", "content": "sun"},
        {"role": "tool", "tool_call_id": "b", "content": "done"},
        {"role": "assistant", "content": "so"},
        {"role": "assistant", "content": "and so"},
    ]


def test_system_messages_at_the_beginning_become_one_because_templates_take_no_second() -> None:
    parts = [{"type": "input_text", "text": text} for text in ("B", "C")]
    found = messages({"role": "developer", "content": parts}, {"role": "user", "content": "D"}, instructions="A")
    assert found == [{"role": "system", "content": "A\n\nB\n\nC"}, {"role": "user", "content": "D"}]


def test_a_provider_that_takes_chats_own_fields_only_is_not_sent_past_reasoning() -> None:
    thought = {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    items = [{"role": "user", "content": "x"}, thought, {"role": "assistant", "content": "y"}]
    asked = json.loads(msgspec.json.encode(responses.to_plain_chat(body(input=items))))
    assert asked["messages"] == [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]


def test_custom_tools_stay_custom_where_the_provider_has_them() -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: x"}
    [tool] = chat(custom_tools=True, tools=[PATCH | {"format": grammar}])["tools"]
    assert tool["custom"]["format"] == {
        "type": "grammar",
        "grammar": {"syntax": "lark", "definition": "start: x"},
    }
    [tool] = chat(tools=[PATCH | {"format": grammar}])["tools"]
    assert tool["function"]["parameters"]["required"] == ["input"]
    assert "start: x" in tool["function"]["description"]


def test_only_allowed_tools_are_offered() -> None:
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "apply_patch"}]}
    asked = chat(tools=[WEATHER, PATCH], tool_choice=choice)
    assert [tool["function"]["name"] for tool in asked["tools"]] == ["apply_patch"]
    assert asked["tool_choice"] == "required"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [WEATHER, {"type": "file_search", "vector_store_ids": []}]}, "tools[1]"),
        ({"tools": [{"type": "mcp", "server_label": "m"}]}, "tools[0]"),
        ({"tools": [{"type": "code_interpreter", "container": "c"}]}, "tools[0]"),
        ({"tools": [{"type": "local_shell"}]}, "tools[0]"),
        ({"tools": [WEATHER], "tool_choice": {"type": "web_search_preview"}}, "tool_choice"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"input": [{"id": "msg_1"}]}, "input[0]"),
        ({"input": [{"type": "file_search_call", "id": "fs_1", "status": "completed"}]}, "input[0]"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "f"}]}]},
            "input[0].content[0].file_url",
        ),
        ({"input": [{"role": "user", "content": [{"type": "hologram"}]}]}, "input[0].content[0]"),
    ],
)
def test_what_chat_cannot_express_is_refused_with_its_name(fields: Json, param: str) -> None:
    with pytest.raises(Inapplicable) as refused:
        chat(**fields)
    assert refused.value.code == "unsupported_parameter"
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"input": []}, "empty_array", "input"),
        ({"input": 3}, "invalid_type", "input"),
        ({"input": None}, "missing_required_parameter", "input"),
        ({"model": ""}, "invalid_value", "model"),
        ({"tools": [{"name": "x"}]}, "missing_required_parameter", "tools[0].type"),
        ({"tool_choice": "sometimes"}, "invalid_value", "tool_choice"),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "invalid_value", "input[0].role"),
        ({"input": [{"role": "user"}]}, "missing_required_parameter", "input[0].content"),
        ({"input": [{"role": "user", "content": 3}]}, "invalid_type", "input[0].content"),
        (
            {"input": [{"type": "function_call", "call_id": "a", "arguments": "{}"}]},
            "missing_required_parameter",
            "input[0].name",
        ),
        ({"input": [{"type": "function_call_output", "call_id": "a", "output": 3}]}, "invalid_type", "input[0].output"),
    ],
)
def test_requests_that_are_wrong_are_told_where(fields: Json, code: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        chat(**fields)
    assert (refused.value.code, refused.value.param) == (code, param)


def test_what_has_no_meaning_in_chat_is_named_in_the_answer() -> None:
    items: list[Json] = [
        {"role": "user", "content": "x"},
        {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "X"},
    ]
    items.append({"type": "web_search_call", "id": "ws_1", "status": "completed"})
    asked: Json = {
        "input": items,
        "include": ["reasoning.encrypted_content"],
        "truncation": "auto",
        "client_metadata": {"a": "b"},
        "tools": [WEATHER, {"type": "web_search", "external_web_access": True}],
    }
    assert len(chat(**asked)["tools"]) == 1
    assert len(messages(*items)) == 1
    assert answer({"content": "y"}, request=asked)["hortator_omitted"] == [
        "truncation",
        "client_metadata",
        "include[reasoning.encrypted_content]",
        "tools[1]",
        "input[1].encrypted_content",
        "input[2]",
    ]
    assert "hortator_omitted" not in answer({"content": "y"})


def test_an_answer_repeats_the_request_as_the_api_does() -> None:
    document = answer(
        {"content": "y"}, request={"instructions": "I", "temperature": 0.25, "tools": [WEATHER], "metadata": {"a": "b"}}
    )
    assert document["object"] == "response"
    assert document["status"] == "completed"
    assert document["model"] == "m-dated"
    assert document["instructions"] == "I"
    assert document["temperature"] == 0.25
    assert document["tools"] == [WEATHER]
    assert document["tool_choice"] == "auto"
    assert document["metadata"] == {"a": "b"}
    assert document["store"] is True


@pytest.mark.parametrize(("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_a_cut_answer_is_incomplete(finish: str, reason: str) -> None:
    document = answer({"content": "y"}, finish)
    assert document["status"] == "incomplete"
    assert document["incomplete_details"] == {"reason": reason}
    assert document["output"][0]["status"] == "incomplete"


def test_usage_keeps_cached_and_reasoning_tokens_and_comes_back_the_same() -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 40,
        "total_tokens": 140,
        "prompt_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 30},
    }
    document = answer({"content": "y"}, usage=usage)
    read = responses.read_whole(json.dumps(document).encode())
    assert read.usage is not None
    assert read.model == "m-dated"
    found = msgspec.to_builtins(read.usage)
    assert {key: found[key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")} == {
        "prompt_tokens": 100,
        "completion_tokens": 40,
        "total_tokens": 140,
    }
    assert read.usage.prompt_tokens_details is not None
    assert read.usage.prompt_tokens_details.cached_tokens == 64
    assert read.usage.completion_tokens_details is not None
    assert read.usage.completion_tokens_details.reasoning_tokens == 30


@pytest.mark.parametrize("reply", [b"[]", b"{}", b'{"output":[],"status":"in_progress"}', b"\xff", b'{"output":3}'])
def test_what_is_not_a_finished_response_is_refused(reply: bytes) -> None:
    with pytest.raises(InvalidReply):
        responses.read_whole(reply)


def test_text_in_parts_is_joined_and_an_odd_annotation_does_no_harm() -> None:
    parts = [{"type": "text", "text": "A"}, {"type": "text", "text": "ve"}]
    message = {"role": "assistant", "content": parts, "annotations": [{"url_citation": 5}]}
    reply = json.dumps({"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}).encode()
    [item] = json.loads(responses.from_chat(reply, body(), "resp_01", 7.0))["output"]
    assert item["content"][0]["text"] == "Ave"


def test_a_failed_response_is_read_as_an_error() -> None:
    error = {"code": "server_error", "message": "no"}
    read = responses.read_whole(json.dumps({"status": "failed", "output": [], "error": error}).encode())
    assert read.error == error


@pytest.mark.parametrize("reply", [b"[]", b'{"choices":[]}', b'{"choices":[{}]}'])
def test_what_is_not_a_completion_is_refused(reply: bytes) -> None:
    with pytest.raises(InvalidReply):
        responses.from_chat(reply, body(), "resp_01", 1.0)


words = st.one_of(
    st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=12),
    st.sampled_from(["🎉", "👩‍👩‍👧", '"\\\n\x00']),
)
tool_calls = st.one_of(
    st.tuples(st.just("weather"), words),
    st.tuples(st.just("git__log"), words),
    st.tuples(
        st.just("apply_patch"),
        words.map(lambda text: json.dumps({"input": text}, ensure_ascii=False, separators=(",", ":"))),
    ),
)
TOOLS = [WEATHER, PATCH, NAMESPACE]


@given(st.none() | words, st.none() | words, st.none() | words, st.lists(tool_calls, max_size=4), st.booleans())
@settings(max_examples=300, deadline=None)
def test_an_answer_sent_back_as_history_is_the_message_it_came_from(
    content: str | None, refusal: str | None, reasoning: str | None, calls: list[tuple[str, str]], summary: bool
) -> None:
    message: Json = {"content": content}
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    if refusal is not None:
        message["refusal"] = refusal
    if calls:
        message["tool_calls"] = [call(name, text, f"call_{place}") for place, (name, text) in enumerate(calls)]
    elif content is None and refusal is None:
        message["content"] = "" if reasoning is None else None
    asked: Json = {"tools": TOOLS} | ({"reasoning": {"summary": "auto"}} if summary else {})
    output = answer(message, request=asked)["output"]
    assert messages(*output, tools=TOOLS) == [{"role": "assistant", **message}]


@given(st.lists(words, min_size=1, max_size=3), st.booleans())
@settings(max_examples=50, deadline=None)
def test_cursors_body_at_the_chat_door_becomes_a_chat_request(texts: list[str], stream: bool) -> None:
    items = [{"role": "user", "content": [{"type": "input_text", "text": text}]} for text in texts]
    options = {"stream_options": {"include_usage": True}} if stream else {}
    flat = {"model": "m", "input": items, "stream": stream, "tools": [WEATHER, PATCH], "include": [], **options}
    parsed = responses.parse_chat(json.dumps(flat).encode())
    assert parsed.stream is stream
    assert parsed.wants_usage is stream
    asked = json.loads(msgspec.json.encode(parsed.body))
    assert [message["content"] for message in asked["messages"]] == texts
    assert [tool["type"] for tool in asked["tools"]] == ["function", "custom"]
    assert "input" not in asked
    if stream:
        assert asked["stream_options"] == {"include_usage": True}


def test_a_body_with_neither_messages_nor_input_is_told_of_messages() -> None:
    with pytest.raises(InvalidRequest) as refused:
        responses.parse_chat(b'{"model":"m"}')
    assert refused.value.param == "messages"


def test_numbers_and_unknown_fields_keep_their_spelling() -> None:
    raw = b'{"model":"m","input":"x","temperature":1.50,"x":12345678901234567890,"tools":[{"type":"function","name":"f","parameters":{"a":1.0}}]}'
    asked = msgspec.json.encode(responses.to_chat(responses.parse(raw).body))
    for spelling in (b'"temperature":1.50', b'"x":12345678901234567890', b'"parameters":{"a":1.0}'):
        assert spelling in asked


def test_input_is_kept_as_items_and_listed_with_ids() -> None:
    items = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"type": "function_call_output", "call_id": "c", "output": "d"},
        {"type": "reasoning", "id": "rs_own", "summary": []},
    ]
    kept = responses_items.input_items(body(input=items))
    listed = json.loads(msgspec.json.encode(responses_items.with_ids([json_fields(item) for item in kept], "resp_7")))
    assert [item["id"] for item in listed] == ["msg_7i00", "msg_7i01", "fco_7i02", "rs_own"]
    assert listed[0]["content"] == [{"type": "input_text", "text": "a"}]
    assert listed[1]["content"] == [{"type": "output_text", "text": "b", "annotations": []}]
    assert "id" not in json.loads(bytes(kept[0]))
    [text] = responses_items.input_items(body(input="x"))
    assert json.loads(bytes(text))["content"] == [{"type": "input_text", "text": "x"}]


def json_fields(item: msgspec.Raw) -> dict[str, msgspec.Raw]:
    return msgspec.json.decode(item, type=dict[str, msgspec.Raw])


def test_tokens_are_estimated_and_images_by_their_number() -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64," + "A" * 100_000}
    few = responses_items.estimated_tokens(body(input=[{"role": "user", "content": [image]}]))
    assert 700 < few < 800
    assert responses_items.estimated_tokens(body(input="x" * 400)) == 100


def test_a_body_too_deep_to_be_counted_is_refused() -> None:
    deep = "[" * 900 + "]" * 900
    raw = f'{{"model":"m","input":"x","tools":[{{"type":"function","parameters":{deep}}}]}}'.encode()
    with pytest.raises(InvalidRequest) as refused:
        responses_items.estimated_tokens(responses.parse_count(raw))
    assert refused.value.code == "too_deep"
