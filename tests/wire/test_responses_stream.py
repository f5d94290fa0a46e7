"""What clients get of a stream in the responses dialect: the full life cycle of every item, whatever the chat stream was like.

`golden/*.jsonl` hold whole streams: a request, the chunks that came, the events that go out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from hortator.errors import ConnectionLost, InvalidReply, TruncatedStream
from hortator.wire import dialects, responses_replay
from hortator.wire.chat_stream import ChatStream, ErrorEvent
from hortator.wire.responses import parse
from hortator.wire.responses_stream import ResponsesFromChat, ResponsesStream, last_response
from hortator.wire.sse import EventSplitter

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.jsonl"))
ID = "resp_0123"
CREATED = 1_790_000_000.0
EVENTS: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)

Json = dict[str, Any]


def chunk(delta: Json, finish: str | None = None, **more: Any) -> Json:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m-dated", "choices": choices, **more}


def usage_chunk(**usage: Any) -> Json:
    return {**chunk({}), "choices": [], "usage": usage}


def events_in(data: bytes) -> Iterator[Json]:
    """The events in client bytes; each must be named by its type and stand on one line."""
    for block in data.decode().split("\n\n")[:-1]:
        name, payload = block.split("\n")
        event = json.loads(payload.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        yield event


def translated(request: Json, chunks: list[Json]) -> list[Json]:
    """A complete chat stream as the client of the responses dialect gets it."""
    chat = ChatStream(wants_usage=True)
    stream = ResponsesFromChat(parse(json.dumps(request).encode()).body, ID, CREATED)
    out = b""
    for one in chunks:
        out += stream.feed(chat.payloads([json.dumps(one, ensure_ascii=False).encode()]))
        assert chat.failure is None
    chat.end()
    return list(events_in(out + stream.end()))


def request(**more: Any) -> Json:
    return {"model": "m", "input": "Salve!", "stream": True, **more}


def check_life_cycle(events: list[Json]) -> list[Json]:
    """Check what clients rely on; return the output that the deltas add up to."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1]["type"] in ("response.completed", "response.incomplete", "response.failed")
    state = ResponseStreamState(input_tools=omit, text_format=omit)
    texts: dict[tuple[str, Any], str] = {}
    announced: list[Json] = []
    done: dict[int, Json] = {}
    open_parts: set[tuple[str, Any]] = set()
    for event in events:
        EVENTS.validate_python(event)
        state.handle_event(EVENTS.validate_python(event))
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(announced)
            announced.append(event["item"])
            continue
        if "item_id" not in event:
            if kind == "output_item.done":
                assert event["output_index"] not in done
                assert event["item"]["id"] == announced[event["output_index"]]["id"]
                done[event["output_index"]] = event["item"]
            continue
        assert event["item_id"] == announced[event["output_index"]]["id"]
        assert event["output_index"] not in done, "an event inside an item that is over"
        part = (event["item_id"], event.get("content_index", event.get("summary_index")))
        if kind.endswith("part.added"):
            open_parts.add(part)
        elif kind.endswith("part.done"):
            open_parts.remove(part)
        elif kind.endswith(".delta"):
            assert part in open_parts or part[1] is None, "a delta outside of a part"
            texts[part] = texts.get(part, "") + event["delta"]
        elif kind.endswith(".done"):
            [said] = [event[key] for key in ("text", "refusal", "arguments", "input") if key in event]
            assert said == texts.get(part, "")
    assert not open_parts
    output: list[Json] = events[-1]["response"]["output"]
    assert output == [done[index] for index in range(len(announced))]
    return output


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_streams_come_out_as_they_were_written_down(path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    chunks = [line["chunk"] for line in lines if "chunk" in line]
    expected = [line["event"] for line in lines if "event" in line]
    events = translated(lines[0]["request"], chunks)
    assert events == expected
    check_life_cycle(events)


text = st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=8)
words = st.one_of(text, st.sampled_from(["🎉", "👩‍👩‍👧", "é", "\u2028", "\n\n", "data: x", '"\\']))
piece = st.one_of(
    st.tuples(st.sampled_from(["reasoning_content", "content", "refusal"]), words),
    st.tuples(st.sampled_from([0, 1, 2]), words),
)


