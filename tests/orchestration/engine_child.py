"""A process with a durable engine, to be killed: `python -m tests.orchestration.engine_child FOLDER ROLE [POSTGRES_URL]`.

A tree `t` begins its children `t.0` ...; each has steps, and every run of a step is a line `step pid` in FOLDER/acts, written before it acts.
The step `hold` waits until FOLDER/release is there. The step `die` kills the process. A finished handler is a line in FOLDER/ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import uvloop

from hortator.orchestration.engine import DurableEngine
from hortator.orchestration.ports import Handler
from hortator.store import Database

CHILDREN = 5


def note(file: Path, line: str) -> None:
    """Append a line in one write, which no kill can tear."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{line} {os.getpid()}\n".encode())
    os.close(descriptor)


def handlers(engine: DurableEngine, folder: Path) -> dict[str, Handler]:
    """Return what is run."""

    async def act(name: str) -> str:
        note(folder / "acts", name)
        if name.endswith("hold"):
            while not (folder / "release").exists():
                await asyncio.sleep(0.02)
        if name.endswith("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        return name

    async def tree(id: str) -> None:
        assert await engine.step("plan", lambda: act(f"{id}/plan")) == f"{id}/plan"
        for n in range(CHILDREN):
            await engine.begin("task", f"{id}.{n}", tenant_id="acme")
        await engine.step("hold", lambda: act(f"{id}/hold"))
        note(folder / "ends", id)

    async def task(id: str) -> None:
        for key in ("one", "two", "hold", "three"):
            assert await engine.step(key, lambda key=key: act(f"{id}/{key}")) == f"{id}/{key}"  # type: ignore[misc]
        note(folder / "ends", id)

    async def killer(id: str) -> None:
        await engine.step("die", lambda: act(f"{id}/die"))

    async def grave(id: str) -> None:
        note(folder / "ends", f"{id} is dead")

    return {"tree": tree, "task": task, "killer": killer, "killer.dead": grave}


async def main(folder: Path, role: str, url: str | None) -> None:
    """Run until the end of standard input, which also ends with the test; then stop in good order."""
    database = None if url is None else Database(url)
    engine = (
        DurableEngine(file=folder / "engine.db")
        if url is None
        else DurableEngine(url=url, database=database, role="worker" if role == "worker" else "alone", slots=8)
    )
    await engine.start(handlers(engine, folder))
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print("ready", flush=True)
    while line := (await reader.readline()).decode().split():
        await engine.begin(line[0], line[1], tenant_id="acme", here=role != "worker")
        print("begun", line[1], flush=True)
    await engine.stop()
    if database is not None:
        await database.close()


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None))
