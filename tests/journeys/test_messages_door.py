"""The messages door: Anthropic's client, unchanged, on models of every provider, and OpenAI's client on Claude models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import anthropic
import openai
import pytest
from anthropic.types import MessageParam, ToolParam

from tests.door import Door
from tests.gateway import MODEL, Gateway, eventually, running_gateway
from tests.upstream.messages import CALLS, MESSAGE_MODEL, SIGNATURE
from tests.upstream.process import Upstream
from tests.upstream.script import TEXT

NATIVE = "anthropic/claude-scripted-1"
"""A model at the provider that speaks the dialect itself."""
BOTH = pytest.mark.parametrize("model", [MODEL, NATIVE], ids=["translated", "native"])
HELLO: list[MessageParam] = [{"role": "user", "content": "Salve!"}]
WEATHER: ToolParam = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Gateway]:
    provider = {
        "id": "anthropic",
        "kind": "anthropic",
        "base_url": upstream.base_url("anthropic"),
        "api_key": "${ONE_KEY}",
        "models": [MESSAGE_MODEL, "claude-sonnet-5"],
    }
    unlisted = {**provider, "id": "claude", "base_url": upstream.base_url("claude")}
    del unlisted["models"]
    places = [
        {"provider": name, "model": MESSAGE_MODEL if name == "anthropic" else "scripted"}
        for name in ("anthropic", "one")
    ]
    models = [
        {"id": "claude-first", "strategy": "ordered", "deployments": places},
        {"id": "claude-last", "strategy": "ordered", "deployments": places[::-1]},
    ]
    with running_gateway(
        tmp_path_factory.mktemp("messages"), upstream, more_providers=[provider, unlisted], models=models
    ) as running:
        yield running


@pytest.fixture
def client(house: Gateway) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(api_key=house.key, base_url=f"http://127.0.0.1:{house.port}", max_retries=0) as opened:
        yield opened


@pytest.fixture
def chat_client(house: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=house.key, base_url=f"http://127.0.0.1:{house.port}/v1", max_retries=0) as opened:
        yield opened


def message(client: anthropic.Anthropic, model: str, mark: str, **more: Any) -> anthropic.types.Message:
    answer: anthropic.types.Message = client.messages.create(
        model=model, max_tokens=100, messages=HELLO, metadata={"user_id": mark}, **more
    )
    return answer


def streamed(client: anthropic.Anthropic, model: str, mark: str, **more: Any) -> anthropic.types.Message:
    with client.messages.stream(
        model=model, max_tokens=100, messages=HELLO, metadata={"user_id": mark}, **more
    ) as stream:
        return stream.get_final_message()


def post(house: Gateway, document: Any, path: str = "/v1/messages", **headers: str) -> Any:
    """A request as it is given, with the reply's status, headers and body."""
    return house.door.call("POST", path, json.dumps(document).encode(), **headers)


