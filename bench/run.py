#!/usr/bin/env python3
"""Measure Hortator beside nginx, Portkey and LiteLLM on this machine, in one run, and print the table.

    python3 bench/run.py [--only hortator,nginx] [--quick] [--rounds N] [--no-install] [--check]

Compiles the mock upstream and the load generator (C), pins each gateway to core 0 and everything else to core 1, starts one gateway at
a time (`gateways.py`), measures it (`measure.py`), and writes one JSON line a gateway to bench/out/. Standard library only.
Method and limits: docs/bench.md. Whatever happens, also Ctrl-C, every process started here is ended by its pid.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from gateways import BENCH, GATEWAYS, OUT, Direct, Gateway, NotInstalled, Setting, free_port, wait_healthy
from measure import QUICK, Measurement, Plan, Row
from process import GATEWAY_CORE, LOAD_CORE, Process, resident_bytes
from table import missed_targets, render

SLOW_MS = 50


def compile_tools() -> dict[str, Path]:
    """Build `mock` and `load` when their sources are newer; exits with what to install when there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        sys.exit("bench: no C compiler: apt-get install gcc libc6-dev")
    built = {}
    for name in ("mock", "load"):
        source, program = BENCH / f"{name}.c", OUT / name
        if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
            subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", str(program), str(source)], check=True)
        built[name] = program
    return built


def start_mock(program: Path, delay_ms: int) -> tuple[Process, int]:
    """Start a mock upstream on the load core; returns it and its port."""
    port = free_port()
    command = [str(program), "--port", str(port), "--delay-ms", str(delay_ms)]
    process = Process(command, core=LOAD_CORE, env={}, log=OUT / "logs" / f"mock-{delay_ms}.log", cwd=OUT)
    try:
        wait_healthy(process, port, "/v1/models", 10)
    except TimeoutError:
        process.stop()
        raise
    return process, port


def measure_gateway(
    kind: type[Gateway], mocks: Sequence[tuple[Process, int]], plan: Plan, args: argparse.Namespace, load: Path
) -> Row:
    """Prepare, start, verify, measure and stop one gateway; a missing or failing one becomes a row that says so."""
    row: Row = {"gateway": kind.name, "title": kind.title}
    home = Path(tempfile.mkdtemp(prefix=f"bench-{kind.name}-"))
    process: Process | None = None
    gateway: Gateway | None = None
    try:
        gateway = kind(
            Setting(fast=mocks[0][1], slow=mocks[1][1], port=free_port(), home=home, install=not args.no_install)
        )
        gateway.prepare()
        row["version"] = gateway.version
        pid = mocks[0][0].pid
        if not isinstance(gateway, Direct):
            process = gateway.start()
            row["start_seconds"] = round(
                wait_healthy(process, gateway.setting.port, kind.health, kind.start_seconds), 3
            )
            pid = process.pid
        row["rss_idle_mb"] = round(resident_bytes(pid) / 1e6, 1)
        measurement = Measurement(gateway, pid, plan, load)
        measurement.verify()
        return row | measurement.measure()
    except NotInstalled as reason:
        return row | {"missing": str(reason)}
    except (OSError, RuntimeError, TimeoutError) as problem:
        return row | {"failed": f"{problem} (see {OUT / 'logs' / kind.name}.log)"}
    finally:
        if process:
            process.stop()
        if gateway:
            gateway.close()
        shutil.rmtree(home, ignore_errors=True)


def machine() -> Row:
    """Describe where and when the run was made."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=BENCH, capture_output=True, text=True, check=False
    )
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit.stdout.strip(),
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def arguments() -> argparse.Namespace:
    """Read the command line."""
    names = [kind.name for kind in GATEWAYS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--only", default=",".join(names), help=f"comma-separated: {', '.join(names)} (direct is always measured)"
    )
    parser.add_argument("--quick", action="store_true", help="one short round each; figures are rough")
    parser.add_argument("--rounds", type=int, help="closed-loop rounds; the median counts (default 3)")
    parser.add_argument("--no-install", action="store_true", help="do not install what is missing")
    parser.add_argument("--check", action="store_true", help="exit with status 1 when a target is missed")
    args = parser.parse_args()
    args.only = {name.strip() for name in args.only.split(",")} | {Direct.name}
    if unknown := args.only - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return args


def interrupt(number: int, frame: FrameType | None) -> None:
    """Turn SIGTERM into the exception that ends everything in order."""
    raise KeyboardInterrupt


def main() -> int:
    """Run the bench; returns the exit status."""
    args = arguments()
    signal.signal(signal.SIGTERM, interrupt)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.sched_setaffinity(0, {LOAD_CORE})
    if LOAD_CORE == GATEWAY_CORE:
        print("bench: one core only: gateway and load share it, requests/s mean little", file=sys.stderr)
    (OUT / "logs").mkdir(parents=True, exist_ok=True)
    tools = compile_tools()
    plan = QUICK if args.quick else Plan()
    if args.rounds:
        plan = dataclasses.replace(plan, rounds=args.rounds)
    results = OUT / time.strftime("run-%Y%m%d-%H%M%S.jsonl", time.gmtime())
    about = machine()
    rows: list[Row] = []
    mocks: list[tuple[Process, int]] = []
    try:
        mocks = [start_mock(tools["mock"], delay) for delay in (0, SLOW_MS)]
        with results.open("w") as out:
            for kind in (kind for kind in GATEWAYS if kind.name in args.only):
                print(f"bench: {kind.title} ...", file=sys.stderr, flush=True)
                rows.append(measure_gateway(kind, mocks, plan, args, tools["load"]))
                out.write(json.dumps(about | rows[-1]) + "\n")
                out.flush()
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    finally:
        for process, _ in mocks:
            process.stop()
    text = render(rows, about, plan)
    (OUT / "latest.md").write_text(text)
    print(text)
    print(f"bench: figures in {results}", file=sys.stderr)
    return 1 if args.check and missed_targets(rows) else 0


if __name__ == "__main__":
    sys.exit(main())
