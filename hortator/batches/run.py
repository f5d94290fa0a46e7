"""One batch, from where it is to its end, by the process that holds its lease.

`worker.py` makes a `Run` for a batch it has taken. Every line walks the corridor with the key's caller at low priority; what became
of it is in the store before it counts, so that after a kill -9 no finished line is asked, and paid, again. A lease that is lost, or
cannot be renewed in time, stops every call: two processes never ask the same line. It never touches a provider or a price.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import uuid_utils
from msgspec.structs import replace

from hortator.batches import lines
from hortator.batches.files import Files
from hortator.batches.lines import Fault, Line
from hortator.call import UNKNOWN_USAGE, Call, Caller, KeyHash, RequestId, Usage
from hortator.errors import (
    ConnectFailed,
    ConnectTimeout,
    HortatorError,
    NotFound,
    RateLimited,
    Unavailable,
)
from hortator.store import Database
from hortator.store.batches import Batch, HeldBatch, LineResult
from hortator.store.blobs import Blobs
from hortator.store.files import File

log = logging.getLogger("hortator.batches")

LOOK_SECONDS = 0.5
"""How often a run looks whether its batch was cancelled by way of another process."""
STORE_PAUSE = 1.0
"""Seconds between tries to write down what is finished while the store is down."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before a line that found no room is asked again, where nobody says how long; doubles each time."""
LEAST_PAUSE = 0.05
"""The same where somebody says "at once"; doubles up to 2 s."""
PAGE = 50
"""Results read from the store at once."""

Complete = Callable[[Caller, Call], Awaitable[tuple[bytes, Usage]]]
Ending = Literal["cancelled", "expired", "failed", "paused", "lost"]

_LEFT_OUT = {
    "cancelled": ("batch_cancelled", "This request was not answered before the batch was cancelled."),
    "expired": ("batch_expired", "This request was not answered before the completion window ended."),
}


class Tools(NamedTuple):
    """What all runs of a process share."""

    database: Database
    blobs: Blobs
    files: Files
    holder: Callable[[KeyHash], Awaitable[Caller]]
    """Says who calls, from the hash of the key. Raises Unauthenticated, Unavailable."""
    complete: Complete
    """The corridor: walks a call, returns its body and what it used. Raises HortatorError."""
    read: Callable[[str, bytes, RequestId], Call]
    """Makes a call of a line's body, as the door of that endpoint does. Raises InvalidRequest."""
    slots: asyncio.Semaphore
    """Lines that the process has answered at once."""
    lines: int
    """Lines of one batch that are answered at once."""
    max_line_bytes: int
    lease_seconds: float


class _Stopped(Exception):
    """The run is over, though its batch is not: the process ends, or another one has the lease."""


