"""The admin listener of a real gateway: what operators see there, and that nobody sees it elsewhere."""

from __future__ import annotations

import csv
import http.client
import io
import json
import re
import socket
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.door import Reply, envelope
from tests.gateway import MODEL, REFUSED, Gateway, eventually, running_gateway
from tests.upstream.process import Upstream

DASHBOARD = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "hortator.json"
TODAY = "period=1h"
HOURS = "2026-01-01&to=2026-01-02"


def admin_port(gateway: Gateway) -> int:
    """The port that the listener printed."""
    found = eventually(lambda: re.findall(r"Metrics for operators: \S+:(\d+)/", gateway.log.read_text()), "the port")
    return int(found[-1])


class Admin:
    """A client of the admin listener."""

    def __init__(self, port: int) -> None:
        self.port = port

    def call(self, path: str, method: str = "GET", **headers: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with closing(connection):
            connection.request(method, path, headers=headers)
            reply = connection.getresponse()
            named = [(name.lower(), value) for name, value in reply.getheaders()]
            return Reply(reply.status, named, reply.read())

    def get(self, path: str, **headers: str) -> Any:
        reply = self.call(path, **headers)
        assert reply.status == 200, reply
        return json.loads(reply.body, parse_float=Decimal)

    def refused(self, path: str, status: int, code: str, **headers: str) -> None:
        reply = self.call(path, **headers)
        assert (reply.status, envelope(reply.json)["code"]) == (status, code), reply


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Gateway]:
    """A gateway that answered five calls and failed one."""
    prices = tmp_path_factory.mktemp("prices") / "prices.yaml"
    prices.write_text('one: {"*": {input: "1", output: "3"}}\n')
    settings = {"price_overrides": str(prices)}
    with running_gateway(tmp_path_factory.mktemp("watched"), upstream, ledger=settings) as running:
        for _ in range(4):
            assert running.door.chat(MODEL, upstream.plan("ok")).status == 200
        head, _ = running.door.stream(MODEL, upstream.plan("ok"), stream_options={"include_usage": True})
        assert head.status == 200
        assert running.door.chat(REFUSED, upstream.plan("ok")).status == 502
        eventually(lambda: len(running.rows()) == 6, "six records")
        yield running


@pytest.fixture(scope="module")
def admin(watched: Gateway) -> Admin:
    return Admin(admin_port(watched))


def test_a_scrape_is_valid_and_has_every_metric_of_the_dashboard(admin: Admin) -> None:
    reply = admin.call("/metrics")
    assert (reply.header("content-type") or "").startswith("text/plain; version=0.0.4")
    samples = {s.name: s for f in text_string_to_metric_families(reply.body.decode()) for s in f.samples}
    used = set(re.findall(r"\b((?:hortator|gen_ai|process)_[a-z_]+)\b(?=\{|,)", DASHBOARD.read_text("utf-8")))
    labels = {"gen_ai_request_model", "gen_ai_token_type"}
    assert len(used) > 20
    assert used - labels - set(samples) == set()
    assert samples["hortator_client_connections"].value >= 0


def test_the_summary_has_the_fields_and_sums_of_the_contract(admin: Admin, watched: Gateway) -> None:
    """R-003-6."""
    found = admin.get(f"/metrics/summary?{TODAY}")
    rows = watched.rows()
    assert found["total_requests"] == 6
    assert found["local_fallback_count"] == 0
    assert found["unpriced_requests"] == sum(row["cost"] is None for row in rows)
    assert found["total_cost_usd"] == Decimal(sum(row["cost"] or 0 for row in rows)).scaleb(-10) > 0
    average = Decimal(str(round(sum(row["latency_ms"] for row in rows), 3))) / 6
    assert abs(found["average_latency_ms"] - average) <= Decimal("0.0005")  # a half may be rounded either way
    assert found["input_tokens"] == sum(row["input_tokens"] or 0 for row in rows) > 0
    one = admin.get(f"/metrics/summary?{TODAY}&model={MODEL}&tenant_id=default")
    assert one["total_requests"] == 5
    assert admin.get(f"/metrics/summary?{TODAY}&task_type=")["total_requests"] == 6
    assert admin.get(f"/metrics/summary?{TODAY}&task_type=extraction")["total_requests"] == 0
    assert admin.get(f"/metrics/summary?{TODAY}&tenant_id=00000000-0000-7000-8000-000000000000")["total_requests"] == 0


def test_requests_come_newest_first_by_page_and_by_cursor(admin: Admin, watched: Gateway) -> None:
    """R-003-7."""
    first = admin.get("/metrics/requests")
    assert (first["limit"], first["offset"], first["next_cursor"]) == (50, 0, None)
    ids = [each["request_id"] for each in first["requests"]]
    assert ids == [row["request_id"] for row in sorted(watched.rows(), key=lambda row: row["timestamp"], reverse=True)]
    assert not {"key_hash", "price", "metadata", "id"} & set(first["requests"][0])
    assert [e["request_id"] for e in admin.get("/metrics/requests?limit=2&offset=2")["requests"]] == ids[2:4]
    walked: list[str] = []
    cursor = ""
    while cursor is not None:
        page = admin.get(f"/metrics/requests?limit=2&{cursor and f'cursor={cursor}'}")
        walked += [each["request_id"] for each in page["requests"]]
        cursor = page["next_cursor"]
    assert walked == ids
    assert len(admin.get(f"/metrics/requests?model={REFUSED}&tenant_id=default")["requests"]) == 1
    assert admin.get("/metrics/requests?task_type=extraction")["requests"] == []
    assert admin.get("/metrics/requests?from=2020-01-01&to=2020-01-02")["requests"] == []


