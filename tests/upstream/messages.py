"""The scripted upstream's native `/v1/messages`: the same texts and faults as `scenarios.py`, in Anthropic's dialect.

`server.py` looks here for requests to addresses that end in `/messages`. Nothing here does input or output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.upstream.script import PIECES, TEXT, Script, dump, reply, stream_head

MESSAGE_MODEL = "claude-scripted-1"
MESSAGE_USAGE = {
    "input_tokens": 20,
    "output_tokens": 40,
    "cache_read_input_tokens": 64,
    "cache_creation_input_tokens": 16,
    "output_tokens_details": {"thinking_tokens": 30},
}
MESSAGE_RATES = {"anthropic-ratelimit-requests-limit": "50", "anthropic-ratelimit-requests-remaining": "49"}
SIGNATURE = "c2lnbmF0dXJl"
COUNT = {"input_tokens": 42}
MESSAGE_MODELS = dump(
    {
        "data": [
            {"type": "model", "id": MESSAGE_MODEL, "display_name": "Scripted", "created_at": "2026-01-01T00:00:00Z"}
        ],
        "has_more": False,
        "first_id": MESSAGE_MODEL,
        "last_id": MESSAGE_MODEL,
    }
)

Event = dict[str, Any]
TEXT_BLOCK = {"type": "text", "text": TEXT}
THINKING_BLOCK = {"type": "thinking", "thinking": "Hmm.", "signature": SIGNATURE}
CALLS = [
    {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Köln"}},
    {"type": "tool_use", "id": "toolu_2", "name": "weather", "input": {"city": "Rom"}},
]


def whole(content: list[Event], stop_reason: str = "end_turn", **changes: Any) -> Event:
    """A whole message."""
    return {
        "id": "msg_upstream",
        "type": "message",
        "role": "assistant",
        "model": MESSAGE_MODEL,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": MESSAGE_USAGE,
        **changes,
    }


def sse(*events: Event) -> Script:
    """Events as the provider writes them: a name, and the same in the data."""
    return [["chunk", f"event: {one['type']}\ndata: {dump(one)}\n\n"] for one in events]


def start(index: int, block: Event) -> Event:
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(index: int, **said: Any) -> Event:
    return {"type": "content_block_delta", "index": index, "delta": said}


def stop(index: int) -> Event:
    return {"type": "content_block_stop", "index": index}


def block_events(index: int, block: Event) -> list[Event]:
    """The events of one block."""
    if block["type"] == "text":
        said = [delta(index, type="text_delta", text=piece) for piece in PIECES]
        return [start(index, {"type": "text", "text": ""}), *said, stop(index)]
    if block["type"] == "thinking":
        return [
            start(index, {"type": "thinking", "thinking": "", "signature": ""}),
            delta(index, type="thinking_delta", thinking=block["thinking"]),
            delta(index, type="signature_delta", signature=block["signature"]),
            stop(index),
        ]
    spelled = dump(block["input"])
    parts = [delta(index, type="input_json_delta", partial_json=part) for part in ("", spelled[:5], spelled[5:])]
    return [start(index, block | {"input": {}}), *parts, stop(index)]


def opening(message: Event) -> Event:
    head = message | {"content": [], "stop_reason": None, "usage": MESSAGE_USAGE | {"output_tokens": 1}}
    return {"type": "message_start", "message": head}


def stream(message: Event) -> list[Event]:
    """A whole message as its stream."""
    blocks = [event for at, block in enumerate(message["content"]) for event in block_events(at, block)]
    ending = {"stop_reason": message["stop_reason"], "stop_sequence": message["stop_sequence"]}
    return [
        opening(message),
        {"type": "ping"},
        *blocks,
        {"type": "message_delta", "delta": ending, "usage": {"output_tokens": MESSAGE_USAGE["output_tokens"]}},
        {"type": "message_stop"},
    ]


def says(message: Event) -> Callable[[bool], Script]:
    """Answer with a message, or with its stream."""

    def script(streamed: bool) -> Script:
        if streamed:
            return [stream_head(MESSAGE_RATES), *sse(*stream(message)), ["end"]]
        return reply(200, dump(message), MESSAGE_RATES)

    return script


def opened(*steps: list[Any], events: int) -> Callable[[bool], Script]:
    """The first events of a clean stream, then `steps`."""
    begun = stream(whole([TEXT_BLOCK]))[:events]
    return lambda streamed: [stream_head(), *sse(*begun), *steps]


def refusal(status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> Callable[[bool], Script]:
    """An error reply."""
    body = dump({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_upstream"})
    return lambda streamed: reply(status, body, headers)


OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}

MESSAGES: dict[str, Callable[[bool], Script]] = {
    "ok": says(whole([TEXT_BLOCK])),
    "thinking": says(whole([THINKING_BLOCK, TEXT_BLOCK])),
    "tools": says(whole([THINKING_BLOCK, *CALLS], "tool_use")),
    "refusal": says(whole([], "refusal")),
    "status_400": refusal(400, "invalid_request_error", "max_tokens: too large"),
    "status_401": refusal(401, "authentication_error", "invalid x-api-key"),
    "status_429": refusal(429, "rate_limit_error", "Slow down", {"retry-after": "7", **MESSAGE_RATES}),
    "status_529": refusal(529, "overloaded_error", "Overloaded"),
    "late_error": opened(*sse(OVERLOADED), ["end"], events=4),
    "early_error": opened(*sse(OVERLOADED), ["end"], events=2),
    "late_cut": opened(["end"], events=-1),
    "html_200": lambda streamed: reply(200, "<html></html>", kind="text/html"),
    "hang": lambda streamed: [["hang"]],
}
