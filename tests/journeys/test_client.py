"""The SDK's two clients against a real gateway whose agents ask a scripted model: what its guide promises, and broken connections."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from hortator import TaskConfig
from hortator.client import (
    AuthenticationError,
    Budget,
    ConflictError,
    HortatorTimeout,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    TaskError,
)
from tests.client.either import client_of
from tests.gateway import MODEL, ROOT, Gateway, running_gateway
from tests.journeys.cutter import Cutter, cutting
from tests.upstream.process import Upstream, running_upstream

WORK = "Compare three ways to store sessions and recommend one."
SPLIT = TaskConfig(decomposition_strategy="aggressive")
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """A scripted upstream of its own, at which every model can be a team's, also where no mark says so."""
    with running_upstream() as running:
        running.control("plan", mark="", provider="", scenario="team")
        yield running


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Gateway]:
    """A gateway whose agents ask one priced model."""
    prices = tmp_path_factory.mktemp("prices") / "prices.yaml"
    prices.write_text('one: {"*": {input: "1", output: "3"}}\n')
    models = dict.fromkeys(("tribune", "centurion", "legionary"), MODEL)
    with running_gateway(
        tmp_path_factory.mktemp("office"),
        upstream,
        ledger={"price_overrides": str(prices)},
        orchestration={"models": models},
    ) as running:
        yield running


@pytest.fixture(scope="module")
def network(office: Gateway) -> Iterator[Cutter]:
    with cutting(office.port) as cutter:
        yield cutter


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.run_until_complete(made.shutdown_asyncgens())
    made.run_until_complete(made.shutdown_default_executor())
    made.close()


@pytest.fixture(params=["threads", "asyncio"])
def make(request: pytest.FixtureRequest, loop: asyncio.AbstractEventLoop, office: Gateway) -> Iterator[Make]:
    """Make a client of either kind, to be closed at the end."""
    made = []

    def one(key: str = "", base_url: str = "", **options: Any) -> Any:
        address = base_url or f"http://127.0.0.1:{office.port}/v1"
        made.append(client_of(request.param, loop, key or office.key, address, **options))
        return made[-1]

    yield one
    for each in made:
        each.close()


@pytest.fixture
def client(make: Make) -> Any:
    return make()


def marked(upstream: Upstream, *words: str) -> tuple[str, str]:
    """A prompt that the scripted model knows by its mark."""
    mark = upstream.plan("team")
    return mark, " ".join((WORK, f"[mark:{mark}]", *words))


def test_a_task_from_its_order_to_its_files(client: Any, upstream: Upstream, tmp_path: Path) -> None:
    """R-000-15 to R-000-19."""
    mark, prompt = marked(upstream, "[parts:3]")
    task = client.tasks.create(
        task_type="code_review", prompt=prompt, config=SPLIT, files=[('src/Übersicht "1".py', "print('雨')\n")]
    )
    assert task.status in ("Pending", "Running")
    events = list(task.stream())
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert (events[0].type, events[-1].type) == ("task_created", "completed")
    spawned = [event for event in events if event.type == "agent_spawned"]
    assert {event.task for event in spawned} == {"part-1", "part-2", "part-3"}
    assert all(event.agent_id and event.details.role and event.details.tier for event in spawned)
    assert {event.agent_id for event in events if event.type == "partial_result"} >= {each.agent_id for each in spawned}

    # What the last event said, and what the server says when it is asked.
    assert task.status == "Completed"
    assert task.results.content == events[-1].result.content == "The answer of the team, from part-1, part-2, part-3."
    assert task.refresh().results.content == events[-1].result.content
    assert {part.task for part in task.results.parts} == {"part-1", "part-2", "part-3"}
    assert list(task.events()) == events
    assert [event.type for event in task.stream(level="default")] == ["task_created", "completed"]

    tree = task.tree()
    assert [child.status for child in tree.children] == ["Completed"] * 3
    assert {child.id for child in task.children()} == {event.agent_id for event in spawned}
    ledger = task.ledger()
    asked = len(upstream.seen(mark))
    assert len([entry for entry in ledger.entries if entry.kind == "model"]) == asked
    assert Decimal(ledger.total.cost_usd) == Decimal(task.cost_usd) == Decimal("0.00016") * asked
    assert task.usage.total_tokens == 120 * asked

    files = task.artifacts()
    places = task.download(to=tmp_path)
    assert len(places) == len(files)
    assert [place.stat().st_size for place in places] == [file.bytes for file in files]


