"""Who calls: quick for keys we know, exact about those we refuse, and steady while the store is down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
from sqlalchemy import event

from hortator.call import KeyHash
from hortator.errors import Forbidden, Unauthenticated, Unavailable
from hortator.store import Database, migrate
from hortator.store.audit import GATEWAY
from hortator.store.database import normalise_url
from hortator.store.queries import ApiKey, FoundKey, TenantScope, find_keys
from hortator.tenancy import Identity, identity
from hortator.tenancy.keys import (
    create_key,
    create_tenant,
    ensure_default_tenant,
    find_key,
    find_key_to_rotate,
    list_keys,
    revoke_key,
    rotate_key,
)
from tests.cable import Cable, cable
from tests.eventually import eventually


class Clock:
    """Stands in for the `time` module: it runs, and a test may turn it forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time() + self.ahead

    def time(self) -> float:
        return datetime.now(UTC).timestamp() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    turned = Clock()
    monkeypatch.setattr(identity, "time", turned)
    return turned


@pytest.fixture
async def ours(database: Database) -> AsyncIterator[Identity]:
    made = Identity(database, deadline=10)
    yield made
    await made.close()


class Queries:
    """Counts the statements on keys that reach a database."""

    def __init__(self, database: Database) -> None:
        self.count = 0
        event.listen(database.engine.sync_engine, "before_cursor_execute", self._see)

    def _see(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        self.count += statement.startswith("SELECT") and "api_keys" in statement


async def test_a_key_says_who_calls_and_what_it_may_do(database: Database, ours: Identity) -> None:
    new = await create_key(database, name="ci", models=["groq/*", "local/*"], permissions=["usage:read"])
    token = new.token.reveal()
    assert ours.known(token.encode()) is None
    caller = await ours.authenticate(token)
    assert caller.tenant_id == (await ensure_default_tenant(database)).id
    assert (caller.key_hash, caller.key_name) == (new.record.key_hash, "ci")
    assert caller.allowed_models == ("groq/*", "local/*")
    assert caller.permissions == {"usage:read"}
    assert ours.known(token.encode()) == caller


async def test_any_string_may_be_a_key(database: Database, ours: Identity) -> None:
    """C-11: found by hash, the prefix is not checked."""
    tenant = await ensure_default_tenant(database)
    for token in ("hrt-abc123", "x", "schl\u00fcssel \u2603"):
        key = ApiKey(
            key_hash=KeyHash(sha256(token.encode()).hexdigest()),
            tenant_id=tenant.id,
            name=token,
            prefix="-",
            permissions=(),
            allowed_models=("*",),
            created_at=datetime.now(UTC),
            last_used_at=None,
            expires_at=None,
            revoked_at=None,
            replaced_by=None,
        )
        await TenantScope(database, tenant.id).add_key(key, GATEWAY)
        assert (await ours.authenticate(token)).key_name == token


async def test_rights_that_are_no_list_of_names_are_no_rights_and_harm_nobody_else(
    database: Database, ours: Identity
) -> None:
    broken = (await create_key(database, name="broken", permissions=["admin"])).token.reveal()
    whole = (await create_key(database, name="whole")).token.reveal()
    changed = """UPDATE api_keys SET permissions = 'null', allowed_models = '[{"a": 1}, 2]' WHERE name = 'broken'"""
    async with database.write() as connection:
        await connection.exec_driver_sql(changed)
    callers = await asyncio.gather(ours.authenticate(broken), ours.authenticate(whole))
    assert [caller.allowed_models for caller in callers] == [(), ("*",)]
    assert callers[0].permissions == frozenset()


@pytest.mark.parametrize("token", ["", b"", "nobody's", b"\xff\xfe\x00", "\ud800", "x" * 100_000])
async def test_an_unknown_key_is_refused(ours: Identity, token: str | bytes) -> None:
    with pytest.raises(Unauthenticated) as caught:
        await ours.authenticate(token)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")


async def test_an_active_key_stops_working_within_5_seconds_of_its_revocation(
    database: Database, ours: Identity, clock: Clock
) -> None:
    token = (await create_key(database, name="ci")).token.reveal().encode()
    await ours.authenticate(token)
    await revoke_key(database, await find_key(database, "ci"))
    clock.ahead += 2.1
    assert ours.known(token) is not None, "served once more while it is asked about"
    await eventually(lambda: ours.known(token) is None)
    with pytest.raises(Unauthenticated) as caught:
        await ours.authenticate(token)
    assert (caught.value.status, caught.value.code) == (401, "revoked_api_key")


async def test_an_idle_key_is_not_served_from_memory_after_its_revocation(
    database: Database, ours: Identity, clock: Clock
) -> None:
    token = (await create_key(database, name="ci")).token.reveal().encode()
    await ours.authenticate(token)
    await revoke_key(database, await find_key(database, "ci"))
    clock.ahead += 4.6
    assert ours.known(token) is None
    with pytest.raises(Unauthenticated) as caught:
        await ours.authenticate(token)
    assert caught.value.code == "revoked_api_key"


async def test_a_good_key_stays_good_however_old_the_answer(database: Database, ours: Identity, clock: Clock) -> None:
    token = (await create_key(database, name="ci")).token.reveal()
    for _ in range(3):
        await ours.authenticate(token)
        clock.ahead += 3600


async def test_a_key_expires_on_time_even_in_memory(database: Database, ours: Identity, clock: Clock) -> None:
    token = (await create_key(database, name="ci", expires_in=timedelta(seconds=1))).token.reveal().encode()
    await ours.authenticate(token)
    clock.ahead += 1.1
    assert ours.known(token) is None
    await eventually(lambda: expired(ours, token))


async def expired(ours: Identity, token: bytes) -> bool:
    """The store's clock is not ours to turn: its answer may still be yes for the second that the key lives."""
    try:
        await ours.authenticate(token)
    except Unauthenticated as error:
        return (error.status, error.code) == (401, "expired_api_key")
    return False


async def test_both_keys_work_during_the_overlap_and_only_the_new_one_after(
    database: Database, ours: Identity, clock: Clock
) -> None:
    """R-000-73."""
    old = (await create_key(database, name="ci")).token.reveal()
    rotation = await rotate_key(database, await find_key_to_rotate(database, "ci"), timedelta(hours=24))
    new = rotation.new.token.reveal()
    assert (await ours.authenticate(old)).tenant_id == (await ours.authenticate(new)).tenant_id
    await create_key(database, name="short")
    short = await rotate_key(database, await find_key_to_rotate(database, "short"), timedelta(0))
    await ours.authenticate(short.new.token.reveal())
    with pytest.raises(Unauthenticated) as caught:
        await ours.authenticate(
            (await create_key(database, name="other", expires_in=timedelta(microseconds=1))).token.reveal()
        )
    assert caught.value.code == "expired_api_key"


async def test_a_key_made_after_it_was_refused_works_within_a_second(
    database: Database, ours: Identity, clock: Clock
) -> None:
    new = await create_key(database, name="ci")
    await revoke_key(database, await find_key(database, "ci"))
    with pytest.raises(Unauthenticated):
        await ours.authenticate(new.token.reveal())
    async with database.write() as connection:
        await connection.exec_driver_sql("UPDATE api_keys SET revoked_at = NULL")
    clock.ahead += 1.0
    await ours.authenticate(new.token.reveal())


async def test_a_crowd_asks_the_store_once(database: Database, ours: Identity, clock: Clock) -> None:
    tokens = [(await create_key(database, name=f"k{number}")).token.reveal() for number in range(20)]
    queries = Queries(database)
    callers = await asyncio.gather(*(ours.authenticate(token) for token in tokens * 25))
    assert {caller.key_name for caller in callers} == {f"k{number}" for number in range(20)}
    assert queries.count <= 2
    clock.ahead += 3
    for token in tokens * 25:
        assert ours.known(token.encode()) is not None
    await eventually(lambda: ours.gauges.waiting == 0)
    assert queries.count <= 4


async def test_a_client_that_leaves_does_not_take_the_answer_from_others(database: Database, ours: Identity) -> None:
    token = (await create_key(database, name="ci")).token.reveal()
    impatient, patient = (asyncio.create_task(ours.authenticate(token)) for _ in range(2))
    await asyncio.sleep(0)
    impatient.cancel()
    assert (await patient).key_name == "ci"


async def test_the_caches_are_bounded(database: Database) -> None:
    ours = Identity(database, max_keys=5, deadline=10)
    for number in range(8):
        await ours.authenticate((await create_key(database, name=f"k{number}")).token.reveal())
        with pytest.raises(Unauthenticated):
            await ours.authenticate(f"nobody {number}")
    assert (ours.gauges.known, ours.gauges.refused, ours.gauges.waiting) == (5, 5, 0)
    await ours.close()


async def test_the_last_use_is_noted_off_the_request_path(database: Database) -> None:
    used, unused = await create_key(database, name="used"), await create_key(database, name="unused")
    ours = Identity(database, deadline=10)
    await ours.start()
    await ours.authenticate(used.token.reveal())
    await ours.close()
    noted = {key.key_hash: key.last_used_at is not None for _, key in await list_keys(database)}
    assert noted == {used.record.key_hash: True, unused.record.key_hash: False}


@pytest.fixture
async def line(postgres_database: str) -> AsyncIterator[Cable]:
    url = normalise_url(postgres_database)
    async with cable(url.host or "", url.port or 5432) as laid:
        yield laid


@pytest.fixture
async def distant(postgres_database: str, line: Cable) -> AsyncIterator[Database]:
    """A Postgres at the other end of a cable."""
    url = normalise_url(postgres_database).set(host="127.0.0.1", port=line.port)
    opened = Database(url.render_as_string(hide_password=False))
    await migrate(opened)
    yield opened
    await line.mend()
    await opened.close()


@pytest.mark.parametrize("fault", ["cut", "block"])
async def test_while_the_store_is_down_known_keys_work_and_unknown_ones_are_not_called_bad(
    distant: Database, line: Cable, clock: Clock, fault: str
) -> None:
    """And it recovers by itself: a key revoked meanwhile is refused, a key made meanwhile works."""
    ours = Identity(distant, deadline=0.3)
    token = (await create_key(distant, name="ci")).token.reveal()
    made_later = await create_key(distant, name="later")
    await eventually(lambda: succeeds(ours, token))
    if fault == "cut":
        await line.cut()
    else:
        line.block()
    for _ in range(3):
        clock.ahead += 1000
        await ours.authenticate(token)
        assert ours.known(token.encode()) is not None
        with pytest.raises(Unavailable) as caught:
            await ours.authenticate(made_later.token.reveal())
        assert (caught.value.status, caught.value.code) == (503, "store_unavailable")
        assert caught.value.retry_after
    await line.mend()
    await eventually(lambda: succeeds(ours, made_later.token.reveal()))
    await eventually(lambda: succeeds(distant_revoke(distant), None))
    clock.ahead += 5
    await eventually(lambda: refused(ours, token))
    await ours.close()


async def test_a_known_key_does_not_outlive_the_stale_time_or_its_own(
    distant: Database, line: Cable, clock: Clock
) -> None:
    ours = Identity(distant, deadline=0.3, stale_seconds=3600)
    forever = (await create_key(distant, name="forever")).token.reveal()
    hour = (await create_key(distant, name="hour", expires_in=timedelta(minutes=30))).token.reveal()
    await eventually(lambda: succeeds(ours, forever))
    await eventually(lambda: succeeds(ours, hour))
    await line.cut()
    clock.ahead += 1801
    assert (await ours.authenticate(forever)).key_name == "forever"
    with pytest.raises(Unauthenticated) as caught:
        await ours.authenticate(hour)
    assert caught.value.code == "expired_api_key"
    clock.ahead += 1801
    with pytest.raises(Unavailable):
        await ours.authenticate(forever)
    await ours.close()


async def distant_revoke(database: Database) -> None:
    await revoke_key(database, await find_key(database, "ci"))


async def succeeds(subject: Any, token: str | None) -> bool:
    """Whether the store answers by now: the key is good, or the work is done."""
    try:
        await (subject if token is None else subject.authenticate(token))
    except Unavailable:
        return False
    return True


async def refused(ours: Identity, token: str) -> bool:
    try:
        await ours.authenticate(token)
    except Unauthenticated as error:
        return error.code == "revoked_api_key"
    except Unavailable:
        pass
    return False


async def test_a_key_acts_for_its_own_tenant_and_for_others_only_where_it_may_impersonate(
    database: Database, ours: Identity
) -> None:
    """C-2: by id or namespace; the other tenant's limits and models then count, besides the key's own."""
    own = await ensure_default_tenant(database)
    config = {"limits": ["5 requests/minute"], "allowed_models": ["groq/*"]}
    other = await create_tenant(database, "Other", "client-abc", config)
    plain = await create_key(database, tenant=own.namespace, name="plain")
    proxy = await create_key(database, tenant=own.namespace, name="proxy", permissions=(identity.IMPERSONATE,))
    caller = await ours.authenticate(plain.token.reveal())
    for name in (own.id, own.namespace):
        assert await ours.on_behalf(caller, name) is caller
    with pytest.raises(Forbidden):
        await ours.on_behalf(caller, "client-abc")
    acting = await ours.authenticate(proxy.token.reveal())
    for name in (other.id, other.namespace, other.namespace):
        switched = await ours.on_behalf(acting, name)
        assert (switched.tenant_id, switched.key_hash) == (other.id, acting.key_hash)
        assert switched.allowed_models == ("groq/*",)
        assert [limit.text for limit in switched.limits] == ["5 requests/minute"]
    with pytest.raises(Forbidden):
        await ours.on_behalf(acting, "nobody")


async def test_an_answer_that_is_older_than_a_change_made_here_is_asked_for_again(
    database: Database, ours: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look-up has read the key, then it is revoked, and only then the answer arrives."""
    new = await create_key(database, name="ci")
    read, changed = asyncio.Event(), asyncio.Event()

    async def slow(*arguments: Any) -> list[FoundKey]:
        found = await find_keys(*arguments)
        read.set()
        await changed.wait()
        return found

    monkeypatch.setattr(identity, "find_keys", slow)
    asking = asyncio.create_task(ours.authenticate(new.token.reveal()))
    await read.wait()
    await revoke_key(database, new.record)
    ours.forget(key_hash=new.record.key_hash)
    changed.set()
    with pytest.raises(Unauthenticated) as caught:
        await asking
    assert caught.value.code == "revoked_api_key"
