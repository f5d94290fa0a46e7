"""A script: the steps that one scripted reply is made of, and the pieces of wire text that scripts are built from.

`scenarios.py` and ad-hoc tests write scripts, `server.py` plays them. A script is plain JSON data (a list of lists), so
that a test can send one through the control door. Nothing here does input or output.

Steps:  ["send", text]         write text as UTF-8, as it is
        ["bytes", base64]      write these bytes, as they are
        ["chunk", text]        write text as one chunk of a chunked body
        ["split", text]        write text as chunked body, one byte a chunk and a packet
        ["end"]                write the closing chunk
        ["gate", name]         wait until the test releases `name` for this mark
        ["hang"]               wait until the client is gone
        ["flood", text, n]     write `text` as a chunk `n` times, as fast as the client reads
        ["close"]              close the connection (FIN)
        ["reset"]              break the connection (RST)
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

Step = list[Any]
Script = list[Step]

KNOWN_STATUS = frozenset(HTTPStatus)
CREATED = 1_790_000_000
COMPLETION_ID = "chatcmpl-upstream"
DATED_MODEL = "scripted-2026-01-01"
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
DETAILED_USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 40,
    "total_tokens": 140,
    "prompt_tokens_details": {"cached_tokens": 64},
    "completion_tokens_details": {"reasoning_tokens": 30},
}
TEXT = "Ave, münde 🎉!"
PIECES = ("Ave, ", "münde ", "🎉", "!")
RATE_HEADERS = {
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-remaining-requests": "0",
    "x-ratelimit-reset-requests": "6m0s",
}


def dump(value: object) -> str:
    """JSON as providers write it: compact, and not escaped to ASCII."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def head(status: int, headers: dict[str, str]) -> str:
    """The status line and headers of a reply."""
    phrase = HTTPStatus(status).phrase if status in KNOWN_STATUS else "Overloaded"
    lines = [f"HTTP/1.1 {status} {phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines) + "\r\n\r\n"


def reply(status: int, body: str, headers: dict[str, str] | None = None, kind: str = "application/json") -> Script:
    """A whole reply with a Content-Length."""
    fields = {"content-type": kind, "content-length": str(len(body.encode())), **(headers or {})}
    return [["send", head(status, fields) + body]]


def stream_head(headers: dict[str, str] | None = None) -> Step:
    """The head of an event stream in chunked coding."""
    fields = {"content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked", **(headers or {})}
    return ["send", head(200, fields)]


def event(value: object) -> str:
    """One server-sent event."""
    return f"data: {value if isinstance(value, str) else dump(value)}\n\n"


def sse(*values: object) -> Script:
    """Each value as an event in a chunk of its own."""
    return [["chunk", event(value)] for value in values]


def chunk(delta: dict[str, Any], finish: str | None = None, **extra: Any) -> dict[str, Any]:
    """A chat.completion.chunk with one choice."""
    return {
        "id": COMPLETION_ID,
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": DATED_MODEL,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        **extra,
    }


def usage_chunk(usage: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """The last chunk of a stream whose client asked for usage."""
    return {**chunk({}), "choices": [], "usage": usage or USAGE, **changes}


def completion(message: dict[str, Any] | None = None, finish: str = "stop", **changes: Any) -> dict[str, Any]:
    """A whole chat.completion."""
    return {
        "id": COMPLETION_ID,
        "object": "chat.completion",
        "created": CREATED,
        "model": DATED_MODEL,
        "choices": [
            {
                "index": 0,
                "message": message or {"role": "assistant", "content": TEXT},
                "logprobs": None,
                "finish_reason": finish,
            }
        ],
        "usage": USAGE,
        "system_fingerprint": "fp_scripted",
        **changes,
    }


def error_body(message: str, code: str | None = None, kind: str = "server_error", param: str | None = None) -> str:
    """An OpenAI error envelope."""
    return dump({"error": {"message": message, "type": kind, "param": param, "code": code}})


ROLE = chunk({"role": "assistant", "content": ""})
CONTENT = [chunk({"content": piece}) for piece in PIECES]
STOP = chunk({}, "stop")


def response(output: list[dict[str, Any]] | None = None, status: str = "completed", **changes: Any) -> dict[str, Any]:
    """A response object of a provider that speaks the responses dialect itself."""
    return {
        "id": "resp_upstream",
        "object": "response",
        "created_at": CREATED,
        "model": DATED_MODEL,
        "status": status,
        "output": [MESSAGE] if output is None else output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": RESPONSE_USAGE,
        "x_native": 1.50,
        **changes,
    }


RESPONSE_USAGE = {
    "input_tokens": 100,
    "input_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 0},
    "output_tokens": 40,
    "output_tokens_details": {"reasoning_tokens": 30},
    "total_tokens": 140,
}
OUTPUT_TEXT = {"type": "output_text", "text": TEXT, "annotations": [], "logprobs": []}
MESSAGE = {"id": "msg_up", "type": "message", "status": "completed", "role": "assistant", "content": [OUTPUT_TEXT]}


def response_events() -> list[dict[str, Any]]:
    """A whole stream of the responses dialect."""
    begun = response([], "in_progress", usage=None)
    item = {**MESSAGE, "status": "in_progress", "content": []}
    place = {"item_id": "msg_up", "output_index": 0, "content_index": 0}
    part = {**OUTPUT_TEXT, "text": ""}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.content_part.added", **place, "part": part},
        *({"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []} for piece in PIECES),
        {"type": "response.output_text.done", **place, "text": TEXT, "logprobs": []},
        {"type": "response.content_part.done", **place, "part": OUTPUT_TEXT},
        {"type": "response.output_item.done", "output_index": 0, "item": MESSAGE},
        {"type": "response.completed", "response": response()},
    ]
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


def named_event(value: dict[str, Any]) -> str:
    """One server-sent event with its type as its name, as the responses dialect has them."""
    return f"event: {value['type']}\ndata: {dump(value)}\n\n"
