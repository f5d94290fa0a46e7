"""`HortatorClient`: everything a Hortator does, for threads. `async_client.py` is the same for asyncio.

`client.chat.completions.create` is OpenAI's shape (R-000-14), `client.tasks` the task API (R-000-15), `run`, `chat`, `stream` and
`list_models` are the origin project's (R-000-21). Thread-safe: each request has a connection of its own.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, overload

from hortator.client.chat import ChatCompletion, ChatCompletionChunk, Chunks, completion, completion_request
from hortator.client.connection import Reply, Transport
from hortator.client.options import DEFAULT_RETRIES, DEFAULT_TIMEOUT, chosen
from hortator.client.order import FileLike
from hortator.client.origin import (
    DEFAULT_ROLE,
    Message,
    ModelInfo,
    RunResult,
    StreamChunk,
    origin_request,
    prompted,
    run_result,
    stream_chunk,
)
from hortator.client.request import get
from hortator.client.task import listed
from hortator.client.tasks import Tasks


class Stream:
    """The chunks of an answer as they come. Closing it before its end hangs up, which cancels the work."""

    def __init__(self, reply: Reply) -> None:
        self.task_id = reply.headers.get("x-hortator-task-id")
        """The team's task, where a team answers."""
        self._reply = reply
        self._chunks = self._read()

    def _read(self) -> Iterator[ChatCompletionChunk]:
        chunks = Chunks(self.task_id)
        with self._reply as reply:
            for piece in reply:
                yield from chunks.feed(piece)
        chunks.end()

    def __iter__(self) -> Iterator[ChatCompletionChunk]:
        return self._chunks

    def __next__(self) -> ChatCompletionChunk:
        return next(self._chunks)

    def close(self) -> None:
        """Hang up."""
        self._reply.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Completions:
    """`client.chat.completions`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @overload
    def create(
        self, *, model: str, messages: Sequence[Any], stream: Literal[False] = False, **params: Any
    ) -> ChatCompletion: ...

    @overload
    def create(self, *, model: str, messages: Sequence[Any], stream: Literal[True], **params: Any) -> Stream: ...

    @overload
    def create(
        self, *, model: str, messages: Sequence[Any], stream: bool, **params: Any
    ) -> ChatCompletion | Stream: ...

    def create(
        self, *, model: str, messages: Sequence[Any], stream: bool = False, **params: Any
    ) -> ChatCompletion | Stream:
        """Answer a conversation, whole or as a stream of chunks. Raises HortatorError.

        `params` are fields of the body (`temperature`, `hortator_mode`, `hortator_config`, ...), but for `verbosity` (`verbose` and `full`
        add chunks with `hortator_event`), `timeout` (seconds without a byte), `extra_headers` and `extra_body`.
        """
        request = completion_request(model, messages, stream=stream, **params)
        if stream:
            return Stream(self._transport.open(request))
        return completion(self._transport.fetch(request))


class Chat:
    """`client.chat.completions.create(...)`, and the origin's `client.chat(messages, ...)`."""

    def __init__(self, transport: Transport) -> None:
        self.completions = Completions(transport)
        self._transport = transport

    def __call__(
        self, messages: Sequence[Message | Mapping[str, Any]], role: str = DEFAULT_ROLE, **options: Any
    ) -> RunResult:
        """Answer a conversation. Options as `HortatorClient.run`. Raises HortatorError."""
        request = origin_request(messages, role, stream=False, **options)
        return run_result(completion(self._transport.fetch(request)))


class HortatorClient:
    """A client of one server.

    `api_key`, `base_url`: else HORTATOR_API_KEY, HORTATOR_BASE_URL, else this machine; a base URL may have a path, and `/v1` at its end.
    `timeout`: seconds without a byte. `max_retries`: of requests that did nothing (no connection, 429, 503), and of those that may be
    repeated. `ssl_context`: for certificates of your own.
    """

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        *,
        max_retries: int = DEFAULT_RETRIES,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Raises AuthenticationError where there is no key, ValueError for what is no address."""
        key, address = chosen(api_key, base_url)
        self._transport = Transport(address, key, timeout=timeout, max_retries=max_retries, context=ssl_context)
        self.chat = Chat(self._transport)
        self.tasks = Tasks(self._transport)

    @property
    def base_url(self) -> str:
        """Where the server is, without `/v1`."""
        return str(self._transport.address)

    def run(
        self, prompt: str, role: str = DEFAULT_ROLE, *, files: Sequence[FileLike] = (), **options: Any
    ) -> RunResult:
        """Have a role answer a prompt. Raises HortatorError, OSError.

        `role`: of `hortator/<role>`, or a model id. Options: `capabilities`, `tier`, `budget`, and fields of the body.
        """
        request = origin_request(prompted(prompt, files), role, stream=False, **options)
        return run_result(completion(self._transport.fetch(request)))

    def stream(
        self, prompt: str, role: str = DEFAULT_ROLE, *, files: Sequence[FileLike] = (), **options: Any
    ) -> Iterator[StreamChunk]:
        """Give the answer to a prompt as it is written. As `run`. Raises HortatorError, OSError."""
        request = origin_request(prompted(prompt, files), role, stream=True, **options)
        with Stream(self._transport.open(request)) as chunks:
            for chunk in chunks:
                if (said := stream_chunk(chunk)) is not None:
                    yield said

    def list_models(self) -> list[ModelInfo]:
        """Return the models that the key may use. Raises HortatorError."""
        return [ModelInfo(each) for each in listed(self._transport.fetch(get("/v1/models")))]

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> HortatorClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
