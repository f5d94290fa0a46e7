"""`AsyncHortatorClient`: what `sync.py` is for threads, for asyncio. A client belongs to one event loop."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, overload

from hortator.client.async_connection import AsyncReply, AsyncTransport
from hortator.client.async_tasks import AsyncTasks
from hortator.client.chat import ChatCompletion, ChatCompletionChunk, Chunks, completion, completion_request
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


class AsyncStream:
    """The chunks of an answer as they come. Closing it before its end hangs up, which cancels the work."""

    def __init__(self, reply: AsyncReply) -> None:
        self.task_id = reply.headers.get("x-hortator-task-id")
        """The team's task, where a team answers."""
        self._reply = reply
        self._chunks = self._read()

    async def _read(self) -> AsyncIterator[ChatCompletionChunk]:
        chunks = Chunks(self.task_id)
        async with self._reply as reply:
            async for piece in reply:
                for chunk in chunks.feed(piece):
                    yield chunk
        chunks.end()

    def __aiter__(self) -> AsyncIterator[ChatCompletionChunk]:
        return self._chunks

    async def __anext__(self) -> ChatCompletionChunk:
        return await anext(self._chunks)

    async def close(self) -> None:
        """Hang up."""
        self._reply.close()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()


class AsyncCompletions:
    """`client.chat.completions`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    @overload
    async def create(
        self, *, model: str, messages: Sequence[Any], stream: Literal[False] = False, **params: Any
    ) -> ChatCompletion: ...

    @overload
    async def create(
        self, *, model: str, messages: Sequence[Any], stream: Literal[True], **params: Any
    ) -> AsyncStream: ...

    @overload
    async def create(
        self, *, model: str, messages: Sequence[Any], stream: bool, **params: Any
    ) -> ChatCompletion | AsyncStream: ...

    async def create(
        self, *, model: str, messages: Sequence[Any], stream: bool = False, **params: Any
    ) -> ChatCompletion | AsyncStream:
        """Answer a conversation, whole or as a stream of chunks. Raises HortatorError.

        `params` are fields of the body (`temperature`, `hortator_mode`, `hortator_config`, ...), but for `verbosity` (`verbose` and `full`
        add chunks with `hortator_event`), `timeout` (seconds without a byte), `extra_headers` and `extra_body`.
        """
        request = completion_request(model, messages, stream=stream, **params)
        if stream:
            return AsyncStream(await self._transport.open(request))
        return completion(await self._transport.fetch(request))


class AsyncChat:
    """`client.chat.completions.create(...)`, and the origin's `client.chat(messages, ...)`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self.completions = AsyncCompletions(transport)
        self._transport = transport

    async def __call__(
        self, messages: Sequence[Message | Mapping[str, Any]], role: str = DEFAULT_ROLE, **options: Any
    ) -> RunResult:
        """Answer a conversation. Options as `AsyncHortatorClient.run`. Raises HortatorError."""
        request = origin_request(messages, role, stream=False, **options)
        return run_result(completion(await self._transport.fetch(request)))


class AsyncHortatorClient:
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
        self._transport = AsyncTransport(address, key, timeout=timeout, max_retries=max_retries, context=ssl_context)
        self.chat = AsyncChat(self._transport)
        self.tasks = AsyncTasks(self._transport)

    @property
    def base_url(self) -> str:
        """Where the server is, without `/v1`."""
        return str(self._transport.address)

    async def run(
        self, prompt: str, role: str = DEFAULT_ROLE, *, files: Sequence[FileLike] = (), **options: Any
    ) -> RunResult:
        """Have a role answer a prompt. Raises HortatorError, OSError.

        `role`: of `hortator/<role>`, or a model id. Options: `capabilities`, `tier`, `budget`, and fields of the body.
        """
        request = origin_request(await asyncio.to_thread(prompted, prompt, files), role, stream=False, **options)
        return run_result(completion(await self._transport.fetch(request)))

    async def stream(
        self, prompt: str, role: str = DEFAULT_ROLE, *, files: Sequence[FileLike] = (), **options: Any
    ) -> AsyncIterator[StreamChunk]:
        """Give the answer to a prompt as it is written. As `run`. Raises HortatorError, OSError."""
        request = origin_request(await asyncio.to_thread(prompted, prompt, files), role, stream=True, **options)
        async with AsyncStream(await self._transport.open(request)) as chunks:
            async for chunk in chunks:
                if (said := stream_chunk(chunk)) is not None:
                    yield said

    async def list_models(self) -> list[ModelInfo]:
        """Return the models that the key may use. Raises HortatorError."""
        return [ModelInfo(each) for each in listed(await self._transport.fetch(get("/v1/models")))]

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def __aenter__(self) -> AsyncHortatorClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()
