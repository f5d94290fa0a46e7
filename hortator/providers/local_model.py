"""The embedded model: a supervised child process on loopback, with a bounded queue in front of it.

The composition root makes one `LocalModel`, which keeps the process alive; `local.py` sends calls to it. The child is started by
`local_process.py` and reached through an upstream client of its own, never through a proxy. The server never waits for the model: calls
that come while it loads do, up to a bound. xllamacpp is imported in the child only.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import math
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hortator.errors import (
    RateLimited,
    TotalTimeout,
    Unavailable,
    UpstreamError,
)
from hortator.providers.local_child import ChildConfig
from hortator.providers.local_process import COMMAND, BoundedLog, Child, ChildFailed
from hortator.providers.upstream import Origin, PoolLimits, Timeouts, Upstream, request_head
from hortator.wire.dialects import Dialect

State = Literal["starting", "ready", "restarting", "failed", "disabled"]

PATHS: dict[Dialect, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
}
"""What the child serves, and where."""
CACHE_MIB = 256
SPARE_THREADS = 4
"""HTTP threads beyond one a call: health checks, and calls whose client left and which the child has not noticed yet."""
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
"""Seconds before the child is started again; doubled with every failure in a row."""
STEADY_SECONDS = 60.0
"""Having served this long, a child that dies is restarted as if it were the first time."""
HEALTH_SECONDS = 5.0
HEALTH_FAILURES = 3
WAIT_SECONDS = 20.0
"""How long a call waits for a model that is loading."""
LONGEST_RETRY_AFTER = 30.0

_HEALTH_TIMEOUTS = Timeouts(connect=60.0, first_byte=60.0, idle=60.0)
_HEALTH_TARGET = "/metrics"
"""Answered between two steps of the computation, so it tells more than `/health`, which answers though the engine is stuck.
Its patience is long because a step of a large model on a slow machine is."""

log = logging.getLogger("hortator.local")


def engine_installed() -> bool:
    """Whether the extra `local` is there; nothing is imported. Without it no model need be fetched."""
    return importlib.util.find_spec("xllamacpp") is not None


def default_threads() -> int:
    """Return the threads the model computes with: all cores but one, which stays the gateway's."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Serving:
    """A child that serves: how to reach it."""

    child: Child
    upstream: Upstream
    origin: Origin
    heads: Mapping[Dialect, bytes] = field(repr=False)
    health_head: bytes = field(repr=False)
    key: str = field(repr=False)


