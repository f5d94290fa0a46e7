"""Several processes on one Postgres: who takes what, who is taken for dead, and what becomes of its work.

One of them is here; others are rows, as the library is one per process.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from hortator.errors import Unavailable
from hortator.orchestration import engine as engine_module
from hortator.orchestration import heart
from hortator.orchestration.engine import DurableEngine
from hortator.store import Database, migrate, workers
from tests.cable import cable
from tests.eventually import eventually
from tests.orchestration.engines import counted, made, running

pytestmark = pytest.mark.limit(90)


async def query(database: Database, statement: str, **values: Any) -> list[Any]:
    async with database.write() as connection:
        result = await connection.execute(sqlalchemy.text(statement), values)
        return list(result.all()) if result.returns_rows else []


@pytest.fixture
async def postgres(postgres_database: str) -> AsyncIterator[Database]:
    opened = Database(postgres_database)
    await migrate(opened)
    yield opened
    await opened.close()


async def leave(postgres: Database, tmp_path: Path, order: list[tuple[str, str, str]]) -> None:
    """Be a server that leaves trees to workers: (id, tenant, priority) each; it must not run them itself."""

    async def never(id: str) -> None:
        raise AssertionError("a server with workers runs no tree that nobody waits for")

    async with running(made(postgres, tmp_path, "server"), {"tree": never}) as server:
        for id, tenant, priority in order:
            await server.begin("tree", id, tenant_id=tenant, priority=priority)
            await server.begin("tree", id, tenant_id=tenant, priority=priority)
        await asyncio.sleep(3 * max(engine_module.POLL_SECONDS.values()))
        assert server.running == 0


async def test_a_server_with_workers_runs_only_what_is_begun_here(postgres: Database, tmp_path: Path) -> None:
    runs: list[str] = []

    async def tree(id: str) -> None:
        await engine.begin("task", f"{id}.1", tenant_id="acme")
        runs.append(id)

    async def task(id: str) -> None:
        runs.append(id)

    engine = made(postgres, tmp_path, "server")
    async with running(engine, {"tree": tree, "task": task}):
        await engine.begin("tree", "later", tenant_id="acme")
        await engine.begin("tree", "now", tenant_id="acme", here=True)
        await eventually(lambda: sorted(runs) == ["now", "now.1"])
    engine = made(postgres, tmp_path, "worker")
    async with running(engine, {"tree": tree, "task": task}):
        await eventually(lambda: sorted(runs) == ["later", "later.1", "now", "now.1"])


async def test_a_worker_takes_priority_high_first_and_keeps_places_from_a_greedy_tenant(
    postgres: Database, tmp_path: Path
) -> None:
    """R-000-41. Eight slots: one tenant holds six at most, priority high has places of its own."""
    greedy = [(f"a{n}", "acme", "standard") for n in range(20)]
    await leave(
        postgres, tmp_path, [*greedy, ("b0", "beta", "low"), ("b1", "beta", "standard"), ("h", "gamma", "high")]
    )
    begun: list[str] = []
    hold = asyncio.Event()

    async def tree(id: str) -> None:
        begun.append(id)
        await hold.wait()

    engine = made(postgres, tmp_path, "worker", slots=8)
    async with running(engine, {"tree": tree}):
        await eventually(lambda: "h" in begun and len(begun) == 9)
        assert begun.index("b1") < begun.index("b0")
        ours = [id for id in begun if id.startswith("a")]
        assert len(ours) == 6
        assert ours == [f"a{n}" for n in range(len(ours))]
        hold.set()
        await eventually(lambda: len(begun) == 23)


async def test_a_live_process_that_is_taken_for_dead_repeats_no_finished_step(
    postgres: Database, tmp_path: Path
) -> None:
    """Its work is freed while it works: one of the two runs wins, the other ends, and nothing finished runs again."""
    acts: list[str] = []
    runs = 0
    hold, held = asyncio.Event(), asyncio.Event()

    async def tree(id: str) -> None:
        nonlocal runs
        runs += 1
        await engine.step("before", counted(acts, "before"))

        async def wait() -> int:
            acts.append("during")
            held.set()
            await hold.wait()
            return len(acts)

        acts.append(f"got {await engine.step('during', wait)}")
        await engine.step("after", counted(acts, "after"))

    engine = made(postgres, tmp_path)
    async with running(engine, {"tree": tree}):
        await engine.begin("tree", "t1", tenant_id="acme")
        await held.wait()
        library = sys.modules["dbos"]
        [executor] = [row[0] for row in await query(postgres, "SELECT id FROM engine_workers")]
        # What another process would do: the public name for what we do by queue.
        await asyncio.to_thread(library.DBOS._recover_pending_workflows, [executor])
        await eventually(lambda: runs == 2 and acts.count("during") == 2)
        hold.set()
        await eventually(lambda: "after" in acts and not engine.running)
    counts = Counter(acts)
    assert (counts["before"], counts["during"], counts["after"]) == (1, 2, 1)
    assert sum(act.startswith("got") for act in acts) == 1


async def test_the_work_of_processes_that_are_silent_or_unknown_is_taken_over(
    postgres: Database, tmp_path: Path
) -> None:
    runs: list[str] = []
    hold, held = asyncio.Event(), asyncio.Event()

    async def tree(id: str) -> None:
        runs.append(id)
        if len(runs) == 2:
            held.set()
        await hold.wait()

    engine = made(postgres, tmp_path)
    async with running(engine, {"tree": tree}):
        await engine.begin("tree", "silent", tenant_id="acme")
        await engine.begin("tree", "unknown", tenant_id="acme")
        await held.wait()
    # As if two others had begun them and had not come to an end.
    for id in ("silent", "unknown"):
        await query(
            postgres,
            "UPDATE dbos.workflow_status SET status = 'PENDING', executor_id = :id WHERE workflow_uuid = :workflow",
            id=id,
            workflow=f"tree:{id}",
        )
    await query(
        postgres,
        "INSERT INTO engine_workers VALUES ('silent', 'worker', '1', now(), now() - interval '6 seconds'),"
        " ('alive', 'worker', '1', now(), now() + interval '60 seconds')",
    )
    hold.set()
    async with running(made(postgres, tmp_path), {"tree": tree}):
        await eventually(lambda: sorted(runs) == ["silent", "silent", "unknown", "unknown"], 8)
        assert [row[0] for row in await query(postgres, "SELECT id FROM engine_workers WHERE kind = 'worker'")] == [
            "alive"
        ]
    assert [row[0] for row in await query(postgres, "SELECT id FROM engine_workers")] == ["alive"]


async def test_a_process_that_cannot_be_heard_of_stops_and_begins_anew_when_it_can(
    postgres: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heart, "SILENT_SECONDS", 0.6)
    monkeypatch.setattr(heart, "BEAT_SECONDS", 0.1)
    runs: list[str] = []
    ended: list[str] = []

    async def tree(id: str) -> None:
        runs.append(id)
        try:
            await hold.wait()
        except asyncio.CancelledError:
            ended.append(id)
            raise

    hold = asyncio.Event()
    beat, silent = workers.beat, True

    async def unheard(database: Database, worker: Any) -> None:
        if silent:
            raise Unavailable("down")
        await beat(database, worker)

    engine = made(postgres, tmp_path)
    async with running(engine, {"tree": tree}):
        await engine.begin("tree", "t1", tenant_id="acme")
        await eventually(lambda: runs == ["t1"])
        monkeypatch.setattr(workers, "beat", unheard)
        await eventually(lambda: ended == ["t1"])
        with pytest.raises(Unavailable):
            await engine.begin("tree", "t2", tenant_id="acme")
        silent = False
        await eventually(lambda: runs == ["t1", "t1"])
        hold.set()


async def test_a_database_that_is_away_for_a_moment_costs_no_finished_work(postgres: Database, tmp_path: Path) -> None:
    """A step that ends meanwhile is written down when the database is back."""
    acts: list[str] = []
    results: list[Any] = []
    held, away = asyncio.Event(), asyncio.Event()

    async def tree(id: str) -> None:
        async def act() -> str:
            acts.append("act")
            held.set()
            await away.wait()
            return "found"

        results.append(await engine.step("act", act))
        results.append(await engine.step("after", counted(acts, "after", "done")))

    url = postgres.url
    async with cable(url.host or "", url.port or 0) as wire:
        far = url.set(host="127.0.0.1", port=wire.port).render_as_string(hide_password=False)
        engine = DurableEngine(url=far, database=postgres)
        async with running(engine, {"tree": tree}):
            await engine.begin("tree", "t1", tenant_id="acme")
            await held.wait()
            await wire.cut()
            away.set()
            begun = asyncio.create_task(engine.begin("tree", "t2", tenant_id="acme"))
            await asyncio.sleep(0.2)
            assert not results
            await wire.mend()
            await eventually(lambda: results[:2] == ["found", "done"])
            await begun
            await eventually(lambda: len(results) == 4)
    assert Counter(acts) == {"act": 2, "after": 2}


async def test_the_engine_ends_while_the_database_is_away(postgres: Database, tmp_path: Path) -> None:
    """No thread of it is left that the end of the process would wait for."""
    held = asyncio.Event()

    async def tree(id: str) -> None:
        held.set()
        await asyncio.gather(*(engine.step(f"s{n}", asyncio.Event().wait if n else counted([], "s")) for n in range(3)))

    url = postgres.url
    async with cable(url.host or "", url.port or 0) as wire:
        far = url.set(host="127.0.0.1", port=wire.port).render_as_string(hide_password=False)
        engine = DurableEngine(url=far, database=postgres)
        async with running(engine, {"tree": tree}):
            await engine.begin("tree", "t1", tenant_id="acme")
            await held.wait()
            await wire.cut()
            starting = [asyncio.create_task(engine.begin("tree", f"n{n}", tenant_id="acme")) for n in range(3)]
            await asyncio.sleep(0.2)
        await asyncio.gather(*starting, return_exceptions=True)
        await eventually(lambda: not [each for each in threading.enumerate() if "dbos" in each.name])
