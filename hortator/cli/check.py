"""`hortator check [FILE]`: validates a configuration and says what it would serve. Never prints a secret."""

from __future__ import annotations

from pathlib import Path

import click

from hortator.cli.configuration import load_settings


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--env-file", type=click.Path(path_type=Path, dir_okay=False), help="File of KEY=VALUE lines.")
def check(file: Path | None, env_file: Path | None) -> None:
    """Validate the configuration and print what would be served."""
    settings = load_settings(file, env_file)
    click.echo(f"configuration: {settings.source or 'none; defaults and environment'}")
    for provider in settings.providers:
        served = "every model it lists" if provider.models is None else ", ".join(provider.models)
        click.echo(f"provider {provider.id}: {provider.base_url}: {served}")
    for model in settings.models:
        click.echo(f"model {model.id}: " + ", ".join(f"{place.provider}/{place.model}" for place in model.deployments))
