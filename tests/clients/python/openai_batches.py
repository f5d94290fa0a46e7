"""openai-python's files and batches against the gateway. Run by `make test-clients`."""

from __future__ import annotations

import json
import os
import time

import openai
import pytest

MODEL = os.environ["MODEL"]
PATIENCE = 60.0


@pytest.fixture
def client():
    with openai.OpenAI() as opened:
        yield opened


def line(id, text, model=MODEL):
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    return {"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def uploaded(client, *lines):
    text = "".join(json.dumps(one) + "\n" for one in lines)
    return client.files.create(file=("lines.jsonl", text.encode()), purpose="batch")


def test_a_file_comes_and_goes(client):
    file = uploaded(client, line("a", "Salve"))
    assert client.files.retrieve(file.id).filename == "lines.jsonl"
    assert json.loads(client.files.content(file.id).text)["custom_id"] == "a"
    assert file.id in [one.id for one in client.files.list()]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_a_batch_answers_every_line(client):
    file = uploaded(client, line("a", "Salve"), line("b", "Vale"), line("c", "Ave", "no/such"))
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    deadline = time.monotonic() + PATIENCE
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    counts = batch.request_counts
    assert (batch.status, counts.total, counts.completed, counts.failed) == ("completed", 3, 2, 1)
    answers = [json.loads(one) for one in client.files.content(batch.output_file_id).text.splitlines()]
    said = {one["custom_id"]: one["response"]["body"]["choices"][0]["message"]["content"] for one in answers}
    assert said == {"a": "You said: Salve", "b": "You said: Vale"}
    [failed] = [json.loads(one) for one in client.files.content(batch.error_file_id).text.splitlines()]
    assert failed["custom_id"] == "c"
    assert batch.id in [one.id for one in client.batches.list()]
