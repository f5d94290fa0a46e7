"""`hortator migrate`: brings the store to this release's schema, or says whether it is there."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from hortator import store
from hortator.cli.configuration import configured, load_settings
from hortator.errors import HortatorError
from hortator.settings import Settings


@click.command()
@configured
@click.option("--check", is_flag=True, help="Change nothing; end with 1 when a migration is due.")
def migrate(config: Path | None, env_file: Path | None, check: bool) -> None:
    """Bring the store's schema up to date. `serve` does the same when it starts."""
    settings = load_settings(config, env_file)
    try:
        due = asyncio.run(_migrate(settings, check))
    except HortatorError as error:
        raise click.ClickException(error.message) from None
    if check and due:
        raise click.ClickException("a migration is due: run `hortator migrate`")
    click.echo("migrated" if due else "up to date")


async def _migrate(settings: Settings, check: bool) -> bool:
    """Return whether something was due (`check`) or done."""
    database = store.configured(settings)
    try:
        return not await store.is_current(database) if check else await store.migrate(database)
    finally:
        await database.close()
