"""Embeddings, completions and moderations through the door: passed on, put right, and refused where a model cannot."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.door import Door
from tests.gateway import MODEL, PAIR, Gateway
from tests.upstream.process import Upstream
from tests.upstream.script import Script, dump, event, reply, stream_head

VECTOR = [0.5, -1.25, 3.0]
ENCODED = base64.b64encode(struct.pack("<3f", *VECTOR)).decode()


def vectors(embedding: Any, **more: Any) -> Script:
    """A provider's reply."""
    entry = {"object": "embedding", "index": 0, "embedding": embedding}
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    return reply(200, dump({"object": "list", "model": "dated", "data": [entry], "usage": usage} | more))


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=gateway.key, base_url=f"http://127.0.0.1:{gateway.port}/v1", max_retries=0) as opened:
        yield opened


@pytest.mark.parametrize("sent", [VECTOR, ENCODED])
@pytest.mark.parametrize("asked", ["float", "base64"])
def test_vectors_come_in_the_encoding_that_was_asked_for(door: Door, upstream: Upstream, sent: Any, asked: str) -> None:
    mark = upstream.plan(vectors(sent))
    body = {"model": MODEL, "input": "a", "encoding_format": asked, "user": mark}
    answer = door.call("POST", "/v1/embeddings", dump(body).encode())
    assert answer.status == 200, answer
    assert answer.json["data"][0]["embedding"] == (VECTOR if asked == "float" else ENCODED)
    assert upstream.wait(mark)[0].target.endswith("/embeddings")


def test_the_official_client_reads_vectors_and_the_ledger_counts_them(
    gateway: Gateway, client: openai.OpenAI, upstream: Upstream
) -> None:
    raw = client.embeddings.with_raw_response.create(model=MODEL, input=["a", "b"], user=upstream.plan(vectors(VECTOR)))
    assert raw.parse().data[0].embedding == VECTOR
    row = gateway.row(raw.headers["x-request-id"])
    assert (row["operation"], row["input_tokens"], row["status"]) == ("embeddings", 3, 200)


@pytest.mark.parametrize("given", ["text", ["a", "b"], [1, 2, 3], [[1, 2], [3]]])
def test_every_form_of_input_is_passed_on(door: Door, upstream: Upstream, given: Any) -> None:
    mark = upstream.plan(vectors(VECTOR))
    body = {"model": MODEL, "input": given, "user": mark, "dimensions": 3, "of_tomorrow": 1}
    assert door.call("POST", "/v1/embeddings", dump(body).encode()).status == 200
    sent = upstream.wait(mark)[0].json
    assert (sent["input"], sent["dimensions"], sent["of_tomorrow"]) == (given, 3, 1)


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"input": []}, "empty_array", "input"),
        ({"input": ""}, "invalid_value", "input"),
        ({"input": ["a", 1]}, "invalid_type", "input"),
        ({"input": ["a"] * 2049}, "invalid_value", "input"),
        ({"input": None}, "invalid_type", "input"),
        ({"encoding_format": "hex"}, "invalid_value", "encoding_format"),
        ({"dimensions": 0}, "invalid_value", "dimensions"),
    ],
)
def test_a_bad_request_for_embeddings_is_refused(door: Door, changes: dict[str, Any], code: str, param: str) -> None:
    answer = door.call("POST", "/v1/embeddings", dump({"model": MODEL, "input": "a"} | changes).encode())
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, code, param)


def test_a_reply_without_vectors_is_tried_elsewhere(door: Door, upstream: Upstream) -> None:
    mark = upstream.plan(one=reply(200, dump({"choices": []})), two=vectors(VECTOR))
    answer = door.call("POST", "/v1/embeddings", dump({"model": PAIR, "input": "a", "user": mark}).encode())
    assert (answer.status, answer.header("x-hortator-attempts")) == (200, "2")


def text(said: str, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """One chunk of a text completion."""
    choice = {"index": 0, "text": said, "finish_reason": finish, "logprobs": None}
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "dated", "choices": [choice]} | more


USAGE = {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}


def test_a_completion_with_a_suffix_is_passed_on(client: openai.OpenAI, upstream: Upstream) -> None:
    mark = upstream.plan(reply(200, dump(text(" b", "stop", usage=USAGE))))
    answer = client.completions.create(model=MODEL, prompt="a +", suffix="\n", user=mark)
    assert answer.choices[0].text == " b"
    sent = upstream.wait(mark)[0]
    assert sent.target.endswith("/completions")
    assert sent.json["suffix"] == "\n"


@pytest.mark.parametrize("wanted", [True, False])
def test_a_streamed_completion_tells_its_usage_only_when_asked(
    gateway: Gateway, client: openai.OpenAI, upstream: Upstream, wanted: bool
) -> None:
    usage = {"choices": [], "object": "text_completion", "id": "cmpl-1", "created": 1, "model": "dated", "usage": USAGE}
    events = [text("mün"), text("de 🎉", "stop"), usage, "[DONE]"]
    script: Script = [stream_head(), *(["split", event(each)] for each in events), ["end"]]
    options: Any = {"stream_options": {"include_usage": True}} if wanted else {}
    with client.completions.with_streaming_response.create(
        model=MODEL, prompt="a", stream=True, user=upstream.plan(script), **options
    ) as raw:
        id = raw.headers["x-request-id"]
        chunks = list(raw.parse())
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "münde 🎉"
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == ([6] if wanted else [])
    assert gateway.row(id)["output_tokens"] == 2


def test_a_cut_completion_stream_is_an_error_and_not_an_end(client: openai.OpenAI, upstream: Upstream) -> None:
    script: Script = [stream_head(), ["chunk", event(text("half"))], ["end"]]
    with pytest.raises(openai.APIError) as caught:
        list(client.completions.create(model=MODEL, prompt="a", stream=True, user=upstream.plan(script)))
    assert caught.value.code == "upstream_truncated_stream"


def test_a_moderation_is_passed_on(client: openai.OpenAI, upstream: Upstream) -> None:
    result = {"flagged": True, "categories": {}, "category_scores": {}, "category_applied_input_types": {}}
    mark = upstream.plan(reply(200, dump({"id": "modr-1", "model": "dated", "results": [result]})))
    answer = client.moderations.create(model=MODEL, input="x", extra_body={"user": mark})
    assert answer.results[0].flagged


def test_a_moderation_that_names_no_model_asks_for_the_documented_default(door: Door) -> None:
    answer = door.call("POST", "/v1/moderations", b'{"input":"x"}')
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert "omni-moderation-latest" in answer.error["message"]


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/audio/speech", "/v1/assistants", "/v1/uploads/x"])
def test_documented_endpoints_that_are_not_served_say_so(door: Door, path: str) -> None:
    answer = door.call("POST", path, b"{}")
    assert (answer.status, answer.error["code"]) == (404, "unsupported_endpoint")
