"""Streams in the responses dialect: made from a chat stream, or relayed from an upstream that speaks the dialect itself.

Dispatch feeds `ResponsesFromChat` the chunks that `chat_stream.ChatStream` has checked and mended, and `ResponsesStream` the
payloads of an upstream's own events. Both return client bytes. Every event is named (`event:` repeats its type) and numbered;
a delta comes only inside an item that was announced, every item is closed, and the last event repeats them all, because
clients throw, or lose the answer, where one of these is missing. No `[DONE]`: the last event is the end. Pure: no I/O.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from msgspec import Raw, Struct

from hortator.errors import HortatorError, InvalidReply, TruncatedStream
from hortator.wire.body import Object
from hortator.wire.chat import WireUsage
from hortator.wire.chat_stream import ErrorEvent
from hortator.wire.responses import ResponseUsage, read_usage
from hortator.wire.responses_reply import (
    Frame,
    Items,
    Logprobs,
    TextPart,
    annotation,
    incomplete_reason,
    joined,
    refusal_part,
    text_part,
    wants_summary,
)
from hortator.wire.responses_tools import read_tools, unwrap_input

_encode = msgspec.json.encode
_LEGACY_CALL = -1
"""The place of the one call that the old `function_call` of a delta makes."""


class FunctionDelta(Struct):
    """A piece of a function call."""

    name: str | None = None
    arguments: str | None = None


class CustomDelta(Struct):
    """A piece of a call of chat's own custom tools."""

    name: str | None = None
    input: str | None = None


class ToolDelta(Struct):
    """A piece of a call."""

    index: int
    id: str | None = None
    function: FunctionDelta | None = None
    custom: CustomDelta | None = None


class Delta(Struct):
    """What a chunk adds to a choice."""

    content: str | list[TextPart] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolDelta] | None = None
    function_call: FunctionDelta | None = None
    annotations: list[Object] | None = None


class Choice(Struct):
    """One choice of a chunk."""

    delta: Delta
    index: int = 0
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class Chunk(Struct):
    """One chunk of a chat stream, after `ChatStream` has mended it."""

    choices: list[Choice]
    model: str | None = None
    usage: WireUsage | None = None
    service_tier: str | None = None


_chunk = msgspec.json.Decoder(Chunk)


def named_event(type: str, sequence: int, body: dict[str, Any]) -> bytes:
    """Return one event."""
    payload = _encode({"type": type, "sequence_number": sequence, **body})
    return b"event: " + type.encode() + b"\ndata: " + payload + b"\n\n"


class _Whole(Struct):
    """What a response needs to be kept."""

    id: str
    status: str


class _Last(Struct):
    """A stream's last event."""

    type: str
    response: Raw


class Last(NamedTuple):
    """A finished response."""

    id: str
    status: str
    body: bytes


_whole = msgspec.json.Decoder(_Whole)
_last = msgspec.json.Decoder(_Last)
_LAST_EVENTS = (b"event: response.completed\n", b"event: response.incomplete\n", b"event: response.failed\n")


def last_response(said: bytes) -> Last | None:
    """Return the response in what a client of the dialect is told: a whole body, or a piece of a stream that ends with its last event.

    None = there is none in it, or none that can be read.
    """
    try:
        if said.startswith((b"event: ", b": ", b"data: ")):
            start = said.rfind(b"\n\n", 0, -2)
            start = 0 if start < 0 else start + 2
            if not said.startswith(_LAST_EVENTS, start):
                return None
            said = bytes(_last.decode(said[said.index(b"data: ", start) + 6 :]).response)
        found = _whole.decode(said)
    except msgspec.DecodeError:
        return None
    return Last(found.id, found.status, said)


def error_event(sequence: int, error: HortatorError) -> bytes:
    """Return the event of a stream that failed before it had a response.

    The reference has the error's fields at the top, OpenAI sends them as `error`, and client libraries raise on that.
    """
    said = {"code": error.code, "message": error.message, "param": error.param}
    return named_event("error", sequence, {**said, "error": {"type": error.type, **said}})