def deltas(pieces: list[tuple[str | int, str]]) -> Iterator[Json]:
    """Chunks of an answer written in these pieces; numbers are calls, which are announced in order."""
    begun = 0
    for kind, said in pieces:
        if isinstance(kind, str):
            yield chunk({kind: said})
            continue
        place = min(kind, begun)
        call: Json = {"index": place, "function": {"arguments": said}}
        if place == begun:
            begun += 1
            call |= {"id": f"call_{place}", "type": "function"}
            call["function"]["name"] = f"tool{place}"
        yield chunk({"tool_calls": [call]})


@given(st.lists(piece, max_size=12), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_answer_survives_in_any_order_with_a_whole_life_cycle(
    pieces: list[tuple[str | int, str]], summary: bool
) -> None:
    asked = request(reasoning={"summary": "auto"}) if summary else request()
    output = check_life_cycle(translated(asked, [*deltas(pieces), chunk({}, "stop")]))
    said = {"reasoning_content": "", "content": "", "refusal": ""}
    for kind, one in pieces:
        if isinstance(kind, str):
            said[kind] += one
    found = {"reasoning_content": "", "content": "", "refusal": ""}
    calls = []
    for item in output:
        assert item["status"] == "completed"
        for part in [*item.get("summary", ()), *item.get("content", ())]:
            key = {"output_text": "content", "refusal": "refusal"}.get(part["type"], "reasoning_content")
            found[key] += part["refusal"] if part["type"] == "refusal" else part["text"]
        if item["type"] == "function_call":
            calls.append((item["call_id"], item["name"], item["arguments"]))
    assert found == said
    written: dict[int, str] = {}
    for kind, one in pieces:
        if isinstance(kind, int):
            place = min(kind, len(written))
            written[place] = written.get(place, "") + one
    assert calls == [(f"call_{place}", f"tool{place}", one) for place, one in written.items()]


def test_usage_keeps_cached_and_reasoning_tokens() -> None:
    details: Json = {"prompt_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 3}}
    details |= {"completion_tokens_details": {"reasoning_tokens": 30}}
    usage = usage_chunk(prompt_tokens=100, completion_tokens=40, total_tokens=140, **details)
    events = translated(request(), [chunk({"content": "x"}), chunk({}, "stop"), usage])
    assert events[-1]["response"]["usage"] == {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 3},
        "output_tokens": 40,
        "output_tokens_details": {"reasoning_tokens": 30},
        "total_tokens": 140,
    }


@pytest.mark.parametrize(("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_an_answer_that_was_cut_is_incomplete(finish: str, reason: str) -> None:
    events = translated(request(), [chunk({"content": "half"}), chunk({}, finish)])
    assert events[-1]["type"] == "response.incomplete"
    response = events[-1]["response"]
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": reason}
    assert response["output"][0]["status"] == "incomplete"


def test_an_answer_without_a_word_has_an_empty_message() -> None:
    output = check_life_cycle(translated(request(), [chunk({"role": "assistant", "content": ""}), chunk({}, "stop")]))
    assert output[0]["content"] == [{"type": "output_text", "text": "", "annotations": [], "logprobs": []}]


def test_a_custom_tool_of_the_provider_itself_streams_its_input() -> None:
    first = {"index": 0, "id": "c1", "type": "custom", "custom": {"name": "patch", "input": "*** "}}
    more = {"index": 0, "custom": {"input": "Begin"}}
    chunks = [chunk({"tool_calls": [first]}), chunk({"tool_calls": [more]}), chunk({}, "tool_calls")]
    events = translated(request(), chunks)
    deltas = [event["delta"] for event in events if event["type"] == "response.custom_tool_call_input.delta"]
    assert deltas == ["*** ", "Begin"]
    [item] = check_life_cycle(events)
    assert item == {
        "id": "ctc_012300",
        "type": "custom_tool_call",
        "status": "completed",
        "call_id": "c1",
        "name": "patch",
        "input": "*** Begin",
    }


def test_log_probabilities_and_citations_arrive_with_the_text() -> None:
    note = {"type": "url_citation", "url_citation": {"url": "http://a", "title": "A", "start_index": 0, "end_index": 1}}
    entry = {"token": "x", "bytes": [120], "logprob": -0.5, "top_logprobs": []}
    first = chunk({"content": "x"})
    first["choices"][0]["logprobs"] = {"content": [entry]}
    events = translated(request(), [first, chunk({"annotations": [note]}), chunk({}, "stop")])
    [item] = check_life_cycle(events)
    [part] = item["content"]
    assert part["logprobs"] == [entry]
    flat = {"type": "url_citation", "url": "http://a", "title": "A", "start_index": 0, "end_index": 1}
    assert part["annotations"] == [flat]
    [added] = [event for event in events if event["type"] == "response.output_text.annotation.added"]
    assert added["annotation"] == flat


def test_a_stream_that_breaks_ends_with_a_failed_response_and_no_call_that_is_not_whole() -> None:
    stream = ResponsesFromChat(parse(json.dumps(request()).encode()).body, ID, CREATED)
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "rm", "arguments": '{"path":"/'}}
    chat = ChatStream(wants_usage=True)
    out = stream.feed(chat.payloads([json.dumps(chunk({"tool_calls": [call]})).encode()]))
    events = list(events_in(out + stream.failed(ConnectionLost("gone"))))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.failed"
    response = events[-1]["response"]
    assert response["status"] == "failed"
    assert response["error"] == {"code": "upstream_connection_lost", "message": "gone"}
    assert response["output"][0]["status"] == "incomplete"
    assert not [event for event in events if event["type"] == "response.output_item.done"]


def test_a_chunk_that_cannot_be_read_fails_the_stream() -> None:
    about = dialects.Asked(parse(json.dumps(request()).encode()).body, "req_1", CREATED, True)
    reader = dialects.reader("responses", "chat", about)
    call = {"index": 0, "id": "c1", "type": "custom", "custom": {"name": "patch", "input": 5}}
    assert reader.feed([json.dumps(chunk({"tool_calls": [call]})).encode()]) == b""
    assert isinstance(reader.failure, InvalidReply)


def test_text_that_comes_in_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "A"}, {"type": "text", "text": "ve"}]
    output = check_life_cycle(translated(request(), [chunk({"content": parts}), chunk({}, "stop")]))
    assert output[0]["content"][0]["text"] == "Ave"


