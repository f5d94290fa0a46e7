"""The command line: `hortator serve | worker | check | keys | tenants | models | migrate | usage | router | run | tasks`, one file a command.

Commands read the settings and call the rooms; they print for people on stderr and for programs on stdout.
"""

from __future__ import annotations

from importlib import import_module

import click

from hortator import __version__
from hortator.cli.check import check
from hortator.cli.keys import keys
from hortator.cli.migrate import migrate
from hortator.cli.models import models
from hortator.cli.router import router
from hortator.cli.serve import serve
from hortator.cli.tenants import tenants
from hortator.cli.usage import usage
from hortator.cli.worker import worker

LATER = {"run": "hortator.cli.run", "tasks": "hortator.cli.tasks"}
"""Commands of clients: loaded when they are asked for, so that a server does not hold the SDK."""


class Commands(click.Group):
    """The commands, those of clients among them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names."""
        return sorted([*super().list_commands(ctx), *LATER])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, loading it if need be."""
        if cmd_name not in LATER:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(import_module(LATER[cmd_name]), cmd_name)
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hortator")
def main() -> None:
    """One endpoint in front of many models."""


for command in (serve, worker, check, keys, tenants, models, migrate, usage, router):
    main.add_command(command)
