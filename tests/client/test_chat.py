"""Chats by the SDK: OpenAI's shape (R-000-14), the origin project's (R-000-21), events of agents beside the answer (R-000-27)."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hortator.client import (
    Budget,
    ContentPart,
    HortatorConnectionError,
    HortatorError,
    Message,
    ServerError,
    TaskError,
)
from tests.client.fake import CLOSE, HANG_UP, Asked, Fake, reply, stream

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Salve!"}]
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "hortator/default",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Ave — 雨 🌧!"}, "finish_reason": "stop"}],
    "usage": USAGE,
}


def chunk(content: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    delta = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return f"data: {json.dumps({'id': 'c', 'model': 'm', 'created': 1, 'choices': [choice], **more}, ensure_ascii=False)}\n\n".encode()


def test_a_chat(fake: Fake, client: Any) -> None:
    fake.on(CHAT, reply(ANSWER))
    answer = client.chat.completions.create(
        model="hortator/coding-expert", messages=HELLO, hortator_mode="fast", temperature=0.2, verbosity="full"
    )
    assert answer.choices[0].message.content == "Ave — 雨 🌧!"
    assert answer.choices[0].message.tool_calls is None
    assert answer.usage.total_tokens == 7
    assert answer.to_dict() == ANSWER
    [asked] = fake.asked
    assert asked.json == {
        "model": "hortator/coding-expert",
        "messages": HELLO,
        "hortator_mode": "fast",
        "temperature": 0.2,
    }
    assert asked.headers["x-hortator-verbosity"] == "full"


def test_a_streamed_chat_gives_chunks_and_events(fake: Fake, client: Any) -> None:
    event = {
        "type": "task_decomposed",
        "timestamp": "2026-11-21T12:00:00Z",
        "message": "2",
        "details": {"subtasks": []},
    }
    whole = b"".join(
        [
            b": hortator\n\n",
            chunk("", hortator_event=event),
            chunk("Ave — "),
            chunk("雨 🌧"),
            chunk(finish="stop", usage=USAGE),
            b"data: [DONE]\n\n",
        ]
    )
    # Cut everywhere, in the middle of characters too.
    fake.on(CHAT, lambda _: stream(*(whole[at : at + 7] for at in range(0, len(whole), 7))))
    chunks = list(client.chat.completions.create(model="m", messages=HELLO, stream=True))
    assert "".join(each.choices[0].delta.content or "" for each in chunks) == "Ave — 雨 🌧"
    assert chunks[0].hortator_event.type == "task_decomposed"
    assert chunks[0].hortator_event.details.subtasks == []
    assert chunks[1].hortator_event is None
    assert chunks[-1].usage.total_tokens == 7
    assert fake.asked[0].json["stream"] is True


def test_a_stream_knows_its_task(fake: Fake, client: Any) -> None:
    head = b"HTTP/1.1 200 OK\r\nx-hortator-task-id: t7\r\ntransfer-encoding: chunked\r\n\r\n"
    body = b"data: [DONE]\n\n"
    fake.on(CHAT, [head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)])
    streamed = client.chat.completions.create(model="m", messages=HELLO, stream=True)
    assert streamed.task_id == "t7"
    assert list(streamed) == []


@pytest.mark.parametrize("way", [HANG_UP, CLOSE])
def test_a_stream_that_breaks_is_an_error_after_what_came(fake: Fake, client: Any, way: bytes) -> None:
    fake.on(CHAT, lambda _: stream(chunk("Ave"), way))
    found = []
    with pytest.raises(HortatorConnectionError):
        for each in client.chat.completions.create(model="m", messages=HELLO, stream=True):
            found.append(each.choices[0].delta.content)
    # A reset may overtake the bytes before it.
    assert found in ([["Ave"], []] if way == HANG_UP else [["Ave"]])
    assert len(fake.asked) == 1


def test_a_stream_without_its_end_mark_is_an_error(fake: Fake, client: Any) -> None:
    fake.on(CHAT, lambda _: stream(chunk("Ave")))
    with pytest.raises(HortatorError) as raised:
        list(client.chat.completions.create(model="m", messages=HELLO, stream=True))
    assert raised.value.code == "stream_truncated"


@pytest.mark.parametrize(("code", "kind"), [("task_failed", TaskError), ("upstream_idle_timeout", ServerError)])
def test_an_error_in_a_stream_is_raised(fake: Fake, client: Any, code: str, kind: type[HortatorError]) -> None:
    error = json.dumps({"error": {"message": "Alas.", "type": "server_error", "param": None, "code": code}}).encode()
    fake.on(CHAT, lambda _: stream(chunk("Ave"), b"data: " + error + b"\n\n"))
    with pytest.raises(kind) as raised:
        list(client.chat.completions.create(model="m", messages=HELLO, stream=True))
    assert (raised.value.code, raised.value.message) == (code, "Alas.")


def test_closing_a_stream_hangs_up(fake: Fake, client: Any) -> None:
    """The gateway takes that as: the answer is not wanted any more."""

    def endless(_: Asked) -> Iterator[bytes]:
        head, piece, *rest = stream(chunk("x" * 10_000))
        yield head
        while rest:
            yield piece

    fake.on(CHAT, endless)
    streamed = client.chat.completions.create(model="m", messages=HELLO, stream=True)
    for _ in streamed:
        break
    streamed.close()
    assert fake.hung_up.wait(20)


def test_run_is_a_chat_with_a_role(fake: Fake, client: Any, tmp_path: Path) -> None:
    fake.on(CHAT, reply(ANSWER))
    notes = tmp_path / "Notizen für später.txt"
    notes.write_bytes(b"\x00\xff")
    result = client.run(
        "Read these.",
        role="researcher",
        capabilities=["web-fetch"],
        tier="tribune",
        budget=Budget(max_cost_usd="1.00", max_tokens=1000),
        files=[notes, ("b.md", "text")],
    )
    assert (result.id, result.content, result.finish_reason) == ("chatcmpl-1", "Ave — 雨 🌧!", "stop")
    assert (result.usage.total_tokens, result.model) == (7, "hortator/default")
    body = fake.asked[0].json
    assert body["model"] == "hortator/researcher"
    assert (body["x_capabilities"], body["x_tier"]) == (["web-fetch"], "tribune")
    assert body["x_budget"] == {"max_cost_usd": "1.00", "max_tokens": 1000}
    text, first, second = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "Read these."}
    assert first["file"] == {"filename": notes.name, "file_data": base64.b64encode(b"\x00\xff").decode()}
    assert second["file"]["filename"] == "b.md"


def test_chat_is_also_a_function(fake: Fake, client: Any, tmp_path: Path) -> None:
    fake.on(CHAT, reply(ANSWER))
    page = tmp_path / "page.txt"
    page.write_text("one")
    parts = [ContentPart.text_part("See."), ContentPart.from_path(page), ContentPart.file_part("raw", b"2")]
    result = client.chat([{"role": "system", "content": "Brief."}, Message("user", parts)], role="local/tiny")
    assert result.content == "Ave — 雨 🌧!"
    body = fake.asked[0].json
    assert body["model"] == "local/tiny"
    assert body["messages"][0] == {"role": "system", "content": "Brief."}
    assert [part["type"] for part in body["messages"][1]["content"]] == ["text", "file", "file"]


def test_stream_gives_the_answer_alone(fake: Fake, client: Any) -> None:
    event = chunk("", hortator_event={"type": "progress", "timestamp": "x"})
    fake.on(
        CHAT, lambda _: stream(event, chunk("Ave"), chunk("!"), chunk(finish="stop", usage=USAGE), b"data: [DONE]\n\n")
    )
    chunks = list(client.stream("Salve!"))
    assert [each.content for each in chunks] == ["Ave", "!", ""]
    assert [each.finish_reason for each in chunks] == [None, None, "stop"]
    assert chunks[-1].usage.completion_tokens == 4


def test_an_answer_without_choices_is_an_error_of_run(fake: Fake, client: Any) -> None:
    fake.on(CHAT, reply({**ANSWER, "choices": []}))
    with pytest.raises(ServerError):
        client.run("Salve!")
