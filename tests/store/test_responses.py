"""Kept responses on SQLite and Postgres: each tenant's own, chains, and work that one process does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from hortator.call import KeyHash, TenantId
from hortator.store import Database
from hortator.store.queries import add_tenant
from hortator.store.responses import Kept, ResponseScope, forget_before, idle_work, keep_all, take_work

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
LATER = NOW + timedelta(seconds=30)


@pytest.fixture
async def tenants(database: Database) -> tuple[TenantId, TenantId]:
    return (await add_tenant(database, "A", "a", NOW)).id, (await add_tenant(database, "B", "b", NOW)).id


def kept(
    tenant: TenantId, id: str, *, previous: str | None = None, status: str = "completed", at: datetime = NOW
) -> Kept:
    return Kept(tenant, id, at, status, previous, b"[]", b'{"\\u0000":1.50}', status == "queued", KeyHash("0" * 64))


async def test_a_batch_is_kept_once_and_comes_back_byte_for_byte(
    database: Database, tenants: tuple[TenantId, TenantId]
) -> None:
    ours, theirs = tenants
    await keep_all(database, [kept(ours, "r1"), kept(theirs, "r1")])
    await keep_all(database, [kept(ours, "r1", status="failed"), kept(ours, "r2")])
    found = await ResponseScope(database, ours).find("r1")
    assert found == kept(ours, "r1")


async def test_a_response_that_the_database_refuses_does_not_keep_others_out(
    database: Database, tenants: tuple[TenantId, TenantId]
) -> None:
    ours, _ = tenants
    stranger = TenantId("0190a000-0000-7000-8000-000000000009")
    await keep_all(database, [kept(ours, "r1"), kept(stranger, "r2"), kept(ours, "r3")])
    assert await ResponseScope(database, ours).find("r1") is not None
    assert await ResponseScope(database, ours).find("r3") is not None


async def test_a_tenant_finds_changes_and_deletes_its_own_only(
    database: Database, tenants: tuple[TenantId, TenantId]
) -> None:
    ours, theirs = (ResponseScope(database, tenant) for tenant in tenants)
    await ours.add(kept(ours.tenant_id, "r1", status="queued"))
    assert await theirs.find("r1") is None
    assert await theirs.chain("r1", 10) == []
    assert not await theirs.progress("r1", None, status="cancelled")
    assert not await theirs.remove("r1")
    assert await theirs.unfinished() == 0
    assert await ours.unfinished() == 1
    assert await ours.remove("r1")
    assert await ours.find("r1") is None


async def test_a_chain_is_read_newest_first_and_no_deeper_than_asked(
    database: Database, tenants: tuple[TenantId, TenantId]
) -> None:
    ours, theirs = tenants
    links = [kept(ours, f"r{place}", previous=f"r{place - 1}") for place in range(1, 6)]
    await keep_all(database, [*links, kept(theirs, "r0")])
    scope = ResponseScope(database, ours)
    assert [link.id for link in await scope.chain("r4", 100)] == ["r4", "r3", "r2", "r1"]
    assert [link.id for link in await scope.chain("r4", 2)] == ["r4", "r3"]


async def test_work_is_taken_once_and_free_again_when_its_hold_ran_out(
    database: Database, tenants: tuple[TenantId, TenantId]
) -> None:
    scope = ResponseScope(database, tenants[0])
    await scope.add(kept(scope.tenant_id, "r1", status="queued"))
    [work] = await idle_work(database, NOW, 10)
    assert await take_work(database, work, NOW, LATER)
    assert not await take_work(database, work, NOW, LATER)
    assert await idle_work(database, NOW, 10) == []
    [again] = await idle_work(database, LATER + timedelta(seconds=1), 10)
    assert again.attempts == 1
    assert await scope.progress("r1", None, status="completed", request=None)
    assert not await scope.progress("r1", None, status="cancelled")
    assert await idle_work(database, LATER + timedelta(days=1), 10) == []


async def test_what_is_too_old_is_deleted_a_little_at_a_time(
    database: Database, tenants: tuple[TenantId, TenantId]
) -> None:
    ours, theirs = tenants
    old = NOW - timedelta(days=31)
    await keep_all(database, [kept(ours, "r1", at=old), kept(theirs, "r2", at=old), kept(ours, "r3")])
    assert await forget_before(database, NOW - timedelta(days=30), 1) == 1
    assert await forget_before(database, NOW - timedelta(days=30), 5) == 1
    assert await forget_before(database, NOW - timedelta(days=30), 5) == 0
    assert await ResponseScope(database, ours).find("r3") is not None
