"""Whatever shape the parts of a request or a reply have, translations answer with an error of the tree and never break."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from hortator.errors import HortatorError, InvalidReply
from hortator.wire import chat, dialects, messages
from tests.wire.message_data import USAGE, message
from tests.wire.test_messages import ask
from tests.wire.test_messages_stream import ABOUT, chunks, events, payload

Document = dict[str, Any]
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
RICH_MESSAGES = ask(
    system=[{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "x"}},
                {
                    "type": "document",
                    "title": "t",
                    "source": {"type": "content", "content": [{"type": "text", "text": "x"}]},
                },
                {"type": "document", "source": {"type": "text", "data": "x"}, "citations": {"enabled": False}},
                {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "x"}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "x", "signature": "s"},
                {"type": "tool_use", "id": "t", "name": "f", "input": {"a": [1]}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t",
                    "content": [{"type": "text", "text": "x"}],
                    "is_error": True,
                }
            ],
        },
        {"role": "system", "content": "x"},
    ],
    tools=[{"name": "f", "type": "custom", "description": "d", "input_schema": {"type": "object"}, "strict": True}],
    tool_choice={"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    thinking={"type": "enabled", "budget_tokens": 2000},
    output_config={"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    metadata={"user_id": "u"},
    stop_sequences=["x"],
    service_tier="auto",
    top_k=3,
)
RICH_CHAT: Document = {
    "model": "claude-haiku-4-5",
    "max_tokens": 9000,
    "messages": [
        {"role": "system", "content": "s"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,xx", "detail": "low"}},
                {"type": "file", "file": {"filename": "x", "file_data": "data:application/pdf;base64,xx"}},
            ],
        },
        {
            "role": "assistant",
            "content": "x",
            "refusal": "no",
            "tool_calls": [CALL],
            "thinking_blocks": [{"type": "thinking", "thinking": "x", "signature": "s", "index": 0}],
        },
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "x"}]},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]},
    },
    "parallel_tool_calls": False,
    "reasoning_effort": "high",
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    "output_config": {"effort": "low"},
    "stop": ["x"],
    "user": "u",
    "safety_identifier": "s",
    "service_tier": "default",
    "frequency_penalty": 0,
    "n": 1,
    "logprobs": False,
    "modalities": ["text"],
}
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        -1,
        1.5,
        10**30,
        "",
        "x",
        "file",
        "tool_result",
        "function",
        "none",
        [],
        [None],
        ["x"],
        [{}],
        [[]],
        {},
        {"type": 7},
        {"type": "text"},
        {"x": {}},
    ]
)


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything inside a document."""
    inside = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [found for key, value in inside for found in [(*path, key), *places(value, (*path, key))]]


@st.composite
def spoiled(draw: st.DrawFn, document: Any) -> Any:
    """A document with one or two of its parts replaced, or taken away."""
    spoilt = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 2))):
        *path, last = draw(st.sampled_from(places(spoilt)))
        holder = spoilt
        for key in path:
            holder = holder[key]
        if isinstance(holder, dict) and draw(st.booleans()):
            del holder[last]
        else:
            holder[last] = copy.deepcopy(draw(ODD))
        if not places(spoilt):
            break
    return spoilt


@settings(max_examples=400)
@given(spoiled(RICH_MESSAGES))
def test_no_messages_request_breaks_the_translation(document: Document) -> None:
    with contextlib.suppress(HortatorError):
        parsed = messages.parse(json.dumps(document).encode())
        assert messages.estimate_tokens(parsed.body) > 0
        with contextlib.suppress(HortatorError):
            messages.to_plain_chat(parsed.body)
        messages.from_chat(messages.to_chat(parsed.body))


@settings(max_examples=400)
@given(spoiled(RICH_CHAT))
def test_no_chat_request_breaks_the_translation(document: Document) -> None:
    with contextlib.suppress(HortatorError):
        messages.from_chat(chat.parse(json.dumps(document).encode()).body)


REPLY = message(
    [
        {"type": "thinking", "thinking": "x", "signature": "s"},
        {"type": "text", "text": "x", "citations": [{"type": "char_location"}]},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
    ],
    "refusal",
    USAGE | {"service_tier": "standard"},
    stop_details={"type": "refusal", "explanation": "x"},
)
COMPLETION = json.loads(messages.reply_to_chat(json.dumps(REPLY).encode(), 1.0))


@settings(max_examples=300)
@given(spoiled(REPLY))
def test_no_message_breaks_the_translation(document: Document) -> None:
    body = json.dumps(document).encode()
    with contextlib.suppress(InvalidReply):
        messages.read_whole(body)
        messages.reply_to_chat(body, 1.0)


@settings(max_examples=300)
@given(spoiled(COMPLETION))
def test_no_completion_breaks_the_translation(document: Document) -> None:
    body = json.dumps(document).encode()
    with contextlib.suppress(InvalidReply):
        chat.read_whole(body)
        messages.reply_from_chat(body, "msg_1")


EVENTS = events(REPLY)
CHUNKS = [
    json.loads(line)
    for line in chunks(
        {"reasoning_content": "x"},
        {"thinking_blocks": [{"index": 0, "type": "thinking", "thinking": "x", "signature": "s"}]},
        {"content": "x"},
        {"tool_calls": [{"index": 0, **CALL}]},
        {"refusal": "x"},
        usage={"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}},
    )[:-1]
]


def drained(reader: dialects.Reader, lines: list[bytes]) -> None:
    """Feed a reader as dispatch does."""
    for line in lines:
        reader.feed([line])
        if reader.failure is not None:
            return
    if reader.finished:
        reader.end()


@settings(max_examples=300)
@given(spoiled(EVENTS), st.sampled_from(["messages", "chat"]))
def test_no_event_breaks_a_stream(documents: list[Document], asked: dialects.Dialect) -> None:
    drained(dialects.reader(asked, "messages", ABOUT), [payload(one) for one in documents])


@settings(max_examples=400)
@given(spoiled(CHUNKS))
def test_no_chunk_breaks_a_stream(documents: list[Document]) -> None:
    drained(dialects.reader("messages", "chat", ABOUT), [*(payload(one) for one in documents), b"[DONE]"])