class _Call:
    """A call while it is being written."""

    __slots__ = ("chat_name", "custom", "id", "native", "opened", "place", "written")

    def __init__(self, id: str | None) -> None:
        self.id = id
        self.chat_name = ""
        self.written: list[str] = []
        self.opened = False
        """Its item was announced; its name was not known before."""
        self.place = 0
        self.custom = False
        """For the client it is a call of a custom tool."""
        self.native = False
        """The provider has custom tools too: the input comes as it is, not wrapped in arguments."""


class ResponsesFromChat:
    """Writes the events of one response from the chunks of one chat stream. `feed` until its end, then `end`, or `failed`."""

    def __init__(self, request: Object, id: str, created: float) -> None:
        """`request` is the client's, in this dialect; `created` in Unix seconds."""
        self._request = request
        self._id = id
        self._created = created
        self._items = Items(id, read_tools(request, custom_tools=False), wants_summary(request))
        self._frame: Frame | None = None
        self._sequence = 0
        self._output: list[dict[str, Any]] = []
        """Items announced so far, the finished ones complete."""
        self._out: list[bytes] = []
        self._open: str | None = None
        """What is being written: `reasoning`, `text` or `refusal`; calls are written side by side and stay open to the end."""
        self._delta_head = b""
        self._texts: list[str] = []
        self._logprobs: list[Raw] = []
        self._annotations: list[Any] = []
        self._calls: dict[int, _Call] = {}
        self._usage: WireUsage | None = None
        self._finish_reason: str | None = None

    def feed(self, payloads: list[bytes]) -> bytes:
        """Return the events for these chunks. Raises InvalidReply for one that holds what no chunk may."""
        for payload in payloads:
            try:
                chunk = _chunk.decode(payload)
            except msgspec.DecodeError:
                raise InvalidReply("The provider sent a chunk that is not a chat completion chunk.") from None
            if self._frame is None:
                self._begin(chunk)
            if chunk.usage is not None:
                self._usage = chunk.usage
            for choice in chunk.choices:
                if choice.index == 0:
                    self._choice(choice)
        return self._flush()

    def end(self) -> bytes:
        """Return the last events of a complete chat stream."""
        reason = incomplete_reason(self._finish_reason)
        status = "completed" if reason is None else "incomplete"
        self._begin_if_needed()
        if not self._output and not self._calls:
            self._open_part("text")
        self._close_all(status)
        self._lifecycle(status, incomplete=reason)
        return self._flush()

    def failed(self, error: HortatorError) -> bytes:
        """Return the last event of a stream that failed."""
        if self._frame is None:
            return error_event(self._sequence, error)
        sequence = self._sequence
        self._close_all("incomplete")
        self._out.clear()  # the client is told of no item's end: it would act on a call that is not whole
        self._sequence = sequence
        self._lifecycle("failed", error={"code": error.code, "message": error.message})
        return self._flush()

    def _begin_if_needed(self) -> None:
        if self._frame is None:
            self._begin(Chunk(choices=[]))

    def _begin(self, chunk: Chunk) -> None:
        model = chunk.model or msgspec.json.decode(self._request["model"])
        self._frame = Frame(self._request, self._id, self._created, model, chunk.service_tier)
        started = self._frame.response("in_progress", ())
        self._emit("response.created", {"response": started})
        self._emit("response.in_progress", {"response": started})

    def _flush(self) -> bytes:
        out, self._out = b"".join(self._out), []
        return out

    def _emit(self, type: str, body: dict[str, Any]) -> None:
        self._out.append(named_event(type, self._sequence, body))
        self._sequence += 1

    def _lifecycle(self, status: str, **more: Any) -> None:
        assert self._frame is not None
        response = self._frame.response(status, self._output, usage=self._usage, **more)
        self._emit(f"response.{status}", {"response": response})

    def _choice(self, choice: Choice) -> None:
        delta = choice.delta
        if choice.finish_reason:
            self._finish_reason = choice.finish_reason
        thinking = delta.reasoning_content or delta.reasoning
        if thinking:
            self._write("reasoning", thinking)
        content = delta.content
        if content:
            logprobs = choice.logprobs.content if choice.logprobs is not None else None
            self._write("text", content if isinstance(content, str) else joined(content), logprobs)
        if delta.annotations:
            self._annotate(delta.annotations)
        if delta.refusal:
            self._write("refusal", delta.refusal)
        for tool in delta.tool_calls or ():
            self._tool(tool)
        if delta.function_call is not None:
            self._tool(ToolDelta(index=_LEGACY_CALL, function=delta.function_call))

    def _write(self, kind: str, text: str, logprobs: list[Raw] | None = None) -> None:
        """Add text to what is open, or open it first."""
        if kind != self._open:
            self._open_part(kind)
        self._texts.append(text)
        extra = b"" if kind != "text" else b',"logprobs":[]'
        if logprobs:
            self._logprobs += logprobs
            extra = b',"logprobs":' + _encode(logprobs)
        self._out.append(b'%b%d%b,"delta":%b}\n\n' % (self._delta_head, self._sequence, extra, _encode(text)))
        self._sequence += 1

    def _open_part(self, kind: str) -> None:
        """Begin a part, in a new item unless a message goes on with a part of another kind."""
        same_item = self._open in ("text", "refusal") and kind != "reasoning"
        self._close_part()
        if not same_item:
            self._close_item()
            place = len(self._output)
            item = (
                self._items.reasoning(place, None, "in_progress")
                if kind == "reasoning"
                else self._items.message(place, [], "in_progress")
            )
            self._output.append(item)
            self._emit("response.output_item.added", {"output_index": place, "item": item})
        self._open = kind
        name = self._part_name()
        if name == "reasoning_summary_text":
            self._emit("response.reasoning_summary_part.added", {**self._where(), "part": self._part_of("")})
        else:
            self._emit("response.content_part.added", {**self._where(), "part": self._part_of("")})
        type = f"response.{name}.delta".encode()
        where = _encode({"type": type.decode(), **self._where()})[:-1]
        self._delta_head = b"event: " + type + b"\ndata: " + where + b',"sequence_number":'

    def _part_name(self) -> str:
        """Return what the open part's events are called."""
        if self._open == "reasoning":
            return "reasoning_summary_text" if self._items.summary else "reasoning_text"
        return "refusal" if self._open == "refusal" else "output_text"

    def _where(self) -> dict[str, Any]:
        """Return the fields that say which part an event is about."""
        place = self._text_place()
        if self._open == "reasoning":
            index = {"summary_index" if self._items.summary else "content_index": 0}
        else:
            index = {"content_index": len(self._output[place]["content"])}
        return {"item_id": self._output[place]["id"], "output_index": place, **index}

    def _text_place(self) -> int:
        """Return the place of the item whose text is open: the last that is not a call."""
        return max(place for place, item in enumerate(self._output) if item["type"] in ("message", "reasoning"))

    def _part_of(self, text: str) -> dict[str, Any]:
        if self._open == "reasoning":
            return {"type": "summary_text" if self._items.summary else "reasoning_text", "text": text}
        if self._open == "refusal":
            return refusal_part(text)
        return text_part(text, list(self._logprobs), list(self._annotations))

    def _annotate(self, found: list[Object]) -> None:
        """Add notes to the text: web pages that it cites, for example."""
        if self._open != "text":
            self._open_part("text")
        for one in found:
            note = annotation(one)
            body = {**self._where(), "annotation_index": len(self._annotations), "annotation": note}
            self._emit("response.output_text.annotation.added", body)
            self._annotations.append(note)

    def _close_part(self) -> None:
        """End the open part and put it into its item."""
        if self._open is None:
            return
        text = "".join(self._texts)
        name, where, part = self._part_name(), self._where(), self._part_of(text)
        item = self._output[self._text_place()]
        said: dict[str, Any] = {"refusal" if self._open == "refusal" else "text": text}
        if self._open == "text":
            said["logprobs"] = part["logprobs"]
        self._emit(f"response.{name}.done", {**where, **said})
        closing = "reasoning_summary_part" if name == "reasoning_summary_text" else "content_part"
        self._emit(f"response.{closing}.done", {**where, "part": part})
        item["summary" if name == "reasoning_summary_text" else "content"].append(part)
        self._texts, self._logprobs, self._annotations = [], [], []
        self._open = None

    def _close_item(self, status: str = "completed") -> None:
        """End the item whose text was written last, unless it has been."""
        for place, item in enumerate(self._output):
            if item["type"] in ("message", "reasoning") and item["status"] == "in_progress":
                item["status"] = status
                self._emit("response.output_item.done", {"output_index": place, "item": item})

    def _tool(self, tool: ToolDelta) -> None:
        """Add a piece to its call; calls may be written side by side."""
        call = self._calls.get(tool.index)
        if call is None:
            call = self._calls[tool.index] = _Call(tool.id)
        piece = ""
        if tool.function is not None:
            call.chat_name = call.chat_name or tool.function.name or ""
            piece = tool.function.arguments or ""
        elif tool.custom is not None:
            call.native = True
            call.chat_name = call.chat_name or tool.custom.name or ""
            piece = tool.custom.input or ""
        if piece:
            call.written.append(piece)
        if not call.opened and call.chat_name:
            self._open_call(call)
            piece = "".join(call.written)
        if piece and call.opened and (call.native or not call.custom):
            self._call_delta(call, piece)

    def _open_call(self, call: _Call) -> None:
        self._close_part()
        self._close_item()
        call.opened = True
        call.place = len(self._output)
        item = self._items.call_item(call.place, call.id, call.chat_name, "", "in_progress", custom=call.native)
        call.id = item["call_id"]
        call.custom = item["type"] == "custom_tool_call"
        self._output.append(item)
        self._emit("response.output_item.added", {"output_index": call.place, "item": item})

    def _call_delta(self, call: _Call, piece: str) -> None:
        kind = "custom_tool_call_input" if call.custom else "function_call_arguments"
        where = {"item_id": self._output[call.place]["id"], "output_index": call.place}
        self._emit(f"response.{kind}.delta", {**where, "delta": piece})

    def _close_call(self, call: _Call, status: str) -> None:
        """End a call. The input of a custom tool that came wrapped in arguments is known only now."""
        if not call.opened:
            self._open_call(call)
        written = "".join(call.written)
        if call.custom and not call.native:
            written = unwrap_input(written)
            if written:
                self._call_delta(call, written)
        item = self._items.call_item(call.place, call.id, call.chat_name, written, status, custom=call.native)
        self._output[call.place] = item
        where = {"item_id": item["id"], "output_index": call.place}
        if call.custom:
            self._emit("response.custom_tool_call_input.done", {**where, "input": written})
        else:
            self._emit("response.function_call_arguments.done", {**where, "arguments": written, "name": item["name"]})
        self._emit("response.output_item.done", {"output_index": call.place, "item": item})

    def _close_all(self, status: str) -> None:
        """End everything that is open; of an incomplete answer the last item is incomplete."""
        calls = list(self._calls.values())
        self._close_part()
        self._close_item("completed" if calls else status)
        for call in calls:
            self._close_call(call, status if call is calls[-1] else "completed")


