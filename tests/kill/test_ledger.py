"""kill -9: what was recorded more than 200 ms before is there, and nothing is there twice."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

from hortator.ledger import Ledger, PriceBook
from hortator.store import Database, migrate
from hortator.store.queries import TenantScope
from tests.databases import database_url
from tests.eventually import eventually
from tests.ledger.test_usage import EVER
from tests.outcomes import TENANT

__all__ = ["database_url"]

ROUNDS = 3
ALLOWANCE = 0.2
"""Seconds of records that may be missing."""


async def record_and_kill(url: str, journal: Path, rate: int, acknowledged: int) -> dict[int, float]:
    """Run a recording process, kill it after so many records; returns the age of each record when it died, in seconds.

    Measured back from its last sign of life, so that a machine that halts a process does not fail the test.
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.kill.recording", url, str(journal), str(rate), stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    times: dict[int, float] = {}
    while len(times) < acknowledged:
        line = await child.stdout.readline()
        assert line, "the recording process ended by itself"
        number, moment = line.split()
        times[int(number)] = float(moment)
    os.kill(child.pid, signal.SIGKILL)
    rest, _ = await child.communicate()
    for line in rest.splitlines(keepends=True):
        if line.endswith(b"\n"):
            number, moment = line.split()
            times[int(number)] = float(moment)
    last = max(times.values())
    return {number: last - moment for number, moment in times.items()}


async def replay(url: str, journal: Path) -> Counter[int]:
    """Start again, and count each record."""
    database = Database(url)
    await migrate(database)
    ledger = Ledger(database, PriceBook(), journal)
    await ledger.start()
    await eventually(lambda: not ledger.gauges.behind)
    await ledger.drain()
    counted: Counter[int] = Counter()
    async with database.read() as connection:
        rows = await connection.exec_driver_sql("SELECT request_id FROM usage_events")
        counted.update(int(name.removeprefix("req_")) for (name,) in rows)
    assert sum(total.requests for total in await TenantScope(database, TENANT).usage_totals(*EVER)) == counted.total()
    await database.close()
    return counted


@pytest.mark.parametrize("rate", [200, 4_000])
@pytest.mark.limit(120)
async def test_a_killed_process_loses_at_most_its_last_200_ms_and_doubles_nothing(
    database_url: str, tmp_path: Path, rate: int
) -> None:
    journal = tmp_path / "journal"
    counted: Counter[int] = Counter()
    for _ in range(ROUNDS):
        ages = await record_and_kill(database_url, journal, rate, acknowledged=rate)
        before, counted = counted, await replay(database_url, journal)
        now = counted - before
        assert set(now.values()) <= {1}, "doubled"
        missing = {number: age for number, age in ages.items() if number not in now}
        assert max(missing.values(), default=0.0) <= ALLOWANCE, f"{len(missing)} of {len(ages)} missing"


@pytest.mark.limit(120)
async def test_a_killed_process_that_had_no_database_loses_no_more(postgres_database: str, tmp_path: Path) -> None:
    """Its journal alone has the records; another process adopts them."""
    journal = tmp_path / "journal"
    dead = Database(postgres_database)
    await migrate(dead)
    async with dead.write() as connection:
        await connection.exec_driver_sql("LOCK TABLE usage_events IN ACCESS EXCLUSIVE MODE")
        ages = await record_and_kill(postgres_database, journal, 1_000, acknowledged=3_000)
    await dead.close()
    counted = await replay(postgres_database, journal)
    assert set(counted.values()) == {1}
    missing = {number: age for number, age in ages.items() if number not in counted}
    assert max(missing.values(), default=0.0) <= ALLOWANCE, f"{len(missing)} of {len(ages)} missing"
