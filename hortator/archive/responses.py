"""Finished responses on their way to the store and back.

`keep` only queues: a task writes batches a moment later, and what is queued can be read at once. So no request waits for a disk, and a
kill -9 forgets at most the last moment's responses. The chain behind a `previous_response_id` is read once and cached; everything
bounded. When the store is down the queue fills, and then responses are dropped and counted: an answer matters more than its copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from datetime import UTC, datetime, timedelta

import msgspec
from msgspec import Raw

from hortator.call import TenantId
from hortator.errors import InvalidRequest, NotFound, Unavailable
from hortator.store import Database
from hortator.store.responses import UNFINISHED, Kept, ResponseScope, forget_before, keep_all

log = logging.getLogger("hortator.archive")

MAX_CHAIN = 1000
"""Responses that may stand behind one another."""
_FLUSH_SECONDS = 0.05
_BATCH = 200
_RETRY_SECONDS = 2.0
_LATE_SECONDS = 0.25
"""How long a response that was just made may take to arrive from another replica."""
_SWEEP_SECONDS = 3600.0
_SWEEP = 1000

Key = tuple[TenantId, str]
_raws = msgspec.json.Decoder(list[Raw])


class _Output(msgspec.Struct):
    output: list[Raw] = []


_output = msgspec.json.Decoder(_Output)


class Archive:
    """One per process, in one event loop."""

    def __init__(
        self, database: Database, *, retention_days: int, max_bytes: int = 64_000_000, max_history: int = 20_000_000
    ) -> None:
        """`max_bytes` bounds the queue and the cache each; `max_history` is the most bytes behind a `previous_response_id`."""
        self.database = database
        self._retention = timedelta(days=retention_days)
        self._max_bytes = max_bytes
        self._max_history = max_history
        self._queued: dict[Key, Kept] = {}
        self._queued_bytes = 0
        self._cache: OrderedDict[Key, Kept] = OrderedDict()
        self._cached_bytes = 0
        self._some = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.dropped = 0
        """Responses that could not be kept since the start."""

    @property
    def queued(self) -> int:
        """Responses that are not in the store yet."""
        return len(self._queued)

    @property
    def queued_bytes(self) -> int:
        """Their size."""
        return self._queued_bytes

    async def start(self) -> None:
        """Start the writer and the sweeper."""
        self._tasks = [
            asyncio.create_task(self._write_forever(), name="archive-write"),
            asyncio.create_task(self._sweep_forever(), name="archive-sweep"),
        ]

    async def drain(self) -> None:
        """Write what is queued, if the store answers, and stop."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(Unavailable):
            while self._queued:
                await self._write()
        if self._queued:
            log.error("%d responses could not be kept", len(self._queued))

    def keep(self, kept: Kept) -> None:
        """Keep a finished response; never waits."""
        key = (kept.tenant_id, kept.id)
        size = _size(kept)
        if self._queued_bytes + size > self._max_bytes:
            self.dropped += 1
            if self.dropped & (self.dropped - 1) == 0:
                log.error("%d responses could not be kept since the start: the store is too slow or down", self.dropped)
            return
        if key in self._queued:
            return
        self._queued[key] = kept
        self._queued_bytes += size
        self._remember(key, kept)
        self._some.set()

    async def find(self, tenant_id: TenantId, id: str) -> Kept:
        """Return a tenant's response. Raises NotFound, Unavailable."""
        kept = self._queued.get((tenant_id, id)) or await ResponseScope(self.database, tenant_id).find(id)
        if kept is None:
            raise NotFound(f"Response with id '{id[:100]}' not found.", code="response_not_found")
        return kept

    async def remove(self, tenant_id: TenantId, id: str) -> None:
        """Delete a tenant's response. Raises NotFound, Unavailable.

        Another replica may still take it as a `previous_response_id` while it is in its cache, an hour at most.
        """
        if (tenant_id, id) in self._queued:
            await self._write()
        self._forget((tenant_id, id))
        if not await ResponseScope(self.database, tenant_id).remove(id):
            raise NotFound(f"Response with id '{id[:100]}' not found.", code="response_not_found")

    async def history(self, tenant_id: TenantId, id: str) -> list[Raw]:
        """Return the conversation up to and with a response: every input and output item, oldest first.

        Raises InvalidRequest when there is no such response or it is not finished, Unavailable.
        """
        items: list[list[Raw]] = []
        size = 0
        wanted: str | None = id
        while wanted is not None:
            kept = await self._link(tenant_id, wanted)
            if kept is None:
                raise _not_found(id)
            if kept.status not in ("completed", "incomplete"):
                raise InvalidRequest(
                    f"Response '{wanted[:100]}' is {kept.status}: nothing can follow it.",
                    code="previous_response_not_finished",
                    param="previous_response_id",
                )
            size += len(kept.input) + len(kept.response)
            if len(items) >= MAX_CHAIN or size > self._max_history:
                raise InvalidRequest(
                    "The conversation behind previous_response_id is too long.",
                    code="context_length_exceeded",
                    param="previous_response_id",
                )
            items.append([*_raws.decode(kept.input), *_output.decode(kept.response).output])
            wanted = kept.previous_id
        return [item for link in reversed(items) for item in link]

    async def _link(self, tenant_id: TenantId, id: str) -> Kept | None:
        """Return one response of a chain; reading it from the store brings those behind it too."""
        key = (tenant_id, id)
        known = self._queued.get(key) or self._cache.get(key)
        if known is not None:
            return known
        scope = ResponseScope(self.database, tenant_id)
        chain = await scope.chain(id, MAX_CHAIN)
        if not chain:
            await asyncio.sleep(_LATE_SECONDS)
            chain = await scope.chain(id, MAX_CHAIN)
        for kept in reversed(chain):
            if kept.status not in UNFINISHED:
                self._remember((tenant_id, kept.id), kept)
        return chain[0] if chain else None

    def _remember(self, key: Key, kept: Kept) -> None:
        self._forget(key)
        self._cache[key] = kept
        self._cached_bytes += _size(kept)
        while self._cached_bytes > self._max_bytes:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= _size(oldest)

    def _forget(self, key: Key) -> None:
        known = self._cache.pop(key, None)
        if known is not None:
            self._cached_bytes -= _size(known)

    async def _write_forever(self) -> None:
        while True:
            await self._some.wait()
            await asyncio.sleep(_FLUSH_SECONDS)
            self._some.clear()
            while self._queued:
                try:
                    await self._write()
                except Unavailable:
                    await asyncio.sleep(_RETRY_SECONDS)

    async def _write(self) -> None:
        """Write one batch. Raises Unavailable; the batch stays queued then."""
        batch = list(self._queued.values())[:_BATCH]
        await keep_all(self.database, batch)
        for kept in batch:
            if self._queued.pop((kept.tenant_id, kept.id), None) is not None:
                self._queued_bytes -= _size(kept)

    async def _sweep_forever(self) -> None:
        """Delete what is too old, a little at a time."""
        while True:
            deleted = 0
            with contextlib.suppress(Unavailable):
                deleted = await forget_before(self.database, datetime.now(UTC) - self._retention, _SWEEP)
            self._cache.clear()
            self._cached_bytes = 0
            await asyncio.sleep(_FLUSH_SECONDS if deleted == _SWEEP else _SWEEP_SECONDS)


def _size(kept: Kept) -> int:
    return len(kept.input) + len(kept.response) + 500


def _not_found(id: str) -> InvalidRequest:
    return InvalidRequest(
        f"Previous response with id '{id[:100]}' not found.",
        code="previous_response_not_found",
        param="previous_response_id",
    )
