"""`hortator run` and `hortator tasks` as commands: what they order and print, and their exit status, in front of a fake server."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hortator.cli import main
from tests.client.fake import Asked, Fake, refused, reply, running_fake, stream

TASKS = "/api/v1/tasks"
ONE = f"{TASKS}/t1"
TASK: dict[str, Any] = {
    "id": "t1",
    "root_id": "t1",
    "parent_id": None,
    "name": "Compare",
    "status": "Running",
    "type": "chat",
    "role": "generalist",
    "tier": "tribune",
    "created_at": "2026-11-21T12:00:00.000Z",
    "cost_usd": "0",
    "usage": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
    "error": None,
    "results": None,
}
FILE = {"path": "outbox/notes.md", "bytes": 5, "sha256": hashlib.sha256(b"notes").hexdigest(), "task_id": "t1"}


def ended(status: str = "Completed", **more: Any) -> dict[str, Any]:
    results = {"summary": "Redis.", "content": "Take Redis — 雨."} if status == "Completed" else None
    return {**TASK, "status": status, "results": results, "cost_usd": "0.0021", **more}


def event(seq: int, type: str, **fields: Any) -> bytes:
    said = {"seq": seq, "task_id": "t1", "type": type, "timestamp": "2026-11-21T12:00:00.000Z", **fields}
    return f"id: {seq}\ndata: {json.dumps(said)}\n\n".encode()


def story(end: str = "completed") -> Iterator[bytes]:
    spawned = {
        "agent_id": "a",
        "task": "read",
        "details": {"role": "researcher", "tier": "legionary", "parent_id": "t1"},
    }
    return stream(
        event(1, "task_created"),
        event(2, "agent_spawned", **spawned),
        event(3, "partial_result", agent_id="a", task="read", content="Read it."),
        event(4, end, message="The end."),
    )


@pytest.fixture
def fake() -> Iterator[Fake]:
    with running_fake() as running:
        running.on(
            TASKS, lambda asked: reply(TASK, 202) if asked.method == "POST" else reply({"data": [ended(), TASK]})
        )
        running.on(ONE, reply(ended()))
        running.on(f"{ONE}/events", lambda _: story())
        running.on(f"{ONE}/artifacts", reply({"task_id": "t1", "phase": "Completed", "files": [FILE]}))
        running.on(f"{ONE}/artifacts/outbox/notes.md", reply(b"notes"))
        yield running


def hortator(fake: Fake, *arguments: str, input: str | None = None) -> Result:
    """Run a command in this process."""
    environment = {"HORTATOR_BASE_URL": fake.url, "HORTATOR_API_KEY": "hrt_sk_x"}
    return CliRunner().invoke(main, arguments, input=input, env=environment)


def test_run_prints_the_answer_and_tells_the_rest_beside_it(fake: Fake, tmp_path: Path) -> None:
    given = tmp_path / "Frage.txt"
    given.write_text("?")
    done = hortator(
        fake,
        *("run", "Compare three ways", "--role", "researcher", "--model", "local/tiny", "--max-agents", "3"),
        *("--strategy", "aggressive", "--budget", "0.50", "--timeout", "10m", "--file", str(given)),
        *("--output-dir", str(tmp_path / "out")),
    )
    assert done.exit_code == 0, done.output
    assert done.stdout == "Take Redis — 雨.\n"
    assert "agent_spawned [read]" in done.stderr
    assert "Completed: " in done.stderr
    assert "t1" in done.stderr
    assert (tmp_path / "out/notes.md").read_text() == "notes"
    body = fake.asked[0].body
    assert b'filename="Frage.txt"' in body
    for said in (b'"role":"researcher"', b'"model":"local/tiny"', b'"max_agents":3', b'"decomposition_strategy"'):
        assert said in body
    assert b'"budget":{"max_cost_usd":"0.50"}' in body


def test_run_reads_its_prompt_from_standard_input(fake: Fake) -> None:
    assert (
        hortator(fake, "run", "-", "-q", "--model", "hortator/editor", "--budget", "500t", input="Salve!").exit_code
        == 0
    )
    assert fake.asked[0].json == {
        "prompt": "Salve!",
        "role": "editor",
        "config": {"budget": {"max_tokens": 500}},
    }


def test_quiet_says_nothing_but_the_answer(fake: Fake) -> None:
    done = hortator(fake, "run", "x", "--quiet")
    assert (done.stdout, done.stderr) == ("Take Redis — 雨.\n", "")


def test_run_as_json_is_the_task(fake: Fake, tmp_path: Path) -> None:
    done = hortator(fake, "run", "x", "--json", "-q", "-o", str(tmp_path))
    said = json.loads(done.stdout)
    assert (said["id"], said["status"], said["results"]["summary"]) == ("t1", "Completed", "Redis.")
    assert said["files"] == [str(tmp_path / "notes.md")]


@pytest.mark.parametrize(
    ("phase", "status"), [("Failed", 1), ("BudgetExceeded", 3), ("TimedOut", 4), ("Cancelled", 5), ("Completed", 0)]
)
def test_the_exit_status_tells_how_it_ended(fake: Fake, phase: str, status: int) -> None:
    fake.on(ONE, reply(ended(phase, error=None if status == 0 else {"code": "c", "message": "Why\x1b[2J."})))
    done = hortator(fake, "run", "x")
    assert done.exit_code == status
    assert phase in done.stderr
    assert "\x1b" not in done.stderr
    assert bool(done.stdout) == (status == 0)


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", " "),
        ("run", "x", "--budget", "much"),
        ("run", "x", "--budget", "0t"),
        ("run", "x", "--timeout", "soon"),
        ("run", "x", "--max-agents", "26"),
        ("run", "x", "--file", "/nowhere"),
        ("run", "x", "--model", "hortator/editor", "--role", "editor"),
    ],
)
def test_a_wrong_command_line_orders_nothing(fake: Fake, arguments: tuple[str, ...]) -> None:
    assert hortator(fake, *arguments).exit_code == 2
    assert fake.asked == []


def test_a_refusal_is_one_line(fake: Fake) -> None:
    fake.on(TASKS, refused(400, "unknown_role", "No role \x1b[31mred."))
    done = hortator(fake, "run", "x", "--role", "emperor")
    assert done.exit_code == 1
    assert done.stderr.strip() == "Error: 400 unknown_role: No role [31mred."


@pytest.mark.parametrize("arguments", [("tasks", "list"), ("tasks", "show", "t1")])
def test_no_server_is_said_with_what_to_do(tmp_path: Path, arguments: tuple[str, ...], fake: Fake) -> None:
    with running_fake() as gone:
        port = gone.port
    environment = {"HORTATOR_HOME": str(tmp_path), "HORTATOR_PORT": str(port), "HORTATOR_BASE_URL": ""}
    done = CliRunner().invoke(main, arguments, env=environment)
    assert done.exit_code == 1
    assert "hortator serve" in done.stderr


def test_the_server_on_this_machine_is_found_with_its_first_key(fake: Fake, tmp_path: Path) -> None:
    fake.on("/health", reply({"status": "ok", "version": "1"}))
    (tmp_path / "first-key").write_text("hrt_sk_first\n")
    environment = {
        "HORTATOR_HOME": str(tmp_path),
        "HORTATOR_PORT": str(fake.port),
        "HORTATOR_BASE_URL": "",
        "HORTATOR_API_KEY": "",
    }
    assert CliRunner().invoke(main, ["tasks", "list"], env=environment).exit_code == 0
    assert fake.asked[-1].headers["authorization"] == "Bearer hrt_sk_first"


def test_tasks_as_tables_and_as_json(fake: Fake) -> None:
    leaf = {**ended(), "id": "t2", "name": "read", "tier": "legionary", "role": "researcher", "children": []}
    fake.on(f"{ONE}/tree", reply({**ended(), "children": [{**leaf, "children": [leaf]}, leaf]}))
    table = hortator(fake, "tasks", "list", "--status", "Running", "--all").stdout.splitlines()
    assert table[0].split() == ["ID", "STATUS", "TYPE", "ROLE", "COST", "CREATED", "NAME"]
    assert table[1].split()[:5] == ["t1", "Completed", "chat", "generalist", "$0.0021"]
    assert fake.asked[0].query == {"limit": "20", "status": "Running", "all": "true"}
    assert [each["id"] for each in json.loads(hortator(fake, "tasks", "list", "-o", "json").stdout)] == ["t1", "t1"]
    shown = hortator(fake, "tasks", "show", "t1").stdout
    assert "status            Completed\n" in shown
    assert "usage             input_tokens 3, output_tokens 4" in shown
    assert json.loads(hortator(fake, "tasks", "show", "t1", "-o", "json").stdout) == ended()
    assert hortator(fake, "tasks", "tree", "t1").stdout.splitlines() == [
        "Compare (tribune generalist)  Completed  $0.0021",
        "├─ read (legionary researcher)  Completed  $0.0021",
        "│  └─ read (legionary researcher)  Completed  $0.0021",
        "└─ read (legionary researcher)  Completed  $0.0021",
    ]
    assert json.loads(hortator(fake, "tasks", "tree", "t1", "-o", "json").stdout)["children"][1]["id"] == "t2"


def test_tasks_logs_result_and_files(fake: Fake, tmp_path: Path) -> None:
    page = [{"seq": 1, "task_id": "t1", "type": "progress", "timestamp": "T", "message": "Half."}]
    fake.on(
        f"{ONE}/events",
        lambda asked: (
            story() if asked.query.get("stream") != "false" else reply({"data": page, "last_seq": 1, "has_more": False})
        ),
    )
    assert hortator(fake, "tasks", "logs", "t1").stdout == "T    1 progress: Half.\n"
    followed = hortator(fake, "tasks", "logs", "t1", "-f", "-o", "json").stdout.splitlines()
    assert [json.loads(line)["seq"] for line in followed] == [1, 2, 3, 4]
    assert hortator(fake, "tasks", "result", "t1").stdout == "Take Redis — 雨.\n"
    assert hortator(fake, "tasks", "artifacts", "t1").stdout.splitlines()[1].split() == ["outbox/notes.md", "5", "t1"]
    assert hortator(fake, "tasks", "artifacts", "t1", "outbox/notes.md").stdout == "notes"
    assert (
        hortator(fake, "tasks", "artifacts", "t1", "--output-dir", str(tmp_path)).stdout == f"{tmp_path / 'notes.md'}\n"
    )
    assert (tmp_path / "notes.md").read_text() == "notes"


def test_a_result_that_is_not_there_is_an_error_and_may_be_waited_for(fake: Fake) -> None:
    fake.on(ONE, reply(TASK), reply(TASK), reply(ended("BudgetExceeded")))
    assert "--wait" in hortator(fake, "tasks", "result", "t1").stderr
    assert hortator(fake, "tasks", "result", "t1", "--wait").exit_code == 3


def test_watch_and_cancel(fake: Fake) -> None:
    fake.on(f"{ONE}/cancel", reply(ended("Cancelled")))
    fake.on(ONE, reply(ended("TimedOut")))
    watched = hortator(fake, "tasks", "watch", "t1")
    assert watched.exit_code == 4
    assert "agent_spawned [read]" in watched.stderr
    assert hortator(fake, "tasks", "cancel", "t1").stdout == "Task t1 is Cancelled.\n"


class Terminal:
    """A command whose standard error is a terminal, and everything that appears there."""

    def __init__(self, fake: Fake, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        environment = {**os.environ, "HORTATOR_BASE_URL": fake.url, "HORTATOR_API_KEY": "x", "TERM": "xterm"}
        command = [sys.executable, "-m", "hortator", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment)
        os.close(theirs)
        self.screen = ""

    def read_until(self, wanted: str) -> None:
        while wanted not in self.screen:
            piece = os.read(self._ours, 65536)
            assert piece, self.screen
            self.screen += piece.decode()

    def end(self) -> tuple[int, str]:
        assert self.process.stdout is not None
        out = self.process.stdout.read().decode()
        with suppress(OSError):  # the other side of a terminal that is gone
            while piece := os.read(self._ours, 65536):
                self.screen += piece.decode()
        os.close(self._ours)
        self.process.stdout.close()
        return self.process.wait(20), out


def test_on_a_terminal_the_tree_is_painted_in_place(fake: Fake) -> None:
    terminal = Terminal(fake, "run", "Compare three ways")
    status, out = terminal.end()
    assert (status, out) == (0, "Take Redis — 雨.\n")
    assert "└─ ✓ read (legionary researcher)  done" in terminal.screen


@pytest.mark.parametrize("arguments", [("run", "Compare"), ("tasks", "watch", "t1")])
def test_ctrl_c_cancels_what_run_ordered_and_leaves_what_is_only_watched(
    fake: Fake, arguments: tuple[str, ...]
) -> None:
    go = threading.Event()

    def slow(_: Asked) -> Iterator[bytes]:
        pieces = list(story("cancelled"))
        yield from pieces[:3]
        go.wait(30)
        yield from pieces[3:]

    def cancelled(_: Asked) -> list[bytes]:
        fake.on(ONE, reply(ended("Cancelled", error={"code": "task_cancelled", "message": "Cancelled."})))
        go.set()
        return reply(ended("Cancelled"))

    fake.on(ONE, reply(TASK))
    fake.on(f"{ONE}/events", slow)
    fake.on(f"{ONE}/cancel", cancelled)
    terminal = Terminal(fake, *arguments)
    terminal.read_until("read (legionary researcher)")
    terminal.process.send_signal(signal.SIGINT)
    status, _ = terminal.end()
    go.set()
    asked = [each.target for each in fake.asked]
    if arguments[0] == "run":
        assert status == 130
        assert f"{ONE}/cancel" in asked
        assert "Cancelling task t1" in terminal.screen
    else:
        assert status == 0
        assert f"{ONE}/cancel" not in asked
        assert "goes on" in terminal.screen
