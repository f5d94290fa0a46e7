"""`hortator keys ...` and `hortator tenants ...`: the operator's view of who may call.

They work on the store directly, with or without a running server; a server notices within 5 s. A new key is printed alone on
standard output, everything meant for people goes to standard error, so `KEY=$(hortator keys create --name ci)` works.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import click

from hortator import app
from hortator.cli.configuration import configured, load_settings
from hortator.errors import HortatorError
from hortator.store import Database, migrate
from hortator.store.queries import ApiKey, Tenant, list_tenants
from hortator.tenancy.keys import DEFAULT_TENANT, create_key, create_tenant, list_keys, revoke_key, rotate_key

T = TypeVar("T")

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class Duration(click.ParamType[timedelta]):
    """A time span on the command line: `90m`, `24h`, `30d`."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """`30d` to 30 days."""
        if isinstance(value, timedelta):
            return value
        match = re.fullmatch(r"(\d{1,6})([smhdw])", str(value))
        if match is None:
            self.fail("expected a number and s, m, h, d or w, e.g. 24h", param, ctx)
        return timedelta(seconds=int(match[1]) * _UNITS[match[2]])


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def with_store(config: Path | None, env_file: Path | None, work: Callable[[Database], Awaitable[T]]) -> T:
    """Run `work` on the configured store, migrated; its errors become one line."""
    settings = load_settings(config, env_file)

    async def run() -> T:
        database = app.database(settings)
        try:
            await migrate(database)
            return await work(database)
        finally:
            await database.close()

    try:
        return asyncio.run(run())
    except HortatorError as error:
        raise click.ClickException(error.message) from None


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns as wide as their widest cell."""
    widths = [max(len(row[place]) for row in (header, *rows)) for place in range(len(header))]
    for row in (header, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _time(moment: datetime | None) -> str:
    return "-" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is not None and key.expires_at <= datetime.now(UTC):
        return "expired"
    return "replaced" if key.replaced_by is not None else "active"


@click.group()
def keys() -> None:
    """Create, list, revoke and rotate API keys."""


@keys.command("create")
@configured
@click.option("--name", required=True, help="What the key is for.")
@click.option("--tenant", default=DEFAULT_TENANT, show_default=True, help="Namespace of the tenant.")
@click.option("--models", multiple=True, help="Glob over model ids the key may use; repeatable. Default: every model.")
@click.option("--permission", "permissions", multiple=True, help="What else the key may do; repeatable.")
@click.option("--expires", type=Duration(), help="Life of the key, e.g. 30d. Default: no end.")
def create(
    config: Path | None,
    env_file: Path | None,
    name: str,
    tenant: str,
    models: tuple[str, ...],
    permissions: tuple[str, ...],
    expires: timedelta | None,
) -> None:
    """Create a key and print it, once."""
    new = with_store(
        config,
        env_file,
        lambda database: create_key(
            database, name=name, tenant=tenant, models=models or ("*",), permissions=permissions, expires_in=expires
        ),
    )
    click.echo(f"Key {name} of tenant {tenant}. It is not shown again.", err=True)
    click.echo(new.token.reveal())


@keys.command("list")
@configured
@click.option("--tenant", help="Namespace of one tenant. Default: all.")
@_json
def list_(config: Path | None, env_file: Path | None, tenant: str | None, as_json: bool) -> None:
    """List keys; never the keys themselves."""
    found = with_store(config, env_file, lambda database: list_keys(database, tenant))
    if as_json:
        click.echo(json.dumps([_as_json(owner, key) for owner, key in found], indent=2))
        return
    header = ("PREFIX", "NAME", "TENANT", "STATE", "MODELS", "CREATED", "LAST USED", "EXPIRES")
    _table(
        header,
        [
            (
                key.prefix,
                key.name,
                owner.namespace,
                _state(key),
                ",".join(key.allowed_models),
                _time(key.created_at),
                _time(key.last_used_at),
                _time(key.expires_at),
            )
            for owner, key in found
        ],
    )


def _as_json(owner: Tenant, key: ApiKey) -> dict[str, object]:
    moments = {name: getattr(key, name) for name in ("created_at", "last_used_at", "expires_at", "revoked_at")}
    return {
        "prefix": key.prefix,
        "key_hash": key.key_hash,
        "name": key.name,
        "tenant": owner.namespace,
        "state": _state(key),
        "models": list(key.allowed_models),
        "permissions": list(key.permissions),
        "replaced_by": key.replaced_by,
        **{name: None if moment is None else moment.isoformat() for name, moment in moments.items()},
    }


@keys.command("revoke")
@configured
@click.argument("key")
def revoke(config: Path | None, env_file: Path | None, key: str) -> None:
    """Revoke KEY (its name, prefix or hash). Works within 5 seconds on every replica."""
    revoked = with_store(config, env_file, lambda database: revoke_key(database, key))
    click.echo(f"Key {revoked.prefix} ({revoked.name}) is revoked.", err=True)


@keys.command("rotate")
@configured
@click.argument("key")
@click.option("--overlap", type=Duration(), default="24h", show_default=True, help="How long the old key stays valid.")
def rotate(config: Path | None, env_file: Path | None, key: str, overlap: timedelta) -> None:
    """Replace KEY (its name, prefix or hash) by a new one with the same rights, and print that, once."""
    rotation = with_store(config, env_file, lambda database: rotate_key(database, key, overlap))
    until = rotation.old_valid_until.strftime("%Y-%m-%d %H:%M:%S UTC")
    click.echo(f"Key {rotation.old.prefix} ({rotation.old.name}) stays valid until {until}.", err=True)
    click.echo("The new key is not shown again.", err=True)
    click.echo(rotation.new.token.reveal())


@click.group()
def tenants() -> None:
    """Create and list tenants."""


@tenants.command("create")
@configured
@click.option("--name", required=True, help="Name for people.")
@click.option("--namespace", required=True, help="Name for machines: a DNS label of at most 63 characters.")
def create_tenant_(config: Path | None, env_file: Path | None, name: str, namespace: str) -> None:
    """Create a tenant and print its id."""
    tenant = with_store(config, env_file, lambda database: create_tenant(database, name, namespace))
    click.echo(f"Tenant {tenant.namespace} is created.", err=True)
    click.echo(tenant.id)


@tenants.command("list")
@configured
@_json
def list_tenants_(config: Path | None, env_file: Path | None, as_json: bool) -> None:
    """List tenants."""
    found = with_store(config, env_file, list_tenants)
    if as_json:
        rows = [
            {"id": each.id, "namespace": each.namespace, "name": each.name, "created_at": each.created_at.isoformat()}
            for each in found
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    _table(
        ("NAMESPACE", "NAME", "CREATED", "ID"),
        [(each.namespace, each.name, _time(each.created_at), each.id) for each in found],
    )
