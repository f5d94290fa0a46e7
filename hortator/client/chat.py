"""Chat completions as OpenAI's client has them: what is sent, and the objects that come back (R-000-14).

`sync.py` and `async_client.py` offer them as `client.chat.completions.create`. What is not an argument by name is a field of the body,
the gateway's own too: `hortator_mode="fast"`, `hortator_config={...}`. No I/O.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from hortator.client.errors import HortatorError, ServerError, told
from hortator.client.record import Record, plain, read_object
from hortator.client.request import Request, post, with_headers
from hortator.errors import InvalidReply
from hortator.wire.sse import EventSplitter

Verbosity = Literal["default", "verbose", "full"]


class Usage(Record):
    """Tokens of a call."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ReplyMessage(Record):
    """What a model said."""

    role: str
    content: str | None
    tool_calls: Any
    refusal: str | None


class Choice(Record, kinds={"message": ReplyMessage}):
    """One answer."""

    index: int
    message: ReplyMessage
    finish_reason: str | None
    logprobs: Any


class ChatCompletion(Record, kinds={"choices": Choice, "usage": Usage}):
    """A whole answer."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None


class Delta(Record):
    """A piece of an answer."""

    role: str | None
    content: str | None
    tool_calls: Any


class ChunkChoice(Record, kinds={"delta": Delta}):
    """A piece of one answer."""

    index: int
    delta: Delta
    finish_reason: str | None


class HortatorEvent(Record):
    """What a team of agents does, beside its answer (R-000-27)."""

    type: str
    timestamp: str
    message: str | None
    details: Any


class ChatCompletionChunk(Record, kinds={"choices": ChunkChoice, "usage": Usage, "hortator_event": HortatorEvent}):
    """One chunk of a stream. `hortator_event` is there in chunks that tell of agents (verbosity `verbose` or `full`)."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None
    hortator_event: HortatorEvent | None


def completion_request(
    model: str,
    messages: Sequence[Any],
    *,
    stream: bool,
    verbosity: Verbosity | None = None,
    timeout: float | None = None,
    extra_headers: Mapping[str, str] | None = None,
    extra_body: Mapping[str, Any] | None = None,
    **params: Any,
) -> Request:
    """Return the request of a chat completion. Messages are mappings, or anything with `to_dict`."""
    body = {"model": model, "messages": [plain(each) for each in messages], **params, **(extra_body or {})}
    if stream:
        body["stream"] = True
    headers = dict(extra_headers or {})
    if verbosity is not None:
        headers["X-Hortator-Verbosity"] = verbosity
    return replace(with_headers(post("/v1/chat/completions", body), headers), timeout=timeout)


def completion(body: bytes) -> ChatCompletion:
    """Read a whole answer. Raises ServerError for what is none."""
    return ChatCompletion(read_object(body))


class Chunks:
    """Chunks out of the bytes of a stream, and whether it ended well."""

    def __init__(self, task_id: str | None = None) -> None:
        self._splitter = EventSplitter()
        self._task_id = task_id
        self.ended = False
        """`[DONE]` has come."""

    def feed(self, data: bytes) -> Iterator[ChatCompletionChunk]:
        """Give the chunks that `data` completes. Raises HortatorError for an error event."""
        try:
            payloads = self._splitter.feed(data)
        except InvalidReply as error:
            raise ServerError(error.message) from None
        for payload in payloads:
            if payload.strip() == b"[DONE]":
                self.ended = True
                continue
            found = read_object(payload)
            if isinstance(found.get("error"), dict):
                raise told(found["error"], None, self._task_id)
            yield ChatCompletionChunk(found)

    def end(self) -> None:
        """The stream is over. Raises HortatorError where it was cut off."""
        if not self.ended:
            raise HortatorError("The stream ended before the answer was complete.", code="stream_truncated")
