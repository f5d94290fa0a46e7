"""LiteLLM as a client of the gateway: the model is `openai/` and the gateway's id (R-000-56). Run by `make test-clients`."""

from __future__ import annotations

import asyncio
import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "true"  # read on import; the map is else fetched from the internet

import litellm
import pytest

GATEWAY = {"api_base": os.environ["OPENAI_BASE_URL"], "api_key": os.environ["OPENAI_API_KEY"]}
MODEL = f"openai/{os.environ['MODEL']}"
HELLO = [{"role": "user", "content": "Salve"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def test_a_chat_and_its_usage():
    answer = litellm.completion(model=MODEL, messages=HELLO, **GATEWAY)
    assert answer.choices[0].message.content == "You said: Salve"
    assert answer.usage.total_tokens > 0


def test_a_stream_and_its_usage():
    chunks = list(
        litellm.completion(model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}, **GATEWAY)
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "You said: Salve"
    assert any(getattr(chunk, "usage", None) for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
def test_tools(stream):
    messages = [{"role": "user", "content": "What is the weather?"}]
    answer = litellm.completion(model=MODEL, messages=messages, tools=[TOOL], stream=stream, **GATEWAY)
    if stream:
        answer = litellm.stream_chunk_builder(list(answer), messages=messages)
    [call] = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "a text"})
    messages += [answer.choices[0].message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    after = litellm.completion(model=MODEL, messages=messages, tools=[TOOL], **GATEWAY)
    assert after.choices[0].message.content == "The result is rain."


def test_embeddings():
    answer = litellm.embedding(model=MODEL, input=["salve", "vale"], **GATEWAY)
    assert [len(one["embedding"]) for one in answer.data] == [32, 32]


def test_a_router_with_the_gateway_as_one_of_its_models():
    router = litellm.Router(
        model_list=[{"model_name": "expert", "litellm_params": {"model": MODEL, **GATEWAY}}],
        routing_strategy="cost-based-routing",
    )
    answer = asyncio.run(router.acompletion(model="expert", messages=HELLO))  # this strategy is asynchronous only
    assert answer.choices[0].message.content == "You said: Salve"


def test_errors_have_their_class():
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="openai/no/such", messages=HELLO, **GATEWAY)
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(model=MODEL, messages=HELLO, **{**GATEWAY, "api_key": "hrt_wrong"})
