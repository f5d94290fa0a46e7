"""The official Python client at `/v1/responses`, in front of a provider that speaks only chat and one that speaks responses itself."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest
from openai.types.responses import FunctionToolParam, ResponseInputParam, ResponseItem

from tests.door import Connection, Door, Reply, head
from tests.gateway import Gateway, eventually, running_gateway
from tests.upstream.process import Upstream
from tests.upstream.script import (
    PIECES,
    TEXT,
    chunk,
    completion,
    dump,
    named_event,
    reply,
    response,
    response_events,
    sse,
)

CHAT = "one/scripted"
NATIVE = "own/scripted"
BOTH = pytest.mark.parametrize(("model", "scenario"), [(CHAT, "ok"), (NATIVE, "native_ok")], ids=["chat", "native"])
WEATHER: FunctionToolParam = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}
FILES = {"type": "file_search", "vector_store_ids": ["vs_1"]}
PATH = "/v1/responses"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Gateway]:
    with running_gateway(
        tmp_path_factory.mktemp("responses"),
        upstream,
        providers=[
            {"id": name, "base_url": upstream.base_url(name), "api_key": key, "models": ["scripted"], "responses": own}
            for name, key, own in (("one", "${ONE_KEY}", False), ("own", "${TWO_KEY}", True))
        ],
        models=[
            {
                "id": "mixed",
                "strategy": "ordered",
                "deployments": [{"provider": name, "model": "scripted"} for name in ("one", "own")],
            }
        ],
    ) as running:
        yield running


@pytest.fixture
def door(gateway: Gateway) -> Door:
    return gateway.door


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=gateway.key, base_url=f"http://127.0.0.1:{gateway.port}/v1", max_retries=0) as opened:
        yield opened


def ask(door: Door, upstream: Upstream, model: str, scenario: str, **fields: Any) -> Reply:
    document = {"model": model, "input": "Salve!", "user": upstream.plan(scenario), **fields}
    return door.call("POST", PATH, json.dumps(document).encode())


def text_of(item: ResponseItem) -> str:
    """The text of a user's message."""
    assert item.type == "message"
    [part] = item.content
    assert part.type == "input_text"
    return part.text


def sent(upstream: Upstream, mark: str) -> Any:
    """The body of the one request that the upstream saw."""
    [exchange] = upstream.seen(mark)
    return exchange.json


@BOTH
def test_a_response(client: openai.OpenAI, upstream: Upstream, model: str, scenario: str) -> None:
    answer = client.responses.create(model=model, input="Salve!", user=upstream.plan(scenario))
    assert answer.output_text == TEXT
    assert answer.status == "completed"
    assert answer.usage is not None
    assert answer.usage.total_tokens > 0
    assert answer.id.startswith("resp_")


@BOTH
def test_a_streamed_response(client: openai.OpenAI, upstream: Upstream, model: str, scenario: str) -> None:
    mark = upstream.plan(scenario)
    with client.responses.create(model=model, input="Salve!", user=mark, stream=True) as stream:
        events = list(stream)
    assert [event.delta for event in events if event.type == "response.output_text.delta"] == list(PIECES)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == TEXT


@BOTH
def test_the_clients_stream_helper_puts_the_answer_together(
    client: openai.OpenAI, upstream: Upstream, model: str, scenario: str
) -> None:
    with client.responses.stream(model=model, input="Salve!", user=upstream.plan(scenario)) as stream:
        assert [event.delta for event in stream if event.type == "response.output_text.delta"] == list(PIECES)
        assert stream.get_final_response().output_text == TEXT


def test_a_native_stream_passes_byte_for_byte(door: Door, upstream: Upstream) -> None:
    reply = ask(door, upstream, NATIVE, "native_ok", stream=True, store=False)
    sent = "".join(map(named_event, response_events()))
    assert re.sub(r"resp_\d{8}", "resp_upstream", reply.body.decode()) == sent


def test_a_native_answer_passes_byte_for_byte(door: Door, upstream: Upstream) -> None:
    body = ask(door, upstream, NATIVE, "native_ok").body.decode()
    assert re.sub(r"resp_\d{8}", "resp_upstream", body) == dump(response())