def test_a_stream_that_fails_before_it_began_gets_an_error_event() -> None:
    stream = ResponsesFromChat(parse(json.dumps(request()).encode()).body, ID, CREATED)
    [event] = events_in(stream.failed(ConnectionLost("gone")))
    assert event["type"] == "error"
    assert event["code"] == event["error"]["code"] == "upstream_connection_lost"
    EVENTS.validate_python(event)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_characters_that_the_network_split_come_out_whole(data: st.DataObject) -> None:
    said = ["Ave 🎉", "👩‍👩‍👧 é", "fin"]
    chunks = [*(chunk({"content": one}) for one in said), chunk({}, "stop")]
    wire = b"".join(b"data: " + json.dumps(one, ensure_ascii=False).encode() + b"\n\n" for one in chunks)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(wire) - 1), max_size=20)))
    splitter, chat = EventSplitter(), ChatStream(wants_usage=True)
    stream = ResponsesFromChat(parse(json.dumps(request()).encode()).body, ID, CREATED)
    out = b""
    for start, stop in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        out += stream.feed(chat.payloads(splitter.feed(wire[start:stop])))
    output = check_life_cycle(list(events_in(out + stream.end())))
    assert output[0]["content"][0]["text"] == "".join(said)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_finished_response_is_told_again_with_a_whole_life_cycle(path: Path) -> None:
    last = json.loads(path.read_text().splitlines()[-1])["event"]["response"]
    told = responses_replay.events(json.dumps(last).encode())
    assert check_life_cycle(list(events_in(b"".join(told)))) == last["output"]