def test_an_export_sums_to_the_ledger_in_every_form(admin: Admin, watched: Gateway) -> None:
    assert admin.get("/metrics/export?from=2000-01-01&to=2000-12-31")["lines"] == []
    now = admin.get(f"/metrics/summary?{TODAY}")
    begin, end = now["from"], now["to"]
    expected = Decimal(sum(row["cost"] or 0 for row in watched.rows())).scaleb(-10)
    found = admin.get(f"/metrics/export?from={begin}&to={end}")
    assert Decimal(found["total_cost_usd"]) == expected > 0
    assert sum(Decimal(line["cost_usd"]) for line in found["lines"]) == expected
    sheet = admin.call(f"/metrics/export?from={begin}&to={end}&format=csv&tenant_id=default").body.decode()
    lines = list(csv.DictReader(io.StringIO(sheet)))
    assert sum(Decimal(line["cost_usd"]) for line in lines) == expected
    assert sum(int(line["requests"]) for line in lines) == 6
    config = str(watched.config)
    printed = watched.command(
        "usage", "export", "--config", config, "--from", begin, "--to", end, "--tenant", "default"
    )
    assert list(csv.DictReader(io.StringIO(printed))) == lines


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("summary?period=yesterday", 400, "invalid_value"),
        ("summary?period=1h&from=2026-01-01", 400, "invalid_value"),
        ("summary?from=2026-01-02&to=2026-01-01", 400, "invalid_value"),
        ("summary?from=now", 400, "invalid_value"),
        ("summary?period=999999w", 400, "invalid_value"),
        ("summary?tenant_id=nobody", 404, "tenant_not_found"),
        ("summary?tenant=x", 400, "unknown_parameter"),
        ("summary?model=a&model=b", 400, "invalid_value"),
        ("summary?model=%00", 400, "invalid_value"),
        ("requests?limit=501", 400, "invalid_value"),
        ("requests?limit=0", 400, "invalid_value"),
        ("requests?offset=10001", 400, "invalid_value"),
        ("requests?cursor=%2B", 400, "invalid_value"),
        ("requests?cursor=WzEsMl0", 400, "invalid_value"),
        ("export?period=1h", 400, "invalid_value"),
        ("export?from=2026-01-01&to=2026-01-02&format=xml", 400, "invalid_value"),
        ("nothing", 404, "unknown_url"),
    ],
)
def test_what_cannot_be_answered_gets_the_error_object(admin: Admin, query: str, status: int, code: str) -> None:
    admin.refused(f"/metrics/{query}", status, code)


def test_nothing_can_be_changed_and_only_this_machines_names_are_answered(admin: Admin) -> None:
    assert admin.call("/metrics", "POST").status == 405
    assert admin.call("/metrics", "HEAD").body == b""
    admin.refused("/metrics", 403, "host_not_allowed", Host="rebound.example")
    assert admin.call("/metrics", Host="localhost:9090").status == 200


@pytest.mark.parametrize("path", ["/metrics", "/metrics/summary", "/metrics/requests", "/metrics/export"])
def test_the_public_listener_serves_none_of_it(watched: Gateway, path: str) -> None:
    """R-003-8."""
    for each in (path, f"/v1{path}"):
        assert watched.door.call("GET", each).status == 404


def test_the_public_listener_serves_it_where_that_is_configured_and_only_to_keys_with_the_permission(
    upstream: Upstream, tmp_path: Path
) -> None:
    """C-13."""
    exposed = {"expose_on_public": True, "enabled": False}
    with running_gateway(tmp_path, upstream, admin=exposed, server={"root_path": "/front"}) as gateway:
        assert gateway.door.chat(MODEL, upstream.plan("ok")).status == 200
        public = Admin(gateway.port)
        public.refused("/front/metrics", 401, "missing_api_key")
        public.refused("/front/metrics/summary", 403, "permission_required", Authorization=f"Bearer {gateway.key}")
        allowed = {"Authorization": f"Bearer {gateway.new_key('operator', '--permission', 'admin')}"}
        eventually(lambda: b"hortator_requests_total{" in public.call("/front/metrics", **allowed).body, "the counts")
        for path in ("summary", "requests", f"export?from={HOURS}"):
            assert public.call(f"/front/metrics/{path}", **allowed).status == 200
        public.refused("/front/metrics/nothing", 404, "unknown_url", **allowed)


def test_on_an_open_address_a_key_with_the_permission_is_needed(upstream: Upstream, tmp_path: Path) -> None:
    with running_gateway(tmp_path, upstream, admin={"host": "0.0.0.0"}, logging={"format": "json"}) as gateway:
        admin = Admin(admin_port(gateway))
        admin.refused("/metrics", 401, "missing_api_key")
        admin.refused("/metrics/summary", 401, "invalid_api_key", Authorization="Bearer hrt_sk_nonsense")
        admin.refused("/metrics/requests", 403, "permission_required", Authorization=f"Bearer {gateway.key}")
        allowed = gateway.new_key("operator", "--permission", "admin")
        assert admin.call("/metrics", Authorization=f"Bearer {allowed}", Host="anything.example").status == 200


def test_a_port_in_use_does_not_stop_the_gateway(upstream: Upstream, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with running_gateway(tmp_path, upstream, admin={"port": port}) as gateway:
            assert gateway.door.chat(MODEL, upstream.plan("ok")).status == 200
            warnings = [line for line in gateway.log.read_text().splitlines() if "no metrics" in line]
            assert len(warnings) == 1
            assert str(port) in warnings[0]


def test_switched_off_there_is_no_listener(upstream: Upstream, tmp_path: Path) -> None:
    with running_gateway(tmp_path, upstream, admin={"enabled": False}) as gateway:
        assert gateway.door.chat(MODEL, upstream.plan("ok")).status == 200
        assert "Metrics for operators" not in gateway.log.read_text()
