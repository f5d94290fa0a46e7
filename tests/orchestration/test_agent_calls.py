"""What agents ask walks the corridor: chosen by tier or name, streamed or whole, priced and recorded like a client's call."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import uuid_utils

from hortator.agent_calls import AgentCalls
from hortator.app import App
from hortator.call import Caller
from hortator.errors import HortatorError, NotFound
from hortator.orchestration.ports import Ask, Spent
from hortator.settings import TierModels, load
from hortator.tenancy.keys import create_key
from tests.eventually import eventually
from tests.upstream.process import Upstream, running_upstream
from tests.upstream.script import TEXT

TASK = str(uuid_utils.uuid7())
PRICES = {"up": {name: {"input": 2, "output": 10} for name in ("ok", "late_error_event")}}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with running_upstream() as running:
        yield running


@pytest.fixture
async def app(tmp_path: Path, upstream: Upstream) -> AsyncIterator[App]:
    prices = tmp_path / "prices.json"
    prices.write_text(json.dumps(PRICES))
    document = {
        "admin": {"enabled": False},
        "local": {"enabled": False},
        "detect_providers": False,
        "orchestration": {"enabled": False},
        "breaker": {"look": False},
        "retry": {"max_retries": 0},
        "ledger": {"price_overrides": str(prices)},
        "providers": [
            {
                "id": "up",
                "kind": "openai",
                "base_url": upstream.base_url("one"),
                "api_key": "k",
                "models": ["ok", "tools", "late_error_event"],
            }
        ],
        "routing": {"cards": {"up/ok": {"quality": 9}, "up/tools": {"quality": 1}}},
    }
    file = tmp_path / "hortator.yaml"
    file.write_text(json.dumps(document))
    settings = load(file, {"HORTATOR_HOME": str(tmp_path)})
    running = App(settings, None, read=lambda: settings, changed=lambda _: None)
    await running.start()
    yield running
    await running.drain()


@pytest.fixture
def calls(app: App) -> AgentCalls:
    return app.agent_calls(TierModels())


@pytest.fixture
async def caller(app: App, calls: AgentCalls) -> Caller:
    key = await create_key(app.database, name="team", models=["hortator/*"])
    return await calls.caller(key.record.key_hash, "high")


def ask(**changes: Any) -> Ask:
    base: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "tier": "legionary"}
    return Ask(task_id=TASK, root_id=TASK, **{**base, **changes})


async def test_an_answer_says_what_it_took_and_cost(calls: AgentCalls, caller: Caller) -> None:
    answer = await calls.ask(caller, ask(model="up/ok", max_tokens=50))
    assert (answer.text, answer.finish_reason, answer.deployment) == (TEXT, "stop", "up/ok")
    usage = answer.usage
    assert usage.input and usage.output
    assert answer.cost == (Decimal(2) * usage.input + Decimal(10) * usage.output) / 1_000_000


async def test_a_streamed_answer_is_told_piece_by_piece(calls: AgentCalls, caller: Caller) -> None:
    pieces: list[str] = []
    answer = await calls.ask(caller, ask(model="up/ok", on_text=pieces.append))
    assert len(pieces) > 1
    assert "".join(pieces) == answer.text == TEXT
    assert answer.usage.output


async def test_a_key_that_may_only_use_teams_has_one_that_works(calls: AgentCalls, caller: Caller) -> None:
    assert caller.allowed_models == ("*",)
    answer = await calls.ask(caller, ask(tier="tribune"))
    assert answer.deployment == "up/ok"  # the best, not the cheapest


async def test_the_priority_of_a_tree_never_exceeds_its_keys(app: App, calls: AgentCalls) -> None:
    key = await create_key(app.database, name="slow", priority="low")
    assert (await calls.caller(key.record.key_hash, "high")).priority == "low"


async def test_the_record_of_a_call_names_its_task(app: App, calls: AgentCalls, caller: Caller) -> None:
    await calls.ask(caller, ask(model="up/ok"))

    async def recorded() -> str | None:
        async with app.database.read() as connection:
            found = await connection.exec_driver_sql("SELECT task_id FROM usage_events")
            return found.scalar()

    async def same() -> bool:
        return await recorded() == TASK.replace("-", "")

    await eventually(same)


async def test_an_estimate_knows_the_dearest_price(calls: AgentCalls, caller: Caller) -> None:
    found = calls.estimate(caller, ask(model="up/ok"))
    assert found.input_tokens > 1
    assert (found.input_price, found.output_price) == (Decimal("0.000002"), Decimal("0.00001"))


async def test_a_model_that_is_not_served_is_said_so(calls: AgentCalls, caller: Caller) -> None:
    with pytest.raises(NotFound):
        await calls.ask(caller, ask(model="nobody/nothing"))


async def test_a_call_that_broke_after_it_had_begun_says_what_it_cost(calls: AgentCalls, caller: Caller) -> None:
    with pytest.raises(Spent) as raised:
        await calls.ask(caller, ask(model="up/late_error_event", on_text=lambda _: None))
    assert isinstance(raised.value.__cause__, HortatorError)
    assert raised.value.cost
