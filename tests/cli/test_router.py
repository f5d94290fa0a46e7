"""`hortator router eval`, as an operator uses it."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from hortator.cli import main

HI = '{"label": "fast", "messages": [{"role": "user", "content": "hi"}]}\n'
HUGE = '{"label": "complex", "messages": [{"role": "user", "content": "Design Netflix"}]}\n'


def run(file: Path, lines: str, *options: str) -> Result:
    file.write_text(lines, encoding="utf-8")
    return CliRunner().invoke(main, ["router", "eval", str(file), *options])


def test_labelled_requests_are_judged_and_counted(tmp_path: Path) -> None:
    result = run(tmp_path / "mine.jsonl", HI + "\n" + HUGE)
    assert result.exit_code == 0, result.output
    assert "accuracy 1.000 (2 of 2)" in result.stdout


def test_other_cut_points_judge_otherwise_and_wrong_ones_are_named(tmp_path: Path) -> None:
    result = run(tmp_path / "mine.jsonl", HI + HUGE, "--fast-below", "1", "--complex-from", "1", "--wrong")
    assert "line 2: complex, judged fast" in result.stdout
    assert "accuracy 0.500 (1 of 2)" in result.stdout


def test_a_line_that_is_no_labelled_request_is_named(tmp_path: Path) -> None:
    result = run(tmp_path / "mine.jsonl", HI + '{"label": "huge", "messages": []}\n')
    assert result.exit_code == 1
    assert "mine.jsonl:2" in result.output
    assert run(tmp_path / "mine.jsonl", "").exit_code == 1
    assert run(tmp_path / "mine.jsonl", HI, "--fast-below", "2").exit_code == 2
