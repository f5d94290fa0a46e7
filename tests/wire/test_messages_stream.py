"""Streams between the messages dialect and chat: what a client rebuilds from the events is what the model said."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hortator.errors import InvalidReply, TruncatedStream, UpstreamError
from hortator.wire import dialects
from hortator.wire.chat_stream import ErrorEvent
from hortator.wire.messages_stream import ChatFromMessages, MessagesStream
from hortator.wire.sse import EventSplitter
from tests.wire.message_data import USAGE, contents, endings, message, usages

Document = dict[str, Any]
ABOUT = dialects.Asked({}, "req_7", 7.5, True)


def pieces(text: str, size: int = 3) -> Iterable[str]:
    return (text[at : at + size] for at in range(0, len(text), size))


def block_events(index: int, block: Document) -> list[Document]:
    """The events of one block, as the provider streams it."""
    kind = block["type"]
    deltas: list[Document] = []
    start = block
    if kind == "text":
        start = {"type": "text", "text": ""}
        deltas = [{"type": "text_delta", "text": piece} for piece in pieces(block["text"])]
    elif kind == "thinking":
        start = {"type": "thinking", "thinking": "", "signature": ""}
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in pieces(block["thinking"])]
        deltas.append({"type": "signature_delta", "signature": block["signature"]})
    elif kind == "tool_use":
        start = block | {"input": {}}
        spelled = json.dumps(block["input"], ensure_ascii=False)
        parts = ["", *pieces(spelled)] if block["input"] else [""]
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in parts]
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def events(whole: Document) -> list[Document]:
    """A whole message as its stream."""
    usage = whole["usage"]
    head = whole | {"content": [], "stop_reason": None, "stop_sequence": None, "stop_details": None}
    delta = {key: whole[key] for key in ("stop_reason", "stop_sequence", "stop_details")}
    blocks = [event for at, block in enumerate(whole["content"]) for event in block_events(at, block)]
    return [
        {"type": "message_start", "message": head | {"usage": usage | {"output_tokens": 1}}},
        {"type": "ping"},
        *blocks,
        {"type": "message_delta", "delta": delta, "usage": {"output_tokens": usage["output_tokens"]}},
        {"type": "message_stop"},
    ]


def payload(document: Document) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()


def rebuilt(stream: bytes) -> Document:
    """What a client makes of a stream's bytes. It is as strict as the dialect: one open block, indexes in order."""
    whole: Document = {}
    open_block = -1
    inputs: dict[int, str] = {}
    kind = ""
    for text in stream.decode().split("\n\n")[:-1]:
        name, _, data = text.partition("\n")
        event = json.loads(data.removeprefix("data: "))
        kind = event["type"]
        assert name == f"event: {kind}"
        if kind == "message_start":
            assert not whole
            whole = event["message"]
        elif kind == "content_block_start":
            assert open_block == -1
            assert event["index"] == len(whole["content"])
            open_block = event["index"]
            whole["content"].append(event["content_block"])
        elif kind == "content_block_delta":
            assert event["index"] == open_block
            block, delta = whole["content"][open_block], event["delta"]
            if delta["type"] == "text_delta":
                block["text"] += delta["text"]
            elif delta["type"] == "thinking_delta":
                block["thinking"] += delta["thinking"]
            elif delta["type"] == "signature_delta":
                block["signature"] = delta["signature"]
            else:
                inputs[open_block] = inputs.get(open_block, "") + delta["partial_json"]
        elif kind == "content_block_stop":
            assert event["index"] == open_block
            if inputs.get(open_block):
                whole["content"][open_block]["input"] = json.loads(inputs[open_block])
            open_block = -1
        elif kind == "message_delta":
            assert open_block == -1
            whole |= event["delta"]
            whole["usage"] |= event["usage"]
        else:
            assert kind in ("ping", "message_stop")
    assert kind == "message_stop"
    return whole


def told(reader: dialects.Reader, payloads: list[bytes]) -> bytes:
    """Everything a client gets, fed one event at a time."""
    out = b"".join(reader.feed([one]) for one in payloads)
    assert reader.failure is None
    return out + reader.end()