ASK = {"model": NATIVE, "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}


@BOTH
@pytest.mark.parametrize("ask", [message, streamed], ids=["whole", "streamed"])
def test_an_answer(client: anthropic.Anthropic, upstream: Upstream, model: str, ask: Any) -> None:
    answer = ask(client, model, upstream.plan("ok"))
    assert [block.text for block in answer.content] == [TEXT]
    assert (answer.type, answer.role, answer.stop_reason) == ("message", "assistant", "end_turn")
    expected = (20, 40, 64) if model == NATIVE else (11, 7, None)
    usage = answer.usage
    assert (usage.input_tokens, usage.output_tokens, usage.cache_read_input_tokens) == expected


@BOTH
@pytest.mark.parametrize("ask", [message, streamed], ids=["whole", "streamed"])
def test_calls_of_tools(client: anthropic.Anthropic, upstream: Upstream, model: str, ask: Any) -> None:
    answer = ask(client, model, upstream.plan("tools"), tools=[WEATHER])
    calls = [block for block in answer.content if block.type == "tool_use"]
    assert answer.stop_reason == "tool_use"
    assert [(call.name, call.input) for call in calls] == [
        ("weather", {"city": city}) for city in (("Köln", "Rom") if model == NATIVE else ("Köln",))
    ]


@pytest.mark.parametrize("ask", [message, streamed], ids=["whole", "streamed"])
def test_thinking_of_another_kind_of_model(client: anthropic.Anthropic, upstream: Upstream, ask: Any) -> None:
    answer = ask(client, MODEL, upstream.plan("reasoning"))
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert answer.content[0].thinking == "Hmm."
    assert (answer.usage.input_tokens, answer.usage.cache_read_input_tokens) == (36, 64)
    assert answer.usage.output_tokens_details.thinking_tokens == 30


@pytest.mark.parametrize("ask", [message, streamed], ids=["whole", "streamed"])
def test_signed_thinking_passes(client: anthropic.Anthropic, upstream: Upstream, ask: Any) -> None:
    answer = ask(client, NATIVE, upstream.plan("thinking"), thinking={"type": "adaptive"})
    assert answer.content[0].signature == SIGNATURE


def test_a_native_request_goes_out_as_it_came(client: anthropic.Anthropic, house: Gateway, upstream: Upstream) -> None:
    mark = upstream.plan("ok")
    document = ASK | {
        "metadata": {"user_id": mark},
        "system": [{"type": "text", "text": "s", "cache_control": {"x": 1}}],
    }
    reply = post(
        house, document, path="/v1/messages?beta=true", **{"anthropic-version": "2023-06-01", "anthropic-beta": "a,b"}
    )
    [seen] = upstream.wait(mark)
    assert seen.json == document | {"model": MESSAGE_MODEL}
    assert (seen.target, seen.header("anthropic-beta")) == ("/anthropic/v1/messages", "a,b")
    assert [value for name, value in seen.headers if name == "anthropic-version"] == ["2023-06-01"]
    assert seen.header("x-api-key") is not None
    assert seen.header("authorization") is None
    assert reply.status == 200
    assert reply.json["content"] == [{"type": "text", "text": TEXT}]
    assert reply.header("anthropic-ratelimit-requests-limit") == "50"
    assert reply.header("request-id") == reply.header("x-request-id")


def test_a_translated_request_holds_no_field_that_openai_refuses(house: Gateway, upstream: Upstream) -> None:
    mark = upstream.plan("ok")
    system = [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]
    assert post(house, ASK | {"model": MODEL, "metadata": {"user_id": mark}, "system": system}).status == 200
    [seen] = upstream.wait(mark)
    assert seen.json == {
        "model": "scripted",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}],
        "max_tokens": 9,
        "user": mark,
    }


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": "{key}"},
        {"authorization": "Bearer {key}"},
        {"x-api-key": "sk-other", "authorization": "Bearer {key}"},
    ],
)
def test_either_credential_is_taken(house: Gateway, upstream: Upstream, headers: dict[str, str]) -> None:
    told: dict[str, str | None] = {"authorization": None}
    told |= {name: value.format(key=house.key) for name, value in headers.items()}
    document = ASK | {"metadata": {"user_id": upstream.plan("ok")}}
    assert house.door.call("POST", "/v1/messages", json.dumps(document).encode(), **told).status == 200


@pytest.mark.parametrize(
    ("key", "raised"), [("hrt_sk_wrong", anthropic.AuthenticationError), ("sk-x", anthropic.AuthenticationError)]
)
def test_a_wrong_key(house: Gateway, key: str, raised: type[anthropic.APIStatusError]) -> None:
    base_url = f"http://127.0.0.1:{house.port}"
    with anthropic.Anthropic(api_key=key, base_url=base_url, max_retries=0) as client, pytest.raises(raised) as caught:
        message(client, MODEL, "m")
    assert caught.value.type == "authentication_error"
    assert caught.value.request_id


@BOTH
@pytest.mark.parametrize(
    ("scenario", "status", "kind"),
    [
        ("status_400", 400, "invalid_request_error"),
        ("status_401", 502, "api_error"),
        ("status_429", 429, "rate_limit_error"),
        ("status_529", 529, "overloaded_error"),
        ("html_200", 502, "api_error"),
    ],
)
@pytest.mark.parametrize("ask", [message, streamed], ids=["whole", "streamed"])
def test_errors_of_providers(
    client: anthropic.Anthropic, upstream: Upstream, model: str, scenario: str, status: int, kind: str, ask: Any
) -> None:
    with pytest.raises(anthropic.APIStatusError) as caught:
        ask(client, model, upstream.plan(scenario))
    assert (caught.value.status_code, caught.value.type) == (status, kind)


