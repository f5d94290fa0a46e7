"""Who works on which batch: takes batches that nobody works on, runs them side by side, and sweeps files whose time is over.

One a process; all processes that share a store share its batches, by leases. `app.py` starts and drains it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

import uuid_utils

from hortator.batches.run import Run, Tools
from hortator.call import TenantId
from hortator.errors import HortatorError, Unavailable
from hortator.store.batches import Batch, hold, idle_batches

log = logging.getLogger("hortator.batches")

LOOK_SECONDS = 2.0
"""How often the store is asked for batches that nobody works on."""
SWEEP_SECONDS = 60.0
CANDIDATES = 100
"""Most of them looked at."""
GRACE_SECONDS = 5.0
"""How long lines that are being answered may go on when the process ends, and then how long results may take to be written."""


class Worker:
    """The runs of one process."""

    def __init__(self, tools: Tools, most: int) -> None:
        """`most` is how many batches it works on at once; 0 = none, then it only sweeps."""
        self._tools = tools
        self._most = most
        self._owner = uuid_utils.uuid7().hex
        self._runs: dict[str, tuple[Run, asyncio.Task[None]]] = {}
        self._woken = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to look for work."""
        if self._most:
            self._tasks.append(asyncio.create_task(self._look_forever(), name="batches"))
        self._tasks.append(asyncio.create_task(self._sweep_forever(), name="files"))

    async def drain(self) -> None:
        """Begin no line; let running ones end for a while, write down what is there, and leave the batches to others."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        runs = list(self._runs.values())
        for run, _ in runs:
            run.pause()
        await _ended(runs)
        for run, _ in runs:
            run.stop("paused")
        await _ended(runs)
        for _, task in runs:
            task.cancel()
        await asyncio.gather(*(task for _, task in runs), return_exceptions=True)

    @property
    def running(self) -> tuple[int, int]:
        """Batches it works on, and their lines that are being answered."""
        runs = [run for run, _ in self._runs.values()]
        return len(runs), sum(run.calls for run in runs)

    def wake(self) -> None:
        """There is a new batch."""
        self._woken.set()

    def look(self, id: str) -> None:
        """A batch was cancelled: tell its run, if it is one of ours; else let whoever has it see it."""
        found = self._runs.get(id)
        if found is None:
            self._woken.set()
        else:
            found[0].look()

    async def _look_forever(self) -> None:
        while True:
            self._woken.clear()
            with contextlib.suppress(Unavailable):
                await self._take()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._woken.wait()

    async def _take(self) -> None:
        """Take what nobody works on, as far as there is room."""
        if len(self._runs) >= self._most:
            return
        for batch in await idle_batches(self._tools.database, CANDIDATES):
            if len(self._runs) >= self._most:
                return
            if batch.id in self._runs or self._share(batch.tenant_id) >= max(1, self._most // 2):
                continue
            asked = time.monotonic()
            taken = await hold(self._tools.database, batch, self._owner, self._tools.lease_seconds)
            if taken is not None:
                self._begin(taken, asked)

    def _share(self, tenant_id: TenantId) -> int:
        """How many of the running batches are this tenant's."""
        return sum(run.batch.tenant_id == tenant_id for run, _ in self._runs.values())

    def _begin(self, batch: Batch, asked: float) -> None:
        run = Run(batch, self._tools, self._owner, asked)
        task = asyncio.create_task(self._walk(run), name=f"batch {batch.id}")
        self._runs[batch.id] = (run, task)

    async def _walk(self, run: Run) -> None:
        """Run a batch; one that fails is taken again when its lease is over, here or elsewhere."""
        try:
            await run.walk()
        except HortatorError as error:
            log.warning("the batch %s goes on later: %s", run.batch.id, error.code)
        except Exception as error:  # noqa: BLE001 - the outermost edge of a batch
            log.error("internal error: batch=%s %s", run.batch.id, type(error).__name__)
        finally:
            del self._runs[run.batch.id]
            self._woken.set()

    async def _sweep_forever(self) -> None:
        while True:
            found = 0
            with contextlib.suppress(Unavailable):
                found = await self._tools.files.sweep()
            await asyncio.sleep(0 if found else SWEEP_SECONDS)


async def _ended(runs: list[tuple[Run, asyncio.Task[None]]]) -> None:
    """Return when all runs have ended, or some time later."""
    if runs:
        await asyncio.wait([task for _, task in runs], timeout=GRACE_SECONDS)
