"""What clients get of a chat stream: clean chunks untouched, dirty ones mended (the rules of real clients), honest ends."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hortator.errors import InvalidReply, TruncatedStream
from hortator.wire.chat_stream import DONE, ChatStream, ErrorEvent

ROLE = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
TEXT = {"index": 0, "delta": {"content": "Ave"}, "finish_reason": None}
STOP = {"index": 0, "delta": {}, "finish_reason": "stop"}


def chunk(*choices: dict[str, Any], **more: Any) -> bytes:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "m"}
    return json.dumps(head | {"choices": list(choices)} | more).encode()


def event(payload: bytes) -> bytes:
    return b"data: " + payload + b"\n\n"


def sent(stream: ChatStream, payload: bytes) -> dict[str, Any]:
    out = stream.feed([payload])
    assert out.startswith(b"data: ")
    assert out.endswith(b"\n\n")
    document: dict[str, Any] = json.loads(out[6:])
    return document


def test_clean_chunks_pass_byte_for_byte() -> None:
    stream = ChatStream(wants_usage=False)
    odd = b'{ "choices" :[{"index":0,"delta":{"content":"1.0"},"finish_reason":null}], "x_unknown":1.50}'
    assert stream.feed([chunk(ROLE), odd]) == event(chunk(ROLE)) + event(odd)


def test_the_first_content_commits_and_a_role_alone_does_not() -> None:
    stream = ChatStream(wants_usage=False)
    stream.feed([chunk(ROLE)])
    assert not stream.committed
    stream.feed([chunk(TEXT)])
    assert stream.committed


@pytest.mark.parametrize(
    "delta",
    [
        {"reasoning_content": "hm"},
        {"refusal": "no"},
        {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
    ],
)
def test_thinking_refusals_and_tool_calls_commit_too(delta: dict[str, Any]) -> None:
    stream = ChatStream(wants_usage=False)
    stream.feed([chunk({"index": 0, "delta": {"role": "assistant", "content": ""} | delta, "finish_reason": None})])
    assert stream.committed


def test_nulls_in_a_delta_are_dropped_and_unknown_fields_stay() -> None:
    stream = ChatStream(wants_usage=False)
    dirty = {
        "index": 0,
        "delta": {"role": "assistant", "content": None, "tool_calls": None, "x": 1},
        "finish_reason": None,
    }
    assert sent(stream, chunk(dirty, vendor="v")) == json.loads(
        chunk({"index": 0, "delta": {"role": "assistant", "content": "", "x": 1}, "finish_reason": None}, vendor="v")
    )


def test_a_first_chunk_without_a_role_gets_one() -> None:
    assert sent(ChatStream(wants_usage=False), chunk(TEXT))["choices"][0]["delta"] == {
        "role": "assistant",
        "content": "Ave",
    }


def test_a_choice_without_index_gets_its_position() -> None:
    stream = ChatStream(wants_usage=False)
    stream.feed([chunk(ROLE)])
    assert sent(stream, chunk({"delta": {"content": "x"}}))["choices"][0]["index"] == 0


def test_tool_call_continuations_lose_their_nulls_and_pieces_without_index_are_numbered() -> None:
    stream = ChatStream(wants_usage=False)
    stream.feed([chunk(ROLE)])
    pieces = [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": ""}},
        {"id": None, "type": None, "function": {"name": None, "arguments": "{}"}},
        {"id": 17, "type": "function", "function": {"name": "g", "arguments": ""}},
    ]
    tools = [
        sent(stream, chunk({"index": 0, "delta": {"tool_calls": [piece]}, "finish_reason": None}))["choices"][0][
            "delta"
        ]["tool_calls"][0]
        for piece in pieces
    ]
    assert tools == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": ""}, "index": 0},
        {"function": {"arguments": "{}"}, "index": 0},
        {"id": "17", "type": "function", "function": {"name": "g", "arguments": ""}, "index": 1},
    ]


def test_the_usage_chunk_reaches_only_clients_that_asked() -> None:
    usage = chunk(usage={"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5})
    asked, silent = ChatStream(wants_usage=True), ChatStream(wants_usage=False)
    assert asked.feed([usage]) == event(usage)
    assert silent.feed([usage]) == b""
    assert silent.usage is not None
    assert silent.usage.prompt_tokens == 3


def test_usage_inside_a_content_chunk_is_taken_out_or_repeated_in_its_own_chunk() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    silent = ChatStream(wants_usage=False)
    silent.feed([chunk(ROLE)])
    assert "usage" not in sent(silent, chunk(STOP, usage=usage))
    asked = ChatStream(wants_usage=True)
    asked.feed([chunk(ROLE), chunk(STOP, usage=usage)])
    last = asked.end().removesuffix(DONE)
    assert json.loads(last[6:])["usage"]["total_tokens"] == 5
    assert json.loads(last[6:])["choices"] == []


def test_a_usage_chunk_without_choices_gets_the_empty_list() -> None:
    stream = ChatStream(wants_usage=True)
    assert sent(stream, b'{"usage":{"prompt_tokens":1}}')["choices"] == []


def test_done_follows_only_a_complete_answer() -> None:
    whole, cut = ChatStream(wants_usage=False), ChatStream(wants_usage=False)
    whole.feed([chunk(ROLE), chunk(TEXT), chunk(STOP)])
    cut.feed([chunk(ROLE), chunk(TEXT)])
    assert whole.end() == DONE
    with pytest.raises(TruncatedStream):
        cut.end()


def test_every_choice_must_finish() -> None:
    stream = ChatStream(wants_usage=False)
    stream.feed([chunk(ROLE, ROLE | {"index": 1}), chunk(STOP)])
    assert not stream.finished
    stream.feed([chunk(STOP | {"index": 1})])
    assert stream.finished


@pytest.mark.parametrize(
    "bad", [b'{"choices":[{"ind', b"null", b"[]", b'{"choices":"none"}', b'{"choices":[{"index":0,"delta":"x"}]}']
)
def test_what_came_before_a_malformed_chunk_still_counts(bad: bytes) -> None:
    stream = ChatStream(wants_usage=False)
    assert stream.feed([chunk(ROLE), bad, chunk(TEXT)]) == event(chunk(ROLE))
    assert isinstance(stream.failure, InvalidReply)


def test_an_error_object_is_a_failure_and_not_a_chunk() -> None:
    stream = ChatStream(wants_usage=False)
    assert stream.feed([chunk(ROLE), b'{"error":{"message":"overloaded"}}']) == event(chunk(ROLE))
    assert isinstance(stream.failure, ErrorEvent)
    assert stream.failure.error == {"message": "overloaded"}


def test_finish_reason_error_is_a_failure() -> None:
    """C-21: clients break on it."""
    stream = ChatStream(wants_usage=False)
    stream.feed([chunk(ROLE), chunk({"index": 0, "delta": {}, "finish_reason": "error"})])
    assert isinstance(stream.failure, ErrorEvent)
