"""The OpenAI door: chat completions and models under `/v1`, as raw ASGI, because this is the hot path.

`app.py` mounts it in front of everything else. It reads the request, lets the gateway walk it, and writes the answer; what
the gateway raises becomes an OpenAI error object. It decides nothing and knows no room.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec

from hortator.api import problem
from hortator.api.listener import DIRECT, Direct
from hortator.api.reading import (
    HangUp,
    Receive,
    Scope,
    Send,
    bearer,
    expect_json,
    read_body,
    request_id,
    where,
)
from hortator.call import Call, Caller, ModelId, RequestId, Resend
from hortator.dispatch import Trace
from hortator.errors import ClientGone, HortatorError, InvalidRequest, MethodNotAllowed, NotFound
from hortator.gateway import Gateway, StreamedAnswer, overhead_ms
from hortator.wire import chat
from hortator.wire.chat_stream import OPENING

_VERBOSITIES = frozenset((b"default", b"verbose", b"full"))
_EVENT_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

_NONE: dict[str, Any] = {}

log = logging.getLogger(__name__)


class Exchange(NamedTuple):
    """One HTTP request and the way to answer it."""

    id: RequestId
    method: str
    headers: dict[bytes, bytes]
    receive: Receive
    send: Send
    direct: Direct | None
    """The listener's shorter way to the client, where it offers one."""
    started: float
    """`time.monotonic()`, seconds."""


class OpenAIDoor:
    """`POST /v1/chat/completions`, `GET /v1/models`, `GET /v1/models/{id}`; everything else under `/v1` is unknown."""

    def __init__(self, gateway: Gateway, max_body_bytes: int) -> None:
        self._gateway = gateway
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        """Answer one request to `path` (below the root path). Never raises but for cancellation."""
        headers = dict(scope["headers"])
        exchange = Exchange(
            request_id(headers),
            scope["method"],
            headers,
            receive,
            send,
            scope.get("extensions", _NONE).get(DIRECT),
            time.monotonic(),
        )
        trace = Trace()
        try:
            if path == "/v1/chat/completions":
                await self._chat(exchange, trace)
            elif path == "/v1/models" or path.startswith("/v1/models/"):
                await self._models(exchange, path[len("/v1/models/") :])
            else:
                raise NotFound(f"Unknown request URL: {exchange.method} {path[:200]}.")
        except ClientGone:
            return
        except HortatorError as error:
            await _fail(exchange, error, trace)
        except Exception as error:  # noqa: BLE001 - the outermost edge of a request: the client gets no word of what it was
            log.error("internal error: request=%s %s", exchange.id, where(error), extra={"request_id": exchange.id})
            await _fail(exchange, HortatorError("The gateway failed to handle this request."), trace)

    async def _chat(self, exchange: Exchange, trace: Trace) -> None:
        _allow(exchange, "POST")
        headers = exchange.headers
        token = bearer(headers)
        caller = self._gateway.known(token) or await self._gateway.admit(token)
        expect_json(headers)
        if headers.get(b"x-hortator-verbosity", b"default") not in _VERBOSITIES:
            raise InvalidRequest(
                "X-Hortator-Verbosity must be default, verbose or full.",
                code="invalid_value",
                param="X-Hortator-Verbosity",
            )
        parsed = chat.parse(await read_body(headers, exchange.direct, exchange.receive, self._max_body_bytes))
        call = Call(
            id=exchange.id,
            operation="chat",
            model=ModelId(parsed.model),
            body=parsed.body,
            stream=parsed.stream,
            wants_usage=parsed.wants_usage,
            started=exchange.started,
            received_at=time.time(),
            session=headers.get(b"x-hortator-session"),
            resend=_resend(headers),
        )
        if parsed.stream:
            await self._stream(exchange, caller, call, trace)
            return
        with HangUp(trace.hang_up, exchange.direct, exchange.receive):
            try:
                body = await self._gateway.complete(caller, call, trace)
            except asyncio.CancelledError as cancelled:
                raise trace.failure(cancelled) from None
        await _respond(exchange, 200, [problem.JSON, *_told(call, trace, time.monotonic()), *trace.headers], body)

    async def _stream(self, exchange: Exchange, caller: Caller, call: Call, trace: Trace) -> None:
        """Write a streamed answer; a failure after the status line becomes an error event, and no `[DONE]` follows it."""
        with HangUp(trace.hang_up, exchange.direct, exchange.receive):
            try:
                answer = await self._gateway.stream(caller, call, trace)
            except asyncio.CancelledError as cancelled:
                raise trace.failure(cancelled) from None
            failure: HortatorError | None = None
            try:
                await self._write(exchange, answer, call, trace)
            except (HortatorError, asyncio.CancelledError) as raised:
                failure = trace.failure(raised)
            except Exception as raised:  # noqa: BLE001 - the outermost edge of a stream, whose status line has gone out
                log.error(
                    "internal error: request=%s %s", exchange.id, where(raised), extra={"request_id": exchange.id}
                )
                failure = trace.failure(raised)
        await answer.finish(failure)
        if failure is not None and not trace.hung_up:
            await exchange.send({"type": "http.response.body", "body": problem.event(failure), "more_body": False})

    async def _write(self, exchange: Exchange, answer: StreamedAnswer, call: Call, trace: Trace) -> None:
        send, direct = exchange.send, exchange.direct
        headers = [*_EVENT_STREAM, *_told(call, trace, time.monotonic()), *trace.headers]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if trace.first_byte_at is None:
            await send({"type": "http.response.body", "body": OPENING, "more_body": True})
        while (piece := await answer.next()) is not None:
            await send({"type": "http.response.body", "body": piece, "more_body": not answer.ended})
            if direct is not None:
                await answer.flow(direct.write)

    async def _models(self, exchange: Exchange, wanted: str) -> None:
        """List the models the key may use, or describe one."""
        _allow(exchange, "GET", "HEAD")
        caller = await self._gateway.admit(bearer(exchange.headers))
        entries = self._gateway.catalogue().visible(caller.allowed_models)
        document: Any
        if wanted:
            document = next((entry for entry in entries if entry.id == wanted), None)
            if document is None:
                raise NotFound(f"The model '{wanted[:200]}' does not exist.", code="model_not_found", param="model")
        else:
            document = {"object": "list", "data": list(entries)}
        headers = [problem.JSON, (b"x-request-id", exchange.id.encode())]
        await _respond(exchange, 200, headers, msgspec.json.encode(document))


