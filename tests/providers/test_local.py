"""The embedded model's supervisor and adapter, against a child process that speaks the same protocol."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil  # type: ignore[import-untyped]
import pytest

from hortator.call import Call, Deployment, ModelId, ProviderId, RequestId
from hortator.errors import InvalidRequest, RateLimited, Unavailable, UpstreamError
from hortator.providers.base import Reply
from hortator.providers.local import DEFAULT_MAX_TOKENS, LocalProvider
from hortator.providers.local_model import LocalModel, State
from hortator.providers.local_process import LOG_BYTES, BoundedLog
from tests.eventually import eventually

FAKE = Path(__file__).with_name("fake_model.py")
ORPHAN = Path(__file__).with_name("orphan.py")
DEPLOYMENT = Deployment(id="local/fake", provider=ProviderId("local"), model="fake")
LIMIT = 20.0
Start = Callable[..., Awaitable[LocalModel]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    models: list[LocalModel] = []

    async def begin(**settings: Any) -> LocalModel:
        command = (sys.executable, str(FAKE), str(tmp_path))
        model = LocalModel(tmp_path / "x.gguf", "Fake", home=tmp_path, command=command, **settings)
        models.append(model)
        await model.start()
        return model

    yield begin
    for model in models:
        await model.stop()


def a_call(said: str, **more: Any) -> Call:
    body = {"model": "local/fake", "messages": [{"role": "user", "content": said}], **more}
    return Call(
        id=RequestId("r"),
        operation="chat",
        model=ModelId("local/fake"),
        body=msgspec.json.decode(msgspec.json.encode(body), type=dict[str, msgspec.Raw]),
        stream=bool(more.get("stream")),
        wants_usage=False,
        started=0.0,
        received_at=0.0,
    )


async def send(model: LocalModel, said: str, **more: Any) -> Reply:
    deadline = asyncio.get_running_loop().time() + LIMIT
    return await LocalProvider(model).send(a_call(said, **more), DEPLOYMENT, deadline)


async def answer(model: LocalModel, said: str, **more: Any) -> Any:
    reply = await send(model, said, **more)
    try:
        return json.loads(await reply.read())
    finally:
        reply.close()


async def events(reply: Reply) -> list[Any]:
    data = b""
    while (piece := await reply.next()) is not None:
        data += piece
    reply.close()
    payloads = [event.removeprefix("data: ") for event in data.decode().split("\n\n") if event]
    assert payloads.pop() == "[DONE]"
    return [json.loads(payload) for payload in payloads]


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one whose end nobody has taken note of yet (a zombie) has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode()


async def state_is(model: LocalModel, state: State) -> None:
    await eventually(lambda: model.state == state)


async def test_a_call_reaches_the_child_with_its_model_and_a_default_length(start: Start) -> None:
    model = await start()
    reply = await answer(model, "hello", temperature=0.5, unknown_field={"a": 1})
    sent = json.loads(reply["choices"][0]["message"]["content"])
    assert sent["model"] == "fake"
    assert sent["max_tokens"] == DEFAULT_MAX_TOKENS
    assert sent["temperature"] == 0.5
    assert sent["unknown_field"] == {"a": 1}
    assert reply["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens"])
async def test_a_length_the_client_names_is_kept(start: Start, key: str) -> None:
    reply = await answer(await start(), "hello", **{key: 9})
    sent = json.loads(reply["choices"][0]["message"]["content"])
    assert sent[key] == 9
    assert "max_tokens" not in sent or key == "max_tokens"


async def test_a_stream_always_asks_for_usage(start: Start) -> None:
    chunks = await events(await send(await start(), "say hi there", stream=True))
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]) == "hi there"
    assert chunks[-1]["usage"]["total_tokens"] == 10


async def test_a_call_waits_for_a_model_that_loads(start: Start, tmp_path: Path) -> None:
    gate = tmp_path / "not-yet"
    gate.touch()
    model = await start()
    waiting = asyncio.create_task(answer(model, "hello"))
    assert model.state == "starting"
    gate.unlink()
    async with asyncio.timeout(LIMIT):
        assert (await waiting)["choices"]
    assert model.report() == {"name": "fake", "state": "ready", "in_flight": 0, "restarts": 0}


async def test_a_child_that_dies_is_started_again(start: Start) -> None:
    model = await start()
    with pytest.raises(Unavailable) as caught:
        await answer(model, "die")
    assert caught.value.code == "local_model_restarting"
    assert caught.value.retry_after is not None
    assert (await answer(model, "hello"))["choices"]  # waits until it is back
    assert model.restarts == 1
    assert model.in_flight == 0


async def test_a_stream_whose_child_dies_fails(start: Start, tmp_path: Path) -> None:
    model = await start()
    pid = (await model.serving(asyncio.get_running_loop().time() + LIMIT)).child.pid
    holding = asyncio.create_task(send(model, "hold", stream=True))
    await eventually(lambda: model.in_flight == 1)
    os.kill(pid, 9)
    with pytest.raises((UpstreamError, Unavailable)):
        await holding
    assert model.in_flight == 0


async def test_calls_beyond_the_queue_are_refused_with_retry_after(start: Start, tmp_path: Path) -> None:
    model = await start(parallel=1, queue=2)
    held = [asyncio.create_task(answer(model, "hold")) for _ in range(3)]
    await eventually(lambda: model.in_flight == 3)
    with pytest.raises(RateLimited) as caught:
        await send(model, "one too many")
    assert caught.value.code == "local_model_busy"
    assert caught.value.retry_after is not None
    assert 1 <= caught.value.retry_after <= 30
    (tmp_path / "release").touch()
    await asyncio.gather(*held)
    assert model.in_flight == 0


async def test_a_place_is_given_back_once_when_a_reply_is_closed(start: Start) -> None:
    model = await start()
    reply = await send(model, "say hi", stream=True)
    assert model.in_flight == 1
    reply.close()
    reply.close()
    assert model.in_flight == 0


async def test_a_caller_that_gives_up_gives_its_place_back(start: Start, tmp_path: Path) -> None:
    (tmp_path / "not-yet").touch()
    model = await start()
    waiting = asyncio.create_task(send(model, "hello"))
    await eventually(lambda: model.in_flight == 1)
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    assert model.in_flight == 0


async def test_context_overflow_becomes_openais_error(start: Start) -> None:
    model = await start()
    reply = await send(model, "overflow", stream=True)
    assert reply.status == 400
    error = json.loads(await reply.read())["error"]
    reply.close()
    assert (error["type"], error["code"], error["param"]) == (
        "invalid_request_error",
        "context_length_exceeded",
        "messages",
    )
    assert "4096" in error["message"]
    assert "6030" in error["message"]
    assert model.in_flight == 0


@pytest.mark.parametrize("turns", range(8))
async def test_a_start_that_is_called_off_leaves_no_process(start: Start, turns: int) -> None:
    before = {child.pid for child in psutil.Process().children()}
    model = await start()
    for _ in range(turns):
        await asyncio.sleep(0)
    await model.stop()
    assert {child.pid for child in psutil.Process().children()} == before


async def test_more_logprobs_than_openai_allows_are_refused(start: Start) -> None:
    model = await start()
    with pytest.raises(InvalidRequest) as caught:
        await send(model, "hello", logprobs=True, top_logprobs=21)
    assert caught.value.param == "top_logprobs"
    assert model.in_flight == 0


TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"properties": {"at": {"type": "string"}}}}}]


async def test_a_tool_call_comes_back_as_tool_calls(start: Start) -> None:
    said = 'say {"tool": "look", "arguments": {"at": "the sea"}}'
    reply = await answer(await start(), said, tools=TOOLS)
    choice = reply["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["id"].startswith("call_")
    assert json.loads(call["function"]["arguments"]) == {"at": "the sea"}


async def test_a_streamed_tool_call_obeys_the_chunk_rules(start: Start) -> None:
    said = 'say {"tool": "look", "arguments": {"at": "the sea"}}'
    chunks = await events(await send(await start(), said, tools=TOOLS, stream=True))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    deltas = [c["choices"][0]["delta"]["tool_calls"][0] for c in chunks[1:-2]]
    assert deltas[0]["function"]["name"] == "look"
    assert deltas[0]["type"] == "function"
    assert all(delta["index"] == 0 for delta in deltas)
    assert all("id" not in delta and "name" not in delta["function"] for delta in deltas[1:])
    assert json.loads("".join(delta["function"]["arguments"] for delta in deltas)) == {"at": "the sea"}
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"
    assert chunks[-1]["usage"]["total_tokens"] == 10


async def test_an_answer_beside_tools_streams_as_plain_content(start: Start) -> None:
    said = 'say {"tool": "none", "answer": "It is \\u00e9t\\u00e9,\\n \\ud83d\\ude00!"}'
    chunks = await events(await send(await start(), said, tools=TOOLS, stream=True))
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    assert text == "It is été,\n 😀!"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"


async def test_a_missing_engine_is_said_in_one_line_and_not_tried_again(start: Start, tmp_path: Path) -> None:
    (tmp_path / "exit-3").touch()
    model = await start()
    with pytest.raises(Unavailable) as caught:
        await answer(model, "hello")
    assert caught.value.code == "local_model_unavailable"
    assert model.report()["state"] == "failed"
    assert "pip install" in model.reason
    assert model.restarts == 0


async def test_no_model_file_disables_the_model_without_a_process() -> None:
    model = LocalModel(None, "qwen")
    await model.start()
    with pytest.raises(Unavailable) as caught:
        await answer(model, "hello")
    assert caught.value.retry_after is None
    assert model.report()["state"] == "disabled"
    assert "hortator models pull" in model.reason
    await model.stop()


async def test_a_child_that_never_comes_up_stops_holding_calls_and_is_still_retried(
    start: Start, tmp_path: Path
) -> None:
    bad = tmp_path / "exit-4"
    bad.touch()
    model = await start()
    await state_is(model, "failed")
    assert "something is wrong here" in model.reason
    with pytest.raises(Unavailable) as caught:
        await answer(model, "hello")
    assert caught.value.retry_after is not None
    bad.unlink()
    await state_is(model, "ready")
    assert model.reason == ""


async def test_a_child_that_is_not_ready_in_time_is_ended(start: Start, tmp_path: Path) -> None:
    (tmp_path / "mute").touch()
    model = await start(start_timeout=0.5)
    await state_is(model, "restarting")
    assert "not ready after 0.5 s" in model.reason


async def test_stopping_ends_the_child(start: Start) -> None:
    model = await start()
    serving = await model.serving(asyncio.get_running_loop().time() + LIMIT)
    await model.stop()
    assert is_gone(serving.child.pid)
    assert model.state == "disabled"


async def test_the_child_gets_neither_secrets_nor_its_key_where_others_can_see_them(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-the-child")
    model = await start(parallel=3, context=1024)
    serving = await model.serving(asyncio.get_running_loop().time() + LIMIT)
    environment = json.loads((tmp_path / "environment").read_text())
    assert "OPENAI_API_KEY" not in environment
    assert serving.key not in command_line(serving.child.pid)
    assert serving.key not in json.dumps(environment)
    assert serving.key not in repr(serving)
    assert model.scrub(f"x {serving.key} y") == "x [redacted] y"
    assert json.loads((tmp_path / "config").read_text()) == {"parallel": 3, "context": 1024}


async def test_the_child_does_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, str(ORPHAN), str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    async with asyncio.timeout(LIMIT):
        child = int(await parent.stdout.readline())
    assert not is_gone(child)
    parent.kill()
    await parent.wait()
    await eventually(lambda: is_gone(child))


def test_the_log_keeps_a_bounded_size(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "local-model.log"
    output = BoundedLog(path)
    for _ in range(5):
        output.write(b"x" * (LOG_BYTES // 2) + b"\nlast words\n")
    assert output.last_line == "last words"
    sizes = [entry.stat().st_size for entry in path.parent.iterdir()]
    assert len(sizes) == 2
    assert sum(sizes) < 4 * LOG_BYTES
