"""The official Python client, unchanged, against the gateway: R-000-54 and R-003-2 in the flesh."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import openai
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from tests.gateway import MODEL, PAIR, REFUSED, Gateway
from tests.upstream.process import Upstream
from tests.upstream.script import PIECES, TEXT, Script, completion, dump, reply

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Salve!"}]
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=gateway.key, base_url=f"http://127.0.0.1:{gateway.port}/v1", max_retries=0) as opened:
        yield opened


@pytest_asyncio.fixture
async def async_client(gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        api_key=gateway.key, base_url=f"http://127.0.0.1:{gateway.port}/v1", max_retries=0
    ) as opened:
        yield opened


def test_a_chat(client: openai.OpenAI, upstream: Upstream) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, user=upstream.plan("ok"))
    assert answer.choices[0].message.content == TEXT
    assert answer.usage is not None
    assert answer.usage.total_tokens == 18
    assert answer._request_id


def test_a_streamed_chat(client: openai.OpenAI, upstream: Upstream) -> None:
    with client.chat.completions.create(model=MODEL, messages=HELLO, user=upstream.plan("ok"), stream=True) as stream:
        pieces = [chunk.choices[0].delta.content for chunk in stream]
    assert [piece for piece in pieces if piece] == list(PIECES)


def test_a_streamed_chat_with_usage(client: openai.OpenAI, upstream: Upstream) -> None:
    with client.chat.completions.create(
        model=MODEL, messages=HELLO, user=upstream.plan("ok"), stream=True, stream_options={"include_usage": True}
    ) as stream:
        last = list(stream)[-1]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 7


async def test_many_chats_at_once_each_get_their_own_answer(
    async_client: openai.AsyncOpenAI, upstream: Upstream
) -> None:
    marks = await asyncio.to_thread(lambda: [upstream.plan(_says(f"answer {number}")) for number in range(50)])
    answers = await asyncio.gather(
        *(async_client.chat.completions.create(model=PAIR, messages=HELLO, user=mark) for mark in marks)
    )
    assert [answer.choices[0].message.content for answer in answers] == [f"answer {number}" for number in range(50)]
    seen = await asyncio.to_thread(lambda: [len(upstream.seen(mark)) for mark in marks])
    assert seen == [1] * 50


def _says(text: str) -> Script:
    return reply(200, dump(completion({"role": "assistant", "content": text})))


async def test_an_asynchronous_stream(async_client: openai.AsyncOpenAI, upstream: Upstream) -> None:
    mark = await asyncio.to_thread(upstream.plan, "split")
    async with await async_client.chat.completions.create(
        model=MODEL, messages=HELLO, user=mark, stream=True
    ) as stream:
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == TEXT


async def test_cancelling_an_asynchronous_call_cancels_the_upstream(
    async_client: openai.AsyncOpenAI, upstream: Upstream
) -> None:
    mark = await asyncio.to_thread(upstream.plan, "hang")
    task = asyncio.create_task(async_client.chat.completions.create(model=MODEL, messages=HELLO, user=mark))
    await asyncio.to_thread(upstream.wait, mark)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(upstream.wait, mark, "aborted")


def test_a_tool_call_and_its_result(client: openai.OpenAI, upstream: Upstream) -> None:
    first = client.chat.completions.create(model=MODEL, messages=HELLO, tools=[WEATHER], user=upstream.plan("tools"))
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls is not None
    [call] = message.tool_calls
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": "Köln"}
    mark = upstream.plan("ok")
    second = client.chat.completions.create(
        model=MODEL,
        messages=[
            *HELLO,
            {
                "role": "assistant",
                "tool_calls": [{"id": call.id, "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        ],
        user=mark,
    )
    assert second.choices[0].message.content == TEXT
    assert upstream.wait(mark)[0].json["messages"][2] == {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}


def test_a_streamed_tool_call(client: openai.OpenAI, upstream: Upstream) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=HELLO, tools=[WEATHER], user=upstream.plan("tools")
    ) as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.arguments == '{"city":"Köln"}'


def test_the_models(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert {MODEL, PAIR, "one/deep/name@v1"} <= set(names)
    for name in (MODEL, PAIR, "one/deep/name@v1"):
        assert client.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("one/unheard-of")


@pytest.mark.parametrize(
    ("model", "scenario", "error", "code"),
    [
        (MODEL, "status_400", openai.BadRequestError, "upstream_400"),
        (MODEL, "status_401", openai.InternalServerError, "upstream_auth_failed"),
        (MODEL, "status_404", openai.NotFoundError, "upstream_404"),
        (MODEL, "status_422", openai.UnprocessableEntityError, "upstream_422"),
        (MODEL, "status_429", openai.RateLimitError, "upstream_429"),
        (MODEL, "status_500", openai.InternalServerError, "upstream_error"),
        (MODEL, "status_503", openai.InternalServerError, "upstream_503"),
        (REFUSED, "ok", openai.InternalServerError, "upstream_connect_failed"),
        ("nobody/x", "ok", openai.NotFoundError, "model_not_found"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_every_error_arrives_as_the_clients_own_class(
    client: openai.OpenAI,
    upstream: Upstream,
    model: str,
    scenario: str,
    error: type[openai.APIStatusError],
    code: str,
    stream: bool,
) -> None:
    with pytest.raises(error) as raised:
        client.chat.completions.create(model=model, messages=HELLO, user=upstream.plan(scenario), stream=stream)
    assert raised.value.code == code
    assert raised.value.request_id


def test_a_bad_key_is_an_authentication_error(gateway: Gateway) -> None:
    with (
        openai.OpenAI(
            api_key="hrt_sk_wrong", base_url=f"http://127.0.0.1:{gateway.port}/v1", max_retries=0
        ) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


@pytest.mark.parametrize("scenario", ["late_cut", "late_error_event", "late_malformed_event", "late_no_finish"])
def test_a_stream_that_breaks_raises_after_its_content(
    client: openai.OpenAI, upstream: Upstream, scenario: str
) -> None:
    seen: list[str | None] = []
    with client.chat.completions.create(
        model=MODEL, messages=HELLO, user=upstream.plan(scenario), stream=True
    ) as stream:
        deltas = (chunk.choices[0].delta.content for chunk in stream)
        with pytest.raises(openai.APIError):
            seen.extend(deltas)
    assert "".join(piece or "" for piece in seen) == PIECES[0]


def test_the_clients_own_retries_are_told_when_to_come_back(gateway: Gateway, upstream: Upstream) -> None:
    """Retry-After: 7 would make the client wait; with a retry at once it would find the upstream well again."""
    with openai.OpenAI(api_key=gateway.key, base_url=f"http://127.0.0.1:{gateway.port}/v1", max_retries=0) as client:
        with pytest.raises(openai.RateLimitError) as raised:
            client.chat.completions.create(model=MODEL, messages=HELLO, user=upstream.plan("status_429"))
        assert raised.value.response.headers["retry-after"] == "7"
        assert raised.value.response.headers["x-ratelimit-remaining-requests"] == "0"


def test_two_variables_are_all_a_program_needs(gateway: Gateway, upstream: Upstream) -> None:
    """R-000-54: OPENAI_BASE_URL and OPENAI_API_KEY, zero code changes."""
    program = (
        "import openai, sys\n"
        "answer = openai.OpenAI().chat.completions.create(\n"
        "    model=sys.argv[1], user=sys.argv[2], messages=[{'role': 'user', 'content': 'Salve!'}])\n"
        "sys.stdout.buffer.write(answer.choices[0].message.content.encode())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, MODEL, upstream.plan("ok")],
        env={
            "PATH": os.environ["PATH"],
            "OPENAI_BASE_URL": f"http://127.0.0.1:{gateway.port}/v1",
            "OPENAI_API_KEY": gateway.key,
        },
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.decode()) == (0, TEXT), done.stderr