def test_an_error_has_the_dialects_envelope(house: Gateway) -> None:
    reply = post(house, {"model": MODEL, "messages": HELLO})
    assert reply.status == 400
    assert reply.json == {
        "type": "error",
        "error": {
            "type": "invalid_request_error",
            "message": "Missing required parameter: 'max_tokens'.",
            "code": "missing_required_parameter",
            "param": "max_tokens",
        },
        "request_id": reply.header("request-id"),
    }


@pytest.mark.parametrize(
    ("model", "scenario"),
    [(MODEL, "late_error_event"), (MODEL, "late_cut"), (NATIVE, "late_error"), (NATIVE, "late_cut")],
)
def test_a_stream_that_breaks_ends_with_an_error_event(
    client: anthropic.Anthropic, upstream: Upstream, model: str, scenario: str
) -> None:
    with (
        client.messages.stream(
            model=model, max_tokens=9, messages=HELLO, metadata={"user_id": upstream.plan(scenario)}
        ) as stream,
        pytest.raises(anthropic.APIStatusError) as caught,
    ):
        said = [event.type for event in stream]
        assert "message_stop" not in said
    assert caught.value.type in ("api_error", "overloaded_error")


def test_an_error_event_before_any_content_has_its_status(client: anthropic.Anthropic, upstream: Upstream) -> None:
    with pytest.raises(anthropic.APIStatusError) as caught:
        streamed(client, NATIVE, upstream.plan("early_error"))
    assert caught.value.status_code == 529


async def test_a_client_that_hangs_up_cancels_the_upstream_call(house: Gateway, upstream: Upstream) -> None:
    mark = await asyncio.to_thread(upstream.plan, "hang")
    base_url = f"http://127.0.0.1:{house.port}"
    async with anthropic.AsyncAnthropic(api_key=house.key, base_url=base_url, max_retries=0) as client:
        call = client.messages.create(model=NATIVE, max_tokens=9, messages=HELLO, metadata={"user_id": mark})
        task = asyncio.create_task(call)
        await asyncio.to_thread(upstream.wait, mark)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.to_thread(upstream.wait, mark, "aborted")


async def test_a_client_that_hangs_up_while_tokens_are_counted_cancels_that_too(
    house: Gateway, upstream: Upstream
) -> None:
    mark = await asyncio.to_thread(upstream.plan, "hang")
    base_url = f"http://127.0.0.1:{house.port}"
    async with anthropic.AsyncAnthropic(api_key=house.key, base_url=base_url, max_retries=0) as client:
        asked = client.messages.count_tokens(model=NATIVE, messages=HELLO, extra_body={"user": mark})
        task = asyncio.create_task(asked)
        await asyncio.to_thread(upstream.wait, mark)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.to_thread(upstream.wait, mark, "aborted")


@pytest.mark.parametrize("alias", [f"claude-hortator-{MODEL}", f"anthropic/{MODEL}"])
def test_aliases_name_every_model(house: Gateway, upstream: Upstream, alias: str) -> None:
    reply = post(house, ASK | {"model": alias, "metadata": {"user_id": upstream.plan("ok")}})
    assert reply.header("x-hortator-model") == MODEL


def test_a_bare_claude_name_is_the_providers(house: Gateway, upstream: Upstream) -> None:
    reply = post(house, ASK | {"model": "claude-sonnet-5", "metadata": {"user_id": upstream.plan("ok")}})
    assert reply.header("x-hortator-model") == "anthropic/claude-sonnet-5"


