"""The options every command shares, and how a command gets its settings."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from hortator.errors import ConfigError
from hortator.settings import Settings, load

F = TypeVar("F", bound=Callable[..., object])

_config = click.option(
    "--config",
    "-c",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration file; else HORTATOR_CONFIG, ./hortator.yaml, HORTATOR_HOME/hortator.yaml, or none.",
)
_env_file = click.option(
    "--env-file", type=click.Path(path_type=Path, dir_okay=False), help="File of KEY=VALUE lines, for provider keys."
)


def configured(command: F) -> F:
    """Add `--config` and `--env-file` to a command."""
    return _config(_env_file(command))


def load_settings(config: Path | None, env_file: Path | None = None) -> Settings:
    """Return the settings and make their home folder. Every problem is reported at once, then the command ends with 1."""
    try:
        settings = load(config, os.environ, env_file=env_file)
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except ConfigError as error:
        raise click.ClickException(error.message) from None
    except OSError as error:
        raise click.ClickException(f"the home folder cannot be made: {error.strerror}: {error.filename}") from None
    return settings
