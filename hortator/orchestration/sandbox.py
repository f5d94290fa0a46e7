"""Where a command of an agent runs: bubblewrap, with no network, an empty world and one folder that it may write.

`tools.py` calls it, where the operator has switched the shell on and the task has the capability. It sees a read-only `/usr`, its folder,
and temporary memory; no other process, no file and no variable of ours. Where bubblewrap is missing or does not work (many containers), the
command is refused: nothing is ever run outside of the sandbox. What is not hidden is the kernel itself: its system calls are not filtered.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from hortator.errors import Unavailable

MAX_SECONDS = 120
MAX_OUTPUT = 10_000
"""Characters of a command's output."""
MAX_COMMAND = 20_000
AT_ONCE = 4
"""Commands that a process runs at the same time."""
_NOBODY = 65_534
"""Who runs a command where we are root: the kernel holds root to no number of processes."""
_AS_NOBODY = ("setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--")
_MAX_ENTRIES = 5_000
"""Files and folders in the folder while a command runs."""
_TMP = "/tmp"  # noqa: S108 - inside: memory of the command's own
_TMP_BYTES = 64 * 1024 * 1024
_LOOK = 0.25
"""Seconds between looks at the folder's size."""
_PROBE_SECONDS = 10.0

_LIMITS = f"""\
set -e
ulimit -c 0
ulimit -t {MAX_SECONDS}
ulimit -v 2097152
ulimit -f 131072
ulimit -n 256
ulimit -u 128 2>/dev/null || ulimit -p 128 2>/dev/null
exec /bin/sh -c "$1"
"""
"""Set inside, before the command: seconds of processor, KiB of address space, blocks of a file, open files, processes. Where one cannot be set
nothing is run."""


class Ran(NamedTuple):
    """How a command ended."""

    status: int | None
    """Its exit status; None = it was ended by us."""
    output: str
    """Standard output and error as they came, cut."""
    cut: bool
    ended: str = ""
    """Why we ended it."""


class Sandbox:
    """Runs commands. One per process."""

    def __init__(self, program: str | None = None) -> None:
        """`program`: bubblewrap, found on the path where it is not given."""
        self._program = program
        self._places = asyncio.Semaphore(AT_ONCE)
        self._lock = asyncio.Lock()
        self._base: list[str] | None = None
        self._refusal: str | None = None

    async def refusal(self) -> str | None:
        """Why no command can be run here, None where one can. Tried out once."""
        async with self._lock:
            if self._base is None and self._refusal is None:
                await self._try_out()
        return self._refusal

    @contextlib.asynccontextmanager
    async def folder(self) -> AsyncIterator[Path]:
        """Give an empty folder for a command, and remove it with whatever was made in it. Raises OSError."""
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="hortator-"))
        try:
            yield folder
        finally:
            # Not in Python: a command may have made folders deeper than it recurses, or taken away our right to enter them.
            removal = await asyncio.create_subprocess_exec(
                "/bin/sh",
                "-c",
                'chmod -R u+rwX "$1"; rm -rf "$1"',
                "sh",
                str(folder),
                stderr=asyncio.subprocess.DEVNULL,
            )
            await asyncio.shield(removal.wait())

    async def run(self, command: str, folder: Path, seconds: float, most_bytes: int) -> Ran:
        """Run a shell command in `folder`, `MAX_SECONDS` at most. It ends when the folder holds more than `most_bytes`.

        Raises Unavailable where there is no sandbox. When cancelled, the command and all it started are gone.
        """
        refusal = await self.refusal()
        if refusal is not None or self._base is None:
            raise Unavailable(refusal or "There is no sandbox.")
        async with self._places:
            await asyncio.to_thread(_hand_over, folder)
            process = await _start([*_in(self._base, folder), "/bin/sh", "-c", _LIMITS, "sh", command])
            try:
                return await _watch(process, folder, min(seconds, MAX_SECONDS), most_bytes)
            finally:
                await _end(process)

    async def _try_out(self) -> None:
        program = self._program or shutil.which("bwrap")
        if program is None:
            self._refusal = "Commands cannot be run here: bubblewrap (bwrap) is not installed."
            return
        for with_proc in (True, False):  # some containers let nobody mount /proc
            base = _world(program, with_proc)
            if await self._works(base):
                self._base = base
                return
        self._refusal = (
            "Commands cannot be run here: bubblewrap does not work on this machine (it needs user namespaces)."
        )

    async def _works(self, base: list[str]) -> bool:
        """Whether a command can write its folder, under its limits, in such a world."""
        try:
            async with self.folder() as folder:
                await asyncio.to_thread(_hand_over, folder)
                process = await _start([*_in(base, folder), "/bin/sh", "-c", _LIMITS, "sh", "echo works > file"])
                try:
                    async with asyncio.timeout(_PROBE_SECONDS):
                        return await process.wait() == 0
                finally:
                    await _end(process)
        except (OSError, TimeoutError):
            return False


