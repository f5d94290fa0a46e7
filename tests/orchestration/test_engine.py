"""The durable engine keeps the port's promises: what was begun is finished, and what was finished is not done again."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from hortator.errors import InvalidRequest, Unavailable, UpstreamRefused
from hortator.orchestration import engine as engine_module
from hortator.orchestration.engine import DurableEngine
from hortator.store import Database, migrate, sqlite_url
from hortator.store.engine_database import claim
from hortator.store.tables import metadata
from tests.databases import database, database_url
from tests.eventually import eventually
from tests.orchestration.engines import counted, made, running

__all__ = ["database", "database_url"]

pytestmark = pytest.mark.limit(90)


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[Database]:
    """Where both databases do the same, one is enough."""
    opened = Database(sqlite_url(tmp_path / "store.db"))
    yield opened
    await opened.close()


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
    sqlite: Database, tmp_path: Path
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

    engine = made(sqlite, tmp_path)
    async with running(engine, {"tree": tree}):
        await engine.begin("tree", "t1", tenant_id="acme")
        await held.wait()
    hold.set()
    engine = made(sqlite, tmp_path)
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


async def test_steps_that_run_at_once_keep_their_own_results(sqlite: Database, tmp_path: Path) -> None:
    results: list[list[int]] = []

    async def tree(id: str) -> None:
        def act(n: int) -> Callable[[], Awaitable[int]]:
            async def wait() -> int:
                await asyncio.sleep(0.02 * (n % 3))
                return n

            return wait

        results.append(await asyncio.gather(*(engine.step(f"part.{n}", act(n)) for n in range(20))))

    async with running(made(sqlite, tmp_path), {"tree": tree}) as engine:
        await engine.begin("tree", "t1", tenant_id="acme")
        await eventually(lambda: bool(results))
    assert results == [list(range(20))]


async def test_what_is_asked_at_the_wrong_place_fails_loudly(sqlite: Database, tmp_path: Path) -> None:
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

    engine = made(sqlite, tmp_path)
    with pytest.raises(Unavailable):
        await engine.begin("tree", "t1", tenant_id="acme")
    async with running(engine, {"tree": tree}):
        with pytest.raises(RuntimeError, match="outside"):
            await engine.step("a", counted([], "a"))
        with pytest.raises(ValueError, match="kind"):
            await engine.begin("unknown", "t1", tenant_id="acme")
        with pytest.raises(RuntimeError, match="already"):
            await made(sqlite, tmp_path).start({})
        await engine.begin("tree", "t1", tenant_id="acme")
        await eventually(lambda: len(wrong) == 2)
    assert wrong == ["HortatorError", "HortatorError"]
    with pytest.raises(Unavailable):
        await engine.begin("tree", "t1", tenant_id="acme")


async def test_a_handler_that_raises_is_buried_once(
    sqlite: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graves: list[str] = []

    async def tree(id: str) -> None:
        raise ValueError("secret")

    async def grave(id: str) -> None:
        graves.append(id)

    async with running(made(sqlite, tmp_path), {"tree": tree, "tree.dead": grave}) as engine:
        await engine.begin("tree", "t1", tenant_id="acme")
        await eventually(lambda: graves == ["t1"])
        await engine.begin("tree", "t1", tenant_id="acme")
        await eventually(lambda: not engine.running)
    assert graves == ["t1"]
    assert "ValueError" in caplog.text and "secret" not in caplog.text


async def test_a_caller_that_gives_up_while_it_begins_leaves_nothing_half_begun(
    sqlite: Database, tmp_path: Path
) -> None:
    runs: list[str] = []

    async def tree(id: str) -> None:
        runs.append(id)

    async with running(made(sqlite, tmp_path), {"tree": tree}) as engine:
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


async def test_what_ended_long_ago_is_deleted_without_being_asked(
    sqlite: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "FORGET_SECONDS", 0.05)
    monkeypatch.setattr(engine_module, "KEEP", timedelta(milliseconds=1))
    runs: list[str] = []

    async def tree(id: str) -> None:
        runs.append(id)

    async with running(made(sqlite, tmp_path), {"tree": tree}) as engine:
        await engine.begin("tree", "t1", tenant_id="acme")

        async def forgotten() -> bool:
            return await sys.modules["dbos"].DBOS.get_workflow_status_async("tree:t1") is None

        await eventually(forgotten)
    assert runs == ["t1"]


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


async def test_nothing_is_ever_pickled_or_unpickled(sqlite: Database, tmp_path: Path) -> None:
    """A row of the engine says itself how it is to be read; one that says `pickle` must not be."""
    ends: list[str] = []

    async def tree(id: str) -> None:
        ends.append(id)

    async with running(made(sqlite, tmp_path), {"tree": tree}) as engine:
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


async def test_what_is_said_to_run_here_but_does_not_is_run_again(
    sqlite: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler that ends with a cancellation of its own making has not ended."""
    monkeypatch.setattr(engine_module, "TEND_SECONDS", 0.1)
    runs: list[str] = []

    async def tree(id: str) -> None:
        runs.append(id)
        if len(runs) == 1:
            raise asyncio.CancelledError

    async with running(made(sqlite, tmp_path), {"tree": tree}) as engine:
        await engine.begin("tree", "t1", tenant_id="acme")
        await eventually(lambda: runs == ["t1", "t1"])


async def test_a_handler_that_takes_its_cancellation_for_an_end_runs_again(sqlite: Database, tmp_path: Path) -> None:
    runs: list[str] = []
    hold, held = asyncio.Event(), asyncio.Event()

    async def tree(id: str) -> None:
        runs.append(id)
        held.set()
        with contextlib.suppress(asyncio.CancelledError):
            await hold.wait()

    async with running(made(sqlite, tmp_path), {"tree": tree}) as engine:
        await engine.begin("tree", "t1", tenant_id="acme")
        await held.wait()
    hold.set()
    async with running(made(sqlite, tmp_path), {"tree": tree}):
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


async def test_a_second_process_on_the_same_file_waits_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take what the first is doing for what a dead one left."""
    monkeypatch.setattr(engine_module, "AGAIN_SECONDS", 0.05)
    file = tmp_path / "engine.db"
    first = claim(file)
    async with running(DurableEngine(file=file), {}) as engine:
        assert not engine.works
        first.close()
        await eventually(lambda: engine.works)
        with pytest.raises(Unavailable):
            claim(file)
    claim(file).close()


async def test_a_start_that_is_broken_off_leaves_nothing_behind(sqlite: Database, tmp_path: Path) -> None:
    """A server that is stopped while it starts; a file that is still claimed would keep the next one from it."""
    runs: list[str] = []

    async def tree(id: str) -> None:
        runs.append(id)

    for turns in (0, 1, 5, 50, 500):
        engine = made(sqlite, tmp_path)
        starting = asyncio.create_task(engine.start({"tree": tree}))
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await engine.stop()
    async with running(made(sqlite, tmp_path), {"tree": tree}) as engine:
        await engine.begin("tree", "t1", tenant_id="acme")
        await eventually(lambda: runs == ["t1"])
