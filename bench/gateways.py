"""The gateways that the bench compares: how each is found, installed on demand, configured and started, and how it is asked.

Called by `run.py`; starts them through `process.py`. Each gateway serves two upstreams, `fast` (answers at once) and `slow` (after
50 ms), and differs only in how a request names them. Every process gets a small environment of its own, so no provider key of the
machine reaches a gateway. A gateway that cannot be had raises `NotInstalled` with the reason; it is reported, not fatal.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from process import GATEWAY_CORE, LOAD_CORE, Process

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
OUT = BENCH / "out"
LITELLM = "litellm[proxy]==1.106.2"
HORTATOR = Path(os.environ.get("BENCH_HORTATOR", ROOT / ".venv/bin/hortator"))
UPSTREAM_KEY = "bench-upstream-key"
INSTALL_SECONDS = 1200


class NotInstalled(Exception):
    """The gateway is not on this machine and could not be installed; the message says why."""


@dataclass(frozen=True)
class Route:
    """How to ask a gateway for one of the two upstreams."""

    path: str
    model: str
    headers: tuple[str, ...] = ()


@dataclass
class Setting:
    """What a gateway is started with: the ports of the mock upstreams, its own port and a folder that is thrown away afterwards."""

    fast: int
    slow: int
    port: int
    home: Path
    install: bool = True
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(self.home), "LANG": "C.UTF-8"}


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(command: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str] | None = None, seconds: float = 60) -> str:
    """Run a command to its end and return its standard output; NotInstalled with its last line when it fails."""
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env=env,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise NotInstalled(f"{Path(command[0]).name}: {problem}") from problem
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise NotInstalled(f"{Path(command[0]).name} failed: {lines[-1][:160] if lines else done.returncode}")
    return done.stdout


class Gateway:
    """One candidate. `prepare` makes it startable, `start` starts it; `version` is known after `prepare`."""

    name: ClassVar[str]
    title: ClassVar[str]
    health: ClassVar[str] = "/health"
    streams: ClassVar[int] = 100
    pace: ClassVar[int] = 300
    start_seconds: ClassVar[float] = 30

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.version = ""

    def prepare(self) -> None:
        """Install if needed and write the configuration. NotInstalled when it cannot be had."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """Return the command line that serves."""
        raise NotImplementedError

    def route(self, upstream: str) -> Route:
        """Return how to ask for `fast` or `slow`."""
        raise NotImplementedError

    def port(self, upstream: str) -> int:
        """Return the port to ask for `fast` or `slow`."""
        return self.setting.port

    def close(self) -> None:
        """End what `prepare` started."""

    def start(self) -> Process:
        """Start it on the gateway core."""
        log = OUT / "logs" / f"{self.name}.log"
        log.unlink(missing_ok=True)
        return Process(self.command(), core=GATEWAY_CORE, env=self.setting.environment, log=log, cwd=self.setting.home)


class Hortator(Gateway):
    """This project: key check, quota, routing, breaker, relay, price, usage record; SQLite store, no local model."""

    name = "hortator"
    title = "Hortator"

    def prepare(self) -> None:
        """Write the configuration and create a key in a home of its own."""
        if not HORTATOR.exists():
            raise NotInstalled(f"{HORTATOR} is missing: run `make install`")
        one = self.setting
        (one.home / "hortator.yaml").write_text(
            "providers:\n"
            + "".join(
                f"  - id: {name}\n    kind: openai\n    base_url: http://127.0.0.1:{port}/v1\n"
                f"    api_key: {UPSTREAM_KEY}\n    models: [bench-model]\n"
                for name, port in (("mock", one.fast), ("slow", one.slow))
            )
            + "local: {enabled: false}\n"
        )
        one.environment |= {
            "HORTATOR_HOME": str(one.home),
            "HORTATOR_HOST": "127.0.0.1",
            "HORTATOR_PORT": str(one.port),
        }
        created = _run([HORTATOR, "keys", "create", "--name", "bench"], cwd=one.home, env=one.environment)
        key = re.search(r"hrt_sk_[\w-]+", created)
        if not key:
            raise NotInstalled("`hortator keys create` printed no key")
        self.key = key.group()
        python = HORTATOR.parent / "python"
        asked = "import importlib.metadata as m; print(m.version('hortator'))"
        self.version = _run([python, "-c", asked], cwd=one.home, env=one.environment).strip()

    def command(self) -> list[str]:
        """`hortator serve` with the configuration above."""
        return [str(HORTATOR), "serve", "--config", str(self.setting.home / "hortator.yaml")]

    def route(self, upstream: str) -> Route:
        """The provider id in the model id names the upstream."""
        provider = "mock" if upstream == "fast" else "slow"
        return Route("/v1/chat/completions", f"{provider}/bench-model", (f"Authorization: Bearer {self.key}",))


class HortatorRedis(Hortator):
    """The same with a key that has three limits, counted on a Redis of its own on the load core."""

    name = "hortator-redis"
    title = "Hortator, limits on Redis"
    limits = ("100000000 requests/minute", "100000000000 tokens/minute", "900000 usd/month")

    def prepare(self) -> None:
        """Start Redis, then the same as without it."""
        super().prepare()
        program = shutil.which("redis-server")
        if not program:
            raise NotInstalled("redis-server is missing: apt-get install redis-server")
        one, port = self.setting, free_port()
        where = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
        log = OUT / "logs" / "redis.log"
        self.redis = Process([program, *where], core=LOAD_CORE, env=one.environment, log=log, cwd=one.home)
        (one.home / "prices.yaml").write_text('mock:\n  "*": {input: "0.05", output: "0.08"}\nslow:\n  "*": free\n')
        with (one.home / "hortator.yaml").open("a") as config:
            config.write(f"redis: {{url: 'redis://127.0.0.1:{port}/0'}}\nledger: {{price_overrides: prices.yaml}}\n")
        words = [word for limit in self.limits for word in ("--limit", limit)]
        created = _run([HORTATOR, "keys", "create", "--name", "limited", *words], cwd=one.home, env=one.environment)
        key = re.search(r"hrt_sk_[\w-]+", created)
        if not key:
            raise NotInstalled("`hortator keys create` printed no key")
        self.key = key.group()

    def close(self) -> None:
        """End Redis."""
        if hasattr(self, "redis"):
            self.redis.stop()


NGINX_CONF = """daemon off;
worker_processes 1;
error_log stderr error;
pid {home}/nginx.pid;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    keepalive_requests 100000000;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_buffering off;
    upstream fast {{ server 127.0.0.1:{fast}; keepalive 2048; keepalive_requests 100000000; }}
    upstream slow {{ server 127.0.0.1:{slow}; keepalive 2048; keepalive_requests 100000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location = /health {{ return 200; }}
        location /v1/ {{ proxy_pass http://fast; }}
        location /slow/v1/ {{ proxy_pass http://slow/v1/; }}
    }}
}}
"""


class Nginx(Gateway):
    """The physical limit: a reverse proxy that forwards and knows nothing of keys, models or usage."""

    name = "nginx"
    title = "nginx"

    def prepare(self) -> None:
        """Find the system's nginx and write its configuration."""
        found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
        if not found:
            raise NotInstalled("nginx is missing: apt-get install nginx-light")
        one = self.setting
        self.program = found
        (one.home / "nginx.conf").write_text(
            NGINX_CONF.format(home=one.home, port=one.port, fast=one.fast, slow=one.slow)
        )
        done = subprocess.run([found, "-v"], capture_output=True, text=True, check=False)
        self.version = (done.stderr + done.stdout).strip().rpartition("/")[2]

    def command(self) -> list[str]:
        """Master and one worker, in the foreground."""
        return [self.program, "-p", str(self.setting.home), "-e", "stderr", "-c", str(self.setting.home / "nginx.conf")]

    def route(self, upstream: str) -> Route:
        """A path prefix names the upstream."""
        return Route("/v1/chat/completions" if upstream == "fast" else "/slow/v1/chat/completions", "bench-model")


class LiteLLM(Gateway):
    """The LiteLLM proxy: uvicorn, one worker, master key, no database, cost map from the package."""

    name = "litellm"
    title = "LiteLLM"
    health = "/health/liveliness"
    streams = 30
    pace = 50
    start_seconds = 120

    def prepare(self) -> None:
        """Install into a virtual environment of its own and write its configuration."""
        place = BENCH / ".venv-litellm"
        self.program = place / "bin" / "litellm"
        if not self.program.exists():
            if not self.setting.install:
                raise NotInstalled(f"not in {place}; --no-install was given")
            _run(["python3", "-m", "venv", place], cwd=BENCH, seconds=INSTALL_SECONDS)
            _run([place / "bin" / "pip", "install", "-q", LITELLM], cwd=BENCH, seconds=INSTALL_SECONDS)
        one = self.setting
        models = "".join(
            f"  - model_name: {name}\n    litellm_params:\n      model: openai/bench-model\n"
            f"      api_base: http://127.0.0.1:{port}/v1\n      api_key: {UPSTREAM_KEY}\n"
            for name, port in (("bench-model", one.fast), ("slow-model", one.slow))
        )
        (one.home / "litellm.yaml").write_text(
            f"model_list:\n{models}general_settings:\n  master_key: sk-bench\nlitellm_settings:\n  telemetry: false\n"
        )
        one.environment |= {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOG": "ERROR",
        }
        asked = "import importlib.metadata as m; print(m.version('litellm'))"
        self.version = _run([place / "bin" / "python", "-c", asked], cwd=one.home, env=one.environment).strip()

    def command(self) -> list[str]:
        """One worker, as many as there are cores to measure."""
        config = str(self.setting.home / "litellm.yaml")
        where = ["--host", "127.0.0.1", "--port", str(self.setting.port)]
        return [str(self.program), "--config", config, *where, "--num_workers", "1"]

    def route(self, upstream: str) -> Route:
        """The model name names the upstream."""
        model = "bench-model" if upstream == "fast" else "slow-model"
        return Route("/v1/chat/completions", model, ("Authorization: Bearer sk-bench",))


class Portkey(Gateway):
    """The Portkey gateway on node, production mode, headless; it has no keys of its own and passes the upstream's through."""

    name = "portkey"
    title = "Portkey"
    health = "/"

    def prepare(self) -> None:
        """Install with npm beside `portkey/package.json`, which pins the web server that its streams need."""
        place = BENCH / "portkey"
        package = place / "node_modules/@portkey-ai/gateway"
        self.program = package / "build/start-server.js"
        if not shutil.which("node"):
            raise NotInstalled("node is missing: apt-get install nodejs npm")
        if not self.program.exists():
            if not self.setting.install:
                raise NotInstalled(f"not in {place}; --no-install was given")
            quiet = ["--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
            _run(["npm", "install", *quiet], cwd=place, seconds=INSTALL_SECONDS)
        found = re.search(r'"version":\s*"([^"]+)"', (package / "package.json").read_text())
        self.version = found.group(1) if found else "?"
        self.setting.environment |= {"NODE_ENV": "production"}

    def command(self) -> list[str]:
        """One node process without its console page."""
        return ["node", str(self.program), f"--port={self.setting.port}", "--headless"]

    def route(self, upstream: str) -> Route:
        """A header names the upstream."""
        port = self.setting.fast if upstream == "fast" else self.setting.slow
        headers = (
            "x-portkey-provider: openai",
            f"x-portkey-custom-host: http://127.0.0.1:{port}/v1",
            f"Authorization: Bearer {UPSTREAM_KEY}",
        )
        return Route("/v1/chat/completions", "bench-model", headers)


class Direct(Gateway):
    """No gateway: the load generator talks to the mock upstream. Its latency is what the others add to."""

    name = "direct"
    title = "direct (the mock itself)"

    def prepare(self) -> None:
        """Nothing to do: the mock runs already."""

    def port(self, upstream: str) -> int:
        """The mock's own port."""
        return self.setting.fast if upstream == "fast" else self.setting.slow

    def route(self, upstream: str) -> Route:
        """The mock asks for nothing but the path."""
        return Route("/v1/chat/completions", "bench-model")


GATEWAYS: tuple[type[Gateway], ...] = (Direct, Hortator, HortatorRedis, Nginx, Portkey, LiteLLM)


def wait_healthy(process: Process, port: int, path: str, seconds: float) -> float:
    """Return the seconds from the start of the process to its first 200 reply; TimeoutError when it does not come."""
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
    while time.monotonic() - process.started < seconds and process.alive():
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(request)
                if connection.recv(64).split(b" ")[1:2] == [b"200"]:
                    return time.monotonic() - process.started
        except OSError:
            pass
        time.sleep(0.005)
    raise TimeoutError("ended while it started" if not process.alive() else f"not healthy after {seconds:.0f} s")
