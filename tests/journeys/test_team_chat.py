"""Chats with roles against a whole gateway: the official client, a scripted model that plans and works, and the durable engine between."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import openai
import pytest

from tests.gateway import Gateway, eventually, openai_client, running_gateway
from tests.upstream.process import Upstream

ROLE = "hortator/coding-expert"
COMPLEX = "Design the architecture of a multi-tenant billing platform, migrate the old monolith to it, and write the rollout plan."
CREW = "crew/team"
ANSWER = "The answer of the team, from part-1, part-2, part-3."
TOKENS = 120
"""Of each model call."""


@pytest.fixture(scope="module")
def crewed(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Gateway]:
    """A gateway whose agents ask the scripted model that knows their work."""
    crew = {
        "id": "crew",
        "kind": "openai",
        "base_url": upstream.base_url("crew"),
        "api_key": "${ONE_KEY}",
        "models": ["team"],
    }
    models = dict.fromkeys(("tribune", "centurion", "legionary"), CREW)
    folder = tmp_path_factory.mktemp("crewed")
    changes = {"orchestration": {"models": models}, "routing": {"cards": {CREW: {"quality": 7}}}}
    with running_gateway(folder, upstream, more_providers=[crew], **changes) as running:
        yield running


@pytest.fixture
def client(crewed: Gateway) -> Iterator[openai.OpenAI]:
    with openai_client(crewed) as opened:
        yield opened


@pytest.fixture
def mark() -> str:
    return uuid.uuid4().hex


def order(mark: str, *told: str, **more: Any) -> dict[str, Any]:
    """A chat that tells the scripted model what to do."""
    text = " ".join((COMPLEX, f"[mark:{mark}]", *told))
    return {"model": ROLE, "messages": [{"role": "user", "content": text}], **more}


def tasks(gateway: Gateway) -> int:
    """How many tasks there are."""
    with closing(sqlite3.connect(f"file:{gateway.database()}?mode=ro", uri=True)) as database:
        [count] = database.execute("select count(*) from tasks").fetchone()
    return int(count)


def task(gateway: Gateway, id: str, query: str = "") -> dict[str, Any]:
    """A task as its own API shows it."""
    found: dict[str, Any] = gateway.door.call("GET", f"/api/v1/tasks/{id}{query}").json
    return found


def test_a_team_answers_a_complex_chat(crewed: Gateway, client: openai.OpenAI, mark: str) -> None:
    """R-000-1, R-000-37: and what it took is the whole tree's."""
    raw = client.chat.completions.with_raw_response.create(**order(mark))
    answer = raw.parse()
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 5 * TOKENS  # the plan, three parts, the answer
    id = raw.headers["x-hortator-task-id"]
    assert answer.id == f"chatcmpl-{id}"
    found = task(crewed, id)
    assert (found["status"], found["model"], found["source"]) == ("Completed", ROLE, "chat")
    assert found["usage"]["total_tokens"] == answer.usage.total_tokens


def test_a_teams_answer_streams_word_by_word(client: openai.OpenAI, mark: str) -> None:
    """R-000-23, R-000-29."""
    with client.chat.completions.create(**order(mark), stream=True, stream_options={"include_usage": True}) as stream:
        *chunks, usage = list(stream)
    pieces = [piece for chunk in chunks if (piece := chunk.choices[0].delta.content)]
    assert "".join(pieces) == ANSWER
    assert len(pieces) > 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert usage.usage is not None
    assert usage.usage.total_tokens == 5 * TOKENS


def test_a_client_that_wants_to_know_sees_the_team_at_work(client: openai.OpenAI, mark: str) -> None:
    """R-000-24 to R-000-28."""
    with client.chat.completions.create(
        **order(mark), stream=True, extra_headers={"X-Hortator-Verbosity": "verbose"}
    ) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    events = [found for chunk in chunks if (found := getattr(chunk, "hortator_event", None))]
    types = [found["type"] for found in events]
    assert types[0] == "task_created"
    assert types[-1] == "completed"
    assert types.count("agent_spawned") == 3
    decomposed = events[types.index("task_decomposed")]
    assert len(decomposed["details"]["subtasks"]) == 3
    assert decomposed["details"]["estimated_time"].endswith("s")
    assert [found["seq"] for found in events] == sorted(found["seq"] for found in events)
    assert "model_call" not in types


ALONE = "The answer of the team, from nobody else."


