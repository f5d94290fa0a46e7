"""The command line: `hortator serve | worker | check | keys | tenants | models | migrate | usage | router | run | tasks`, one file a command.

Commands read the settings and call the rooms; they print for people on stderr and for programs on stdout.
"""

from __future__ import annotations

from importlib import import_module

import click

from hortator import __version__

COMMANDS = ("check", "keys", "migrate", "models", "router", "run", "serve", "tasks", "tenants", "usage", "worker")
"""Each is a file of that name. Loaded when it is asked for: making a key needs no server, a server no client."""


class Commands(click.Group):
    """The commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, loading it; None = there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"hortator.cli.{cmd_name}"), cmd_name)
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hortator")
def main() -> None:
    """One endpoint in front of many models."""
