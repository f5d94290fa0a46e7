#!/usr/bin/env python3
"""Mixed load for minutes against one server, with its memory watched: replies, streams, bad requests, hang-ups, broken uploads.

    python3 bench/soak.py --minutes 10                                    starts the mock and Hortator itself
    python3 bench/soak.py --url http://127.0.0.1:8000 --key K --model M --pid PID --minutes 10

Every reply is checked: good requests get 200 and a whole answer, bad ones a 4xx with an error object. Prints the resident memory of
the process tree over time, its slope after a warm-up, and exits with status 1 on a wrong reply or on growth over --max-growth-mb.
Standard library only; every loop is bounded in time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
import urllib.parse
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateways import GATEWAYS, OUT, Direct, Nginx, Setting, free_port, wait_healthy
from measure import body
from process import LOAD_CORE, Process, resident_bytes
from run import compile_tools, start_mock

OPERATION_SECONDS = 60
WARM_UP_SHARE = 0.2
MOCK_DELAY_MS = 5


@dataclass(frozen=True)
class Target:
    """The server under load."""

    host: str
    port: int
    path: str
    model: str
    headers: tuple[str, ...]
    pid: int


@dataclass
class Tally:
    """What happened: operations by kind, wrong outcomes by kind, the first few wrong ones in words."""

    done: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def fail(self, kind: str, what: str) -> None:
        """Count a wrong outcome."""
        self.wrong[kind] += 1
        if len(self.examples) < 10:
            self.examples.append(f"{kind}: {what[:200]}")


class Connection:
    """One HTTP/1.1 connection, just enough to send what a decent client would not."""

    def __init__(self, target: Target, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.target, self.reader, self.writer = target, reader, writer

    def head(self, length: int, method: str = "POST", headers: tuple[str, ...] | None = None) -> bytes:
        """Return a request head that announces `length` bytes of JSON."""
        one = self.target
        lines = [f"{method} {one.path} HTTP/1.1", f"Host: {one.host}:{one.port}", "Content-Type: application/json"]
        lines += [f"Content-Length: {length}", *(one.headers if headers is None else headers)]
        return "\r\n".join([*lines, "", ""]).encode()

    async def ask(
        self, payload: bytes, method: str = "POST", headers: tuple[str, ...] | None = None
    ) -> tuple[int, bytes]:
        """Send a request and return status and whole body."""
        self.writer.write(self.head(len(payload), method, headers) + payload)
        await self.writer.drain()
        return await self.reply()

    async def reply(self) -> tuple[int, bytes]:
        """Read one reply, by length, chunked or to the close."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        status = int(head.split(" ", 2)[1])
        if "\r\ntransfer-encoding: chunked" in head:
            return status, b"".join([part async for part in self.chunks()])
        if "\r\ncontent-length:" in head:
            return status, await self.reader.readexactly(int(head.split("\r\ncontent-length:")[1].split("\r\n")[0]))
        return status, await self.reader.read()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the chunks of a chunked body."""
        while size := int(await self.reader.readline(), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readline()


@contextlib.asynccontextmanager
async def connect(target: Target) -> AsyncIterator[Connection]:
    """Open a connection and close it whatever happens."""
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        yield Connection(target, reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def whole_reply(target: Target, tally: Tally) -> None:
    """A few good calls on one connection."""
    async with connect(target) as connection:
        for _ in range(random.randint(1, 10)):
            status, text = await connection.ask(body(target.model, stream=False))
            if status != 200 or b"Rome" not in text:
                tally.fail("reply", f"{status} {text[:150]!r}")


async def whole_stream(target: Target, tally: Tally) -> None:
    """A stream read to its end."""
    async with connect(target) as connection:
        status, text = await connection.ask(body(target.model, stream=True))
        if status != 200 or b"data: [DONE]" not in text:
            tally.fail("stream", f"{status} {text[-150:]!r}")


async def bad_request(target: Target, tally: Tally) -> None:
    """A request that the server must refuse with one error object."""
    good = body(target.model, stream=False)
    no_key = tuple(line for line in target.headers if not line.lower().startswith("authorization"))
    kinds: list[tuple[str, bytes, str, tuple[str, ...] | None]] = [
        ("not JSON", b"{not json", "POST", None),
        ("no messages", json.dumps({"model": target.model}).encode(), "POST", None),
        ("unknown model", body("nobody/nothing", stream=False), "POST", None),
        ("wrong types", json.dumps({"model": 7, "messages": "x"}).encode(), "POST", None),
        ("bad key", good, "POST", (*no_key, "Authorization: Bearer hrt_sk_wrong")),
        ("no key", good, "POST", no_key),
        ("wrong method", good, "DELETE", None),
        ("empty", b"", "POST", None),
    ]
    name, payload, method, headers = random.choice(kinds)
    async with connect(target) as connection:
        status, text = await connection.ask(payload, method, headers)
        if not 400 <= status < 500:
            tally.fail("bad", f"{name}: {status} {text[:150]!r}")
        elif "error" not in json.loads(text):
            tally.fail("bad", f"{name}: {status} without an error object: {text[:150]!r}")


async def hang_up(target: Target, tally: Tally) -> None:
    """A client that leaves: before the reply, or in the middle of a stream."""
    async with connect(target) as connection:
        payload = body(target.model, stream=random.random() < 0.8)
        connection.writer.write(connection.head(len(payload)) + payload)
        await connection.writer.drain()
        if random.random() < 0.8:
            await connection.reader.read(random.choice((1, 300, 3000)))
        connection.writer.transport.abort()


async def broken_upload(target: Target, tally: Tally) -> None:
    """A client that leaves in the middle of its own request."""
    async with connect(target) as connection:
        connection.writer.write(connection.head(100_000) + b"{" * random.choice((0, 10, 50_000)))
        await connection.writer.drain()
        connection.writer.transport.abort()


Operation = Callable[[Target, Tally], Coroutine[Any, Any, None]]
OPERATIONS: tuple[tuple[str, int, Operation], ...] = (
    ("reply", 40, whole_reply),
    ("stream", 25, whole_stream),
    ("bad", 15, bad_request),
    ("hang-up", 15, hang_up),
    ("upload", 5, broken_upload),
)


async def worker(target: Target, tally: Tally, until: float) -> None:
    """Do one operation after the other, chosen at random by weight, until the time is up."""
    names = [name for name, weight, _ in OPERATIONS for _ in range(weight)]
    actions = {name: action for name, _, action in OPERATIONS}
    while time.monotonic() < until:
        name = random.choice(names)
        try:
            async with asyncio.timeout(OPERATION_SECONDS):
                await actions[name](target, tally)
        except (OSError, EOFError, ValueError, TimeoutError) as problem:
            if name not in ("hang-up", "upload"):  # those may see the server hang up first
                tally.fail(name, repr(problem))
        tally.done[name] += 1
        await asyncio.sleep(random.random() * 0.02)


async def watch(target: Target, samples: list[tuple[float, float, int]], started: float, until: float) -> None:
    """Sample (seconds, resident MB, open descriptors) once a second."""
    shown = 0.0
    while (now := time.monotonic()) < until:
        descriptors = 0
        with contextlib.suppress(OSError):
            descriptors = len(os.listdir(f"/proc/{target.pid}/fd"))
        samples.append((now - started, resident_bytes(target.pid) / 1e6, descriptors))
        if now - shown >= 30:
            shown = now
            print(
                f"soak: {samples[-1][0]:5.0f} s  {samples[-1][1]:7.1f} MB  {descriptors} descriptors",
                file=sys.stderr,
                flush=True,
            )
        await asyncio.sleep(min(1.0, max(0.01, until - now)))


def summary(samples: list[tuple[float, float, int]], tally: Tally, minutes: float) -> dict[str, Any]:
    """Return the figures: slope by least squares and growth of the median, both after the warm-up."""
    settled = samples[int(len(samples) * WARM_UP_SHARE) :]
    slope = (
        statistics.linear_regression([s[0] for s in settled], [s[1] for s in settled]).slope
        if len(settled) > 2
        else 0.0
    )
    part = max(1, len(settled) // 8)
    growth = statistics.median(s[1] for s in settled[-part:]) - statistics.median(s[1] for s in settled[:part])
    return {
        "minutes": minutes,
        "operations": sum(tally.done.values()),
        "by_kind": dict(tally.done),
        "wrong": dict(tally.wrong),
        "rss_mb_start": round(samples[0][1], 1),
        "rss_mb_after_warm_up": round(settled[0][1], 1),
        "rss_mb_end": round(samples[-1][1], 1),
        "rss_mb_max": round(max(s[1] for s in samples), 1),
        "slope_mb_per_hour": round(slope * 3600, 2),
        "growth_mb": round(growth, 2),
        "descriptors_start": samples[0][2],
        "descriptors_end": samples[-1][2],
    }


async def soak(target: Target, minutes: float, workers: int) -> tuple[dict[str, Any], Tally]:
    """Run the load and the watch side by side."""
    tally, samples = Tally(), list[tuple[float, float, int]]()
    started = time.monotonic()
    until = started + minutes * 60
    async with asyncio.TaskGroup() as group:
        group.create_task(watch(target, samples, started, until))
        for _ in range(workers):
            group.create_task(worker(target, tally, until))
    await asyncio.sleep(2)  # what is still open closes
    samples.append(
        (time.monotonic() - started, resident_bytes(target.pid) / 1e6, len(os.listdir(f"/proc/{target.pid}/fd")))
    )
    return summary(samples, tally, minutes), tally


@contextlib.contextmanager
def started_target(name: str) -> Iterator[Target]:
    """Start a mock and one of the bench's gateways; both end with the block."""
    (OUT / "logs").mkdir(parents=True, exist_ok=True)
    kind = next(kind for kind in GATEWAYS if kind.name == name)
    home = Path(tempfile.mkdtemp(prefix="soak-"))
    processes: list[Process] = []
    try:
        mock, port = start_mock(compile_tools()["mock"], MOCK_DELAY_MS)
        processes.append(mock)
        gateway = kind(Setting(fast=port, slow=port, port=free_port(), home=home))
        gateway.prepare()
        processes.append(gateway.start())
        wait_healthy(processes[-1], gateway.setting.port, kind.health, kind.start_seconds)
        route = gateway.route("fast")
        yield Target("127.0.0.1", gateway.setting.port, route.path, route.model, route.headers, processes[-1].pid)
    finally:
        for process in reversed(processes):
            process.stop()
        shutil.rmtree(home, ignore_errors=True)