@pytest.mark.parametrize(
    ("pattern", "arguments", "answer"),
    [
        ("workers", {"orchestrator_model": CREW, "worker_model": CREW}, ANSWER),
        ("optimize", {"generator_model": CREW, "evaluator_model": CREW, "quality_threshold": 8}, ALONE),
        ("smart", {}, ALONE),
        ("parallel", {"requests": [{"prompt": "Salve!", "model": CREW}] * 2}, ALONE),
    ],
)
def test_a_pattern_is_a_model(
    client: openai.OpenAI, mark: str, pattern: str, arguments: dict[str, Any], answer: str
) -> None:
    """R-002-4 to R-002-7, in a chat."""
    asked = order(mark, "[score:6,9]") | {"model": f"hortator/pattern-{pattern}"}
    with client.chat.completions.create(**asked, stream=True, extra_body={"hortator_config": arguments}) as stream:
        said = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert answer in said
    assert said.count(answer) == (2 if pattern == "parallel" else 1)


def test_a_part_that_a_provider_refuses_is_not_asked_for_again_and_again(client: openai.OpenAI, mark: str) -> None:
    """R-000-88: what is wrong with a request stays wrong; the answer is made of the rest."""
    with client.chat.completions.create(
        **order(mark, "[fail:part-1]"), stream=True, extra_headers={"X-Hortator-Verbosity": "verbose"}
    ) as stream:
        chunks = list(stream)
    types = [found["type"] for chunk in chunks if (found := getattr(chunk, "hortator_event", None))]
    assert "agent_failed" in types
    assert "retrying" not in types
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == "The answer of the team, from part-2, part-3."


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_ends_its_team(crewed: Gateway, upstream: Upstream, mark: str, stream: bool) -> None:
    with crewed.door.begin(order(mark, "[hold]", stream=stream)):
        upstream.wait(mark, "open", 3)
    upstream.wait(mark, "aborted", 3)
    listed = crewed.door.call("GET", "/api/v1/tasks?limit=1").json["data"]
    ended = eventually(
        lambda: found if (found := task(crewed, listed[0]["id"]))["status"] == "Cancelled" else None, "the tree's end"
    )
    assert ended["completed_at"]


@pytest.mark.parametrize(
    ("bound", "code"),
    [
        ({"hortator_config": {"timeout": "1s"}}, "task_timed_out"),
        ({"x_budget": {"max_tokens": 300}}, "task_budget_exceeded"),
    ],
)
def test_a_team_that_reaches_a_bound_with_nothing_ends_by_length(
    client: openai.OpenAI, mark: str, bound: dict[str, Any], code: str
) -> None:
    """C-21, C-24."""
    answer = client.chat.completions.create(**order(mark, "[hold]", "[hold:synthesis]"), extra_body=bound)
    assert (answer.choices[0].finish_reason, answer.choices[0].message.content) == ("length", "")
    assert (answer.model_extra or {})["hortator_error"]["code"] == code


def test_an_order_that_nobody_waits_for_is_done_all_the_same(crewed: Gateway, mark: str) -> None:
    reply = crewed.door.post(order(mark), x_hortator_async="true")
    assert reply.status == 200
    ended = task(crewed, reply.json["task_id"], "?wait=30")
    assert (ended["status"], ended["results"]["content"]) == ("Completed", ANSWER)


def test_a_simple_chat_makes_no_task(crewed: Gateway, client: openai.OpenAI) -> None:
    """R-000-35: fast means no engine and no database."""
    before = tasks(crewed)
    raw = client.chat.completions.with_raw_response.create(
        model=ROLE, messages=[{"role": "user", "content": "What is a tuple?"}]
    )
    assert raw.headers["x-hortator-route"].startswith(f"fast;{CREW};")
    assert raw.parse().choices[0].message.content
    assert tasks(crewed) == before


def test_domain_parameters_reach_the_agents(client: openai.OpenAI, upstream: Upstream, mark: str) -> None:
    """R-000-46, R-000-47."""
    parameters = {"jurisdiction": "EU", "regulatory_frameworks": ["GDPR", "AI_Act"]}
    client.chat.completions.create(
        **(order(mark) | {"model": "hortator/legal-reviewer"}), extra_body={"hortator_config": parameters}
    )
    asked = [seen.body for seen in upstream.seen(mark)]
    assert len(asked) == 5
    assert all("GDPR, AI_Act" in body for body in asked)