def test_an_unfinished_response_is_told_as_far_as_it_is_and_nothing_changes_later() -> None:
    last = json.loads(GOLDEN[0].read_text().splitlines()[-1])["event"]["response"]
    stages = [
        responses_replay.events(json.dumps({**last, "status": status, "output": []}).encode())
        for status in ("queued", "in_progress")
    ]
    whole = responses_replay.events(json.dumps(last).encode())
    assert [len(stage) for stage in stages] == [1, 2]
    assert whole[:2] == stages[1]
    assert whole[:1] == stages[0]


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b": keep-alive\n\n",
        b'{"object":"response"}',
        b"event: response.completed\ndata: {}\n\n",
        b"event: x\ndata: y\n\n",
    ],
)
def test_what_holds_no_finished_response_is_not_kept(said: bytes) -> None:
    assert last_response(said) is None


def test_the_last_events_response_is_what_is_kept() -> None:
    events = translated(request(), [chunk({"content": "event: response.completed\n\n"}), chunk({}, "stop")])
    pieces = [b"event: %b\ndata: %b\n\n" % (e["type"].encode(), json.dumps(e).encode()) for e in events]
    assert [last_response(piece) for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    for said in (pieces[-1], b"".join(pieces)):
        last = last_response(said)
        assert last is not None
        assert (last.id, last.status) == (ID, "completed")
        assert json.loads(last.body) == events[-1]["response"]


def own(events: list[Json]) -> list[bytes]:
    return [json.dumps(event).encode() for event in events]


def test_an_upstream_of_the_dialect_is_relayed_byte_for_byte() -> None:
    events = translated(request(), [chunk({"content": "Ave"}), chunk({}, "stop"), usage_chunk(prompt_tokens=3)])
    payloads = own(events)
    stream = ResponsesStream()
    committed = []
    out = b""
    for payload in payloads:
        out += stream.feed([payload])
        committed.append(stream.committed)
    expected = zip(events, payloads, strict=True)
    assert out == b"".join(b"event: %b\ndata: %b\n\n" % (e["type"].encode(), payload) for e, payload in expected)
    types = [event["type"] for event in events]
    assert committed.index(True) == types.index("response.output_text.delta")
    assert stream.done
    assert stream.finished
    assert stream.failure is None
    assert stream.model == "m-dated"
    assert stream.usage is not None
    assert stream.usage.prompt_tokens == 3
    assert stream.text_length == 3
    assert stream.end() == b""


def test_an_upstream_of_the_dialect_that_stops_early_is_truncated() -> None:
    stream = ResponsesStream()
    stream.feed(own(translated(request(), [chunk({"content": "Ave"}), chunk({}, "stop")])[:-1]))
    with pytest.raises(TruncatedStream):
        stream.end()
    [event] = events_in(stream.failed(ConnectionLost("gone")))
    assert event["type"] == "response.failed"
    assert event["response"]["id"] == ID
    assert event["response"]["status"] == "failed"


@pytest.mark.parametrize(
    "event",
    [
        {
            "type": "response.failed",
            "response": {"status": "failed", "error": {"code": "server_error", "message": "m"}},
        },
        {"type": "error", "code": "server_error", "message": "m", "param": None, "sequence_number": 1},
        {"type": "error", "error": {"code": "server_error", "message": "m"}, "sequence_number": 1},
    ],
)
def test_a_failure_of_an_upstream_of_the_dialect_is_a_failure(event: Json) -> None:
    stream = ResponsesStream()
    assert stream.feed(own([event])) == b""
    assert isinstance(stream.failure, ErrorEvent)
    assert stream.failure.error["code"] == "server_error"
    assert not stream.committed


def test_events_without_a_type_are_refused() -> None:
    stream = ResponsesStream()
    assert stream.feed([b'{"choices":[]}']) == b""
    assert stream.failure is not None


def test_the_events_are_json_that_any_reader_takes() -> None:
    [event, *_] = translated(request(metadata={"a": "b"}), [chunk({"content": "x"}), chunk({}, "stop")])
    assert msgspec.json.decode(json.dumps(event))["response"]["metadata"] == {"a": "b"}
