"""Ordinary requests through the chat and models doors: what is passed on, what is told, and in which headers."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.door import Door, chat, content_of, events
from tests.gateway import MODEL, PAIR, Gateway
from tests.upstream.process import Upstream
from tests.upstream.script import TEXT

DOCUMENTED: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "frequency_penalty": 0.5,
    "function_call": "auto",
    "functions": [{"name": "old", "parameters": {}}],
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "max_completion_tokens": 100,
    "max_tokens": 100,
    "metadata": {"team": "x"},
    "modalities": ["text", "audio"],
    "moderation": {"mode": "auto"},
    "n": 1,
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "abc"},
    "presence_penalty": -2,
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "auto", "ttl": "5m"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "xhigh",
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
    },
    "safety_identifier": "s",
    "seed": 42,
    "service_tier": "fast",
    "source": "api",
    "stop": ["\n", "END"],
    "store": False,
    "temperature": 1.0,
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "tools": [
        {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    ],
    "top_logprobs": 5,
    "top_p": 0.1,
    "verbosity": "low",
    "web_search_options": {"search_context_size": "low"},
}
ALTERNATIVES: list[dict[str, Any]] = [
    {"stop": "END"},
    {"stop": None},
    {"function_call": {"name": "old"}},
    {"tool_choice": "required"},
    {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
    {"tools": [{"type": "custom", "custom": {"name": "grep"}}]},
    {"tools": []},
    {"response_format": {"type": "text"}},
    {"temperature": 0},
    {"temperature": None, "max_tokens": None, "tools": None, "metadata": None, "stream": None},
    {"metadata": {}},
    {"stream": False},
    {"logit_bias": {}},
]
MESSAGES: list[list[dict[str, Any]]] = [
    [{"role": "developer", "content": "d"}, {"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
    [{"role": "user", "content": ""}],
    [
        {
            "role": "user",
            "content": [{"type": "text", "text": "t"}, {"type": "image_url", "image_url": {"url": "data:,"}}],
        }
    ],
    [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}],
    [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}, {"type": "of_tomorrow", "x": 1}]}],
    [
        {"role": "user", "content": "q", "name": "ann"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "function", "name": "old", "content": "r"},
    ],
]


def test_a_completion_comes_back_as_the_provider_wrote_it(door: Door, upstream: Upstream) -> None:
    """R-000-2, R-002-2."""
    reply = door.chat(MODEL, upstream.plan("ok"))
    assert (reply.status, reply.text) == (200, TEXT)
    assert reply.header("content-type") == "application/json"
    assert "🎉".encode() in reply.body, "text is not escaped on the way"


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_every_documented_parameter_is_accepted_and_passed_on(door: Door, upstream: Upstream, name: str) -> None:
    mark = upstream.plan("ok")
    reply = door.chat(MODEL, mark, **{name: DOCUMENTED[name]})
    assert reply.status == 200, reply
    assert upstream.wait(mark)[0].json[name] == DOCUMENTED[name]


def test_all_documented_parameters_are_accepted_together(door: Door, upstream: Upstream) -> None:
    mark = upstream.plan("ok")
    assert door.chat(MODEL, mark, **DOCUMENTED).status == 200
    sent = upstream.wait(mark)[0].json
    assert {name: sent[name] for name in DOCUMENTED} == DOCUMENTED


@pytest.mark.parametrize("parameters", ALTERNATIVES)
def test_every_form_of_a_parameter_is_accepted(door: Door, upstream: Upstream, parameters: dict[str, Any]) -> None:
    mark = upstream.plan("ok")
    reply = door.chat(MODEL, mark, **parameters)
    assert reply.status == 200, reply
    assert upstream.wait(mark)[0].json.items() >= parameters.items()


@pytest.mark.parametrize("messages", MESSAGES)
def test_every_form_of_a_message_is_accepted_and_passed_on(
    door: Door, upstream: Upstream, messages: list[dict[str, Any]]
) -> None:
    mark = upstream.plan("ok")
    reply = door.post({"model": MODEL, "user": mark, "messages": messages})
    assert reply.status == 200, reply
    assert upstream.wait(mark)[0].json["messages"] == messages


def test_values_go_upstream_as_the_client_spelt_them(door: Door, upstream: Upstream) -> None:
    mark = upstream.plan("ok")
    values = {
        "temperature": "1.0",
        "top_p": "1E0",
        "seed": "9223372036854775807",
        "x_big": "123456789012345678901234567890",
        "x_small": "1e-400",
        "x_escapes": '"\\u00e9\\ud83c\\udf89 \\/ \\t"',
        "x_spaces": '[ 1 ,2.50, {"a" : null} ]',
        "x_plain": '"é🎉"',
        "x_true": "true",
        "x_empty": "{}",
    }
    listed = ",".join(f'"{name}": {value}' for name, value in values.items())
    document = f'{{"user":"{mark}","model":"{MODEL}",{listed},"messages":[{{"role":"user","content":"a\\u00e9"}}]}}'
    assert door.post(document.encode()).status == 200
    sent = upstream.wait(mark)[0].body
    for name, value in values.items():
        assert re.search(rf'"{name}":\s*{re.escape(value)}', sent), f"{name} was changed: {sent}"
    assert '{"role":"user","content":"a\\u00e9"}' in sent


def test_the_upstream_is_asked_for_its_own_model_name_with_its_own_key(door: Door, upstream: Upstream) -> None:
    mark = upstream.plan("ok")
    for model, provider, name in (
        (MODEL, "one", "scripted"),
        ("one/deep/name@v1", "one", "deep/name@v1"),
        ("two/scripted", "two", "scripted"),
        (PAIR, "one", "scripted"),
    ):
        assert door.chat(model, mark).status == 200
        seen = upstream.seen(mark)[-1]
        assert (seen.provider, seen.json["model"], seen.method) == (provider, name, "POST")
        assert seen.target == f"/{provider}/v1/chat/completions"
        assert (seen.header("authorization") or "").startswith(f"Bearer sk-canary-{provider}-")
        assert seen.header("content-type") == "application/json"
        assert seen.header("accept-encoding") in (None, "identity"), "a compressed answer would have to be unpacked"


def test_a_second_model_key_in_a_body_does_not_slip_past_the_gateway(door: Door, upstream: Upstream) -> None:
    """Duplicate keys: what is checked is what is sent."""
    mark = upstream.plan("ok")
    document = json.dumps(chat(MODEL, mark))[:-1] + ', "model": "two/scripted"}'
    reply = door.post(document.encode())
    if reply.status == 200:
        seen = upstream.wait(mark)[0]
        assert seen.body.count('"model"') == 1
        assert reply.header("x-hortator-model") == f"{seen.provider}/scripted"


@pytest.mark.parametrize("stream", [False, True])
def test_every_answer_tells_what_happened_to_the_call(door: Door, upstream: Upstream, stream: bool) -> None:
    mark = upstream.plan("ok")
    reply, blocks = door.stream(MODEL, mark) if stream else (door.chat(MODEL, mark), [])
    assert reply.header("x-request-id")
    assert (reply.header("x-hortator-model"), reply.header("x-hortator-attempts")) == (MODEL, "1")
    assert 0 <= float(reply.header("x-hortator-overhead-ms") or "nan") < 60_000
    assert reply.header("x-ratelimit-limit-requests") == "60"
    assert reply.header("x-ratelimit-reset-requests") == "6m0s"
    assert reply.header("retry-after") is None
    if stream:
        assert reply.header(
            "content-type",
        ) in ("text/event-stream", "text/event-stream; charset=utf-8")
        assert reply.header("cache-control") == "no-cache"
        assert content_of(list(events(iter(blocks)))) == TEXT


@pytest.mark.parametrize("given", ["a", "req-1.2_3", "A" * 128, "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"])
def test_a_sane_request_id_is_kept(door: Door, upstream: Upstream, given: str) -> None:
    mark = upstream.plan("ok")
    assert door.post(chat(MODEL, mark), x_request_id=given).header("x-request-id") == given
    assert door.post(b"{", x_request_id=given).header("x-request-id") == given


@pytest.mark.parametrize("given", ["", " ", "A" * 129, "a b", "a\tb", "id;drop", "é", "<script>", "a,b", None])
def test_any_other_request_id_is_replaced(door: Door, given: str | None) -> None:
    found = {door.post(b"{", x_request_id=given).header("x-request-id") for _ in range(2)}
    assert len(found) == 2
    assert None not in found
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{8,128}", one or "") for one in found)


def test_the_request_id_is_in_the_usage_record(door: Door, gateway: Gateway, upstream: Upstream) -> None:
    reply = door.chat(MODEL, upstream.plan("ok"))
    row = gateway.row(reply.header("x-request-id") or "")
    assert (row["operation"], row["model_asked"], row["deployment"]) == ("chat", MODEL, MODEL)


def test_the_model_list_names_what_the_key_may_use(door: Door) -> None:
    """R-000-3."""
    reply = door.call("GET", "/v1/models")
    assert (reply.status, reply.json["object"]) == (200, "list")
    found = {model["id"]: model for model in reply.json["data"]}
    assert {MODEL, PAIR, "one/deep/name@v1", "two/scripted"} <= set(found)
    for model in found.values():
        assert model["object"] == "model"
        assert isinstance(model["created"], int)
        assert isinstance(model["owned_by"], str)


@pytest.mark.parametrize("model", [MODEL, PAIR, "one/deep/name@v1", "one%2Fdeep%2Fname%40v1"])
def test_a_model_is_found_by_its_id_also_when_it_holds_slashes(door: Door, model: str) -> None:
    reply = door.call("GET", f"/v1/models/{model}")
    assert reply.status == 200
    assert reply.json["id"] == model.replace("%2F", "/").replace("%40", "@")


@pytest.mark.parametrize("model", ["nobody/x", "one", "one/", "one/unheard-of", "../../etc/passwd", "one/scripted/"])
def test_an_unknown_model_is_not_found(door: Door, model: str) -> None:
    reply = door.call("GET", f"/v1/models/{model}")
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")


def test_models_are_shown_to_those_with_a_key_only(door: Door) -> None:
    for path in ("/v1/models", f"/v1/models/{MODEL}"):
        assert door.call("GET", path, authorization=None).status == 401


def test_health_and_readiness_need_no_key_and_tell_no_secrets(door: Door) -> None:
    health = door.call("GET", "/health", authorization=None)
    assert health.status == 200
    ready = door.call("GET", "/ready", authorization=None)
    assert ready.status in (200, 503)
    assert "canary" not in ready.body.decode() + health.body.decode()
