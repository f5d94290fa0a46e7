"""The command line: `hortator serve | worker | check | keys | tenants | models | migrate | usage | router`, one file a command.

Commands read the settings and call the rooms; they print for people on stderr and for programs on stdout.
"""

from __future__ import annotations

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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hortator")
def main() -> None:
    """One endpoint in front of many models."""


for command in (serve, worker, check, keys, tenants, models, migrate, usage, router):
    main.add_command(command)
