"""The durable engine keeps the port's promises: what was begun is finished, and what was finished is not done again."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import os
import signal
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from hortator.errors import InvalidRequest, Unavailable, UpstreamRefused
from hortator.orchestration import engine as engine_module
from hortator.orchestration import heart
from hortator.orchestration.engine import DurableEngine, Role
from hortator.orchestration.ports import Handler
from hortator.store import Database, migrate, workers
from hortator.store.tables import metadata
from tests.databases import database, database_url
from tests.eventually import eventually
from tests.orchestration.engine_child import CHILDREN

__all__ = ["database", "database_url"]

pytestmark = pytest.mark.limit(90)


def made(database: Database, folder: Path, role: Role = "alone", slots: int = 8) -> DurableEngine:
    """An engine on the kind of database that the test is about."""
    if database.is_sqlite:
        return DurableEngine(file=folder / "home" / "engine.db")
    url = database.url.render_as_string(hide_password=False)
    return DurableEngine(url=url, database=database, role=role, slots=slots)


@contextlib.asynccontextmanager
async def running(engine: DurableEngine, handlers: dict[str, Handler]) -> AsyncIterator[DurableEngine]:
    await engine.start(handlers)
    try:
        yield engine
    finally:
        await engine.stop()


def counted(acts: list[str], name: str, result: Any = None) -> Callable[[], Awaitable[Any]]:
    async def act() -> Any:
        acts.append(name)
        return result

    return act


async def test_what_is_begun_runs_once_however_often_it_is_begun(database: Database, tmp_path: Path) -> None:
    runs: list[str] = []

    async def tree(id: str) -> None:
        runs.append(id)

    async with running(made(database, tmp_path), {"tree": tree}) as engine:
        await asyncio.gather(*(engine.begin("tree", "t1", tenant_id="acme") for _ in range(5)))
        await eventually(lambda: runs == ["t1"] and not engine.running)
        await engine.begin("tree", "t1", tenant_id="acme")
        await engine.begin("tree", "t2", tenant_id="acme")
        await eventually(lambda: runs == ["t1", "t2"])


async def test_a_handler_that_was_ended_goes_on_at_the_next_start_without_its_finished_steps(
    database: Database, tmp_path: Path
) -> None:
    acts: list[str] = []
    hold, held = asyncio.Event(), asyncio.Event()
    results: list[Any] = []

    async def tree(id: str) -> None:
        first = await engine.step("plan", counted(acts, "plan", {"parts": [1, None, "\x00ä"]}))
        await engine.begin("task", f"{id}.1", tenant_id="acme")
        await engine.step("note", counted(acts, "note"))
        held.set()
        await hold.wait()
        results.append((first, await engine.step("end", counted(acts, "end", "done"))))

    async def task(id: str) -> None:
        acts.append(id)

    engine = made(database, tmp_path)
    async with running(engine, {"tree": tree, "task": task}):
        await engine.begin("tree", "t1", tenant_id="acme")
        await held.wait()
    assert not results
    hold.set()
    engine = made(database, tmp_path)
    async with running(engine, {"tree": tree, "task": task}):
        await eventually(lambda: bool(results))
    assert results == [({"parts": [1, None, "\x00ä"]}, "done")]
    assert sorted(acts) == ["end", "note", "plan", "t1.1"]


async def test_an_error_of_a_step_is_the_same_error_when_the_handler_runs_again(
    database: Database, tmp_path: Path
) -> None:
    acts: list[str] = []
    seen: list[Any] = []
    hold, held = asyncio.Event(), asyncio.Event()

    def failing(name: str, error: Exception) -> Callable[[], Awaitable[None]]:
        async def act() -> None:
            acts.append(name)
            raise error

        return act

    refused = UpstreamRefused("no", upstream_status=529, status=503, type="overloaded_error", retry_after=3.0)

    async def tree(id: str) -> None:
        found: list[Any] = []
        errors = [InvalidRequest("bad", code="invalid_value", param="x"), refused, ZeroDivisionError("secret")]
        for error in errors:
            try:
                await engine.step(type(error).__name__, failing(type(error).__name__, error))
            except Exception as raised:  # noqa: BLE001 - the test looks at what comes
                told = vars(raised)
                names = ("message", "code", "param", "retry_after", "status", "upstream_status")
                found.append((type(raised).__name__, *(told.get(name, getattr(raised, name, None)) for name in names)))
        seen.append(found)
        held.set()
        await hold.wait()

    engine = made(database, tmp_path)
    async with running(engine, {"tree": tree}):
        await engine.begin("tree", "t1", tenant_id="acme")
        await held.wait()
    hold.set()
    engine = made(database, tmp_path)
    async with running(engine, {"tree": tree}):
        await eventually(lambda: len(seen) == 2)
    assert seen[0] == seen[1]
    assert [each[:3] for each in seen[0]] == [
        ("InvalidRequest", "bad", "invalid_value"),
        ("UpstreamRefused", "no", "upstream_refused"),
        ("HortatorError", "A step of the task failed unexpectedly.", "internal_error"),
    ]
    assert seen[0][1][4:] == (3.0, 503, 529)
    assert len(acts) == 3


async def test_steps_that_run_at_once_keep_their_own_results(database: Database, tmp_path: Path) -> None:
    results: list[list[int]] = []

    async def tree(id: str) -> None:
        def act(n: int) -> Callable[[], Awaitable[int]]:
            async def wait() -> int:
                await asyncio.sleep(0.02 * (n % 3))
                return n

            return wait

        results.append(await asyncio.gather(*(engine.step(f"part.{n}", act(n)) for n in range(20))))

    async with running(made(database, tmp_path), {"tree": tree}) as engine:
        await engine.begin("tree", "t1", tenant_id="acme")
        await eventually(lambda: bool(results))
    assert results == [list(range(20))]


async def test_what_is_asked_at_the_wrong_place_fails_loudly(database: Database, tmp_path: Path) -> None:
    wrong: list[str] = []

    async def tree(id: str) -> None:
        async def outer() -> None:
            await engine.step("inner", counted([], "inner"))

        try:
            await engine.step("outer", outer)
        except Exception as error:  # noqa: BLE001 - the test looks at what comes
            wrong.append(type(error).__name__)
        try:
            await engine.step("set", counted([], "set", object()))
        except Exception as error:  # noqa: BLE001
            wrong.append(type(error).__name__)

    engine = made(database, tmp_path)
    with pytest.raises(Unavailable):
        await engine.begin("tree", "t1", tenant_id="acme")
    async with running(engine, {"tree": tree}):
        with pytest.raises(RuntimeError, match="outside"):
            await engine.step("a", counted([], "a"))
        with pytest.raises(ValueError, match="kind"):
            await engine.begin("unknown", "t1", tenant_id="acme")
        with pytest.raises(RuntimeError, match="already"):
            await made(database, tmp_path).start({})
        await engine.begin("tree", "t1", tenant_id="acme")
        await eventually(lambda: len(wrong) == 2)
    assert wrong == ["HortatorError", "HortatorError"]
    with pytest.raises(Unavailable):
        await engine.begin("tree", "t1", tenant_id="acme")


async def test_a_handler_that_raises_is_buried_once(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graves: list[str] = []

    async def tree(id: str) -> None:
        raise ValueError("secret")

    async def grave(id: str) -> None:
        graves.append(id)

    async with running(made(database, tmp_path), {"tree": tree, "tree.dead": grave}) as engine:
        await engine.begin("tree", "t1", tenant_id="acme")
        await eventually(lambda: graves == ["t1"])
        await engine.begin("tree", "t1", tenant_id="acme")
        await eventually(lambda: not engine.running)
    assert graves == ["t1"]
    assert "ValueError" in caplog.text and "secret" not in caplog.text


async def test_a_caller_that_gives_up_while_it_begins_leaves_nothing_half_begun(
    database: Database, tmp_path: Path
) -> None:
    runs: list[str] = []

    async def tree(id: str) -> None:
        runs.append(id)

    async with running(made(database, tmp_path), {"tree": tree}) as engine:
        task = asyncio.create_task(engine.begin("tree", "t1", tenant_id="acme"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await eventually(lambda: runs == ["t1"])


async def test_what_ended_long_ago_is_deleted_in_batches(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "BATCH", 3)
    held = asyncio.Event()

    async def tree(id: str) -> None:
        if id == "held":
            await held.wait()

    async with running(made(database, tmp_path), {"tree": tree}) as engine:
        for n in range(5):
            await engine.begin("tree", f"t{n}", tenant_id="acme")
        await engine.begin("tree", "held", tenant_id="acme")
        await eventually(lambda: engine.running == 1)
        assert await engine.forget(timedelta(hours=1)) == 0
        await asyncio.sleep(0.01)
        counts: list[int] = []
        await eventually(lambda: deleted(engine, counts))
        assert counts[0] == 3
        assert sum(counts) == 5


async def deleted(engine: DurableEngine, counts: list[int]) -> bool:
    """Delete what has ended until five are gone; an end is written down a moment after the handler returned."""
    counts.append(await engine.forget(timedelta(milliseconds=1)))
    counts[:] = [count for count in counts if count]
    return sum(counts) == 5


async def test_the_engine_ends_and_begins_again_and_leaves_the_loop_its_threads(
    database: Database, tmp_path: Path
) -> None:
    runs: list[str] = []

    async def tree(id: str) -> None:
        await engine.step("a", counted(runs, id))

    names: set[str] = set()
    for n in range(3):
        engine = made(database, tmp_path)
        async with running(engine, {"tree": tree}):
            await engine.begin("tree", f"t{n}", tenant_id="acme")
            await eventually(lambda n=n: f"t{n}" in runs)  # type: ignore[misc]
            names.add(await asyncio.to_thread(lambda: threading.current_thread().name.rpartition("_")[0]))
        assert await asyncio.to_thread(lambda: 7) == 7
    assert runs == ["t0", "t1", "t2"]
    assert names == {"to-thread"}


async def test_a_full_pool_of_the_engine_delays_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that does not answer holds the engine's threads; files and metrics need threads too."""
    monkeypatch.setattr(engine_module, "THREADS", 2)
    free = threading.Event()

    def stuck() -> None:
        free.wait(30)

    stuck.__module__ = "dbos._sys_db"
    engine = DurableEngine(file=tmp_path / "engine.db")
    async with running(engine, {}):
        waiting = [asyncio.create_task(asyncio.to_thread(stuck)) for _ in range(4)]
        async with asyncio.timeout(5):
            assert await asyncio.to_thread(lambda: 7) == 7
        free.set()
        await asyncio.gather(*waiting)


