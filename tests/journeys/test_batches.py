"""`/v1/batches` as openai-python uses it: lists of calls that walk the corridor like any other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai.types import Batch

from tests.door import Door
from tests.gateway import MODEL, Gateway, eventually, openai_client
from tests.journeys.test_embeddings import VECTOR, vectors
from tests.upstream.process import Upstream
from tests.upstream.script import TEXT, dump, error_body, reply

ENDED = ("completed", "failed", "expired", "cancelled")
CHAT: Literal["/v1/chat/completions"] = "/v1/chat/completions"


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai_client(gateway) as opened:
        yield opened


def line(custom_id: Any, mark: str, url: str = CHAT, model: str = MODEL, **body: Any) -> dict[str, Any]:
    """One line of a batch."""
    asked = {"model": model, "user": mark, **body}
    if url == CHAT:
        asked.setdefault("messages", [{"role": "user", "content": f"Salve, {custom_id}!"}])
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": asked}


def jsonl(*lines: Any) -> bytes:
    return "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines).encode()


def start(client: openai.OpenAI, *lines: Any, endpoint: Any = CHAT, **options: Any) -> Batch:
    """Upload these lines and make a batch of them."""
    file = client.files.create(file=("lines.jsonl", jsonl(*lines)), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **options)


def finish(client: openai.OpenAI, batch: Batch) -> Batch:
    """Wait until the batch has ended."""

    def ended() -> Batch | None:
        found = client.batches.retrieve(batch.id)
        return found if found.status in ENDED else None

    return eventually(ended, "the batch to end")


def results(client: openai.OpenAI, file_id: str | None) -> dict[str, dict[str, Any]]:
    """The lines of a result file, by custom id."""
    assert file_id is not None
    found = [json.loads(each) for each in client.files.content(file_id).text.splitlines()]
    assert len({each["id"] for each in found}) == len(found)
    return {each["custom_id"]: each for each in found}


def counts(batch: Batch) -> tuple[int, int, int]:
    assert batch.request_counts is not None
    return batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed


def test_every_line_is_answered_recorded_and_given_back(
    gateway: Gateway, client: openai.OpenAI, upstream: Upstream
) -> None:
    mark = upstream.plan("ok")
    made = start(client, *(line(f"call-{n}", mark) for n in range(20)), metadata={"purpose": "täglich"})
    assert (made.object, made.status, made.endpoint, made.completion_window) == ("batch", "validating", CHAT, "24h")
    assert made.expires_at == made.created_at + 86_400
    batch = finish(client, made)
    assert (batch.status, batch.model, batch.metadata, batch.errors) == (
        "completed",
        MODEL,
        {"purpose": "täglich"},
        None,
    )
    assert (counts(batch), batch.error_file_id) == ((20, 20, 0), None)
    moments = [batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at]
    assert moments == sorted(moments, key=lambda moment: moment or 0)
    found = results(client, batch.output_file_id)
    assert list(found) == [f"call-{n}" for n in range(20)]
    tokens = 0
    for result in found.values():
        assert (result["error"], result["response"]["status_code"]) == (None, 200)
        assert result["response"]["body"]["choices"][0]["message"]["content"] == TEXT
        row = gateway.row(result["response"]["request_id"])
        assert (row["status"], row["model_asked"], row["operation"]) == (200, MODEL, "chat")
        tokens += row["input_tokens"] + row["output_tokens"]
    assert batch.usage is not None
    assert batch.usage.total_tokens == tokens
    assert len(upstream.seen(mark)) == 20
    assert batch.output_file_id is not None
    file = client.files.retrieve(batch.output_file_id)
    assert (file.purpose, file.filename) == ("batch_output", f"{batch.id}_output.jsonl")


def test_embeddings_come_in_batches_too(client: openai.OpenAI, upstream: Upstream) -> None:
    mark = upstream.plan(vectors(VECTOR))
    batch = finish(client, start(client, line("a", mark, "/v1/embeddings", input="a"), endpoint="/v1/embeddings"))
    found = results(client, batch.output_file_id)["a"]["response"]["body"]
    assert found["data"][0]["embedding"] == VECTOR


def test_responses_come_in_batches_too_but_are_not_kept(client: openai.OpenAI, upstream: Upstream) -> None:
    mark = upstream.plan("ok")
    url = "/v1/responses"
    made = start(
        client,
        line("a", mark, url, input="Salve!"),
        line("b", mark, url, input="Salve!", background=True),
        line("c", mark, url, input="Salve!", previous_response_id="resp_1"),
        endpoint=url,
    )
    batch = finish(client, made)
    found = results(client, batch.output_file_id)["a"]["response"]["body"]
    assert (found["object"], found["status"]) == ("response", "completed")
    assert found["output"][-1]["content"][0]["text"] == TEXT
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(found["id"])
    errors = results(client, batch.error_file_id)
    assert {id: each["response"]["body"]["error"]["param"] for id, each in errors.items()} == {
        "b": "background",
        "c": "previous_response_id",
    }


def test_a_line_may_say_what_a_request_says_to_routing(
    gateway: Gateway, client: openai.OpenAI, upstream: Upstream
) -> None:
    mark = upstream.plan("ok")
    lines = (
        line("a", mark, metadata={"task_type": "summary", "mine": "1"}),
        line("b", mark, metadata={"tenant_id": "x"}),
    )
    batch = finish(client, start(client, *lines))
    [sent] = upstream.seen(mark)
    assert sent.json["metadata"] == {"mine": "1"}
    id = results(client, batch.output_file_id)["a"]["response"]["request_id"]
    assert gateway.row(id)["task_type"] == "summary"
    refused = results(client, batch.error_file_id)["b"]["response"]
    assert (refused["status_code"], refused["body"]["error"]["code"]) == (403, "tenant_not_allowed")


def test_lines_that_fail_are_told_in_the_error_file(client: openai.OpenAI, upstream: Upstream) -> None:
    good, bad = upstream.plan("ok"), upstream.plan("status_400")
    batch = finish(
        client,
        start(
            client,
            line("good", good),
            line("bad", bad),
            line("streamed", good, stream=True),
            line("unknown", good, model="nowhere/model"),
            line("wrong", good, messages=[]),
            output_expires_after={"anchor": "created_at", "seconds": 7200},
        ),
    )
    assert (batch.status, counts(batch), batch.model) == ("completed", (5, 1, 4), None)
    assert list(results(client, batch.output_file_id)) == ["good"]
    found = results(client, batch.error_file_id)
    said = {
        id: (each["response"]["status_code"], each["response"]["body"]["error"]["code"]) for id, each in found.items()
    }
    assert said == {
        "bad": (400, "upstream_400"),
        "streamed": (400, "invalid_value"),
        "unknown": (404, "model_not_found"),
        "wrong": (400, "empty_array"),
    }
    assert {each["error"] for each in found.values()} == {None}
    for id in (batch.output_file_id, batch.error_file_id):
        assert id is not None
        file = client.files.retrieve(id)
        assert file.expires_at == file.created_at + 7200


@pytest.mark.parametrize(
    ("lines", "faults"),
    [
        ([], [("empty_file", None, None)]),
        (["", "  "], [("empty_file", None, None)]),
        (["{", "", "[]"], [("invalid_json_line", 1, None), ("invalid_json_line", 3, None)]),
        ([line("a", "m"), line("b", "m"), line("a", "m")], [("duplicate_custom_id", 3, "custom_id")]),
        ([line("", "m")], [("invalid_value", 1, "custom_id")]),
        ([line(7, "m")], [("invalid_type", 1, "custom_id")]),
        ([{"method": "POST"}], [("missing_required_parameter", 1, "custom_id")]),
        ([line("a", "m", "/v1/embeddings")], [("invalid_url", 1, "url")]),
        ([line("a", "m") | {"method": "GET"}], [("invalid_method", 1, "method")]),
        ([line("a", "m") | {"body": {}}], [("missing_required_parameter", 1, "model")]),
        ([line("a", "m") | {"body": None}], [("missing_required_parameter", 1, "model")]),
        ([line("a", "m", model="m" * 513)], [("invalid_value", 1, "model")]),
        ([line("a", "m", model="m\0")], [("invalid_value", 1, "model")]),
        ([line("a", "m", pad="x" * 1_000_001)], [("line_too_long", 1, None)]),
    ],
)
def test_a_bad_file_fails_with_the_numbers_of_its_lines(client: openai.OpenAI, lines: Any, faults: Any) -> None:
    batch = finish(client, start(client, *lines))
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None)
    assert batch.errors is not None and batch.errors.data is not None
    assert [(each.code, each.line, each.param) for each in batch.errors.data] == faults
    assert all(each.message for each in batch.errors.data)
    assert batch.failed_at is not None


def test_no_line_of_a_bad_file_is_asked(client: openai.OpenAI, upstream: Upstream) -> None:
    mark = upstream.plan("ok")
    assert finish(client, start(client, line("a", mark), "{")).status == "failed"
    assert upstream.seen(mark) == []


def test_a_file_has_at_most_50000_lines(client: openai.OpenAI) -> None:
    content = b"\n".join(
        b'{"custom_id":"%d","method":"POST","url":"/v1/completions","body":{"model":"m"}}' % n for n in range(50_001)
    )
    file = client.files.create(file=("many.jsonl", content), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    batch = finish(client, made)
    assert batch.errors is not None and batch.errors.data is not None
    assert [(each.code, each.line) for each in batch.errors.data] == [("too_many_lines", 50_001)]


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"endpoint": "/v1/images/generations"}, "invalid_value", "endpoint"),
        ({"completion_window": "1h"}, "invalid_value", "completion_window"),
        ({"metadata": {str(n): "" for n in range(17)}}, "invalid_value", "metadata"),
        ({"metadata": {"a": "x" * 513}}, "invalid_value", "metadata"),
        ({"metadata": {"a": "\0"}}, "invalid_value", "metadata"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 60}},
            "invalid_value",
            "output_expires_after.seconds",
        ),
        ({"input_file_id": None}, "invalid_type", "input_file_id"),
    ],
)
def test_a_bad_request_for_a_batch_is_refused(
    client: openai.OpenAI, door: Door, changes: dict[str, Any], code: str, param: str
) -> None:
    file = client.files.create(file=("a", jsonl(line("a", "m"))), purpose="batch")
    body = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"} | changes
    answer = door.call("POST", "/v1/batches", dump(body).encode())
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, code, param)


def test_only_a_file_of_batches_can_be_one(client: openai.OpenAI) -> None:
    file = client.files.create(file=("a", b"{}"), purpose="user_data")
    with pytest.raises(openai.BadRequestError) as caught:
        client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    assert caught.value.param == "input_file_id"


def test_another_tenants_file_and_batch_do_not_exist(
    gateway: Gateway, client: openai.OpenAI, upstream: Upstream, stranger: str
) -> None:
    batch = finish(client, start(client, line("a", upstream.plan("ok"))))
    assert batch.output_file_id is not None
    with openai_client(gateway, stranger) as other:
        for ask in (
            lambda: other.batches.retrieve(batch.id),
            lambda: other.batches.cancel(batch.id),
            lambda: other.files.content(str(batch.output_file_id)),
            lambda: other.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h"),
        ):
            with pytest.raises(openai.NotFoundError):
                ask()
        assert batch.id not in [each.id for each in other.batches.list()]


def test_batches_are_listed_newest_first(client: openai.OpenAI, upstream: Upstream) -> None:
    made = [start(client, line("a", upstream.plan("ok"))).id for _ in range(3)]
    page = client.batches.list(limit=2)
    assert ([each.id for each in page.data], page.has_more) == (made[:0:-1], True)
    assert [each.id for each in client.batches.list(limit=2)][:3] == made[::-1]
    for id in made:
        finish(client, client.batches.retrieve(id))


def test_a_cancelled_batch_ends_its_calls_and_keeps_what_was_finished(
    gateway: Gateway, client: openai.OpenAI, upstream: Upstream
) -> None:
    quick, stuck = upstream.plan("ok"), upstream.plan("hang")
    made = start(client, line("done", quick), *(line(f"stuck-{n}", stuck) for n in range(12)))
    upstream.wait(stuck, count=7)
    eventually(lambda: counts(client.batches.retrieve(made.id))[1] == 1, "the quick line")
    cancelled = client.batches.cancel(made.id)
    assert cancelled.status in ("cancelling", "cancelled") and cancelled.cancelling_at is not None
    assert client.batches.cancel(made.id).status in ("cancelling", "cancelled")
    batch = finish(client, made)
    assert (batch.status, counts(batch)) == ("cancelled", (13, 1, 0))
    assert batch.cancelled_at is not None
    assert list(results(client, batch.output_file_id)) == ["done"]
    errors = results(client, batch.error_file_id)
    assert len(errors) == 12
    assert {(each["response"], each["error"]["code"]) for each in errors.values()} == {(None, "batch_cancelled")}
    assert {each.state for each in upstream.wait(stuck, state="aborted", count=8)} == {"aborted"}
    with pytest.raises(openai.BadRequestError) as caught:
        client.batches.cancel(finish(client, start(client, line("a", quick))).id)
    assert caught.value.code == "batch_not_active"


def test_the_file_of_a_running_batch_cannot_be_deleted(client: openai.OpenAI, upstream: Upstream) -> None:
    mark = upstream.plan("slow_first_byte")
    made = start(client, line("a", mark))
    upstream.wait(mark)
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.delete(made.input_file_id)
    assert caught.value.code == "file_in_use"
    upstream.release(mark)
    assert finish(client, made).status == "completed"
    assert client.files.delete(made.input_file_id).deleted


def test_a_line_that_finds_no_room_is_asked_again(client: openai.OpenAI, upstream: Upstream) -> None:
    mark = upstream.plan("busy_429 busy_503 ok")
    batch = finish(client, start(client, line("a", mark)))
    assert (batch.status, counts(batch)) == ("completed", (1, 1, 0))
    assert len(upstream.seen(mark)) == 3


def test_a_line_without_quota_at_its_provider_fails(client: openai.OpenAI, upstream: Upstream) -> None:
    mark = upstream.plan(reply(429, error_body("no money", "insufficient_quota"), {}))
    batch = finish(client, start(client, line("a", mark)))
    assert results(client, batch.error_file_id)["a"]["response"]["status_code"] == 429


def test_a_batch_keeps_to_the_limits_of_its_key(gateway: Gateway, upstream: Upstream) -> None:
    """Lines that find no room wait; none of them fails."""
    key = gateway.new_key("one at a time", "--limit", "1 concurrent")
    mark = upstream.plan("ok")
    with openai_client(gateway, key) as client:
        batch = finish(client, start(client, *(line(f"{n}", mark) for n in range(6))))
        assert (batch.status, counts(batch)) == ("completed", (6, 6, 0))
    assert len(upstream.seen(mark)) == 6
    statuses = [row["status"] for row in gateway.rows() if row["model_asked"] == MODEL]
    assert 429 in statuses


def test_a_line_without_any_budget_left_waits_for_the_next_window(gateway: Gateway, upstream: Upstream) -> None:
    key = gateway.new_key("two a month", "--limit", "2 requests/month")
    mark = upstream.plan("ok")
    with openai_client(gateway, key) as client:
        made = start(client, *(line(f"{n}", mark) for n in range(3)))
        eventually(lambda: counts(client.batches.retrieve(made.id)) == (3, 2, 0), "what the limit allows")
        client.batches.cancel(made.id)
        batch = finish(client, made)
        assert (batch.status, counts(batch)) == ("cancelled", (3, 2, 0))
    assert len(upstream.seen(mark)) == 2


def test_a_key_revoked_meanwhile_fails_the_rest(gateway: Gateway, upstream: Upstream) -> None:
    key = gateway.new_key("short-lived")
    mark = upstream.plan("slow_first_byte")
    with openai_client(gateway, key) as client:
        made = start(client, *(line(f"{n}", mark) for n in range(10)))
        upstream.wait(mark, count=8)
        gateway.command("keys", "revoke", "--config", str(gateway.config), "short-lived")

        def refused() -> bool:
            try:
                client.batches.retrieve(made.id)
            except openai.AuthenticationError:
                return True
            return False

        eventually(refused, "the key to be refused")
    upstream.release(mark)
    with openai_client(gateway) as client:
        batch = finish(client, made)
        assert (batch.status, counts(batch)) == ("completed", (10, 8, 2))
        errors = results(client, batch.error_file_id)
        assert {each["response"]["body"]["error"]["code"] for each in errors.values()} == {"revoked_api_key"}
