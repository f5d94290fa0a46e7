"""One run of the embedded model's child process: spawned, waited for, logged, ended. `local_model.py` decides when.

The child is `local_child.py`. It gets its settings as one line on standard input, which then stays open as its life line, says
its port on standard output, and writes its log to standard error, from where a bounded file is fed. It inherits no secrets:
of the environment it gets only what a Python process and the engine need.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec

from hortator.providers.local_child import EXIT_NO_ENGINE, ChildConfig

COMMAND = (sys.executable, "-m", "hortator.providers.local_child")
STOP_SECONDS = 2.0
LOG_BYTES = 1024 * 1024
"""Size at which the log file is put aside; there is one old file, so the log never takes more than twice this."""
LAST_WORDS = 300
_INHERITED = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV")
_INHERITED_PREFIXES = ("LC_", "LD_", "DYLD_", "PYTHON", "GGML_", "OMP_", "CUDA_", "HIP_")

log = logging.getLogger("hortator.local")


class Announcement(msgspec.Struct):
    """The line the child writes when it serves."""

    port: int
    model: str


class ChildFailed(Exception):
    """The child did not start, or ended. The text says why; `final` = starting it again will not help."""

    def __init__(self, reason: str, *, final: bool) -> None:
        super().__init__(reason)
        self.final = final


class BoundedLog:
    """A log file that is put aside when it is full. None as path, or a path that cannot be written: nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.last_line = ""

    def write(self, data: bytes) -> None:
        """Append what the child said."""
        lines = [line for line in data.decode(errors="replace").splitlines() if line.strip()]
        if lines:
            self.last_line = lines[-1].strip()[-LAST_WORDS:]
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists() and self._path.stat().st_size > LOG_BYTES:
                self._path.replace(self._path.with_suffix(".log.1"))
            with self._path.open("ab") as file:
                file.write(data)
        except OSError as error:
            log.warning("the embedded model's log %s cannot be written: %s", self._path, error.strerror)
            self._path = None


class Child:
    """A running child. Made by `spawn`; always ended by `stop`."""

    def __init__(self, process: asyncio.subprocess.Process, output: BoundedLog) -> None:
        self._process = process
        self._output = output
        self._reader = asyncio.create_task(self._drain(), name="local-model-log")

    @classmethod
    async def spawn(cls, command: Sequence[str], config: ChildConfig, output: BoundedLog) -> Child:
        """Start the process in a session of its own, so that a terminal's Ctrl-C does not reach it before we have drained."""
        environment = {k: v for k, v in os.environ.items() if k in _INHERITED or k.startswith(_INHERITED_PREFIXES)}
        launch = asyncio.create_task(
            asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=environment,
                start_new_session=True,
            )
        )
        try:
            process = await asyncio.shield(launch)
        except asyncio.CancelledError:
            # The process may exist already, and cancelling would leave its end to nobody.
            with contextlib.suppress(OSError):
                await cls(await launch, output).stop()
            raise
        except OSError as error:
            raise ChildFailed(f"cannot start {command[0]}: {error.strerror}", final=False) from None
        child = cls(process, output)
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(config)).encode() + b"\n")
        return child

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def port(self, timeout: float) -> int:
        """Wait until the child serves and return its port. Raises ChildFailed."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout):
                line = await self._process.stdout.readline()
                if not line:
                    raise await self.failure()
        except TimeoutError:
            raise ChildFailed(f"it was not ready after {timeout:g} s", final=False) from None
        try:
            return msgspec.json.decode(line, type=Announcement).port
        except msgspec.DecodeError:
            raise ChildFailed("it announced no port", final=False) from None

    async def ended(self, timeout: float) -> bool:
        """Wait for the process to end, at most `timeout` seconds; return whether it has."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._process.wait()
        return self._process.returncode is not None

    async def failure(self) -> ChildFailed:
        """Wait for the process to end and return why it did."""
        status = await self._process.wait()
        await asyncio.wait({self._reader}, timeout=STOP_SECONDS)
        if status == EXIT_NO_ENGINE:
            return ChildFailed(
                "the engine cannot be loaded, its log says why; pip install 'hortator[local]', on Debian also libgomp1",
                final=True,
            )
        if status == -signal.SIGILL:
            return ChildFailed("this processor lacks instructions the engine was built for (AVX2)", final=True)
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        last = f": {self._output.last_line}" if status > 0 and self._output.last_line else ""
        return ChildFailed(f"it ended with {how}{last}", final=False)

    async def stop(self) -> None:
        """End the process: close its life line, and kill it if that is not enough. Also right when it has ended already."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if not await self.ended(STOP_SECONDS):
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _drain(self) -> None:
        """Keep the child's log flowing; a full pipe would stop it."""
        assert self._process.stderr is not None
        while data := await self._process.stderr.read(65536):
            self._output.write(data)