def test_a_native_provider_is_asked_in_the_clients_own_words(door: Door, upstream: Upstream) -> None:
    mark = upstream.plan("native_ok")
    document = {"model": NATIVE, "input": "Salve!", "user": mark, "tools": [{"type": "web_search"}], "x": 1}
    assert door.call("POST", PATH, json.dumps(document).encode()).status == 200
    assert sent(upstream, mark) == {**document, "model": "scripted"}
    [exchange] = upstream.seen(mark)
    assert exchange.target == "/own/v1/responses"


def test_parsed_output_of_a_schema(client: openai.OpenAI, upstream: Upstream) -> None:
    class City(pydantic.BaseModel):
        name: str

    mark = upstream.plan(reply(200, dump(completion({"role": "assistant", "content": '{"name":"Roma"}'}))))
    answer = client.responses.parse(model=CHAT, input="Where?", user=mark, text_format=City)
    assert answer.output_parsed == City(name="Roma")
    assert sent(upstream, mark)["response_format"]["json_schema"]["name"] == "City"


def test_a_tool_is_called_and_its_output_sent_back(client: openai.OpenAI, upstream: Upstream) -> None:
    conversation: ResponseInputParam = [{"role": "user", "content": "Weather?"}]
    with client.responses.stream(
        model=CHAT, input=conversation, tools=[WEATHER], user=upstream.plan("tools"), store=False
    ) as stream:
        answer = stream.get_final_response()
    [call] = [item for item in answer.output if item.type == "function_call"]
    assert json.loads(call.arguments) == {"city": "Köln"}
    mark = upstream.plan("ok")
    answered = client.responses.create(
        model=CHAT,
        input=[
            *conversation,
            *[item.model_dump(exclude_none=True) for item in answer.output],  # type: ignore[list-item]
            {"type": "function_call_output", "call_id": call.call_id, "output": "sun"},
        ],
        tools=[WEATHER],
        user=mark,
    )
    assert answered.output_text == TEXT
    messages = sent(upstream, mark)["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool"]
    assert messages[1]["tool_calls"][0]["id"] == messages[2]["tool_call_id"] == call.call_id


def test_reasoning_and_its_tokens_arrive(client: openai.OpenAI, upstream: Upstream) -> None:
    answer = client.responses.create(
        model=CHAT, input="?", reasoning={"effort": "low", "summary": "auto"}, user=upstream.plan("reasoning")
    )
    [thought] = [item for item in answer.output if item.type == "reasoning"]
    assert thought.summary[0].text == "Hmm."
    assert answer.usage is not None
    assert answer.usage.input_tokens_details.cached_tokens == 64
    assert answer.usage.output_tokens_details.reasoning_tokens == 30


@BOTH
def test_usage_is_recorded(gateway: Gateway, door: Door, upstream: Upstream, model: str, scenario: str) -> None:
    for stream in (False, True):
        reply = ask(door, upstream, model, scenario, stream=stream, store=False)
        row = gateway.row(reply.header("x-request-id") or "")
        assert row["operation"] == "responses"
        assert row["usage_source"] == "reported"
        assert row["complete"]


def test_a_deployment_that_cannot_do_what_is_asked_is_passed_over(door: Door, upstream: Upstream) -> None:
    reply = ask(door, upstream, "mixed", "native_ok", tools=[FILES])
    assert reply.status == 200
    assert reply.header("x-hortator-model") == "own/scripted"


def test_what_only_chat_can_be_asked_for_is_refused_clearly(door: Door, upstream: Upstream) -> None:
    reply = ask(door, upstream, CHAT, "ok", tools=[FILES])
    assert reply.status == 400
    assert reply.error["code"] == "unsupported_parameter"
    assert reply.error["param"] == "tools[0]"


@pytest.mark.parametrize(
    ("model", "scenario"),
    [(CHAT, "late_cut"), (CHAT, "late_error_event"), (NATIVE, "native_late_failure"), (NATIVE, "native_cut")],
)
def test_a_stream_that_breaks_ends_with_a_failed_response(
    gateway: Gateway, client: openai.OpenAI, upstream: Upstream, model: str, scenario: str
) -> None:
    with client.responses.create(model=model, input="?", user=upstream.plan(scenario), stream=True) as stream:
        events = list(stream)
    last = events[-1]
    assert last.type == "response.failed"
    assert last.response.status == "failed"
    assert last.response.error is not None
    assert last.sequence_number == len(events) - 1
    assert client.responses.retrieve(last.response.id).status == "failed"


