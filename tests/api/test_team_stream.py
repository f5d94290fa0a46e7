"""Streamed chats with teams of agents, their hang-ups, and the same in the dialects of responses and messages."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import httpx2
import openai
import pytest

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
    upstream,
)
from tests.eventually import eventually
from tests.orchestration.scripted_teams import Run, event, words
from tests.upstream.process import Upstream

__all__ = ["one", "served", "upstream"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEEN_WITHIN = 1.0


# --- a stream ----------------------------------------------------------------------------------------------------------------


async def test_only_the_answer_streams_word_by_word(served: Served) -> None:
    """R-000-23, R-000-29: and every chunk but the usage has one choice."""
    served.teams.plan(
        done(
            event(2, "task_decomposed", message="Three parts.", details={"subtasks": ["a", "b"]}),
            event(3, "partial_result", content="A secret of the team."),
            *words("Use three ", "services, and ", "migrate by tenant."),
        )
    )
    stream = await served.openai().chat.completions.create(**ask(), stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    [id] = served.teams.runs
    assert {chunk.id for chunk in chunks} == {f"chatcmpl-{id}"}
    assert {chunk.model for chunk in chunks} == {ROLE}
    *others, usage = chunks
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in others)
    assert others[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content for chunk in others]
    assert [piece for piece in pieces if piece] == ["Use three ", "services, and ", "migrate by tenant."]
    assert others[-1].choices[0].finish_reason == "stop"
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.total_tokens == 790


async def test_without_being_asked_no_usage_is_streamed(served: Served) -> None:
    served.teams.plan(done())
    chunks = payloads(await served.lines(ask()))
    assert content(chunks) == ANSWER
    assert not [chunk for chunk in chunks if "usage" in chunk]


@pytest.mark.parametrize(
    "deltas",
    [
        [],
        words("Use three ")[:1],
        [words("Use three ", "services, ", "and migrate")[place] for place in (0, 2)],
        words("Use three ", "services, ")[1:],
        [*words("Use three "), *words("Use ", "three services", run=2)],
        [*words("Use three "), *words("Use three "), *words("Use three services")],
        words("\n\nUse three services"),
        words("Use three services, and migrate by tenant.\n\n"),
    ],
    ids=["none", "first", "gap", "no-beginning", "another-run", "twice", "blank-before", "blank-after"],
)
async def test_text_that_did_not_stream_comes_with_the_result(served: Served, deltas: list[Any]) -> None:
    served.teams.plan(done(*deltas))
    assert content(payloads(await served.lines(ask()))).strip() == ANSWER


async def test_an_answer_that_was_written_anew_is_not_mixed_with_what_was_told(served: Served) -> None:
    served.teams.plan(done(*words("Something else "), *words("Use three ", run=2)))
    lines = await served.lines(ask())
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "interrupted"
    assert "data: [DONE]" not in lines


@pytest.mark.parametrize(
    ("level", "types"),
    [
        ("default", []),
        ("verbose", ["task_created", "task_decomposed", "completed"]),
        ("full", ["task_created", "task_decomposed", "model_call", "completed"]),
    ],
)
async def test_what_happens_is_told_in_whole_chunks_by_level(served: Served, level: str, types: list[str]) -> None:
    """R-000-24 to R-000-28, C-19."""
    details = {"subtasks": ["design", "migrate"], "estimated_time": "45s", "estimated_time_ms": 45_000}
    served.teams.plan(
        done(
            event(2, "task_decomposed", message="Two parts.", agent_id="a1", task="plan", details=details),
            event(3, "model_call", details={"deployment": "up/scripted"}),
            *words(ANSWER),
        )
    )
    stream = await served.openai().chat.completions.create(
        **ask(), stream=True, extra_headers={"X-Hortator-Verbosity": level}
    )
    chunks = [chunk async for chunk in stream]
    # The loop that the specification shows must not throw, and must read the answer alone.
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    events = [found for chunk in chunks if (found := getattr(chunk, "hortator_event", None))]
    assert [found["type"] for found in events] == types
    if types:
        decomposed = events[1]
        assert decomposed["timestamp"].endswith("Z")
        assert (decomposed["message"], decomposed["details"], decomposed["seq"]) == ("Two parts.", details, 2)
        assert (decomposed["agent_id"], decomposed["task"]) == ("a1", "plan")
        assert "result" not in events[-1]


async def test_the_official_clients_own_reader_of_streams_takes_every_chunk(served: Served) -> None:
    """C-19: it throws on chunks whose choices or deltas lack what it needs."""
    served.teams.plan(done(event(2, "task_decomposed", message="Two parts."), *words("Use three ", "services")))
    async with served.openai().chat.completions.stream(
        **ask(),
        stream_options={"include_usage": True},
        extra_headers={"X-Hortator-Verbosity": "full"},
    ) as stream:
        texts = [found.delta async for found in stream if found.type == "content.delta"]
        final = await stream.get_final_completion()
    assert "".join(texts) == ANSWER
    assert final.choices[0].message.content == ANSWER
    assert final.usage is not None
    assert final.usage.total_tokens == 790


async def test_thinking_is_told_to_who_asks_for_it(served: Served) -> None:
    """C-18: and none of it once the answer has begun."""
    late = event(4, "artifact_created", message="outbox/result.md")
    served.teams.plan(
        done(
            event(2, "task_decomposed", message="Two parts."),
            event(3, "model_call", message="m"),
            *words("Use three "),
            late,
        )
    )
    chunks = payloads(await served.lines(ask(hortator_reasoning=True)))
    thoughts = [chunk["choices"][0]["delta"].get("reasoning_content") for chunk in chunks]
    assert [thought for thought in thoughts if thought] == ["Two parts.\n"]
    assert content(chunks) == ANSWER


async def test_a_stream_opens_at_once_and_stays_alive_while_agents_work(served: Served) -> None:
    """R-000-43, C-17: also where the order itself takes its time."""
    run = done("work")
    run.slow = "submit"
    served.teams.plan(run)
    async with (
        httpx2.AsyncClient(timeout=30) as client,
        client.stream(
            "POST",
            f"{served.base}/v1/chat/completions",
            json=ask(stream=True),
            headers={"authorization": f"Bearer {served.key}"},
        ) as reply,
    ):
        assert reply.status_code == 200
        assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
        id = reply.headers["x-hortator-task-id"]
        lines = reply.aiter_lines()
        assert await anext(lines) == ": hortator"
        run.gate("submit").set()
        while not (line := await anext(lines)).startswith("data: "):
            pass
        assert json.loads(line[6:])["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        while await anext(lines) != ": keep-alive":
            pass
        run.gate("work").set()
        rest = [line async for line in lines]
        assert "data: [DONE]" in rest
        assert list(served.teams.runs) == [id]


async def test_the_head_of_a_stream_names_the_task(served: Served) -> None:
    served.teams.plan(done())
    reply = await served.post(ask(stream=True))
    [id] = served.teams.runs
    assert reply.headers["x-hortator-task-id"] == id
    assert reply.headers["x-hortator-route"].startswith("complex;")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_cancels_the_tree(served: Served, stream: bool) -> None:
    """Within a second; nobody follows the tree any more."""
    run = served.teams.plan(done("work"))
    asking = asyncio.create_task(served.post(ask(stream=stream)))
    await run.at("work").wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert run.task is not None
    id = run.task.id
    await eventually(lambda: served.teams.cancelled == [id], SEEN_WITHIN)
    await eventually(lambda: served.teams.followers == 0)


async def test_a_client_that_hangs_up_before_its_order_is_taken_cancels_it_all_the_same(served: Served) -> None:
    run = done("work")
    run.slow = "submit"
    served.teams.plan(run)
    asking = asyncio.create_task(served.post(ask()))
    await run.at("submit").wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    run.gate("submit").set()
    await eventually(lambda: len(served.teams.cancelled) == 1)


# --- other dialects ----------------------------------------------------------------------------------------------------------


async def test_a_team_answers_in_the_dialect_of_responses(served: Served) -> None:
    served.teams.plan(done())
    client = served.openai()
    response = await client.responses.create(model=ROLE, input=COMPLEX, instructions="Be brief.")
    assert response.output_text == ANSWER
    assert response.usage is not None
    assert response.usage.total_tokens == 790
    [order] = served.teams.orders
    assert order.source == "responses"
    assert [message["role"] for message in order.messages] == ["system", "user"]
    served.teams.plan(done(event(2, "task_decomposed", message="m"), *words("Use three ", "services")))
    async with client.responses.stream(model=ROLE, input=COMPLEX) as stream:
        types = [item.type async for item in stream]
        final = await stream.get_final_response()
    assert final.output_text == ANSWER
    assert types.count("response.output_text.delta") == 3
    assert types[-1] == "response.completed"
    with pytest.raises(openai.BadRequestError, match="background"):
        await client.responses.create(model=ROLE, input=COMPLEX, background=True)


async def test_a_teams_response_is_kept_and_can_be_gone_on_from(served: Served, upstream: Upstream) -> None:
    served.teams.plan(done())
    client = served.openai()
    first = await client.responses.create(model=ROLE, input=COMPLEX)
    served.teams.plan(done(content="Second."))
    second = await client.responses.create(
        model=ROLE, input=COMPLEX, previous_response_id=first.id, extra_body={"hortator_mode": "standard"}
    )
    assert second.output_text == "Second."
    assert [message["role"] for message in served.teams.orders[1].messages] == ["user", "assistant", "user"]


async def test_a_team_answers_in_the_dialect_of_messages(served: Served) -> None:
    client = served.anthropic()
    asked: dict[str, Any] = {
        "max_tokens": 1000,
        "system": "Be brief.",
        "messages": [{"role": "user", "content": COMPLEX}],
    }
    served.teams.plan(done())
    message = await client.messages.create(model=f"claude-hortator-{ROLE}", **asked)
    assert message.content[0].type == "text"
    assert message.content[0].text == ANSWER
    assert (message.stop_reason, message.usage.output_tokens) == ("end_turn", 90)
    served.teams.plan(done(*words("Use three ", "services")))
    async with client.messages.stream(model=ROLE, **asked) as stream:
        assert "".join([text async for text in stream.text_stream]) == ANSWER
    served.teams.plan(Run([event(1, "failed", message="No model answers.")]))
    with pytest.raises(anthropic.APIStatusError) as failed:
        await client.messages.create(model=ROLE, **asked)
    assert failed.value.status_code == 502
    counted = await client.messages.count_tokens(model=ROLE, messages=[{"role": "user", "content": COMPLEX}])
    assert counted.input_tokens > 20
    models = await client.models.list(limit=100)
    assert "claude-hortator-hortator/editor" in [model.id for model in models.data]


async def test_a_simple_request_in_another_dialect_is_one_call_with_the_roles_words(
    served: Served, upstream: Upstream
) -> None:
    marks = upstream.plan("ok"), upstream.plan("ok")
    await served.openai().responses.create(
        model=ROLE, input=SIMPLE, instructions="Be brief.", user=marks[0], store=False
    )
    client = served.anthropic()
    await client.messages.create(
        model=ROLE,
        max_tokens=1000,
        system="Be brief.",
        messages=[{"role": "user", "content": SIMPLE}],
        metadata={"user_id": marks[1]},
    )
    for mark in marks:
        first = (await sent(upstream, mark))["messages"][0]
        assert first["content"].startswith("You are a senior software engineer.")
        assert first["content"].endswith("\n\nBe brief.")


async def test_roles_answer_chats_only(served: Served) -> None:
    reply = await served.post({"model": ROLE, "input": "x"}, "/v1/embeddings")
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "unsupported_by_model")