class Run:
    """One batch on its way."""

    def __init__(self, batch: Batch, tools: Tools, owner: str, held_since: float) -> None:
        """`owner` holds the batch's lease, and asked for it at `held_since` (`time.monotonic()`)."""
        self.batch = batch
        self._tools = tools
        self._held = HeldBatch(tools.database, batch, owner)
        self._ending: Ending | None = None
        self._stopped = asyncio.Event()
        self._wake = asyncio.Event()
        self._renewed = held_since
        self._not_before: dict[str, float] = {}
        """Until when lines of a model wait."""
        self._calls: set[asyncio.Task[tuple[bytes, Usage]]] = set()
        self._unwritten: list[LineResult] = []
        self._writing = asyncio.Lock()
        self._errors: list[dict[str, Any]] | None = None

    @property
    def calls(self) -> int:
        """Lines that are being answered."""
        return len(self._calls)

    def look(self) -> None:
        """Look at once whether the batch was cancelled."""
        self._wake.set()

    def pause(self) -> None:
        """Begin no line; those that are being answered go on. The batch goes on another time."""
        self._ending = self._ending or "paused"
        self._stopped.set()

    def stop(self, ending: Ending) -> None:
        """Begin no line, and end those that are being answered; `paused`: the batch goes on another time."""
        if self._ending is None or ending == "lost":
            self._ending = ending
        self._stopped.set()
        for call in self._calls:
            call.cancel()

    async def walk(self) -> None:
        """Take the batch as far as it goes. Raises Unavailable where the store or the storage of files fails for longer."""
        watching = asyncio.create_task(self._watch(), name=f"watch {self.batch.id}")
        try:
            await self._work()
        except _Stopped:
            pass
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        if self._ending == "paused":
            await self._held.release()

    async def _work(self) -> None:
        batch = self.batch
        if datetime.now(UTC) >= batch.expires_at:
            self.stop("expired")
        if batch.status == "validating":
            batch = await self._validate(batch)
        if batch.status == "in_progress":
            await self._answer_lines()
            batch = await self._change("in_progress", {"status": "finalizing", "finalizing_at": datetime.now(UTC)})
        if batch.status in ("finalizing", "cancelling"):
            await self._finish(batch)

    # The lease

    async def _watch(self) -> None:
        """Keep the lease, and notice that the batch was cancelled or its time is over."""
        while self._ending != "lost":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            try:
                async with asyncio.timeout(self._tools.lease_seconds / 4):
                    status = await self._look()
            except (Unavailable, TimeoutError):
                if time.monotonic() - self._renewed > self._tools.lease_seconds * 0.7:
                    self.stop("lost")
                continue
            if status is None:
                self.stop("lost")
            elif status == "cancelling":
                self.stop("cancelled")
            elif datetime.now(UTC) >= self.batch.expires_at:
                self.stop("expired")

    async def _look(self) -> str | None:
        asked = time.monotonic()
        if asked - self._renewed < self._tools.lease_seconds / 3:
            return await self._held.status()
        status = await self._held.renew(self._tools.lease_seconds)
        self._renewed = asked
        return status

    async def _change(self, status: str, values: Mapping[str, Any]) -> Batch:
        """Change the batch if it still is in `status`; return it as it is then: somebody may have cancelled it. Raises _Stopped."""
        if self._ending in ("paused", "lost"):
            raise _Stopped
        await self._held.advance(values, status)
        batch = await self._held.fresh()
        if batch is None:
            raise _Stopped
        return batch

    # From validating to in_progress

    async def _validate(self, batch: Batch) -> Batch:
        """Check the input file; return the batch as it is then."""
        tools = self._tools
        try:
            pieces = tools.blobs.read(batch.input_file_id)
            found = await lines.check(pieces, batch.endpoint, tools.max_line_bytes, self._stopped.is_set)
        except NotFound as error:
            found = lines.Checked(0, None, [Fault(error.code, error.message).data])
        now = datetime.now(UTC)
        if self._stopped.is_set():
            return await self._change("validating", {"status": "finalizing", "finalizing_at": now})
        if found.faults:
            values = {"status": "failed", "failed_at": now, "errors": found.faults}
            return await self._change("validating", {**values, "lease_owner": None, "lease_until": None})
        values = {"status": "in_progress", "in_progress_at": now, "total": found.total, "model": found.model}
        return await self._change("validating", values)

    # In progress

    async def _answer_lines(self) -> None:
        """Answer every line that is not finished, as many at once as there is room for."""
        places = asyncio.Semaphore(self._tools.lines)
        running: set[asyncio.Task[None]] = set()
        failures: list[BaseException] = []

        def ended(task: asyncio.Task[None]) -> None:
            running.discard(task)
            places.release()
            error = None if task.cancelled() else task.exception()
            if error is not None:
                failures.append(error)
                self._stopped.set()

        try:
            async for line in self._unfinished():
                await places.acquire()
                if self._stopped.is_set():
                    break
                task = asyncio.create_task(self._line(line), name=f"line {line.number} of {self.batch.id}")
                running.add(task)
                task.add_done_callback(ended)
        except (NotFound, Fault):
            self._errors = [Fault("file_not_found", "The input file is not what it was.").data]
        finally:
            while running:
                await asyncio.wait(running)
        if failures:
            raise failures[0]

    async def _unfinished(self) -> AsyncIterator[Line]:
        """Give the lines that are not written down yet. Raises NotFound, Unavailable."""
        done = await self._held.finished_lines()
        pieces = self._tools.blobs.read(self.batch.input_file_id)
        async for number, raw in lines.numbered(pieces, self._tools.max_line_bytes):
            if number not in done:
                yield lines.read(number, raw, self.batch.endpoint)

    async def _line(self, line: Line) -> None:
        """Ask one line until there is a result, and write that down."""
        tries = 0
        while not self._stopped.is_set():
            await self._turn(line.model)
            async with self._tools.slots:
                if self._stopped.is_set():
                    return
                found = await self._ask(line, tries)
            if isinstance(found, LineResult):
                await self._keep(found)
                return
            self._not_before[line.model] = max(self._not_before.get(line.model, 0.0), time.monotonic() + found)
            tries += 1

    async def _turn(self, model: str) -> None:
        """Wait for as long as the last line of this model was told to."""
        while (left := self._not_before.get(model, 0.0) - time.monotonic()) > 0 and not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._stopped.wait()

    async def _ask(self, line: Line, tries: int) -> LineResult | float:
        """Ask once; return the result, or for how many seconds to wait before the next try."""
        id = RequestId(f"req_{uuid_utils.uuid7().hex}")
        try:
            caller = replace(await self._tools.holder(self.batch.key_hash), priority="low")
            body, usage = await self._complete(caller, self._tools.read(self.batch.endpoint, line.body, id))
        except asyncio.CancelledError:
            if not self._stopped.is_set():
                raise
            return 0.0
        except HortatorError as error:
            pause = patience(error, tries)
            if pause is not None:
                return pause
            return LineResult(line.number, False, lines.refused(line, id, error), UNKNOWN_USAGE)
        except Exception as error:  # noqa: BLE001 - the outermost edge of a line: its result gets no word of what it was
            log.error("internal error: batch=%s line=%d %s", self.batch.id, line.number, type(error).__name__)
            failure = HortatorError("The gateway failed to handle this request.")
            return LineResult(line.number, False, lines.refused(line, id, failure), UNKNOWN_USAGE)
        return LineResult(line.number, True, lines.answered(line, id, body), usage)

    async def _complete(self, caller: Caller, call: Call) -> tuple[bytes, Usage]:
        """Walk the corridor in a task that `stop` cancels; the line itself goes on, to write down what is there."""
        if self._stopped.is_set():
            raise asyncio.CancelledError
        task = asyncio.ensure_future(self._tools.complete(caller, call))
        self._calls.add(task)
        try:
            return await task
        finally:
            self._calls.discard(task)

    async def _keep(self, result: LineResult) -> None:
        """Write a result down; those that come while one transaction runs go together in the next. Waits for a store that is down."""
        self._unwritten.append(result)
        async with self._writing:
            while self._unwritten:
                results, self._unwritten = self._unwritten, []
                try:
                    if not await self._held.keep(results):
                        self.stop("lost")
                except Unavailable:
                    self._unwritten = results + self._unwritten
                    await asyncio.sleep(STORE_PAUSE)

    # To the end

    async def _finish(self, batch: Batch) -> None:
        """Write the files of results and end the batch. It has expired where lines are missing that nobody cancelled."""
        end: Ending | Literal["completed"] = "completed"
        if batch.status == "cancelling":
            end = "cancelled"
        elif self._errors is not None:
            end = "failed"
        elif batch.in_progress_at is None or batch.completed + batch.failed < batch.total:
            end = "expired"
        output = await self._write("output", self._results(succeeded=True))
        error = await self._write("error", self._failures(batch, end))
        values = {
            "status": end,
            f"{end}_at": datetime.now(UTC),
            "output_file_id": None if output is None else output.id,
            "error_file_id": None if error is None else error.id,
            "errors": self._errors,
        }
        if not await self._held.finish(values, [file for file in (output, error) if file is not None]):
            log.warning("another process has the batch %s", batch.id)

    async def _write(self, kind: str, pieces: AsyncIterator[bytes]) -> File | None:
        name = f"{self.batch.id}_{kind}.jsonl"
        return await self._tools.files.write_result(self.batch.tenant_id, name, pieces, self.batch.output_seconds)

    async def _results(self, *, succeeded: bool) -> AsyncIterator[bytes]:
        """Give the results that are written down, in the order of their lines."""
        last = 0
        while page := await self._held.results(succeeded, last, PAGE):
            yield b"".join(each.result + b"\n" for each in page)
            last = page[-1].line

    async def _failures(self, batch: Batch, end: str) -> AsyncIterator[bytes]:
        """Give the results of lines that failed, then say of every other why it has none."""
        async for piece in self._results(succeeded=False):
            yield piece
        if end in _LEFT_OUT and batch.in_progress_at is not None:
            async for line in self._unfinished():
                yield lines.left_out(line, *_LEFT_OUT[end]) + b"\n"


def patience(error: HortatorError, tries: int) -> float | None:
    """Return how many seconds a line waits after an error before it is asked again; None where that is its result.

    There is time for limits and overload to pass, and for a provider that cannot be reached; nothing was paid for those.
    """
    vain = error.code == "insufficient_quota" or (isinstance(error, RateLimited) and error.retry_after is None)
    if vain or not (error.status in (429, 503) or isinstance(error, ConnectFailed | ConnectTimeout)):
        return None
    tries = min(tries, 10)
    own = min(FIRST_PAUSE * 2.0**tries, LONGEST_PAUSE) * random.uniform(1, 1.25)
    return own if error.retry_after is None else max(error.retry_after, min(LEAST_PAUSE * 2.0**tries, 2.0))
