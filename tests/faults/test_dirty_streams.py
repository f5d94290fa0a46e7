"""Streams as careless providers send them and networks cut them: the client gets clean chunks, with nothing lost.

The rules are those that real clients need: absent keys are absent and not null, the first chunk carries the role, every
choice and every tool delta has an index, content is "" rather than missing, usage only when asked for.
"""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.door import Door, content_of, events
from tests.gateway import MODEL
from tests.upstream.process import Upstream
from tests.upstream.scenarios import CLEAN, DIRTY_STREAMS, HUGE_CONTENT_BYTES
from tests.upstream.script import COMPLETION_ID, DATED_MODEL, TEXT

STREAMS = sorted({*CLEAN, *DIRTY_STREAMS} - {"chunked", "close_delimited"})
TOOL_STREAMS = {"tools", "null_tool_keys", "tools_without_index"}
NULLABLE = {"finish_reason", "usage", "logprobs"}


def text_of(scenario: str) -> str:
    """What a scenario's stream says."""
    if scenario in TOOL_STREAMS:
        return ""
    return {"huge_event": "x" * HUGE_CONTENT_BYTES, "extra_fields": "a"}.get(scenario, TEXT)


def chunks(door: Door, upstream: Upstream, scenario: str, **parameters: Any) -> list[dict[str, Any]]:
    """The chunks of a scenario's stream; fails unless it ends cleanly."""
    reply, blocks = door.stream(MODEL, upstream.plan(scenario), **parameters)
    assert reply.status == 200, reply
    found = list(events(iter(blocks)))
    assert found[-1] == "[DONE]", found[-1]
    assert found.count("[DONE]") == 1
    return found[:-1]


@pytest.mark.parametrize("scenario", STREAMS)
def test_every_stream_reaches_the_client_whole(door: Door, upstream: Upstream, scenario: str) -> None:
    assert content_of(chunks(door, upstream, scenario)) == text_of(scenario)


@pytest.mark.parametrize("scenario", STREAMS)
@pytest.mark.parametrize("usage", [False, True])
def test_every_chunk_obeys_the_encoder_rules(door: Door, upstream: Upstream, scenario: str, usage: bool) -> None:
    found = chunks(door, upstream, scenario, **({"stream_options": {"include_usage": True}} if usage else {}))
    for chunk in found:
        assert chunk["object"] == "chat.completion.chunk"
        assert isinstance(chunk["id"], str)
        assert isinstance(chunk["created"], int)
        assert isinstance(chunk["model"], str)
        assert "error" not in chunk
        assert isinstance(chunk["choices"], list)
        for choice in chunk["choices"]:
            check_choice(choice)
    assert {(chunk["id"], chunk["model"]) for chunk in found} == {(COMPLETION_ID, DATED_MODEL)}
    first = found[0]["choices"][0]["delta"]
    assert first["role"] == "assistant"
    assert first.get("content", "") is not None
    assert sum("role" in choice["delta"] for chunk in found for choice in chunk["choices"]) == 1
    finishes = [
        choice["finish_reason"] for chunk in found for choice in chunk["choices"] if choice.get("finish_reason")
    ]
    assert finishes == ["tool_calls" if scenario in TOOL_STREAMS else "stop"]
    reported = [chunk for chunk in found if chunk.get("usage")]
    assert bool(reported) == (usage and scenario not in ("no_usage", "no_done", "trailing_events"))
    if reported:
        assert reported[-1] == found[-1]
        assert reported[-1]["choices"] == []
        assert all(chunk["usage"] == reported[-1]["usage"] for chunk in reported)


def check_choice(choice: dict[str, Any]) -> None:
    """One choice, by the rules."""
    assert isinstance(choice["index"], int)
    nulls = {name for name, value in choice["delta"].items() if value is None}
    assert nulls <= NULLABLE, f"nulls in a delta: {nulls}"
    for call in choice["delta"].get("tool_calls", ()):
        assert isinstance(call["index"], int)
        assert None not in call.values()
        assert None not in call["function"].values()
        assert isinstance(call.get("id", ""), str)


@pytest.mark.parametrize("scenario", sorted(TOOL_STREAMS))
def test_tool_calls_come_together_from_their_pieces(door: Door, upstream: Upstream, scenario: str) -> None:
    calls = [
        call
        for chunk in chunks(door, upstream, scenario)
        for choice in chunk["choices"]
        for call in choice["delta"].get("tool_calls", ())
    ]
    assert {call["index"] for call in calls} == {0}
    assert [call["id"] for call in calls if "id" in call] == ["call_1"]
    assert [call["function"]["name"] for call in calls if "name" in call["function"]] == ["weather"]
    assert "".join(call["function"].get("arguments", "") for call in calls) == '{"city":"Köln"}'


@pytest.mark.parametrize("scenario", STREAMS)
def test_the_helper_of_openai_python_accepts_every_stream(door: Door, upstream: Upstream, scenario: str) -> None:
    """It fails on nulls, missing indices and missing choices; measured with openai-python 3.52."""
    with (
        openai.OpenAI(api_key=door.key, base_url=f"http://127.0.0.1:{door.port}/v1", max_retries=0) as client,
        client.chat.completions.stream(
            model=MODEL,
            messages=[{"role": "user", "content": "Salve!"}],
            user=upstream.plan(scenario),
            stream_options={"include_usage": True},
        ) as stream,
    ):
        for _ in stream:
            pass
        final = stream.get_final_completion()
    choice = final.choices[0]
    if scenario in TOOL_STREAMS:
        assert choice.message.tool_calls is not None
        assert [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls] == [
            ("call_1", "weather", '{"city":"Köln"}')
        ]
    else:
        assert choice.message.content == text_of(scenario)
    assert choice.finish_reason in ("stop", "tool_calls")


def test_reasoning_passes_through(door: Door, upstream: Upstream) -> None:
    found = chunks(door, upstream, "reasoning")
    assert "".join(c["choices"][0]["delta"].get("reasoning_content", "") for c in found) == "Hmm."


def test_unknown_fields_of_a_chunk_survive_as_they_were_written(door: Door, upstream: Upstream) -> None:
    _, blocks = door.stream(MODEL, upstream.plan("extra_fields"))
    assert any('"x_delta":1.0' in block and '"x_top":12345678901234567890' in block for block in blocks)


def test_nothing_follows_the_end_marker(door: Door, upstream: Upstream) -> None:
    found = chunks(door, upstream, "trailing_events")
    assert "after the end" not in content_of(found)
