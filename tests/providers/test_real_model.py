"""The embedded model itself: the real engine and the default model's real weights, as dispatch sees them.

Needs the extra `local` and the model's file: `HORTATOR_TEST_MODEL_HOME` names a home that has it, else the default home is
looked at. Small models vary: what is asserted is form, counts, and facts that this model never gets wrong.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from platformdirs import user_data_path

from hortator.call import Call, Deployment, ModelId, ProviderId, RequestId
from hortator.providers.base import Reply
from hortator.providers.local import LocalProvider
from hortator.providers.local_model import LocalModel, engine_installed
from hortator.providers.weights import DEFAULT, installed

HOME = Path(os.environ.get("HORTATOR_TEST_MODEL_HOME") or user_data_path("hortator"))
FILE = installed(DEFAULT, HOME / "models")
DEPLOYMENT = Deployment(id=f"local/{DEFAULT}", provider=ProviderId("local"), model=DEFAULT)

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.limit(120),
    pytest.mark.skipif(not engine_installed(), reason="no engine: pip install 'hortator[local]'"),
    pytest.mark.skipif(FILE is None, reason=f"no {DEFAULT} in {HOME}/models: run `hortator models pull {DEFAULT}`"),
]

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
            "required": ["city"],
        },
    },
}
CALCULATE = {
    "type": "function",
    "function": {
        "name": "calculate",
        "description": "Evaluate an arithmetic expression.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    },
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def provider(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalProvider]:
    model = LocalModel(FILE, DEFAULT, home=tmp_path_factory.mktemp("home"))
    await model.start()
    yield LocalProvider(model)
    assert model.in_flight == 0
    assert model.restarts == 0
    await model.stop()


async def send(provider: LocalProvider, said: str | list[Any], **more: Any) -> Reply:
    messages = [{"role": "user", "content": said}] if isinstance(said, str) else said
    body = {"model": DEPLOYMENT.id, "messages": messages, "temperature": 0, "seed": 1, **more}
    call = Call(
        id=RequestId("r"),
        operation="chat",
        model=ModelId(DEPLOYMENT.id),
        body=msgspec.json.decode(msgspec.json.encode(body), type=dict[str, msgspec.Raw]),
        stream=bool(more.get("stream")),
        wants_usage=False,
        started=0.0,
        received_at=0.0,
    )
    return await provider.send(call, DEPLOYMENT, asyncio.get_running_loop().time() + 100)


async def answer(provider: LocalProvider, said: str | list[Any], **more: Any) -> Any:
    reply = await send(provider, said, **more)
    try:
        document = json.loads(await reply.read())
    finally:
        reply.close()
    assert reply.status == 200, document
    usage = document["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    return document


async def stream(provider: LocalProvider, said: str | list[Any], **more: Any) -> list[Any]:
    reply = await send(provider, said, stream=True, **more)
    data = b""
    while (piece := await reply.next()) is not None:
        data += piece
    reply.close()
    payloads = [event.removeprefix("data: ") for event in data.decode().split("\n\n") if event.strip()]
    assert payloads.pop() == "[DONE]"
    return [json.loads(payload) for payload in payloads]


async def test_it_answers(provider: LocalProvider) -> None:
    document = await answer(provider, "What is the capital of France?")
    (choice,) = document["choices"]
    assert "Paris" in choice["message"]["content"]
    assert choice["finish_reason"] == "stop"
    assert document["model"] == DEFAULT


async def test_it_streams_the_same_answer_with_the_same_counts(provider: LocalProvider) -> None:
    whole = await answer(provider, "What is the capital of Italy?")
    chunks = await stream(provider, "What is the capital of Italy?")
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert len(chunks) > 5, "it came in one piece"
    for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert chunks[-1]["usage"][key] == whole["usage"][key]


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens"])
async def test_a_length_is_kept_to_the_token(provider: LocalProvider, key: str) -> None:
    document = await answer(provider, "Count from 1 to 200.", **{key: 7})
    assert document["usage"]["completion_tokens"] == 7
    assert document["choices"][0]["finish_reason"] == "length"


async def test_a_json_schema_is_kept(provider: LocalProvider) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    document = await answer(provider, "Invent a person.", response_format=wanted)
    person = json.loads(document["choices"][0]["message"]["content"])
    assert set(person) == {"name", "age"}
    assert isinstance(person["age"], int)


async def test_a_json_object_is_one(provider: LocalProvider) -> None:
    document = await answer(provider, "Describe a cat as JSON.", response_format={"type": "json_object"})
    assert isinstance(json.loads(document["choices"][0]["message"]["content"]), dict)


async def test_a_required_tool_is_called(provider: LocalProvider) -> None:
    document = await answer(provider, "Weather in Rome?", tools=[WEATHER, CALCULATE], tool_choice="required")
    (choice,) = document["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"])["city"] == "Rome"


async def test_a_named_tool_is_called_whatever_was_said(provider: LocalProvider) -> None:
    named = {"type": "function", "function": {"name": "calculate"}}
    document = await answer(provider, "Weather in Rome?", tools=[WEATHER, CALCULATE], tool_choice=named)
    (call,) = document["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "calculate"
    assert set(json.loads(call["function"]["arguments"])) == {"expression"}


async def test_auto_calls_a_tool_where_one_is_needed(provider: LocalProvider) -> None:
    chunks = await stream(provider, "What's the weather in Paris?", tools=[WEATHER, CALCULATE])
    deltas = [
        c["choices"][0]["delta"]["tool_calls"][0]
        for c in chunks
        if c["choices"] and "tool_calls" in c["choices"][0]["delta"]
    ]
    assert deltas[0]["function"]["name"] == "get_weather"
    assert json.loads("".join(delta["function"]["arguments"] for delta in deltas))["city"] == "Paris"
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == "tool_calls"


async def test_auto_answers_where_no_tool_is_needed(provider: LocalProvider) -> None:
    chunks = await stream(provider, "Hello!", tools=[WEATHER, CALCULATE])
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    assert "ello" in text
    assert "{" not in text
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == "stop"


async def test_a_tools_result_is_told(provider: LocalProvider) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "calculate", "arguments": '{"expression":"1234*5678"}'},
    }
    messages = [
        {"role": "user", "content": "How much is 1234*5678?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "7006652"},
    ]
    document = await answer(provider, messages, tools=[WEATHER, CALCULATE])
    assert "7006652" in document["choices"][0]["message"]["content"].replace(",", "")
    assert document["choices"][0]["finish_reason"] == "stop"


async def test_a_prompt_that_does_not_fit_is_refused_with_openais_code(provider: LocalProvider) -> None:
    reply = await send(provider, "word " * 6000, stream=True)
    error = json.loads(await reply.read())["error"]
    reply.close()
    assert (reply.status, error["code"]) == (400, "context_length_exceeded")


async def test_a_picture_is_refused_as_the_callers_mistake(provider: LocalProvider) -> None:
    picture = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]
    reply = await send(provider, [{"role": "user", "content": picture}])
    error = json.loads(await reply.read())["error"]
    reply.close()
    assert (reply.status, error["code"]) == (400, "unsupported_content")


async def test_a_stream_that_is_closed_frees_its_slot(provider: LocalProvider) -> None:
    """Two slots, both taken by long answers that nobody reads on: the next call is served all the same."""
    for _ in range(2):
        reply = await send(provider, "Count from 1 to 10000.", stream=True, max_tokens=4000)
        assert await reply.next()
        reply.close()
    async with asyncio.timeout(20):
        assert (await answer(provider, "Say hi.", max_tokens=5))["choices"]
