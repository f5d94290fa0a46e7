"""`hortator router eval` and `train`: how well the complexity score judges an operator's own requests, and fitting it to them.

`eval` needs no server and no store: a file in the form of training/complexity/requests.jsonl, a JSON object a line with `label` (fast,
standard, complex) and `messages`. `train` reads the recorded outcomes of routing from the store and writes weights (`training.py`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import msgspec

from hortator.cli import training
from hortator.cli.configuration import configured, load_settings
from hortator.cli.keys import with_store
from hortator.errors import ConfigError
from hortator.routing import complexity
from hortator.routing.complexity import COMPLEX_FROM, FAST_BELOW, Model, load, score
from hortator.store import Database
from hortator.store.outcomes import Known, Learnt, known, learnt

MIN_OUTCOMES, MIN_ESCALATED = 200, 20
MAX_OUTCOMES = 20_000
"""The newest are learnt from."""
FILE_NAME = "complexity.json"


class Labelled(msgspec.Struct):
    """One line of the file; other keys are ignored."""

    label: complexity.Path
    messages: list[dict[str, Any]]


@click.group()
def router() -> None:
    """Judge how requests are routed, and train it."""


@router.command("eval")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--fast-below", default=FAST_BELOW, show_default=True, help="Scores below it are fast.")
@click.option("--complex-from", default=COMPLEX_FROM, show_default=True, help="Scores from it on are complex.")
@click.option("--wrong", is_flag=True, help="Print the requests that are judged otherwise than labelled.")
@click.option("--data", type=click.Path(path_type=Path), help="Weights of `train`. Default: those that are shipped.")
def evaluate(file: Path, fast_below: float, complex_from: float, wrong: bool, data: Path | None) -> None:
    """Compare the complexity of labelled requests (one JSON object a line: label, messages) with their labels."""
    if not 0 <= fast_below <= complex_from <= 1:
        raise click.UsageError("0 <= fast-below <= complex-from <= 1 must hold.")
    seen: Counter[tuple[str, str]] = Counter()
    model = _model(data)
    for number, record in _labelled(file):
        found = score(record.messages, fast_below=fast_below, complex_from=complex_from, model=model)
        seen[record.label, found.path] += 1
        if wrong and found.path != record.label:
            click.echo(
                f"line {number}: {record.label}, judged {found.path} ({found.score}): {'; '.join(found.reasons)}"
            )
    _print(seen)


@router.command("train")
@configured
@click.option(
    "--set",
    "labelled",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Your own labelled requests, as for `eval`, to learn from beside the outcomes.",
)
@click.option("--escalation-weight", default=4.0, show_default=True, help="Outcomes that an escalated one counts for.")
@click.option("--output", type=click.Path(path_type=Path), help="Default: complexity.json in the home folder.")
def retrain(
    config: Path | None, env_file: Path | None, labelled: Path | None, escalation_weight: float, output: Path | None
) -> None:
    """Fit the complexity score to the recorded outcomes of requests; needs `pip install hortator[train]`.

    An answer that was let stand argues for the path it took, one that was asked again of a stronger model for the next path.
    A quarter of them is held out, and weights that do worse on it are not written.
    """
    if not 0 < escalation_weight <= 1000:
        raise click.UsageError("0 < escalation-weight <= 1000 must hold.")
    settings = load_settings(config, env_file)
    shipped, current = _model(None), _model(settings.routing.complexity_data)
    there, rows = with_store(config, env_file, _outcomes)
    if there.usable < MIN_OUTCOMES or there.escalated < MIN_ESCALATED:
        raise click.ClickException(
            f"there are {there.rows} outcomes, of which {there.usable} can be learnt from, {there.escalated} of them escalated; "
            f"needed are {MIN_OUTCOMES}, {MIN_ESCALATED} of them escalated"
        )
    examples = [_example(row) for row in rows] + ([] if labelled is None else _examples(labelled, shipped))
    try:
        trained = training.train(examples, shipped, current, escalation_weight)
    except training.MissingNumpy:
        raise click.ClickException("numpy is missing: pip install 'hortator[train]'") from None
    _report(trained, len(examples))
    if trained.after.loss > trained.before.loss:
        raise click.ClickException("not written: the new weights do worse on what was held out")
    target = output or settings.home / FILE_NAME
    _write(target, Model(trained.features, shipped.words))
    click.echo(f"written: {target}\nIt takes effect as the setting routing.complexity_data.")


async def _outcomes(database: Database) -> tuple[Known, list[Learnt]]:
    return await known(database), await learnt(database, MAX_OUTCOMES)


def _example(row: Learnt) -> training.Example:
    """What an outcome argues for: the path it took, or the next one where it was escalated."""
    features = dict(row.features)
    fast, standard, complex_ = features.pop("words")
    at = min(training.PATHS.index(row.path) + row.escalated, len(training.PATHS) - 1)
    return training.Example(
        row.request_id, features, (fast, standard, complex_), training.PATHS[at], escalated=row.escalated
    )


def _examples(file: Path, model: Model) -> list[training.Example]:
    found = []
    for number, record in _labelled(file):
        judged = score(record.messages, model=model)
        features = {name: value for name, value in judged.features.items() if not name.startswith("word ")}
        found.append(training.Example(f"{file.name}:{number}", features, judged.words, record.label, escalated=False))
    return found


def _report(trained: training.Trained, examples: int) -> None:
    click.echo(f"{examples} examples, {trained.held_out} held out, {trained.escalated} of those escalated")
    click.echo(f"{'held out':10}{'right':>8}{'foreseen':>10}{'loss':>8}{'fast':>8}{'standard':>10}{'complex':>9}")
    for name, found in (("before", trained.before), ("after", trained.after)):
        fast, standard, complex_ = found.paths
        figures = f"{found.agreed:>8.3f}{found.foreseen:>10}{found.loss:>8.3f}"
        click.echo(f"{name:10}{figures}{fast:>8}{standard:>10}{complex_:>9}")


def _write(target: Path, model: Model) -> None:
    """Write weights in one step, so that a server that watches the file never reads half of it."""
    beside = target.with_name(f"{target.name}.{os.getpid()}")
    content = {"features": model.features, "words": model.words}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1))
        beside.replace(target)
    except OSError as error:
        raise click.ClickException(f"{target}: {error.strerror}") from None


def _model(file: Path | None) -> Model:
    try:
        return load(file)
    except ConfigError as error:
        raise click.ClickException(error.message) from None


def _labelled(file: Path) -> Iterator[tuple[int, Labelled]]:
    """The requests of a file and the number of their lines."""
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if line.strip():
            try:
                yield number, msgspec.json.decode(line, type=Labelled)
            except msgspec.DecodeError as error:
                raise click.ClickException(f"{file}:{number}: {error}") from None


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
