"""Traces of a real gateway as a collector receives them: OTLP over HTTP, decoded with OpenTelemetry's own types."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from hortator.call import Attempt, Deployment, KeyHash, ModelId, Outcome, ProviderId, RequestId, TenantId, Usage
from hortator.ledger import traces
from hortator.ledger.traces import Tracer
from tests.door import CHAT
from tests.gateway import MODEL, eventually, running_gateway
from tests.journeys.test_admin import Admin, admin_port
from tests.upstream.process import Upstream

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
SECRET = "Bearer canary-of-the-collector"


class Collector(ThreadingHTTPServer):
    """Keeps every span it is sent. While `holding`, it does not answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.spans: list[Span] = []
        self.raw = b""
        self.headers: list[dict[str, str]] = []
        self.holding = threading.Event()
        self.asked = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def trace(self, trace_id: str, count: int) -> list[Span]:
        """Wait for the spans of a trace."""

        def found() -> list[Span]:
            return [span for span in list(self.spans) if span.trace_id.hex() == trace_id]

        eventually(lambda: len(found()) >= count, f"{count} spans of {trace_id}")
        return found()


class Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers["content-encoding"] == "gzip":
            body = gzip.decompress(body)
        self.server.asked.set()
        while self.server.holding.is_set():
            time.sleep(0.01)
        assert self.path == "/v1/traces"
        request = ExportTraceServiceRequest.FromString(body)
        self.server.raw += body
        self.server.headers.append(dict(self.headers))
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def collecting() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield collector
        finally:
            collector.holding.clear()
            collector.shutdown()
            thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


def attributes(span: Span) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def only(spans: list[Span], kind: int, name: str | None = None) -> Span:
    [found] = [span for span in spans if span.kind == kind and name in (None, span.name)]
    return found


def test_a_request_its_rooms_and_its_attempts_are_spans_of_the_clients_trace(
    tmp_path: Path, upstream: Upstream, collector: Collector
) -> None:
    tracing = {"endpoint": collector.url, "headers": {"authorization": SECRET}, "service_name": "front"}
    with running_gateway(tmp_path, upstream, tracing=tracing) as gateway:
        mark = upstream.plan(one="status_500", two="ok")
        body = (
            b'{"model":"pair","user":"%b","messages":[{"role":"user","content":"canary of the content"}]}'
            % mark.encode()
        )
        reply = gateway.door.call("POST", CHAT, body, traceparent=f"00-{TRACE}-{SPAN}-01")
        assert reply.status == 200
        spans = collector.trace(TRACE, 7)
        root = only(spans, Span.SPAN_KIND_SERVER)
        assert root.name == "chat pair"
        assert root.parent_span_id.hex() == SPAN
        found = attributes(root)
        assert found["gen_ai.operation.name"] == "chat"
        assert found["gen_ai.request.model"] == "pair"
        assert found["gen_ai.response.model"] == "scripted-2026-01-01"
        assert found["gen_ai.provider.name"] == "two"
        assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (11, 7)
        assert found["http.response.status_code"] == 200
        assert found["hortator.request_id"] == reply.header("x-request-id")
        assert "error.type" not in found

        rooms = [span for span in spans if span.kind == Span.SPAN_KIND_INTERNAL]
        assert [span.name for span in rooms] == ["admit", "route", "dispatch", "record"]
        assert {span.parent_span_id for span in rooms} == {root.span_id}
        for span, following in pairwise(rooms):
            assert root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
            assert span.end_time_unix_nano == following.start_time_unix_nano
            assert following.end_time_unix_nano <= root.end_time_unix_nano

        first, second = (span for span in spans if span.kind == Span.SPAN_KIND_CLIENT)
        assert (first.name, second.name) == ("chat scripted", "chat scripted")
        assert {first.parent_span_id, second.parent_span_id} == {
            only(rooms, Span.SPAN_KIND_INTERNAL, "dispatch").span_id
        }
        assert attributes(first)["error.type"] == "upstream_error"
        assert attributes(first)["http.response.status_code"] == 500
        assert first.status.code == 2
        assert attributes(second)["gen_ai.usage.output_tokens"] == 7
        assert "gen_ai.usage.output_tokens" not in attributes(first)

        sent = [seen.header("traceparent") for seen in upstream.wait(mark, count=2)]
        assert sent == [f"00-{TRACE}-{span.span_id.hex()}-01" for span in (first, second)], "each attempt is the parent"
        assert len({span.span_id for span in spans}) == len(spans)
        assert collector.headers[0]["authorization"] == SECRET
        for secret in (b"canary", gateway.key.encode(), b"sk-canary"):
            assert secret not in collector.raw, "no content and no keys"
        assert b"front" in collector.raw