def running_target(args: argparse.Namespace) -> Target:
    """Describe a server that runs already."""
    url = urllib.parse.urlsplit(args.url)
    path = url.path.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
    return Target(
        url.hostname or "127.0.0.1", url.port or 80, path, args.model, (f"Authorization: Bearer {args.key}",), args.pid
    )


def main() -> int:
    """Run the soak; returns the exit status."""
    names = [kind.name for kind in GATEWAYS if kind not in (Direct, Nginx)]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--workers", type=int, default=16, help="clients at once (default 16)")
    parser.add_argument(
        "--max-growth-mb", type=float, default=5, help="growth after the warm-up that fails (default 5)"
    )
    parser.add_argument("--gateway", choices=names, default="hortator", help="what to start when there is no --url")
    parser.add_argument("--url", help="a running server; needs --key, --model and --pid")
    parser.add_argument("--key", default="")
    parser.add_argument("--model", default="")
    parser.add_argument("--pid", type=int, default=0, help="the server's process; its whole tree is measured")
    args = parser.parse_args()
    if args.url and not (args.key and args.model and args.pid):
        parser.error("--url needs --key, --model and --pid")
    os.sched_setaffinity(0, {LOAD_CORE})
    with contextlib.nullcontext(running_target(args)) if args.url else started_target(args.gateway) as target:
        figures, tally = asyncio.run(soak(target, args.minutes, args.workers))
    print(json.dumps(figures))
    for example in itertools.islice(tally.examples, 10):
        print(f"soak: wrong: {example}", file=sys.stderr)
    flat = figures["growth_mb"] <= args.max_growth_mb
    print(
        f"soak: {figures['slope_mb_per_hour']:+.1f} MB/hour, {figures['growth_mb']:+.1f} MB since the warm-up",
        file=sys.stderr,
    )
    return 0 if flat and not tally.wrong else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
