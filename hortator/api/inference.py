"""What every door for model calls does alike: answer a call whole or streamed, say what happened to it, say what went wrong.

A door parses its dialect into a `Call` and hands it to `answer`; a `Manner` says how its clients are told of errors. No dialect is
known here, and no decision is made.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec
from msgspec.structs import replace

from hortator.api import problem
from hortator.api.listener import DIRECT, Direct
from hortator.api.reading import HangUp, Receive, Scope, Send, request_id, where
from hortator.call import Call, Caller, RequestId, Resend
from hortator.dispatch import Trace
from hortator.errors import ClientGone, HortatorError, InvalidRequest, MethodNotAllowed
from hortator.gateway import Choose, Gateway, StreamedAnswer, overhead_ms
from hortator.wire.body import Object
from hortator.wire.chat_stream import OPENING

EVENT_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_NONE: dict[str, Any] = {}

log = logging.getLogger(__name__)


class Exchange(msgspec.Struct, frozen=True):
    """One HTTP request and the way to answer it."""

    id: RequestId
    method: str
    headers: dict[bytes, bytes]
    query: bytes
    receive: Receive
    send: Send
    direct: Direct | None
    """The listener's shorter way to the client, where it offers one."""
    started: float
    """`time.monotonic()`, seconds."""


class Manner(NamedTuple):
    """How a door tells its clients of errors, and what it adds to replies."""

    body: Callable[[HortatorError, RequestId], bytes]
    event: Callable[[HortatorError, RequestId], bytes]
    """The in-stream event, for a client whose status line has gone out."""
    status: Callable[[HortatorError], int]
    also: Callable[[problem.Headers, RequestId], problem.Headers] | None = None
    """What else a reply's headers say, given those it has."""


OPENAI = Manner(
    lambda error, _: problem.body(error),
    lambda error, _: problem.event(error),
    lambda error: error.status,
)

FLAT = Manner(problem.flat, problem.flat, lambda error: error.status)
"""Harpoon's."""


async def serve(
    scope: Scope, receive: Receive, send: Send, manner: Manner, handle: Callable[[Exchange, Trace], Awaitable[None]]
) -> None:
    """Let `handle` answer one request; what it raises becomes an error in the door's manner. Never raises but for cancellation."""
    # Taken out of the scope, which it holds: what refers to itself lives on until the next garbage collection.
    direct: Direct | None = scope.pop("extensions", _NONE).get(DIRECT)
    headers = dict(scope["headers"]) if direct is None else direct.headers
    exchange = Exchange(
        request_id(headers),
        scope["method"],
        headers,
        scope["query_string"],
        receive,
        send,
        direct,
        time.monotonic(),
    )
    trace = Trace()
    try:
        await handle(exchange, trace)
    except ClientGone:
        return
    except HortatorError as error:
        await _fail(exchange, error, trace, manner)
    except Exception as error:  # noqa: BLE001 - the outermost edge of a request: the client gets no word of what it was
        log.error("internal error: request=%s %s", exchange.id, where(error), extra={"request_id": exchange.id})
        await _fail(exchange, HortatorError("The gateway failed to handle this request."), trace, manner)


Seen = Callable[[bytes], None]


async def answer(
    gateway: Gateway,
    exchange: Exchange,
    caller: Caller,
    call: Call,
    trace: Trace,
    manner: Manner = OPENAI,
    seen: Seen | None = None,
    choose: Choose | None = None,
) -> None:
    """Walk a call and write its answer. `seen` is shown the body, or each piece of a stream (whole events), before it is written.

    `choose`: as `Gateway.complete` takes it.
    """
    if call.wish.tenant_id is not None:
        caller = await gateway.on_behalf(caller, call.wish.tenant_id)
    if gateway.tracer is not None:
        trace.tracing = gateway.tracer.begin(exchange.headers.get(b"traceparent"), exchange.started)
        call = replace(call, tracing=trace.tracing)
    if call.stream:
        await _stream(gateway, exchange, caller, call, trace, manner, seen, choose)
        return
    with HangUp(trace.hang_up, exchange.direct, exchange.receive):
        try:
            body = await gateway.complete(caller, call, trace, choose)
        except asyncio.CancelledError as cancelled:
            raise trace.failure(cancelled) from None
    if seen is not None:
        seen(body)
    headers = [problem.JSON, *told(call, trace, time.monotonic()), *trace.headers]
    if manner.also is not None:
        headers += manner.also(trace.headers, exchange.id)
    await respond(exchange, 200, headers, body)


