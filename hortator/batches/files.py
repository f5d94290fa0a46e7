"""Files of tenants: taken in piece by piece, listed, given back, deleted for good, and swept when their time is over.

The door of `/v1/files` calls it, and a batch that writes its results. Rows are in the store, contents in its blobs; this is the
only place that touches both, in an order that leaves nothing behind: the row is there before the content and until after it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import uuid_utils

from hortator.call import TenantId
from hortator.errors import InvalidRequest, NotFound, TooLarge, Unavailable
from hortator.store import Database
from hortator.store.blobs import Blobs
from hortator.store.files import File, FileScope, leftovers

log = logging.getLogger("hortator.batches")

BATCH_DAYS = 30
"""Days that a file of purpose `batch` is kept where nothing else is said; as OpenAI's."""
ABANDONED = timedelta(days=1)
"""An upload that is not complete by then never will be."""
SWEPT = 100
"""Most files deleted in one sweep."""
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}").fullmatch


class Files:
    """The files of all tenants."""

    def __init__(self, database: Database, blobs: Blobs, *, max_bytes: int, tenant_bytes: int) -> None:
        """`max_bytes` of one file, `tenant_bytes` of all of a tenant's together."""
        self._database = database
        self._blobs = blobs
        self.max_bytes = max_bytes
        self.tenant_bytes = tenant_bytes

    async def begin(self, tenant_id: TenantId) -> Upload:
        """Begin to take in a file. Raises Unavailable."""
        file = _new(tenant_id, "", "")
        scope = FileScope(self._database, tenant_id)
        await scope.begin(file)
        return Upload(scope, self._blobs, file, self.max_bytes, self.tenant_bytes)

    async def write_result(
        self, tenant_id: TenantId, filename: str, pieces: AsyncIterator[bytes], seconds: int | None
    ) -> File | None:
        """Write a file of results, which the end of its batch shows; None, and no file, where there are no pieces. Raises Unavailable."""
        file = _new(tenant_id, filename, "batch_output", seconds)
        scope = FileScope(self._database, tenant_id)
        await scope.begin(file)
        upload = Upload(scope, self._blobs, file, None, None)
        await upload.write(pieces)
        if not upload.size:
            await upload.abandon()
            return None
        return file._replace(bytes=upload.size)

    async def find(self, tenant_id: TenantId, id: str) -> File:
        """Return a tenant's file. Raises NotFound, Unavailable."""
        file = await FileScope(self._database, tenant_id).find(id, datetime.now(UTC)) if is_id(id) else None
        if file is None:
            raise NotFound(f"No such File object: {id[:100]}.", code="file_not_found", param="id")
        return file

    async def page(
        self, tenant_id: TenantId, *, after: str | None, limit: int, ascending: bool, purpose: str | None
    ) -> list[File]:
        """Return at most `limit` of a tenant's files. Raises InvalidRequest, Unavailable."""
        check_cursor(after)
        scope = FileScope(self._database, tenant_id)
        return await scope.page(datetime.now(UTC), after, limit, ascending, purpose)

    def content(self, file: File) -> AsyncIterator[bytes]:
        """Return the pieces of a file's content. Raises NotFound, Unavailable."""
        return self._blobs.read(file.id)

    async def delete(self, tenant_id: TenantId, id: str) -> None:
        """Delete a file and its content. Raises NotFound, InvalidRequest while a batch reads it, Unavailable."""
        await self.find(tenant_id, id)
        scope = FileScope(self._database, tenant_id)
        if await scope.used(id):
            raise InvalidRequest("A batch that is not finished reads this file.", code="file_in_use", param="id")
        await self._delete(scope, id)

    async def _delete(self, scope: FileScope, id: str) -> None:
        await scope.hide(id)
        await self._blobs.remove(id)
        await scope.forget(id)

    async def sweep(self) -> int:
        """Delete files whose time is over, and what uploads and deletions left that did not end. Raises Unavailable."""
        now = datetime.now(UTC)
        found = await leftovers(self._database, now, now - ABANDONED, SWEPT)
        for file in found:
            await self._delete(FileScope(self._database, file.tenant_id), file.id)
        return len(found)


class Upload:
    """One file on its way in. `write` once, then `finish`; else `abandon`."""

    def __init__(
        self, scope: FileScope, blobs: Blobs, file: File, max_bytes: int | None, tenant_bytes: int | None
    ) -> None:
        self._scope = scope
        self._blobs = blobs
        self._file = file
        self._max_bytes = max_bytes
        self._tenant_bytes = tenant_bytes
        self.size: int | None = None
        """Bytes written; None before `write`."""

    async def write(self, pieces: AsyncIterator[bytes]) -> None:
        """Write the content. Raises TooLarge, Unavailable, and what `pieces` raises."""
        await self._blobs.put(self._file.id, self._counted(pieces))

    async def _counted(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        self.size = 0
        async for piece in pieces:
            self.size += len(piece)
            if self._max_bytes is not None and self.size > self._max_bytes:
                raise TooLarge(f"The file is over the limit of {self._max_bytes} bytes.", code="file_too_large")
            yield piece

    async def finish(self, filename: str, purpose: str, seconds: int | None) -> File:
        """Show the file; it is deleted after `seconds` (None = as its purpose says). Raises TooLarge over the quota, Unavailable."""
        if seconds is None and purpose == "batch":
            seconds = BATCH_DAYS * 86_400
        file = self._file._replace(
            filename=filename, purpose=purpose, bytes=self.size or 0, expires_at=_after(self._file.created_at, seconds)
        )
        if not await self._scope.complete(file, self._tenant_bytes):
            raise TooLarge(
                f"Your files would take more than {self._tenant_bytes} bytes together; delete some.",
                code="file_quota_exceeded",
            )
        return file

    async def abandon(self) -> None:
        """Forget the upload; what cannot be removed now is swept later."""
        try:
            await self._scope.hide(self._file.id)
            await self._blobs.remove(self._file.id)
            await self._scope.forget(self._file.id)
        except Unavailable:
            log.warning("an upload that broke off is removed later: %s", self._file.id)


def check_cursor(after: str | None) -> None:
    """Raise InvalidRequest where a page cannot begin there."""
    if after is not None and not is_id(after):
        raise InvalidRequest("'after' must be the id of an object.", code="invalid_value", param="after")


def is_id(text: str) -> bool:
    """Whether a client's text can be an id of ours: a database may refuse to look for others."""
    return _ID(text) is not None


def _new(tenant_id: TenantId, filename: str, purpose: str, seconds: int | None = None) -> File:
    """Return a file that begins now. Ids grow with time."""
    now = datetime.now(UTC)
    return File(f"file-{uuid_utils.uuid7().hex}", tenant_id, filename, purpose, 0, now, _after(now, seconds))


def _after(moment: datetime, seconds: int | None) -> datetime | None:
    return None if seconds is None else moment + timedelta(seconds=seconds)
