"""Orders for agents in all spellings (R-000-15, R-000-16, R-000-46, R-000-50 to R-000-52, R-000-57), and what is wrong with bad ones."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hortator.errors import InvalidRequest
from hortator.wire.orders import ARGUMENTS, Asked, Attachment, OrchestrationOrder, orchestration, order
from hortator.wire.tasks import Budget

DO = {"prompt": "Compare three ways."}


def asked(**body: Any) -> Asked:
    return order(json.dumps(body).encode())


def pattern(**body: Any) -> Asked:
    return orchestration(json.dumps(body).encode())


def texts(found: Asked) -> list[Any]:
    return [message["content"] for message in found.messages]


def test_the_sdk_orders_a_code_review_with_files() -> None:
    found = asked(
        task_type="code_review",
        config={"decomposition_strategy": "aggressive", "max_agents": 5, "timeout": "10m"},
        files=[
            {"filename": "src/app.py", "data": base64.b64encode(b"print()\0").decode()},
            {"filename": "notes.md", "content": "# Grüße"},
        ],
    )
    assert (found.task_type, found.model, found.pattern, dict(found.arguments)) == ("code_review", None, "team", {})
    assert texts(found) == ["Do this task: code review."]
    assert (found.config.decomposition_strategy, found.config.max_agents, found.config.timeout) == (
        "aggressive",
        5,
        600,
    )
    assert found.files == (
        Attachment("src/app.py", b"print()\0", "application/octet-stream"),
        Attachment("notes.md", "# Grüße".encode(), "text/plain; charset=utf-8"),
    )


def test_a_webhook_order_names_a_repository_and_a_time() -> None:
    found = asked(
        type="architecture_review",
        repository="https://git.example/shop",
        callback_url="https://ci.example/hook",
        timeout="2h",
    )
    assert found.task_type == "architecture_review"
    assert texts(found) == ["Do this task: architecture review.\n\nThe repository: https://git.example/shop"]
    assert (found.config.timeout, found.callback_url, found.callback_events) == (7200, "https://ci.example/hook", None)


def test_a_query_and_a_plain_configuration_carry_the_parameters_of_the_domain() -> None:
    databases = ["arxiv", "ieee", "springer"]
    found = asked(
        task_type="literature_review",
        query="Sparse attention",
        config={"databases": databases, "citation_style": "APA", "max_depth": 2},
        hortator_config={"methodology": "systematic_review", "citation_style": "MLA"},
        model="hortator/research-expert",
    )
    assert texts(found) == ["Sparse attention"]
    assert found.config.parameters == {
        "databases": databases,
        "citation_style": "MLA",
        "methodology": "systematic_review",
    }
    assert (found.config.max_depth, found.model) == (2, "hortator/research-expert")


@pytest.mark.parametrize("name", ["query", "prompt", "description", "task"])
def test_what_is_to_be_done_has_many_names(name: str) -> None:
    assert texts(asked(**{name: "Do it."})) == ["Do it."]
    assert texts(asked(**{name: "Do it.", "repository": "here"})) == ["Do it.\n\nThe repository: here"]


def test_messages_are_kept_as_they_are() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Look.", "more": {"n": 1.50}}]},
    ]
    assert list(asked(messages=messages).messages) == messages
    assert texts(asked(messages=messages, repository="here"))[-1] == "The repository: here"


def test_role_is_model_without_its_prefix() -> None:
    assert asked(role="coding-expert", **DO).model == "hortator/coding-expert"
    assert asked(role="hortator/coding-expert", model="hortator/coding-expert", **DO).model == "hortator/coding-expert"


def test_budget_tier_capabilities_and_time_may_stand_beside_the_configuration() -> None:
    found = asked(
        budget={"max_cost_usd": "0.50"}, tier="legionary", capabilities=["web-fetch"], timeout=45, **DO
    ).config
    assert (found.budget, found.tier, found.capabilities, found.timeout) == (
        Budget(max_cost_usd="0.50"),
        "legionary",
        ("web-fetch",),
        45,
    )


def test_files_that_came_beside_the_order_are_a_reason_to_work_too() -> None:
    file = Attachment("a/b.txt", b"1", "text/plain")
    assert order(b'{"task_type": "document_review"}', [file]).files == (file,)
    with pytest.raises(InvalidRequest, match="Two files") as raised:
        order(b'{"prompt": "x", "files": [{"filename": "a/b.txt", "content": ""}]}', [file])
    assert raised.value.code == "invalid_file_path"


WRONG: list[tuple[dict[str, Any], str, str | None]] = [
    ({}, "missing_required_parameter", "prompt"),
    ({"task_type": "code_review"}, "missing_required_parameter", "prompt"),
    ({"repository": "here"}, "missing_required_parameter", "prompt"),
    ({"prompt": "a", "query": "b"}, "invalid_value", "prompt"),
    ({"prompt": " \n"}, "invalid_value", "prompt"),
    ({"prompt": ""}, "invalid_value", "prompt"),
    ({"prompt": 1}, "invalid_type", "prompt"),
    ({"prompt": "a\0b"}, "invalid_value", "prompt"),
    ({"messages": []}, "empty_array", "messages"),
    ({"messages": [{"content": "x"}]}, "missing_required_parameter", "messages[0].role"),
    ({"messages": [{"role": "system", "content": "x"}]}, "invalid_value", "messages"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url"}]}]},
        "unsupported_content",
        "messages[0].content[1]",
    ),
    ({**DO, "promt": "x"}, "unknown_parameter", "promt"),
    ({**DO, "pattern": "smart"}, "unknown_parameter", "pattern"),
    ({**DO, "type": "a", "task_type": "b"}, "invalid_value", "type"),
    ({**DO, "type": "no spaces"}, "invalid_value", "type"),
    ({**DO, "model": "gpt-4o"}, "invalid_value", "model"),
    ({**DO, "role": "a", "model": "hortator/b"}, "invalid_value", "role"),
    ({**DO, "role": "../a"}, "invalid_value", "role"),
    ({**DO, "config": []}, "invalid_type", "config"),
    ({**DO, "config": {"max_agents": 26}}, "invalid_value", "config.max_agents"),
    ({**DO, "config": {"budget": {"max_cost_usd": "much"}}}, "invalid_value", "config.budget.max_cost_usd"),
    ({**DO, "budget": {"max_cost_usd": "\u0661"}}, "invalid_value", "budget.max_cost_usd"),
    ({**DO, "config": {"timeout": "soon"}}, "invalid_value", "config.timeout"),
    ({**DO, "config": {"x": "\0"}}, "invalid_value", "config"),
    ({**DO, "timeout": "8d"}, "invalid_value", "timeout"),
    ({**DO, "timeout": "1h", "config": {"timeout": "2h"}}, "invalid_value", "timeout"),
    ({**DO, "tier": "consul"}, "invalid_value", "tier"),
    ({**DO, "capabilities": ["fly"]}, "invalid_value", "capabilities[0]"),
    ({**DO, "callback_url": "ftp://example.org"}, "invalid_url", "callback_url"),
    ({**DO, "callback_url": "https://"}, "invalid_url", "callback_url"),
    ({**DO, "callback_url": "https://a b"}, "invalid_url", "callback_url"),
    ({**DO, "callback_events": ["completed", "nothing"]}, "invalid_value", "callback_events[1]"),
    ({**DO, "files": ["auth.py"]}, "invalid_type", "files[0]"),
    ({**DO, "files": [{"filename": "a"}]}, "invalid_value", "files[0]"),
    ({**DO, "files": [{"filename": "a", "data": "", "content": ""}]}, "invalid_value", "files[0]"),
    ({**DO, "files": [{"filename": "a", "data": "!"}]}, "invalid_value", "files[0].data"),
    ({**DO, "files": [{"filename": "a", "content": "1"}] * 2}, "invalid_file_path", "files"),
]


@pytest.mark.parametrize(("body", "code", "param"), WRONG)
def test_a_bad_order_is_refused_by_name(body: dict[str, Any], code: str, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as raised:
        asked(**body)
    assert (raised.value.code, raised.value.param) == (code, param)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../a", "a/../b", "a//b", "./a", "a/", "a\\b", "a\nb", "a\0b", "~/" + "a" * 400, " /a", "."]
)
def test_a_file_cannot_leave_its_folder(name: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        asked(files=[{"filename": name, "content": "x"}], **DO)
    assert (raised.value.code, raised.value.param) == ("invalid_file_path", "files[0].filename")


@pytest.mark.parametrize("levels", [70, 900, 100_000])
@pytest.mark.parametrize("name", ["config", "messages"])
def test_endless_nesting_is_refused(name: str, levels: int) -> None:
    deep = b"[" * levels + b"]" * levels
    value = b'{"x": %s}' % deep if name == "config" else b'[{"role": "user", "content": "x", "x": %s}]' % deep
    rest = b'"prompt": "x", ' if name == "config" else b""
    with pytest.raises(InvalidRequest) as raised:
        order(b'{%s"%s": %s}' % (rest, name.encode(), value))
    assert raised.value.code == "too_deep"


@pytest.mark.parametrize(("body", "code"), [(b"{", "invalid_json"), (b"[]", "invalid_type"), (b"\xff", "invalid_utf8")])
def test_what_is_no_json_object_is_refused(body: bytes, code: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        order(body)
    assert raised.value.code == code


def test_a_pattern_takes_harpoons_fields() -> None:
    found = pattern(
        pattern="optimize",
        task="Write a haiku.",
        quality_threshold=8.5,
        max_iterations=3,
        generator_model="one/small",
        evaluator_model="one/large",
    )
    assert (found.pattern, texts(found)) == ("optimize", ["Write a haiku."])
    assert found.arguments == {
        "quality_threshold": 8.5,
        "max_iterations": 3,
        "generator_model": "one/small",
        "evaluator_model": "one/large",
    }
    parallel = pattern(pattern="parallel", requests=[{"messages": [{"role": "user", "content": "1"}]}, {"prompt": "2"}])
    assert (parallel.messages, len(parallel.arguments["requests"])) == ((), 2)
    smart = pattern(pattern="smart", prompt="x", preferences={"maxCost": 0.001, "maxLatency": 2000, "minQuality": 7.5})
    assert smart.arguments == {"preferences": {"maxCost": 0.001, "maxLatency": 2000, "minQuality": 7.5}}
    assert pattern(**DO).pattern == "team"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"pattern": "swarm", **DO}, "invalid_value", "pattern"),
        ({"pattern": "smart", "worker_model": "a", **DO}, "unknown_parameter", "worker_model"),
        ({"pattern": "parallel"}, "missing_required_parameter", "requests"),
        ({"pattern": "parallel", "requests": []}, "empty_array", "requests"),
        ({"pattern": "parallel", "requests": [{}]}, "missing_required_parameter", "requests[0].messages"),
        ({"pattern": "workers"}, "missing_required_parameter", "prompt"),
        ({"pattern": "optimize", "quality_threshold": 11, **DO}, "invalid_value", "quality_threshold"),
        ({"pattern": "optimize", "max_iterations": 0, **DO}, "invalid_value", "max_iterations"),
        ({"pattern": "smart", "preferences": {"max_cost": 1}, **DO}, "unknown_parameter", "preferences.max_cost"),
    ],
)
def test_a_pattern_without_what_it_needs_is_refused(body: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        pattern(**body)
    assert (raised.value.code, raised.value.param) == (code, param)


NAMES = [field.encode_name for field in msgspec.structs.fields(OrchestrationOrder)]
KEYS = st.sampled_from(["role", "content", "filename", "data", "text", "type", "timeout", "max_tokens", "x"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["user", "10m", "YQ==", "src/a.py", "https://a.example/b", *ARGUMENTS]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from([*NAMES, "x"]), VALUES, max_size=6))
def test_whatever_is_ordered_is_understood_or_refused(body: dict[str, Any]) -> None:
    for parse in (order, orchestration):
        with suppress(InvalidRequest):
            found = parse(json.dumps(body).encode())
            assert found.messages or found.pattern == "parallel"
            assert all("\0" not in json.dumps(message, ensure_ascii=False) for message in found.messages)
            msgspec.json.encode((found.config, found.arguments))
