"""CPU per request of each door: passed through, and translated to a provider that speaks chat.

    python3 bench/dialects.py [--seconds 3] [--rounds 3]

Every door asks the same question of the same mock upstream through one gateway; rows are rounds of 64 connections, and the ratio is to
chat completions of the same run. Bars: passed through 1.3, translated 2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from gateways import OUT, UPSTREAM_KEY, Hortator, Setting, free_port, wait_healthy
from measure import body
from process import CpuMeter
from run import compile_tools, start_mock

QUESTION = json.loads(body("x", stream=False))["messages"][1]["content"]


class Case(NamedTuple):
    """One door with one provider."""

    title: str
    path: str
    body: dict[str, Any]
    bar: float | None


def cases() -> list[Case]:
    """The doors; `mock` speaks chat alone, `native` speaks responses too, `claude` speaks messages."""
    chat = json.loads(body("mock/bench-model", stream=False))
    asked = {"instructions": chat["messages"][0]["content"], "input": QUESTION, "temperature": 0.2, "store": False}
    message = {"system": chat["messages"][0]["content"], "messages": chat["messages"][1:], "max_tokens": 256}
    return [
        Case("chat, passed through", "/v1/chat/completions", chat, None),
        Case("responses, passed through", "/v1/responses", asked | {"model": "native/bench-model"}, 1.3),
        Case("responses on chat", "/v1/responses", asked | {"model": "mock/bench-model"}, 2),
        Case("responses on chat, kept", "/v1/responses", asked | {"model": "mock/bench-model", "store": True}, None),
        Case("messages, passed through", "/v1/messages", message | {"model": "claude/bench-model"}, 1.3),
        Case("messages on chat", "/v1/messages", message | {"model": "mock/bench-model"}, 2),
        Case("chat on messages", "/v1/chat/completions", chat | {"model": "claude/bench-model"}, 2),
        Case("embeddings", "/v1/embeddings", {"model": "mock/bench-model", "input": QUESTION}, 1.3),
    ]


class Translating(Hortator):
    """The gateway with a provider for each dialect, all of them the same mock."""

    def prepare(self) -> None:
        """Write the configuration and create a key."""
        super().prepare()
        address = f"http://127.0.0.1:{self.setting.fast}/v1"
        common = {"base_url": address, "api_key": UPSTREAM_KEY, "models": ["bench-model"]}
        providers = [
            {"id": "mock", "kind": "openai", **common},
            {"id": "native", "kind": "openai", "responses": True, **common},
            {"id": "claude", "kind": "anthropic", **common},
        ]
        document = {"providers": providers, "local": {"enabled": False}}
        (self.setting.home / "hortator.yaml").write_text(json.dumps(document))


def load(program: Path, gateway: Translating, case: Case, seconds: float, pid: int) -> tuple[float, float]:
    """Return the microseconds of CPU a request, and requests a second."""
    request = OUT / "request.json"
    request.write_text(json.dumps(case.body))
    command: list[str] = [str(program), "--port", str(gateway.setting.port), "--path", case.path]
    command += ["--body", str(request), "--header", f"Authorization: Bearer {gateway.key}"]
    command += ["--connections", "64", "--seconds", str(seconds), "--expect", "Rome"]
    meter = CpuMeter(pid)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    if result["errors"]:
        sys.exit(f"bench: {case.title}: {result['errors']} errors: {result['first_error'][:300]}")
    return meter.sample() / result["requests"] / 1000, result["rps"]


def main() -> int:
    """Measure and print; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    (OUT / "logs").mkdir(exist_ok=True)
    tools = compile_tools()
    mock, port = start_mock(tools["mock"], 0)
    missed = 0
    with tempfile.TemporaryDirectory(prefix="bench-dialects-") as home:
        gateway = Translating(Setting(fast=port, slow=port, port=free_port(), home=Path(home), install=False))
        gateway.prepare()
        process = gateway.start()
        try:
            wait_healthy(process, gateway.setting.port, gateway.health, gateway.start_seconds)
            load(tools["load"], gateway, cases()[0], 1, process.pid)
            found = [
                (case, [load(tools["load"], gateway, case, args.seconds, process.pid) for _ in range(args.rounds)])
                for case in cases()
            ]
        finally:
            process.stop()
            mock.stop()
    chat = statistics.median(cpu for cpu, _ in found[0][1])
    for case, rounds in found:
        cpu, rps = statistics.median(cpu for cpu, _ in rounds), statistics.median(rps for _, rps in rounds)
        ratio = cpu / chat
        over = case.bar is not None and ratio > case.bar
        missed += over
        print(f"{case.title:28} {cpu:7.1f} us {rps:7.0f}/s {ratio:5.2f} {'over ' + str(case.bar) if over else ''}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
