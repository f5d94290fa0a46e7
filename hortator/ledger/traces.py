"""OpenTelemetry traces: from what became of a request to its spans, sent to a collector as OTLP over HTTP.

The gateway gives each sampled request here when it is over, which appends to a bounded queue; a thread of our own makes the
spans and sends them. A collector that is slow or down fills the queue, and what does not fit is counted and dropped. Spans hold
ids, names, times, tokens and error codes: no content, no keys. The only file that knows OpenTelemetry (extra `otel`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from hortator.call import Attempt, Outcome, Usage
from hortator.errors import ConfigError
from hortator.ledger.counts import convention, error_type
from hortator.tracing import AttemptBegun, Tracing, parent_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

log = logging.getLogger("hortator.ledger")

QUEUE = 2048
"""Requests that wait for the collector."""
BATCH = 128
"""Requests sent at once."""
PAUSE_SECONDS = 1.0
"""How long requests are gathered."""
TIMEOUT_SECONDS = 5.0
"""How long the collector may take, all tries together."""
CLOSE_SECONDS = 3.0
TRACES_PATH = "/v1/traces"

Attributes = dict[str, str | int | float | bool]
Ended = tuple[Tracing, Outcome, float]
"""A request, what became of it, and when it left the last room."""


class TraceGauges(NamedTuple):
    """Requests since the start."""

    exported: int
    dropped: int
    """Queue full, or the collector did not take them."""
    queued: int


class Tracer:
    """One per process. `begin` and `finish` from the event loop's thread only."""

    def __init__(
        self, endpoint: str, headers: Mapping[str, str], ratio: float, service: str, random: Random | None = None
    ) -> None:
        """`endpoint`: the collector's address, with or without `/v1/traces`. `ratio`: the share of requests without a
        `traceparent` that is sampled. Raises ConfigError when OpenTelemetry is not installed.
        """
        path = "" if endpoint.endswith(TRACES_PATH) else TRACES_PATH
        self._exporter = exporter(endpoint.rstrip("/") + path, headers)
        self._spans = Spans(service)
        self._ratio = ratio
        self._random = random or Random()
        self._queue: deque[Ended] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._exported = 0
        self._lost = 0
        self._overflowed = 0
        self._told = -60.0
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)

    @property
    def gauges(self) -> TraceGauges:
        """The state now."""
        return TraceGauges(self._exported, self._lost + self._overflowed, len(self._queue))

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    async def close(self) -> None:
        """Send what is left, within three seconds."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, CLOSE_SECONDS)
        self._exporter.shutdown()

    def begin(self, header: bytes | None, started: float) -> Tracing:
        """A request that began at `started` is read now; `header` is its `traceparent`."""
        return Tracing(parent_of(header), header, self._ratio, self._random, started)

    def finish(self, tracing: Tracing, outcome: Outcome) -> None:
        """A request has ended. Never waits, never fails."""
        if not tracing.sampled:
            return
        if len(self._queue) >= QUEUE:
            self._overflowed += 1
            return
        self._queue.append((tracing, outcome, time.monotonic()))

    def _run(self) -> None:
        """In the thread: gather and send, until closed and empty."""
        while not (self._closing and not self._queue):
            self._wake.wait(0 if self._closing else PAUSE_SECONDS)
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
                try:
                    sent = self._exporter.export([span for ended in batch for span in self._spans.of(*ended)])
                except Exception as error:  # noqa: BLE001 - the outermost edge of a background thread
                    self._drop(len(batch), type(error).__name__)
                    continue
                if sent.name == "SUCCESS":
                    self._exported += len(batch)
                else:
                    self._drop(len(batch), "the collector does not take them")

    def _drop(self, count: int, why: str) -> None:
        self._lost += count
        if time.monotonic() - self._told >= 60:
            self._told = time.monotonic()
            log.warning("traces of %d requests lost since the start: %s", self._lost, why)


class Spans:
    """Makes spans of ended requests."""

    def __init__(self, service: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

        self._resource = Resource({"service.name": service})
        self._scope = InstrumentationScope("hortator")
        self._span, self._context, self._status, self._code = ReadableSpan, SpanContext, Status, StatusCode
        self._kind = SpanKind
        self._flags = TraceFlags(TraceFlags.SAMPLED)

    def of(self, tracing: Tracing, outcome: Outcome, left: float) -> Iterator[ReadableSpan]:
        """Yield the spans of a request: itself, its rooms, its attempts. `left` is when it was over."""
        root = self._context(tracing.trace_id, tracing.span_id, False, self._flags)
        parent = None
        if tracing.parent_id is not None:
            parent = self._context(tracing.trace_id, tracing.parent_id, True, self._flags)
        times = (tracing.rooms[0][1], left)
        failed = outcome.code is not None
        name = f"{convention(outcome.operation)} {outcome.model[:255]}"
        yield self._make(tracing, name, root, parent, self._kind.SERVER, of_request(outcome), times, failed)
        ends = [*(at for _, at in tracing.rooms[1:]), left]
        dispatch = root
        number = len(tracing.attempts)
        for (room, at), end in zip(tracing.rooms, ends, strict=True):
            number += 1
            context = self._context(tracing.trace_id, (tracing.span_id + number) % 2**64 or 1, False, self._flags)
            dispatch = context if room == "dispatch" else dispatch
            yield self._make(tracing, room, context, root, self._kind.INTERNAL, {}, (at, end), False)
        for begun, attempt in paired(tracing.attempts, outcome.attempts):
            context = self._context(tracing.trace_id, begun.span_id, False, self._flags)
            name = f"{convention(outcome.operation)} {begun.deployment.partition('/')[2][:255]}"
            attributes = of_attempt(outcome, attempt)
            times = (begun.at, begun.at + attempt.duration_ms / 1000)
            failed = attempt.code is not None
            yield self._make(tracing, name, context, dispatch, self._kind.CLIENT, attributes, times, failed)

    def _make(
        self,
        tracing: Tracing,
        name: str,
        context: Any,
        parent: Any,
        kind: Any,
        attributes: Attributes,
        times: tuple[float, float],
        failed: bool,
    ) -> ReadableSpan:
        begin, end = (int((at + tracing.offset) * 1e9) for at in times)
        return self._span(
            name=name.encode("utf-8", "replace").decode(),
            context=context,
            parent=parent,
            resource=self._resource,
            attributes=attributes,
            kind=kind,
            status=self._status(self._code.ERROR if failed else self._code.UNSET),
            start_time=begin,
            end_time=end,
            instrumentation_scope=self._scope,
        )


def of_request(outcome: Outcome) -> Attributes:
    """Return the attributes of a request's own span."""
    found: Attributes = {
        "gen_ai.operation.name": convention(outcome.operation),
        "gen_ai.request.model": _text(outcome.model),
        "gen_ai.request.stream": outcome.stream,
        "http.response.status_code": outcome.status,
        "hortator.request_id": _text(outcome.request_id),
        "hortator.tenant_id": outcome.tenant_id,
        "hortator.attempts": len(outcome.attempts),
    }
    if outcome.deployment is not None:
        found["gen_ai.provider.name"] = outcome.deployment.provider
        found["hortator.deployment"] = _text(outcome.deployment.id)
    if outcome.response_model:
        found["gen_ai.response.model"] = _text(outcome.response_model)
    if outcome.code is not None:
        found["error.type"] = error_type(outcome.code)
    if outcome.first_byte_ms is not None and outcome.stream:
        found["gen_ai.response.time_to_first_chunk"] = outcome.first_byte_ms / 1000
    return found | of_usage(outcome.usage)


