"""openai-python against the gateway: chat, tools, structured output, embeddings, completions, errors and retries.

Run by `make test-clients`, which sets OPENAI_BASE_URL and OPENAI_API_KEY; nothing else tells the client where it is (R-000-54).
"""

from __future__ import annotations

import json
import os
import uuid

import openai
import pytest
from pydantic import BaseModel

MODEL = os.environ["MODEL"]
HELLO = [{"role": "user", "content": "Salve, Hortator 🐝"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIME = {"type": "function", "function": {"name": "local_time", "parameters": {"type": "object", "properties": {}}}}


class Event(BaseModel):
    """What structured output must fit."""

    name: str
    attendees: list[str]
    year: int


@pytest.fixture
def client():
    with openai.OpenAI() as opened:
        yield opened


@pytest.fixture
async def async_client():
    async with openai.AsyncOpenAI() as opened:
        yield opened


def test_a_chat_and_its_usage(client):
    answer = client.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.choices[0].message.content == "You said: Salve, Hortator 🐝"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    assert answer._request_id


async def test_a_chat_asynchronously(async_client):
    answer = await async_client.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.choices[0].message.content == "You said: Salve, Hortator 🐝"


def test_a_stream_and_its_usage(client):
    chunks = list(
        client.chat.completions.create(model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == "You said: Salve, Hortator 🐝"
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens > 0


async def test_a_stream_asynchronously(async_client):
    stream = await async_client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
    assert text == "You said: Salve, Hortator 🐝"


def test_the_stream_helper(client):
    with client.chat.completions.stream(model=MODEL, messages=HELLO, tools=[]) as stream:
        kinds = {event.type for event in stream}
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert stream.get_final_completion().choices[0].message.content == "You said: Salve, Hortator 🐝"


def test_a_tool_and_the_answer_after_it(client):
    messages = [{"role": "user", "content": "What is the weather?"}]
    first = client.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL]).choices[0]
    [call] = first.message.tool_calls
    assert (first.finish_reason, call.function.name) == ("tool_calls", "weather")
    assert json.loads(call.function.arguments) == {"city": "a text"}
    messages += [first.message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    assert client.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL]).choices[0].message.content == (
        "The result is rain."
    )


def test_parallel_tools(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Call weather and local_time"}], tools=[TOOL, TIME]
    )
    calls = answer.choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["weather", "local_time"]
    assert len({call.id for call in calls}) == 2


def test_parallel_tools_in_a_stream(client):
    with client.chat.completions.stream(
        model=MODEL, messages=[{"role": "user", "content": "Call weather and local_time"}], tools=[TOOL, TIME]
    ) as stream:
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("weather", {"city": "a text"}),
        ("local_time", {}),
    ]


def test_a_tool_that_is_chosen(client):
    answer = client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        tools=[TOOL, TIME],
        tool_choice={"type": "function", "function": {"name": "local_time"}},
    )
    assert [call.function.name for call in answer.choices[0].message.tool_calls] == ["local_time"]


def test_structured_output(client):
    answer = client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Event)
    assert answer.choices[0].message.parsed == Event(name="🐝", attendees=["🐝"], year=1)


def test_structured_output_in_a_stream(client):
    with client.chat.completions.stream(model=MODEL, messages=HELLO, response_format=Event) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Event)


def test_a_tool_of_a_model_class(client):
    answer = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "Call the tool with 7"}],
        tools=[openai.pydantic_function_tool(Event)],
    )
    assert answer.choices[0].message.tool_calls[0].function.parsed_arguments.year == 7


def test_embeddings_as_base64_and_as_floats(client):
    texts = ["salve", "vale"]
    packed = client.embeddings.create(model=MODEL, input=texts)  # the client asks for base64 by itself
    plain = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    assert [len(one.embedding) for one in packed.data] == [32, 32]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    assert packed.data[0].embedding != packed.data[1].embedding


def test_completions(client):
    answer = client.completions.create(model=MODEL, prompt="def add(a, b):", suffix="\n", max_tokens=20)
    assert answer.object == "text_completion" and answer.choices[0].text
    stream = client.completions.create(model=MODEL, prompt="def add(a, b):", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == answer.choices[0].text


def test_models(client):
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


@pytest.mark.parametrize("stream", [False, True])
def test_errors_have_their_class_and_code(client, stream):
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="no/such", messages=HELLO, stream=stream)
    assert unknown.value.code == "model_not_found" and unknown.value.request_id
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="hrt_wrong").chat.completions.create(model=MODEL, messages=HELLO, stream=stream)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=MODEL, messages="salve", stream=stream)


@pytest.mark.parametrize("stream", [False, True])
def test_a_busy_provider_is_tried_again_by_the_client(client, stream):
    messages = [{"role": "user", "content": f"Be busy once: {uuid.uuid4().hex}"}]
    answer = client.chat.completions.create(model=MODEL, messages=messages, stream=stream)
    text = (
        "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)
        if stream
        else answer.choices[0].message.content
    )
    assert text.startswith("You said: Be busy")


def test_a_busy_provider_is_told_when_the_client_does_not_retry(client):
    messages = [{"role": "user", "content": f"Be busy once: {uuid.uuid4().hex}"}]
    with pytest.raises(openai.RateLimitError) as busy:
        client.with_options(max_retries=0).chat.completions.create(model=MODEL, messages=messages)
    assert busy.value.code
