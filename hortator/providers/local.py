"""The embedded model as a provider: calls on their way to the child, and its replies on their way back.

The composition root makes one `LocalProvider` in front of the `LocalModel` of `local_model.py`; dispatch calls `send`. Tool calls are
translated by `wire/tool_schema.py`, because small models do not write them reliably by themselves.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec import Raw

from hortator.call import Call, Deployment, ProviderId
from hortator.errors import ConnectFailed, ConnectionLost, Inapplicable, InvalidRequest, Unavailable
from hortator.providers.base import Reply
from hortator.providers.local_model import PATHS, LocalModel, Serving
from hortator.providers.proxy import ProxyReply
from hortator.providers.upstream import Timeouts, UpstreamResponse
from hortator.wire.dialects import Dialect
from hortator.wire.sse import EventSplitter
from hortator.wire.tool_reply import ToolStream, whole
from hortator.wire.tool_schema import Plan, constrain

DEFAULT_MAX_TOKENS = 512
"""Length of an answer when the client names none: a small model that loops would otherwise fill its whole context."""
DYING_SECONDS = 1.0
"""How long a broken connection waits to learn whether the child has died."""
MAX_LOGPROBS = 20
"""As OpenAI's limit; the engine has none, and would send its whole vocabulary with every token."""
MAX_ERROR_BODY = 64 * 1024
_TIMEOUTS = Timeouts(connect=5.0, first_byte=None, idle=120.0)
"""Calls wait inside the child for a free slot, so the first byte has no limit but the call's own deadline."""
_INCLUDE_USAGE = Raw(b'{"include_usage":true}')
_DEFAULT_MAX = Raw(str(DEFAULT_MAX_TOKENS).encode())


class LocalProvider:
    """The adapter in front of a `LocalModel`."""

    id = ProviderId("local")
    dialects: frozenset[Dialect] = frozenset(PATHS)
    extensions = False

    def __init__(self, model: LocalModel) -> None:
        self._model = model

    async def send(self, call: Call, deployment: Deployment, deadline: float) -> Reply:
        """Send a call to the child; the call's place in the queue is given back when the reply is closed.

        Raises RateLimited (`local_model_busy`), Unavailable (`local_model_loading`, `local_model_unavailable`),
        InvalidRequest for tools it cannot serve, and UpstreamError.
        """
        leave = self._model.enter()
        try:
            body, plan = self._body(call, deployment)
            serving = await self._model.serving(deadline)
            reply = await self._send(serving, serving.heads[call.operation], msgspec.json.encode(body), deadline)
            if reply.status != 200:
                try:
                    status, error = translated_error(reply.status, await reply.read(MAX_ERROR_BODY))
                finally:
                    reply.close()
                return ErrorReply(status, error, leave)
        except BaseException:
            leave()
            raise
        return LocalReply(reply, plan, leave)

    async def _send(self, serving: Serving, head: bytes, body: bytes, deadline: float) -> UpstreamResponse | ProxyReply:
        """Send a body; a child that is dying just now becomes an Unavailable that says when to come back."""
        try:
            return await serving.upstream.request(serving.origin, head, body, _TIMEOUTS, deadline)
        except (ConnectFailed, ConnectionLost):
            if not await serving.child.ended(DYING_SECONDS):
                raise
            self._model.lost(serving)
            raise Unavailable(
                "The embedded model's process ended; it is being started again.",
                code="local_model_restarting",
                retry_after=2.0,
            ) from None

    def scrub(self, text: str) -> str:
        """Return `text` without the child's key."""
        return self._model.scrub(text)

    async def close(self) -> None:
        """Nothing of its own: the model owns its connections."""

    def _body(self, call: Call, deployment: Deployment) -> tuple[dict[str, Raw], Plan | None]:
        """Return the body for the child, and how to read its reply when tools were asked for."""
        for key in ("top_logprobs", "n_probs"):
            value = msgspec.json.decode(call.body[key]) if key in call.body else None
            if isinstance(value, int) and value > MAX_LOGPROBS:
                raise InvalidRequest(f"'{key}' is above {MAX_LOGPROBS}.", code="invalid_value", param=key)
        body, plan = constrain(call.body) if call.operation == "chat" else (call.body, None)
        body = body.copy()
        if call.operation == "completions":
            _fill_in(body)
        elif call.operation == "embeddings":
            _without_dimensions(body)
        body["model"] = Raw(msgspec.json.encode(deployment.model))
        if call.stream:
            options = body.get("stream_options")
            given = msgspec.json.decode(options) if options is not None else None
            body["stream_options"] = (
                Raw(msgspec.json.encode({**given, "include_usage": True})) if given else _INCLUDE_USAGE
            )
        if call.operation != "embeddings" and all(
            body.get(key, b"null") == b"null" for key in ("max_tokens", "max_completion_tokens")
        ):
            body["max_tokens"] = _DEFAULT_MAX
        return body, plan