def of_attempt(outcome: Outcome, attempt: Attempt) -> Attributes:
    """Return the attributes of one attempt's span. What was answered belongs to the one that did."""
    found: Attributes = {
        "gen_ai.operation.name": convention(outcome.operation),
        "gen_ai.provider.name": attempt.provider,
        "gen_ai.request.model": _text(attempt.deployment.partition("/")[2]),
        "hortator.deployment": _text(attempt.deployment),
    }
    if attempt.status is not None:
        found["http.response.status_code"] = attempt.status
    if attempt.code is not None:
        found["error.type"] = error_type(attempt.code)
    elif outcome.deployment is not None and attempt.deployment == outcome.deployment.id:
        if outcome.response_model:
            found["gen_ai.response.model"] = _text(outcome.response_model)
        found |= of_usage(outcome.usage)
    return found


def of_usage(usage: Usage) -> Attributes:
    """Return the tokens that are known."""
    counts = {
        "input_tokens": usage.input,
        "output_tokens": usage.output,
        "cache_read.input_tokens": usage.cached,
        "cache_creation.input_tokens": usage.cache_write,
        "reasoning.output_tokens": usage.reasoning,
    }
    return {f"gen_ai.usage.{name}": count for name, count in counts.items() if count is not None and 0 <= count < 2**63}


def paired(begun: list[AttemptBegun], ended: tuple[Attempt, ...]) -> Iterator[tuple[AttemptBegun, Attempt]]:
    """Bring the begins and the ends of attempts together: at one deployment they are in order, over all they need not be."""
    left = list(begun)
    for attempt in ended:
        found = next((each for each in left if each.deployment == attempt.deployment), None)
        if found is not None:
            left.remove(found)
            yield found, attempt


def exporter(endpoint: str, headers: Mapping[str, str]) -> Any:
    """Return what sends spans. Raises ConfigError."""
    try:
        from opentelemetry.exporter.otlp.proto.http import Compression
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError:
        raise ConfigError(
            "tracing.endpoint is set but OpenTelemetry is not installed: pip install 'hortator[otel]'"
        ) from None
    # It logs every try; we say once a minute what is lost.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    return OTLPSpanExporter(
        endpoint=endpoint, headers=dict(headers), timeout=TIMEOUT_SECONDS, compression=Compression.Gzip
    )


def _text(value: str) -> str:
    return value[:255].encode("utf-8", "replace").decode()
