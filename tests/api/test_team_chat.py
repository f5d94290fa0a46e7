"""Chats with `hortator/<role>` at their doors, over HTTP: which path they take, and what becomes of them in one piece."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import openai
import pytest

from hortator.errors import Forbidden, RateLimited
from hortator.tenancy.keys import create_key
from tests.api.team_server import (
    ANSWER,
    COMPLEX,
    ROLE,
    SIMPLE,
    Served,
    ask,
    content,
    done,
    one,
    payloads,
    sent,
    served,
    serving,
    upstream,
)
from tests.orchestration.scripted_teams import Run, event, words
from tests.upstream.process import Upstream
from tests.upstream.script import PIECES, TEXT

__all__ = ["one", "served", "upstream"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


# --- models ------------------------------------------------------------------------------------------------------------


async def test_roles_and_patterns_are_listed_for_keys_that_may_use_them(served: Served) -> None:
    """R-000-45, R-000-67."""
    models = {model.id: model async for model in served.openai().models.list()}
    assert len([id for id in models if id.startswith("hortator/")]) == 13 + 4
    assert models["hortator/coding-expert"].owned_by == "hortator"
    assert models["hortator/coding-expert"].description == "General software development"  # type: ignore[attr-defined]
    assert "hortator/pattern-workers" in models
    key = (await create_key(served.app.database, name="law", models=["hortator/legal-*"])).token.reveal()
    lawyers = [model.id async for model in served.openai(key).models.list()]
    assert lawyers == ["hortator/legal-researcher", "hortator/legal-reviewer", "hortator/legal-writer"]
    found = await served.openai(key).models.retrieve("hortator/legal-legal-writer")
    assert found.id == "hortator/legal-legal-writer"
    with pytest.raises(openai.NotFoundError):
        await served.openai(key).models.retrieve("hortator/editor")


@pytest.mark.parametrize("model", ["hortator/coding-export", "hortator/pattern-nothing", "hortator/"])
async def test_a_role_that_is_not_there_is_a_model_that_is_not_there(served: Served, model: str) -> None:
    reply = await served.post(ask(model=model))
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
    if model.endswith("export"):
        assert "hortator/coding-expert" in reply.json()["error"]["message"]


async def test_a_key_may_use_a_role_by_any_of_its_spellings_and_no_other(served: Served) -> None:
    """R-000-67: and what stands behind the role is the operator's choice, not the key's."""
    key = (await create_key(served.app.database, name="law", models=["hortator/content-*"])).token.reveal()
    for model in ("hortator/editor", "hortator/content-editor"):
        answer = await served.openai(key).chat.completions.create(**ask(SIMPLE, model))
        assert answer.choices[0].message.content == TEXT
    refused = [ask(SIMPLE), ask(SIMPLE, "hortator/editor", hortator_config={"model": "up/scripted"})]
    for body in refused:
        reply = await served.post(body, authorization=f"Bearer {key}")
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "model_not_allowed")


# --- fast ----------------------------------------------------------------------------------------------------------------


async def test_a_simple_request_is_one_call_with_the_roles_words_in_front(served: Served, upstream: Upstream) -> None:
    """R-000-35."""
    mark = upstream.plan("ok")
    reply = await served.post(
        ask(
            SIMPLE,
            user=mark,
            hortator_config={"languages": ["Python"]},
            hortator_mode="auto",
            hortator_reasoning=False,
            x_no_cache=True,
            x_tier="legionary",
            x_budget={"max_cost_usd": "1.00", "max_tokens": 4000},
        )
    )
    assert reply.json()["choices"][0]["message"]["content"] == TEXT
    path, model, why = reply.headers["x-hortator-route"].split(";")
    assert (path, model) == ("fast", "up/scripted")
    assert why.startswith("complexity=0.")
    assert "x-hortator-task-id" not in reply.headers
    body = await sent(upstream, mark)
    assert not [name for name in body if name.startswith(("hortator_", "x_"))]
    system, user = body["messages"]
    assert (system["role"], user) == ("system", {"role": "user", "content": SIMPLE})
    assert system["content"].startswith("You are a senior software engineer.")
    assert system["content"].endswith("Work within these parameters:\n- languages: Python")
    assert served.teams.orders == []


async def test_a_fast_stream_is_the_models_own(served: Served, upstream: Upstream) -> None:
    stream = await served.openai().chat.completions.create(**ask(SIMPLE, user=upstream.plan("ok")), stream=True)
    pieces = [chunk.choices[0].delta.content async for chunk in stream]
    assert [piece for piece in pieces if piece] == list(PIECES)


@pytest.mark.parametrize(
    ("role", "own", "told"),
    [
        ("system", "Be brief.", "\n\nBe brief."),
        ("developer", [{"type": "text", "text": "Be brief."}], None),
    ],
)
async def test_the_clients_system_message_follows_the_roles_in_one(
    served: Served, upstream: Upstream, role: str, own: Any, told: str | None
) -> None:
    mark = upstream.plan("ok")
    messages = [{"role": role, "content": own}, {"role": "user", "content": SIMPLE}]
    await served.post({"model": ROLE, "messages": messages, "user": mark})
    first, second = (await sent(upstream, mark))["messages"]
    assert (first["role"], second["role"]) == (role, "user")
    if told is None:
        assert first["content"][1:] == own
    else:
        assert first["content"].endswith(told)


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [TOOL]},
        {"response_format": {"type": "json_object"}},
        {"n": 2},
        {"hortator_preferences": {"minQuality": 8}},
        {"max_tokens": 100},
        {"hortator_mode": "fast"},
    ],
    ids=lambda more: next(iter(more)),
)
async def test_what_one_model_has_to_answer_is_one_call(
    served: Served, upstream: Upstream, more: dict[str, Any]
) -> None:
    """However complex it is: agents run no tools of the client, and answer in text."""
    mark = upstream.plan("ok")
    reply = await served.post(ask(user=mark, **more))
    assert reply.status_code == 200, reply.text
    path, model, why = reply.headers["x-hortator-route"].split(";")
    field = next(iter(more))
    assert path == "fast"
    assert why.endswith(f",{field}")
    # Nothing but the way it is answered has changed: a complex request still deserves a good model.
    assert model == ("up/scripted" if field in ("max_tokens", "hortator_mode") else "up/better")
    assert served.teams.orders == []


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
SOUND = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [{"type": "text", "text": COMPLEX}, IMAGE]}],
        [{"role": "user", "content": [{"type": "text", "text": COMPLEX}, SOUND]}],
        [{"role": "system", "content": COMPLEX}],
    ],
    ids=["image", "sound", "no-user"],
)
async def test_what_agents_would_not_see_goes_to_one_model_as_it_is(
    served: Served, upstream: Upstream, messages: list[dict[str, Any]]
) -> None:
    """A team that is not shown the image would make its answer up."""
    mark = upstream.plan("ok")
    reply = await served.post({"model": ROLE, "messages": messages, "user": mark, "hortator_mode": "complex"})
    assert reply.headers["x-hortator-route"].startswith("fast;")
    content = messages[-1]["content"]
    last = (await sent(upstream, mark))["messages"][-1]["content"]
    assert last[-1] == content[-1] if isinstance(content, list) else last.endswith(content)
    assert served.teams.orders == []


async def test_tools_that_were_called_before_keep_a_conversation_with_one_model(
    served: Served, upstream: Upstream
) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": COMPLEX},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    reply = await served.post({"model": ROLE, "messages": messages, "user": upstream.plan("ok")})
    assert reply.headers["x-hortator-route"].startswith("fast;")


async def test_a_budget_bounds_the_one_answer(served: Served, upstream: Upstream) -> None:
    mark = upstream.plan("ok")
    await served.post(ask(SIMPLE, user=mark, x_budget={"max_tokens": 1000}))
    assert 300 < (await sent(upstream, mark))["max_completion_tokens"] < 1000
    mark = upstream.plan("ok")
    await served.post(ask(SIMPLE, user=mark, x_budget={"max_cost_usd": "0.01"}))
    assert 300 < (await sent(upstream, mark))["max_completion_tokens"] < 1000


@pytest.mark.parametrize("budget", [{"max_tokens": 10}, {"max_cost_usd": "0.0000001"}])
async def test_a_budget_that_allows_no_answer_gives_an_empty_one_that_says_so(
    served: Served, budget: dict[str, Any]
) -> None:
    """C-21: and no provider is asked."""
    body = ask(SIMPLE, x_budget=budget)
    reply = (await served.post(body)).json()
    assert reply["hortator_error"]["code"] == "task_budget_exceeded"
    assert (reply["choices"][0]["message"]["content"], reply["choices"][0]["finish_reason"]) == ("", "length")
    lines = await served.lines(body)
    last = payloads(lines)[-1]
    assert (last["choices"][0]["finish_reason"], last["hortator_error"]["code"]) == ("length", "task_budget_exceeded")
    assert "data: [DONE]" in lines


async def test_a_text_file_is_read_to_the_one_model(served: Served, upstream: Upstream) -> None:
    mark = upstream.plan("ok")
    data = base64.b64encode(b"x = 1\n").decode()
    part = {"type": "file", "file": {"filename": "a.py", "file_data": data}}
    image = {"type": "file", "file": {"filename": "a.bin", "file_data": base64.b64encode(b"\xff\0").decode()}}
    body = ask(SIMPLE, user=mark, hortator_mode="fast")
    body["messages"][0]["content"] = [{"type": "text", "text": SIMPLE}, part, image]
    await served.post(body)
    [_, user] = (await sent(upstream, mark))["messages"]
    assert user["content"][1]["text"] == '<file name="a.py">\nx = 1\n\n</file>'
    assert user["content"][2] == image


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (ask(SIMPLE, hortator_mode="slow"), "invalid_value", "hortator_mode"),
        (ask(SIMPLE, x_tier="emperor"), "invalid_value", "x_tier"),
        (ask(SIMPLE, x_capabilities=["root"]), "invalid_value", "x_capabilities[0]"),
        (ask(SIMPLE, x_budget={"dollars": 1}), "unknown_parameter", "x_budget.dollars"),
        (ask(SIMPLE, hortator_config={"max_agents": 100}), "invalid_value", "hortator_config.max_agents"),
        (ask(SIMPLE, hortator_config={"timeout": "soon"}), "invalid_value", "hortator_config.timeout"),
        (ask(SIMPLE, hortator_config={"colour": "red"}), "invalid_domain_parameter", "hortator_config.colour"),
        (ask(SIMPLE, hortator_reasoning="yes"), "invalid_type", "hortator_reasoning"),
        (ask(model="hortator/pattern-workers", tools=[TOOL]), "unsupported_parameter", "tools"),
        (ask(model="hortator/pattern-parallel"), "missing_required_parameter", "requests"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_a_field_of_ours_that_is_wrong_is_refused(
    served: Served, body: dict[str, Any], code: str, param: str
) -> None:
    reply = await served.post(body)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, code, param)


async def test_the_operators_model_of_a_tier_answers(tmp_path: Path, upstream: Upstream) -> None:
    models = {"enabled": False, "models": {"legionary": "up/better"}}
    async with serving(tmp_path, upstream, orchestration=models) as served:
        reply = await served.post(ask(SIMPLE, user=upstream.plan("ok")))
        assert reply.headers["x-hortator-route"].startswith("fast;up/better;")
        reply = await served.post(ask(SIMPLE, user=upstream.plan("ok"), hortator_config={"model": "up/scripted"}))
        assert reply.headers["x-hortator-model"] == "up/scripted"


# --- a team ----------------------------------------------------------------------------------------------------------------


async def test_a_complex_request_is_ordered_from_a_team(served: Served) -> None:
    """R-000-37, R-000-46."""
    served.teams.plan(done())
    answer = await served.openai().chat.completions.with_raw_response.create(
        **ask(max_tokens=2000, temperature=0.5),
        extra_body={
            "x_capabilities": ["web-fetch"],
            "x_budget": {"max_cost_usd": "0.50"},
            "hortator_config": {"languages": ["Go"], "timeout": "10m"},
        },
        extra_headers={"Idempotency-Key": "k1"},
    )
    completion = answer.parse()
    [order] = served.teams.orders
    [id] = served.teams.runs
    assert answer.headers["x-hortator-task-id"] == id
    assert answer.headers["x-hortator-route"].startswith(f"complex;{ROLE};complexity=")
    assert answer.headers["x-hortator-task-type"] == "chat; inferred"
    assert (completion.id, completion.model) == (f"chatcmpl-{id}", ROLE)
    assert completion.choices[0].message.content == ANSWER
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.total_tokens) == (700, 790)
    assert (order.model, order.source, order.interactive, order.task_type) == (ROLE, "chat", True, "chat")
    assert order.messages == ({"role": "user", "content": COMPLEX},)
    assert order.idempotency_key == "k1"
    config = order.config
    assert (order.path, config.decomposition_strategy, config.timeout) == ("complex", None, 600)
    assert (config.max_tokens, config.temperature, config.capabilities) == (2000, 0.5, ("web-fetch",))
    assert config.budget is not None
    assert config.budget.max_cost_usd == "0.50"
    assert config.parameters == {"languages": ["Go"]}


@pytest.mark.parametrize(
    "more", [{"response_format": {"type": "text"}}, {"tools": []}, {"n": 1}, {"logprobs": False}], ids=str
)
async def test_what_asks_for_nothing_special_is_a_teams_all_the_same(served: Served, more: dict[str, Any]) -> None:
    served.teams.plan(done())
    body = ask(**more)
    body["messages"].append({"role": "user", "content": 'This came back: {"tool_calls": [], "type": "file"}'})
    body["messages"].reverse()
    reply = await served.post(body)
    assert reply.headers["x-hortator-route"].startswith("complex;"), reply.text


async def test_a_mode_decides_for_itself(served: Served) -> None:
    """R-000-14, R-000-36."""
    served.teams.plan(done())
    reply = await served.post(ask(SIMPLE, hortator_mode="standard"))
    assert reply.headers["x-hortator-route"].startswith("standard;")
    [order] = served.teams.orders
    assert order.path == "standard"


async def test_files_in_a_chat_become_the_teams(served: Served) -> None:
    served.teams.plan(done())
    data = "data:text/x-python;base64," + base64.b64encode(b"x = 1").decode()
    body = ask(SIMPLE)
    body["messages"][0]["content"] = [
        {"type": "text", "text": SIMPLE},
        {"type": "file", "file": {"filename": "src/a.py", "file_data": data}},
        {"type": "file", "file": {"file_data": base64.b64encode(b"y").decode()}},
    ]
    reply = await served.post(body)
    assert reply.headers["x-hortator-route"].startswith("standard;")
    [order] = served.teams.orders
    assert [(file.path, file.content, file.media_type) for file in order.files] == [
        ("src/a.py", b"x = 1", "text/x-python"),
        ("file-2", b"y", "application/octet-stream"),
    ]
    assert order.messages[0]["content"][1] == {"type": "text", "text": "[Attached file: inbox/src/a.py]"}


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ({"filename": "../a", "file_data": "eA=="}, "invalid_file_path"),
        ({"filename": "a", "file_data": "no base64!"}, "invalid_value"),
        ({"file_id": "file-1"}, "unsupported_content"),
    ],
)
async def test_a_file_that_agents_cannot_be_given_is_refused(served: Served, file: dict[str, str], code: str) -> None:
    body = ask()
    body["messages"][0]["content"] = [{"type": "text", "text": COMPLEX}, {"type": "file", "file": file}]
    reply = await served.post(body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, code)


async def test_a_pattern_is_ordered_with_its_arguments(served: Served) -> None:
    served.teams.plan(done())
    config = {"quality_threshold": 8.5, "max_iterations": 2, "evaluator_model": "up/better", "timeout": "1m"}
    reply = await served.post(ask(SIMPLE, "hortator/pattern-optimize", hortator_config=config))
    assert reply.status_code == 200, reply.text
    [order] = served.teams.orders
    assert (order.pattern, order.model, order.config.timeout) == ("optimize", "hortator/pattern-optimize", 60)
    assert order.arguments == {"quality_threshold": 8.5, "max_iterations": 2, "evaluator_model": "up/better"}
    served.teams.plan(done())
    await served.post(ask(SIMPLE, "hortator/pattern-smart", hortator_preferences={"maxCost": 0.01}))
    assert served.teams.orders[1].arguments == {"preferences": {"maxCost": 0.01}}


async def test_an_order_that_nobody_waits_for_is_answered_with_its_id(served: Served) -> None:
    for text in (COMPLEX, SIMPLE):
        served.teams.plan(Run())
        reply = await served.post(ask(text), **{"x-hortator-async": "true"})
        document = reply.json()
        id = reply.headers["x-hortator-task-id"]
        assert reply.status_code == 200
        assert document["message"] == f"Task created. Poll /api/v1/tasks/{document['task_id']}/artifacts for results."
        assert {name: document[name] for name in ("task_id", "namespace", "status")} == {
            "task_id": id,
            "namespace": served.teams.callers[-1].namespace,
            "status": "Pending",
        }
    first, second = served.teams.orders
    assert (first.interactive, first.path) == (False, "complex")
    assert (second.interactive, second.path) == (False, "fast")
    reply = await served.post(ask(tools=[TOOL]), **{"x-hortator-async": "true"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "unsupported_parameter")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("refusal", "status"),
    [(RateLimited("too many", code="too_many_tasks"), 429), (Forbidden("no", code="capability_not_allowed"), 403)],
)
async def test_an_order_that_is_refused_has_its_true_status(
    served: Served, refusal: RateLimited | Forbidden, status: int, stream: bool
) -> None:
    served.teams.plan(Run(refusal=refusal))
    reply = await served.post(ask(stream=stream))
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, refusal.code)


ENDINGS = [
    ("failed", None, 502, "task_failed"),
    ("cancelled", None, 502, "task_cancelled"),
    ("failed", {"content": "half"}, 502, "task_failed"),
]


@pytest.mark.parametrize(("type", "results", "status", "code"), ENDINGS)
async def test_a_team_without_an_answer_is_an_error(
    served: Served, type: str, results: dict[str, Any] | None, status: int, code: str
) -> None:
    """C-21. Clients do not try it again by themselves: it would cost the same again."""
    run = Run([event(1, type)], results=results, error={"code": "upstream_auth_failed", "message": "No key fits."})
    served.teams.plan(run)
    reply = await served.post(ask())
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert "No key fits. (upstream_auth_failed)" in reply.json()["error"]["message"]
    assert reply.headers["x-should-retry"] == "false"
    assert run.task is not None
    assert reply.headers["x-hortator-task-id"] == run.task.id
    served.teams.plan(run)
    lines = await served.lines(ask())
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == code
    assert "data: [DONE]" not in lines


async def test_a_team_that_a_limit_of_the_key_stopped_is_refused_like_any_call(served: Served) -> None:
    """R-000-71."""
    message = "Token limit exceeded: 2000 tokens/hour for this key. Try again in 1312 s."
    served.teams.plan(Run([event(1, "failed")], error={"code": "token_limit_exceeded", "message": message}))
    reply = await served.post(ask())
    assert (reply.status_code, reply.json()["error"]["type"]) == (429, "rate_limit_error")
    assert (reply.json()["error"]["code"], reply.json()["error"]["message"]) == ("token_limit_exceeded", message)


@pytest.mark.parametrize("type", ["budget_exceeded", "timed_out"])
async def test_what_was_achieved_before_a_bound_is_an_answer_cut_short(served: Served, type: str) -> None:
    """C-21."""
    for stream in (False, True):
        served.teams.plan(Run([*words("Half "), event(1, type)], results={"content": "Half of it."}))
        if stream:
            chunks = payloads(await served.lines(ask()))
            assert content(chunks) == "Half of it."
            assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        else:
            choice = (await served.post(ask())).json()["choices"][0]
            assert (choice["message"]["content"], choice["finish_reason"]) == ("Half of it.", "length")


@pytest.mark.parametrize("type", ["budget_exceeded", "timed_out"])
async def test_a_bound_reached_before_anything_was_achieved_is_an_empty_answer_that_says_why(
    served: Served, type: str
) -> None:
    """C-21: the client's own bound is no failure of the gateway."""
    run = Run([event(1, type)], error={"code": f"task_{type}", "message": "It was too little."})
    said = {"code": f"task_{type}", "message": "It was too little."}
    served.teams.plan(run)
    reply = await served.post(ask())
    assert (reply.status_code, reply.json()["hortator_error"]) == (200, said)
    choice = reply.json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")
    served.teams.plan(run)
    lines = await served.lines(ask())
    last = payloads(lines)[-1]
    assert (last["choices"][0]["finish_reason"], last["hortator_error"]) == ("length", said)
    assert "data: [DONE]" in lines
