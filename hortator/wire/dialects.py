"""The dialects of the corridor, and how one is said in another: requests on their way out, replies on their way back.

A call keeps its client's dialect. Where a provider speaks it the bytes pass through; else dispatch comes here, and the pivot is the
chat dialect: `to_chat` and `from_chat` of two `Form`s make every pair. Pure: ids and times come from the call. Each dialect's own files
(`chat.py`, `chat_stream.py`, ...) know nothing of the others but the pivot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

from hortator.errors import HortatorError, Inapplicable, InvalidReply
from hortator.wire import chat, completions, embeddings, messages, moderations, responses
from hortator.wire.body import Object
from hortator.wire.chat import WireUsage
from hortator.wire.chat_stream import ChatStream
from hortator.wire.messages_encoder import MessagesFromChat
from hortator.wire.messages_stream import ChatFromMessages, MessagesStream
from hortator.wire.responses_stream import ResponsesFromChat, ResponsesStream

Dialect = Literal["chat", "responses", "messages", "completions", "embeddings", "moderations"]


class Asked(NamedTuple):
    """What a translated reply needs to know of its request."""

    body: Object
    """In the client's dialect."""
    id: str
    """The request's id, for the ids of what is made here."""
    created: float
    """Unix seconds."""
    wants_usage: bool


class Whole(Protocol):
    """What is read of a reply that came in one piece, whatever its dialect."""

    @property
    def model(self) -> str | None: ...
    @property
    def usage(self) -> WireUsage | None: ...
    @property
    def error(self) -> Any:
        """The error object inside a reply of status 200; falsy = none."""
        ...


class Reader(Protocol):
    """Reads one upstream stream and makes the client's bytes of it. Not reusable: a new upstream gets a new one."""

    failure: Exception | None
    """What went wrong after the bytes that `feed` returned last (UpstreamError or ErrorEvent); nothing more comes."""

    @property
    def committed(self) -> bool:
        """Content has been seen: nothing may be tried elsewhere any more."""
        ...

    @property
    def done(self) -> bool:
        """The upstream said that this was all."""
        ...

    @property
    def usage(self) -> WireUsage | None: ...
    @property
    def model(self) -> str | None: ...
    @property
    def text_length(self) -> int:
        """Characters of content and reasoning so far, for estimating tokens when the upstream never reports them."""
        ...

    @property
    def finished(self) -> bool:
        """The answer is complete."""
        ...

    def feed(self, payloads: list[bytes]) -> bytes:
        """Return what the client gets for these events' data; a bad one sets `failure`, and what came before it still counts."""
        ...

    def end(self) -> bytes:
        """Return the stream's last bytes. Raises TruncatedStream when the answer is not complete."""
        ...

    def failed(self, error: HortatorError) -> bytes:
        """Return the events that tell the client of a failure; empty where the dialect's door says it without knowing the stream."""
        ...


class Encoder(Protocol):
    """Says chat chunks in another dialect."""

    def feed(self, payloads: list[bytes]) -> bytes:
        """Return the client's bytes for chat chunks that `ChatStream` has checked and mended; usage chunks are among them.

        Raises InvalidReply for what it cannot say.
        """
        ...

    def end(self) -> bytes:
        """Return the last bytes of an answer that is complete."""
        ...

    def failed(self, error: HortatorError) -> bytes:
        """Return the events that tell the client of a failure."""
        ...


class Decoder(Protocol):
    """Says another dialect's events as chat chunks."""

    def feed(self, payloads: list[bytes]) -> list[bytes]:
        """Return chat chunks; `[DONE]` after the last, `{"error": ...}` for an error event. Raises InvalidReply."""
        ...


class Form(NamedTuple):
    """One dialect. What is None it cannot do: it is then only passed through."""

    read_whole: Callable[[bytes], Whole]
    """Check a reply in one piece. Raises InvalidReply."""
    mend_whole: Callable[[bytes, Object], bytes] | None = None
    """Put right a checked reply that passes through, given the request."""
    reader: Callable[[bool], Reader] | None = None
    """Make a reader of its streams, given whether the client wants the usage."""
    to_chat: Callable[[Object], Object] | None = None
    """Say a request as a chat request. Raises InvalidRequest for what is wrong with it, Inapplicable for what cannot be said."""
    from_chat: Callable[[Object], Object] | None = None
    """Say a chat request in this dialect. Raises Inapplicable."""
    reply_from_chat: Callable[[bytes, Asked], bytes] | None = None
    reply_to_chat: Callable[[bytes, Asked], bytes] | None = None
    encoder: Callable[[Asked], Encoder] | None = None
    decoder: Callable[[Asked], Decoder] | None = None
    to_plain_chat: Callable[[Object], Object] | None = None
    """As `to_chat`, for providers that refuse fields that are not of the chat dialect; None = there are none."""


def _message_id(asked: Asked) -> str:
    return f"msg_{asked.id.removeprefix('req_')}"


def _response_id(asked: Asked) -> str:
    return responses.response_id(asked.id, asked.created)


