"""A chat stream told in the events of the messages dialect.

`dialects.Translated` feeds it chunks that `ChatStream` has checked and mended. The dialect knows one open block at a time: pieces
of parallel calls that interleave are kept until the block before theirs is whole. What a chunk says stays as it is spelled. Pure:
no I/O, no clock.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from hortator.errors import HortatorError, InvalidReply
from hortator.wire.chat import WireUsage
from hortator.wire.messages_error import error_event
from hortator.wire.messages_reply import message_usage, refusal_details, stopped

_ABSENT = Raw(b"")
_NOTHING = (b"", b'""', b"null")
_encode = msgspec.json.encode


class FunctionDelta(Struct, frozen=True):
    """A piece of a function call."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolDelta(Struct):
    """A piece of a call."""

    index: int = 0
    id: str | UnsetType = UNSET
    function: FunctionDelta | UnsetType = UNSET


class ThinkingDelta(Struct):
    """A piece of `thinking_blocks`: of thinking its signature, or all of a redacted one."""

    type: str = "thinking"
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None


class Delta(Struct, frozen=True):
    """What a chunk adds to the answer. Text is relayed as it is spelled."""

    content: Raw = _ABSENT
    reasoning_content: Raw = _ABSENT
    reasoning: Raw = _ABSENT
    refusal: str | UnsetType | None = UNSET
    tool_calls: list[ToolDelta] | UnsetType = UNSET
    thinking_blocks: list[ThinkingDelta] | UnsetType | None = UNSET
    function_call: FunctionDelta | UnsetType = UNSET


class Choice(Struct):
    """A choice of a chunk."""

    index: int = 0
    delta: Delta = Delta()
    finish_reason: str | None = None
    native_finish_reason: Any = None
    stop_reason: Any = None


class Chunk(Struct):
    """One `chat.completion.chunk` that obeys the rules."""

    choices: list[Choice]
    model: str | None = None
    usage: WireUsage | None = None


class Call:
    """One tool call on its way: what has come of it, and what was told."""

    __slots__ = ("id", "name", "pieces", "told")

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.pieces: list[str] = []
        """Its arguments."""
        self.told = 0
        """How many of them the client has."""

    @property
    def whole(self) -> bool:
        """Whether the arguments are complete JSON, so that no piece can be missing."""
        if not self.pieces or "}" not in self.pieces[-1]:
            return False
        try:
            msgspec.json.decode("".join(self.pieces), type=dict[str, Raw])
        except (msgspec.DecodeError, RecursionError):
            return False
        return True


_chunk = msgspec.json.Decoder(Chunk)


