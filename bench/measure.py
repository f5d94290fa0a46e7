"""The measurements: what is asked of a started gateway, and the figures that come back.

Called by `run.py` for one gateway at a time; drives `load` (the C generator) and reads /proc through `process.py`. It first checks
real replies, then measures; a figure whose load saw one wrong reply is kept but marked in `faults`.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateways import OUT, Gateway
from process import GATEWAY_CORE, CpuMeter, core_busy_ns, resident_bytes

CHUNKS = 50
WRITES = CHUNKS + 1  # the usage event and [DONE] come in one more write
WORDS = ("All", " roads", " lead", " to", " Rome", ",")
EXPECTED_STREAM = "".join(WORDS[i % len(WORDS)] for i in range(CHUNKS))
EXPECTED_REPLY = "All roads lead to Rome, and the shortest"
EXPECTED_TOKENS = 260
LOAD_GRACE = 60

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How long and how often."""

    rounds: int = 3
    seconds: float = 3.0
    concurrency: tuple[int, ...] = (100, 500, 1000)
    drain_seconds: float = 30.0


QUICK = Plan(rounds=1, seconds=1.0, concurrency=(500,), drain_seconds=20.0)


def body(model: str, *, stream: bool) -> bytes:
    """Return a chat completion request of about 1 KB; a stream asks for usage, so every gateway relays the same events."""
    question = "Which road leads to Rome, and who paved it? Answer in fifty words and name your sources. " * 9
    asked: dict[str, Any] = {
        "model": model,
        "messages": [
            {"role": "system", "content": "You are a surveyor of the Roman roads. Be short and exact."},
            {"role": "user", "content": question.strip()},
        ],
        "temperature": 0.2,
        "max_tokens": 256,
    }
    if stream:
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(asked).encode()


