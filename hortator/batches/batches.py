"""What clients ask of batches: to make one, look at it, list them, cancel one.

The door of `/v1/batches` calls it; the work itself is `worker.py`'s, which is told when there is something new. Never answers a line.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import uuid_utils

from hortator.batches.files import Files, check_cursor, is_id
from hortator.batches.worker import Worker
from hortator.call import Caller, TenantId
from hortator.errors import InvalidRequest, NotFound, RateLimited
from hortator.store import Database
from hortator.store.batches import Batch, BatchScope

WINDOW = timedelta(hours=24)
"""How long a batch may take: the one `completion_window` there is."""
CROWDED_SECONDS = 60
"""When a client with too many batches should ask again."""


class Batches:
    """The batches of all tenants."""

    def __init__(
        self, database: Database, files: Files, worker: Worker, *, endpoints: tuple[str, ...], unfinished: int
    ) -> None:
        """`endpoints` are what a batch may ask; `unfinished` is how many of a tenant's batches may be under way."""
        self._database = database
        self._files = files
        self._worker = worker
        self._endpoints = endpoints
        self._unfinished = unfinished

    async def add(
        self,
        caller: Caller,
        endpoint: str,
        input_file_id: str,
        metadata: Mapping[str, str] | None,
        output_seconds: int | None,
    ) -> Batch:
        """Keep a new batch of the caller's key. Raises InvalidRequest, NotFound, RateLimited, Unavailable."""
        if endpoint not in self._endpoints:
            raise InvalidRequest(
                f"'endpoint' must be one of {', '.join(self._endpoints)}.", code="invalid_value", param="endpoint"
            )
        file = await self._files.find(caller.tenant_id, input_file_id)
        if file.purpose != "batch":
            raise InvalidRequest(
                "The input file's purpose must be 'batch'.", code="invalid_value", param="input_file_id"
            )
        now = datetime.now(UTC)
        batch = Batch(
            id=f"batch_{uuid_utils.uuid7().hex}",
            tenant_id=caller.tenant_id,
            key_hash=caller.key_hash,
            endpoint=endpoint,
            input_file_id=file.id,
            created_at=now,
            expires_at=now + WINDOW,
            metadata=metadata,
            output_seconds=output_seconds,
        )
        if not await BatchScope(self._database, caller.tenant_id).add(batch, self._unfinished):
            raise RateLimited(
                f"{self._unfinished} of your batches are not finished.",
                code="too_many_batches",
                retry_after=CROWDED_SECONDS,
            )
        self._worker.wake()
        return batch

    async def find(self, tenant_id: TenantId, id: str) -> Batch:
        """Return a tenant's batch. Raises NotFound, Unavailable."""
        batch = await BatchScope(self._database, tenant_id).find(id) if is_id(id) else None
        if batch is None:
            raise NotFound(f"No such Batch object: {id[:100]}.", code="batch_not_found", param="id")
        return batch

    async def page(self, tenant_id: TenantId, after: str | None, limit: int) -> list[Batch]:
        """Return at most `limit` of a tenant's batches, newest first. Raises InvalidRequest, Unavailable."""
        check_cursor(after)
        return await BatchScope(self._database, tenant_id).page(after, limit)

    async def cancel(self, tenant_id: TenantId, id: str) -> Batch:
        """Ask for a batch's end; one that is being cancelled already is left alone. Raises NotFound, InvalidRequest, Unavailable."""
        if is_id(id) and await BatchScope(self._database, tenant_id).cancel(id, datetime.now(UTC)):
            self._worker.look(id)
        batch = await self.find(tenant_id, id)
        if batch.status not in ("cancelling", "cancelled"):
            raise InvalidRequest(
                f"A batch that is {batch.status} cannot be cancelled.", code="batch_not_active", param="id"
            )
        return batch
