"""The real Postgres and Redis that tests talk to. Called by `tests/conftest.py` only, and only when a test asks for one.

Each service is looked for in three steps: the URL in the environment (`HORTATOR_TEST_POSTGRES_URL`,
`HORTATOR_TEST_REDIS_URL`); a server of our own from installed programs, on a free loopback port in a temporary folder; the
same after installing Debian's packages, if we are root. What we start ends with the test session, also when that is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypedDict, TypeVar

POSTGRES_VARIABLE = "HORTATOR_TEST_POSTGRES_URL"
REDIS_VARIABLE = "HORTATOR_TEST_REDIS_URL"

Found = TypeVar("Found")

START_SECONDS = 60.0
ATTEMPTS = 3
PR_SET_PDEATHSIG = 1


class ServiceMissing(Exception):
    """The service neither runs nor can be started here; the message says what to do."""


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """Yield the URL (`postgresql+asyncpg://user@host:port/database`) of a server where databases may be created."""
    given = os.environ.get(POSTGRES_VARIABLE)
    if given:
        yield given.replace("postgresql://", "postgresql+asyncpg://", 1)
        return
    programs = _postgres_programs() or _install("postgresql", _postgres_programs)
    if programs is None:
        raise ServiceMissing(f"no Postgres: set {POSTGRES_VARIABLE}, or install the Debian package `postgresql`")
    with _folder("postgres") as (folder, user):
        data = str(folder / "data")
        _run(
            [
                programs / "initdb",
                "-D",
                data,
                "-U",
                "hortator",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--no-locale",
                "--no-sync",
            ],
            user,
        )
        settings = ["fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=32MB"]
        options = [word for setting in settings for word in ("-c", setting)]

        def command(port: int) -> Sequence[str | Path]:
            return [programs / "postgres", "-D", data, "-k", folder, "-h", "127.0.0.1", "-p", str(port), *options]

        def ready(port: int) -> bool:
            check = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port), "-U", "hortator"]
            return subprocess.run(check, check=False).returncode == 0

        with _server(command, ready, folder, user) as port:
            yield f"postgresql+asyncpg://hortator@127.0.0.1:{port}/postgres"


@contextlib.contextmanager
def redis() -> Iterator[str]:
    """Yield the URL (`redis://host:port/0`) of a server. A given one may hold other keys: use a prefix of your own."""
    given = os.environ.get(REDIS_VARIABLE)
    if given:
        yield given
        return
    program = shutil.which("redis-server") or _install("redis-server", lambda: shutil.which("redis-server"))
    if program is None:
        raise ServiceMissing(f"no Redis: set {REDIS_VARIABLE}, or install the Debian package `redis-server`")
    with _folder("redis") as (folder, user):

        def command(port: int) -> Sequence[str | Path]:
            where = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
            return [program, *where, "--save", "", "--appendonly", "no"]

        with _server(command, _redis_ready, folder, user) as port:
            yield f"redis://127.0.0.1:{port}/0"


def _postgres_programs() -> Path | None:
    """Return the folder with `initdb` and `postgres`: Debian keeps them out of PATH, one folder a version."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    folders += sorted(versions, key=lambda path: float(path.parent.name), reverse=True)
    for folder in folders:
        if all((folder / name).exists() for name in ("initdb", "postgres", "pg_isready")):
            return folder
    return None


def _install(package: str, find: Callable[[], Found | None]) -> Found | None:
    """Install Debian's package if we may, then look again. Its own service is not used and need not start."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return None
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with (Path(tempfile.gettempdir()) / "hortator-tests-install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests are shared out among processes, which come here together
        if (found := find()) is not None:
            return found
        for words in (["update"], ["install", "-y", "--no-install-recommends", package]):
            done = subprocess.run(
                ["apt-get", "-q", *words], env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise ServiceMissing(f"apt-get {' '.join(words)} failed: {(done.stderr or done.stdout).strip()[-500:]}")
        return find()


@contextlib.contextmanager
def _folder(name: str) -> Iterator[tuple[Path, str | None]]:
    """Yield a temporary folder and the user that owns it: Postgres refuses to run as root. None is ourselves."""
    user = None
    if os.geteuid() == 0:
        known = {entry.pw_name for entry in pwd.getpwall()}
        user = "postgres" if "postgres" in known else "nobody"
    folder = Path(tempfile.mkdtemp(prefix=f"hortator-{name}-"))
    try:
        if user is not None:
            shutil.chown(folder, user)
        yield folder, user
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Identity(TypedDict, total=False):
    """The arguments that make `subprocess` start a program as another user."""

    user: str
    group: int
    extra_groups: list[int]


def _identity(user: str | None) -> Identity:
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user is not None else {}


def _run(command: Sequence[str | Path], user: str | None) -> None:
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, **_identity(user))
    if done.returncode != 0:
        raise ServiceMissing(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-500:]}")


def _end_with_parent() -> None:
    """Runs in the child: ask the kernel to stop it when the test session dies, however that happens."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)


@contextlib.contextmanager
def _server(
    command: Callable[[int], Sequence[str | Path]], ready: Callable[[int], bool], folder: Path, user: str | None
) -> Iterator[int]:
    """Run the server on a free port while the body runs and yield the port. SIGINT stops both kinds at once and cleanly."""
    log = folder / "log"
    for _ in range(ATTEMPTS):  # a port that was free a moment ago may be taken
        port = _free_port()
        with log.open("wb") as output:
            process = subprocess.Popen(
                command(port),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - one prctl, and no threads yet
                **_identity(user),
            )
        try:
            if _wait(process, ready, port):
                yield port
                return
        finally:
            _stop(process)
    raise ServiceMissing(f"{command(0)[0]} did not start: {log.read_text(errors='replace')[-1000:]}")


def _wait(process: subprocess.Popen[bytes], ready: Callable[[int], bool], port: int) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if ready(port):
            return True
        time.sleep(0.02)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _redis_ready(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
