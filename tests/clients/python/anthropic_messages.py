"""anthropic-python against the gateway: any model speaks the messages dialect. Run by `make test-clients`.

ANTHROPIC_BASE_URL and ANTHROPIC_AUTH_TOKEN tell the client where it is; nothing else does.
"""

from __future__ import annotations

import os
import uuid

import anthropic
import pytest

MODEL = os.environ["MODEL"]
HELLO = [{"role": "user", "content": "Salve, Hortator 🐝"}]
SAID = "You said: Salve, Hortator 🐝"


def tool(name):
    return {
        "name": name,
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }


@pytest.fixture
def client():
    with anthropic.Anthropic() as opened:
        yield opened


def test_a_message_and_its_usage(client):
    answer = client.messages.create(model=MODEL, max_tokens=100, messages=HELLO, system="Be brief.")
    assert [block.text for block in answer.content] == [SAID]
    assert (answer.stop_reason, answer.role) == ("end_turn", "assistant")
    assert answer.usage.input_tokens > 0 and answer.usage.output_tokens > 0
    assert answer._request_id


def test_a_stream_and_its_usage(client):
    with client.messages.stream(model=MODEL, max_tokens=100, messages=HELLO) as stream:
        assert "".join(stream.text_stream) == SAID
        last = stream.get_final_message()
    assert last.stop_reason == "end_turn" and last.usage.output_tokens > 0


async def test_a_stream_asynchronously():
    async with (
        anthropic.AsyncAnthropic() as client,
        client.messages.stream(model=MODEL, max_tokens=100, messages=HELLO) as stream,
    ):
        assert await stream.get_final_text() == SAID


@pytest.mark.parametrize("stream", [False, True])
def test_parallel_tools_and_the_answer_after_them(client, stream):
    messages = [{"role": "user", "content": "Call weather and local_time"}]
    asked = {"model": MODEL, "max_tokens": 100, "tools": [tool("weather"), tool("local_time")]}
    if stream:
        with client.messages.stream(messages=messages, **asked) as opened:
            first = opened.get_final_message()
    else:
        first = client.messages.create(messages=messages, **asked)
    calls = [block for block in first.content if block.type == "tool_use"]
    assert first.stop_reason == "tool_use"
    assert [(call.name, call.input) for call in calls] == [
        ("weather", {"city": "a text"}),
        ("local_time", {"city": "a text"}),
    ]
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": "rain"} for call in calls]
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    after = client.messages.create(messages=messages, **asked)
    assert after.content[0].text == "The result is rain."


def test_a_tool_that_is_chosen(client):
    answer = client.messages.create(
        model=MODEL,
        max_tokens=100,
        messages=HELLO,
        tools=[tool("weather"), tool("local_time")],
        tool_choice={"type": "tool", "name": "local_time"},
    )
    assert [block.name for block in answer.content] == ["local_time"]


def test_counting_tokens(client):
    assert client.messages.count_tokens(model=MODEL, messages=HELLO).input_tokens > 0


def test_models(client):
    assert [model.id for model in client.models.list(limit=1000)]


def test_errors_have_their_class(client):
    with pytest.raises(anthropic.NotFoundError) as unknown:
        client.messages.create(model="no/such", max_tokens=100, messages=HELLO)
    assert unknown.value.body["type"] == "error" and unknown.value.request_id
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(auth_token="hrt_wrong").messages.create(model=MODEL, max_tokens=100, messages=HELLO)
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(model=MODEL, max_tokens=100, messages="salve")


def test_a_busy_provider_is_tried_again_by_the_client(client):
    def busy():
        return [{"role": "user", "content": f"Be busy once: {uuid.uuid4().hex}"}]

    answer = client.messages.create(model=MODEL, max_tokens=100, messages=busy())
    assert answer.content[0].text.startswith("You said: Be busy")
    with pytest.raises(anthropic.RateLimitError):
        client.with_options(max_retries=0).messages.create(model=MODEL, max_tokens=100, messages=busy())
