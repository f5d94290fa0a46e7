"""Durable running: the port `Engine` on DBOS, whose one owner this file is.

Made by the composition, started with the room's handlers. A handler is a DBOS workflow whose id is `kind:id`; a step is a DBOS step. What
DBOS leaves to its commercial service is ours: who is dead (`heart.py`), what becomes of their work, what is given up, what is deleted.
DBOS does its database work in threads (`threads.py`); handlers run on the event loop that called `start`. Nothing is ever unpickled.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import random
import socket
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextvars import Context, ContextVar
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

from hortator import __version__
from hortator.errors import HortatorError, Unavailable
from hortator.orchestration import record
from hortator.orchestration.heart import Heart
from hortator.orchestration.ports import Handler
from hortator.orchestration.threads import Threads
from hortator.store.database import Database
from hortator.store.engine_database import claim, engine_file, engine_postgres, forgive, reachable
from hortator.store.workers import Worker

if TYPE_CHECKING:
    import dbos
    from dbos._serialization import DefaultSerializer

log = logging.getLogger("hortator.orchestration")

T = TypeVar("T")
Role = Literal["alone", "server", "worker"]

VERSION = "1"
"""Of what handlers do: work of another version is left alone. Changes only where a handler could not go on with what an older one began."""
APPLICATION = "hortator"
WORKFLOW = "hortator.handler"
TREES, EXPRESS, BRANCHES = "trees", "express", "branches"
"""Queues: what servers leave to workers, the same of priority high, and what a dead process had begun by itself. The last has no bound:
what waits there has a parent that holds a place already."""
POLL_SECONDS = {TREES: 0.15, EXPRESS: 0.15, BRANCHES: 0.5}
IDLE_POLL_SECONDS = 1.0
"""Alone, nothing comes by queue but what dead processes leave, and what was queued before workers were done away with."""
PRIORITIES = {"high": 1, "standard": 2, "low": 3}
RECOVERIES = 5
"""How often a handler is run again after its process died; then it is taken for what kills them."""
THREADS = 32
BEGIN_SECONDS = 10.0
END_SECONDS = 5.0
"""How long handlers may take to end when the engine stops."""
TEND_SECONDS = 5.0
AGAIN_SECONDS = 5.0
PAUSE_SECONDS = 5.0
FORGET_SECONDS = 3600.0
KEEP = timedelta(days=1)
"""How long what has ended is remembered: nobody begins it a second time by then. The tasks themselves are kept by the store."""
BATCH = 500
ENDED = ["SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"]


class _Run:
    """One run of a handler."""

    __slots__ = ("acting", "ended", "task")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task = task
        self.ended = False
        """True = it is not to go on; nothing of it may be written down any more."""

    def end(self) -> None:
        self.ended = True
        self.task.cancel()


_run: ContextVar[_Run | None] = ContextVar("engine_run", default=None)
_acting: ContextVar[bool] = ContextVar("engine_acting", default=False)
_running: DurableEngine | None = None
"""The library is one per process, and so are we."""
_workflow: Callable[..., Coroutine[Any, Any, None]] | None = None


async def _handle(kind: str, id: str) -> None:
    """The one workflow of all handlers."""
    assert _running is not None
    await _running.run(kind, id)


def _refuse(*_: Any) -> NoReturn:
    """Whoever can write to the database could have us run anything: a row says itself whether it is pickled."""
    raise TypeError("pickled data is not read")


class _Clock:
    """`time`, as the library's database code gets it: what waits there for a database waits five seconds at most, and not past our end.

    It would wait up to ninety, after an outage of a minute too; and a process cannot exit while one of its threads waits.
    """

    def __init__(self) -> None:
        self.over = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        self.over.wait(min(seconds, PAUSE_SECONDS))


_clock = _Clock()


def _library() -> Any:
    """Return the library, and register the workflow once in the life of the process.

    Imported here, in a thread, and not above: it takes 0.4 s and 25 MB, which every command of the command line would pay for, and
    servers without orchestration.
    """
    global _workflow  # noqa: PLW0603
    library = importlib.import_module("dbos")
    if _workflow is None:
        serializers = importlib.import_module("dbos._serialization")
        pickles: type[DefaultSerializer] = serializers.DefaultSerializer
        pickles.serialize = pickles.deserialize = _refuse  # type: ignore[method-assign, assignment]
        importlib.import_module("dbos._sys_db").time = _clock  # type: ignore[attr-defined]
        _workflow = library.DBOS.workflow(name=WORKFLOW, max_recovery_attempts=RECOVERIES)(_handle)
    return library


class DurableEngine:
    """Implements `ports.Engine`. At most one runs in a process."""

    def __init__(
        self,
        *,
        file: Path | None = None,
        url: str | None = None,
        database: Database | None = None,
        role: Role = "alone",
        slots: int = 64,
    ) -> None:
        """Work is kept in the SQLite `file`, which is one process's, or in Postgres at `url`, where `database` is the application's.

        `role`: `alone` runs what it begins; `server` leaves to workers what is not begun `here`, and takes nothing; `worker` takes it.
        `slots`: how many roots a worker works on at once.
        """
        assert (file is None) != (url is None), "a file or a URL"
        assert url is None or database is not None, "on Postgres the heart needs the application's database"
        assert role == "alone" or url is not None, "several processes need Postgres"
        self._file, self._url, self._database = file, url, database
        self._role, self._slots = role, slots
        self._executor = "embedded" if url is None else f"{socket.gethostname()[:200]}-{uuid.uuid4()}"
        self._handlers: Mapping[str, Handler] = {}
        self._runs: dict[asyncio.Task[Any], tuple[str, _Run]] = {}
        self._starts: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._suspects: frozenset[str] = frozenset()
        self._library: Any = None
        self._dbos: dbos.DBOS | None = None
        self._store: Any = None
        self._claim: IO[bytes] | None = None
        self._heart: Heart | None = None
        self._works = False
        """True between start and stop, but for times in which others may have taken our work."""

    @property
    def works(self) -> bool:
        """Whether handlers can be begun now."""
        return self._works

    @property
    def running(self) -> int:
        """How many handlers run in this process."""
        return len(self._runs)

    async def start(self, handlers: Mapping[str, Handler]) -> None:
        """Begin to run what is there. With the database down it returns, and tries again until it works.

        `handlers["<kind>.dead"]`, if there is one, is run for what was given up: it killed its process again and again, or raised.
        """
        global _running  # noqa: PLW0603
        if _running is not None:
            raise RuntimeError("an engine runs in this process already")
        _running = self
        self._handlers = handlers
        try:
            await self._open()
        except Unavailable:
            self._tasks.append(asyncio.create_task(self._open_later(), name="engine start"))
        except BaseException:
            _running = None
            raise

    async def _open_later(self) -> None:
        while True:
            await asyncio.sleep(AGAIN_SECONDS)
            try:
                return await self._open()
            except Unavailable:
                continue

    async def _open(self) -> None:
        """Launch the library. Raises Unavailable, with nothing left running."""
        loop = asyncio.get_running_loop()
        try:
            if self._url is not None and self._database is not None:
                worker = Worker(self._executor, self._role, __version__)
                self._heart = Heart(self._database, worker, lose=self._lose, regain=self._regain, free=self._free)
                await self._heart.start()
            self._library = await _to_its_end(_library)
            self._dbos = await _to_its_end(self._make)
            # Told here, because it is launched in a thread that has no loop: handlers from queues run on this one.
            self._dbos._background_event_loop.set_main_loop()
            await _to_its_end(self._launch)
        except BaseException as error:
            await self._close()
            if not isinstance(error, Exception) or isinstance(error, HortatorError):
                raise
            log.error("the durable engine cannot start: %s", type(error).__name__)
            raise Unavailable("the engine does not run", code="store_unavailable") from None
        threads = Threads(self._dbos._executor, "dbos")
        self._dbos._shared_executor_field = threads  # type: ignore[assignment]
        loop.set_default_executor(threads)
        self._works = True
        if self._heart is not None:
            self._heart.reaps = True
        self._tasks += [
            asyncio.create_task(self._tend(), name="engine"),
            asyncio.create_task(self._forgets(), name="engine retention"),
        ]

    def _make(self) -> dbos.DBOS:
        """In a thread: make the library's instance."""
        if self._file is not None:
            self._claim = claim(self._file)
            self._store = engine_file(self._file)
        else:
            assert self._url is not None
            self._store = engine_postgres(self._url)
        reachable(self._store)
        made: dbos.DBOS = self._library.DBOS(
            config={
                "name": APPLICATION,
                # The address only says which kind of database it is; connections are the given engine's.
                "system_database_url": "sqlite:///engine.db" if self._file else "postgresql://engine/dbos",
                "system_database_engine": self._store,
                "dbos_system_schema": "dbos",
                "application_version": VERSION,
                "executor_id": self._executor,
                "serializer": self._library.DBOSPortableJSONSerializer(),
                "use_listen_notify": False,
                "max_executor_threads": THREADS,
                # We use none of its notifications; the thread that looks for them is waited for at the end.
                "notification_listener_polling_interval_sec": 0.25,
                "enable_otlp": False,
                "run_migrations": True,
                "log_level": "CRITICAL",
            }
        )
        # What it has to say names tables and shows stack traces; what matters of it is said by us.
        logging.getLogger("dbos").disabled = True
        return made

    def _launch(self) -> None:
        """In a thread: create or check the tables, free what we had begun before, take from queues."""
        _clock.over.clear()
        library = self._library.DBOS
        takes = self._url is not None and self._role != "server"
        library.listen_queues([TREES, EXPRESS, BRANCHES] if takes else [])
        library.launch()
        if takes:
            # A tenant may hold three quarters of the places, and priority high has places of its own (R-000-41).
            tenant = max(1, self._slots - self._slots // 4)
            ordinary = max(1, self._slots - self._slots // 10)
            bounds: dict[str, dict[str, int]] = {
                TREES: {"worker_concurrency": ordinary, "partition_worker_concurrency": min(tenant, ordinary)},
                EXPRESS: {"worker_concurrency": self._slots, "partition_worker_concurrency": tenant},
                BRANCHES: {},
            }
            for name, bound in bounds.items():
                poll = POLL_SECONDS[name] if self._role == "worker" else IDLE_POLL_SECONDS
                library.register_queue(name, polling_interval_sec=poll, on_conflict="always_update", **bound)

    async def stop(self) -> None:
        """Take nothing more, end handlers, and leave what is not finished to others, or to the next start."""
        global _running  # noqa: PLW0603
        if _running is not self:
            return
        self._works = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        try:
            if self._dbos is not None:
                for event in self._dbos.background_thread_stop_events:
                    event.set()
                await self._end_runs()
                try:
                    async with asyncio.timeout(END_SECONDS):
                        await self._in_thread(self._hand_over)
                except (TimeoutError, HortatorError):
                    log.warning("what was not finished could not be handed over; it is found when we are missed")
        finally:
            await self._close()
            _running = None

    async def _close(self) -> None:
        """End the library and the heart, in whatever state they are."""
        if self._library is not None:
            if self._dbos is not None and self._dbos._sys_db_field is not None:
                self._dbos._sys_db_field._retry_connection_errors = False
            _clock.over.set()
            await self._in_thread(self._library.DBOS.destroy)
        if self._heart is not None:
            await self._heart.stop()
        if self._store is not None:
            await self._in_thread(self._store.dispose)
        if self._claim is not None:
            self._claim.close()
        self._dbos = self._heart = self._store = self._claim = None

    async def _in_thread(self, act: Callable[[], T]) -> T:
        """Run `act` in a thread of its own: pools may be full of what waits for a database. Raises Unavailable for what goes wrong."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()

        def finish(result: T | None, error: BaseException | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(result)  # type: ignore[arg-type]
            else:
                done.set_exception(error)

        def work() -> None:
            try:
                result, error = act(), None
            except Exception as problem:  # noqa: BLE001 - the outermost edge of the thread
                log.warning("the engine's database does not answer: %s", type(problem).__name__)
                result, error = None, Unavailable("the store is not available; try again", code="store_unavailable")
            if not loop.is_closed():
                loop.call_soon_threadsafe(finish, result, error)

        threading.Thread(target=work, name="engine", daemon=True).start()
        return await done

    # What the room asks.

    async def begin(
        self, kind: str, id: str, *, tenant_id: str, priority: str = "standard", here: bool = False
    ) -> None:
        """Have `handlers[kind](id)` run. Durable when it returns; a second time does nothing. Raises Unavailable.

        From inside a handler, `here`, or alone: in this process, now. Else a worker takes it: `priority` high from places of its own,
        the others in order of priority and age among those of their tenant. A handler that is being ended gets a cancellation.
        """
        run = _run.get()
        if not self._works or (run is not None and run.ended):
            if run is not None:
                raise asyncio.CancelledError
            raise Unavailable("the engine does not run", code="store_unavailable", retry_after=2.0)
        if kind not in self._handlers:
            raise ValueError(f"no handler of kind {kind}")
        at_once = here or run is not None or self._role == "alone"
        starting = self._start(kind, id) if at_once else self._enqueue(kind, id, tenant_id, priority)
        # Apart from the caller: neither its workflow's context nor its being cancelled half-way may reach the new one.
        task = asyncio.get_running_loop().create_task(starting, context=Context())
        self._starts.add(task)
        task.add_done_callback(self._started)
        try:
            async with asyncio.timeout(None if run is not None else BEGIN_SECONDS):
                await asyncio.shield(task)
        except TimeoutError:
            raise Unavailable(
                "the store is not available; try again", code="store_unavailable", retry_after=2.0
            ) from None

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starts.discard(task)
        if not task.cancelled():
            task.exception()

    async def _start(self, kind: str, id: str) -> None:
        with self._library.SetWorkflowID(f"{kind}:{id}"):
            await self._asked(self._library.DBOS.start_workflow_async(_workflow, kind, id))

    async def _enqueue(self, kind: str, id: str, tenant_id: str, priority: str) -> None:
        queue = EXPRESS if priority == "high" else TREES
        rank = PRIORITIES.get(priority, PRIORITIES["standard"])
        with (
            self._library.SetWorkflowID(f"{kind}:{id}"),
            self._library.SetEnqueueOptions(priority=rank, queue_partition_key=tenant_id),
        ):
            await self._asked(self._library.DBOS.enqueue_workflow_async(queue, _workflow, kind, id))

    async def _asked(self, asking: Awaitable[Any]) -> None:
        try:
            await asking
        except Exception as error:  # noqa: BLE001 - whatever the library or its database says leaves as one error of ours
            log.warning("a handler could not be begun: %s", type(error).__name__)
            raise Unavailable(
                "the store is not available; try again", code="store_unavailable", retry_after=2.0
            ) from None

    async def step(self, key: str, act: Callable[[], Awaitable[T]]) -> T:
        """Inside a handler: run `act`, whose result is JSON; a finished step's result is returned without running it.

        A HortatorError that `act` raises is written down like a result. An end of this run that is not the handler's (the engine stops,
        another process took over) comes as a cancellation. Raises RuntimeError outside of a handler, and inside of another step.
        """
        run = _run.get()
        if run is None:
            raise RuntimeError(f"step {key!r} outside of a handler")
        if _acting.get():
            raise RuntimeError(f"step {key!r} inside of another step")
        if run.ended:
            raise asyncio.CancelledError
        lost = self._library.error.DBOSWorkflowConflictIDError, self._library.error.DBOSWorkflowCancelledError
        try:
            kept = await self._library.DBOS.run_step_async({"name": key}, _acted, act)
        except lost:
            run.end()
            raise asyncio.CancelledError from None
        result: T = record.outcome(kept)
        return result

    async def forget(self, age: timedelta) -> int:
        """Delete a batch of what ended longer than `age` ago; returns how many, 0 = nothing is left. Raises Unavailable."""
        if not self._works:
            return 0
        before = (datetime.now(UTC) - age).isoformat()

        def work() -> int:
            known = self._library.DBOS.list_workflows(
                status=ENDED, completed_before=before, limit=BATCH, load_input=False, load_output=False
            )
            ids = [each.workflow_id for each in known]
            if ids:
                self._library.DBOS.delete_workflows(ids)
            return len(ids)

        return await self._in_thread(work)

    # What the library asks.

    async def run(self, kind: str, id: str) -> None:
        """The workflow: run a handler. Called by the library only, on the event loop, as a task of its own."""
        task = asyncio.current_task()
        assert task is not None
        handler = self._handlers.get(kind)
        if not self._works or handler is None:
            # Cancelled, it stays as it is: for a process that works, or that knows the kind.
            raise asyncio.CancelledError
        run = _Run(task)
        _run.set(run)
        self._runs[task] = f"{kind}:{id}", run
        try:
            await handler(id)
        except Exception as error:  # noqa: BLE001 - the outermost edge of a handler, which is not to raise
            if run.ended:
                raise asyncio.CancelledError from None
            log.error("a handler of kind %s failed: %s", kind, type(error).__name__)
            try:
                await self._bury(kind, id)
            except Unavailable:
                raise asyncio.CancelledError from None
        finally:
            del self._runs[task]
        if run.ended:
            # It took its cancellation for an end. It has not ended: it is to run again.
            raise asyncio.CancelledError

    async def _bury(self, kind: str, id: str) -> None:
        dead = f"{kind}.dead"
        if dead in self._handlers:
            await self.begin(dead, id, tenant_id="", here=True)

    # What keeps it going.

    async def _tend(self) -> None:
        """Bury what was given up, and free what is said to run here but does not. Every few seconds, and soon after the start."""
        loop_seconds = 1.0
        while True:
            await asyncio.sleep(loop_seconds)
            loop_seconds = TEND_SECONDS
            if not self._works:
                continue
            try:
                dead, strays = await self._in_thread(self._look)
                for each in dead:
                    kind, _, id = each.partition(":")
                    await self._bury(kind, id)
                if strays:
                    await self._in_thread(lambda strays=strays: self._requeue(strays, [self._executor]))  # type: ignore[misc]
            except Unavailable:
                continue

    async def _forgets(self) -> None:
        """Delete what ended long ago, every hour; processes that share a database do it in turns by chance."""
        while True:
            await asyncio.sleep(FORGET_SECONDS * random.uniform(0.5, 1.5))
            with contextlib.suppress(Unavailable):
                while await self.forget(KEEP):
                    pass

    def _look(self) -> tuple[list[str], list[str]]:
        """In a thread: return what was given up and has not been buried, and what has been ours for two looks but does not run."""
        assert self._dbos is not None
        library = self._library.DBOS
        given_up = library.list_workflows(
            status=ENDED[-1], name=WORKFLOW, limit=BATCH, load_input=False, load_output=False, sort_desc=True
        )
        ids = [each.workflow_id for each in given_up]
        graves = [each.replace(":", ".dead:", 1) for each in ids if f"{each.partition(':')[0]}.dead" in self._handlers]
        known = library.list_workflows(workflow_ids=graves, load_input=False, load_output=False) if graves else []
        buried = {each.workflow_id for each in known}
        for each in ids:
            if each.replace(":", ".dead:", 1) in graves and each.replace(":", ".dead:", 1) not in buried:
                log.error("gave up %s: its process died %d times", each, RECOVERIES + 1)
        pending = self._dbos._sys_db.get_pending_workflows(self._executor, VERSION)
        active = {*self._dbos._active_workflows_set.activeList(), *(name for name, _ in list(self._runs.values()))}
        idle = frozenset(each.workflow_id for each in pending) - active
        strays, self._suspects = sorted(idle & self._suspects), idle
        return [each for each in ids if each.replace(":", ".dead:", 1) not in buried], strays

    def _requeue(self, ids: Sequence[str], executors: list[str]) -> None:
        """In a thread: free workflows, if they still are these executors'. What came from a queue goes back to it."""
        assert self._dbos is not None
        queue = BRANCHES if self._url is not None else self._dbos._registry.get_internal_queue().name
        for id in ids:
            self._dbos._sys_db.reenqueue_for_recovery(id, executors, queue)

    def _pending(self, executor: str) -> list[str]:
        assert self._dbos is not None
        return [each.workflow_id for each in self._dbos._sys_db.get_pending_workflows(executor, VERSION)]

    def _hand_over(self) -> None:
        """In a thread: free our own work, without counting it against the work. In a file it is freed by the next start."""
        forgive(self._store, self._executor)
        if self._url is not None:
            self._requeue(self._pending(self._executor), [self._executor])

    async def _free(self, executors: Sequence[str]) -> None:
        """Free the work of dead processes."""

        def work() -> None:
            for executor in executors:
                self._requeue(self._pending(executor), [executor])

        await self._in_thread(work)

    def _lose(self) -> None:
        """Others may take us for dead: end every handler before they begin anew what we are doing."""
        self._works = False
        for _, run in list(self._runs.values()):
            run.end()

    async def _regain(self) -> None:
        """We are heard again: what is still ours begins anew."""
        if self._dbos is not None:
            await self._end_runs()
            await self._in_thread(self._hand_over)
            self._works = True

    async def _end_runs(self) -> None:
        """Cancel every handler and wait for it, not for ever."""
        runs = list(self._runs)
        for _, run in list(self._runs.values()):
            run.end()
        if runs:
            await asyncio.wait(runs, timeout=END_SECONDS)


async def _to_its_end(act: Callable[[], T]) -> T:
    """Run `act` in a thread; a cancellation comes when it is through, so that what it made half can be unmade."""
    work = asyncio.ensure_future(asyncio.to_thread(act))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.gather(work, return_exceptions=True)
        raise


async def _acted(act: Callable[[], Awaitable[Any]]) -> str:
    """What the library runs as a step: never raises but for cancellation, so that what is kept is always ours to read."""
    token = _acting.set(True)
    try:
        kept = record.returned(await act())
    except Exception as error:  # noqa: BLE001 - whatever a step raises is its outcome
        if not isinstance(error, HortatorError):
            log.error("a step failed unexpectedly: %s", type(error).__name__)
        kept = record.raised(error)
    finally:
        _acting.reset(token)
    return kept