def chunks(*deltas: Document, finish: str = "stop", usage: Document | None = None, **ending: Any) -> list[bytes]:
    """A chat stream of these deltas."""
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    choices: list[Document] = [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
    choices += [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": finish, **ending})
    lines = [payload(head | {"choices": [choice]}) for choice in choices]
    if usage is not None:
        lines.append(payload(head | {"choices": [], "usage": usage}))
    return [*lines, b"[DONE]"]


def message_of(*deltas: Document, **ending: Any) -> Document:
    """What a client of the messages dialect makes of a chat stream."""
    return rebuilt(told(dialects.reader("messages", "chat", ABOUT), chunks(*deltas, **ending)))


def call(index: int, arguments: str, name: str | None = None) -> Document:
    function: Document = {"arguments": arguments}
    head: Document = {"index": index}
    if name is not None:
        head |= {"id": f"call_{index}", "type": "function"}
        function["name"] = name
    return {"tool_calls": [head | {"function": function}]}


def test_a_chat_stream_is_told_in_the_events_of_a_message() -> None:
    reader = dialects.reader("messages", "chat", ABOUT)
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 4,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    assert told(reader, chunks({"content": "A\\u00e9 "}, {"content": "🎉"}, usage=usage)).decode() == (
        'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_7","type":"message","role":"assistant","model":"m",'
        '"content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":0,"output_tokens":0}}}\n\n'
        'event: ping\ndata: {"type":"ping"}\n\n'
        'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n'
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"A\\\\u00e9 "}}\n\n'
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"🎉"}}\n\n'
        'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
        'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null,"stop_details":null},'
        '"usage":{"input_tokens":7,"output_tokens":4,"cache_read_input_tokens":2}}\n\n'
        'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    )
    assert reader.usage is not None and reader.usage.prompt_tokens == 9


def test_a_messages_stream_is_told_in_chat_chunks() -> None:
    content: list[Document] = [
        {"type": "thinking", "thinking": "Hm", "signature": "s1"},
        {"type": "text", "text": "Ave"},
        {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}},
    ]
    lines = ChatFromMessages(7.5).feed([payload(one) for one in events(message(content, "tool_use", USAGE))])
    documents = [json.loads(line) for line in lines[:-1]]
    assert lines[-1] == b"[DONE]"
    assert {(one["id"], one["object"], one["created"], one["model"]) for one in documents} == {
        ("msg_1", "chat.completion.chunk", 7, "claude-x")
    }
    function = {"name": "f", "arguments": ""}
    assert [one["choices"][0]["delta"] for one in documents[:-1]] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Hm"},
        {"thinking_blocks": [{"index": 0, "type": "thinking", "thinking": "Hm", "signature": "s1"}]},
        {"content": "Ave"},
        {"tool_calls": [{"index": 0, "id": "toolu_1", "type": "function", "function": function}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
        {},
    ]
    assert documents[-2]["choices"][0]["finish_reason"] == "tool_calls"
    assert documents[-1]["choices"] == []
    assert documents[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 64, "cache_write_tokens": 16}


def test_a_native_stream_passes_byte_for_byte() -> None:
    odd = b'{ "type" : "content_block_delta","index":0, "delta":{"type":"text_delta","text":"1.0"},"x":1.50}'
    reader = dialects.reader("messages", "messages", ABOUT)
    assert reader.feed([odd]) == b"event: content_block_delta\ndata: " + odd + b"\n\n"
    assert reader.committed


def test_a_native_stream_is_read_on_its_way() -> None:
    reader = MessagesStream()
    whole = message([{"type": "text", "text": "Ave 🎉"}], usage=USAGE)
    assert rebuilt(told(reader, [payload(one) for one in events(whole)])) == whole
    assert (reader.model, reader.text_length, reader.done, reader.finished) == ("claude-x", 5, True, True)
    assert reader.usage is not None and reader.usage.prompt_tokens_details is not None
    assert (reader.usage.prompt_tokens, reader.usage.completion_tokens) == (100, 40)
    assert reader.usage.prompt_tokens_details.cache_write_tokens == 16


def test_a_stream_that_breaks_off_has_no_usage_as_its_start_cannot_know_the_output() -> None:
    reader = MessagesStream()
    reader.feed([payload(one) for one in events(message([{"type": "text", "text": "Ave"}]))[:-2]])
    assert (reader.usage, reader.text_length) == (None, 3)


def test_a_start_alone_commits_nothing() -> None:
    reader = MessagesStream()
    reader.feed([payload(one) for one in events(message([{"type": "text", "text": "x"}]))[:3]])
    assert not reader.committed


@pytest.mark.parametrize("asked", ["messages", "chat"])
@pytest.mark.parametrize("cut", [1, 2])
def test_a_messages_stream_without_its_stop_is_not_finished(asked: dialects.Dialect, cut: int) -> None:
    reader = dialects.reader(asked, "messages", ABOUT)
    reader.feed([payload(one) for one in events(message([{"type": "text", "text": "x"}]))[:-cut]])
    assert not reader.finished
    with pytest.raises(TruncatedStream):
        reader.end()


@pytest.mark.parametrize("asked", ["messages", "chat"])
def test_an_error_event_fails_the_stream_with_the_status_of_its_type(asked: dialects.Dialect) -> None:
    reader = dialects.reader(asked, "messages", ABOUT)
    reader.feed([payload({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})])
    assert isinstance(reader.failure, ErrorEvent)
    assert reader.failure.error["status"] == 529


@pytest.mark.parametrize("asked", ["messages", "chat"])
@pytest.mark.parametrize("line", [b"{not json", b'{"type":7}', b"[]", b'{"type":"a\\nb"}', b'{"choices":[]}'])
def test_what_is_no_event_fails_the_stream(asked: dialects.Dialect, line: bytes) -> None:
    reader = dialects.reader(asked, "messages", ABOUT)
    reader.feed([line])
    assert isinstance(reader.failure, InvalidReply) or not reader.finished


def test_a_failure_is_told_as_an_error_event() -> None:
    reader = dialects.reader("messages", "chat", ABOUT)
    assert json.loads(reader.failed(UpstreamError("It broke.")).decode().removeprefix("event: error\ndata: ")) == {
        "type": "error",
        "error": {"type": "api_error", "message": "It broke.", "code": "upstream_error"},
        "request_id": "req_7",
    }


def test_thinking_comes_before_text_in_a_block_of_its_own() -> None:
    said = message_of({"reasoning_content": "H"}, {"reasoning_content": "m"}, {"content": "Ave"})
    assert said["content"] == [
        {"type": "thinking", "thinking": "Hm", "signature": ""},
        {"type": "text", "text": "Ave"},
    ]


def test_a_refusal_is_text_and_the_reason_to_stop() -> None:
    said = message_of({"refusal": "I can"}, {"refusal": "not."})
    assert said["content"] == [{"type": "text", "text": "I cannot."}]
    assert said["stop_reason"] == "refusal"
    assert said["stop_details"]["explanation"] == "I cannot."


@pytest.mark.parametrize(
    ("finish", "ending", "stop"),
    [
        ("length", {}, "max_tokens"),
        ("content_filter", {}, "refusal"),
        ("stop", {"stop_reason": "END"}, "stop_sequence"),
        ("stop", {"native_finish_reason": "pause_turn"}, "pause_turn"),
        ("length", {"native_finish_reason": "model_context_window_exceeded"}, "model_context_window_exceeded"),
    ],
)
def test_every_end_has_its_stop_reason(finish: str, ending: Document, stop: str) -> None:
    assert message_of({"content": "x"}, finish=finish, **ending)["stop_reason"] == stop


def test_text_after_a_call_waits_until_the_call_is_whole() -> None:
    said = message_of(call(0, '{"a"', "f"), {"content": "then"}, {"content": " this"}, call(0, ":1}"))
    assert said["content"] == [
        {"type": "tool_use", "id": "call_0", "name": "f", "input": {"a": 1}},
        {"type": "text", "text": "then this"},
    ]


def test_a_name_that_comes_late_is_waited_for() -> None:
    late = {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]}
    said = message_of(
        {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"arguments": ""}}]}, late
    )
    assert said["content"] == [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]


