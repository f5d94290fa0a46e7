"""A server for the time of one command: `hortator serve` as a child on a free loopback port, quiet, and ended with the command.

`reach.py` starts it where no server answers. It works in the same home folder, so what was ordered is kept. While it starts, what it has to
say to people (a model that is being fetched) passes through; later its words go to a log file.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import click

STOP_SECONDS = 20.0
LAST_WORDS = 2000
"""Characters of its log that are shown when it does not start."""
PR_SET_PDEATHSIG = 1
_ADDRESS = re.compile(r"OPENAI_BASE_URL=(http://\S+)/v1")


class Embedded:
    """A running server."""

    def __init__(self, process: subprocess.Popen[bytes], base_url: str) -> None:
        self._process = process
        self.base_url = base_url

    def check(self) -> None:
        """Raises ClickException where it has ended."""
        if self._process.poll() is not None:
            raise click.ClickException("the server of this command has ended")


@contextlib.contextmanager
def embedded(config: Path | None, env_file: Path | None, home: Path, *, quiet: bool) -> Iterator[Embedded]:
    """Run a server; it is ready when this is entered. Raises ClickException where it does not start."""
    command = [sys.executable, "-m", "hortator", "serve", "--host", "127.0.0.1", "--port", "0"]
    command += ["--config", str(config)] if config is not None else []
    command += ["--env-file", str(env_file)] if env_file is not None else []
    calm = {"HORTATOR_ADMIN__ENABLED": "false", "HORTATOR_LOG_LEVEL": "warning"}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **calm},
        start_new_session=True,  # Ctrl-C is the command's: it cancels the tree before the server goes
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509  # nothing runs besides yet
    )
    found: queue.Queue[str | None] = queue.Queue()
    words = _Words(home / "logs" / "run.log", aloud=not quiet)
    assert process.stdout is not None and process.stderr is not None
    readers = [
        threading.Thread(target=_listen, args=(process.stdout, found), daemon=True),
        threading.Thread(target=words.hear, args=(process.stderr,), daemon=True),
    ]
    for reader in readers:
        reader.start()
    try:
        address = found.get()
        words.aloud = False
        if address is None:
            process.wait()
            readers[1].join(5)
            raise click.ClickException(f"the server of this command does not start:\n{words.last}".rstrip())
        yield Embedded(process, address)
    finally:
        _end(process)
        for reader in readers:
            reader.join(5)
        process.stdout.close()
        process.stderr.close()


class _Words:
    """What the server says on standard error: shown while it starts, kept in a file always."""

    def __init__(self, path: Path, *, aloud: bool) -> None:
        self._path = path
        self.aloud = aloud
        self.last = ""

    def hear(self, stream: IO[bytes]) -> None:
        """Read until the server has ended."""
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file: IO[bytes] = self._path.open("wb")
        except OSError:
            file = open(os.devnull, "wb")  # noqa: SIM115  # closed below
        with file:
            while piece := os.read(stream.fileno(), 65536):
                self.last = (self.last + piece.decode("utf-8", "replace"))[-LAST_WORDS:]
                if self.aloud:
                    sys.stderr.buffer.write(piece)
                    sys.stderr.buffer.flush()
                with contextlib.suppress(OSError):
                    file.write(piece)
                    file.flush()


def _listen(stream: IO[bytes], found: queue.Queue[str | None]) -> None:
    """Find the address in what the server prints, and read on so that it can go on printing."""
    for line in stream:
        if match := _ADDRESS.search(line.decode("utf-8", "replace")):
            found.put(match[1])
    found.put(None)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop the server in order; kill it where it does not."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _die_with_parent() -> None:
    """In the child: be stopped when the command is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