FORMS: dict[Dialect, Form] = {
    "chat": Form(chat.read_whole, reader=ChatStream),
    "completions": Form(completions.read_whole, reader=completions.CompletionStream),
    "embeddings": Form(embeddings.read_whole, mend_whole=embeddings.mend_whole),
    "moderations": Form(moderations.read_whole),
    "messages": Form(
        messages.read_whole,
        reader=MessagesStream,
        to_chat=messages.to_chat,
        from_chat=messages.from_chat,
        reply_from_chat=lambda body, asked: messages.reply_from_chat(body, _message_id(asked)),
        reply_to_chat=lambda body, asked: messages.reply_to_chat(body, asked.created),
        encoder=lambda asked: MessagesFromChat(_message_id(asked), asked.id),
        decoder=lambda asked: ChatFromMessages(asked.created),
        to_plain_chat=messages.to_plain_chat,
    ),
    "responses": Form(
        responses.read_whole,
        reader=lambda _: ResponsesStream(),
        to_chat=responses.to_chat,
        reply_from_chat=lambda body, asked: responses.from_chat(body, asked.body, _response_id(asked), asked.created),
        encoder=lambda asked: ResponsesFromChat(asked.body, _response_id(asked), asked.created),
        to_plain_chat=responses.to_plain_chat,
    ),
}


def spoken(asked: Dialect, known: frozenset[Dialect]) -> Dialect:
    """Return the dialect in which a provider that speaks those `known` is asked. Raises Inapplicable when there is none."""
    if asked in known:
        return asked
    form = FORMS.get(asked)
    if asked == "chat" or (form is not None and form.to_chat is not None):
        for other in ("chat", *known):
            if other in known and (other == "chat" or FORMS[other].from_chat is not None):
                return other
    raise Inapplicable("The provider of this model does not serve this endpoint.")


def request(asked: Dialect, said: Dialect, body: Object, *, extensions: bool = True) -> Object:
    """Return a request in the dialect `said`. Raises InvalidRequest, Inapplicable.

    `extensions` is whether a provider that is asked in chat takes fields that are not of that dialect.
    """
    if asked != "chat":
        plain = None if extensions or said != "chat" else FORMS[asked].to_plain_chat
        into = plain or FORMS[asked].to_chat
        assert into is not None
        body = into(body)
    if said != "chat":
        out = FORMS[said].from_chat
        assert out is not None
        body = out(body)
    return body


def reply(asked: Dialect, said: Dialect, body: bytes, about: Asked) -> bytes:
    """Return a checked reply in the client's dialect."""
    if said != "chat":
        into = FORMS[said].reply_to_chat
        assert into is not None
        body = into(body, about)
    if asked != "chat":
        out = FORMS[asked].reply_from_chat
        assert out is not None
        body = out(body, about)
    return body


def reader(asked: Dialect, said: Dialect, about: Asked) -> Reader:
    """Return a reader of streams in `said` for a client that asked in `asked`. Raises Inapplicable for what never streams."""
    if asked == said:
        make = FORMS[asked].reader
        if make is None:
            raise Inapplicable("This endpoint does not stream.", param="stream")
        return make(about.wants_usage)
    decode, encode = FORMS[said].decoder, FORMS[asked].encoder
    return Translated(about, None if decode is None else decode(about), None if encode is None else encode(about))


class Translated:
    """A stream that is read in one dialect and told in another: decoder, the chat rules, encoder."""

    __slots__ = ("_chat", "_decoder", "_encoder", "_wants_usage", "failure")

    def __init__(self, about: Asked, decoder: Decoder | None, encoder: Encoder | None) -> None:
        """Without a decoder the upstream speaks chat, without an encoder the client does."""
        self._decoder = decoder
        self._encoder = encoder
        self._chat = ChatStream(encoder is not None or about.wants_usage)
        self.failure: Exception | None = None

    @property
    def committed(self) -> bool:
        return self._chat.committed

    @property
    def done(self) -> bool:
        return self._chat.done

    @property
    def usage(self) -> WireUsage | None:
        return self._chat.usage

    @property
    def model(self) -> str | None:
        return self._chat.model

    @property
    def text_length(self) -> int:
        return self._chat.text_length

    @property
    def finished(self) -> bool:
        return self._chat.finished

    def feed(self, payloads: list[bytes]) -> bytes:
        """As `Reader.feed`."""
        rules = self._chat
        try:
            if self._decoder is not None:
                payloads = self._decoder.feed(payloads)
            out = rules.feed(payloads) if self._encoder is None else self._encoder.feed(rules.payloads(payloads))
        except InvalidReply as failure:
            self.failure = failure
            return b""
        self.failure = rules.failure
        return out

    def end(self) -> bytes:
        """As `Reader.end`."""
        last = self._chat.end()
        return last if self._encoder is None else self._encoder.end()

    def failed(self, error: HortatorError) -> bytes:
        """As `Reader.failed`."""
        return b"" if self._encoder is None else self._encoder.failed(error)
