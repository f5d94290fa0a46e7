"""Teams of agents through the whole product: throughput, what the gateway adds to an agent's step, the first step, and many viewers.

    .venv/bin/python bench/teams.py [--trees 200] [--parts 6] [--viewers 1000]

A server on SQLite in front of a scripted upstream that answers at once, both on this machine. Bars: 200 concurrent trees of 7 tasks complete;
15 ms of the gateway's own per step; the first step begins within 50 ms; a thousand viewers of a tree cost less than one query a second.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import sys
import tempfile
import time
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.gateway import Gateway, running_gateway
from tests.upstream.process import Upstream, running_upstream

TASKS = "/api/v1/tasks"


class Client:
    """One key at the gateway."""

    def __init__(self, session: aiohttp.ClientSession, gateway: Gateway) -> None:
        self._session = session
        self._base = f"http://127.0.0.1:{gateway.port}"
        self._headers = {"authorization": f"Bearer {gateway.key}"}

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """Make a call; return its document."""
        async with self._session.request(method, self._base + path, json=body, headers=self._headers) as reply:
            document = await reply.json()
            assert reply.status < 300, document
            return document

    async def order(self, prompt: str, parts: int) -> dict[str, Any]:
        """Order a tree of so many parts."""
        config = {"max_agents": parts, "model": "one/scripted"}
        found: dict[str, Any] = await self.call(
            "POST", TASKS, {"prompt": f"[parts:{parts}] {prompt}", "config": config}
        )
        return found

    async def ended(self, task: dict[str, Any]) -> dict[str, Any]:
        """Wait for a tree's end."""
        while True:
            found: dict[str, Any] = await self.call("GET", f"{TASKS}/{task['id']}?wait=60")
            if found["status"] not in ("Pending", "Running", "Waiting", "Retrying"):
                return found

    async def events(self, task: dict[str, Any]) -> list[dict[str, Any]]:
        """A tree's log."""
        found: list[dict[str, Any]] = (await self.call("GET", f"{TASKS}/{task['id']}/events?stream=false&limit=1000"))[
            "data"
        ]
        return found

    async def watch(self, task: dict[str, Any]) -> int:
        """Follow a tree's log to its end; return how many events there were."""
        seen = 0
        url = f"{self._base}{TASKS}/{task['id']}/events"
        async with self._session.get(url, headers=self._headers) as reply:
            async for line in reply.content:
                seen += line.startswith(b"id:")
        return seen


def at(event: dict[str, Any]) -> float:
    """When an event was, milliseconds."""
    return datetime.fromisoformat(event["timestamp"]).timestamp() * 1000


async def steps(client: Client) -> None:
    """One tree whose parts follow each other: everything beside the model calls is the gateway's."""
    own: list[float] = []
    first: list[float] = []
    for number in range(8):
        ended = await client.ended(await client.order(f"[chain] alone {number}", 6))
        events = await client.events(ended)
        calls = [event for event in events if event["type"] == "model_call"]
        asked = [event["details"]["latency_ms"] for event in calls]
        own.append((at(events[-1]) - at(events[0]) - sum(asked)) / len(calls))
        first.append(at(calls[0]) - asked[0] - at(events[0]))
    print(f"a step adds {statistics.median(own[1:]):.1f} ms (median of {len(own) - 1} trees of 8 steps); bar 15")
    print(f"the first step begins after {statistics.median(first[1:]):.1f} ms, at most {max(first[1:]):.1f}; bar 50")


async def many(client: Client, gateway: Gateway, trees: int, parts: int) -> None:
    """So many trees at once."""
    assert gateway.process is not None
    process = psutil.Process(gateway.process.pid)
    before, begun = sum(process.cpu_times()[:2]), time.perf_counter()
    tasks = await asyncio.gather(*(client.order(f"tree {number}", parts) for number in range(trees)))
    took = time.perf_counter() - begun
    ended = await asyncio.gather(*(client.ended(task) for task in tasks))
    seconds = time.perf_counter() - begun
    cpu = sum(process.cpu_times()[:2]) - before
    good = sum(task["status"] == "Completed" for task in ended)
    calls = trees * (parts + 2)
    print(
        f"{good} of {trees} trees of {parts + 1} tasks completed in {seconds:.1f} s ({calls / seconds:.0f} steps/s, taken in {took:.1f} s); "
        f"{cpu / calls * 1000:.1f} ms of CPU a step, {process.memory_info().rss >> 20} MB"
    )


async def viewers(client: Client, upstream: Upstream, gateway: Gateway, count: int) -> None:
    """So many viewers of one tree whose parts wait, then end one after the other."""
    task = await client.order("[mark:viewed][hold] seen by many", 6)
    upstream.wait("viewed", count=7)
    watching = [asyncio.create_task(client.watch(task)) for _ in range(count)]
    await asyncio.sleep(5)
    before, begun = reads(gateway), time.perf_counter()
    await asyncio.sleep(10)
    idle = (reads(gateway) - before) / (time.perf_counter() - begun)
    upstream.release("viewed", "work")
    begun = time.perf_counter()
    seen = await asyncio.gather(*watching)
    print(
        f"{count} viewers: each saw {min(seen)} to {max(seen)} events, all ended {time.perf_counter() - begun:.1f} s after the work; "
        f"{idle:.2f} reads of the log a second while they waited (bar 1)"
    )


def reads(gateway: Gateway) -> float:
    """How often the hub has read the store, by its own count."""
    found = re.search(r"Metrics for operators: (http\S+)", gateway.log.read_text())
    assert found is not None
    with urllib.request.urlopen(found.group(1)) as reply:
        page = reply.read().decode()
    return sum(
        float(line.split()[-1]) for line in page.splitlines() if line.startswith("hortator_task_log_reads_total")
    )


async def measure(upstream: Upstream, gateway: Gateway, chosen: argparse.Namespace) -> None:
    """Run every part."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=600)) as session:
        client = Client(session, gateway)
        await steps(client)
        await many(client, gateway, chosen.trees, chosen.parts)
        if chosen.viewers:
            await viewers(client, upstream, gateway, chosen.viewers)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trees", type=int, default=200)
    parser.add_argument("--parts", type=int, default=6)
    parser.add_argument("--viewers", type=int, default=1000)
    chosen = parser.parse_args()
    with (
        running_upstream(default="team") as upstream,
        tempfile.TemporaryDirectory() as folder,
        running_gateway(
            Path(folder),
            upstream,
            orchestration={"enabled": True, "max_trees": 64},
        ) as gateway,
    ):
        asyncio.run(measure(upstream, gateway, chosen))


if __name__ == "__main__":
    main()
