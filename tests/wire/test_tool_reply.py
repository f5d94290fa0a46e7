"""Tool calling through constrained replies: what the client gets back."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hortator.wire.tool_reply import ReplyText, ToolStream, whole
from hortator.wire.tool_schema import Plan

AUTO = Plan(no_tool="none", raw_answer=False, legacy=False)
JSON = Plan(no_tool="none", raw_answer=True, legacy=False)
LEGACY = Plan(no_tool="none", raw_answer=False, legacy=True)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def pieces_of(text: str, cuts: list[int], plan: Plan) -> tuple[ReplyText, dict[str, str]]:
    reader = ReplyText(plan)
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    told = [piece for at, to in pairwise(places) for piece in reader.feed(text[at:to])]
    told += reader.finish()
    return reader, {kind: "".join(part for k, part in told if k == kind) for kind in ("content", "name", "arguments")}


@given(st.text(), st.lists(st.integers(min_value=0)), st.booleans(), st.sampled_from([None, 1]))
def test_an_answer_is_the_same_wherever_it_is_cut(
    text: str, cuts: list[int], escaped: bool, indent: int | None
) -> None:
    written = json.dumps({"tool": "none", "answer": text}, ensure_ascii=escaped, indent=indent)
    reader, told = pieces_of(written, cuts, AUTO)
    assert told == {"content": text, "name": "", "arguments": ""}
    assert reader.complete
    assert not reader.called


@given(st.dictionaries(st.text(), json_values), st.lists(st.integers(min_value=0)), st.sampled_from([None, 1]))
def test_arguments_are_the_same_wherever_they_are_cut(
    arguments: dict[str, Any], cuts: list[int], indent: int | None
) -> None:
    written = json.dumps({"tool": "look", "arguments": arguments}, indent=indent)
    reader, told = pieces_of(written, cuts, AUTO)
    assert told["name"] == "look"
    assert told["content"] == ""
    assert json.loads(told["arguments"]) == arguments
    assert reader.complete


@given(json_values, st.lists(st.integers(min_value=0)))
def test_a_json_answer_is_passed_as_json(value: Any, cuts: list[int]) -> None:
    _, told = pieces_of(json.dumps({"tool": "none", "answer": value}), cuts, JSON)
    assert json.loads(told["content"]) == value


@given(st.text(), st.integers(min_value=0))
def test_a_text_that_is_cut_off_is_never_complete(text: str, at: int) -> None:
    written = json.dumps({"tool": "look", "arguments": {"x": text}})
    reader, _ = pieces_of(written[: at % len(written)], [], AUTO)
    assert not reader.complete


def test_half_a_surrogate_pair_becomes_a_replacement_character() -> None:
    _, told = pieces_of(r'{"tool":"none","answer":"a\ud83d b"}', [27, 28, 29, 30, 31], AUTO)
    assert told["content"] == "a\ufffd b"


def test_a_text_that_is_not_ours_is_content() -> None:
    _, told = pieces_of("I would rather talk.", [3], AUTO)
    assert told["content"] == "I would rather talk."


def a_reply(text: str, reason: str = "stop") -> bytes:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    choice = {"index": 0, "message": message, "finish_reason": reason}
    return json.dumps({"id": "c", "choices": [choice], "usage": usage}).encode()


def test_a_whole_reply_with_a_call_has_tool_calls_and_no_content() -> None:
    reply = json.loads(whole(a_reply('{"tool": "look", "arguments": {"at": "sea"}}'), AUTO))
    (choice,) = reply["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "tool_calls"
    assert set(call) == {"id", "type", "function"}
    assert call["function"] == {"name": "look", "arguments": '{"at": "sea"}'}
    assert reply["usage"]["total_tokens"] == 3


def test_a_call_that_ran_out_of_tokens_stays_a_length_stop() -> None:
    (choice,) = json.loads(whole(a_reply('{"tool": "look", "arguments": {"at": "s', "length"), AUTO))["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"at": "s'


def test_the_older_form_gets_function_call() -> None:
    (choice,) = json.loads(whole(a_reply('{"tool": "look", "arguments": {}}'), LEGACY))["choices"]
    assert choice["message"]["function_call"] == {"name": "look", "arguments": "{}"}
    assert choice["finish_reason"] == "function_call"


def test_a_body_that_is_no_completion_passes_as_it_is() -> None:
    for body in (b"not json", b'{"error": {"message": "no"}}', b"[]"):
        assert whole(body, AUTO) == body


def test_what_is_no_chunk_passes_through_a_stream() -> None:
    stream = ToolStream(AUTO)
    for payload in (b"[DONE]", b'{"error":{"message":"no"}}', b'{"choices":[],"usage":{"total_tokens":3}}'):
        assert stream.feed(payload) == [payload]


def test_choices_of_one_stream_do_not_mix() -> None:
    stream = ToolStream(AUTO)
    texts = {0: '{"tool":"none","answer":"yes"}', 1: '{"tool":"look","arguments":{}}'}
    told: list[Any] = []
    for at in range(0, 30, 5):
        for index, text in texts.items():
            delta = {"choices": [{"index": index, "delta": {"content": text[at : at + 5]}, "finish_reason": None}]}
            told += [json.loads(payload)["choices"][0] for payload in stream.feed(json.dumps(delta).encode())]
    for index in texts:
        end = {"choices": [{"index": index, "delta": {}, "finish_reason": "stop"}]}
        told += [json.loads(payload)["choices"][0] for payload in stream.feed(json.dumps(end).encode())]
    assert "".join(c["delta"].get("content", "") for c in told if c["index"] == 0) == "yes"
    assert [c["finish_reason"] for c in told if c["finish_reason"]] == ["stop", "tool_calls"]
    assert all("content" not in c["delta"] for c in told if c["index"] == 1)
