"""`/api/v1/webhooks/secret`: what signs a tenant's calls, and its rotation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import httpx2
import pytest
from sqlalchemy import select

from hortator.api.reading import Receive, Scope, Send
from hortator.api.webhooks import WebhooksDoor
from hortator.call import Caller, KeyHash
from hortator.errors import Unauthenticated
from hortator.orchestration.webhooks import Webhooks
from hortator.settings import Webhooks as Settings
from hortator.store import Database
from hortator.store.queries import add_tenant
from hortator.store.tables import audit
from tests.databases import database, database_url
from tests.orchestration.memory_engine import MemoryEngine
from tests.orchestration.receiver import Log, Receiver

__all__ = ["database", "database_url"]

SECRET = "/api/v1/webhooks/secret"


@pytest.fixture
async def client(database: Database) -> AsyncIterator[httpx2.AsyncClient]:
    """A client whose key is the name of its tenant."""
    callers = {}
    for name, digit in (("ours", "1"), ("theirs", "2")):
        tenant = await add_tenant(database, name, name, datetime.now(UTC))
        callers[name.encode()] = Caller(tenant_id=tenant.id, key_hash=KeyHash(digit * 64), key_name=name)
    room = Webhooks(database, MemoryEngine(), Log().follow, Receiver(), Settings(), unfinished=10)

    async def admit(token: bytes) -> Caller:
        if token not in callers:
            raise Unauthenticated("No.")
        return callers[token]

    door = WebhooksDoor(admit, room)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await door(scope, receive, send, scope["path"])

    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as made:
        yield made


def as_key(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}"}


async def test_a_tenant_sees_its_own_secret_and_rotates_it(client: httpx2.AsyncClient, database: Database) -> None:
    first = await client.get(SECRET, headers=as_key("ours"))
    assert first.status_code == 200
    assert first.headers["cache-control"] == "no-store"
    assert set(first.json()) == {"object", "secret", "created_at", "previous"}
    assert first.json() == (await client.get(SECRET, headers=as_key("ours"))).json()
    assert first.json()["secret"].startswith("whsec_")
    other = await client.get(SECRET, headers=as_key("theirs"))
    rotated = await client.post(f"{SECRET}/rotate", headers=as_key("ours"))
    assert rotated.status_code == 200
    assert rotated.json()["secret"] != first.json()["secret"]
    assert len(rotated.json()["previous"]) == 1
    assert (await client.get(SECRET, headers=as_key("ours"))).json() == rotated.json()
    assert (await client.get(SECRET, headers=as_key("theirs"))).json() == other.json()
    async with database.read() as connection:
        [entry] = (await connection.execute(select(audit).where(audit.c.action == "webhook_secret.rotate"))).all()
    assert (entry.actor_name, entry.actor_key_hash) == ("ours", "1" * 64)
    assert entry.target == entry.tenant_id
    assert "whsec_" not in str(entry)


@pytest.mark.parametrize(
    ("method", "path", "key", "status", "code"),
    [
        ("GET", SECRET, None, 401, "missing_api_key"),
        ("GET", SECRET, "nobody", 401, "invalid_api_key"),
        ("POST", SECRET, "ours", 405, "method_not_allowed"),
        ("GET", f"{SECRET}/rotate", "ours", 405, "method_not_allowed"),
        ("GET", f"{SECRET}s", "ours", 404, "unknown_url"),
        ("GET", f"{SECRET}?of=theirs", "ours", 400, "unknown_parameter"),
    ],
)
async def test_what_is_not_there_is_refused(
    client: httpx2.AsyncClient, method: str, path: str, key: str | None, status: int, code: str
) -> None:
    reply = await client.request(method, path, headers={} if key is None else as_key(key))
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
