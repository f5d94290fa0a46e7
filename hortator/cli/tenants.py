"""`hortator tenants ...`: who the keys belong to, and what each may use.

They work on the store directly, with or without a running server; a server notices within 5 s. `hortator keys` is the
other half.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

import click

from hortator.cli.configuration import configured
from hortator.cli.keys import (
    as_json_option,
    limit_option,
    operator,
    print_table,
    priority_option,
    retention_option,
    shown_limits,
    shown_time,
    with_store,
)
from hortator.errors import HortatorError
from hortator.store import Database
from hortator.store.queries import Tenant, list_tenants, tenant_by_namespace
from hortator.tenancy.keys import create_tenant
from hortator.tenancy.tenants import change_tenant, import_tenants
from hortator.tenancy.terms import tenant_config

_models = click.option("--models", multiple=True, help="Glob over model ids its keys are confined to; repeatable.")


@click.group()
def tenants() -> None:
    """Create, change, import and list tenants."""


@tenants.command("create")
@configured
@click.option("--name", required=True, help="Name for people.")
@click.option("--namespace", required=True, help="Name for machines: a DNS label of at most 63 characters.")
@limit_option
@_models
@priority_option
@retention_option
def create(
    config: Path | None,
    env_file: Path | None,
    name: str,
    namespace: str,
    limits: tuple[str, ...],
    models: tuple[str, ...],
    priority: str | None,
    data_retention: str | None,
) -> None:
    """Create a tenant and print its id."""
    chosen = _config(limits, models, priority, data_retention)
    tenant = with_store(config, env_file, lambda database: create_tenant(database, name, namespace, chosen, operator()))
    click.echo(f"Tenant {tenant.namespace} is created.", err=True)
    click.echo(tenant.id)


@tenants.command("set")
@configured
@click.argument("namespace")
@limit_option
@_models
@priority_option
@retention_option
@click.option("--disable/--enable", "disabled", default=None, help="Refuse or admit all its keys.")
def set_(
    config: Path | None,
    env_file: Path | None,
    namespace: str,
    limits: tuple[str, ...],
    models: tuple[str, ...],
    priority: str | None,
    data_retention: str | None,
    disabled: bool | None,
) -> None:
    """Change what is given of the tenant NAMESPACE; all its limits are replaced by those given."""
    chosen = _config(limits, models, priority, data_retention)
    if not chosen and disabled is None:
        raise click.UsageError(
            "nothing to change: give --limit, --models, --priority, --data-retention, --disable or --enable"
        )

    async def change(database: Database) -> Tenant:
        tenant = await tenant_by_namespace(database, namespace)
        return await change_tenant(database, tenant, chosen, disabled=disabled, by=operator())

    tenant = with_store(config, env_file, change)
    state = " (disabled)" if tenant.disabled_at is not None else ""
    click.echo(f"Tenant {tenant.namespace}{state}: {shown_limits(tenant.config)}.", err=True)


@tenants.command("import")
@configured
@click.argument("file", type=click.File(encoding="utf-8"))
def import_(config: Path | None, env_file: Path | None, file: TextIO) -> None:
    """Create or change the tenants of FILE: a ConfigMap with tenant-mapping.yaml, or that entry alone; `-` reads standard input."""
    text = file.read()
    for one in with_store(config, env_file, lambda database: import_tenants(database, text, operator())):
        click.echo(f"Tenant {one.namespace} is {'created' if one.created else 'changed'}.", err=True)


@tenants.command("list")
@configured
@as_json_option
def list_(config: Path | None, env_file: Path | None, as_json: bool) -> None:
    """List tenants."""
    found = with_store(config, env_file, list_tenants)
    if as_json:
        click.echo(json.dumps([_as_json(each) for each in found], indent=2))
        return
    print_table(
        ("NAMESPACE", "NAME", "LIMITS", "MODELS", "PRIORITY", "RETENTION", "CREATED", "ID"),
        [
            (
                each.namespace,
                each.name,
                shown_limits(each.config),
                ",".join(each.config.get("allowed_models", ["*"])),
                each.config.get("priority", "-"),
                each.config.get("data_retention", "-"),
                shown_time(each.created_at),
                each.id,
            )
            for each in found
        ],
    )


def _as_json(tenant: Tenant) -> dict[str, object]:
    return {
        "id": tenant.id,
        "namespace": tenant.namespace,
        "name": tenant.name,
        "created_at": tenant.created_at.isoformat(),
        "limits": tenant.config.get("limits", []),
        "models": tenant.config.get("allowed_models", ["*"]),
        "priority": tenant.config.get("priority"),
        "data_retention": tenant.config.get("data_retention"),
        "disabled_at": None if tenant.disabled_at is None else tenant.disabled_at.isoformat(),
    }


def _config(
    limits: tuple[str, ...], models: tuple[str, ...], priority: str | None, data_retention: str | None
) -> dict[str, object]:
    try:
        return tenant_config(
            limits=limits or None, models=models or None, priority=priority, data_retention=data_retention
        )
    except HortatorError as error:
        raise click.ClickException(error.message) from None