async def _stream(
    gateway: Gateway,
    exchange: Exchange,
    caller: Caller,
    call: Call,
    trace: Trace,
    manner: Manner,
    seen: Seen | None,
    choose: Choose | None,
) -> None:
    """Write a streamed answer; a failure after the status line becomes an error event, and no good end follows it."""
    with HangUp(trace.hang_up, exchange.direct, exchange.receive):
        try:
            streamed = await gateway.stream(caller, call, trace, choose)
        except asyncio.CancelledError as cancelled:
            raise trace.failure(cancelled) from None
        failure: HortatorError | None = None
        try:
            await _write(exchange, streamed, call, trace, manner, seen)
        except (HortatorError, asyncio.CancelledError) as raised:
            failure = trace.failure(raised)
        except Exception as raised:  # noqa: BLE001 - the outermost edge of a stream, whose status line has gone out
            log.error("internal error: request=%s %s", exchange.id, where(raised), extra={"request_id": exchange.id})
            failure = trace.failure(raised)
    await streamed.finish(failure)
    if failure is not None and not trace.hung_up:
        last = streamed.failed(failure) or manner.event(failure, exchange.id)
        if seen is not None:
            seen(last)
        await exchange.send({"type": "http.response.body", "body": last, "more_body": False})


async def _write(
    exchange: Exchange, streamed: StreamedAnswer, call: Call, trace: Trace, manner: Manner, seen: Seen | None
) -> None:
    send, direct = exchange.send, exchange.direct
    write = None if direct is None else direct.write if seen is None else _shown(seen, direct.write)
    # An attempt that still runs takes the provider's time, not the gateway's.
    until = trace.begun if trace.first_byte_at is None else time.monotonic()
    headers = [*EVENT_STREAM, *told(call, trace, until), *trace.headers]
    if manner.also is not None:
        headers += manner.also(trace.headers, exchange.id)
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if trace.first_byte_at is None:
        await send({"type": "http.response.body", "body": OPENING, "more_body": True})
    while (piece := await streamed.next()) is not None:
        if seen is not None:
            seen(piece)
        await send({"type": "http.response.body", "body": piece, "more_body": not streamed.ended})
        if write is not None:
            await streamed.flow(write)


def _shown(seen: Seen, write: Callable[[bytes], bool]) -> Callable[[bytes], bool]:
    """Return a `write` that shows each piece first."""

    def shown(piece: bytes) -> bool:
        seen(piece)
        return write(piece)

    return shown


def allow(exchange: Exchange, *methods: str) -> None:
    """Raise MethodNotAllowed unless the request's method is one of these."""
    if exchange.method not in methods:
        raise MethodNotAllowed(f"{exchange.method} is not allowed here; use {' or '.join(methods)}.", allowed=methods)


def resend(headers: dict[bytes, bytes], body: Object) -> Resend:
    """Return how often a request may be sent on; `hortator_retry` is taken out of its body.

    A client that sends it for the second time is itself the one who retries.
    """
    if headers.get(b"x-hortator-no-retry", b"").lower() == b"true" or not may(body, "hortator_retry"):
        return "never"
    return "again" if headers.get(b"x-stainless-retry-count", b"0") == b"0" else "elsewhere"


def may(body: Object, field: str) -> bool:
    """Take one of the gateway's own switches out of a body; return what it says, true when it is not there."""
    raw = body.pop(field, None)
    if raw is None:
        return True
    value = msgspec.json.decode(raw)
    if not isinstance(value, bool):
        raise InvalidRequest(f"'{field}' must be true or false.", code="invalid_type", param=field)
    return value


def told(call: Call, trace: Trace, now: float) -> problem.Headers:
    """Return the headers that tell what happened to a call."""
    deployment = trace.deployment
    return [
        (b"x-request-id", call.id.encode()),
        (b"x-hortator-model", b"" if deployment is None else header_value(deployment.id)),
        (b"x-hortator-attempts", b"%d" % trace.tries),
        (b"x-hortator-overhead-ms", b"%.2f" % overhead_ms(call, trace, now)),
        *trace.route,
    ]


@lru_cache(maxsize=4096)
def header_value(text: str) -> bytes:
    """Return a model id as a header value; what a header cannot carry (a client may have chosen the name) is escaped."""
    return (text if text.isascii() and text.isprintable() else quote(text)).encode()


async def respond(exchange: Exchange, status: int, headers: problem.Headers, body: bytes) -> None:
    """Write a reply in one piece."""
    if exchange.direct is not None and exchange.direct.answer(status, headers, body):
        return
    headers.append((b"content-length", b"%d" % len(body)))
    await exchange.send({"type": "http.response.start", "status": status, "headers": headers})
    await exchange.send({"type": "http.response.body", "body": body})


async def _fail(exchange: Exchange, error: HortatorError, trace: Trace, manner: Manner) -> None:
    headers = [problem.JSON, (b"x-request-id", exchange.id.encode()), *trace.route, *problem.headers(error)]
    if trace.deployment is not None:
        headers.append((b"x-hortator-attempts", b"%d" % trace.tries))
        headers.append((b"x-hortator-model", header_value(trace.deployment.id)))
    if manner.also is not None:
        headers += manner.also(headers, exchange.id)
    await respond(exchange, manner.status(error), headers, manner.body(error, exchange.id))
