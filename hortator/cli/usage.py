"""`hortator usage export`: what tenants used in a period, as CSV or JSON, for invoices.

It reads the store directly, with or without a running server; calls of the last moments may still be on their way there.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from hortator.cli.configuration import configured
from hortator.cli.keys import with_store
from hortator.errors import HortatorError
from hortator.ledger import reports


@click.group()
def usage() -> None:
    """Report what was used."""


@usage.command("export")
@configured
@click.option("--tenant", help="Id or namespace of one tenant. Default: all.")
@click.option("--from", "since", required=True, help="First hour, e.g. 2026-11-01 or 2026-11-01T12:00Z.")
@click.option("--to", "until", required=True, help="The hour after the last one.")
@click.option("--task-type", help="Only requests for this task type.")
@click.option("--format", "format", type=click.Choice(["csv", "json"]), default="csv", show_default=True)
def export(
    config: Path | None,
    env_file: Path | None,
    tenant: str | None,
    since: str,
    until: str,
    task_type: str | None,
    format: str,
) -> None:
    """Print sums by tenant, provider, model and task type; amounts are exact US dollars.

    The sums are kept for `ledger.rollup_retention_days`, longer than the records they were made of, which go after their tenant's
    data retention or `ledger.retention_days`.
    """
    try:
        wanted = reports.period({"from": since, "to": until}, datetime.now(UTC))
    except HortatorError as error:
        raise click.ClickException(error.message) from None
    only = reports.Only(task_type=task_type)
    lines = with_store(config, env_file, lambda database: reports.export(database, tenant, wanted, only))
    if format == "csv":
        click.echo(reports.as_csv(lines), nl=False)
    else:
        click.echo(msgspec.json.format(msgspec.json.encode(reports.as_json(lines, wanted)), indent=2).decode())