class LocalModel:
    """Keeps the child process alive from `start` to `stop`, and counts the calls in flight.

    `path` is a GGUF file, None when there is none to be had: then the state is `disabled` and calls are refused with `why`.
    Sizes are tokens; times are seconds. `home` gets `logs/local-model.log`.
    """

    def __init__(
        self,
        path: Path | None,
        name: str,
        *,
        home: Path | None = None,
        parallel: int = 2,
        context: int = 4096,
        threads: int | None = None,
        queue: int = 8,
        start_timeout: float = 60.0,
        why: str = "its file is not here; run `hortator models pull`",
        command: Sequence[str] = COMMAND,
        steady: float = STEADY_SECONDS,
    ) -> None:
        self.name = name.lower()
        self._path = path
        self._output = BoundedLog(None if home is None else home / "logs" / "local-model.log")
        self._parallel = parallel
        self._context = context
        self._threads = threads or default_threads()
        self._room = parallel + queue
        self._start_timeout = start_timeout
        self._command = command
        self._steady = steady
        self.state: State = "starting"
        self.reason = ""
        """Why the state is not `ready`, one line; empty when there is nothing to say."""
        self.restarts = 0
        self.in_flight = 0
        """Calls that run or wait. Gauge; never above `parallel + queue`."""
        self._seconds_a_call = 5.0
        self._serving: Serving | None = None
        self._settled = asyncio.Event()
        """Set while there is nothing to wait for: the model serves, or will not."""
        self._task: asyncio.Task[None] | None = None
        if path is None:
            self._set("disabled", why)
        elif command is COMMAND and not engine_installed():
            self._set("disabled", "the engine is not installed; pip install 'hortator[local]'")

    async def start(self) -> None:
        """Start the child in the background; returns at once."""
        if self.state != "disabled":
            self._task = asyncio.create_task(self._supervise(), name="local-model")

    async def stop(self) -> None:
        """End the child. Calls in flight fail; drain them first."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._set("disabled", "the server is stopping")

    def report(self) -> dict[str, Any]:
        """Return what `/ready` says of the model."""
        report: dict[str, Any] = {"name": self.name, "state": self.state, "in_flight": self.in_flight}
        if self.reason:
            report["reason"] = self.reason
        return report | {"restarts": self.restarts}

    def enter(self) -> Callable[[], None]:
        """Take a place for a call; the result gives it back, once. Raises RateLimited when all are taken."""
        if self.in_flight >= self._room:
            waves = (self.in_flight - self._parallel + 1) / self._parallel
            wait = float(math.ceil(min(LONGEST_RETRY_AFTER, max(1.0, waves * self._seconds_a_call))))
            raise RateLimited(
                f"The embedded model is busy: {self.in_flight} calls run or wait.",
                code="local_model_busy",
                retry_after=wait,
            )
        self.in_flight += 1
        began = asyncio.get_running_loop().time()
        left = False

        def leave() -> None:
            nonlocal left
            if not left:
                left = True
                self.in_flight -= 1
                took = asyncio.get_running_loop().time() - began
                self._seconds_a_call += (took - self._seconds_a_call) / 8

        return leave

    async def serving(self, deadline: float) -> Serving:
        """Return the child to send to, waiting for one that loads. Raises Unavailable, or TotalTimeout at `deadline`."""
        clock = asyncio.get_running_loop().time
        if self._serving is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(deadline, clock() + WAIT_SECONDS)):
                    await self._settled.wait()
        serving = self._serving
        if serving is not None:
            return serving
        if self._settled.is_set():
            raise Unavailable(
                f"The embedded model is not available: {self.reason}.",
                code="local_model_unavailable",
                retry_after=LONGEST_DELAY if self.state == "failed" else None,
            )
        if clock() >= deadline:
            raise TotalTimeout("The embedded model was still loading when the call's time was over.")
        raise Unavailable("The embedded model is loading.", code="local_model_loading", retry_after=5.0)

    def lost(self, serving: Serving | None = None) -> None:
        """Send no more calls to a child that has ended (None = whichever it is): they wait for the next one."""
        if self._serving is not None and serving in (None, self._serving):
            self._serving = None
            self._settled.clear()

    def scrub(self, text: str) -> str:
        """Return `text` without the child's key."""
        return text if self._serving is None else text.replace(self._serving.key, "[redacted]")

    def _set(self, state: State, reason: str = "") -> None:
        """Change the state and wake the calls that wait, where there is nothing left to wait for."""
        if (state, reason) != (self.state, self.reason) and state != "starting":
            level = logging.INFO if state in ("ready", "disabled") else logging.WARNING
            log.log(level, "embedded model %s: %s%s", self.name, state, f" ({reason})" if reason else "")
        self.state, self.reason = state, reason
        if state in ("starting", "restarting"):
            self._settled.clear()
        else:
            self._settled.set()

    async def _supervise(self) -> None:
        """Start the child, watch it, start it again when it dies: later and later while it keeps failing."""
        clock = asyncio.get_running_loop().time
        failures = 0
        while True:
            began = clock()
            try:
                await self._run_once()
            except ChildFailed as error:
                served = self.state == "ready"
                if served and clock() - began >= self._steady:
                    failures = 0
                if error.final:
                    self._set("failed", str(error))
                    return
                failures += 1
                # One that has never come up keeps nobody waiting; one that was lost is likely to be back in a moment.
                self._set("restarting" if served or failures == 1 else "failed", str(error))
            await asyncio.sleep(min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(failures - 1, 10)))
            self.restarts += 1
            if self.state != "failed":
                self._set("restarting", self.reason)

    async def _run_once(self) -> None:
        """One life of the child. Raises ChildFailed at its end."""
        key = secrets.token_urlsafe(32)
        child = await Child.spawn(self._command, self._child_config(key), self._output)
        upstream = Upstream(limits=PoolLimits(per_host=self._room + SPARE_THREADS, max_idle=self._room))
        try:
            port = await child.port(self._start_timeout)
            origin = Origin("http", "127.0.0.1", port, "the embedded model")
            authorization = (b"authorization", b"Bearer " + key.encode())
            content_type = (b"content-type", b"application/json")
            self._serving = Serving(
                child,
                upstream,
                origin,
                {
                    name: request_head(origin, "POST", path, (authorization, content_type))
                    for name, path in PATHS.items()
                },
                request_head(origin, "GET", _HEALTH_TARGET, (authorization,)),
                key,
            )
            self._set("ready")
            await self._watch(self._serving)
        finally:
            self.lost()
            await upstream.close()
            await child.stop()

    def _child_config(self, key: str) -> ChildConfig:
        return ChildConfig(
            path=str(self._path),
            name=self.name,
            key=key,
            parent=os.getpid(),
            parallel=self._parallel,
            context=self._context,
            threads=self._threads,
            http_threads=self._room + SPARE_THREADS,
            cache_mib=CACHE_MIB,
        )

    async def _watch(self, serving: Serving) -> None:
        """Return never: raises ChildFailed when the child ends, or no longer answers."""
        unanswered = 0
        while not await serving.child.ended(HEALTH_SECONDS):
            unanswered = 0 if await _healthy(serving) else unanswered + 1
            if unanswered >= HEALTH_FAILURES:
                raise ChildFailed("it does not answer", final=False)
        self.lost()
        raise await serving.child.failure()


async def _healthy(serving: Serving) -> bool:
    """Ask the child whether it is well."""
    deadline = asyncio.get_running_loop().time() + 90.0
    try:
        reply = await serving.upstream.request(serving.origin, serving.health_head, b"", _HEALTH_TIMEOUTS, deadline)
        try:
            await reply.read()
        finally:
            reply.close()
    except UpstreamError:
        return False
    return reply.status == 200