ARGUMENTS = st.sampled_from(['{"a": 1}', '{"text": "}{ 🎉 \\" }"}', "{}", "", '{"deep": {"er": [1, {"x": "}"}]}}'])


@given(st.lists(ARGUMENTS, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_parallel_calls_that_interleave_become_whole_blocks_in_their_order(spelled: list[str], random: Any) -> None:
    queues = [
        [call(at, "", f"f{at}"), *(call(at, piece) for piece in pieces(text, 2))] for at, text in enumerate(spelled)
    ]
    deltas: list[Document] = []
    begun = 0
    while any(queues):
        at = random.choice([at for at, queue in enumerate(queues) if queue and at <= begun])
        deltas.append(queues[at].pop(0))
        begun = max(begun, at + 1)
    said = message_of(*deltas, finish="tool_calls")
    assert said["content"] == [
        {"type": "tool_use", "id": f"call_{at}", "name": f"f{at}", "input": json.loads(text or "{}")}
        for at, text in enumerate(spelled)
    ]


@given(contents(), endings(), usages())
def test_a_stream_survives_the_way_through_chat(content: list[Document], ending: Document, usage: Document) -> None:
    whole = message(content, usage=usage, **ending)
    decoder, encoder = ChatFromMessages(7.5), dialects.reader("messages", "chat", ABOUT)
    lines = decoder.feed([payload(one) for one in events(whole)])
    assert rebuilt(told(encoder, lines)) == whole | {"id": "msg_7"}


@given(contents(), endings(), usages(), st.integers(1, 40))
def test_a_native_stream_that_is_split_anywhere_says_the_same(
    content: list[Document], ending: Document, usage: Document, size: int
) -> None:
    whole = message(content, usage=usage, **ending)
    sent = b"".join(b"event: x\ndata: " + payload(one) + b"\n\n" for one in events(whole))
    splitter, reader = EventSplitter(), MessagesStream()
    out = b"".join(reader.feed(splitter.feed(sent[at : at + size])) for at in range(0, len(sent), size))
    assert rebuilt(out + reader.end()) == whole
