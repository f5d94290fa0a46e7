"""`hortator check`: validates the configuration and prints what would be served. Starts, connects to and writes nothing.

Everything that is wrong goes to standard error, one line each, and the command ends with 1. Secrets are never printed: of a
key it says whether there is one, of headers their names, of the store its host and name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click
import msgspec

from hortator import app
from hortator.cli.configuration import configured
from hortator.errors import ConfigError
from hortator.ledger import PriceBook
from hortator.providers.local_model import engine_installed
from hortator.providers.weights import ModelUnavailable, custom, installed
from hortator.settings import LOCAL, Provider, Settings, known_variables, load
from hortator.store import configured as configured_store


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@configured
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def check(file: Path | None, config: Path | None, env_file: Path | None, as_json: bool) -> None:
    """Validate the configuration (FILE, or what `serve` would take) and print what would be served."""
    if file is not None and config is not None:
        raise click.UsageError("give FILE or --config, not both")
    try:
        settings = load(file or config, os.environ, env_file=env_file)
    except ConfigError as error:
        problems = error.message.splitlines()
    else:
        problems = _refusals(settings)
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        if as_json:
            click.echo(_json({"valid": False, "problems": problems}))
        raise SystemExit(1)
    report = _report(settings)
    if as_json:
        click.echo(_json({"valid": True, **report}))
    else:
        click.echo("\n".join(_lines(report)))


def _refusals(settings: Settings) -> list[str]:
    """Return what the rooms themselves would refuse at start-up: the store's address, price and CA files, the proxy's extra."""
    attempts: Sequence[Callable[[], object]] = (
        lambda: configured_store(settings),
        lambda: app.upstream(settings),
        lambda: PriceBook(settings.ledger.price_overrides),
    )
    problems = []
    for attempt in attempts:
        try:
            attempt()
        except ConfigError as error:
            problems += error.message.splitlines()
    return problems


def _report(settings: Settings) -> dict[str, Any]:
    url = configured_store(settings).url
    return {
        "file": None if settings.source is None else str(settings.source),
        "home": str(settings.home),
        "listen": {
            "host": settings.server.host,
            "port": settings.server.port,
            "root_path": settings.server.root_path,
        },
        "admin": {"enabled": settings.admin.enabled, "host": settings.admin.host, "port": settings.admin.port},
        "store": {"kind": url.get_backend_name(), "host": url.host, "port": url.port, "database": url.database},
        "providers": [_provider(provider) for provider in settings.providers],
        "models": [
            {
                "id": model.id,
                "deployments": [f"{place.provider}/{place.model}" for place in model.deployments],
                "description": model.description,
            }
            for model in settings.models
        ],
        "local": {
            "id": f"{LOCAL}/{settings.local.name}",
            "enabled": settings.local.enabled,
            "state": _local_state(settings),
        },
        "variables": settings.variables,
        "ignored_variables": settings.ignored_variables,
    }


def _provider(provider: Provider) -> dict[str, Any]:
    return {
        "id": provider.id,
        "kind": provider.kind,
        "preset": provider.preset,
        "base_url": provider.base_url,
        "api_key": provider.api_key is not None,
        "headers": sorted(provider.headers),
        "models": provider.models,
        "detect": provider.detect,
    }


def _local_state(settings: Settings) -> str:
    """Say in words whether the embedded model can be had."""
    chosen = settings.local
    if not chosen.enabled:
        return "switched off"
    try:
        if chosen.file is not None:
            _, path = custom(chosen.file)
        else:
            found = installed(chosen.model, settings.home / "models")
            if found is None:
                return "to be obtained at the first start" if engine_installed() else _NO_ENGINE
            path = found
    except ModelUnavailable as error:
        return error.message
    return f"ready at {path}" if engine_installed() else _NO_ENGINE


_NO_ENGINE = "not served, as its engine is not installed; pip install 'hortator[local]'"


def _lines(report: dict[str, Any]) -> list[str]:
    """Return the report for people."""
    listen, store, local = report["listen"], report["store"], report["local"]
    host, admin_host = (f"[{one}]" if ":" in one else one for one in (listen["host"], report["admin"]["host"]))
    admin = f"http://{admin_host}:{report['admin']['port']}/metrics" if report["admin"]["enabled"] else "switched off"
    place = store["database"]
    if store["host"] is not None:
        port = "" if store["port"] is None else f":{store['port']}"
        place = f"{place} at {store['host']}{port}"
    lines = [
        f"configuration  {report['file'] or 'no file; defaults'}",
        f"home           {report['home']}",
        f"listens on     http://{host}:{listen['port']}{listen['root_path']}/v1",
        f"for operators  {admin}",
        f"store          {store['kind']}, {place}",
        f"local model    {local['id']}: {local['state']}",
        "",
        f"providers      {len(report['providers'])}",
    ]
    for provider in report["providers"]:
        notes = [
            "any model" if provider["models"] is None else f"{len(provider['models'])} models",
            "with key" if provider["api_key"] else "no key",
        ]
        if provider["headers"]:
            notes.append(f"headers {', '.join(provider['headers'])}")
        if provider["detect"]:
            notes.append("only if it answers")
        lines.append(f"  {provider['id']:<12} {provider['base_url']}  ({'; '.join(notes)})")
        lines += [f"    {provider['id']}/{model}" for model in provider["models"] or ()]
    lines += ["", f"named models   {len(report['models'])}"]
    lines += [f"  {model['id']:<12} {', then '.join(model['deployments'])}" for model in report["models"]]
    lines += ["", f"variables used {', '.join(report['variables']) or 'none'}"]
    for name in report["ignored_variables"]:
        meant = get_close_matches(name, known_variables(), 1)
        lines.append(f"  {name} means nothing here" + (f"; did you mean {meant[0]}?" if meant else ""))
    return lines


def _json(value: dict[str, Any]) -> str:
    return msgspec.json.format(msgspec.json.encode(value)).decode()