async def test_the_loop_is_not_blocked_while_handlers_run(database: Database, tmp_path: Path) -> None:
    """Half a second of work in steps: the longest the loop was away is far below it."""
    ends: list[str] = []
    longest = 0.0

    async def tree(id: str) -> None:
        for n in range(5):
            await engine.step(f"s{n}", counted([], "s"))
        ends.append(id)

    async def watch() -> None:
        nonlocal longest
        loop = asyncio.get_running_loop()
        while True:
            at = loop.time()
            await asyncio.sleep(0)
            longest = max(longest, loop.time() - at)

    async with running(made(database, tmp_path), {"tree": tree}) as engine:
        watching = asyncio.create_task(watch())
        await asyncio.gather(*(engine.begin("tree", f"t{n}", tenant_id="acme") for n in range(20)))
        await eventually(lambda: len(ends) == 20)
        watching.cancel()
    assert longest < 0.5


async def test_our_migrations_do_not_see_the_engines_tables(database: Database, tmp_path: Path) -> None:
    def differences(connection: sqlalchemy.Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async with running(made(database, tmp_path), {}), database.read() as connection:
        assert await connection.run_sync(differences) == []


async def test_nothing_is_ever_pickled_or_unpickled(database: Database, tmp_path: Path) -> None:
    """A row of the engine says itself how it is to be read; one that says `pickle` must not be."""
    ends: list[str] = []

    async def tree(id: str) -> None:
        ends.append(id)

    async with running(made(database, tmp_path), {"tree": tree}) as engine:
        await engine.begin("tree", "t1", tenant_id="acme")
        await eventually(lambda: bool(ends))
        serializers = sys.modules["dbos._serialization"]
        for name in ("serialize", "deserialize"):
            with pytest.raises(TypeError, match="pickled"):
                getattr(serializers.DBOSDefaultSerializer, name)("gASVAAAAAAAAAE4u")
        with pytest.raises(TypeError, match="pickled"):
            serializers.deserialize_value("gASVAAAAAAAAAE4u", "py_pickle", serializers.DBOSPortableJSON)


async def test_a_server_starts_while_the_database_is_down_and_the_engine_follows(
    postgres_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "AGAIN_SECONDS", 0.2)
    database = Database(postgres_database)
    runs: list[str] = []

    async def tree(id: str) -> None:
        runs.append(id)

    # Without our tables the first beat fails, which is what a database that is down looks like from here.
    async with running(DurableEngine(url=postgres_database, database=database), {"tree": tree}) as engine:
        with pytest.raises(Unavailable):
            await engine.begin("tree", "t1", tenant_id="acme")
        await migrate(database)
        await eventually(lambda: engine.works)
        await engine.begin("tree", "t1", tenant_id="acme")
        await eventually(lambda: runs == ["t1"])
    await database.close()


# Several processes on one Postgres; one of them may be here. Others are rows, as the library is one per process.


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


async def test_what_is_said_to_run_here_but_does_not_is_run_again(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler that ends with a cancellation of its own making has not ended."""
    monkeypatch.setattr(engine_module, "TEND_SECONDS", 0.1)
    runs: list[str] = []

    async def tree(id: str) -> None:
        runs.append(id)
        if len(runs) == 1:
            raise asyncio.CancelledError

    async with running(made(database, tmp_path), {"tree": tree}) as engine:
        await engine.begin("tree", "t1", tenant_id="acme")
        await eventually(lambda: runs == ["t1", "t1"])


async def test_a_handler_that_takes_its_cancellation_for_an_end_runs_again(database: Database, tmp_path: Path) -> None:
    runs: list[str] = []
    hold, held = asyncio.Event(), asyncio.Event()

    async def tree(id: str) -> None:
        runs.append(id)
        held.set()
        with contextlib.suppress(asyncio.CancelledError):
            await hold.wait()

    async with running(made(database, tmp_path), {"tree": tree}) as engine:
        await engine.begin("tree", "t1", tenant_id="acme")
        await held.wait()
    hold.set()
    async with running(made(database, tmp_path), {"tree": tree}):
        await eventually(lambda: runs == ["t1", "t1"])


async def test_ending_in_good_order_is_not_counted_against_the_work(database: Database, tmp_path: Path) -> None:
    """A tree may take days, with a release every hour."""
    runs: list[str] = []
    hold = asyncio.Event()

    async def tree(id: str) -> None:
        runs.append(id)
        await hold.wait()

    for n in range(3):
        async with running(made(database, tmp_path), {"tree": tree}) as engine:
            await engine.begin("tree", "t1", tenant_id="acme")
            await eventually(lambda n=n: len(runs) == n + 1)  # type: ignore[misc]
            status = await sys.modules["dbos"].DBOS.get_workflow_status_async("tree:t1")
            assert status.recovery_attempts == 1


def test_the_library_has_what_we_use_of_its_inside() -> None:
    """Not its public interface; the version is pinned, and this says at once what a newer one took away."""
    library, core = engine_module._library(), importlib.import_module("dbos._dbos")
    system = importlib.import_module("dbos._sys_db").SystemDatabase

    def parameters(function: Any) -> list[str]:
        return list(inspect.signature(function).parameters)

    assert parameters(system.get_pending_workflows) == ["self", "executor_id", "app_version"]
    assert parameters(system.reenqueue_for_recovery) == ["self", "workflow_id", "executor_ids", "recovery_queue_name"]
    assert issubclass(library.error.DBOSWorkflowConflictIDError, BaseException)
    assert issubclass(library.error.DBOSWorkflowCancelledError, BaseException)
    assert not issubclass(library.error.DBOSWorkflowConflictIDError, Exception)
    assert not issubclass(library.error.DBOSWorkflowCancelledError, Exception)
    assert parameters(core.DBOS._recover_pending_workflows) == ["executor_ids"]
    source = inspect.getsource(core.DBOS)
    for name in (
        "_background_event_loop",
        "_shared_executor_field",
        "_active_workflows_set",
        "background_thread_stop_events",
        "_executor_field",
    ):
        assert f"self.{name}" in source, name
    assert "shared.executor is not executor" in source, "how it knows that the loop has its threads"
    assert "set_main_loop" in dir(importlib.import_module("dbos._event_loop").BackgroundEventLoop)
    assert "activeList" in dir(importlib.import_module("dbos._core").ActiveWorkflowById)
    assert "get_internal_queue" in dir(core.DBOSRegistry)


# Processes that die.


class Child:
    """A process with an engine; its lines are read as they come."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, folder: Path, role: str, url: str | None) -> Child:
        arguments = [str(folder), role, *([] if url is None else [url])]
        pipe = asyncio.subprocess.PIPE
        command = [sys.executable, "-m", "tests.orchestration.engine_child", *arguments]
        child = cls(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe))
        assert await child.line() == "ready"
        return child

    async def line(self) -> str:
        assert self.process.stdout is not None
        return (await self.process.stdout.readline()).decode().strip()

    async def begin(self, kind: str, id: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{kind} {id}\n".encode())
        assert await self.line() == f"begun {id}"

    async def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        await self.process.wait()

    async def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        await self.process.wait()


def lines(file: Path) -> list[tuple[str, str]]:
    """What was noted, and by which process."""
    if not file.exists():
        return []
    return [(line.rpartition(" ")[0], line.rpartition(" ")[2]) for line in file.read_text().splitlines()]


def finished(folder: Path, trees: int = 1) -> bool:
    return len({name for name, _ in lines(folder / "ends")}) == trees * (CHILDREN + 1)


def holding(folder: Path, trees: int = 1) -> bool:
    return sum(name.endswith("hold") for name, _ in lines(folder / "acts")) >= trees * (CHILDREN + 1)


def check_acts(folder: Path, trees: int = 1) -> None:
    """Steps that had finished before the death ran once; those it broke off, twice."""
    acts = Counter(name for name, _ in lines(folder / "acts"))
    assert {count for name, count in acts.items() if not name.endswith("hold")} == {1}
    assert {count for name, count in acts.items() if name.endswith("hold")} <= {1, 2}
    assert len(acts) == trees * (2 + 4 * CHILDREN)
    assert set(Counter(name for name, _ in lines(folder / "ends")).values()) == {1}


async def migrated(url: str) -> None:
    opened = Database(url)
    await migrate(opened)
    await opened.close()


async def test_kill_9_of_the_only_process_runs_no_finished_step_again(database_url: str, tmp_path: Path) -> None:
    url = None if database_url.startswith("sqlite") else database_url
    await migrated(database_url)
    child = await Child.start(tmp_path, "alone", url)
    await child.begin("tree", "t1")
    await eventually(lambda: holding(tmp_path))
    await child.kill()
    (tmp_path / "release").touch()
    child = await Child.start(tmp_path, "alone", url)
    await eventually(lambda: finished(tmp_path))
    await child.stop()
    check_acts(tmp_path)


async def test_what_a_killed_worker_did_is_taken_over_within_ten_seconds(
    postgres_database: str, tmp_path: Path
) -> None:
    await migrated(postgres_database)
    workers = [await Child.start(tmp_path, "worker", postgres_database) for _ in range(2)]
    for n in range(4):
        await workers[0].begin("tree", f"t{n}")
    await eventually(lambda: holding(tmp_path, 4))
    victim = next(each for each in workers if str(each.process.pid) in {pid for _, pid in lines(tmp_path / "acts")})
    await victim.kill()
    (tmp_path / "release").touch()
    await eventually(lambda: finished(tmp_path, 4), 10)
    for each in workers:
        if each is not victim:
            await each.stop()
    check_acts(tmp_path, 4)


async def test_a_worker_that_stops_hands_over_at_once(postgres_database: str, tmp_path: Path) -> None:
    await migrated(postgres_database)
    first = await Child.start(tmp_path, "worker", postgres_database)
    await first.begin("tree", "t1")
    await eventually(lambda: holding(tmp_path))
    second = await Child.start(tmp_path, "worker", postgres_database)
    await first.stop()
    (tmp_path / "release").touch()
    # Well before anybody could be taken for dead.
    await eventually(lambda: finished(tmp_path), 4)
    await second.stop()
    check_acts(tmp_path)


async def test_what_kills_its_process_again_and_again_is_given_up_and_buried(tmp_path: Path) -> None:
    child = await Child.start(tmp_path, "alone", None)
    assert child.process.stdin is not None
    child.process.stdin.write(b"killer k1\n")
    await child.process.wait()
    with closing(sqlite3.connect(tmp_path / "engine.db")) as file, file:
        # As if it had done so five times more.
        file.execute(f"UPDATE workflow_status SET recovery_attempts = {engine_module.RECOVERIES}")
    for _ in range(2):
        child = await Child.start(tmp_path, "alone", None)
        if len(lines(tmp_path / "acts")) < 2:
            await child.process.wait()
    await eventually(lambda: [name for name, _ in lines(tmp_path / "ends")] == ["k1 is dead"])
    await child.stop()
    assert len(lines(tmp_path / "acts")) == 2
