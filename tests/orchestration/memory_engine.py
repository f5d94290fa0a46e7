"""The engine's port in memory, for tests of what runs on it: handlers are tasks, finished steps are kept as JSON by their key.

It does what the durable engine does, and says loudly what that one would not forgive: a step outside of a handler, a result that is not
JSON, keys that come in another order when a handler runs again. `crash()` and `dies_in` stand for `kill -9`; `start()` then runs again
what had not ended. Every handler runs at once: it has no queue, no priority (`begun` says what was asked) and no second process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import msgspec

from hortator.errors import HortatorError, Unavailable
from hortator.orchestration.ports import Handler

T = TypeVar("T")


class Begun(NamedTuple):
    """What was asked of `begin`."""

    kind: str
    id: str
    tenant_id: str
    priority: str
    here: bool


@dataclass
class Work:
    """One handler's memory."""

    begun: Begun
    runs: int = 0
    finished: bool = False
    keys: list[str] = field(default_factory=list)
    """Of steps, in the order they first began."""
    results: dict[str, bytes | HortatorError] = field(default_factory=dict)
    acts: list[str] = field(default_factory=list)
    """Keys of steps each time one was really run."""


@dataclass
class Run:
    """One run of a handler."""

    work: Work
    position: int = 0


_run: ContextVar[Run | None] = ContextVar("run", default=None)


class MemoryEngine:
    """Implements `ports.Engine`."""

    def __init__(self) -> None:
        self.work: dict[tuple[str, str], Work] = {}
        """By kind and id, in the order they were begun."""
        self.dies_in: set[str] = set()
        """Keys of steps: the next one is run, and the engine dies before its result is written down."""
        self.died = asyncio.Event()
        self._handlers: Mapping[str, Handler] | None = None
        self._tasks: dict[asyncio.Task[None], Work] = {}
        self._errors: list[BaseException] = []

    @property
    def begun(self) -> list[Begun]:
        """Everything that was begun, once each."""
        return [work.begun for work in self.work.values()]

    async def start(self, handlers: Mapping[str, Handler]) -> None:
        """Run again what has not ended, from its beginning."""
        self._handlers = handlers
        self.died.clear()
        for work in [work for work in self.work.values() if not work.finished]:
            self._run(work)

    async def stop(self) -> None:
        """End what runs; a later `start` runs it again. Raises what a handler raised, as that is a mistake of the handler's."""
        await self.crash()
        if self._errors:
            raise self._errors[0]

    async def crash(self) -> None:
        """Die: what runs gets a cancellation, nothing more is written down."""
        self._die()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _die(self) -> None:
        self._handlers = None
        for task in list(self._tasks):
            task.cancel()

    async def begin(
        self, kind: str, id: str, *, tenant_id: str, priority: str = "standard", here: bool = False
    ) -> None:
        """Run it at once, wherever it was asked for."""
        if self._handlers is None:
            raise Unavailable("the engine does not run", code="store_unavailable")
        assert kind in self._handlers, f"no handler of kind {kind}"
        if (kind, id) not in self.work:
            work = self.work[kind, id] = Work(Begun(kind, id, tenant_id, priority, here))
            self._run(work)

    async def step(self, key: str, act: Callable[[], Awaitable[T]]) -> T:
        """Run `act` once; afterwards its result, or the HortatorError it raised, is what was written down."""
        run = _run.get()
        if run is None:
            raise RuntimeError(f"step {key!r} outside of a handler")
        work, position = run.work, run.position
        run.position += 1
        if position < len(work.keys):
            assert work.keys[position] == key, (
                f"step {position} of {work.begun.id} was {work.keys[position]}, now {key}"
            )
        else:
            assert key not in work.keys, f"{work.begun.id} has two steps {key}"
            work.keys.append(key)
        if key not in work.results:
            await self._act(work, key, act)
        kept = work.results[key]
        if isinstance(kept, HortatorError):
            raise kept
        result: T = msgspec.json.decode(kept)
        return result

    async def _act(self, work: Work, key: str, act: Callable[[], Awaitable[Any]]) -> None:
        generation = self._handlers
        work.acts.append(key)
        try:
            result: bytes | HortatorError = msgspec.json.encode(await act())
        except HortatorError as error:
            result = error
        if key in self.dies_in:
            self.dies_in.discard(key)
            self._die()
            self.died.set()
        if self._handlers is not generation or generation is None:
            raise asyncio.CancelledError
        work.results[key] = result

    def _run(self, work: Work) -> None:
        assert self._handlers is not None
        task = asyncio.get_running_loop().create_task(self._handle(self._handlers[work.begun.kind], work))
        self._tasks[task] = work
        task.add_done_callback(self._ended)

    async def _handle(self, handler: Handler, work: Work) -> None:
        work.runs += 1
        _run.set(Run(work))
        await handler(work.begun.id)

    def _ended(self, task: asyncio.Task[None]) -> None:
        work = self._tasks.pop(task)
        if task.cancelled():
            return
        work.finished = True
        error = task.exception()
        if error is not None:
            self._errors.append(error)

    async def settled(self, seconds: float = 20.0) -> None:
        """Return once nothing runs any more. Raises what a handler raised."""
        async with asyncio.timeout(seconds):
            while self._tasks:
                await asyncio.wait(list(self._tasks))
        if self._errors:
            raise self._errors[0]
