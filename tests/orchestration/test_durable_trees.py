"""Trees on the durable engine, on both databases: an answer, a restart in the middle, a cancellation, an end of time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hortator.orchestration.ports import Ask
from hortator.store import Database
from hortator.store.queries import add_tenant
from hortator.store.tasks import Task
from tests.databases import database, database_url
from tests.eventually import eventually
from tests.orchestration.engines import made, running
from tests.orchestration.field import Field, Reply, Script, consistent, kind, part, plan

__all__ = ["database", "database_url"]

pytestmark = pytest.mark.limit(90)


class Held:
    """A corridor whose part `a` waits to be let go."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.script = Script(self._reply)

    async def _reply(self, ask: Ask) -> Reply:
        if kind(ask) == "do a":
            await self.free.wait()
        return plan("a", part("b", "a"), "c") if kind(ask) == "plan" else kind(ask).upper()


async def finished(field: Field, id: str) -> Task:
    async with asyncio.timeout(20):
        task = await field.hub.wait(field.scope.tenant_id, id, 20.0)
    assert task is not None
    return task


async def test_a_tree_goes_on_after_a_restart_without_its_finished_calls(database: Database, tmp_path: Path) -> None:
    tenant = await add_tenant(database, "A", "a", datetime.now(UTC))
    held = Held()
    engine = made(database, tmp_path)
    field = Field(database, str(tenant.id), held.script, durable=engine)
    async with running(engine, field.tree.handlers):
        id = await field.order()
        await eventually(field.has_ended(id, "c"))
    held.free.set()
    engine = made(database, tmp_path)
    field = Field(database, str(tenant.id), held.script, durable=engine)
    async with running(engine, field.tree.handlers):
        root = await finished(field, id)
        await eventually(lambda: not engine.running)
    assert root.status == "Completed" and (root.results or {})["content"] == "SYNTHESIS"
    assert sorted(held.script.kinds) == ["do a", "do a", "do b", "do c", "plan", "synthesis"]
    consistent(await field.events(id))


async def test_a_cancelled_tree_ends_at_once_and_stays_ended(database: Database, tmp_path: Path) -> None:
    tenant = await add_tenant(database, "A", "a", datetime.now(UTC))
    held = Held()
    engine = made(database, tmp_path)
    field = Field(database, str(tenant.id), held.script, durable=engine)
    async with running(engine, field.tree.handlers):
        id = await field.order()
        await eventually(field.has_ended(id, "c"))
        await field.scope.cancel(id, "by the client")
        await eventually(lambda: not engine.running and held.script.now == 0)
    assert (await finished(field, id)).status == "Cancelled"
    engine = made(database, tmp_path)
    field = Field(database, str(tenant.id), held.script, durable=engine)
    async with running(engine, field.tree.handlers):
        await eventually(lambda: not engine.running)
    assert held.script.kinds.count("do a") == 1
    consistent(await field.events(id))


async def test_a_tree_whose_time_is_over_ends_while_a_call_hangs(database: Database, tmp_path: Path) -> None:
    tenant = await add_tenant(database, "A", "a", datetime.now(UTC))
    held = Held()
    engine = made(database, tmp_path)
    field = Field(database, str(tenant.id), held.script, durable=engine)
    async with running(engine, field.tree.handlers):
        id = await field.order(deadline=2.0)
        root = await finished(field, id)
        await eventually(lambda: not engine.running)
    assert root.status in ("Completed", "TimedOut") and held.script.now == 0
    assert (await field.tasks(id))["a"].status in ("TimedOut", "Cancelled")
    consistent(await field.events(id))
