#!/usr/bin/env python3
"""Four model services on 11400 to 11403 behind one model: load on all four, kill -9 of one under load, and its return.

    .venv/bin/python bench/four.py [--clients 32] [--seconds 5]

Starts four mocks and Hortator with `local_services: true`, and ends them. Every other request is streamed. Prints the requests, the failures and each service's
share before the kill, while one is gone, and after its return; ends with 1 if a request failed that had not passed its commit point
(a stream whose first content had come, which nobody can begin anew).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from gateways import OUT, Hortator, Setting, free_port, wait_healthy
from measure import body
from process import GATEWAY_CORE, LOAD_CORE, Process
from run import compile_tools

SERVICES = {
    11400: "mixtral/Mixtral-8x7B",
    11401: "hermes/Hermes-2",
    11402: "openchat/OpenChat-3.5",
    11403: "phi/Phi-3-Mini",
}
"""The ports and deployments of `local_services` (R-004-2)."""
FIRST = 11400
MODEL = "local-services"
DELAY_MS = 5
RETURN_SECONDS = 30
"""So long a service that is back may wait for its first request."""
REPLY_SECONDS = 30


@dataclass
class Phase:
    """What happened in one stretch of the load."""

    served: Counter[str] = field(default_factory=Counter)
    """Whole answers by deployment."""
    failed: list[str] = field(default_factory=list)
    broken: int = 0
    """Streams that broke after their first content and said so."""
    begun: float = field(default_factory=time.monotonic)


class Load:
    """Clients that ask without end, each on a connection of its own."""

    def __init__(self, port: int, key: str) -> None:
        self.port = port
        self.phase = Phase()
        self.awaited = ""
        self.seen = asyncio.Event()
        """Set by an answer of the deployment `awaited`."""
        self.requests = [_request(key, stream=stream) for stream in (False, True)]

    async def client(self, number: int) -> None:
        """Ask until cancelled."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        while True:
            number += 1
            writer.write(self.requests[number % 2])
            phase = self.phase
            async with asyncio.timeout(REPLY_SECONDS):
                status, model, answer = await _reply(reader)
            whole = status == 200 and (number % 2 == 0 or b"data: [DONE]" in answer)
            if whole:
                phase.served[model] += 1
                if model == self.awaited:
                    self.seen.set()
            elif status == 200 and b'"content":"' in answer and b'"error"' in answer:
                phase.broken += 1
            else:
                phase.failed.append(f"{status} {answer[:200]!r}")


def _request(key: str, *, stream: bool) -> bytes:
    content = body(MODEL, stream=stream)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {key}\r\n"
    return f"{head}content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content


async def _reply(reader: asyncio.StreamReader) -> tuple[int, str, bytes]:
    """Read one reply: its status, the deployment that answered, its body."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    status, model = int(first.split(" ")[1]), headers.get("x-hortator-model", "")
    if headers.get("transfer-encoding") != "chunked":
        return status, model, await reader.readexactly(int(headers["content-length"]))
    parts = []
    while size := int(await reader.readline(), 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readline()
    return status, model, b"".join(parts)


def start_service(program: Path, port: int) -> Process:
    """Start a mock model service."""
    command = [str(program), "--port", str(port), "--delay-ms", str(DELAY_MS), "--chunks", "8", "--gap-ms", "2"]
    process = Process(command, core=LOAD_CORE, env={}, log=OUT / "logs" / f"service-{port}.log", cwd=OUT)
    wait_healthy(process, port, "/v1/models", 10)
    return process


def configure(home: Path) -> None:
    """Write the configuration of a gateway in front of the four."""
    (home / "hortator.yaml").write_text("local: {enabled: false}\ndetect_providers: false\nlocal_services: true\n")


def show(title: str, phase: Phase) -> None:
    """Print one phase."""
    total = sum(phase.served.values())
    shares = "  ".join(f"{name} {phase.served[name] / max(total, 1):6.1%}" for name in SERVICES.values())
    spent = time.monotonic() - phase.begun
    asked = total + len(phase.failed) + phase.broken
    print(
        f"{title:<22}{asked:>8} requests {spent:5.1f} s {len(phase.failed):>4} failed {phase.broken:>3} broken   {shares}"
    )


async def run(load: Load, mock: Path, services: list[Process], args: argparse.Namespace) -> list[Phase]:
    """Drive the load through its phases; the returning service is put into `services`."""
    clients = [asyncio.create_task(load.client(number)) for number in range(args.clients)]
    phases = []

    def next_phase(title: str) -> None:
        phases.append(load.phase)
        show(title, load.phase)
        load.phase = Phase()

    load.phase = Phase()
    await asyncio.sleep(args.seconds)
    next_phase("all four")
    os.kill(services[0].pid, signal.SIGKILL)
    await asyncio.sleep(args.seconds)
    next_phase("one killed")
    services[0] = start_service(mock, FIRST)
    back = time.monotonic()
    load.awaited = SERVICES[FIRST]
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(load.seen.wait(), RETURN_SECONDS)
    waited = time.monotonic() - back
    next_phase("until it is asked")
    await asyncio.sleep(args.seconds)
    next_phase("all four again")
    print(f"the service that came back was asked again after {waited:.2f} s")
    ended = [task for task in clients if task.done()]
    for task in clients:
        task.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    if ended:
        print(f"{len(ended)} clients ended early: {ended[0].exception()!r}")
    return [*phases, Phase(failed=["client"] * len(ended))]


def main() -> int:
    """Start everything, drive the load, end everything; 1 = a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each phase")
    args = parser.parse_args()
    (OUT / "logs").mkdir(parents=True, exist_ok=True)
    mock = compile_tools()["mock"]
    home = Path(tempfile.mkdtemp(prefix="bench-four-"))
    started: list[Process] = []
    try:
        started += [start_service(mock, port) for port in SERVICES]
        gateway = Hortator(Setting(fast=FIRST, slow=FIRST, port=free_port(), home=home))
        gateway.prepare()
        configure(home)
        served = Process(
            gateway.command(),
            core=GATEWAY_CORE,
            env=gateway.setting.environment,
            log=OUT / "logs" / "four.log",
            cwd=home,
        )
        wait_healthy(served, gateway.setting.port, "/ready", 60)
        try:
            phases = asyncio.run(run(Load(gateway.setting.port, gateway.key), mock, started, args))
        finally:
            served.stop()
    finally:
        for process in started:
            process.stop()
        shutil.rmtree(home, ignore_errors=True)
    failed = [one for phase in phases for one in phase.failed]
    for one in failed[:5]:
        print(f"failed: {one}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