def test_an_answer_is_written_down_as_a_file(client: Any, upstream: Upstream, tmp_path: Path) -> None:
    _, prompt = marked(upstream)
    task = client.tasks.create(query=prompt, config={"decomposition_strategy": "aggressive"})
    content = task.result().content
    assert any(content in place.read_text() for place in task.download(to=tmp_path))


def test_a_stream_over_a_breaking_network_has_neither_gap_nor_duplicate(
    make: Make, client: Any, network: Cutter, upstream: Upstream
) -> None:
    """The head of a reply is about 200 bytes, an event 200 to 600: cuts fall everywhere."""
    mark, prompt = marked(upstream, "[parts:6]", "[hold:synthesis]")
    shaky = make(base_url=network.url)
    before = network.cut
    task = shaky.tasks.create(prompt=prompt, config=SPLIT)
    network.plan([90, 260, 700, 1500, 333, 2500, 610, 4000])
    # The connection of the order is kept and must not be used again.
    shaky.close()
    events = []
    for event in make(base_url=network.url, max_retries=9).tasks.get(task.id).stream():
        events.append(event)
        if event.type == "synthesis_started":
            upstream.release(mark, "synthesis")
    assert network.cut - before == 8
    assert events == list(client.tasks.get(task.id).events())
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert events[-1].type == "completed"


def test_results_and_files_over_a_breaking_network(
    make: Make, network: Cutter, upstream: Upstream, tmp_path: Path
) -> None:
    _, prompt = marked(upstream)
    task = make(base_url=network.url).tasks.create(prompt=prompt, config=SPLIT)
    network.plan([50, 400])
    again = make(base_url=network.url).tasks.get(task.id)
    assert again.result().content.startswith("The answer of the team")
    files = again.artifacts()
    network.plan([10, 300])
    assert len(make(base_url=network.url).tasks.get(task.id).download(to=tmp_path)) == len(files)


@pytest.mark.limit(120)
def test_a_stream_goes_on_after_the_server_was_killed(
    tmp_path: Path, upstream: Upstream, loop: asyncio.AbstractEventLoop
) -> None:
    """The work goes on too: what was finished is not asked again."""
    models = dict.fromkeys(("tribune", "centurion", "legionary"), MODEL)
    mark, prompt = marked(upstream, "[parts:4]", "[hold:synthesis]")
    with running_gateway(tmp_path, upstream, orchestration={"models": models}) as gateway:
        client = client_of("threads", loop, gateway.key, f"http://127.0.0.1:{gateway.port}")
        task = client.tasks.create(prompt=prompt, config=SPLIT)
        events = []
        for event in task.stream():
            events.append(event)
            if event.type == "synthesis_started":
                upstream.wait(mark, count=6)
                gateway.kill()
                gateway.start()
                upstream.release(mark, "synthesis")
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert events == list(client.tasks.get(task.id).events())
        assert task.status == "Completed"
        assert len(upstream.seen(mark)) <= 7
        client.close()


def test_a_task_is_cancelled_with_all_its_calls(client: Any, upstream: Upstream) -> None:
    mark, prompt = marked(upstream, "[hold]")
    task = client.tasks.create(prompt=prompt, config=SPLIT)
    upstream.wait(mark, count=4)
    stream = iter(task.stream(level="default"))
    assert next(stream).type == "task_created"
    client.tasks.cancel(task.id)
    assert [event.type for event in stream] == ["cancelled"]
    assert task.status == "Cancelled"
    with pytest.raises(TaskError) as raised:
        task.result()
    assert raised.value.phase == "Cancelled"
    with pytest.raises(ConflictError) as conflict:
        task.send("Go on!")
    assert conflict.value.code == "task_not_running"


def test_agents_can_be_told_something(client: Any, upstream: Upstream) -> None:
    mark, prompt = marked(upstream, "[hold]")
    task = client.tasks.create(prompt=prompt, config=SPLIT)
    upstream.wait(mark, count=4)
    said = task.send("Mind the costs — 費用!")
    assert (said.type, said.content) == ("user_message", "Mind the costs — 費用!")
    upstream.release(mark, "work")
    assert task.wait().status == "Completed"
    assert "費用" in upstream.seen(mark)[-1].json["messages"][-1]["content"] or any(
        "費用" in str(message) for message in upstream.seen(mark)[-1].json["messages"]
    )


def test_waiting_has_an_end(client: Any, upstream: Upstream) -> None:
    mark, prompt = marked(upstream, "[hold]")
    task = client.tasks.create(prompt=prompt, config=SPLIT)
    with pytest.raises(HortatorTimeout):
        task.wait(timeout=0.1)
    upstream.wait(mark)
    task.cancel()


