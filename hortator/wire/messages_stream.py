"""Streams of the messages dialect: relayed as they came, or told in chat chunks.

`MessagesStream` stands between a provider and a client that both speak it; `ChatFromMessages` makes chat chunks of a provider's
events for every other client. The way from chat is in `messages_encoder.py`. Dispatch feeds both with the data of events, as
`chat_stream.py` is fed. Pure: no I/O, no clock.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from hortator.errors import HortatorError, InvalidReply, TruncatedStream
from hortator.wire.chat import WireUsage
from hortator.wire.chat_stream import ErrorEvent
from hortator.wire.messages_error import with_status
from hortator.wire.messages_reply import MessageUsage, chat_usage, finish, wire_usage

_BROKEN = "The provider sent an event that is not one of a message's stream."
_encode = msgspec.json.encode


class Delta(Struct, frozen=True):
    """What an event adds to a block, or to the message at its end."""

    type: str = ""
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    signature: str = ""
    citation: Any = None
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: Any = None


class Head(Struct, frozen=True):
    """The message that `message_start` announces."""

    id: str = ""
    model: str = ""
    usage: MessageUsage | None = None


class Event(Struct):
    """Any event; each type uses some of the fields."""

    type: str
    index: int = 0
    delta: Delta = Delta()
    message: Head = Head()
    usage: MessageUsage | None = None
    content_block: dict[str, Any] = {}
    error: Any = None


_event = msgspec.json.Decoder(Event)


def _read(payload: bytes) -> Event:
    try:
        return _event.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidReply(_BROKEN) from None


def _later(known: MessageUsage | None, told: MessageUsage | None) -> MessageUsage | None:
    """Return the usage as it stands after an event: what it tells is a total and takes the place of what was known."""
    if told is None or known is None:
        return told or known
    for name in MessageUsage.__struct_fields__:
        if getattr(told, name) is None:
            setattr(told, name, getattr(known, name))
    return told


class MessagesStream:
    """The state of one stream that is relayed byte for byte. Not reusable."""

    __slots__ = ("_counted", "_usage", "committed", "done", "failure", "model", "text_length")

    def __init__(self, wants_usage: bool = True) -> None:
        """`wants_usage` is ignored: the dialect always tells it."""
        self._usage: MessageUsage | None = None
        self._counted = False
        self.committed = False
        """Content has been seen: nothing may be tried elsewhere any more."""
        self.done = False
        """`message_stop` has been seen."""
        self.failure: Exception | None = None
        """What went wrong after the bytes that `feed` returned last; nothing more comes."""
        self.model: str | None = None
        self.text_length = 0
        """Characters of text, thinking and arguments relayed."""

    @property
    def finished(self) -> bool:
        """The answer is complete; only `message_stop` says so."""
        return self.done

    @property
    def usage(self) -> WireUsage | None:
        """The upstream's total, in the pivot's terms; None before it: `message_start` cannot know the output."""
        return wire_usage(self._usage) if self._usage is not None and self._counted else None

    def feed(self, payloads: list[bytes]) -> bytes:
        """Return the same events; a bad one sets `failure`, and what came before it still counts."""
        out = []
        for payload in payloads:
            try:
                event = _read(payload)
                self._note(event)
            except (InvalidReply, ErrorEvent) as failure:
                self.failure = failure
                break
            out.append(b"event: %b\ndata: %b\n\n" % (event.type.encode(), payload.replace(b"\n", b"\ndata: ")))
            if self.done:
                break
        return b"".join(out)

    def end(self) -> bytes:
        """Return nothing more. Raises TruncatedStream when `message_stop` never came."""
        if not self.done:
            raise TruncatedStream("The provider's stream ended before its answer was complete.")
        return b""

    def failed(self, error: HortatorError) -> bytes:
        """Return nothing: the dialect's error event does not depend on the stream, and the door says it."""
        return b""

    def _note(self, event: Event) -> None:
        kind = event.type
        if kind == "content_block_delta":
            delta = event.delta
            size = len(delta.text) + len(delta.thinking) + len(delta.partial_json)
            self.text_length += size
            self.committed = self.committed or size > 0
        elif kind == "content_block_start":
            self.committed = self.committed or event.content_block.get("type") not in ("text", "thinking")
        elif kind == "message_start":
            self.model = event.message.model or None
            self._usage = event.message.usage
        elif kind == "message_delta":
            self.committed = True
            self._counted = self._counted or event.usage is not None
            self._usage = _later(self._usage, event.usage)
        elif kind == "message_stop":
            self.committed = self.done = True
        elif kind == "error":
            raise ErrorEvent(with_status(event.error) or "The provider ended the answer with an error.")
        elif not kind.isidentifier():
            raise InvalidReply(_BROKEN)


