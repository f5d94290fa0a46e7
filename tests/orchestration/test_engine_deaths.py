"""kill -9: no finished step runs again, and what a dead process was at is taken over."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from hortator.orchestration import engine as engine_module
from hortator.store import Database, migrate
from tests.databases import database_url
from tests.eventually import eventually
from tests.orchestration.engine_child import CHILDREN

__all__ = ["database_url"]

pytestmark = pytest.mark.limit(90)


class Child:
    """A process with an engine; its lines are read as they come."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, folder: Path, role: str, url: str | None) -> Child:
        arguments = [str(folder), role, *([] if url is None else [url])]
        pipe = asyncio.subprocess.PIPE
        command = [sys.executable, "-m", "tests.orchestration.engine_child", *arguments]
        child = cls(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe))
        assert await child.line() == "ready"
        return child

    async def line(self) -> str:
        assert self.process.stdout is not None
        return (await self.process.stdout.readline()).decode().strip()

    async def begin(self, kind: str, id: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{kind} {id}\n".encode())
        assert await self.line() == f"begun {id}"

    async def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        await self.process.wait()

    async def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        await self.process.wait()


def lines(file: Path) -> list[tuple[str, str]]:
    """What was noted, and by which process."""
    if not file.exists():
        return []
    return [(line.rpartition(" ")[0], line.rpartition(" ")[2]) for line in file.read_text().splitlines()]


def finished(folder: Path, trees: int = 1) -> bool:
    return len({name for name, _ in lines(folder / "ends")}) == trees * (CHILDREN + 1)


def holding(folder: Path, trees: int = 1) -> bool:
    return sum(name.endswith("hold") for name, _ in lines(folder / "acts")) >= trees * (CHILDREN + 1)


def check_acts(folder: Path, trees: int = 1) -> None:
    """Steps that had finished before the death ran once; those it broke off, twice."""
    acts = Counter(name for name, _ in lines(folder / "acts"))
    assert {count for name, count in acts.items() if not name.endswith("hold")} == {1}
    assert {count for name, count in acts.items() if name.endswith("hold")} <= {1, 2}
    assert len(acts) == trees * (2 + 4 * CHILDREN)
    assert set(Counter(name for name, _ in lines(folder / "ends")).values()) == {1}


async def migrated(url: str) -> None:
    opened = Database(url)
    await migrate(opened)
    await opened.close()


async def test_kill_9_of_the_only_process_runs_no_finished_step_again(database_url: str, tmp_path: Path) -> None:
    url = None if database_url.startswith("sqlite") else database_url
    await migrated(database_url)
    child = await Child.start(tmp_path, "alone", url)
    await child.begin("tree", "t1")
    await eventually(lambda: holding(tmp_path))
    await child.kill()
    (tmp_path / "release").touch()
    child = await Child.start(tmp_path, "alone", url)
    await eventually(lambda: finished(tmp_path))
    await child.stop()
    check_acts(tmp_path)


async def test_what_a_killed_worker_did_is_taken_over_within_ten_seconds(
    postgres_database: str, tmp_path: Path
) -> None:
    await migrated(postgres_database)
    workers = [await Child.start(tmp_path, "worker", postgres_database) for _ in range(2)]
    for n in range(4):
        await workers[0].begin("tree", f"t{n}")
    await eventually(lambda: holding(tmp_path, 4))
    victim = next(each for each in workers if str(each.process.pid) in {pid for _, pid in lines(tmp_path / "acts")})
    await victim.kill()
    (tmp_path / "release").touch()
    await eventually(lambda: finished(tmp_path, 4), 10)
    for each in workers:
        if each is not victim:
            await each.stop()
    check_acts(tmp_path, 4)


async def test_a_worker_that_stops_hands_over_at_once(postgres_database: str, tmp_path: Path) -> None:
    await migrated(postgres_database)
    first = await Child.start(tmp_path, "worker", postgres_database)
    await first.begin("tree", "t1")
    await eventually(lambda: holding(tmp_path))
    second = await Child.start(tmp_path, "worker", postgres_database)
    await first.stop()
    (tmp_path / "release").touch()
    # Well before anybody could be taken for dead.
    await eventually(lambda: finished(tmp_path), 4)
    await second.stop()
    check_acts(tmp_path)


async def test_what_kills_its_process_again_and_again_is_given_up_and_buried(tmp_path: Path) -> None:
    child = await Child.start(tmp_path, "alone", None)
    assert child.process.stdin is not None
    child.process.stdin.write(b"killer k1\n")
    await child.process.wait()
    with closing(sqlite3.connect(tmp_path / "engine.db")) as file, file:
        # As if it had done so five times more.
        file.execute(f"UPDATE workflow_status SET recovery_attempts = {engine_module.RECOVERIES}")
    for _ in range(2):
        child = await Child.start(tmp_path, "alone", None)
        if len(lines(tmp_path / "acts")) < 2:
            await child.process.wait()
    await eventually(lambda: [name for name, _ in lines(tmp_path / "ends")] == ["k1 is dead"])
    await child.stop()
    assert len(lines(tmp_path / "acts")) == 2