def _fill_in(body: dict[str, Raw]) -> None:
    """Say `prompt` and `suffix` in the words of models that were trained to fill a gap. Raises Inapplicable for other prompts."""
    suffix = msgspec.json.decode(body.pop("suffix", b"null"))
    if not suffix:
        return
    prompt = msgspec.json.decode(body.get("prompt", b"null")) or ""
    if not isinstance(prompt, str):
        raise Inapplicable("With a 'suffix' the embedded model takes 'prompt' as one text.", param="prompt")
    body["prompt"] = Raw(msgspec.json.encode(f"<|fim_prefix|>{prompt}<|fim_suffix|>{suffix}<|fim_middle|>"))


def _without_dimensions(body: dict[str, Raw]) -> None:
    """Refuse another length of vectors than the model's own."""
    if body.get("dimensions", b"null") != b"null":
        raise Inapplicable("The embedded model's vectors have one length; leave 'dimensions' out.", param="dimensions")


class LocalReply:
    """A completion from the child; gives the call's place back when it is closed."""

    def __init__(self, reply: Reply, plan: Plan | None, leave: Callable[[], None]) -> None:
        self.status = reply.status
        self.headers = reply.headers
        self._reply = reply
        self._plan = plan
        self._leave = leave
        self._splitter = EventSplitter()
        self._stream = None if plan is None else ToolStream(plan)

    async def read(self) -> bytes:
        """Return the whole completion. Raises UpstreamError."""
        body = await self._reply.read()
        return body if self._plan is None else whole(body, self._plan)

    async def next(self) -> bytes | None:
        """Return the next piece of the stream, `b""` when poked, None at its end. Raises UpstreamError."""
        if self._stream is None:
            return await self._reply.next()
        while True:
            data = await self._reply.next()
            if data == b"":
                return data
            if data is None:
                last = self._splitter.end()
                payloads = [] if last is None else [last]
            else:
                payloads = self._splitter.feed(data)
            told = [payload for event in payloads for payload in self._stream.feed(event)]
            if told:
                return b"".join(b"data: %b\n\n" % payload for payload in told)
            if data is None:
                return None

    async def flow(self, sink: Callable[[bytes], bool]) -> None:
        """Return at once: the model is far slower than a task switch."""

    def poke(self) -> None:
        """Make a waiting `next` return `b""` now."""
        self._reply.poke()

    def close(self) -> None:
        """Give back the connection and the place in the queue."""
        self._reply.close()
        self._leave()


class ErrorReply:
    """An error of the child, in OpenAI's words; already read."""

    def __init__(self, status: int, body: bytes, leave: Callable[[], None]) -> None:
        self.status = status
        self.headers: list[tuple[bytes, bytes]] = [(b"content-type", b"application/json")]
        self._body: bytes | None = body
        self._whole = body
        self._leave = leave

    async def read(self) -> bytes:
        """Return the error object."""
        return self._whole

    async def next(self) -> bytes | None:
        """Return the error object, then None."""
        body, self._body = self._body, None
        return body

    async def flow(self, sink: Callable[[bytes], bool]) -> None:
        """Nothing flows here."""

    def poke(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """Give back the place in the queue."""
        self._leave()


def translated_error(status: int, body: bytes) -> tuple[int, bytes]:
    """Return the status and error object that OpenAI would give for an error of the child."""
    try:
        said = msgspec.json.decode(body)["error"]
        message, kind = str(said["message"]), str(said.get("type"))
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        message, kind, said = f"The embedded model answered with status {status}.", "server_error", {}
    code: str | None = None
    param: str | None = None
    if kind == "exceed_context_size_error":
        limit, asked = said.get("n_ctx"), said.get("n_prompt_tokens")
        message = f"This model's maximum context length is {limit} tokens, but the messages take {asked}. Shorten them."
        status, kind, code, param = 400, "invalid_request_error", "context_length_exceeded", "messages"
    elif "not supported" in message and "input" in message:
        # Images and sound: the engine calls it a server error, but it is the request that cannot be served.
        message = f"The embedded model reads text only: {message.split(' - hint')[0]}."
        status, kind, code, param = 400, "invalid_request_error", "unsupported_content", "messages"
    elif status == 400 or message.startswith(("Failed to parse", "Unknown ")):
        status, kind, code = 400, "invalid_request_error", "invalid_value"
        message = message.rsplit("Automatic parser generation failed: ", 1)[-1]
        param = "response_format" if "schema" in message.lower() else None
    error = {"message": message, "type": kind, "param": param, "code": code}
    return status, msgspec.json.encode({"error": error})
