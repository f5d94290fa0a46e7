"""`hortator worker`: a process without a door for clients that works on what servers leave to workers.

It runs the same `App` as `hortator serve`, told that it is a worker: the rooms are built, agents' model calls walk the same corridor, nobody
can connect but operators. Any number may run, on any machine; each is found dead within seconds, and its work taken over.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path

import click
import msgspec
import uvloop

from hortator import __version__
from hortator.app import App
from hortator.cli import logs
from hortator.cli.configuration import configured, load_settings
from hortator.cli.serve import admin_listener, local_model, raise_file_limit
from hortator.errors import ConfigError
from hortator.settings import Settings, load

log = logging.getLogger("hortator.cli")


@click.command()
@configured
@click.option(
    "--admin-port",
    type=click.IntRange(0, 65535),
    help="Port of the operators' listener, 0 for any; overrides the configuration.",
)
def worker(config: Path | None, env_file: Path | None, admin_port: int | None) -> None:
    """Work on teams of agents that servers leave to workers."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it runs: it means reload and never the end
    settings = load_settings(config, env_file)
    if admin_port is not None:
        settings = msgspec.structs.replace(settings, admin=msgspec.structs.replace(settings.admin, port=admin_port))
    logs.set_up(settings)
    os.umask(0o077)
    try:
        _check(settings)
        uvloop.run(_work(settings, env_file))
    except ConfigError as error:
        raise click.ClickException(error.message) from None


def _check(settings: Settings) -> None:
    """Raises ConfigError where a worker would have nothing to do, or would do what a server does already."""
    url = settings.store.url
    if url is None or url.reveal().startswith("sqlite"):
        raise ConfigError(
            "store.url: workers need Postgres; a SQLite file has one process, which works on everything itself"
        )
    if not (settings.orchestration.enabled and settings.orchestration.workers):
        raise ConfigError("orchestration.workers: it is off, so servers work on everything themselves")


async def _work(settings: Settings, env_file: Path | None) -> None:
    app = App(
        settings,
        local_model(settings),
        read=lambda: load(settings.source, os.environ, env_file=env_file),
        changed=logs.change,
        worker=True,
    )
    loop = asyncio.get_running_loop()
    end = asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, app.reload.ask)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    raise_file_limit()
    try:
        await app.start()
        async with admin_listener(app):
            click.echo(f"Hortator {__version__} works on what servers leave to workers.")
            await end.wait()
            log.info("ending: what is not finished is left to others")
    finally:
        await app.drain()
