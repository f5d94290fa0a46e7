"""`hortator tasks ...`: what teams of agents are doing and have done, at the server that runs.

Tables are for people, `-o json` for programs. Everything comes from the task API through the SDK (`hortator.client`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import click

from hortator.cli import live
from hortator.cli.picture import clean, logged, shortened, visible
from hortator.cli.reach import Where, reached, reaching
from hortator.cli.run import print_answer
from hortator.client import HortatorClient, HortatorError, Node, Record, Task, TaskData
from hortator.wire.events import Level
from hortator.wire.tasks import Phase

F = TypeVar("F", bound=Callable[..., object])
Output = Literal["table", "json"]

SHOWN = (
    *("id", "name", "status", "message", "type", "role", "tier", "model", "pattern", "source", "priority"),
    *("created_at", "started_at", "completed_at", "deadline_at", "progress_percent", "attempts", "cost_usd"),
)
_output = click.option("--output", "-o", type=click.Choice(["table", "json"]), default="table", show_default=True)


@click.group()
def tasks() -> None:
    """Look at and steer what agents do."""


def _asking(work: Callable[..., int | None]) -> Callable[..., None]:
    """Make a command of a function that gets a client: connected, its errors one line, its return value the exit status."""

    def command(
        base_url: str | None, api_key: str | None, config: Path | None, env_file: Path | None, **options: Any
    ) -> None:
        try:
            with reached(Where(base_url, api_key, config, env_file), own=False) as server:
                status = work(server.client, **options)
        except HortatorError as error:
            raise click.ClickException(visible(str(error))) from None
        except OSError as error:
            raise click.ClickException(clean(error)) from None
        sys.exit(status or 0)

    command.__name__, command.__doc__ = work.__name__, work.__doc__
    return reaching(command)


@tasks.command("list")
@click.option("--status", type=click.Choice(get_args(Phase)), help="Only tasks of this phase.")
@click.option("--type", "type", help="Only tasks of this type.")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True)
@click.option("--after", help="Only tasks older than the one of this id.")
@click.option("--all", "all", is_flag=True, help="Also tasks below roots.")
@_output
@_asking
def list_(client: HortatorClient, output: Output, **chosen: Any) -> None:
    """List tasks, newest first."""
    found = client.tasks.list(**chosen)
    if output == "json":
        return _json([task.data for task in found])
    rows = [(t.id, t.status, t.type, t.role, _cost(t.data), t.created_at, clean(t.name or "")[:50]) for t in found]
    return _table(("ID", "STATUS", "TYPE", "ROLE", "COST", "CREATED", "NAME"), rows)


@tasks.command()
@click.argument("id")
@_output
@_asking
def show(client: HortatorClient, id: str, output: Output) -> None:
    """Show one task."""
    task = client.tasks.get(id)
    if output == "json":
        return _json(task.data)
    said = task.data.to_dict()
    for name in SHOWN:
        if said.get(name) not in (None, ""):
            click.echo(f"{name.replace('_', ' '):<17} {clean(said[name])}")
    for name in ("usage", "budget", "error"):
        if isinstance(said.get(name), dict):
            told = ", ".join(f"{key} {value}" for key, value in said[name].items() if value is not None)
            click.echo(f"{name:<17} {clean(told) or '-'}")
    return None


@tasks.command()
@click.argument("id")
@_output
@_asking
def tree(client: HortatorClient, id: str, output: Output) -> None:
    """Show a task with all tasks below it."""
    root = client.tasks.get(id).tree()
    if output == "json":
        return _json(root)
    for line in _branches(root, "", ""):
        click.echo(line)
    return None


@tasks.command()
@click.argument("id")
@_asking
def watch(client: HortatorClient, id: str) -> int:
    """Follow a task until it ends. Ctrl-C leaves it running. Exit status as of `hortator run`."""
    task = client.tasks.get(id)
    try:
        live.follow(task, shortened(clean(task.name or task.id), 40), quiet=False, check=lambda: None)
    except KeyboardInterrupt:
        click.echo(f"Task {id} goes on.", err=True)
        return 0
    return live.EXITS.get(task.refresh().status, 1)


@tasks.command()
@click.argument("id")
@click.option("--level", type=click.Choice(["default", "verbose", "full"]), default="full", show_default=True)
@click.option("--after", type=click.IntRange(0), default=0, help="Only events behind this number.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the task ends.")
@_output
@_asking
def logs(client: HortatorClient, id: str, level: Level, after: int, follow: bool, output: Output) -> None:
    """Print a task's events, one a line."""
    task = client.tasks.get(id)

    for event in task.stream(level, after) if follow else task.events(level, after):
        click.echo(json.dumps(event.to_dict(), ensure_ascii=False) if output == "json" else logged(event))


@tasks.command()
@click.argument("id")
@_output
@_asking
def cancel(client: HortatorClient, id: str, output: Output) -> None:
    """Cancel a task and all below it."""
    task = client.tasks.cancel(id)
    if output == "json":
        return _json(task.data)
    return click.echo(f"Task {task.id} is {task.status}.")


@tasks.command()
@click.argument("id")
@click.option("--wait", is_flag=True, help="Wait for its end.")
@_output
@_asking
def result(client: HortatorClient, id: str, wait: bool, output: Output) -> int:
    """Print a task's result. Exit status as of `hortator run`."""
    task = client.tasks.get(id)
    if not wait and not task.ended:
        raise HortatorError(f"Task {id} has not ended: it is {task.status}. Give --wait to wait for it.")
    task.wait()
    if output == "json":
        _json(task.data)
    else:
        print_answer(task)
    return live.EXITS.get(task.status, 1)


@tasks.command()
@click.argument("id")
@click.argument("path", required=False)
@click.option("--output-dir", type=click.Path(file_okay=False, path_type=Path), help="Fetch them into this folder.")
@_output
@_asking
def artifacts(client: HortatorClient, id: str, path: str | None, output_dir: Path | None, output: Output) -> None:
    """List the files that agents made; fetch them, or the one at PATH, with --output-dir. PATH alone: print it."""
    task: Task = client.tasks.get(id)
    if output_dir is not None:
        for place in task.download(path, output_dir):
            click.echo(str(place))
        return None
    if path is not None:
        sys.stdout.buffer.write(task.read(path))
        return None
    found = task.artifacts()
    if output == "json":
        return _json(list(found))
    return _table(("PATH", "BYTES", "TASK"), [(file.path, file.bytes, file.task_id) for file in found])


def _branches(node: Node, lead: str, below: str) -> list[str]:
    role = " ".join(word for word in (node.tier, node.role) if word)
    lines = [f"{lead}{clean(node.name or node.id)[:60]} ({role})  {node.status}  {_cost(node)}".rstrip()]
    children = node.children or []
    for place, child in enumerate(children):
        last = place == len(children) - 1
        lines += _branches(child, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "))
    return lines


def _cost(record: Node | TaskData) -> str:
    cost = record.cost_usd
    return f"${cost}" if cost not in (None, "0") else "-"


def _json(found: Record | Sequence[Record]) -> None:
    plain = found.to_dict() if isinstance(found, Record) else [each.to_dict() for each in found]
    click.echo(json.dumps(plain, ensure_ascii=False, indent=2))


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    shown = [tuple(head), *(tuple("-" if cell in (None, "") else clean(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(head))]
    for row in shown:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