def test_an_unknown_model(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        message(client, "claude-nothing", "m")
    assert caught.value.type == "not_found_error"


def test_tokens_are_counted_by_the_provider_or_estimated(client: anthropic.Anthropic) -> None:
    assert client.messages.count_tokens(model=NATIVE, messages=HELLO).input_tokens == 42
    long: list[MessageParam] = [{"role": "user", "content": "x" * 4000}]
    assert 1000 <= client.messages.count_tokens(model=MODEL, messages=long).input_tokens <= 1020


def test_models_in_pages(client: anthropic.Anthropic) -> None:
    listed = [model.id for model in client.models.list(limit=2)]
    assert len(listed) == len(set(listed)) > 4
    assert f"claude-hortator-{MODEL}" in listed
    assert NATIVE in listed
    assert all(id.startswith(("claude", "anthropic")) for id in listed)
    first = client.models.list(limit=1000)
    assert (first.has_more, first.first_id, first.last_id) == (False, listed[0], listed[-1])
    before = client.models.list(limit=2, before_id=listed[3])
    assert ([model.id for model in before.data], before.has_more) == (listed[1:3], True)


def test_one_model(client: anthropic.Anthropic) -> None:
    found = client.models.retrieve(f"claude-hortator-{MODEL}")
    assert (found.type, found.display_name) == ("model", MODEL)
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("claude-nothing")


def test_bad_pages_are_refused(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError):
        client.models.list(limit=0)
    with pytest.raises(anthropic.BadRequestError):
        client.models.list(after_id="nothing")


def test_openais_clients_still_see_their_list(chat_client: openai.OpenAI) -> None:
    assert NATIVE in [model.id for model in chat_client.models.list()]


def test_somebody_answers_at_the_root(house: Gateway) -> None:
    assert house.door.call("HEAD", "/", authorization=None).status == 200


@pytest.mark.parametrize("levels", [*range(900, 1000, 9), 5000])
def test_no_depth_of_a_body_breaks_the_gateway(house: Gateway, upstream: Upstream, levels: int) -> None:
    deep: Any = b'{"a":' * levels + b"1" + b"}" * levels
    mark = upstream.plan("ok").encode()
    body = b'{"model":"%b","max_tokens":9,"metadata":{"user_id":"%b"},"messages":[{"role":"assistant","content":[' % (
        MODEL.encode(),
        mark,
    )
    body += b'{"type":"tool_use","id":"t","name":"f","input":%b,"cache_control":%b}]}]}' % (deep, deep)
    reply = house.door.call("POST", "/v1/messages", body)
    assert reply.status == 200 or reply.json["error"]["code"] == "too_deep"


def test_a_request_that_one_provider_cannot_be_told_goes_to_one_that_can(
    house: Gateway, chat_client: openai.OpenAI, upstream: Upstream
) -> None:
    answer = chat_client.chat.completions.with_raw_response.create(
        model="claude-first", messages=[{"role": "user", "content": "Salve!"}], user=upstream.plan("ok"), seed=7
    )
    assert answer.headers["x-hortator-model"] == MODEL
    document = ASK | {"model": "claude-last", "metadata": {"user_id": upstream.plan("ok")}, "inference_geo": "eu"}
    assert post(house, document).header("x-hortator-model") == NATIVE


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_of_one_dialects_provider_is_answered_by_the_others(
    house: Gateway, upstream: Upstream, stream: bool
) -> None:
    mark = upstream.plan(anthropic="status_529", one="ok")
    reply = post(house, ASK | {"model": "claude-first", "metadata": {"user_id": mark}, "stream": stream})
    assert (reply.status, reply.header("x-hortator-model"), reply.header("x-hortator-attempts")) == (200, MODEL, "2")


def test_when_all_fail_the_attempts_are_told(house: Gateway, upstream: Upstream) -> None:
    mark = upstream.plan(anthropic="status_529", one="status_500")
    error = post(house, ASK | {"model": "claude-first", "metadata": {"user_id": mark}}).json["error"]
    assert (error["type"], error["code"]) == ("api_error", "all_deployments_failed")
    assert [(one["model"], one["status"]) for one in error["attempts"]] == [(NATIVE, 529), (MODEL, 500)]


def test_the_gateways_own_switches_work_here_too(house: Gateway, upstream: Upstream) -> None:
    mark = upstream.plan(anthropic="status_529", one="ok")
    document = ASK | {"model": "claude-first", "metadata": {"user_id": mark}, "hortator_retry": False}
    assert post(house, document).status == 529
    [seen] = upstream.wait(mark)
    assert "hortator_retry" not in seen.json


def test_the_models_that_a_provider_lists_are_served(house: Gateway, chat_client: openai.OpenAI) -> None:
    listed = f"claude/{MESSAGE_MODEL}"
    assert eventually(lambda: listed in [model.id for model in chat_client.models.list()], listed)
    assert house.door.call("GET", "/ready").json["providers"]["claude"] == {"state": "up", "code": None, "models": 1}


def test_limits_are_told_in_the_dialects_words(house: Gateway, upstream: Upstream) -> None:
    key = house.new_key("limited", "--limit", "2 requests/hour")
    door = Door(house.port, key)
    document = json.dumps(ASK | {"model": MODEL, "metadata": {"user_id": upstream.plan("ok")}}).encode()
    reply = door.call("POST", "/v1/messages", document)
    assert (
        reply.header("anthropic-ratelimit-requests-limit"),
        reply.header("anthropic-ratelimit-requests-remaining"),
    ) == ("2", "1")
    reset = reply.header("anthropic-ratelimit-requests-reset")
    assert reset is not None and reset.endswith("Z")
    door.call("POST", "/v1/messages", document)
    refused = door.call("POST", "/v1/messages", document)
    assert (refused.status, refused.json["error"]["type"]) == (429, "rate_limit_error")
    assert refused.header("anthropic-ratelimit-requests-remaining") == "0"


def test_a_translated_call_is_recorded_with_its_usage(house: Gateway, upstream: Upstream) -> None:
    reply = post(house, ASK | {"metadata": {"user_id": upstream.plan("ok")}})
    row = house.row(reply.header("x-request-id"))
    assert (row["operation"], row["input_tokens"], row["output_tokens"], row["cached_tokens"]) == (
        "messages",
        100,
        40,
        64,
    )


def test_a_provider_of_the_kind_has_anthropics_prices_whatever_its_id(house: Gateway, upstream: Upstream) -> None:
    document = ASK | {"model": "claude/claude-haiku-4-5", "metadata": {"user_id": upstream.plan("ok")}}
    row = house.row(post(house, document).header("x-request-id"))
    # 20 new, 64 cached and 16 written tokens of input and 40 of output, at 1, 0.10, 1.25 and 5 dollars a million.
    assert int(row["cost"]) * Decimal("1e-10") == Decimal("0.0002464")


def chat(client: openai.OpenAI, mark: str, **more: Any) -> Any:
    return client.chat.completions.create(
        model=NATIVE, messages=[{"role": "user", "content": "Salve!"}], user=mark, **more
    )


def test_openais_client_on_a_claude_model(chat_client: openai.OpenAI, upstream: Upstream) -> None:
    answer = chat(chat_client, upstream.plan("thinking"))
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].message.reasoning_content == "Hmm."
    assert answer.choices[0].message.thinking_blocks[0]["signature"] == SIGNATURE
    assert (answer.usage.prompt_tokens, answer.usage.prompt_tokens_details.cached_tokens) == (100, 64)


