"""`hortator run` and `hortator tasks` as programs: in front of a running server, with a server of their own, and interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
import yaml
from click.testing import CliRunner

from hortator.cli import main
from tests.gateway import MODEL, PATIENCE, ROOT, Gateway, eventually, free_port, running_gateway
from tests.upstream.process import Upstream

WORK = "Compare three ways to store sessions and recommend one."
AGENTS = dict.fromkeys(("tribune", "centurion", "legionary"), MODEL)


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Gateway]:
    with running_gateway(tmp_path_factory.mktemp("office"), upstream, orchestration={"models": AGENTS}) as running:
        yield running


def marked(upstream: Upstream, *words: str) -> tuple[str, str]:
    mark = upstream.plan("team")
    return mark, " ".join((WORK, f"[mark:{mark}]", *words))


def started(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hortator", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(environment: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    with started(environment, *arguments) as process:
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, err


@pytest.fixture
def pointed(office: Gateway) -> dict[str, str]:
    """An environment that names the server and a key."""
    return {
        **office.environment,
        "HORTATOR_BASE_URL": f"http://127.0.0.1:{office.port}",
        "HORTATOR_API_KEY": office.key,
    }


def here(environment: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    """Run a command in this process: loading all of it anew takes longer than what it does."""
    done = CliRunner().invoke(main, arguments, env=dict(environment))
    return done.exit_code, done.stdout, done.stderr


def test_run_in_front_of_a_server(pointed: dict[str, str], upstream: Upstream, tmp_path: Path) -> None:
    _, prompt = marked(upstream, "[parts:3]")
    given = tmp_path / "Übersicht.md"
    given.write_text("Salve!")
    out_to = ("--output-dir", str(tmp_path / "out"))
    status, out, err = here(
        pointed, "run", prompt, "--strategy", "aggressive", "--max-agents", "3", "--file", str(given), *out_to
    )
    assert status == 0, err
    assert out == "The answer of the team, from part-1, part-2, part-3.\n"
    for part in ("part-1", "part-2", "part-3"):
        assert f"agent_spawned [{part}]" in err
    assert "Completed: " in err
    assert "4 agents" in err
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert any("The answer of the team" in path.read_text() for path in files)


def test_what_run_ordered_is_seen_by_tasks(pointed: dict[str, str], upstream: Upstream) -> None:
    _, prompt = marked(upstream, "[parts:2]")
    status, out, _ = here(pointed, "run", prompt, "-q", "--json", "--strategy", "aggressive")
    assert status == 0
    id = json.loads(out)["id"]
    assert id in here(pointed, "tasks", "list", "--status", "Completed")[1]
    assert here(pointed, "tasks", "show", id)[1].splitlines()[0].endswith(id)
    tree = here(pointed, "tasks", "tree", id)[1].splitlines()
    assert [line[:9] for line in tree[1:]] == ["├─ part-1", "└─ part-2"]
    log = here(pointed, "tasks", "logs", id)[1].splitlines()
    assert [int(line.split()[1]) for line in log] == list(range(1, len(log) + 1))
    assert here(pointed, "tasks", "result", id)[:2] == (0, "The answer of the team, from part-1, part-2.\n")
    assert here(pointed, "tasks", "artifacts", id)[0] == 0
    assert here(pointed, "tasks", "watch", id)[0] == 0


def test_a_tree_out_of_time_is_a_status_of_its_own(pointed: dict[str, str], upstream: Upstream) -> None:
    _, prompt = marked(upstream, "[hold:plan]")
    status, out, err = here(pointed, "run", prompt, "--strategy", "aggressive", "--timeout", "1s")
    assert (status, out) == (4, "")
    assert "TimedOut" in err


def test_ctrl_c_ends_every_call(pointed: dict[str, str], upstream: Upstream) -> None:
    mark, prompt = marked(upstream, "[parts:3]", "[hold]")
    with started(pointed, "run", prompt, "--strategy", "aggressive") as process:
        upstream.wait(mark, count=4)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert "Cancelling task" in err
    assert out == ""
    upstream.wait(mark, state="aborted", count=3)


@pytest.fixture
def alone(tmp_path: Path, upstream: Upstream, office: Gateway) -> dict[str, str]:
    """An environment without a server: a configuration, an empty home folder, a port where nobody listens."""
    document = yaml.safe_load(office.config.read_text())
    document["server"]["port"] = free_port()
    config = tmp_path / "hortator.yaml"
    config.write_text(yaml.safe_dump(document))
    return {**office.environment, "HORTATOR_HOME": str(tmp_path / "home"), "HORTATOR_CONFIG": str(config)}


def servers(environment: dict[str, str]) -> list[int]:
    """Processes that work in the home folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HORTATOR_HOME") == environment["HORTATOR_HOME"]:
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def test_run_without_a_server_has_one_of_its_own(alone: dict[str, str], upstream: Upstream) -> None:
    _, prompt = marked(upstream, "[parts:2]")
    status, out, err = done(alone, "run", prompt, "--strategy", "aggressive")
    assert (status, out) == (0, "The answer of the team, from part-1, part-2.\n"), err
    assert "Traceback" not in err
    assert servers(alone) == []
    assert oct(os.stat(Path(alone["HORTATOR_HOME"]) / "first-key").st_mode & 0o777) == "0o600"


def test_a_home_without_its_first_key_gets_one_for_a_day(alone: dict[str, str], upstream: Upstream) -> None:
    assert here(alone, "keys", "create", "--name", "somebody")[0] == 0
    _, prompt = marked(upstream)
    status, _, err = done(alone, "run", prompt, "-q")
    assert status == 0, err
    assert "hortator run" in here(alone, "keys", "list")[1]


def test_a_home_that_cannot_be_used_is_an_error(alone: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "hortator.db").write_text("This is no database, it is a text. " * 100)
    status, out, err = done(alone, "run", "x")
    assert (status, out) == (1, "")
    assert "Error: " in err
    assert "Traceback" not in err
    assert servers(alone) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_a_command_that_is_killed_takes_its_server_with_it(alone: dict[str, str], upstream: Upstream) -> None:
    mark, prompt = marked(upstream, "[hold]")
    with started(alone, "run", prompt, "--strategy", "aggressive") as process:
        upstream.wait(mark, count=2)
        process.kill()
        process.communicate(timeout=PATIENCE)
    eventually(lambda: servers(alone) == [], "the server to end")
