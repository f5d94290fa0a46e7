"""`hortator worker`: it refuses to run where it has nothing to do, and ends in good order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import yaml
from click.testing import CliRunner

from hortator.cli import main
from tests.gateway import ROOT


def configuration(folder: Path, url: str | None, workers: bool) -> Path:
    file = folder / "hortator.yaml"
    document = {
        "local": {"enabled": False},
        "detect_providers": False,
        "orchestration": {"workers": workers},
        "admin": {"port": 0},
        **({} if url is None else {"store": {"url": url}}),
    }
    file.write_text(yaml.safe_dump(document))
    return file


def test_a_worker_on_sqlite_is_refused(tmp_path: Path) -> None:
    file = configuration(tmp_path, None, False)
    done = CliRunner().invoke(main, ["worker", "--config", str(file)], env={"HORTATOR_HOME": str(tmp_path / "home")})
    assert done.exit_code == 1
    assert "workers need Postgres" in done.output


def test_a_worker_to_which_servers_leave_nothing_is_refused(tmp_path: Path) -> None:
    file = configuration(tmp_path, "postgresql://nobody@127.0.0.1:1/nothing", False)
    done = CliRunner().invoke(main, ["worker", "--config", str(file)], env={"HORTATOR_HOME": str(tmp_path / "home")})
    assert done.exit_code == 1
    assert "orchestration.workers" in done.output


def test_a_worker_says_that_it_works_and_ends_at_sigterm(postgres_database: str, tmp_path: Path) -> None:
    file = configuration(tmp_path, postgres_database.replace("+asyncpg", ""), True)
    environment = {**os.environ, "HORTATOR_HOME": str(tmp_path / "home"), "PYTHONWARNINGS": "error"}
    process = subprocess.Popen(
        [sys.executable, "-m", "hortator", "worker", "--config", str(file), "--admin-port", "0"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert "works on what servers leave to workers" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, told
    assert "Traceback" not in told
    assert "/metrics" in told