def _allow(exchange: Exchange, *methods: str) -> None:
    if exchange.method not in methods:
        raise MethodNotAllowed(f"{exchange.method} is not allowed here; use {' or '.join(methods)}.", allowed=methods)


def _resend(headers: dict[bytes, bytes]) -> Resend:
    """Return how often a request may be sent on. A client that sends it for the second time is itself the one who retries."""
    if headers.get(b"x-hortator-no-retry", b"").lower() == b"true":
        return "never"
    return "again" if headers.get(b"x-stainless-retry-count", b"0") == b"0" else "elsewhere"


def _told(call: Call, trace: Trace, now: float) -> problem.Headers:
    """Return the headers that tell what happened to a call."""
    deployment = trace.deployment
    return [
        (b"x-request-id", call.id.encode()),
        (b"x-hortator-model", b"" if deployment is None else _header_value(deployment.id)),
        (b"x-hortator-attempts", b"%d" % trace.tries),
        (b"x-hortator-overhead-ms", b"%.2f" % overhead_ms(call, trace, now)),
    ]


def _header_value(text: str) -> bytes:
    """Return a model id as a header value; what a header cannot carry (a client may have chosen the name) is escaped."""
    return (text if text.isascii() and text.isprintable() else quote(text)).encode()


async def _respond(exchange: Exchange, status: int, headers: problem.Headers, body: bytes) -> None:
    if exchange.direct is not None and exchange.direct.answer(status, headers, body):
        return
    headers.append((b"content-length", b"%d" % len(body)))
    await exchange.send({"type": "http.response.start", "status": status, "headers": headers})
    await exchange.send({"type": "http.response.body", "body": body})


async def _fail(exchange: Exchange, error: HortatorError, trace: Trace) -> None:
    headers = [problem.JSON, (b"x-request-id", exchange.id.encode()), *problem.headers(error)]
    if trace.deployment is not None:
        headers.append((b"x-hortator-attempts", b"%d" % trace.tries))
        headers.append((b"x-hortator-model", _header_value(trace.deployment.id)))
    await _respond(exchange, error.status, headers, problem.body(error))
