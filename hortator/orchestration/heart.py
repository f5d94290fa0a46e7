"""The heart of a process that runs handlers on Postgres: it beats, notices its own silence, and finds the work of the dead.

Made by `engine.py`. A process is dead when it was silent for `DEAD_SECONDS`; then another one frees its work. So a process that could
not beat for nearly as long must stop by itself first: it cannot know whether it was taken for dead. Nothing here knows the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence

from hortator.errors import Unavailable
from hortator.store import workers
from hortator.store.database import Database

log = logging.getLogger("hortator.orchestration")

BEAT_SECONDS = 1.0
DEAD_SECONDS = 5.0
SILENT_SECONDS = 4.0
"""After how long a silence we stop what we do: before anybody else may begin it."""


class Heart:
    """One per engine. `start` before the first handler, `stop` after the last."""

    def __init__(
        self,
        database: Database,
        worker: workers.Worker,
        *,
        lose: Callable[[], None],
        regain: Callable[[], Awaitable[None]],
        free: Callable[[Sequence[str]], Awaitable[None]],
    ) -> None:
        """`lose`: stop everything, now. `regain`: we are heard again, begin anew. `free`: the work of these dead is for others."""
        self._database = database
        self._worker = worker
        self._lose = lose
        self._regain = regain
        self._free = free
        self._alarm: asyncio.TimerHandle | None = None
        self._lost = False
        self.reaps = False
        """Set it once the engine's own tables are there."""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Beat, then go on beating. Raises Unavailable."""
        await self._beat()
        self._task = asyncio.create_task(self._run(), name="engine heart")

    async def stop(self) -> None:
        """Beat no more, and be forgotten: whatever is left of our work is then free. A store that is down forgets us by itself."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._alarm is not None:
            self._alarm.cancel()
        with contextlib.suppress(Unavailable):
            await workers.leave(self._database, self._worker.id)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            try:
                await self._beat()
                await self._reap()
            except Unavailable:
                continue
            except Exception as error:  # noqa: BLE001 - the outermost edge of the task: without it every handler would stop
                log.error("the engine's heart stumbled: %s", type(error).__name__)

    async def _beat(self) -> None:
        """Beat; the silence counts from before the beat, which is the latest that others can have heard."""
        loop = asyncio.get_running_loop()
        at = loop.time()
        await workers.beat(self._database, self._worker)
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = loop.call_at(at + SILENT_SECONDS, self._silent)
        if self._lost:
            await self._regain()
            self._lost = False
            log.warning("this process is heard of again and works on")

    def _silent(self) -> None:
        if not self._lost:
            self._lost = True
            log.warning("this process could not be heard of for %g seconds and stops its tasks", SILENT_SECONDS)
            self._lose()

    async def _reap(self) -> None:
        if not self.reaps:
            return
        async with workers.dead(self._database, DEAD_SECONDS) as gone:
            if gone:
                await self._free(gone)
                log.warning("took over from %d dead processes", len(gone))
