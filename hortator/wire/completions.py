"""The old completions dialect: a text goes on. Code editors use it to complete within a file (`suffix`).

The door parses requests here; dispatch reads whole replies and streams here. It is passed through to providers that still serve it and
never said in another dialect: a chat model does not continue a text.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from hortator.errors import HortatorError, InvalidReply, TruncatedStream
from hortator.wire.body import Object, ParsedRequest, parse_as
from hortator.wire.chat import StreamOptions, WireUsage
from hortator.wire.chat_stream import DONE, ErrorEvent


class CompletionRequest(Struct):
    """The documented parameters; unknown ones pass."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    prompt: str | list[str | int | list[int]] | None = None
    suffix: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    best_of: int | None = None
    echo: bool | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: int | None = None
    max_tokens: int | None = None
    n: int | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    user: str | None = None


class Choice(Struct):
    """One choice of a chunk."""

    text: str | None = None
    index: int | None = None
    finish_reason: str | None = None


class Chunk(Struct):
    """One `text_completion`, whole or a piece, as far as the gateway reads it."""

    choices: list[Choice] | None = None
    model: str | None = None
    usage: WireUsage | None = None
    error: Any = None


_request = msgspec.json.Decoder(CompletionRequest)
_chunk = msgspec.json.Decoder(Chunk)
_BAD = "The provider's reply is not a completion."


def parse(body: bytes) -> ParsedRequest:
    """Validate a request body. Raises InvalidRequest."""
    top, request = parse_as(body, _request)
    options = request.stream_options
    stream = bool(request.stream)
    return ParsedRequest(top, request.model, stream, bool(stream and options and options.include_usage))


def read_whole(body: bytes) -> Chunk:
    """Check that a whole reply is a completion. Raises InvalidReply."""
    reply = _read(body)
    if reply.choices is None and not reply.error:
        raise InvalidReply(_BAD)
    return reply


def _read(payload: bytes) -> Chunk:
    try:
        return _chunk.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidReply(_BAD) from None


class CompletionStream:
    """The state of one upstream stream; see `dialects.Reader`."""

    def __init__(self, wants_usage: bool) -> None:
        self._wants_usage = wants_usage
        self._opened: set[int] = set()
        self._finished: set[int] = set()
        self.committed = False
        self.done = False
        self.failure: Exception | None = None
        self.usage: WireUsage | None = None
        self.model: str | None = None
        self.text_length = 0

    @property
    def finished(self) -> bool:
        """Every choice that began has its finish reason."""
        return bool(self._finished) and self._opened <= self._finished

    def feed(self, payloads: list[bytes]) -> bytes:
        """Return what the client gets for these events; a bad one sets `failure`."""
        out = []
        for payload in payloads:
            if payload == b"[DONE]":
                self.done = True
                break
            try:
                piece = self._event(payload.replace(b"\n", b" "))
            except (InvalidReply, ErrorEvent) as failure:
                self.failure = failure
                break
            if piece:
                out.append(b"data: " + piece + b"\n\n")
        return b"".join(out)

    def end(self) -> bytes:
        """Return the stream's last bytes. Raises TruncatedStream when no finish reason came."""
        if not self.finished:
            raise TruncatedStream("The provider's stream ended before its answer was complete.")
        return DONE

    def failed(self, error: HortatorError) -> bytes:
        """Return nothing: the door says it."""
        return b""

    def _event(self, payload: bytes) -> bytes:
        chunk = _read(payload)
        if chunk.error:
            raise ErrorEvent(chunk.error)
        self.model = self.model or chunk.model
        for position, choice in enumerate(chunk.choices or ()):
            index = position if choice.index is None else choice.index
            self._opened.add(index)
            if choice.text:
                self.committed = True
                self.text_length += len(choice.text)
            if choice.finish_reason:
                self.committed = True
                self._finished.add(index)
        if chunk.usage:
            self.usage = chunk.usage
            if not self._wants_usage:
                return _without_usage(payload) if chunk.choices else b""
        return payload


def _without_usage(payload: bytes) -> bytes:
    document = msgspec.json.decode(payload, type=Object)
    document.pop("usage", None)
    return msgspec.json.encode(document)
