"""Webhooks in the store: everything written twice is there once, and nothing outlives its tree."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import delete

from hortator.store import Database
from hortator.store.audit import GATEWAY
from hortator.store.queries import add_tenant
from hortator.store.tables import tasks
from hortator.store.webhooks import MAX_SECRETS, Delivery, WebhookScope, find_webhook
from tests.orchestration.receiver import add_root

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
async def scope(database: Database) -> WebhookScope:
    return WebhookScope(database, (await add_tenant(database, "A", "a", NOW)).id)


def delivery(scope: WebhookScope, root_id: str, seq: int, id: str) -> Delivery:
    return Delivery(
        id, scope.tenant_id, root_id, seq, "task_progress", "https://x.test", "pending", 0, None, None, NOW, NOW
    )


async def test_what_is_added_twice_is_there_once(database: Database, scope: WebhookScope) -> None:
    root = await add_root(database, scope.tenant_id)
    await scope.add(root, "https://x.test", ["*"], NOW)
    await scope.add(root, "https://other.test", None, NOW)
    hook = await find_webhook(database, root)
    assert hook is not None
    assert (hook.url, hook.events, hook.next_seq, hook.tenant_id) == ("https://x.test", ["*"], 1, scope.tenant_id)
    assert await scope.enqueue(delivery(scope, root, 3, "msg_1"), b"{}", 40)
    assert not await scope.enqueue(delivery(scope, root, 3, "msg_2"), b"{}", 50)
    hook = await find_webhook(database, root)
    assert hook is not None
    assert (hook.next_seq, hook.progress) == (4, 40)
    assert [each.id for each in await scope.deliveries(root, 10)] == ["msg_1"]


async def test_only_what_is_not_finished_is_counted(database: Database, scope: WebhookScope) -> None:
    roots = [await add_root(database, scope.tenant_id) for _ in range(2)]
    for root in roots:
        await scope.add(root, "https://x.test", None, NOW)
    assert await scope.unfinished() == 2
    await scope.finish(roots[0], NOW)
    assert await scope.unfinished() == 1


async def test_webhooks_go_with_their_tree(database: Database, scope: WebhookScope) -> None:
    root = await add_root(database, scope.tenant_id)
    await scope.add(root, "https://x.test", None, NOW)
    await scope.enqueue(delivery(scope, root, 1, "msg_1"), b"{}", 0)
    async with database.write() as connection:
        await connection.execute(delete(tasks).where(tasks.c.id == root))
    assert await find_webhook(database, root) is None
    assert await scope.last(root) is None


async def test_a_scope_sees_its_own_tenants_webhooks_only(database: Database, scope: WebhookScope) -> None:
    theirs = WebhookScope(database, (await add_tenant(database, "B", "b", NOW)).id)
    root = await add_root(database, scope.tenant_id)
    await scope.add(root, "https://x.test", None, NOW)
    await scope.enqueue(delivery(scope, root, 1, "msg_1"), b"{}", 0)
    await scope.add_first_secret("whsec_b3Vycw==", NOW)
    assert await theirs.unfinished() == 0
    assert await theirs.deliveries(root, 10) == []
    assert await theirs.delivery(root, "msg_1") is None
    assert await theirs.root_of(root) is None
    assert await theirs.secrets(NOW) == []
    await theirs.delivered("msg_1", 200, NOW)
    await theirs.missed("msg_1", 500, "upstream_error", None)
    await theirs.finish(root, NOW)
    [kept] = await scope.deliveries(root, 10)
    assert (kept.status, kept.attempts, await scope.unfinished()) == ("pending", 0, 1)


async def test_a_try_that_fails_late_does_not_undo_a_success(database: Database, scope: WebhookScope) -> None:
    root = await add_root(database, scope.tenant_id)
    await scope.add(root, "https://x.test", None, NOW)
    await scope.enqueue(delivery(scope, root, 1, "msg_1"), b"{}", 0)
    await scope.delivered("msg_1", 200, NOW)
    await scope.missed("msg_1", 500, "upstream_error", NOW + DAY)
    [kept] = await scope.deliveries(root, 10)
    assert (kept.status, kept.attempts, kept.next_at) == ("delivered", 1, None)


async def test_secrets_sign_until_they_expire_and_are_bounded(database: Database, scope: WebhookScope) -> None:
    await scope.add_first_secret("whsec_1", NOW)
    await scope.add_first_secret("whsec_other", NOW)
    for number in range(2, 9):
        assert await scope.rotate_secret(f"whsec_{number}", NOW, NOW + DAY, GATEWAY)
    found = await scope.secrets(NOW)
    assert [each.secret for each in found] == [f"whsec_{number}" for number in (8, 7, 6, 5, 4)]
    assert len(found) == MAX_SECRETS
    assert [each.secret for each in await scope.secrets(NOW + DAY)] == ["whsec_8"]
    assert "whsec" not in repr(found)
