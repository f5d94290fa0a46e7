"""Routing through the public door: `auto`, the preview, what replies tell, and what providers never see."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.door import Door
from tests.gateway import MODEL, Gateway, running_gateway
from tests.upstream.process import Upstream

ROUTING = {
    "cards": {
        "one/scripted": {"tier": "primary", "quality": 6, "speed": 100},
        "two/scripted": {"tier": "local", "quality": 5.5, "speed": 100},
        "closed/scripted": {"tier": "local", "quality": 5.6, "speed": 100},
        "plain": {"lacks": ["json_schema"]},
    },
    "task_types": {
        "extraction": {"models": ["one/scripted", "two/scripted"]},
        "offline": {"models": ["closed/scripted", "one/scripted"]},
    },
}


MODELS = [
    {"id": "plain", "deployments": [{"provider": "one", "model": "scripted"}], "fallbacks": ["two/scripted"]},
]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Gateway]:
    with running_gateway(tmp_path_factory.mktemp("routing"), upstream, routing=ROUTING, models=MODELS) as running:
        yield running


@pytest.fixture(scope="module")
def door(gateway: Gateway) -> Door:
    return gateway.door


def test_auto_answers_by_its_task_type_and_says_how(door: Door, upstream: Upstream) -> None:
    """R-003-4, R-003-5."""
    mark = upstream.plan("ok")
    reply = door.chat("auto", mark, metadata={"task_type": "extraction", "team": "x", "n": 1})
    assert reply.status == 200, reply
    assert reply.header("x-hortator-model") == "one/scripted"
    assert reply.header("x-hortator-route") == "listed;one/scripted;task_type=extraction"
    assert reply.header("x-hortator-task-type") == "extraction"
    assert upstream.wait(mark)[0].json["metadata"] == {"team": "x", "n": "1"}, "as text (C-3), without ours"


def test_auto_without_a_task_type_is_refused(door: Door) -> None:
    """R-003-10, C-1."""
    reply = door.chat("auto", "x")
    assert (reply.status, reply.error["code"], reply.error["param"]) == (
        400,
        "missing_task_type",
        "metadata.task_type",
    )
    assert reply.error["type"] == "invalid_request_error"


@pytest.mark.parametrize("value", [True, "true"])
def test_force_local_as_boolean_and_as_text(door: Door, upstream: Upstream, value: Any) -> None:
    """C-3."""
    mark = upstream.plan("ok")
    reply = door.chat("auto", mark, metadata={"task_type": "extraction", "force_local": value})
    assert (reply.status, reply.header("x-hortator-model")) == (200, "two/scripted")
    assert "metadata" not in upstream.wait(mark)[0].json


def test_force_local_never_leaves_not_even_when_all_local_ones_fail(door: Door, upstream: Upstream) -> None:
    mark = upstream.plan("ok")
    reply = door.chat("auto", mark, metadata={"task_type": "offline", "force_local": True})
    assert (reply.status, reply.error["code"]) == (502, "upstream_connect_failed")
    assert str(reply.header("x-hortator-route")).startswith("listed;closed/scripted;"), "errors tell the route too"
    far = door.chat("one/scripted", mark, metadata={"force_local": "true"})
    assert (far.status, far.error["code"]) == (400, "no_local_deployment")


def test_nothing_but_true_and_false_is_a_force_local(door: Door) -> None:
    reply = door.chat(MODEL, "x", metadata={"force_local": "perhaps"})
    assert (reply.status, reply.error["param"]) == (400, "metadata.force_local")


def test_a_model_that_cannot_serve_a_request_is_not_replaced_where_no_fallback_is_wanted(
    door: Door, upstream: Upstream
) -> None:
    mark = upstream.plan("ok")
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    replaced = door.chat("plain", mark, response_format=schema)
    assert (replaced.status, replaced.header("x-hortator-model")) == (200, "two/scripted")
    kept = door.chat("plain", mark, response_format=schema, hortator_fallback=False)
    assert (kept.status, kept.error["code"]) == (400, "unsupported_by_model")
    assert len(upstream.seen(mark)) == 1


def test_preferences_are_not_sent_on(door: Door, upstream: Upstream) -> None:
    mark = upstream.plan("ok")
    assert door.chat("one/scripted", mark, hortator_preferences={"minQuality": 5}).status == 200
    assert "hortator_preferences" not in upstream.wait(mark)[0].json
    reply = door.chat("one/scripted", mark, hortator_preferences={"minQuality": 9})
    assert (reply.status, reply.error["code"]) == (400, "preferences_unsatisfiable")
    assert "one/scripted: minQuality" in reply.error["message"]


def test_a_tenant_in_the_body_is_the_callers_own_or_refused(door: Door, upstream: Upstream) -> None:
    """C-2."""
    assert door.chat(MODEL, upstream.plan("ok"), metadata={"tenant_id": "default"}).status == 200
    reply = door.chat(MODEL, "x", metadata={"tenant_id": "somebody"})
    assert (reply.status, reply.error["code"]) == (403, "tenant_not_allowed")


def test_the_preview_calls_nothing(door: Door, upstream: Upstream) -> None:
    """R-002-9."""
    body: dict[str, Any] = {
        "model": "auto",
        "messages": [{"role": "user", "content": "hello"}],
        "metadata": {"task_type": "extraction"},
    }
    shown = door.call("POST", "/api/v1/route", json.dumps(body).encode())
    assert shown.status == 200, shown
    assert (shown.json["model"], shown.json["fallbacks"]) == ("one/scripted", ["two/scripted"])
    assert {"score", "path", "confidence", "features", "candidates", "estimated_cost"} <= shown.json.keys()
    body["model"] = "nobody/x"
    assert door.call("POST", "/api/v1/route", json.dumps(body).encode()).error["code"] == "model_not_found"
