"""Requests of the messages dialect: what is accepted, how they are said in chat and back, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hortator.errors import Inapplicable, InvalidRequest
from hortator.wire import body, chat, messages

Document = dict[str, Any]
MARK = {"type": "ephemeral", "ttl": "1h"}
PIXEL = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}


def raw(document: Document) -> body.Object:
    return msgspec.json.decode(json.dumps(document), type=body.Object)


def plain(said: body.Object) -> Document:
    document: Document = json.loads(msgspec.json.encode(said))
    return document


def ask(**changes: Any) -> Document:
    return {"model": "claude-x", "max_tokens": 100, "messages": [{"role": "user", "content": "Ave"}], **changes}


def said_in_chat(document: Document) -> Document:
    return plain(messages.to_chat(raw(document)))


def said_plainly(document: Document) -> Document:
    return plain(messages.to_plain_chat(raw(document)))


def said_in_messages(document: Document) -> Document:
    return plain(messages.from_chat(raw(document)))


def chat_ask(**changes: Any) -> Document:
    return {"model": "claude-opus-5", "messages": [{"role": "user", "content": "Ave"}], **changes}


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"model": "m", "messages": [{"role": "user", "content": "x"}]}, "missing_required_parameter", "max_tokens"),
        ({"max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}, "missing_required_parameter", "model"),
        (ask(messages=[]), "empty_array", "messages"),
        (ask(messages=[{"role": "user"}]), "missing_required_parameter", "messages[0].content"),
        (
            ask(messages=[{"role": "user", "content": [{}]}]),
            "missing_required_parameter",
            "messages[0].content[0].type",
        ),
        (ask(max_tokens="9"), "invalid_type", "max_tokens"),
        (ask(tools=[7]), "invalid_type", "tools[0]"),
        (ask(thinking={"type": "enabled", "budget_tokens": "x"}), "invalid_type", "thinking.budget_tokens"),
    ],
)
def test_a_wrong_request_is_refused_with_a_code_and_the_fields_name(body: Document, code: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        messages.parse(json.dumps(body).encode())
    assert (caught.value.code, caught.value.param) == (code, param)


def test_unknown_fields_and_spellings_survive_parsing() -> None:
    parsed = messages.parse(
        b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"x"}],"beta":{"a":1.50}}'
    )
    assert bytes(parsed.body["beta"]) == b'{"a":1.50}'


def test_a_stream_always_wants_its_usage() -> None:
    assert messages.parse(json.dumps(ask(stream=True)).encode()).wants_usage


FULL_REQUEST = ask(
    system=[{"type": "text", "text": "Be brief.", "cache_control": MARK}],
    messages=[
        {"role": "user", "content": [{"type": "text", "text": "See"}, {"type": "image", "source": PIXEL}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm", "signature": "s1"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": 1.5}},
                {"type": "tool_use", "id": "toolu_2", "name": "look", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "gone", "is_error": True},
                {"type": "tool_result", "tool_use_id": "toolu_2"},
                {"type": "text", "text": "And?"},
            ],
        },
    ],
    tools=[{"name": "look", "description": "Looks.", "input_schema": {"type": "object"}, "cache_control": MARK}],
    tool_choice={"type": "any", "disable_parallel_tool_use": True},
    stop_sequences=["END"],
    metadata={"user_id": "u1"},
    temperature=0.5,
    top_k=5,
    stream=True,
)
_CALL = {"id": "toolu_1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1.5}'}}
FULL_REQUEST_IN_CHAT: dict[str, Any] = {
    "model": "claude-x",
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "Be brief.", "cache_control": MARK}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "See"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
            ],
        },
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [_CALL, {**_CALL, "id": "toolu_2", "function": {"name": "look", "arguments": "{}"}}],
            "reasoning_content": "Hm",
            "thinking_blocks": [
                {"type": "thinking", "thinking": "Hm", "signature": "s1"},
                {"type": "redacted_thinking", "data": "x"},
            ],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": "gone", "is_error": True},
        {"role": "tool", "tool_call_id": "toolu_2", "content": ""},
        {"role": "user", "content": "And?"},
    ],
    "max_tokens": 100,
    "tools": [
        {
            "type": "function",
            "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}},
            "cache_control": MARK,
        }
    ],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "stop": ["END"],
    "user": "u1",
    "temperature": 0.5,
    "top_k": 5,
    "stream": True,
}


def test_a_full_request_is_said_in_chat() -> None:
    assert said_in_chat(FULL_REQUEST) == FULL_REQUEST_IN_CHAT


def test_a_provider_that_refuses_unknown_fields_gets_none() -> None:
    document = ask(
        cache_control=MARK,
        thinking={"type": "enabled", "budget_tokens": 5000},
        context_management={"edits": []},
        system=[{"type": "text", "text": "a", "cache_control": MARK}, {"type": "text", "text": "b"}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "go", "cache_control": MARK}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm", "signature": "s"},
                    {"type": "tool_use", "id": "t1", "name": "f", "input": {}, "cache_control": MARK},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "t1",
                        "is_error": True,
                        "content": [{"type": "text", "text": "no"}, {"type": "image", "source": PIXEL}],
                    }
                ],
            },
        ],
        tools=[{"name": "f", "input_schema": {"type": "object"}, "defer_loading": True}],
    )
    call = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert said_plainly(document) == {
        "model": "claude-x",
        "messages": [
            {"role": "system", "content": "a\n\nb"},
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "t1", "content": "Error: no"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Returned by tool call t1:"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
                ],
            },
        ],
        "max_tokens": 100,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "reasoning_effort": "medium",
    }


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"tools": [{"type": "web_search_20260318", "name": "web_search"}]}, "tools[0]", "unsupported_tool"),
        ({"container": "c1"}, "container", "unsupported_parameter"),
        ({"inference_geo": "eu"}, "inference_geo", "unsupported_parameter"),
        (
            {"messages": [{"role": "user", "content": [{"type": "container_upload", "file_id": "f"}]}]},
            "messages[0].content[0]",
            "unsupported_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "url", "url": "x"}}]}]},
            "messages[0].content[0].source",
            "unsupported_parameter",
        ),
    ],
)
def test_what_chat_cannot_say_is_refused_by_name(changes: Document, param: str, code: str) -> None:
    with pytest.raises(Inapplicable) as caught:
        said_in_chat(ask(**changes))
    assert (caught.value.param, caught.value.code) == (param, code)


@pytest.mark.parametrize(
    ("changes", "effort"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 16384}}, "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 32000}}, "high"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "max"),
        ({"thinking": {"type": "adaptive"}}, None),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "max"}}, None),
    ],
)
def test_thinking_becomes_an_effort(changes: Document, effort: str | None) -> None:
    assert said_plainly(ask(**changes)).get("reasoning_effort") == effort


def test_openais_own_models_are_told_the_maximum_in_their_word() -> None:
    assert said_plainly(ask(model="gpt-5.2"))["max_completion_tokens"] == 100
    assert said_plainly(ask(model="openai/gpt-oss-20b"))["max_tokens"] == 100


def test_a_long_user_id_is_told_by_its_digest() -> None:
    assert len(said_plainly(ask(metadata={"user_id": "u" * 200}))["user"]) == 64


def test_a_schema_for_the_answer_goes_both_ways() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "number"}}, "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "output", "schema": schema, "strict": True}}
    output = {"format": {"type": "json_schema", "schema": schema}}
    assert said_plainly(ask(output_config=output))["response_format"] == form
    assert said_in_messages(chat_ask(response_format=form))["output_config"] == output


_CHAT_CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
FULL_CHAT_REQUEST = chat_ask(
    messages=[
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]},
        {"role": "assistant", "content": "", "tool_calls": [_CHAT_CALL, {**_CHAT_CALL, "id": "functions.f:2"}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "1"},
        {"role": "tool", "tool_call_id": "functions.f:2", "content": [{"type": "text", "text": "2"}]},
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "b"},
    ],
    tools=[{"type": "function", "function": {"name": "f", "strict": True}}],
    tool_choice={"type": "function", "function": {"name": "f"}},
    parallel_tool_calls=False,
    stop="END",
    user="u1",
    n=1,
    frequency_penalty=0,
    seed=None,
    logit_bias={},
    stream=True,
    stream_options={"include_usage": True},
    top_k=3,
)
FULL_CHAT_REQUEST_IN_MESSAGES: dict[str, Any] = {
    "model": "claude-opus-5",
    "max_tokens": 8192,
    "system": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "call_1", "name": "f", "input": {"a": 1}},
                {"type": "tool_use", "id": "functions_f_2", "name": "f", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": "1"},
                {"type": "tool_result", "tool_use_id": "functions_f_2", "content": "2"},
                {"type": "text", "text": "b"},
            ],
        },
    ],
    "tools": [{"name": "f", "input_schema": {"type": "object", "properties": {}}, "strict": True}],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "stop_sequences": ["END"],
    "metadata": {"user_id": "u1"},
    "stream": True,
    "top_k": 3,
}


def test_a_full_chat_request_is_said_in_messages() -> None:
    assert said_in_messages(FULL_CHAT_REQUEST) == FULL_CHAT_REQUEST_IN_MESSAGES


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"seed": 7}, "seed"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"presence_penalty": -1}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"web_search_options": {"a": 1}}, "web_search_options"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
    ],
)
def test_what_messages_cannot_say_is_refused_by_name(changes: Document, param: str) -> None:
    with pytest.raises(Inapplicable) as caught:
        said_in_messages(chat_ask(**changes))
    assert (caught.value.param, caught.value.code) == (param, "unsupported_parameter")


@pytest.mark.parametrize(
    ("model", "changes", "expected"),
    [
        ("claude-opus-5", {}, {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}),
        ("claude-haiku-4-5", {}, {"thinking": {"type": "enabled", "budget_tokens": 16384}, "max_tokens": 24576}),
        (
            "claude-haiku-4-5",
            {"max_tokens": 9000},
            {"thinking": {"type": "enabled", "budget_tokens": 4500}, "max_tokens": 9000},
        ),
        ("claude-haiku-4-5", {"max_tokens": 100}, {"max_tokens": 100}),
        ("claude-opus-5", {"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
        ("claude-opus-5", {"thinking": {"type": "between_tools"}}, {"thinking": {"type": "between_tools"}}),
    ],
)
def test_an_effort_becomes_thinking_in_the_words_of_the_model(
    model: str, changes: Document, expected: Document
) -> None:
    said = said_in_messages(chat_ask(model=model, **{"reasoning_effort": "high", **changes}))
    assert {key: said.get(key) for key in ("thinking", *expected)} == {"thinking": None, **expected}


def test_allowed_tools_become_a_shorter_list() -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "g"}}]}
    said = said_in_messages(chat_ask(tools=tools, tool_choice={"type": "allowed_tools", "allowed_tools": allowed}))
    assert [tool["name"] for tool in said["tools"]] == ["g"]
    assert said["tool_choice"] == {"type": "any"}


def test_thinking_of_another_model_is_not_told_to_claude() -> None:
    thoughts = [{"type": "thinking", "thinking": "Hm", "signature": ""}]
    turn = {"role": "assistant", "content": "x", "thinking_blocks": thoughts, "reasoning_content": "Hm"}
    assert said_in_messages(chat_ask(messages=[turn]))["messages"] == [{"role": "assistant", "content": "x"}]


def test_arguments_that_are_no_json_are_told_and_not_dropped() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": '}}
    said = said_in_messages(chat_ask(messages=[{"role": "assistant", "content": None, "tool_calls": [call]}]))
    assert said["messages"][0]["content"][0]["input"] == {"INVALID_JSON": '{"a": '}


def test_a_request_without_a_turn_of_the_user_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        said_in_messages(chat_ask(messages=[{"role": "system", "content": "x"}]))


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12) | st.sampled_from(["🎉", "é", "👩‍👩‍👧", "\u2028"])
NAMES = st.text("abc_", min_size=1, max_size=6)
INPUTS = st.dictionaries(TEXT, st.integers() | TEXT | st.lists(st.booleans(), max_size=2), max_size=3)
MARKS = st.sampled_from([{}, {"cache_control": MARK}])


@st.composite
def texts(draw: st.DrawFn) -> Document:
    return {"type": "text", "text": draw(TEXT), **draw(MARKS)}


@st.composite
def images(draw: st.DrawFn) -> Document:
    source = draw(st.sampled_from([PIXEL, {"type": "url", "url": "https://x/y.png"}]))
    return {"type": "image", "source": source, **draw(MARKS)}


def short(blocks: list[Document]) -> Any:
    return blocks[0]["text"] if len(blocks) == 1 and blocks[0].keys() == {"type", "text"} else blocks


@st.composite
def conversations(draw: st.DrawFn) -> Document:
    """A request in the form that translations give: single plain texts as strings, results before what the user says."""
    turns: list[Document] = [
        {"role": "user", "content": short(draw(st.lists(texts() | images(), min_size=1, max_size=3)))}
    ]
    for number in range(draw(st.integers(0, 2))):
        calls = [
            {"type": "tool_use", "id": f"toolu_{number}_{at}", "name": draw(NAMES), "input": draw(INPUTS)}
            for at in range(draw(st.integers(0, 3)))
        ]
        thoughts = draw(
            st.lists(
                st.builds(lambda t, s: {"type": "thinking", "thinking": t, "signature": s}, TEXT, TEXT)
                | st.builds(lambda d: {"type": "redacted_thinking", "data": d}, TEXT),
                max_size=2,
            )
        )
        said = draw(st.lists(texts(), min_size=0 if calls else 1, max_size=1))
        turns.append({"role": "assistant", "content": short(thoughts + said + calls)})
        results = []
        for call in calls:
            result: Document = {"type": "tool_result", "tool_use_id": call["id"], **draw(MARKS)}
            content = draw(st.lists(texts() | images(), max_size=2))
            if content:
                result["content"] = short(content)
            if draw(st.booleans()):
                result["is_error"] = True
            results.append(result)
        after = draw(st.lists(texts() | images(), min_size=0 if results else 1, max_size=2))
        turns.append({"role": "user", "content": short(results + after)})
    document = ask(messages=turns)
    if draw(st.booleans()):
        document["system"] = short(draw(st.lists(texts(), min_size=1, max_size=2)))
    if draw(st.booleans()):
        document["tools"] = [{"name": draw(NAMES), "input_schema": {"type": "object"}, **draw(MARKS)}]
        document["tool_choice"] = draw(
            st.sampled_from([{"type": "auto"}, {"type": "any", "disable_parallel_tool_use": True}, {"type": "none"}])
        )
    optional = {
        "stop_sequences": ["a"],
        "temperature": 0.25,
        "top_k": 4,
        "top_p": 0.5,
        "metadata": {"user_id": "u"},
        "thinking": {"type": "enabled", "budget_tokens": 2000},
        "output_config": {"effort": "low"},
        "stream": True,
        "cache_control": MARK,
    }
    return document | {key: value for key, value in optional.items() if draw(st.booleans())}


@given(conversations())
def test_a_request_survives_the_way_through_chat(document: Document) -> None:
    assert said_in_messages(said_in_chat(document)) == document


@given(conversations())
def test_a_plain_request_holds_no_field_that_chat_does_not_know(document: Document) -> None:
    said = json.dumps(said_plainly(document))
    for field in ("cache_control", "thinking_blocks", "is_error", "reasoning_content"):
        assert f'"{field}"' not in said


@given(conversations())
def test_what_is_said_in_chat_is_a_valid_chat_request(document: Document) -> None:
    assert chat.parse(json.dumps(said_plainly(document)).encode()).model == "claude-x"
    assert chat.parse(json.dumps(said_in_chat(document)).encode()).model == "claude-x"
