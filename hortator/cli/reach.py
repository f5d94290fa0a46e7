"""Which server a command of a client talks to: the one that is named, the one on this machine, or one of the command's own.

`run.py` and `tasks.py` call it. A key comes from the option, from HORTATOR_API_KEY, or from the file that the first start of a server on this
machine has left in its home folder.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, TypeVar

import click

from hortator.cli.configuration import configured, load_settings
from hortator.cli.embedded import embedded
from hortator.cli.keys import with_store
from hortator.cli.serve import KEY_FILE
from hortator.client import AuthenticationError, HortatorClient
from hortator.client.options import KEY_VARIABLE, URL_VARIABLE
from hortator.settings import Settings
from hortator.tenancy.keys import create_key

F = TypeVar("F", bound=Callable[..., object])
LOOK_SECONDS = 3.0
OWN_KEY = timedelta(days=1)

_base_url = click.option(
    "--base-url", help=f"Address of the server; else {URL_VARIABLE}, else the one on this machine."
)
_api_key = click.option(
    "--api-key", help=f"Key; else {KEY_VARIABLE}, else the first key of the server on this machine."
)


class Where(NamedTuple):
    """What the options say."""

    base_url: str | None
    api_key: str | None
    config: Path | None
    env_file: Path | None


class Reached(NamedTuple):
    """A client, connected."""

    client: HortatorClient
    check: Callable[[], None]
    """Raises ClickException where the server was this command's own and has ended."""


def reaching(command: F) -> F:
    """Add the options that say where the server is."""
    return _base_url(_api_key(configured(command)))


@contextlib.contextmanager
def reached(where: Where, *, own: bool, quiet: bool = False) -> Iterator[Reached]:
    """Connect to a server; `own`: where none is there, start one for as long as this lasts. Raises ClickException."""
    key = where.api_key or os.environ.get(KEY_VARIABLE)
    named = where.base_url or os.environ.get(URL_VARIABLE)
    if named:
        with _client(key, named) as client:
            yield Reached(client, _nothing)
        return
    settings = load_settings(where.config, where.env_file)
    local = _local_address(settings)
    if _answers(local):
        with _client(key or _first_key(settings), local) as client:
            yield Reached(client, _nothing)
    elif own:
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(embedded(where.config, where.env_file, settings.home, quiet=quiet))
            client = stack.enter_context(_client(where.api_key or _own_key(where, settings), server.base_url))
            yield Reached(client, server.check)
    else:
        raise click.ClickException(
            f"no server answers at {local}; start one with `hortator serve`, or name one with --base-url"
        )


def _nothing() -> None:
    """A server that is not ours is looked after by others."""


def _client(key: str | None, base_url: str) -> HortatorClient:
    try:
        return HortatorClient(key, base_url)
    except (AuthenticationError, ValueError) as error:
        raise click.ClickException(f"{error} Or give --api-key.") from None


def _local_address(settings: Settings) -> str:
    """Return where a server with these settings is reached from this machine."""
    host = settings.server.host
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{reachable}:{settings.server.port}{settings.server.root_path}"


def _answers(base_url: str) -> bool:
    """Whether a Hortator answers there."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{base_url}/health", timeout=LOOK_SECONDS) as reply:
            said = json.load(reply)
    except (OSError, ValueError, http.client.HTTPException, urllib.error.URLError):
        return False
    return isinstance(said, dict) and said.get("status") == "ok" and "version" in said


def _first_key(settings: Settings) -> str | None:
    try:
        return (settings.home / KEY_FILE).read_text("ascii").strip() or None
    except (OSError, ValueError):
        return None


def _own_key(where: Where, settings: Settings) -> str:
    """Return a key for a server of one's own: the first one, or one for a day."""
    if (key := _first_key(settings)) is not None:
        return key
    made = with_store(
        where.config,
        where.env_file,
        lambda database: create_key(database, name="hortator run", expires_in=OWN_KEY),
    )
    return made.token.reveal()