def test_a_provider_of_the_messages_dialect_is_told_the_trace_too(
    tmp_path: Path, upstream: Upstream, collector: Collector
) -> None:
    claude = {"id": "anthropic", "kind": "anthropic", "base_url": upstream.base_url("anthropic"), "api_key": "sk-ant"}
    tracing = {"endpoint": collector.url}
    with running_gateway(tmp_path, upstream, tracing=tracing, more_providers=[claude]) as gateway:
        mark = upstream.plan("ok")
        body = b'{"model":"anthropic/claude-scripted-1","user":"%b","messages":[{"role":"user","content":"a"}]}'
        body %= mark.encode()
        assert gateway.door.call("POST", CHAT, body, traceparent=f"00-{TRACE}-{SPAN}-01").status == 200
        attempt = only(collector.trace(TRACE, 6), Span.SPAN_KIND_CLIENT)
        [seen] = upstream.wait(mark)
        assert seen.header("traceparent") == f"00-{TRACE}-{attempt.span_id.hex()}-01"


def test_a_client_that_does_not_want_a_trace_gets_none_and_its_header_is_passed_on(
    tmp_path: Path, upstream: Upstream, collector: Collector
) -> None:
    with running_gateway(tmp_path, upstream, tracing={"endpoint": collector.url, "ratio": 0}) as gateway:
        headers = (f"00-{TRACE}-{SPAN}-00", None, "nonsense")
        for header in headers:
            mark = upstream.plan("ok")
            body = b'{"model":"%b","user":"%b","messages":[{"role":"user","content":"a"}]}' % (
                MODEL.encode(),
                mark.encode(),
            )
            assert gateway.door.call("POST", CHAT, body, traceparent=header).status == 200
            [seen] = upstream.wait(mark)
            assert seen.header("traceparent") == (header if header == headers[0] else None)
        body = body.replace(mark.encode(), (mark := upstream.plan("ok")).encode())
        wanted = f"00-{'a' * 32}-{'b' * 16}-01"
        assert gateway.door.call("POST", CHAT, body, traceparent=wanted).status == 200
        collector.trace("a" * 32, 6)
    assert {span.trace_id.hex() for span in collector.spans} == {"a" * 32}


def test_a_collector_that_hangs_or_is_gone_costs_no_request_and_what_is_lost_is_counted(
    tmp_path: Path, upstream: Upstream, collector: Collector
) -> None:
    collector.holding.set()
    with running_gateway(tmp_path, upstream, tracing={"endpoint": collector.url}) as gateway:
        admin = Admin(admin_port(gateway))
        assert gateway.door.chat(MODEL, upstream.plan("ok")).status == 200
        assert collector.asked.wait(30)
        for _ in range(5):
            assert gateway.door.chat(MODEL, upstream.plan("ok")).status == 200
        assert b"hortator_traces_queued 5\n" in admin.call("/metrics").body
        collector.holding.clear()
        eventually(lambda: b"hortator_traces_exported_total 6\n" in admin.call("/metrics").body, "the export")
        collector.shutdown()
        collector.server_close()
        assert gateway.door.chat(MODEL, upstream.plan("ok")).status == 200
        eventually(
            lambda: b"hortator_traces_dropped_total 1\n" in admin.call("/metrics").body, "the loss to be counted"
        )
        assert "traces of 1 requests lost" in gateway.log.read_text()


def outcome(attempts: tuple[Attempt, ...], **changes: Any) -> Outcome:
    place = Deployment(id="a/one", provider=ProviderId("a"), model="one")
    known: dict[str, Any] = {
        "request_id": RequestId("r"), "tenant_id": TenantId("t"), "key_hash": KeyHash("k"), "operation": "chat",
        "model": ModelId("m"), "deployment": place, "response_model": None, "attempts": attempts,
        "usage": Usage(input=1, output=2), "status": 200, "code": None, "stream": False, "complete": True,
        "received_at": 0.0, "latency_ms": 1.0, "first_byte_ms": None, "overhead_ms": 0.1,
    }  # fmt: skip
    return Outcome(**(known | changes))


def test_the_queue_is_bounded_and_a_full_one_drops(collector: Collector) -> None:
    tracer = Tracer(collector.url, {}, 1.0, "test")
    for _ in range(traces.QUEUE + 3):
        tracer.finish(tracer.begin(None, 0.0), outcome(()))
    assert tracer.gauges == (0, 3, traces.QUEUE)


def test_error_types_come_from_the_closed_vocabulary() -> None:
    failed = outcome((), code="a-code-of-some-provider", status=502)
    assert traces.of_request(failed)["error.type"] == "_OTHER"
    assert traces.of_request(outcome((), code="upstream_timeout"))["error.type"] == "upstream_timeout"
