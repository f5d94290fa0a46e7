"""`hortator run "..."`: has a team of agents do something and shows them at work; the answer goes to standard output.

It asks the server that runs, or starts one for as long as it takes (`reach.py`). Ctrl-C cancels the whole tree. The exit status tells how
it ended: see `live.EXITS`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from hortator.cli import live
from hortator.cli.picture import clean, shortened, visible
from hortator.cli.reach import Reached, Where, reached, reaching
from hortator.client import Budget, HortatorError, Task, TaskConfig
from hortator.errors import InvalidRequest
from hortator.wire.tasks import MAX_AGENTS, Strategy, seconds

INTERRUPTED = 130


@click.command()
@reaching
@click.argument("prompt")
@click.option("--role", help="Who does it: coding-expert, researcher, ... Default: the generalist.")
@click.option("--model", help="The model that all agents ask, instead of one chosen by tier; or hortator/ROLE.")
@click.option("--max-agents", type=click.IntRange(1, MAX_AGENTS), help="Most agents at work at once.")
@click.option("--strategy", type=click.Choice(["none", "balanced", "aggressive"]), help="How far the work is split up.")
@click.option("--budget", help="What it may cost: US dollars (0.50) or tokens (20000t).")
@click.option("--timeout", help="How long it may take: 45s, 10m, 2h.")
@click.option(
    "--file",
    "-f",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    help="File for the agents; repeatable.",
)
@click.option(
    "--output-dir",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the files that agents make.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the task with its result as JSON.")
@click.option("--quiet", "-q", is_flag=True, help="Print the answer only.")
def run(prompt: str, files: tuple[str, ...], **options: Any) -> None:
    """Have a team of agents do PROMPT (- reads it from standard input).

    Exit status: 0 completed, 1 failed, 3 budget exceeded, 4 timed out, 5 cancelled, 130 cancelled by Ctrl-C.
    """
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise click.UsageError("there is nothing to do: PROMPT is empty")
    order = _order(options)
    where = Where(options["base_url"], options["api_key"], options["config"], options["env_file"])
    quiet: bool = options["quiet"]
    try:
        with reached(where, own=True, quiet=quiet) as server:
            status = _run(server, text, order, files, options)
    except HortatorError as error:
        raise click.ClickException(visible(str(error))) from None
    except OSError as error:
        raise click.ClickException(clean(error)) from None
    sys.exit(status)


def _order(options: dict[str, Any]) -> dict[str, Any]:
    """Return what the options say of the order. Raises UsageError."""
    model: str | None = options["model"]
    role: str | None = options["role"]
    strategy: Strategy | None = options["strategy"]
    if model is not None and model.startswith("hortator/"):
        if role is not None:
            raise click.UsageError("--model hortator/... and --role say the same; give one of them")
        role, model = model.removeprefix("hortator/"), None
    try:
        if options["timeout"] is not None:
            seconds(options["timeout"], "--timeout")
    except InvalidRequest as error:
        raise click.UsageError(error.message) from None
    config = TaskConfig(
        decomposition_strategy=strategy,
        max_agents=options["max_agents"],
        timeout=options["timeout"],
        budget=_budget(options["budget"]),
        model=model,
    )
    return {"config": config, **({} if role is None else {"role": role.removeprefix("hortator/")})}


def _budget(said: str | None) -> Budget | None:
    """`0.50`: US dollars. `20000t`: tokens. Raises UsageError."""
    if said is None:
        return None
    number = said.strip().removeprefix("$")
    if number.endswith("t") and number[:-1].isdigit() and int(number[:-1]):
        return Budget(max_tokens=int(number[:-1]))
    whole, _, rest = number.partition(".")
    if whole.isascii() and whole.isdigit() and (not rest or (rest.isascii() and rest.isdigit())):
        return Budget(max_cost_usd=number.rstrip("."))
    raise click.UsageError(f"--budget must be US dollars such as 0.50, or tokens such as 20000t, not {said!r}")


def _run(server: Reached, prompt: str, order: dict[str, Any], files: tuple[str, ...], options: dict[str, Any]) -> int:
    """Order it, follow it, print what came of it; return the exit status. Raises HortatorError, OSError."""
    quiet: bool = options["quiet"]
    task = server.client.tasks.create(prompt=prompt, files=files, **order)
    stopped = False

    def cancel() -> None:
        nonlocal stopped
        stopped = True
        click.echo(f"Cancelling task {task.id} ...", err=True)
        task.cancel()

    picture = live.follow(task, shortened(clean(prompt), 40), quiet=quiet, check=server.check, interrupted=cancel)
    task.refresh()
    kept = _files(task, options["output_dir"], quiet=quiet)
    if options["as_json"]:
        click.echo(
            json.dumps({**task.data.to_dict(), "files": [str(path) for path in kept]}, ensure_ascii=False, indent=2)
        )
    else:
        print_answer(task)
    if not quiet:
        click.echo(f"{task.status}: {picture.summary()}. Task {task.id}", err=True)
    return INTERRUPTED if stopped and task.status == "Cancelled" else live.EXITS.get(task.status, 1)


def print_answer(task: Task) -> None:
    """Print a result's text, or why there is none. Raises HortatorError."""
    try:
        results = task.result()
    except HortatorError as error:
        click.echo(f"{task.status}: {visible(error.message)}", err=True)
        return
    said = results.to_dict()
    text = said.get("content") or said.get("summary") or json.dumps(said, ensure_ascii=False, indent=2)
    click.echo(visible(str(text)) if sys.stdout.isatty() else str(text))


def _files(task: Task, folder: Path | None, *, quiet: bool) -> list[Path]:
    """Fetch the files that agents made, or say that there are some. Raises HortatorError, OSError."""
    found = task.artifacts()
    kept = task.download(to=folder) if folder is not None and found else []
    if found and not quiet:
        for place, file in enumerate(found):
            click.echo(f"File: {kept[place] if kept else clean(file.path)} ({file.bytes:,} bytes)", err=True)
        if not kept:
            click.echo("Give --output-dir to have files written.", err=True)
    return kept