class _Response(Struct):
    """The response in an event that has one."""

    model: str | None = None
    usage: ResponseUsage | None = None
    error: Any = None


class _Event(Struct):
    """One event, as far as the gateway reads it."""

    type: str
    sequence_number: int | None = None
    response: _Response | None = None
    delta: Any = None
    error: Any = None
    code: Any = None
    message: Any = None
    param: Any = None


class _WithResponse(Struct):
    """An event's response, as the upstream wrote it."""

    response: Object


_own_event = msgspec.json.Decoder(_Event)
_response_of = msgspec.json.Decoder(_WithResponse)

_BEFORE_CONTENT = frozenset(
    f"response.{name}" for name in ("created", "queued", "in_progress", "output_item.added", "content_part.added")
)
_ENDS = frozenset(("response.completed", "response.incomplete"))
_FAILURES = frozenset(("error", "response.failed", "response.cancelled"))


class ResponsesStream:
    """The state of one stream from an upstream that speaks the dialect: relayed as it is, but for a failure. Not reusable."""

    __slots__ = (
        "_last_response",
        "_names",
        "_sequence",
        "committed",
        "done",
        "failure",
        "finished",
        "model",
        "text_length",
        "usage",
    )

    def __init__(self) -> None:
        self._sequence = -1
        self._last_response = b""
        self._names: dict[str, bytes] = {}
        self.committed = False
        """Content has been seen: nothing may be tried elsewhere any more."""
        self.done = False
        """The upstream said that the response is over."""
        self.finished = False
        """The answer is complete, or as complete as it will be."""
        self.failure: Exception | None = None
        """What went wrong after the bytes that `feed` returned last; nothing more comes."""
        self.usage: WireUsage | None = None
        self.model: str | None = None
        self.text_length = 0
        """Characters of text, reasoning and arguments relayed, for estimating tokens when the upstream never reports them."""

    def feed(self, payloads: list[bytes]) -> bytes:
        """Return what the client gets for these events; a bad one sets `failure`, and what came before it still counts."""
        out = []
        for payload in payloads:
            if self.done or payload == b"[DONE]":
                self.done = True
                break
            if 10 in payload:
                payload = payload.replace(b"\n", b" ")
            try:
                event = self._read(payload)
            except (InvalidReply, ErrorEvent) as failure:
                self.failure = failure
                break
            out.append(self._name(event.type) + payload + b"\n\n")
        return b"".join(out)

    def end(self) -> bytes:
        """Return the stream's last bytes: none, as its last event was its end. Raises TruncatedStream when that never came."""
        if not self.finished:
            raise TruncatedStream("The provider's stream ended before its answer was complete.")
        return b""

    def failed(self, error: HortatorError) -> bytes:
        """Return the last event of a stream that failed: the response that the client has seen, failed."""
        if not self._last_response:
            return error_event(self._sequence + 1, error)
        response: dict[str, Any] = dict(_response_of.decode(self._last_response).response)
        response |= {"status": "failed", "error": {"code": error.code, "message": error.message}}
        return named_event("response.failed", self._sequence + 1, {"response": response})

    def _read(self, payload: bytes) -> _Event:
        try:
            event = _own_event.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise InvalidReply("The provider sent an event that is not one of a response.") from None
        response = event.response
        if response is not None:
            self.model = response.model or self.model
            if response.usage is not None:
                self.usage = read_usage(response.usage)
        if event.type in _FAILURES:
            said = event.error if response is None else response.error
            raise ErrorEvent(said or {"code": event.code, "message": event.message, "param": event.param})
        if event.sequence_number is not None:
            self._sequence = event.sequence_number
        if response is not None:
            self._last_response = payload
        if event.type in _ENDS:
            self.done = self.finished = self.committed = True
        elif event.type not in _BEFORE_CONTENT:
            self.committed = True
            if isinstance(event.delta, str):
                self.text_length += len(event.delta)
        return event

    def _name(self, type: str) -> bytes:
        """Return the lines before an event's payload. Types are few; one that could break the line is no type."""
        found = self._names.get(type)
        if found is None:
            safe = type if type.isascii() and type.isprintable() else "message"
            found = b"event: " + safe.encode() + b"\ndata: "
            if len(self._names) < 100:
                self._names[type] = found
        return found