@pytest.mark.parametrize(("model", "scenario"), [(CHAT, "early_error_event"), (NATIVE, "native_early_failure")])
def test_a_failure_before_the_first_word_has_its_status(
    door: Door, upstream: Upstream, model: str, scenario: str
) -> None:
    for stream in (False, True) if model == NATIVE else (True,):
        reply = ask(door, upstream, model, scenario, stream=stream)
        assert reply.status == 502
        assert reply.error["code"] == "upstream_error"


def test_a_hidden_failure_after_the_status_line_raises_in_the_client(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream
) -> None:
    home = tmp_path_factory.mktemp("impatient")
    mark = upstream.plan("slow_500")
    with (
        running_gateway(home, upstream, stream={"status_wait_ms": 0}) as gateway,
        openai.OpenAI(api_key=gateway.key, base_url=f"http://127.0.0.1:{gateway.port}/v1", max_retries=0) as client,
        client.responses.create(model=CHAT, input="?", user=mark, stream=True) as stream,
    ):
        upstream.release(mark)
        with pytest.raises(openai.APIError):
            list(stream)


# What is kept.


@BOTH
def test_a_kept_response_is_found_its_input_listed_and_deleted(
    client: openai.OpenAI, upstream: Upstream, model: str, scenario: str
) -> None:
    items: ResponseInputParam = [{"role": "user", "content": f"question {number}"} for number in range(3)]
    answer = client.responses.create(model=model, input=items, user=upstream.plan(scenario))
    found = client.responses.retrieve(answer.id)
    assert found.output_text == TEXT
    listed = client.responses.input_items.list(answer.id, limit=2)
    assert [text_of(item) for item in listed.data] == ["question 2", "question 1"]
    assert [text_of(item) for item in listed] == [f"question {number}" for number in (2, 1, 0)]
    oldest = client.responses.input_items.list(answer.id, order="asc", limit=1).data[0]
    assert text_of(oldest) == "question 0"
    client.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError) as gone:
        client.responses.retrieve(answer.id)
    assert gone.value.code == "response_not_found"


def test_a_streamed_response_is_kept_too(client: openai.OpenAI, upstream: Upstream) -> None:
    with client.responses.stream(model=CHAT, input="?", user=upstream.plan("ok")) as stream:
        answer = stream.get_final_response()
    assert client.responses.retrieve(answer.id).output_text == TEXT


def test_store_false_keeps_nothing(client: openai.OpenAI, upstream: Upstream) -> None:
    answer = client.responses.create(model=CHAT, input="?", user=upstream.plan("ok"), store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)
    with pytest.raises(openai.BadRequestError) as unknown:
        client.responses.create(model=CHAT, input="?", previous_response_id=answer.id)
    assert unknown.value.code == "previous_response_not_found"


def test_a_conversation_goes_on_from_the_response_before(client: openai.OpenAI, upstream: Upstream) -> None:
    previous = None
    for turn in range(4):
        mark = upstream.plan(reply(200, dump(completion({"role": "assistant", "content": f"answer {turn}"}))))
        answer = client.responses.create(
            model=CHAT, input=f"question {turn}", instructions=f"I{turn}", previous_response_id=previous, user=mark
        )
        assert answer.previous_response_id == previous
        previous = answer.id
    history = [text for turn in range(3) for text in (f"question {turn}", f"answer {turn}")]
    assert [message["content"] for message in sent(upstream, mark)["messages"]] == ["I3", *history, "question 3"]


