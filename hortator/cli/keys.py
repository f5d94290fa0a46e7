"""`hortator keys ...`: the operator's view of who may call. `hortator tenants` is in `tenants.py` and shares what is here.

They work on the store directly, with or without a running server; a server notices within 5 s. A new key is printed alone on
standard output, everything meant for people goes to standard error, so `KEY=$(hortator keys create --name ci)` works.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import click

from hortator.cli.configuration import configured, load_settings
from hortator.errors import HortatorError
from hortator.store import Database, migrate
from hortator.store import configured as configured_store
from hortator.store.audit import Actor
from hortator.store.queries import ApiKey, Tenant
from hortator.tenancy.keys import (
    DEFAULT_TENANT,
    Rotation,
    change_key,
    checked_permissions,
    create_key,
    find_key,
    find_key_to_rotate,
    list_keys,
    revoke_key,
    rotate_key,
    state,
)
from hortator.tenancy.terms import PRIORITIES, checked_models, key_config

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


permission_option = click.option(
    "--permission",
    "permissions",
    multiple=True,
    help="What else the key may do: admin, admin:keys, admin:tenants, tenant:impersonate; repeatable.",
)
limit_option = click.option(
    "--limit",
    "limits",
    multiple=True,
    help="'60 requests/minute', '1000 tokens/hour', '5 usd/day', '10 concurrent'; per minute, hour, day or month; repeatable. "
    "'unlimited' takes all away.",
)
priority_option = click.option(
    "--priority",
    type=click.Choice(PRIORITIES),
    help="Who goes first when not everybody can. Default: standard; a key never goes before its tenant.",
)
retention_option = click.option(
    "--data-retention", help="How long usage records are kept, e.g. '30 days', '7 years'; a key's only if shorter."
)
as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def with_store(config: Path | None, env_file: Path | None, work: Callable[[Database], Awaitable[T]]) -> T:
    """Run `work` on the configured store, migrated; its errors become one line."""
    settings = load_settings(config, env_file)

    async def run() -> T:
        database = configured_store(settings)
        try:
            await migrate(database)
            return await work(database)
        finally:
            await database.close()

    try:
        return asyncio.run(run())
    except HortatorError as error:
        raise click.ClickException(error.message) from None


def operator() -> Actor:
    """Who the audit log says it was."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return Actor(f"command line ({user})")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns as wide as their widest cell."""
    widths = [max(len(row[place]) for row in (header, *rows)) for place in range(len(header))]
    for row in (header, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def shown_time(moment: datetime | None) -> str:
    return "-" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def shown_limits(config: Mapping[str, Any]) -> str:
    """The limits in a `config`, for people."""
    return ", ".join(map(str, config.get("limits", []))) or "unlimited"


@click.group()
def keys() -> None:
    """Create, list, limit, revoke and rotate API keys."""


@keys.command("create")
@configured
@click.option("--name", required=True, help="What the key is for.")
@click.option("--tenant", default=DEFAULT_TENANT, show_default=True, help="Namespace of the tenant.")
@click.option("--models", multiple=True, help="Glob over model ids the key may use; repeatable. Default: every model.")
@permission_option
@click.option("--expires", type=Duration(), help="Life of the key, e.g. 30d. Default: no end.")
@limit_option
@priority_option
@retention_option
def create(
    config: Path | None,
    env_file: Path | None,
    name: str,
    tenant: str,
    models: tuple[str, ...],
    permissions: tuple[str, ...],
    expires: timedelta | None,
    limits: tuple[str, ...],
    priority: str | None,
    data_retention: str | None,
) -> None:
    """Create a key and print it, once."""
    new = with_store(
        config,
        env_file,
        lambda database: create_key(
            database,
            name=name,
            tenant=tenant,
            models=models or ("*",),
            permissions=permissions,
            expires_in=expires,
            limits=limits,
            priority=priority,
            data_retention=data_retention,
            by=operator(),
        ),
    )
    click.echo(f"Key {name} of tenant {tenant}. It is not shown again.", err=True)
    click.echo(new.token.reveal())


@keys.command("list")
@configured
@click.option("--tenant", help="Namespace of one tenant. Default: all.")
@as_json_option
def list_(config: Path | None, env_file: Path | None, tenant: str | None, as_json: bool) -> None:
    """List keys; never the keys themselves."""
    found = with_store(config, env_file, lambda database: list_keys(database, tenant))
    if as_json:
        click.echo(json.dumps([_as_json(owner, key) for owner, key in found], indent=2))
        return
    header = ("PREFIX", "NAME", "TENANT", "STATE", "MODELS", "LIMITS", "CREATED", "LAST USED", "EXPIRES")
    print_table(
        header,
        [
            (
                key.prefix,
                key.name,
                owner.namespace,
                state(key),
                ",".join(key.allowed_models),
                shown_limits(key.config),
                shown_time(key.created_at),
                shown_time(key.last_used_at),
                shown_time(key.expires_at),
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
        "state": state(key),
        "models": list(key.allowed_models),
        "permissions": list(key.permissions),
        "limits": key.config.get("limits", []),
        "priority": key.config.get("priority"),
        "data_retention": key.config.get("data_retention"),
        "replaced_by": key.replaced_by,
        **{name: None if moment is None else moment.isoformat() for name, moment in moments.items()},
    }


@keys.command("set")
@configured
@click.argument("key")
@limit_option
@click.option("--models", multiple=True, help="Glob over model ids the key may use; repeatable.")
@permission_option
@priority_option
@retention_option
def set_(
    config: Path | None,
    env_file: Path | None,
    key: str,
    limits: tuple[str, ...],
    models: tuple[str, ...],
    permissions: tuple[str, ...],
    priority: str | None,
    data_retention: str | None,
) -> None:
    """Replace what is given of KEY (its name, prefix or hash); all its limits, models or permissions by those given."""

    async def change(database: Database) -> ApiKey:
        values: dict[str, object] = {}
        if models:
            values["allowed_models"] = checked_models(models)
        if permissions:
            values["permissions"] = checked_permissions(permissions)
        terms = key_config(limits=limits or None, priority=priority, data_retention=data_retention)
        return await change_key(database, await find_key(database, key), values, terms, operator())

    if not (limits or models or permissions or priority or data_retention):
        raise click.UsageError(
            "nothing to change: give --limit, --models, --permission, --priority or --data-retention"
        )
    changed = with_store(config, env_file, change)
    click.echo(f"Key {changed.prefix} ({changed.name}): {shown_limits(changed.config)}.", err=True)


@keys.command("revoke")
@configured
@click.argument("key")
def revoke(config: Path | None, env_file: Path | None, key: str) -> None:
    """Revoke KEY (its name, prefix or hash). Works within 5 seconds on every replica."""

    async def work(database: Database) -> ApiKey:
        return await revoke_key(database, await find_key(database, key), operator())

    revoked = with_store(config, env_file, work)
    click.echo(f"Key {revoked.prefix} ({revoked.name}) is revoked.", err=True)


@keys.command("rotate")
@configured
@click.argument("key")
@click.option("--overlap", type=Duration(), default="24h", show_default=True, help="How long the old key stays valid.")
def rotate(config: Path | None, env_file: Path | None, key: str, overlap: timedelta) -> None:
    """Replace KEY (its name, prefix or hash) by a new one with the same rights, and print that, once."""

    async def work(database: Database) -> Rotation:
        return await rotate_key(database, await find_key_to_rotate(database, key), overlap, operator())

    rotation = with_store(config, env_file, work)
    until = rotation.old_valid_until.strftime("%Y-%m-%d %H:%M:%S UTC")
    click.echo(f"Key {rotation.old.prefix} ({rotation.old.name}) stays valid until {until}.", err=True)
    click.echo("The new key is not shown again.", err=True)
    click.echo(rotation.new.token.reveal())
