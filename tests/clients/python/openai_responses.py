"""openai-python's responses against the gateway, in front of a provider that speaks only chat. Run by `make test-clients`."""

from __future__ import annotations

import json
import os

import openai
import pytest
from pydantic import BaseModel

MODEL = os.environ["MODEL"]
TOOL = {
    "type": "function",
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Event(BaseModel):
    """What structured output must fit."""

    name: str
    year: int


@pytest.fixture
def client():
    with openai.OpenAI() as opened:
        yield opened


def test_a_response_and_its_usage(client):
    answer = client.responses.create(model=MODEL, input="Salve 🐝", instructions="Be brief.")
    assert (answer.output_text, answer.status) == ("You said: Salve 🐝", "completed")
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens > 0


def test_a_stream_and_its_life_cycle(client):
    events = list(client.responses.create(model=MODEL, input="Salve 🐝", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert (
        "".join(event.delta for event in events if event.type == "response.output_text.delta") == "You said: Salve 🐝"
    )
    assert events[-1].response.output_text == "You said: Salve 🐝"


def test_the_stream_helper_with_structured_output(client):
    with client.responses.stream(model=MODEL, input="Salve in 2026", text_format=Event) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_parsed == Event(name="a text", year=2026)


def test_structured_output(client):
    assert client.responses.parse(model=MODEL, input="In 2026", text_format=Event).output_parsed.year == 2026


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_and_the_answer_after_it(client, stream):
    asked = {"model": MODEL, "tools": [TOOL]}
    history = [{"role": "user", "content": "What is the weather?"}]
    if stream:
        with client.responses.stream(input=history, **asked) as opened:
            for _ in opened:
                pass
            first = opened.get_final_response()
    else:
        first = client.responses.create(input=history, **asked)
    [call] = [item for item in first.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "a text"})
    history += [*first.output, {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]
    after = client.responses.create(input=[*map(as_input, history)], **asked)
    assert after.output_text == "The result is rain."


def as_input(item):
    """What the client's own examples send back: the item as it came."""
    return item if isinstance(item, dict) else item.model_dump(exclude_none=True, exclude={"parsed_arguments"})


def test_a_conversation_that_the_gateway_keeps(client):
    first = client.responses.create(model=MODEL, input="What is the weather?", tools=[TOOL], store=True)
    [call] = [item for item in first.output if item.type == "function_call"]
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    after = client.responses.create(model=MODEL, previous_response_id=first.id, input=[output], tools=[TOOL])
    assert after.output_text == "The result is rain."
    assert client.responses.retrieve(first.id).id == first.id
    assert client.responses.input_items.list(first.id).data[0].content[0].text == "What is the weather?"
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_errors_have_their_class_and_code(client):
    with pytest.raises(openai.NotFoundError) as unknown:
        client.responses.create(model="no/such", input="Salve")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="hrt_wrong").responses.create(model=MODEL, input="Salve")
