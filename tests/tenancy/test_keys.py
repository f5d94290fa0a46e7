"""Issuing keys and tenants: once in clear, stored as a hash, rotated with an overlap."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest
import sqlalchemy

from hortator.errors import InvalidRequest, NotFound
from hortator.store import Database
from hortator.store.queries import list_tenants
from hortator.tenancy.keys import (
    create_key,
    create_tenant,
    ensure_default_tenant,
    find_key,
    find_key_to_rotate,
    first_key,
    list_keys,
    revoke_key,
    rotate_key,
)


async def test_a_key_is_random_and_stored_as_its_hash_only(database: Database) -> None:
    """R-000-63, R-000-77."""
    new = await create_key(database, name="ci")
    token = new.token.reveal()
    assert re.fullmatch(r"hrt_sk_[A-Za-z0-9_-]{43}", token)
    assert token not in repr(new)
    assert new.record.key_hash == sha256(token.encode()).hexdigest()
    async with database.read() as connection:
        rows = (await connection.execute(sqlalchemy.text("SELECT * FROM api_keys"))).all()
    assert token not in repr(rows)
    assert token[12:] not in repr(rows)


async def test_the_first_start_makes_one_key_and_later_ones_none(database: Database) -> None:
    first = await first_key(database)
    assert first is not None
    assert await first_key(database) is None
    ((tenant, key),) = await list_keys(database)
    assert (tenant.namespace, key.key_hash) == ("default", first.record.key_hash)


async def test_the_default_tenant_is_made_once(database: Database) -> None:
    assert await ensure_default_tenant(database) == await ensure_default_tenant(database)
    assert len(await list_tenants(database)) == 1


@pytest.mark.parametrize("namespace", ["", "A", "a_b", "-a", "a-", "a.b", "a" * 64, "a\n"])
async def test_a_namespace_is_a_dns_label(database: Database, namespace: str) -> None:
    """R-000-76."""
    with pytest.raises(InvalidRequest):
        await create_tenant(database, "Name", namespace)


async def test_a_label_of_63_characters_is_a_namespace(database: Database) -> None:
    assert (await create_tenant(database, "Name", "a" * 63)).namespace == "a" * 63


async def test_a_key_needs_a_tenant_that_is_there(database: Database) -> None:
    with pytest.raises(NotFound):
        await create_key(database, name="ci", tenant="nobody")
    assert await list_keys(database) == []
    with pytest.raises(NotFound):
        await list_keys(database, "nobody")


async def test_rotation_keeps_the_old_key_for_the_overlap(database: Database) -> None:
    """R-000-73."""
    old = await create_key(database, name="ci", models=["groq/*"], permissions=["usage:read"])
    before = datetime.now(UTC)
    rotation = await rotate_key(database, await find_key_to_rotate(database, "ci"), timedelta(hours=2))
    assert timedelta(hours=2) <= rotation.old_valid_until - before < timedelta(hours=3)
    assert rotation.new.token != old.token
    assert rotation.new.record.allowed_models == ("groq/*",)
    assert rotation.new.record.permissions == ("usage:read",)
    stored = {key.key_hash: key for _, key in await list_keys(database)}
    replaced = stored[old.record.key_hash]
    assert replaced.expires_at == rotation.old_valid_until
    assert replaced.replaced_by == rotation.new.record.key_hash
    assert stored[rotation.new.record.key_hash].expires_at is None


async def test_rotation_never_prolongs_a_key(database: Database) -> None:
    old = await create_key(database, name="ci", expires_in=timedelta(minutes=5))
    rotation = await rotate_key(database, await find_key_to_rotate(database, "ci"), timedelta(hours=2))
    assert rotation.old_valid_until == old.record.expires_at


async def test_a_replaced_key_is_not_rotated_again(database: Database) -> None:
    old = await create_key(database, name="ci")
    await rotate_key(database, await find_key_to_rotate(database, old.record.prefix))
    with pytest.raises(NotFound):
        await rotate_key(database, await find_key_to_rotate(database, old.record.key_hash))


@pytest.mark.parametrize("by", ["name", "prefix", "hash", "key"])
async def test_a_key_is_found_by_name_prefix_hash_or_itself(database: Database, by: str) -> None:
    new = await create_key(database, name="the one")
    await create_key(database, name="another")
    which = {
        "name": "the one",
        "prefix": new.record.prefix,
        "hash": new.record.key_hash,
        "key": new.token.reveal(),
    }[by]
    assert (await revoke_key(database, await find_key(database, which))).key_hash == new.record.key_hash
    revoked = {key.name: key.revoked_at is not None for _, key in await list_keys(database)}
    assert revoked == {"the one": True, "another": False}


async def test_an_ambiguous_name_revokes_nothing(database: Database) -> None:
    """After a rotation both keys have the name, and both still work."""
    await create_key(database, name="ci")
    await rotate_key(database, await find_key_to_rotate(database, "ci"))
    with pytest.raises(InvalidRequest) as caught:
        await revoke_key(database, await find_key(database, "ci"))
    assert caught.value.code == "ambiguous_key"
    assert all(key.revoked_at is None for _, key in await list_keys(database))


async def test_an_unknown_key_is_not_repeated_in_the_error(database: Database) -> None:
    with pytest.raises(NotFound) as caught:
        await revoke_key(database, await find_key(database, "hrt_sk_planted"))
    assert "planted" not in caught.value.message