def test_openais_client_on_a_streaming_claude_model(chat_client: openai.OpenAI, upstream: Upstream) -> None:
    with chat_client.chat.completions.stream(
        model=NATIVE,
        messages=[{"role": "user", "content": "Salve!"}],
        user=upstream.plan("tools"),
        stream_options={"include_usage": True},
    ) as stream:
        for _ in stream:
            pass
        answer = stream.get_final_completion()
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert [(call.id, json.loads(call.function.arguments)) for call in calls] == [
        (call["id"], call["input"]) for call in CALLS
    ]
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.usage is not None and answer.usage.completion_tokens == 40
    assert answer.choices[0].message.thinking_blocks[0]["signature"] == SIGNATURE  # type: ignore[attr-defined]


def test_a_conversation_with_thinking_and_tools_comes_back_whole(
    chat_client: openai.OpenAI, upstream: Upstream
) -> None:
    said = chat(chat_client, upstream.plan("tools")).choices[0].message
    mark = upstream.plan("ok")
    results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in said.tool_calls]
    history = [{"role": "user", "content": "Salve!"}, said.model_dump(exclude_none=True), *results]
    chat_client.chat.completions.create(model=NATIVE, messages=history, user=mark)
    [seen] = upstream.wait(mark)
    assert [turn["role"] for turn in seen.json["messages"]] == ["user", "assistant", "user"]
    assert [block["type"] for block in seen.json["messages"][1]["content"]] == ["thinking", "tool_use", "tool_use"]
    assert [block["tool_use_id"] for block in seen.json["messages"][2]["content"]] == ["toolu_1", "toolu_2"]


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_claude_model_cannot_do_is_refused_by_name(chat_client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(chat_client, "m", seed=7, stream=stream)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "seed")


def test_errors_of_a_claude_model_are_openais_errors(chat_client: openai.OpenAI, upstream: Upstream) -> None:
    with pytest.raises(openai.RateLimitError) as caught:
        chat(chat_client, upstream.plan("status_429"))
    assert caught.value.message.endswith("'rate_limit_exceeded'}}") or caught.value.code == "rate_limit_exceeded"
    with pytest.raises(openai.APIError), chat(chat_client, upstream.plan("late_error"), stream=True) as stream:
        list(stream)