class MessagesFromChat:
    """Tells one chat stream as a message. Not reusable."""

    __slots__ = (
        "_call",
        "_calls",
        "_index",
        "_message_id",
        "_open",
        "_refusal",
        "_request_id",
        "_started",
        "_stop",
        "_usage",
        "_waiting",
    )

    def __init__(self, message_id: str, request_id: str) -> None:
        self._message_id = message_id
        self._request_id = request_id
        self._started = False
        self._index = -1
        """The last block that was opened."""
        self._open = ""
        """Its kind while it is open: text, thinking, tool_use."""
        self._call = -1
        """The call that the open block tells."""
        self._calls: dict[int, Call] = {}
        self._waiting: list[int | tuple[str, bytes] | ThinkingDelta] = []
        """What came while a call was open that may not be whole: other calls, pieces of text or thinking, signatures; in order."""
        self._stop: tuple[str, str | None] | None = None
        self._refusal: str | None = None
        self._usage: WireUsage | None = None

    def feed(self, payloads: list[bytes]) -> bytes:
        """Return the events for these chunks. Raises InvalidReply."""
        out: list[bytes] = []
        for payload in payloads:
            try:
                chunk = _chunk.decode(payload)
            except (msgspec.DecodeError, RecursionError):
                raise InvalidReply("The provider sent a chunk that cannot be told as a message.") from None
            if not self._started:
                self._start(chunk, out)
            if chunk.usage is not None:
                self._usage = chunk.usage
            for choice in chunk.choices:
                if choice.index == 0:
                    self._choice(choice, out)
        return b"".join(out)

    def end(self) -> bytes:
        """Return the last events of an answer that is complete."""
        out: list[bytes] = []
        while self._waiting:
            self._next(out)
        self._close(out)
        reason, sequence = self._stop or ("end_turn", None)
        if reason == "end_turn" and self._calls:
            reason = "tool_use"
        if reason == "end_turn" and self._refusal is not None:
            reason = "refusal"
        details = refusal_details(self._refusal) if reason == "refusal" else None
        delta = {"stop_reason": reason, "stop_sequence": sequence, "stop_details": details}
        last = {"type": "message_delta", "delta": delta, "usage": message_usage(self._usage)}
        out.append(b"event: message_delta\ndata: " + _encode(last) + b"\n\n")
        out.append(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')
        return b"".join(out)

    def failed(self, error: HortatorError) -> bytes:
        """Return the event that tells the client of a failure."""
        return error_event(error, self._request_id)

    def _start(self, chunk: Chunk, out: list[bytes]) -> None:
        self._started = True
        message: dict[str, Any] = {
            "id": self._message_id,
            "type": "message",
            "role": "assistant",
            "model": chunk.model or "",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }
        out.append(b"event: message_start\ndata: " + _encode({"type": "message_start", "message": message}) + b"\n\n")
        out.append(b'event: ping\ndata: {"type":"ping"}\n\n')

    def _choice(self, choice: Choice, out: list[bytes]) -> None:
        delta = choice.delta
        for thinking in (delta.reasoning_content, delta.reasoning):
            if bytes(thinking) not in _NOTHING:
                self._say("thinking", bytes(thinking), out)
                break
        if delta.thinking_blocks:
            for block in delta.thinking_blocks:
                self._sign(block, out)
        content = bytes(delta.content)
        if content not in _NOTHING:
            self._say("text", content if content.startswith(b'"') else _joined(content), out)
        if delta.refusal:
            self._refusal = (self._refusal or "") + delta.refusal
            self._say("text", _encode(delta.refusal), out)
        for piece in delta.tool_calls or ():
            self._piece(piece.index, piece.id, piece.function, out)
        if delta.function_call:
            self._piece(0, "call_0", delta.function_call, out)
        if choice.finish_reason is not None:
            self._stop = stopped(choice.finish_reason, choice.native_finish_reason, choice.stop_reason)

    def _say(self, kind: str, spelled: bytes, out: list[bytes]) -> None:
        """Tell a piece of text or thinking, given as a JSON string."""
        if self._busy():
            self._waiting.append((kind, spelled))
            return
        if self._open != kind:
            self._close(out)
            empty = (
                b'{"type":"text","text":""}' if kind == "text" else b'{"type":"thinking","thinking":"","signature":""}'
            )
            self._begin(kind, empty, out)
        delta = b'"text_delta","text":' if kind == "text" else b'"thinking_delta","thinking":'
        self._tell(delta + spelled, out)

    def _sign(self, block: ThinkingDelta, out: list[bytes]) -> None:
        """Tell what proves a piece of thinking: its signature, or the data of a redacted one as a block of its own."""
        if self._busy():
            self._waiting.append(block)
        elif block.data is not None:
            self._close(out)
            self._begin("redacted_thinking", _encode({"type": "redacted_thinking", "data": block.data}), out)
            self._close(out)
        elif block.signature:
            if self._open != "thinking":
                self._close(out)
                self._say("thinking", _encode(block.thinking or ""), out)
            self._tell(b'"signature_delta","signature":' + _encode(block.signature), out)
            self._close(out)

    def _piece(self, index: int, id: str | UnsetType, function: FunctionDelta | UnsetType, out: list[bytes]) -> None:
        """Take a piece of a call; tell it if its block is open or can be opened."""
        call = self._calls.get(index)
        if call is None:
            call = self._calls[index] = Call()
            self._waiting.append(index)
        if id:
            call.id = id
        if function:
            call.name = call.name or function.name or ""
            if function.arguments:
                call.pieces.append(function.arguments)
        if self._open == "tool_use" and self._call == index:
            self._tell_arguments(call, out)
        while self._waiting and self._may_go_on():
            self._next(out)

    def _busy(self) -> bool:
        """Whether the open block is a call that pieces may still come for, or others wait behind it."""
        return self._open == "tool_use" and bool(self._waiting or not self._calls[self._call].whole)

    def _may_go_on(self) -> bool:
        """Whether the open block can be closed for the first one that waits, and that one has its name."""
        first = self._waiting[0]
        if isinstance(first, int) and not self._calls[first].name:
            return False
        return self._open != "tool_use" or self._calls[self._call].whole

    def _next(self, out: list[bytes]) -> None:
        """Tell the first that waits."""
        first = self._waiting.pop(0)
        if isinstance(first, int) or self._open == "tool_use":
            self._close(out)
        if isinstance(first, ThinkingDelta):
            self._sign(first, out)
            return
        if not isinstance(first, int):
            self._say(*first, out)
            return
        call = self._calls[first]
        self._call = first
        head = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        self._begin("tool_use", _encode(head), out)
        self._tell_arguments(call, out)

    def _tell_arguments(self, call: Call, out: list[bytes]) -> None:
        added = "".join(call.pieces[call.told :])
        if added:
            call.told = len(call.pieces)
            self._tell(b'"input_json_delta","partial_json":' + _encode(added), out)

    def _begin(self, kind: str, block: bytes, out: list[bytes]) -> None:
        self._index += 1
        self._open = kind
        head = b'event: content_block_start\ndata: {"type":"content_block_start","index":%d,"content_block":%b}\n\n'
        out.append(head % (self._index, block))

    def _tell(self, delta: bytes, out: list[bytes]) -> None:
        event = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":%b}}\n\n'
        out.append(event % (self._index, delta))

    def _close(self, out: list[bytes]) -> None:
        if self._open:
            self._open = ""
            stop = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n'
            out.append(stop % self._index)


def _joined(content: bytes) -> bytes:
    """Return content that came as a list of parts as one JSON string."""
    parts = msgspec.json.decode(content)
    texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return _encode("".join(texts))
