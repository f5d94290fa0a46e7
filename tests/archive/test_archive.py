"""What the archive promises: nobody waits for it, nothing in it is another tenant's, and work in the background is done in the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec import Raw

from hortator.archive import Archive, Background, background
from hortator.call import Caller, KeyHash, TenantId
from hortator.errors import ConnectionLost, InvalidRequest, NotFound, RateLimited, Unavailable
from hortator.store import Database, sqlite_url
from hortator.store.queries import add_tenant
from hortator.store.responses import Kept, ResponseScope
from tests.eventually import eventually

NOW = datetime.now(UTC)
KEY = KeyHash("0" * 64)
DONE = b'{"id":"resp_upstream","status":"completed","output":[{"type":"message","id":"m"}]}'
PATIENCE = 20.0


@pytest.fixture
async def tenant(database: Database) -> TenantId:
    return (await add_tenant(database, "A", "a", NOW)).id


@pytest.fixture
async def archive(database: Database) -> AsyncIterator[Archive]:
    made = Archive(database, retention_days=30)
    await made.start()
    yield made
    await made.drain()


def finished(tenant: TenantId, id: str, previous: str | None = None, text: str = "x") -> Kept:
    items = json.dumps([{"id": f"in_{id}", "text": text}]).encode()
    response = json.dumps({"id": id, "status": "completed", "output": [{"id": f"out_{id}"}]}).encode()
    return Kept(tenant, id, NOW, "completed", previous, items, response, False, KEY)


def queued(tenant: TenantId, id: str, attempts: int = 0) -> Kept:
    response = json.dumps({"id": id, "status": "queued", "background": True, "output": []}).encode()
    return Kept(tenant, id, NOW, "queued", None, b"[]", response, True, KEY, b'{"model":"m"}', attempts)


def ids(items: list[Raw]) -> list[str]:
    return [json.loads(bytes(item))["id"] for item in items]


async def test_what_was_just_kept_is_found_before_it_is_written_and_after(
    archive: Archive, database: Database, tenant: TenantId
) -> None:
    archive.keep(finished(tenant, "r1"))
    assert (await archive.find(tenant, "r1")).id == "r1"
    archive.keep(finished(tenant, "r2", "r1"))
    assert ids(await archive.history(tenant, "r2")) == ["in_r1", "out_r1", "in_r2", "out_r2"]
    await archive.drain()
    afresh = Archive(database, retention_days=30)
    assert (await afresh.find(tenant, "r1")) == finished(tenant, "r1")
    assert ids(await afresh.history(tenant, "r2")) == ["in_r1", "out_r1", "in_r2", "out_r2"]


async def test_a_chain_with_a_deleted_link_is_not_found(archive: Archive, tenant: TenantId) -> None:
    archive.keep(finished(tenant, "r1"))
    archive.keep(finished(tenant, "r2", "r1"))
    await archive.remove(tenant, "r1")
    with pytest.raises(InvalidRequest) as refused:
        await archive.history(tenant, "r2")
    assert refused.value.code == "previous_response_not_found"
    with pytest.raises(NotFound):
        await archive.remove(tenant, "r1")


async def test_a_history_that_is_too_long_or_not_finished_is_refused(database: Database, tenant: TenantId) -> None:
    archive = Archive(database, retention_days=30, max_history=1000)
    archive.keep(finished(tenant, "r1", text="x" * 2000))
    with pytest.raises(InvalidRequest) as refused:
        await archive.history(tenant, "r1")
    assert refused.value.code == "context_length_exceeded"
    await ResponseScope(database, tenant).add(queued(tenant, "r2"))
    with pytest.raises(InvalidRequest) as refused:
        await archive.history(tenant, "r2")
    assert refused.value.code == "previous_response_not_finished"


async def test_a_store_that_is_down_stops_nobody_and_the_queue_stays_bounded(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path / "absent" / "h.db"))
    archive = Archive(database, retention_days=30, max_bytes=5000)
    await archive.start()
    tenant = TenantId("0190a000-0000-7000-8000-000000000001")
    for number in range(20):
        archive.keep(finished(tenant, f"r{number}", text="x" * 500))
    assert archive.dropped > 0
    assert ids(await archive.history(tenant, "r0")) == ["in_r0", "out_r0"]
    with pytest.raises(Unavailable):
        await archive.find(tenant, "absent")
    await archive.drain()
    await database.close()


async def holder(key_hash: KeyHash) -> Caller:
    return Caller(tenant_id=TenantId("t"), key_hash=key_hash, key_name="k")


Ran = list[Raw]


def runner(archive: Archive, run: Callable[[], Awaitable[bytes]], **changes: int) -> Background:
    async def one(caller: Caller, body: dict[str, Raw], at: float) -> bytes:
        return await run()

    return Background(archive, holder, one, **{"slots": 4, "most": 10, **changes})


async def end_of(archive: Archive, tenant: TenantId, id: str) -> Kept:
    """The record once it is finished."""

    async def over() -> bool:
        return (await archive.find(tenant, id)).status not in ("queued", "in_progress")

    await eventually(over)
    return await archive.find(tenant, id)


async def test_work_is_done_and_its_record_keeps_its_own_name(archive: Archive, tenant: TenantId) -> None:
    async def run() -> bytes:
        return DONE

    work = runner(archive, run)
    await work.start()
    await work.add(queued(tenant, "r1"))
    found = await end_of(archive, tenant, "r1")
    document = json.loads(found.response)
    assert (found.status, document["id"], document["background"]) == ("completed", "r1", True)
    assert document["output"] == [{"type": "message", "id": "m"}]
    assert found.request is None
    await work.drain()


async def test_several_processes_do_each_work_once(archive: Archive, tenant: TenantId) -> None:
    ran = 0

    async def run() -> bytes:
        nonlocal ran
        ran += 1
        await asyncio.sleep(0)
        return DONE

    for number in range(8):
        await ResponseScope(archive.database, tenant).add(queued(tenant, f"r{number}"))
    workers = [runner(archive, run) for _ in range(3)]
    for worker in workers:
        await worker.start()
    for number in range(8):
        assert (await end_of(archive, tenant, f"r{number}")).status == "completed"
    assert ran == 8
    for worker in workers:
        await worker.drain()


async def test_work_that_fails_says_why(archive: Archive, tenant: TenantId) -> None:
    async def run() -> bytes:
        raise ConnectionLost("The provider went away.")

    work = runner(archive, run)
    await work.start()
    await work.add(queued(tenant, "r1"))
    document = json.loads((await end_of(archive, tenant, "r1")).response)
    assert document["status"] == "failed"
    assert document["error"] == {"code": "upstream_connection_lost", "message": "The provider went away."}
    await work.drain()


async def test_work_that_a_stop_cut_off_is_free_at_once_and_not_counted(archive: Archive, tenant: TenantId) -> None:
    begun = asyncio.Event()

    async def hang() -> bytes:
        begun.set()
        await asyncio.Event().wait()
        return DONE

    async def run() -> bytes:
        return DONE

    first = runner(archive, hang)
    await first.start()
    await first.add(queued(tenant, "r1"))
    async with asyncio.timeout(PATIENCE):
        await begun.wait()
    await first.drain()
    found = await archive.find(tenant, "r1")
    assert (found.status, found.attempts, found.held_until) == ("queued", 0, None)
    second = runner(archive, run)
    await second.start()
    assert (await end_of(archive, tenant, "r1")).status == "completed"
    await second.drain()


async def test_work_that_kills_its_process_each_time_fails_honestly(archive: Archive, tenant: TenantId) -> None:
    async def run() -> bytes:
        raise AssertionError("it is not tried once more")

    await ResponseScope(archive.database, tenant).add(queued(tenant, "r1", background.MAX_ATTEMPTS))
    work = runner(archive, run)
    await work.start()
    document = json.loads((await end_of(archive, tenant, "r1")).response)
    assert document["error"]["code"] == "interrupted"
    await work.drain()


async def test_a_tenant_may_have_so_much_unfinished_work(archive: Archive, tenant: TenantId) -> None:
    async def run() -> bytes:
        return DONE

    work = runner(archive, run, most=1)
    await work.add(queued(tenant, "r1"))
    with pytest.raises(RateLimited):
        await work.add(queued(tenant, "r2"))