def test_the_conversation_survives_a_restart(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> None:
    with running_gateway(tmp_path_factory.mktemp("restarted"), upstream) as gateway:
        first = ask(gateway.door, upstream, CHAT, "ok").json["id"]
        gateway.terminate()
        gateway.wait()
        gateway.start()
        mark = upstream.plan("ok")
        body = json.dumps({"model": CHAT, "input": "and?", "user": mark, "previous_response_id": first}).encode()
        assert gateway.door.call("POST", PATH, body).status == 200
        assert [message["content"] for message in sent(upstream, mark)["messages"]] == ["Salve!", TEXT, "and?"]


def test_another_tenant_finds_nothing(gateway: Gateway, door: Door, upstream: Upstream) -> None:
    id = ask(door, upstream, CHAT, "ok").json["id"]
    gateway.command("tenants", "create", "--config", str(gateway.config), "--namespace", "other", "--name", "Other")
    theirs = Door(gateway.port, gateway.new_key("theirs", "--tenant", "other"))
    assert theirs.call("GET", f"{PATH}/{id}").status == 404
    assert theirs.call("GET", f"{PATH}/{id}/input_items").status == 404
    assert theirs.call("DELETE", f"{PATH}/{id}").status == 404
    assert theirs.call("POST", f"{PATH}/{id}/cancel", b"{}").status == 404
    body = json.dumps({"model": CHAT, "input": "?", "previous_response_id": id}).encode()
    assert theirs.call("POST", PATH, body).error["code"] == "previous_response_not_found"
    assert door.call("GET", f"{PATH}/{id}").status == 200


def test_a_gateway_that_keeps_nothing_says_so(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> None:
    with running_gateway(tmp_path_factory.mktemp("forgetful"), upstream, responses={"store": False}) as gateway:
        answered = ask(gateway.door, upstream, CHAT, "ok")
        assert answered.json["store"] is False
        assert gateway.door.call("GET", f"{PATH}/{answered.json['id']}").error["code"] == "response_not_found"
        for field, value in (("previous_response_id", "resp_1"), ("background", True)):
            refused = ask(gateway.door, upstream, CHAT, "ok", **{field: value})
            assert (refused.error["code"], refused.error["param"]) == ("unsupported_parameter", field)


# In the background.


def background(door: Door, upstream: Upstream, model: str, mark: str, **fields: Any) -> Any:
    document = {"model": model, "input": "Salve!", "user": mark, "background": True, **fields}
    return door.call("POST", PATH, json.dumps(document).encode()).json


def finished(door: Door, id: str) -> Any:
    """The response once it is neither queued nor in progress."""

    def look() -> Any:
        found = door.call("GET", f"{PATH}/{id}").json
        return None if found["status"] in ("queued", "in_progress") else found

    return eventually(look, f"the end of {id}")


@BOTH
def test_a_background_response_is_done_without_its_client(
    door: Door, upstream: Upstream, model: str, scenario: str
) -> None:
    begun = background(door, upstream, model, upstream.plan(scenario), metadata={"a": "b"})
    assert begun["status"] == "queued"
    assert begun["background"] is True
    done = finished(door, begun["id"])
    assert done["id"] == begun["id"]
    assert done["status"] == "completed"
    assert done["output"][0]["content"][0]["text"] == TEXT
    assert done["background"] is True


def test_the_gateways_switches_stay_here_also_in_the_background(door: Door, upstream: Upstream) -> None:
    mark = upstream.plan("ok")
    begun = background(door, upstream, CHAT, mark, hortator_retry=False, hortator_fallback=False)
    assert finished(door, begun["id"])["status"] == "completed"
    assert not {"hortator_retry", "hortator_fallback", "background", "stream"} & sent(upstream, mark).keys()
    refused = ask(door, upstream, CHAT, "ok", background=True, hortator_retry="maybe")
    assert refused.error["param"] == "hortator_retry"


def test_what_headers_say_holds_in_the_background_too(gateway: Gateway, door: Door, upstream: Upstream) -> None:
    mark = upstream.plan("status_503", own="native_ok")
    document = {"model": "mixed", "input": "?", "user": mark, "background": True}
    headers = {"x_hortator_no_retry": "true", "x_hortator_task_type": "code"}
    begun = door.call("POST", PATH, json.dumps(document).encode(), **headers).json
    assert finished(door, begun["id"])["error"]["code"] == "upstream_503"
    assert len(upstream.seen(mark)) == 1
    assert eventually(lambda: [row for row in gateway.rows() if row["task_type"] == "code"], "its record")


def test_a_background_response_goes_on_from_the_response_before(door: Door, upstream: Upstream) -> None:
    first = ask(door, upstream, CHAT, "ok").json["id"]
    mark = upstream.plan("ok")
    begun = background(door, upstream, CHAT, mark, previous_response_id=first)
    assert finished(door, begun["id"])["previous_response_id"] == first
    assert [message["content"] for message in sent(upstream, mark)["messages"]] == ["Salve!", TEXT, "Salve!"]


def test_a_background_response_that_fails_says_why(door: Door, upstream: Upstream) -> None:
    done = finished(door, background(door, upstream, CHAT, upstream.plan("status_400"))["id"])
    assert done["status"] == "failed"
    assert done["error"]["code"] == "upstream_400"
    done = finished(door, background(door, upstream, "no/such", upstream.plan("ok"))["id"])
    assert done["error"]["code"] == "model_not_found"


def test_a_cancelled_background_response_stops_its_upstream_call(
    client: openai.OpenAI, door: Door, upstream: Upstream
) -> None:
    mark = upstream.plan("hang")
    begun = background(door, upstream, CHAT, mark)
    upstream.wait(mark)
    assert client.responses.cancel(begun["id"]).status == "cancelled"
    upstream.wait(mark, "aborted")
    assert client.responses.cancel(begun["id"]).status == "cancelled"
    assert client.responses.retrieve(begun["id"]).status == "cancelled"


def test_only_background_responses_can_be_cancelled(door: Door, upstream: Upstream) -> None:
    id = ask(door, upstream, CHAT, "ok").json["id"]
    assert door.call("POST", f"{PATH}/{id}/cancel", b"{}").error["code"] == "response_not_background"


def test_the_background_needs_the_store(door: Door, upstream: Upstream) -> None:
    refused = ask(door, upstream, CHAT, "ok", background=True, store=False)
    assert refused.status == 400
    assert refused.error["param"] == "store"


def test_a_background_response_can_be_followed_and_gone_on_with(client: openai.OpenAI, upstream: Upstream) -> None:
    mark = upstream.plan("slow_first_byte")
    with client.responses.create(model=CHAT, input="?", user=mark, background=True, stream=True) as stream:
        first = next(stream)
        assert first.type == "response.created"
        assert first.response.status == "queued"
        upstream.release(mark)
        rest = list(stream)
    assert [event.sequence_number for event in rest] == list(range(1, len(rest) + 1))
    assert rest[-1].type == "response.completed"
    assert rest[-1].response.output_text == TEXT
    with client.responses.retrieve(first.response.id, stream=True, starting_after=3) as again:
        assert list(again) == rest[3:]
    with client.responses.stream(response_id=first.response.id) as helped:
        assert helped.get_final_response().output_text == TEXT


def test_a_client_that_stops_following_does_not_stop_the_work(door: Door, upstream: Upstream) -> None:
    mark = upstream.plan("slow_first_byte")
    id = background(door, upstream, CHAT, mark)["id"]
    with Connection(door.port) as connection:
        connection.send(head("GET", f"{PATH}/{id}?stream=true", door.headers(None, {})))
        connection.read_head()
    upstream.release(mark)
    assert finished(door, id)["status"] == "completed"


@pytest.mark.parametrize("ending", ["terminate", "kill"])
def test_a_background_response_survives_the_end_of_its_process(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, ending: str
) -> None:
    with running_gateway(tmp_path_factory.mktemp(ending), upstream, server={"drain_seconds": 1}) as gateway:
        mark = upstream.plan("hang ok")
        begun = background(gateway.door, upstream, CHAT, mark)
        upstream.wait(mark)
        if ending == "kill":
            gateway.kill()
            _let_holds_run_out(gateway)
        else:
            gateway.terminate()
            gateway.wait()
        gateway.start()
        assert finished(gateway.door, begun["id"])["status"] == "completed"


def _let_holds_run_out(gateway: Gateway) -> None:
    """As if the time for which a dead process holds its work were over."""
    with sqlite3.connect(gateway.database()) as database:
        database.execute("update responses set held_until = '2026-01-01 00:00:00.000000'")


def test_too_many_background_responses_are_refused(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream
) -> None:
    with running_gateway(tmp_path_factory.mktemp("few"), upstream, responses={"background_max": 1}) as gateway:
        mark = upstream.plan("hang")
        begun = background(gateway.door, upstream, CHAT, mark)
        refused = ask(gateway.door, upstream, CHAT, "ok", background=True)
        assert refused.status == 429
        assert refused.error["code"] == "too_many_background_responses"
        assert gateway.door.call("POST", f"{PATH}/{begun['id']}/cancel", b"{}").json["status"] == "cancelled"


# The rest of the door.


def test_input_tokens_are_estimated(client: openai.OpenAI, door: Door, upstream: Upstream) -> None:
    counted = client.responses.input_tokens.count(model=CHAT, input="x" * 4000)
    assert counted.input_tokens == 1000
    id = ask(door, upstream, CHAT, "ok", input="y" * 4000).json["id"]
    more = client.responses.input_tokens.count(model=CHAT, input="x" * 4000, previous_response_id=id)
    assert more.input_tokens > 2000


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", PATH, 405, "method_not_allowed"),
        ("PUT", f"{PATH}/resp_1", 405, "method_not_allowed"),
        ("GET", f"{PATH}/resp_1", 404, "response_not_found"),
        ("GET", f"{PATH}/resp_1?stream=true", 404, "response_not_found"),
        ("GET", f"{PATH}/resp_1?stream=maybe", 400, "invalid_value"),
        ("GET", f"{PATH}/resp_1?stream=true&starting_after=x", 400, "invalid_value"),
        ("GET", f"{PATH}/resp_1/input_items", 404, "response_not_found"),
        ("POST", f"{PATH}/resp_1/cancel", 404, "response_not_found"),
        ("POST", f"{PATH}/compact", 404, "unsupported_endpoint"),
        ("POST", f"{PATH}/", 404, "unsupported_endpoint"),
        ("GET", f"{PATH}/resp_1/other", 404, "unknown_url"),
        ("GET", "/v1/responsesx", 404, "unknown_url"),
    ],
)
def test_other_requests_get_honest_errors(door: Door, method: str, path: str, status: int, code: str) -> None:
    reply = door.call(method, path, b"{}" if method != "GET" else None)
    assert (reply.status, reply.error["code"]) == (status, code)


