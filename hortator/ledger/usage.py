"""The ledger: takes what became of each call, prices it, and writes it down once, whatever happens to us or the database.

The gateway calls `record`, which only appends to a bounded queue. Every 100 ms or 256 records a worker thread prices the
queue's content and appends it to the journal (`journal.py`); then the batch goes to the database and the journal forgets it.
When the database is down or slow, batches stay in the journal and are replayed, as are those of processes that died: after a
kill -9 only what was younger than 200 ms is missing, and event ids keep everything from being there twice.
Nothing here ever blocks or fails a request: what cannot be kept is counted as dropped and logged once a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from hortator.call import Outcome
from hortator.errors import Unavailable
from hortator.ledger.counts import Counts
from hortator.ledger.journal import Journal, Segment
from hortator.ledger.outcomes import of_routing
from hortator.ledger.prices import PriceBook
from hortator.ledger.records import Recorder
from hortator.store.database import Database
from hortator.store.outcomes import Mark, OutcomeRow, insert_outcomes
from hortator.store.usage import MAX_ROWS, UsageRow, insert_usage

log = logging.getLogger("hortator.ledger")

T = TypeVar("T")

BATCH = 256
"""Records a batch: one journal write and one transaction."""
_CLOSE_SECONDS = 5.0
"""How long closing may wait for a disk that hangs."""
_HANDED = 16
"""Batches that may wait in memory for the database; beyond them the journal alone holds the records."""


@dataclass(slots=True)
class Batch:
    """Records on their way to the database. Without a segment they are in memory only (the journal could not take them)."""

    rows: list[UsageRow]
    segment: Segment | None
    waits: bool
    """It was journalled while we were behind: the replay will find it."""
    outcomes: list[OutcomeRow]
    """Of routing. Not journalled: they are lost when the database does not take them now."""
    marks: list[Mark]


@dataclass(frozen=True, slots=True)
class Gauges:
    """The ledger's state, for metrics and `/ready`. Counts are since the start of the process."""

    queued: int
    """Records not yet in the journal."""
    written: int
    """Records in the database, replayed ones included."""
    spilled: int
    """Records that had to wait in the journal for the database."""
    dropped: int
    """Records lost: queue full, or neither journal nor database took them."""
    journal_bytes: int
    behind: bool
    """The database does not take batches now."""