class ChatFromMessages:
    """Tells a stream of the messages dialect in chat chunks. Not reusable."""

    __slots__ = ("_arguments", "_blocks", "_call", "_created", "_finish", "_head", "_kept", "_text", "_usage")

    def __init__(self, created: float) -> None:
        """`created` is in Unix seconds."""
        self._created = int(created)
        self._head = b""
        """What every chunk begins with."""
        self._usage: MessageUsage | None = None
        self._call = -1
        """The index of the call that is being told."""
        self._arguments = False
        """It has arguments."""
        self._blocks: dict[str, int] = {}
        """How many entries of each extension list were told."""
        self._kept: dict[str, Any] | None = None
        """A block that is told when it is whole: signed thinking, and what chat does not know."""
        self._text: list[str] = []
        """The pieces of its text."""
        self._finish: bytes = b""

    def feed(self, payloads: list[bytes]) -> list[bytes]:
        """Return chat chunks; `[DONE]` after the last, `{"error": ...}` for an error event. Raises InvalidReply."""
        out: list[bytes] = []
        for payload in payloads:
            event = _read(payload)
            if event.type == "content_block_delta":
                self._delta(event.delta, out)
            elif event.type == "content_block_start":
                self._start(event.content_block, out)
            elif event.type == "content_block_stop":
                self._stop(out)
            elif event.type == "message_start":
                self._open(event.message, out)
            elif event.type == "message_delta":
                self._close(event)
            elif event.type == "message_stop":
                self._end(out)
            elif event.type == "error":
                out.append(
                    _encode({"error": with_status(event.error) or "The provider ended the answer with an error."})
                )
        return out

    def _chunk(self, delta: bytes) -> bytes:
        return b'%b,"choices":[{"index":0,"delta":%b,"finish_reason":null}]}' % (self._head, delta)

    def _open(self, message: Head, out: list[bytes]) -> None:
        self._usage = message.usage
        head = {"id": message.id, "object": "chat.completion.chunk", "created": self._created, "model": message.model}
        self._head = _encode(head)[:-1]
        out.append(self._chunk(b'{"role":"assistant","content":""}'))

    def _delta(self, delta: Delta, out: list[bytes]) -> None:
        kind = delta.type
        if kind == "text_delta":
            out.append(self._chunk(b'{"content":%b}' % _encode(delta.text)))
        elif kind == "input_json_delta":
            if self._kept is not None:
                self._text.append(delta.partial_json)
            elif delta.partial_json:
                self._argue(delta.partial_json, out)
        elif kind == "thinking_delta":
            self._text.append(delta.thinking)
            out.append(self._chunk(b'{"reasoning_content":%b}' % _encode(delta.thinking)))
        elif kind == "signature_delta" and self._kept is not None:
            self._kept["signature"] = delta.signature
        elif kind == "citations_delta":
            self._extend("citations", dict(delta.citation or {}), out)

    def _start(self, block: dict[str, Any], out: list[bytes]) -> None:
        kind = block.get("type")
        if kind == "text":
            if block.get("text"):
                out.append(self._chunk(b'{"content":%b}' % _encode(block["text"])))
        elif kind == "tool_use":
            self._call += 1
            function = {"name": block.get("name", ""), "arguments": ""}
            call = {"index": self._call, "id": block.get("id", ""), "type": "function", "function": function}
            out.append(self._chunk(_encode({"tool_calls": [call]})))
            self._arguments = False
            if block.get("input"):
                self._argue(_encode(block["input"]).decode(), out)
        else:
            self._kept = block
            if kind == "thinking" and block.get("thinking"):
                self._delta(Delta(type="thinking_delta", thinking=block["thinking"]), out)

    def _argue(self, piece: str, out: list[bytes]) -> None:
        self._arguments = True
        call = {"index": self._call, "function": {"arguments": piece}}
        out.append(self._chunk(_encode({"tool_calls": [call]})))

    def _stop(self, out: list[bytes]) -> None:
        """End a block: a call without arguments gets empty ones, a block that was kept is told."""
        block, self._kept = self._kept, None
        text, self._text = "".join(self._text), []
        if block is None:
            if self._call >= 0 and not self._arguments:
                self._argue("{}", out)
            return
        if block.get("type") == "thinking":
            if block.get("signature"):
                self._extend("thinking_blocks", {**block, "thinking": text}, out)
        elif block.get("type") == "redacted_thinking":
            self._extend("thinking_blocks", block, out)
        else:
            if text:
                block["input"] = Raw(text.encode())
            self._extend("anthropic_blocks", block, out)

    def _extend(self, name: str, entry: dict[str, Any], out: list[bytes]) -> None:
        """Tell one more entry of an extension list; it has an index, as accumulating clients demand."""
        at = self._blocks.get(name, 0)
        self._blocks[name] = at + 1
        out.append(self._chunk(_encode({name: [{"index": at, **entry}]})))

    def _close(self, event: Event) -> None:
        """Keep the end until `message_stop` confirms it."""
        self._usage = _later(self._usage, event.usage)
        delta = event.delta
        if delta.stop_reason is None:
            return
        said: dict[str, Any] = {}
        if delta.stop_reason == "refusal" and isinstance(delta.stop_details, dict):
            explanation = delta.stop_details.get("explanation")
            said = {"refusal": explanation} if isinstance(explanation, str) else {}
        choice = {"index": 0, "delta": said, **finish(delta.stop_reason, delta.stop_sequence)}
        self._finish = b'%b,"choices":[%b]}' % (self._head, _encode(choice))

    def _end(self, out: list[bytes]) -> None:
        if self._finish:
            out.append(self._finish)
        if self._usage is not None:
            out.append(b'%b,"choices":[],"usage":%b}' % (self._head, _encode(chat_usage(self._usage))))
        out.append(b"[DONE]")