@pytest.mark.parametrize(
    ("query", "param"), [("limit=0", "limit"), ("limit=x", "limit"), ("order=up", "order"), ("after=no", "after")]
)
def test_bad_pages_are_refused(door: Door, upstream: Upstream, query: str, param: str) -> None:
    id = ask(door, upstream, CHAT, "ok").json["id"]
    reply = door.call("GET", f"{PATH}/{id}/input_items?{query}")
    assert (reply.status, reply.error["param"]) == (400, param)


def test_without_a_key_nothing_is_told(gateway: Gateway) -> None:
    for method, path in (("POST", PATH), ("GET", f"{PATH}/resp_1"), ("POST", f"{PATH}/input_tokens")):
        assert Door(gateway.port, "hrt_sk_wrong").call(method, path, b"{}").status == 401


def test_a_body_in_this_dialect_at_the_chat_door_is_answered_with_a_chat_completion(
    door: Door, upstream: Upstream
) -> None:
    """Cursor sends such bodies for some models."""
    mark = upstream.plan("ok")
    items = [{"role": "user", "content": [{"type": "input_text", "text": "Salve!"}]}]
    document = {"model": CHAT, "input": items, "tools": [WEATHER], "user": mark, "text": {"verbosity": "low"}}
    answered = door.post(document)
    assert answered.text == TEXT
    assert sent(upstream, mark)["messages"] == [{"role": "user", "content": "Salve!"}]
    assert sent(upstream, mark)["tools"][0]["function"]["name"] == "weather"


def test_split_characters_arrive_whole(client: openai.OpenAI, upstream: Upstream) -> None:
    text = "🎉" * 20
    script = [
        ["send", "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"],
        ["split", f"data: {dump(chunk({'content': text}))}\n\n"],
        *sse(chunk({}, "stop"), "[DONE]"),
        ["end"],
    ]
    with client.responses.stream(model=CHAT, input="?", user=upstream.plan(script)) as stream:
        assert stream.get_final_response().output_text == text
