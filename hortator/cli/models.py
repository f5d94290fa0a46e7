"""`hortator models`: the embedded models that can be had, and fetching one ahead of time."""

from __future__ import annotations

from pathlib import Path

import click

from hortator.cli.configuration import configured, load_settings
from hortator.errors import HortatorError
from hortator.providers.weights import MANIFEST, installed, obtain


@click.group()
def models() -> None:
    """Embedded models."""


@models.command("list")
@configured
def listing(config: Path | None, env_file: Path | None) -> None:
    """List the models that `pull` can fetch."""
    folder = load_settings(config, env_file).home / "models"
    for name, weights in MANIFEST.items():
        state = "here" if installed(name, folder) else "-"
        click.echo(f"{name:24} {weights.size / 1e6:8.0f} MB  {weights.licence:12} {state}")


@models.command()
@click.argument("name")
@configured
def pull(name: str, config: Path | None, env_file: Path | None) -> None:
    """Fetch a model and verify it. Prints where it is."""
    folder = load_settings(config, env_file).home / "models"
    try:
        click.echo(obtain(name, folder))
    except HortatorError as error:
        raise click.ClickException(error.message) from None