def _in(base: list[str], folder: Path) -> list[str]:
    """Return the start of a command line whose folder is `/task`."""
    return [*base, "--bind", str(folder), "/task", "--chdir", "/task"]


def _hand_over(folder: Path) -> None:
    """Give a folder, as we have laid it out, to whom commands run as where we are root."""
    if os.geteuid() == 0:
        for at, _, names in os.walk(folder):
            for path in (at, *(os.path.join(at, name) for name in names)):
                os.chown(path, _NOBODY, _NOBODY, follow_symlinks=False)


def _world(program: str, with_proc: bool) -> list[str]:
    """Return the start of a command line: what there is inside."""
    arguments = [program] if os.geteuid() else [*_AS_NOBODY, program]
    arguments += ["--unshare-all", "--unshare-user", "--disable-userns", "--uid", str(_NOBODY), "--gid", str(_NOBODY)]
    arguments += ["--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "sandbox", "--clearenv"]
    for name, value in (("PATH", "/usr/bin:/bin"), ("HOME", "/task"), ("LANG", "C.UTF-8"), ("TMPDIR", _TMP)):
        arguments += ["--setenv", name, value]
    arguments += ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        at = Path("/") / name
        if at.is_symlink():
            arguments += ["--symlink", str(at.readlink()), str(at)]
        elif at.is_dir():
            arguments += ["--ro-bind", str(at), str(at)]
    for name in ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime"):
        arguments += ["--ro-bind-try", name, name]
    arguments += ["--dev", "/dev", "--size", str(_TMP_BYTES), "--tmpfs", _TMP]
    return [*arguments, "--proc", "/proc"] if with_proc else arguments


async def _start(arguments: list[str]) -> asyncio.subprocess.Process:
    """Start bubblewrap. It has no variables of ours either: its first process can be seen from inside."""
    return await asyncio.create_subprocess_exec(
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PATH": "/usr/bin:/bin"},
        start_new_session=True,
    )


async def _watch(process: asyncio.subprocess.Process, folder: Path, seconds: float, most_bytes: int) -> Ran:
    """Read the output until the command ends, takes too long or fills its folder."""
    output = bytearray()
    reading = asyncio.create_task(_drain(process, output))
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    ended = ""
    try:
        while not reading.done():
            await asyncio.wait((reading,), timeout=min(_LOOK, max(0.0, deadline - loop.time())))
            if reading.done():
                break
            if loop.time() >= deadline:
                ended = f"it took longer than {seconds:g} s"
            elif await asyncio.to_thread(_too_full, folder, most_bytes):
                ended = "it wrote too much"
            if ended:
                await _end(process)
                break
        await reading
    finally:
        reading.cancel()
    status = await process.wait()
    text = bytes(output).decode("utf-8", errors="replace").replace("\0", "")
    cut = len(output) > 4 * MAX_OUTPUT or len(text) > MAX_OUTPUT
    return Ran(None if ended else status, text[:MAX_OUTPUT], cut, ended)


async def _drain(process: asyncio.subprocess.Process, output: bytearray) -> None:
    """Keep the beginning of the output, and let the rest go by so that the command does not wait for us."""
    assert process.stdout is not None
    while piece := await process.stdout.read(65_536):
        if len(output) <= 4 * MAX_OUTPUT:
            output += piece


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill bubblewrap; what runs inside dies with it."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _too_full(folder: Path, most_bytes: int) -> bool:
    """Whether a folder holds too much. Not recursive: it may be of any depth."""
    size = entries = 0
    left = [str(folder)]
    while left:
        # What vanishes, or cannot be entered, while we look is not counted.
        with contextlib.suppress(OSError), os.scandir(left.pop()) as found:
            for entry in found:
                entries += 1
                if entry.is_dir(follow_symlinks=False):
                    left.append(entry.path)
                else:
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                if entries > _MAX_ENTRIES or size > most_bytes:
                    return True
    return False
