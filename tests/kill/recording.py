"""A process that records calls until it is killed. Run as `python -m tests.kill.recording DATABASE_URL JOURNAL RATE`.

Prints `<number> <seconds>` after each record, the time by a clock that all processes share; the parent reads and kills.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from hortator.ledger import Ledger, PriceBook
from hortator.store import Database, migrate
from tests.outcomes import outcome


async def main(url: str, journal: str, rate: float) -> None:
    database = Database(url)
    await migrate(database)
    ledger = Ledger(database, PriceBook(), Path(journal))
    await ledger.start()
    number = 0
    started = time.monotonic()
    while True:
        due = int((time.monotonic() - started) * rate)
        lines = []
        while number < due:
            ledger.record(outcome(number))
            lines.append(f"{number} {time.monotonic()}\n")
            number += 1
        sys.stdout.write("".join(lines))
        sys.stdout.flush()
        await asyncio.sleep(0.002)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
