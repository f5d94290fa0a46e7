"""`hortator serve`: obtains the embedded model, makes the first key, listens, and stops in order.

Called by `make serve` and by service managers; `worker.py` uses what both need. Prints the two lines that point any OpenAI client here.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import click
import uvicorn
import uvloop

from hortator import __version__
from hortator.api import socket as socket_door
from hortator.api.listener import Server, limited
from hortator.api.websocket import MAX_MESSAGE_BYTES, PING_SECONDS
from hortator.app import App
from hortator.cli import logs
from hortator.cli.configuration import configured, load_settings
from hortator.errors import ConfigError, Unavailable
from hortator.providers.local_model import LocalModel, engine_installed
from hortator.providers.weights import ModelUnavailable, custom, obtain
from hortator.settings import Settings, load
from hortator.tenancy.keys import first_key

log = logging.getLogger("hortator.cli")

KEEP_ALIVE_SECONDS = 75
"""How long a client's idle connection is kept: longer than clients keep theirs, so that they close first."""
KEY_FILE = "first-key"


@click.command()
@configured
@click.option("--host", help="Address to listen on; overrides the configuration.")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port to listen on, 0 for any; overrides the configuration."
)
def serve(config: Path | None, env_file: Path | None, host: str | None, port: int | None) -> None:
    """Start the gateway."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the server runs: it means reload and never the end
    settings = load_settings(config, env_file)
    logs.set_up(settings)
    os.umask(0o077)
    try:
        listening = _bind(host or settings.server.host, settings.server.port if port is None else port)
        uvloop.run(_serve(settings, listening, env_file))
    except ConfigError as error:
        raise click.ClickException(error.message) from None


def _bind(host: str, port: int) -> socket.socket:
    """Take the address first: a port in use is found out before anything is downloaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another with HORTATOR_PORT"
        ) from None
    return listening


def local_model(settings: Settings) -> LocalModel | None:
    """Return the embedded model, its file obtained if need be; one line says why when it cannot be had. None = switched off."""
    chosen = settings.local
    if not chosen.enabled:
        return None
    file, name, why = None, chosen.name, "the engine is not installed; pip install 'hortator[local]'"
    if engine_installed():
        try:
            if chosen.file is not None:
                name, file = custom(chosen.file)
            else:
                file = obtain(chosen.model, settings.home / "models")
        except ModelUnavailable as error:
            why = error.message
    if file is None:
        click.echo(f"No embedded model: {why}", err=True)
    return LocalModel(
        file,
        name,
        home=settings.home,
        parallel=chosen.parallel,
        context=chosen.context,
        threads=chosen.threads,
        queue=chosen.queue,
        start_timeout=chosen.start_timeout_seconds,
        why=why,
    )


async def _serve(settings: Settings, listening: socket.socket, env_file: Path | None) -> None:
    # What was found at the start stays the source: a file that disappears is an error then, not an empty configuration.
    app = App(
        settings,
        local := local_model(settings),
        read=lambda: load(settings.source, os.environ, env_file=env_file),
        changed=logs.change,
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, app.reload.ask)
    server_settings = settings.server
    raise_file_limit()
    listener = limited(
        max_head_bytes=server_settings.max_header_bytes,
        max_headers=server_settings.max_headers,
        max_connections=server_settings.max_connections,
        sockets=server_settings.root_path + socket_door.PATH,
    )
    config = uvicorn.Config(
        app,
        http=listener,
        ws="none",  # the listener has its own
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,
        ws_ping_interval=PING_SECONDS,
        lifespan="off",
        interface="asgi3",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        backlog=2048,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(server_settings.drain_seconds),
    )
    try:
        await app.start()
        key = await _first_key(app)
        # What exists now lives as long as the process: keeping the collector away from it makes every collection cheap.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 10, 20)
        server = Server(config, lambda host, port: _announce(settings, local, key, host, port), stopping=app.stopping)
        app.clients = lambda: (len(server.server_state.connections), len(server.server_state.tasks))
        async with admin_listener(app):
            await server.serve(sockets=[listening])
    finally:
        await app.drain()


@contextlib.asynccontextmanager
async def admin_listener(app: App) -> AsyncIterator[None]:
    """Run the admin listener while the public one runs and drains. An address that cannot be had is no reason not to serve."""
    chosen = app.settings.admin
    listening = None
    if chosen.enabled:
        try:
            listening = _bind(chosen.host, chosen.port)
            listening.listen()
        except (ConfigError, OSError) as error:
            reason = error.message.partition(";")[0] if isinstance(error, ConfigError) else error.strerror
            log.warning("no metrics: %s", reason)
            listening = None
    if listening is None:
        yield
        return
    config = uvicorn.Config(
        app.admin(),
        http=limited(max_head_bytes=16_384, max_headers=100, max_connections=chosen.max_connections),
        ws="none",
        lifespan="off",
        interface="asgi3",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=1,
    )
    server = Server(config, _announce_admin, handle_signals=False)
    running = asyncio.create_task(server.serve(sockets=[listening]), name="admin")
    try:
        yield
    finally:
        server.should_exit = True
        await running


async def _first_key(app: App) -> str | None:
    """At the very first start, make a key and keep it in a file only its owner can read; return it to be shown once."""
    try:
        new = await first_key(app.database)
    except Unavailable:
        return None
    if new is None:
        return None
    token = new.token.reveal()
    _keep(app.settings.home / KEY_FILE, token)
    return token


def _keep(path: Path, token: str) -> None:
    """Write the key to a file that only its owner can read."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(token + "\n")


def _announce(settings: Settings, local: LocalModel | None, key: str | None, host: str, port: int) -> None:
    """Tell how to reach us. The key is shown once; later starts say where it is."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    base = f"http://{reachable}:{port}{settings.server.root_path}/v1"
    path = settings.home / KEY_FILE
    model = f"local/{local.name}" if local is not None and local.state != "disabled" else "MODEL"
    lines = [
        f"Hortator {__version__} is listening. Point any OpenAI client at it:",
        "",
        f"export OPENAI_BASE_URL={base}",
    ]
    if key is not None:
        lines.append(f"export OPENAI_API_KEY={key}")
    elif path.exists():
        lines.append(f"export OPENAI_API_KEY=$(cat '{path}')")
    else:
        lines.append("export OPENAI_API_KEY=...    # make one: hortator keys create --name NAME")
    lines += [
        "",
        'curl -N $OPENAI_BASE_URL/chat/completions -H "Authorization: Bearer $OPENAI_API_KEY" \\',
        f'  -H \'Content-Type: application/json\' -d \'{{"model":"{model}","stream":true,'
        '"messages":[{"role":"user","content":"Write a haiku about gateways."}]}\'',
        "",
    ]
    click.echo("\n".join(lines))


def _announce_admin(host: str, port: int) -> None:
    """Tell operators where to look."""
    click.echo(f"Metrics for operators: http://{f'[{host}]' if ':' in host else host}:{port}/metrics", err=True)


def raise_file_limit() -> None:
    """Every client costs two descriptors; the usual soft limit of 1,024 is too low."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
