"""`hortator router eval`: how well the complexity score judges an operator's own labelled requests.

It needs no server and no store. The file has the form of training/complexity/requests.jsonl: a JSON object a line with `label` (fast,
standard, complex) and `messages`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, get_args

import click
import msgspec

from hortator.routing import complexity
from hortator.routing.complexity import COMPLEX_FROM, FAST_BELOW, score


class Labelled(msgspec.Struct):
    """One line of the file; other keys are ignored."""

    label: complexity.Path
    messages: list[dict[str, Any]]


@click.group()
def router() -> None:
    """Judge how requests are routed."""


@router.command("eval")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--fast-below", default=FAST_BELOW, show_default=True, help="Scores below it are fast.")
@click.option("--complex-from", default=COMPLEX_FROM, show_default=True, help="Scores from it on are complex.")
@click.option("--wrong", is_flag=True, help="Print the requests that are judged otherwise than labelled.")
def evaluate(file: Path, fast_below: float, complex_from: float, wrong: bool) -> None:
    """Compare the complexity of labelled requests (one JSON object a line: label, messages) with their labels."""
    if not 0 <= fast_below <= complex_from <= 1:
        raise click.UsageError("0 <= fast-below <= complex-from <= 1 must hold.")
    seen: Counter[tuple[str, str]] = Counter()
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = msgspec.json.decode(line, type=Labelled)
        except msgspec.DecodeError as error:
            raise click.ClickException(f"{file}:{number}: {error}") from None
        found = score(record.messages, fast_below=fast_below, complex_from=complex_from)
        seen[record.label, found.path] += 1
        if wrong and found.path != record.label:
            click.echo(
                f"line {number}: {record.label}, judged {found.path} ({found.score}): {'; '.join(found.reasons)}"
            )
    _print(seen)


def _print(seen: Counter[tuple[str, str]]) -> None:
    paths = get_args(complexity.Path)
    total = seen.total()
    if not total:
        raise click.ClickException("the file holds no requests")
    click.echo(f"{'label':10}" + "".join(f"{'judged ' + path:>18}" for path in paths))
    for label in paths:
        click.echo(f"{label:10}" + "".join(f"{seen[label, path]:>18}" for path in paths))
    right = sum(seen[path, path] for path in paths)
    click.echo(f"accuracy {right / total:.3f} ({right} of {total})")