def test_a_tree_that_fails_says_why(client: Any, upstream: Upstream) -> None:
    mark = upstream.plan("status_400")
    task = client.tasks.create(
        prompt=f"{WORK} [mark:{mark}]", config={"tier": "legionary", "retry": {"max_attempts": 0}}
    )
    with pytest.raises(TaskError) as raised:
        task.result()
    assert (raised.value.phase, raised.value.task_id) == ("Failed", task.id)
    assert raised.value.code
    assert raised.value.message


def test_an_order_is_idempotent(client: Any, upstream: Upstream) -> None:
    _, prompt = marked(upstream)
    first = client.tasks.create(prompt=prompt, idempotency_key=f"mine-{prompt[-20:]}")
    assert client.tasks.create(prompt=prompt, idempotency_key=f"mine-{prompt[-20:]}").id == first.id
    with pytest.raises(ConflictError) as raised:
        client.tasks.create(prompt="Something else.", idempotency_key=f"mine-{prompt[-20:]}")
    assert raised.value.code == "idempotency_key_reused"
    assert first.id in [task.id for task in client.tasks.list(limit=100)]
    first.cancel()


def test_refusals_have_their_kinds(client: Any, make: Make, office: Gateway) -> None:
    with pytest.raises(AuthenticationError):
        make("hrt_sk_nobody").list_models()
    with pytest.raises(NotFoundError) as missing:
        client.tasks.get("0193d5a4-0000-7000-8000-000000000000")
    assert missing.value.code == "task_not_found"
    with pytest.raises(InvalidRequestError) as role:
        client.tasks.create(prompt="x", role="emperor")
    assert role.value.code == "unknown_role"
    assert role.value.request_id
    with pytest.raises(InvalidRequestError) as value:
        client.tasks.create(prompt="x", config={"max_agents": 99})
    assert value.value.param == "config.max_agents"
    with pytest.raises(InvalidRequestError) as path:
        client.tasks.create(prompt="x", files=[("../up.txt", b"")])
    assert path.value.code == "invalid_file_path"
    lawyer = make(office.new_key("lawyer", "--models", "hortator/legal-*"))
    with pytest.raises(PermissionDeniedError) as denied:
        lawyer.tasks.create(prompt="x", role="researcher")
    assert denied.value.code == "model_not_allowed"


def test_a_chat_is_answered_by_a_team(client: Any, upstream: Upstream) -> None:
    """R-000-14, R-000-27."""
    _, prompt = marked(upstream, "[parts:2]")
    chunks = client.chat.completions.create(
        model="hortator/coding-expert",
        messages=[{"role": "user", "content": prompt}],
        stream=True,
        hortator_mode="complex",
        verbosity="verbose",
    )
    assert chunks.task_id
    found = list(chunks)
    text = "".join(choice.delta.content or "" for chunk in found for choice in chunk.choices)
    assert text == "The answer of the team, from part-1, part-2."
    types = [chunk.hortator_event.type for chunk in found if chunk.hortator_event]
    assert "task_decomposed" in types
    assert client.tasks.get(chunks.task_id).status == "Completed"


def test_the_short_way(client: Any, upstream: Upstream) -> None:
    """R-000-21."""
    _, prompt = marked(upstream)
    result = client.run(prompt, budget=Budget(max_cost_usd="1.00"), files=[("a.md", "text")], hortator_mode="complex")
    assert result.content.startswith("The answer of the team")
    assert result.finish_reason == "stop"
    assert result.usage.total_tokens > 0
    _, prompt = marked(upstream)
    pieces = list(client.stream(prompt, role="researcher", hortator_mode="complex"))
    assert "".join(piece.content for piece in pieces).startswith("The answer of the team")
    assert pieces[-1].finish_reason == "stop" or pieces[-2].finish_reason == "stop"
    assert "hortator/researcher" in [model.id for model in client.list_models()]


def test_what_the_guide_shows_works(
    office: Gateway, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Every Python block of docs/guides/python-sdk.md, one after the other, as it is printed there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HORTATOR_API_KEY", office.key)
    monkeypatch.setenv("HORTATOR_BASE_URL", f"http://127.0.0.1:{office.port}")
    for name in ("src/app.py", "a.md", "b.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("Salve!")
    guide = (ROOT / "docs/guides/python-sdk.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    assert len(blocks) == 4
    source = "\n".join(blocks).replace('api_key="hrt_sk_...", base_url="http://127.0.0.1:8000"', "")
    names: dict[str, Any] = {}
    exec(compile(source, "python-sdk.md", "exec"), names)
    names["client"].close()
    assert names["task"].status == "Completed"
    assert "Completed" in capsys.readouterr().out
