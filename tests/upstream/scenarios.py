"""Every way the scripted upstream can answer, by name.

`server.py` looks a scenario up by the name a test planned, or else by the request's `model`, and plays the script it
returns. A scenario sees the request, because a provider answers a stream with a stream, and one that echoes secrets must
know them.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.upstream.script import (
    CONTENT,
    DATED_MODEL,
    DETAILED_USAGE,
    PIECES,
    RATE_HEADERS,
    ROLE,
    STOP,
    TEXT,
    Script,
    chunk,
    completion,
    dump,
    error_body,
    event,
    head,
    named_event,
    reply,
    response,
    response_events,
    sse,
    stream_head,
    usage_chunk,
)
from tests.upstream.team import team

DONE = "[DONE]"
FLOOD_EVENT_BYTES = 64 * 1024
FLOOD_EVENTS = 1024
HUGE_CONTENT_BYTES = 1024 * 1024
BAD_TEXT = dump(completion()).encode().replace("🎉".encode(), b"\xff\xfe")


@dataclass(frozen=True)
class Request:
    """What a scenario may look at."""

    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def stream(self) -> bool:
        return self.body.get("stream") is True

    @property
    def wants_usage(self) -> bool:
        return bool((self.body.get("stream_options") or {}).get("include_usage"))

    @property
    def secret(self) -> str:
        return self.headers.get("authorization", "")


Scenario = Callable[[Request], Script]


def ending(request: Request, usage: dict[str, Any] | None = None) -> Script:
    """The usage chunk where it was asked for, the end marker and the end of the body."""
    return [*(sse(usage_chunk(usage)) if request.wants_usage else []), *sse(DONE), ["end"]]


def echo_in_stream(request: Request) -> Script:
    """A provider that breaks off with an error that repeats the key it was sent."""
    said = error_body(f"the key {request.secret} is over its quota", "quota")
    return [stream_head(), *sse(ROLE, CONTENT[0]), ["chunk", event(said)], ["end"]]


def stream_of(*chunks: object, usage: dict[str, Any] | None = None) -> Scenario:
    """A clean stream of these chunks."""
    return lambda request: [stream_head(RATE_HEADERS), *sse(*chunks), *ending(request, usage)]


def unary(**changes: Any) -> Scenario:
    """A clean reply, with changes."""
    return lambda request: reply(200, dump(completion(**changes)), RATE_HEADERS)


def either(whole: Scenario, streamed: Scenario) -> Scenario:
    """A provider that answers a stream with a stream."""
    return lambda request: streamed(request) if request.stream else whole(request)


def fixed(*steps: list[Any]) -> Scenario:
    """The same script for everybody."""
    return lambda request: list(steps)


def opened(*steps: list[Any], before: tuple[object, ...] = ()) -> Scenario:
    """A stream whose head and first events came well, then `steps`."""
    return lambda request: [stream_head(), *sse(*before), *steps]


def tool_deltas(**first: Any) -> list[dict[str, Any]]:
    """One tool call in three fragments; `first` changes the first one."""
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}, **first}
    return [
        chunk({"role": "assistant", "content": None, "tool_calls": [call]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '"Köln"}'}}]}),
        chunk({}, "tool_calls"),
    ]


TOOL_CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Köln"}'}}


def without(value: dict[str, Any], *path: Any) -> dict[str, Any]:
    """A deep copy of JSON data without the key at `path`."""
    key, *rest = path
    if not rest:
        return {name: item for name, item in value.items() if name != key}
    child: Any = value[key]
    if isinstance(child, list):
        index, *deeper = rest
        changed: Any = [without(item, *deeper) if place == index else item for place, item in enumerate(child)]
    else:
        changed = without(child, *rest)
    return {**value, key: changed}


def null_call(arguments: str) -> dict[str, Any]:
    """A tool-call continuation as careless providers write it: every key there, most of them null."""
    call = {"index": 0, "id": None, "type": None, "function": {"name": None, "arguments": arguments}}
    return chunk({"role": None, "content": None, "refusal": None, "tool_calls": [call]})


def split(request: Request) -> Script:
    """The clean stream, one byte a packet: every event, every `data:` and every emoji arrives in pieces."""
    text = "".join(event(value) for value in (ROLE, *CONTENT, STOP))
    return [stream_head(), ["split", text], *ending(request)]


def multi_line(request: Request) -> Script:
    """One JSON document over several `data:` lines, with CRLF, comments, `event:`, `id:` and `retry:` lines between."""
    opening = ": hello\r\n\r\nretry: 3000\r\nevent: message\r\nid: 1\r\n" + event(ROLE).replace("\n", "\r\n")
    spread = dump(CONTENT[0]).replace(',"choices"', ',\ndata: "choices"')
    return [
        stream_head(),
        ["chunk", opening],
        ["chunk", f"data: {spread}\n\n"],
        ["chunk", "data:" + dump(CONTENT[1]) + "\r\n\r\n"],
        ["chunk", ": keep-alive\n\n" + event(CONTENT[2]) + ": between\n" + event(CONTENT[3])],
        *sse(STOP),
        *ending(request),
    ]


def statuses() -> dict[str, Scenario]:
    """`status_N` (an OpenAI error), `busy_N` (one that may be asked again at once), `html_N`, `empty_N` and `echo_N` (repeats the credential) for each error status."""
    found: dict[str, Scenario] = {}
    for status in (400, 401, 403, 404, 409, 413, 422, 429, 500, 502, 503, 504, 529):
        extra = {"retry-after": "7", **RATE_HEADERS} if status in (429, 503, 529) else {}
        kind = "invalid_request_error" if status < 429 else "server_error"
        body = error_body(f"upstream says {status}", f"upstream_{status}", kind, "messages" if status == 400 else None)
        found[f"status_{status}"] = fixed(*reply(status, body, extra))
        found[f"busy_{status}"] = fixed(*reply(status, body, {"retry-after": "0"}))
        found[f"html_{status}"] = fixed(*reply(status, f"<html><h1>{status}</h1></html>", extra, "text/html"))
        found[f"empty_{status}"] = fixed(*reply(status, "", extra))
        found[f"echo_{status}"] = echo(status)
    return found


def echo(status: int) -> Scenario:
    """A provider whose error repeats the key it was sent, in the body and in headers."""

    def script(request: Request) -> Script:
        key = request.secret.removeprefix("Bearer ")
        text = f"Incorrect API key provided: {key}. Header was: {request.secret}"
        return reply(
            status, error_body(text, "invalid_api_key"), {"x-echo": key, "www-authenticate": f'Bearer realm="{key}"'}
        )

    return script


CLEAN: dict[str, Scenario] = {
    "ok": either(unary(), stream_of(ROLE, *CONTENT, STOP)),
    "tools": either(
        unary(message={"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}, finish="tool_calls"),
        stream_of(*tool_deltas()),
    ),
    "reasoning": either(
        unary(message={"role": "assistant", "content": TEXT, "reasoning_content": "Hmm."}, usage=DETAILED_USAGE),
        stream_of(ROLE, chunk({"reasoning_content": "Hmm."}), *CONTENT, STOP, usage=DETAILED_USAGE),
    ),
    "no_usage": either(
        lambda request: reply(200, dump(without(completion(), "usage"))),
        opened(*sse(DONE), ["end"], before=(ROLE, *CONTENT, STOP)),
    ),
    "chunked": lambda request: [
        ["send", head(200, {"content-type": "application/json", "transfer-encoding": "chunked"})],
        *([["chunk", part] for part in (dump(completion())[:50], dump(completion())[50:])]),
        ["end"],
    ],
    "close_delimited": lambda request: [
        ["send", head(200, {"content-type": "application/json", "connection": "close"}) + dump(completion())],
        ["close"],
    ],
    "extra_fields": either(
        unary(x_top={"deep": [1.0, "é", 12345678901234567890]}, service_tier="flex"),
        stream_of(ROLE, chunk({"content": "a", "x_delta": 1.0}, x_top=12345678901234567890), STOP),
    ),
}

DIRTY_STREAMS: dict[str, Scenario] = {
    "split": split,
    "multi_line": multi_line,
    "nulls": stream_of(
        chunk({"role": "assistant", "content": None, "tool_calls": None, "refusal": None}),
        chunk({"role": None, "content": TEXT, "refusal": None, "function_call": None, "tool_calls": None}),
        STOP,
    ),
    "null_tool_keys": stream_of(tool_deltas()[0], null_call('{"city":'), null_call('"Köln"}'), chunk({}, "tool_calls")),
    "choices_without_index": stream_of(*(without(value, "choices", 0, "index") for value in (ROLE, *CONTENT, STOP))),
    "tools_without_index": stream_of(
        *(without(value, "choices", 0, "delta", "tool_calls", 0, "index") for value in tool_deltas()[:3]),
        tool_deltas()[3],
    ),
    "usage_without_choices": lambda request: [
        stream_head(),
        *sse(ROLE, *CONTENT, STOP, without(usage_chunk(), "choices"), DONE),
        ["end"],
    ],
    "usage_in_last_chunk": opened(
        *sse(chunk({}, "stop", usage=DETAILED_USAGE), DONE), ["end"], before=(ROLE, *CONTENT)
    ),
    "finish_with_content": stream_of(ROLE, *CONTENT[:-1], chunk({"content": PIECES[-1]}, "stop")),
    "no_role": stream_of(*CONTENT, STOP),
    "no_done": opened(["end"], before=(ROLE, *CONTENT, STOP)),
    "huge_event": stream_of(ROLE, chunk({"content": "x" * HUGE_CONTENT_BYTES}), STOP),
    "trailing_events": opened(*sse(DONE, chunk({"content": "after the end"})), ["end"], before=(ROLE, *CONTENT, STOP)),
}


def native(events: list[dict[str, Any]]) -> Script:
    """A stream of the responses dialect."""
    return [stream_head(RATE_HEADERS), *(["chunk", named_event(value)] for value in events), ["end"]]


NATIVE_FAILURE = {
    "type": "response.failed",
    "sequence_number": 5,
    "response": response([], "failed", error={"code": "server_error", "message": "the model broke"}),
}
NATIVE: dict[str, Scenario] = {
    "native_ok": either(lambda _: reply(200, dump(response()), RATE_HEADERS), lambda _: native(response_events())),
    "native_early_failure": either(
        lambda _: reply(200, dump(NATIVE_FAILURE["response"])),
        lambda _: native([*response_events()[:3], NATIVE_FAILURE]),
    ),
    "native_late_failure": lambda _: native([*response_events()[:5], NATIVE_FAILURE]),
    "native_cut": lambda _: [*native(response_events()[:6])[:-1], ["close"]],
    "native_gated": lambda _: [["gate", "go"], *reply(200, dump(response()))],
}
"""Answers of a provider that speaks the responses dialect itself."""

PACED: dict[str, Scenario] = {
    "slow_first_byte": either(
        lambda request: [["gate", "go"], *reply(200, dump(completion()))],
        lambda request: [["gate", "go"], stream_head(), *sse(ROLE, *CONTENT, STOP), *ending(request)],
    ),
    "slow_500": fixed(["gate", "go"], *reply(500, error_body("late failure"))),
    "role_then_silence": lambda request: [
        stream_head(),
        *sse(ROLE),
        ["gate", "go"],
        *sse(*CONTENT, STOP),
        *ending(request),
    ],
    "content_then_silence": lambda request: [
        stream_head(),
        *sse(ROLE, CONTENT[0]),
        ["gate", "go"],
        *sse(*CONTENT[1:], STOP),
        *ending(request),
    ],
    "half_body_then_silence": lambda request: [
        [
            "send",
            head(200, {"content-type": "application/json", "content-length": str(len(dump(completion()).encode()))}),
        ],
        ["send", dump(completion())[:40]],
        ["gate", "go"],
        ["send", dump(completion())[40:]],
    ],
    "flood": lambda request: [
        stream_head(),
        *sse(ROLE),
        ["flood", event(chunk({"content": "f" * (FLOOD_EVENT_BYTES - 200)})), FLOOD_EVENTS],
        *sse(STOP),
        *ending(request),
    ],
}

BROKEN: dict[str, Scenario] = {
    "hang": fixed(["hang"]),
    "reset_before_reply": fixed(["reset"]),
    "close_before_reply": fixed(["close"]),
    "reset_after_head": either(
        lambda request: [["send", head(200, {"content-type": "application/json", "content-length": "500"})], ["reset"]],
        opened(["reset"]),
    ),
    "not_http": fixed(["send", "SSH-2.0-OpenSSH_9.2\r\n\r\n"], ["close"]),
    "malformed_json": fixed(*reply(200, '{"id": "chatcmpl-1", "choices": [}')),
    "html_200": fixed(*reply(200, "<html><body>Sign in</body></html>", kind="text/html")),
    "empty_200": fixed(*reply(200, "")),
    "json_array": fixed(*reply(200, "[]")),
    "no_choices": fixed(*reply(200, '{"id":"chatcmpl-1","object":"chat.completion"}')),
    "error_in_200": fixed(*reply(200, error_body("quota of the account is used up", "quota_exceeded"))),
    "truncated_body": fixed(
        ["send", head(200, {"content-type": "application/json", "content-length": "5000"}) + dump(completion())],
        ["close"],
    ),
    "cut_chunked": fixed(
        ["send", head(200, {"content-type": "application/json", "transfer-encoding": "chunked"})],
        ["chunk", dump(completion())[:60]],
        ["close"],
    ),
    "invalid_utf8": fixed(
        ["send", head(200, {"content-type": "application/json", "content-length": str(len(BAD_TEXT))})],
        ["bytes", base64.b64encode(BAD_TEXT).decode()],
    ),
}

ERROR_EVENT = {
    "error": {
        "message": "upstream broke in the stream",
        "type": "server_error",
        "code": "upstream_broke",
        "param": None,
    }
}


def broken_streams() -> dict[str, Scenario]:
    """Each stream fault twice: `early_*` before the first content byte, `late_*` after it."""
    faults: dict[str, tuple[list[Any], ...]] = {
        "malformed_event": (["chunk", "data: {not json\n\n"], *sse(DONE), ["end"]),
        "error_event": (*sse(ERROR_EVENT, DONE), ["end"]),
        "named_error_event": (["chunk", "event: error\n" + event(ERROR_EVENT)], ["end"]),
        "no_finish": (["end"],),
        "done_without_finish": (*sse(DONE), ["end"]),
        "cut": (["close"],),
        "cut_in_event": (["chunk", 'data: {"id":"chatcmpl-upst'], ["close"]),
        "reset": (["reset"],),
        "silence": (["hang"],),
    }
    found: dict[str, Scenario] = {}
    for name, steps in faults.items():
        found[f"early_{name}"] = opened(*steps, before=(ROLE,))
        found[f"late_{name}"] = opened(*steps, before=(ROLE, CONTENT[0]))
    return found


SCENARIOS: dict[str, Scenario] = {
    "echo_in_stream": echo_in_stream,
    "team": team,
    **CLEAN,
    **DIRTY_STREAMS,
    **NATIVE,
    **PACED,
    **BROKEN,
    **broken_streams(),
    **statuses(),
}
MODEL_LIST = dump(
    {"object": "list", "data": [{"id": DATED_MODEL, "object": "model", "created": 1, "owned_by": "scripted"}]}
)
