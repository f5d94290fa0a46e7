"""Responses in the background: a durable record first, then the work, by whichever process has a slot.

The door adds a record and says so here; the corridor, given as an argument, does the work. A process that works on a record holds it for
`HOLD_SECONDS` at a time. When it dies, another one (or the same after its restart) finds the record free and does the work again: a
response that had not been written down as finished is asked for once more, `MAX_ATTEMPTS` times in all, and fails honestly after that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import msgspec
from msgspec import Raw

from hortator.archive.responses import Archive
from hortator.call import Caller, KeyHash, TenantId
from hortator.errors import HortatorError, InvalidRequest, RateLimited, Unavailable
from hortator.store.responses import UNFINISHED, Kept, ResponseScope, idle_work, take_work

log = logging.getLogger("hortator.archive")

HOLD_SECONDS = 30.0
MAX_ATTEMPTS = 3
_POLL_SECONDS = 5.0
_BEAT_SECONDS = HOLD_SECONDS / 3

Object = dict[str, Raw]
Run = Callable[[Caller, Object, float], Awaitable[bytes]]
"""Walk a request (its body; Unix time it came at) through the corridor; return the response's body."""

_object: msgspec.json.Decoder[Object] = msgspec.json.Decoder(Object)


class Background:
    """One per process, in one event loop."""

    def __init__(
        self,
        archive: Archive,
        holder: Callable[[KeyHash], Awaitable[Caller]],
        run: Run,
        *,
        slots: int,
        most: int,
    ) -> None:
        """`slots`: records worked on at once here. `most`: unfinished records a tenant may have."""
        self._archive = archive
        self._holder = holder
        self._run = run
        self._slots = slots
        self._most = most
        self._running: dict[tuple[TenantId, str], asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._seeker: asyncio.Task[None] | None = None

    @property
    def running(self) -> int:
        """Records that are worked on here now."""
        return len(self._running)

    async def start(self) -> None:
        """Begin to look for work, what a dead process left behind included."""
        self._seeker = asyncio.create_task(self._seek(), name="background-responses")

    async def drain(self) -> None:
        """Stop; what is not finished is free for others."""
        tasks = [*self._running.values(), *([] if self._seeker is None else [self._seeker])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def add(self, kept: Kept) -> None:
        """Take a record, durably, and let it be worked on. Raises RateLimited, Unavailable."""
        scope = ResponseScope(self._archive.database, kept.tenant_id)
        if await scope.unfinished() >= self._most:
            raise RateLimited(
                f"{self._most} background responses of yours are not finished; wait for one.",
                code="too_many_background_responses",
                retry_after=_POLL_SECONDS,
            )
        await scope.add(kept)
        self._wake.set()

    async def cancel(self, tenant_id: TenantId, id: str) -> bytes:
        """Cancel a background response; return it as it is then. Raises NotFound, InvalidRequest, Unavailable."""
        kept = await self._archive.find(tenant_id, id)
        if not kept.background:
            raise InvalidRequest(
                "Only responses with background=true can be cancelled.", code="response_not_background"
            )
        if kept.status in UNFINISHED:
            cancelled = changed(kept.response, status="cancelled")
            scope = ResponseScope(self._archive.database, tenant_id)
            if await scope.progress(id, None, status="cancelled", response=cancelled, request=None):
                task = self._running.get((tenant_id, id))
                if task is not None:
                    task.cancel()
                return cancelled
            kept = await self._archive.find(tenant_id, id)
        return kept.response

    async def _seek(self) -> None:
        """Take work while there are slots. A replica that has none leaves it to others."""
        while True:
            self._wake.clear()
            try:
                await self._take()
            except Unavailable:
                pass
            except Exception as error:  # noqa: BLE001 - the outermost edge of a background task
                log.error("background responses cannot be looked for: %s", type(error).__name__)
            try:
                async with asyncio.timeout(_POLL_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _take(self) -> None:
        free = self._slots - len(self._running)
        if free <= 0:
            return
        now = datetime.now(UTC)
        for work in await idle_work(self._archive.database, now, free):
            key = (work.tenant_id, work.id)
            if key not in self._running and await take_work(self._archive.database, work, now, _until()):
                task = asyncio.create_task(self._work(work), name=f"background-{work.id}")
                self._running[key] = task
                task.add_done_callback(partial(self._finished, key))

    def _finished(self, key: tuple[TenantId, str], _: asyncio.Task[None]) -> None:
        self._running.pop(key, None)
        self._wake.set()

    async def _work(self, work: Kept) -> None:
        """Do one record's work and write down what came of it, unless it was cancelled or deleted meanwhile."""
        scope = ResponseScope(self._archive.database, work.tenant_id)
        beat = asyncio.create_task(self._hold(scope, work, asyncio.current_task()))
        try:
            result = await self._result(scope, work)
            if result is not None:
                status, response = result
                await _until_written(
                    lambda: scope.progress(work.id, None, status=status, response=response, request=None)
                )
        except Unavailable:
            await self._give_back(scope, work)
        except asyncio.CancelledError:
            await self._give_back(scope, work)
            raise
        except Exception as error:  # noqa: BLE001 - the outermost edge of a background task
            log.error("background response %s failed: %s", work.id, type(error).__name__)
        finally:
            beat.cancel()

    async def _give_back(self, scope: ResponseScope, work: Kept) -> None:
        """Let others begin at once; a store that is down lets the hold run out instead."""
        try:
            await scope.progress(work.id, None, status="queued", attempts=work.attempts)
        except Unavailable:
            log.warning("background response %s stays held for %d s", work.id, HOLD_SECONDS)

    async def _result(self, scope: ResponseScope, work: Kept) -> tuple[str, bytes] | None:
        """Return the status and the response object that the work came to; None when it was cancelled before it began.

        Raises Unavailable when the store does not answer.
        """
        if work.attempts >= MAX_ATTEMPTS:
            error = HortatorError("The gateway was stopped each time it worked on this response.", code="interrupted")
            return "failed", failed(work.response, error)
        begun = changed(work.response, status="in_progress")
        if not await scope.progress(work.id, _until(), status="in_progress", response=begun):
            return None
        try:
            caller = await self._holder(work.key_hash)
            body = _object.decode(work.request or b"{}")
            if work.previous_id is not None:
                behind = await self._archive.history(work.tenant_id, work.previous_id)
                body["input"] = Raw(msgspec.json.encode([*behind, *msgspec.json.decode(work.input, type=list[Raw])]))
            answer = _object.decode(await self._run(caller, body, work.created_at.timestamp()))
        except HortatorError as error:
            if error.code == "store_unavailable":
                raise
            return "failed", failed(work.response, error)
        mine = _object.decode(work.response)
        answer |= {key: mine[key] for key in ("id", "created_at", "background", "previous_response_id") if key in mine}
        answer["completed_at"] = Raw(b"%.3f" % time.time())
        status: str = msgspec.json.decode(answer["status"])
        return status, msgspec.json.encode(answer)

    async def _hold(self, scope: ResponseScope, work: Kept, worker: asyncio.Task[None] | None) -> None:
        """Keep others from the record while we work on it; stop the work when the record is cancelled or deleted."""
        while True:
            await asyncio.sleep(_BEAT_SECONDS)
            try:
                ours = await scope.progress(work.id, _until())
            except Unavailable:
                continue
            if not ours and worker is not None:
                worker.cancel()
                return


def changed(response: bytes, **values: object) -> bytes:
    """Return a response object with other values."""
    return msgspec.json.encode({**_object.decode(response), **values})


def failed(response: bytes, error: HortatorError) -> bytes:
    """Return a response object that failed."""
    return changed(response, status="failed", error={"code": error.code, "message": error.message})


def _until() -> datetime:
    return datetime.now(UTC) + timedelta(seconds=HOLD_SECONDS)


async def _until_written(write: Callable[[], Awaitable[bool]]) -> None:
    """Write what was paid for, however long the store is down; our hold is renewed as soon as it answers."""
    while True:
        try:
            await write()
            return
        except Unavailable as error:
            await asyncio.sleep(error.retry_after or 1.0)
