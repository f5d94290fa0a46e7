"""Whole replies between the messages dialect and chat: text, thinking, calls, refusals, why a model stopped, what it used."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from hortator.errors import InvalidReply
from hortator.wire import messages
from tests.wire.message_data import USAGE, contents, endings, message, usages

Document = dict[str, Any]


def in_chat(document: Document) -> Document:
    told: Document = json.loads(messages.reply_to_chat(json.dumps(document).encode(), 7.5))
    return told


def in_messages(document: Document) -> Document:
    told: Document = json.loads(messages.reply_from_chat(json.dumps(document).encode(), "msg_1"))
    return told


def completion(message: Document, finish: str | None = "stop", **changes: Any) -> Document:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], **changes}


def test_a_message_is_told_as_a_completion() -> None:
    content: list[Document] = [
        {"type": "thinking", "thinking": "Hm", "signature": "s"},
        {"type": "text", "text": "Ave 🎉"},
        {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": "münde"}},
    ]
    assert in_chat(message(content, "tool_use", USAGE | {"service_tier": "standard"})) == {
        "id": "msg_1",
        "object": "chat.completion",
        "created": 7,
        "model": "claude-x",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Ave 🎉",
                    "refusal": None,
                    "reasoning_content": "Hm",
                    "thinking_blocks": [content[0]],
                    "tool_calls": [
                        {
                            "id": "toolu_1",
                            "type": "function",
                            "function": {"name": "f", "arguments": '{"a": "m\\u00fcnde"}'},
                        }
                    ],
                },
                "logprobs": None,
                "finish_reason": "tool_calls",
            }
        ],
        "usage": {
            "prompt_tokens": 100,
            "completion_tokens": 40,
            "total_tokens": 140,
            "prompt_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 16},
            "completion_tokens_details": {"reasoning_tokens": 30},
        },
        "service_tier": "default",
    }


@pytest.mark.parametrize(
    ("stop", "finish"),
    [
        ("end_turn", "stop"),
        ("max_tokens", "length"),
        ("stop_sequence", "stop"),
        ("tool_use", "tool_calls"),
        ("pause_turn", "stop"),
        ("refusal", "content_filter"),
        ("model_context_window_exceeded", "length"),
        ("a_new_one", "stop"),
    ],
)
def test_every_stop_reason_has_its_finish_reason(stop: str, finish: str) -> None:
    assert in_chat(message([{"type": "text", "text": "x"}], stop))["choices"][0]["finish_reason"] == finish


@pytest.mark.parametrize(
    ("finish", "stop"),
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("tool_calls", "tool_use"),
        ("function_call", "tool_use"),
        ("content_filter", "refusal"),
        (None, "end_turn"),
        ("a_new_one", "end_turn"),
    ],
)
def test_every_finish_reason_has_its_stop_reason(finish: str | None, stop: str) -> None:
    assert in_messages(completion({"content": "x"}, finish))["stop_reason"] == stop


def test_a_refusal_of_a_chat_model_is_a_refusal_with_its_words() -> None:
    told = in_messages(completion({"content": None, "refusal": "I cannot."}))
    assert told["content"] == [{"type": "text", "text": "I cannot."}]
    assert told["stop_reason"] == "refusal"
    assert told["stop_details"] == {"type": "refusal", "category": None, "explanation": "I cannot."}


def test_a_refusal_of_a_messages_model_keeps_its_explanation() -> None:
    details = {"type": "refusal", "category": "cyber", "explanation": "Not that."}
    told = in_chat(message([], "refusal", stop_details=details))
    assert told["choices"][0]["message"]["refusal"] == "Not that."


def test_thinking_without_a_signature_and_calls_that_ended_with_stop_are_told() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    told = in_messages(completion({"content": "", "reasoning_content": "Hm", "tool_calls": [call]}))
    assert told["content"] == [
        {"type": "thinking", "thinking": "Hm", "signature": ""},
        {"type": "tool_use", "id": "c1", "name": "f", "input": {}},
    ]
    assert told["stop_reason"] == "tool_use"


def test_a_call_that_was_cut_off_is_told_and_not_dropped() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": "b'}}
    told = in_messages(completion({"content": None, "tool_calls": [call]}, "length"))
    assert told["content"][0]["input"] == {"INVALID_JSON": '{"a": "b'}


def test_blocks_that_chat_does_not_know_are_carried() -> None:
    block = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"q": "x"}}
    told = in_chat(message([block, {"type": "text", "text": "x"}], "pause_turn"))
    assert told["choices"][0]["message"]["anthropic_blocks"] == [block]
    assert told["choices"][0]["native_finish_reason"] == "pause_turn"
    assert in_messages(told)["content"][0] == block


def test_citations_are_carried() -> None:
    cited = {"type": "text", "text": "x", "citations": [{"type": "char_location", "cited_text": "y"}]}
    assert in_chat(message([cited]))["choices"][0]["message"]["citations"] == cited["citations"]


def test_a_whole_reply_tells_its_usage_with_the_cache_in_the_input() -> None:
    usage = messages.read_whole(json.dumps(message([], usage=USAGE)).encode()).usage
    assert usage is not None and usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (100, 40)
    assert usage.prompt_tokens_details.cached_tokens == 64


def test_an_error_inside_a_reply_of_status_200_is_seen() -> None:
    assert messages.read_whole(b'{"type":"error","error":{"type":"overloaded_error","message":"x"}}').error


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"<html>", b'{"content":7}', b'{"id":"x"}', b'{"content":[{"type":7}]}', b'{"content":"\xff"}']
)
def test_what_is_no_message_is_an_invalid_reply(body: bytes) -> None:
    with pytest.raises(InvalidReply):
        messages.reply_to_chat(body, 1.0)
        messages.read_whole(body)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"choices":[]}', b'{"choices":[{"message":{"content":7}}]}'])
def test_what_is_no_completion_is_an_invalid_reply(body: bytes) -> None:
    with pytest.raises(InvalidReply):
        messages.reply_from_chat(body, "msg_1")


@given(contents(), endings(), usages())
def test_a_reply_survives_the_way_through_chat(content: list[Document], ending: Document, usage: Document) -> None:
    said = message(content, usage=usage, **ending)
    assert in_messages(in_chat(said)) == said
