"""One started process and everything under it: pinned to a core, measured from /proc, ended by pid.

Called by `run.py` and `gateways.py`. A process gets its own session, so its children are found even when they are re-parented, and a
parent-death signal, so that nothing is left behind when the bench itself is killed. CPU is on-CPU nanoseconds of every thread
(/proc/PID/task/TID/schedstat); memory is the sum of resident set sizes, shared pages counted once for each process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

GATEWAY_CORE = 0
LOAD_CORE = 1 if (os.cpu_count() or 1) > 1 else 0
PAGE = os.sysconf("SC_PAGE_SIZE")
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def _process_table() -> dict[int, tuple[int, int, int]]:
    """Return {pid: (parent pid, session id, start time in ticks)} of every process."""
    table: dict[int, tuple[int, int, int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError):
            fields = Path(f"/proc/{name}/stat").read_text(errors="replace").rpartition(")")[2].split()
            if fields[0] not in "ZX":
                table[int(name)] = (int(fields[1]), int(fields[3]), int(fields[19]))
    return table


def tree(root: int) -> dict[int, int]:
    """Return {pid: start time} of the live processes in `root`'s session and of all their descendants."""
    table = _process_table()
    members = {pid for pid, (_, session, _) in table.items() if root in (session, pid)}
    grew = True
    while grew:
        found = {pid for pid, (parent, _, _) in table.items() if parent in members} - members
        members |= found
        grew = bool(found)
    return {pid: table[pid][2] for pid in sorted(members)}


def resident_bytes(root: int) -> int:
    """Return the resident memory of the whole tree."""
    total = 0
    for pid in tree(root):
        with contextlib.suppress(OSError, IndexError, ValueError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    return total


class CpuMeter:
    """CPU spent by a process tree since `__init__`; call `sample` now and then, so that threads which end are not lost."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.base: dict[tuple[int, int], int] = self._read()
        self.last = dict(self.base)

    def _read(self) -> dict[tuple[int, int], int]:
        spent: dict[tuple[int, int], int] = {}
        for pid in tree(self.root):
            with contextlib.suppress(OSError):
                for tid in os.listdir(f"/proc/{pid}/task"):
                    with contextlib.suppress(OSError, ValueError):
                        spent[pid, int(tid)] = int(Path(f"/proc/{pid}/task/{tid}/schedstat").read_text().split()[0])
        return spent

    def sample(self) -> int:
        """Return nanoseconds since the start; a thread or child that appeared later counts from zero."""
        self.last.update(self._read())
        return sum(spent - self.base.get(key, 0) for key, spent in self.last.items())


def core_busy_ns(core: int) -> int:
    """Return the nanoseconds that a core was not idle: user, nice, system, irq, softirq and steal."""
    for line in Path("/proc/stat").read_text().splitlines():
        fields = line.split()
        if fields[0] == f"cpu{core}":
            return sum(int(fields[i]) for i in (1, 2, 3, 6, 7, 8)) * TICK_NS
    return 0


class Process:
    """A started program, pinned to one core; `log` receives its output."""

    def __init__(self, command: Sequence[str], *, core: int, env: Mapping[str, str], log: Path, cwd: Path) -> None:
        # Both tools (util-linux) exec what follows, so the pid stays that of the program.
        pinned = ["/usr/bin/setpriv", "--pdeathsig", "TERM", "/usr/bin/taskset", "-c", str(core), *command]
        with log.open("ab") as output:
            self.started = time.monotonic()
            self._popen = subprocess.Popen(
                pinned,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
            )
        self.pid = self._popen.pid

    def alive(self) -> bool:
        """Return whether the first process still runs."""
        return self._popen.poll() is None

    def stop(self) -> None:
        """End the whole tree: SIGTERM to its root, SIGKILL after ten seconds to what is left, each by pid."""
        members = tree(self.pid)
        if self.alive():
            self._popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(timeout=10)
        alive = _process_table()
        stray = {pid for pid, started in members.items() if pid in alive and alive[pid][2] == started}
        for pid in stray | set(tree(self.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._popen.wait()