class Measurement:
    """One gateway under measurement. `row` collects the figures, `faults` what disqualifies some of them."""

    def __init__(self, gateway: Gateway, pid: int, plan: Plan, load: Path) -> None:
        self.gateway, self.pid, self.plan, self.load = gateway, pid, plan, load
        self.row: Row = {}
        self.faults: list[str] = []
        self.peak_bytes = 0

    # ---- real replies

    def verify(self) -> None:
        """Check one whole reply and one stream of each upstream against what the mock sends."""
        for upstream in ("fast", "slow"):
            for stream in (False, True):
                problem = self._check(upstream, stream=stream)
                if problem:
                    self.faults.append(f"{upstream} {'stream' if stream else 'reply'}: {problem}")
        self.row["verified"] = not self.faults

    def _check(self, upstream: str, *, stream: bool) -> str:
        route = self.gateway.route(upstream)
        headers = dict(line.split(": ", 1) for line in route.headers) | {"Content-Type": "application/json"}
        connection = http.client.HTTPConnection("127.0.0.1", self.gateway.port(upstream), timeout=30)
        try:
            connection.request("POST", route.path, body(route.model, stream=stream), headers)
            reply = connection.getresponse()
            text = reply.read().decode()
        except (OSError, http.client.HTTPException) as problem:
            return repr(problem)
        finally:
            connection.close()
        if reply.status != 200:
            return f"status {reply.status}: {text[:200]}"
        try:
            return _wrong_stream(text) if stream else _wrong_reply(json.loads(text))
        except (ValueError, LookupError, TypeError) as problem:
            return f"{problem!r} in {text[:200]}"

    # ---- load

    def _ask(self, upstream: str, connections: int, seconds: float, *, stream: bool = False, pace: int = 0) -> Row:
        """Run the load generator once and add what it cost the gateway's core."""
        route = self.gateway.route(upstream)
        request = OUT / "request.json"
        request.write_bytes(body(route.model, stream=stream))
        command = [
            str(self.load),
            "--port",
            str(self.gateway.port(upstream)),
            "--path",
            route.path,
            "--body",
            str(request),
        ]
        command += [part for line in route.headers for part in ("--header", line)]
        command += ["--connections", str(connections), "--seconds", str(seconds), "--expect", "Rome"]
        command += [
            "--drain-seconds",
            str(self.plan.drain_seconds),
            "--rate",
            str(pace),
            *(["--stream"] if stream else []),
        ]
        meter, busy, started = CpuMeter(self.pid), core_busy_ns(GATEWAY_CORE), time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                while process.poll() is None:
                    time.sleep(0.05)
                    if time.monotonic() - started > seconds + self.plan.drain_seconds + LOAD_GRACE:
                        raise TimeoutError("the load generator did not end")
                    meter.sample()
                assert process.stdout is not None
                printed = process.stdout.read()
            finally:
                process.kill()
        spent = meter.sample()
        wall = (time.monotonic() - started) * 1e9
        if process.returncode:
            raise RuntimeError(f"the load generator failed with status {process.returncode}")
        self.peak_bytes = max(self.peak_bytes, resident_bytes(self.pid))
        result: Row = json.loads(printed)
        result["cpu_ns"] = spent
        result["noise"] = round(max(0.0, core_busy_ns(GATEWAY_CORE) - busy - spent) / wall, 3)
        if result["errors"]:
            kind = "streams" if stream else "requests"
            self.faults.append(
                f"{connections} {upstream} {kind}: {result['errors']} errors ({result['first_error'][:120]})"
            )
        return result

    def measure(self) -> Row:
        """Run all measurements and return the row."""
        plan = self.plan
        self._ask("fast", 64, min(1.0, plan.seconds))  # warm-up
        self._closed_loop()
        alone = self._ask("fast", 1, plan.seconds)
        self.row |= {"c1_p50_us": alone["p50_us"], "c1_p99_us": alone["p99_us"]}
        paced = self._ask("fast", 64, plan.seconds, pace=self.gateway.pace)
        self.row |= {
            "pace": self.gateway.pace,
            "paced_p50_ms": round(paced["p50_us"] / 1000, 2),
            "paced_p99_ms": round(paced["p99_us"] / 1000, 2),
            "paced_missed": paced["missed"],
        }
        self._streams()
        for connections in plan.concurrency:
            result = self._ask("slow", connections, plan.seconds)
            self.row |= {
                f"slow{connections}_rps": result["rps"],
                f"slow{connections}_p50_ms": round(result["p50_us"] / 1000, 1),
                f"slow{connections}_p99_ms": round(result["p99_us"] / 1000, 1),
                f"slow{connections}_noise": result["noise"],
            }
        self.row["rss_peak_mb"] = round(self.peak_bytes / 1e6, 1)
        self.row["faults"] = self.faults
        return self.row

    def _closed_loop(self) -> None:
        """64 connections, several rounds; the round with the median CPU per request counts as a whole."""
        rounds = [self._ask("fast", 64, self.plan.seconds) for _ in range(self.plan.rounds)]
        rounds.sort(key=lambda one: one["cpu_ns"] / max(1, one["requests"]))
        middle = rounds[len(rounds) // 2]
        self.row |= {
            "rps": middle["rps"],
            "cpu_us_per_request": round(middle["cpu_ns"] / max(1, middle["requests"]) / 1000, 1),
            "c64_p50_ms": round(middle["p50_us"] / 1000, 2),
            "c64_p99_ms": round(middle["p99_us"] / 1000, 2),
            "noise": middle["noise"],
            "rounds_cpu_us": [round(one["cpu_ns"] / max(1, one["requests"]) / 1000, 1) for one in rounds],
        }

    def _streams(self) -> None:
        """Streams at once; all CPU of a stream is spread over its 51 writes, the request's own cost included."""
        result = self._ask("fast", self.gateway.streams, self.plan.seconds, stream=True)
        streams = result["streams"]
        self.row |= {
            "streams_at_once": self.gateway.streams,
            "streams": streams,
            "cpu_us_per_chunk": round(result["cpu_ns"] / (streams * WRITES) / 1000, 2) if streams else None,
            "ttfb_p50_ms": round(result["ttfb_p50_us"] / 1000, 2) if streams else None,
            "ttfb_p99_ms": round(result["ttfb_p99_us"] / 1000, 2) if streams else None,
            "stream_p50_ms": round(result["p50_us"] / 1000, 1) if streams else None,
            "stream_noise": result["noise"],
        }
        if streams and result["events_min"] < CHUNKS:
            self.faults.append(f"a stream had {result['events_min']} content events of {CHUNKS}")


def _wrong_reply(reply: Row) -> str:
    """Return what is wrong with a chat completion, or nothing."""
    choice = reply["choices"][0]
    if not choice["message"]["content"].startswith(EXPECTED_REPLY):
        return "the content is not the upstream's"
    if choice["finish_reason"] != "stop":
        return f"finish_reason {choice['finish_reason']!r}"
    if reply["usage"]["total_tokens"] != EXPECTED_TOKENS:
        return f"usage {reply['usage']!r}"
    return ""


def _wrong_stream(text: str) -> str:
    """Return what is wrong with a stream of chat completion chunks, or nothing."""
    lines = [line[5:].strip() for line in text.splitlines() if line.startswith("data:")]
    if not lines or lines[-1] != "[DONE]":
        return "no [DONE] at the end"
    content, reasons, tokens = "", [], None
    for event in map(json.loads, lines[:-1]):
        for choice in event["choices"]:
            content += choice["delta"].get("content") or ""
            reasons += [choice["finish_reason"]] if choice.get("finish_reason") else []
        tokens = (event.get("usage") or {}).get("total_tokens", tokens)
    if content != EXPECTED_STREAM:
        return f"content is {content[:80]!r}"
    if reasons != ["stop"]:
        return f"finish reasons {reasons}"
    return "" if tokens == EXPECTED_TOKENS else f"usage total {tokens}"
