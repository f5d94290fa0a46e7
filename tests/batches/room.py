"""The room of batches without the rest of the house: a corridor that does what a test says, files in a folder."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hortator.batches import Batches, Files, Tools, Worker
from hortator.batching import read
from hortator.call import Call, Caller, KeyHash, TenantId, Usage
from hortator.store import Database
from hortator.store.batches import Batch, BatchScope
from hortator.store.blobs import Folder
from hortator.store.queries import add_tenant

KEY = KeyHash("ab" * 32)
ENDED = ("completed", "failed", "expired", "cancelled")
REPLY = b'{"choices": [],\n "usage": {}}'


def line(number: int, **changes: Any) -> bytes:
    """A line of a batch."""
    body = {"model": "m", "messages": [{"role": "user", "content": str(number)}]}
    asked = {"custom_id": f"call-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps({**asked, **changes}).encode()


async def pieces(*given: bytes) -> AsyncIterator[bytes]:
    for piece in given:
        yield piece


class Corridor:
    """Answers each line, and remembers which were asked, which were answered and which cut off."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()
        self.priorities: set[str] = set()
        self.most = 0
        self.stuck: set[str] = set()
        """Lines that wait for `go`."""
        self.go = asyncio.Event()
        self.errors: dict[str, list[Exception]] = {}
        """What a line is refused with, one after the other, before it is answered."""

    async def complete(self, caller: Caller, call: Call) -> tuple[bytes, Usage]:
        name = json.loads(bytes(call.body["messages"]))[0]["content"]
        self.asked[name] += 1
        self.priorities.add(caller.priority)
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0)
            if name in self.stuck:
                await self.go.wait()
            if errors := self.errors.get(name):
                raise errors.pop(0)
        except asyncio.CancelledError:
            self.cut[name] += 1
            raise
        self.answered[name] += 1
        return REPLY, Usage(input=3, output=2, cached=1, source="reported")

    @property
    def running(self) -> int:
        return self.asked.total() - self.answered.total() - self.cut.total()


class Room:
    """One process's room."""

    def __init__(
        self,
        database: Database,
        folder: Path,
        corridor: Corridor,
        *,
        lease: float = 5.0,
        lines: int = 4,
        running: int = 4,
    ) -> None:
        self.database = database
        blobs = Folder(folder)
        self.files = Files(database, blobs, max_bytes=1 << 20, tenant_bytes=1 << 22)

        async def holder(key_hash: KeyHash) -> Caller:
            return Caller(tenant_id=TenantId("t"), key_hash=key_hash, key_name="test")

        self.tools = Tools(
            database=database,
            blobs=blobs,
            files=self.files,
            holder=holder,
            complete=corridor.complete,
            read=read,
            slots=asyncio.Semaphore(6),
            lines=lines,
            max_line_bytes=100_000,
            lease_seconds=lease,
        )
        self.worker = Worker(self.tools, running)
        self.batches = Batches(database, self.files, self.worker, endpoints=("/v1/chat/completions",), unfinished=3)

    async def upload(self, tenant: TenantId, content: bytes, purpose: str = "batch", seconds: int | None = None) -> str:
        upload = await self.files.begin(tenant)
        await upload.write(pieces(content))
        return (await upload.finish("a.jsonl", purpose, seconds)).id

    async def add(self, tenant: TenantId, lines: Sequence[bytes]) -> Batch:
        """A new batch of these lines."""
        caller = Caller(tenant_id=tenant, key_hash=KEY, key_name="test")
        file_id = await self.upload(tenant, b"\n".join(lines))
        return await self.batches.add(caller, "/v1/chat/completions", file_id, None, None)

    async def now(self, batch: Batch) -> Batch:
        found = await BatchScope(self.database, batch.tenant_id).find(batch.id)
        assert found is not None
        return found

    async def ended(self, batch: Batch) -> bool:
        return (await self.now(batch)).status in ENDED

    async def results(self, batch: Batch, file_id: str | None) -> dict[str, Any]:
        """The lines of a result file, by custom id."""
        assert file_id is not None
        file = await self.files.find(batch.tenant_id, file_id)
        content = b"".join([piece async for piece in self.files.content(file)])
        assert len(content) == file.bytes
        found = [json.loads(each) for each in content.splitlines()]
        assert len({each["custom_id"] for each in found}) == len(found)
        return {each["custom_id"]: each for each in found}


async def new_tenant(database: Database, name: str = "a") -> TenantId:
    return (await add_tenant(database, name, name, datetime.now(UTC))).id
