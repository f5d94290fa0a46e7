"""Migrating: once, in turn, to exactly the tables that the code uses."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from hortator.errors import ConfigError
from hortator.store import Database, is_current, migrate, schema
from hortator.store.tables import metadata


async def test_an_empty_database_is_migrated_once(database_url: str) -> None:
    database = Database(database_url)
    assert not await is_current(database)
    assert await migrate(database)
    assert await is_current(database)
    assert not await migrate(database)
    await database.close()


async def test_replicas_that_start_together_migrate_in_turn(database_url: str) -> None:
    replicas = [Database(database_url) for _ in range(4)]
    migrated = await asyncio.gather(*map(migrate, replicas))
    assert sorted(migrated) == [False, False, False, True]
    for replica in replicas:
        await replica.close()


async def test_the_migrations_make_the_tables_that_the_code_describes(database: Database) -> None:
    def differences(connection: sqlalchemy.Connection) -> list[object]:
        context = MigrationContext.configure(connection)
        return list(compare_metadata(context, metadata))

    async with database.read() as connection:
        assert await connection.run_sync(differences) == []


async def test_a_database_of_a_newer_release_is_refused(database: Database) -> None:
    async with database.write() as connection:
        await connection.execute(sqlalchemy.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match="newer release"):
        await migrate(database)


def test_the_cheap_version_check_knows_the_same_head_as_alembic() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    script = ScriptDirectory.from_config(config)
    assert script.get_heads() == [schema.head]
    assert [revision.revision for revision in reversed(list(script.walk_revisions()))] == list(schema.known)


async def test_the_tables_have_the_columns_of_the_requirements(database: Database) -> None:
    """R-000-76 to R-000-79."""
    required = {
        "tenants": {"id", "name", "namespace", "created_at", "config"},
        "api_keys": {"key_hash", "tenant_id", "name", "permissions", "created_at", "last_used_at"},
        "tasks": {"id", "tenant_id", "parent_task_id", "status", "task_type", "model"}
        | {"created_at", "completed_at", "config", "results"},
        "usage_events": {"id", "tenant_id", "task_id", "event_type", "token_count", "compute_seconds"}
        | {"timestamp", "metadata"},
    }

    def columns(connection: sqlalchemy.Connection) -> dict[str, set[str]]:
        inspector = sqlalchemy.inspect(connection)
        return {table: {column["name"] for column in inspector.get_columns(table)} for table in required}

    async with database.read() as connection:
        found = await connection.run_sync(columns)
    for table, names in required.items():
        assert names <= found[table]