class Ledger:
    """One per process. `record` from the event loop's thread only."""

    def __init__(
        self,
        database: Database,
        prices: PriceBook,
        folder: Path,
        *,
        queue_limit: int = 20_000,
        journal_limit: int = 1024**3,
        flush_seconds: float = 0.1,
        retry_seconds: float = 5.0,
        counts: Counts | None = None,
    ) -> None:
        """`folder` is the journal's (`HORTATOR_HOME/journal`); `journal_limit` is in bytes; `retry_seconds` is the longest
        pause between two attempts to reach a database that is down. `counts` is what metrics are made of; None = none.
        """
        self._database = database
        self._recorder = Recorder(prices)
        self._counts = counts
        self._journal = Journal(folder, journal_limit)
        self._queue: deque[Outcome] = deque()
        self._queue_limit = queue_limit
        self._flush_seconds = flush_seconds
        self._retry_seconds = retry_seconds
        self._some = asyncio.Event()
        self._full = asyncio.Event()
        self._handed: asyncio.Queue[Batch | None] = asyncio.Queue(_HANDED)
        """Batches for the database; None wakes its task to see that we fell behind."""
        self._settled = asyncio.Event()
        self._retry = asyncio.Event()
        self._behind = False
        self._stranded = False
        """We are closing, and the last attempt to reach the database failed."""
        self._unsettled = 0
        self._closing = False
        self._tasks: list[asyncio.Task[None]] = []
        self._worker = ThreadPoolExecutor(1, "ledger")
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(UsageRow)
        self._written = 0
        self._spilled = 0
        self._dropped = 0
        self._drop_logged = -60.0
        self._counting = threading.Lock()

    def use(self, prices: PriceBook) -> None:
        """Price what is not yet in the journal, and everything after it, with these prices."""
        self._recorder = Recorder(prices)

    def record(self, outcome: Outcome) -> None:
        """Queue `outcome`. The only thing the ledger does on the request path; never waits, never fails."""
        queue = self._queue
        if len(queue) >= self._queue_limit or self._closing:
            self._drop(1)
            return
        queue.append(outcome)
        if len(queue) == 1:
            self._some.set()
        elif len(queue) == BATCH:
            self._full.set()

    @property
    def gauges(self) -> Gauges:
        """The state now."""
        return Gauges(
            queued=len(self._queue),
            written=self._written,
            spilled=self._spilled,
            dropped=self._dropped,
            journal_bytes=self._journal.bytes,
            behind=self._behind,
        )

    async def start(self) -> None:
        """Start the writer and adopt what dead processes left in the journal. Does not wait for the database."""
        self._behind = await self._in_worker(self._journal.adopt) > 0
        self._tasks = [
            asyncio.create_task(self._write_journal(), name="ledger-journal"),
            asyncio.create_task(self._write_store(), name="ledger-store"),
        ]

    async def drain(self, timeout: float = 10.0) -> None:
        """Write everything down and stop; later records are dropped.

        Within `timeout` seconds the queue is in the journal and, when the database answers, in the database. What is only in
        the journal is replayed at the next start.
        """
        self._closing = True
        self._some.set()
        self._full.set()
        self._retry.set()
        if self._tasks:
            waiting = asyncio.create_task(self._wait_settled())
            await asyncio.wait({waiting, *self._tasks}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            for task in (waiting, *self._tasks):
                task.cancel()
            await asyncio.gather(waiting, *self._tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._in_worker(self._close)
        self._worker.shutdown(wait=False)

    def _close(self) -> None:
        """In the worker: what is still queued goes to the journal, for the next start."""
        while self._queue:
            batch = self._seal([self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))])
            if batch.segment is None:
                self._drop(len(batch.rows))
        self._journal.close()

    async def _wait_settled(self) -> None:
        """Return when nothing is queued or on its way, or when the rest is safe in the journal and the database is down."""
        while self._queue or self._unsettled or (self._behind and not self._stranded):
            self._settled.clear()
            await self._settled.wait()

    async def _in_worker(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *arguments)

    # The first task: queue to journal.

    async def _write_journal(self) -> None:
        while True:
            await self._some.wait()
            if not self._closing and len(self._queue) < BATCH:
                await _first(self._full, self._flush_seconds)
            self._some.clear()
            self._full.clear()
            while self._queue:
                self._unsettled += 1
                await self._move([self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))])

    async def _move(self, outcomes: list[Outcome]) -> None:
        """Take one batch from the queue to the journal and on."""
        try:
            batch = await self._in_worker(self._seal, outcomes)
        except Exception as error:  # noqa: BLE001 - the outermost edge of a background task
            log.error("usage records cannot be journalled: %s", type(error).__name__)
            self._drop(len(outcomes))
            self._settle()
        else:
            await self._hand_over(batch)

    def _seal(self, outcomes: list[Outcome]) -> Batch:
        """In the worker: price, count, encode, append to the journal."""
        pairs = [(outcome, row) for outcome in outcomes if (row := self._row(outcome)) is not None]
        if self._counts is not None:
            self._counts.add(pairs)
        rows = [row for _, row in pairs]
        segment = self._journal.append(self._encoder.encode_lines(rows))
        return Batch(rows, segment, self._behind, *of_routing(pairs))

    def _row(self, outcome: Outcome) -> UsageRow | None:
        """The record of `outcome`. One that cannot be made is dropped alone: this is the outermost edge of its life."""
        try:
            return self._recorder.row(outcome)
        except Exception as error:  # noqa: BLE001 - the outermost edge of a background task
            id = outcome.request_id
            log.error("usage of request %s cannot be recorded: %s", id, type(error).__name__, extra={"request_id": id})
            self._drop(1)
            return None

    async def _hand_over(self, batch: Batch) -> None:
        """Give a batch to the second task, or leave it to the journal when that one cannot keep up."""
        if batch.waits or self._behind:
            self._spill(batch)
        elif self._handed.full():
            await self._fall_behind([batch])
        else:
            self._handed.put_nowait(batch)

    async def _fall_behind(self, batches: list[Batch]) -> None:
        """Stop writing batches from memory: what is in the journal will be replayed from there."""
        self._behind = True
        batches = [*batches, *self._waiting()]
        self._handed.put_nowait(None)
        await self._in_worker(self._journal.give_up)
        for batch in batches:
            self._spill(batch)

    def _spill(self, batch: Batch) -> None:
        """This batch is in the journal, or nowhere."""
        if batch.segment is None:
            self._drop(len(batch.rows))
        else:
            self._spilled += len(batch.rows)
        self._settle()

    def _settle(self) -> None:
        self._unsettled -= 1
        self._settled.set()

    # The second task: batches, or else the journal's backlog, to the database.

    async def _write_store(self) -> None:
        while True:
            if self._behind:
                await self._replay_until_level()
            batch = await self._handed.get()
            if batch is not None:
                await self._store([batch, *self._waiting()])

    def _waiting(self) -> list[Batch]:
        """Take the batches that wait for the database. They go in together: under load, hops between threads cost more than rows."""
        waiting: list[Batch] = []
        while not self._handed.empty():
            batch = self._handed.get_nowait()
            if batch is not None:
                waiting.append(batch)
        return waiting

    async def _store(self, batches: list[Batch]) -> None:
        """Write some batches. Whatever goes wrong, they stay in the journal and are tried again from there."""
        try:
            inserted = await insert_usage(self._database, [row for batch in batches for row in batch.rows])
        except Exception as error:  # noqa: BLE001 - the outermost edge of a background task
            if not isinstance(error, Unavailable):
                log.error("usage records cannot be written: %s", type(error).__name__)
            await self._fall_behind(batches)
            return
        self._written += inserted.new
        self._drop(inserted.refused)
        await self._store_outcomes(batches)
        await self._in_worker(self._forget, [batch.segment for batch in batches if batch.segment is not None])
        for _ in batches:
            self._settle()

    async def _store_outcomes(self, batches: list[Batch]) -> None:
        """Write the outcomes of routing. What goes wrong costs them, and nothing else."""
        rows = [row for batch in batches for row in batch.outcomes]
        marks = [mark for batch in batches for mark in batch.marks]
        if not rows and not marks:
            return
        try:
            await insert_outcomes(self._database, rows, marks)
        except Exception as error:  # noqa: BLE001 - the outermost edge of a background task
            log.error("%d outcomes of routing cannot be written: %s", len(rows), type(error).__name__)

    def _forget(self, segments: list[Segment]) -> None:
        """In the worker: these batches are in the database."""
        for segment in segments:
            self._journal.done(segment)

    async def _replay_until_level(self) -> None:
        """Replay the journal, with growing pauses while the database is down, until nothing is left in it."""
        pause = 0.1
        while self._behind:
            try:
                await self._replay_backlog()
                await self._in_worker(self._level)
                pause = 0.1
            except Exception as error:  # noqa: BLE001 - the outermost edge of a background task
                if not isinstance(error, Unavailable):
                    log.error("usage records cannot be replayed: %s", type(error).__name__)
                self._stranded = self._closing
                self._settled.set()
                await _first(self._retry, pause)
                self._retry.clear()
                pause = min(pause * 2, self._retry_seconds)
        self._settled.set()

    async def _replay_backlog(self) -> None:
        """Write every backlog segment to the database. Raises Unavailable."""
        while self._journal.backlog:
            segment = self._journal.backlog[0]
            offset = 0
            while True:
                rows, offset = await self._in_worker(self._read, segment, offset)
                if not rows:
                    break
                for start in range(0, len(rows), MAX_ROWS):
                    part = rows[start : start + MAX_ROWS]
                    inserted = await insert_usage(self._database, part)
                    self._written += inserted.new
                    self._drop(inserted.refused)
            await self._in_worker(self._journal.drop, segment)

    def _read(self, segment: Segment, offset: int) -> tuple[list[UsageRow], int]:
        """In the worker: the next records of a segment. A line that is not a record is left out and counted."""
        lines: list[bytes] = []
        rows: list[UsageRow] = []
        while not rows:
            lines, offset = self._journal.read(segment, offset)
            if not lines:
                break
            for line in lines:
                try:
                    rows.append(self._decoder.decode(line))
                except msgspec.DecodeError:
                    self._drop(1)
        return rows, offset

    def _level(self) -> None:
        """In the worker: hand batches over again if nothing came to the journal meanwhile, else replay that too."""
        self._journal.give_up()
        self._behind = len(self._journal.backlog) > 0

    def _drop(self, count: int) -> None:
        """Count lost records; say so at most once a minute."""
        if count == 0:
            return
        with self._counting:
            self._dropped += count
            now = time.monotonic()
            if now - self._drop_logged < 60:
                return
            self._drop_logged = now
        log.error("%d usage records lost since the start", self._dropped)


async def _first(event: asyncio.Event, seconds: float) -> None:
    """Wait for `event`, at most that long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
