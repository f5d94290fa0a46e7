"""What every test gets: a time limit, a fence around loopback, and the real Postgres and Redis when it asks for them.

Services are started lazily by `tests/services.py`. Where one cannot be had its tests are skipped and say what to do; with
`CI=true` they fail instead, so that a green run means that they ran.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
import uuid
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import asyncpg  # type: ignore[import-untyped]
import pytest
import uvloop

from tests import services

LIMIT_SECONDS = 60.0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test that takes longer than its limit, fixtures not counted: a lost wake-up must not hang the suite."""
    marker = item.get_closest_marker("limit")
    seconds = float(marker.args[0]) if marker else LIMIT_SECONDS
    late = TimeoutError(f"the test took longer than {seconds:g} s")

    expired = False

    def expire(number: int, frame: FrameType | None) -> None:
        nonlocal expired
        expired = True
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise late from None
        for task in asyncio.all_tasks(loop):  # uvloop swallows what a signal handler raises
            loop.call_soon_threadsafe(task.cancel, str(late))

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return (yield)
    except asyncio.CancelledError as cancelled:
        if expired:
            raise late from cancelled
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


class NotLoopback(BaseException):
    """A test tried to leave the machine. Not an `Exception`: the code under test must not take it for a network failure."""


def _given_hosts() -> set[str]:
    """Hosts of services that the environment names; in CI they may be other containers."""
    urls = (os.environ.get(services.POSTGRES_VARIABLE), os.environ.get(services.REDIS_VARIABLE))
    return {host for url in urls if url and (host := urlsplit(url).hostname)}


def _inside(host: object) -> bool:
    if isinstance(host, bytes):
        host = host.decode()
    if host is None or host in ("", "localhost") or host in _given_hosts():
        return True
    try:
        address = ipaddress.ip_address(str(host).partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _fence(host: object) -> None:
    # RFC 6761: such a name never exists. A resolver without network would take its time to say so.
    if str(host).endswith(".invalid"):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    if not _inside(host):
        raise NotLoopback(f"tests talk to loopback only, not to {host!r}")


@pytest.fixture(scope="session", autouse=True)
def loopback_only() -> Iterator[None]:
    """Refuse connections and name look-ups beyond loopback, in Python's sockets and in uvloop, which does not use them."""
    connect, connect_ex, look_up = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo
    create_connection = uvloop.Loop.create_connection
    resolved: set[str] = set()

    def check(connection: socket.socket, address: Any) -> None:
        if connection.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in resolved:
            _fence(address[0])

    def fenced_connect(self: socket.socket, address: Any) -> None:
        check(self, address)
        connect(self, address)

    def fenced_connect_ex(self: socket.socket, address: Any) -> int:
        check(self, address)
        return connect_ex(self, address)

    def fenced_look_up(host: Any, *args: Any, **options: Any) -> Any:
        _fence(host)
        found = look_up(host, *args, **options)
        resolved.update(str(entry[4][0]) for entry in found)
        return found

    def fenced_create_connection(self: Any, factory: Any, host: Any = None, *args: Any, **options: Any) -> Any:
        _fence(host)
        return create_connection(self, factory, host, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", fenced_connect)
        patch.setattr(socket.socket, "connect_ex", fenced_connect_ex)
        patch.setattr(socket, "getaddrinfo", fenced_look_up)
        patch.setattr(uvloop.Loop, "create_connection", fenced_create_connection)
        yield


def started(service: AbstractContextManager[str]) -> Iterator[str]:
    """Yield the service's URL; where it is missing, skip the test that asked, or fail it in CI."""
    try:
        with service as url:
            yield url
    except services.ServiceMissing as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of a Postgres server on which databases may be created; ask for `postgres_database` unless you need the server."""
    yield from started(services.postgres())


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """URL of a Redis server shared by all tests of the session: use a key prefix of your own."""
    yield from started(services.redis())


@contextlib.contextmanager
def _empty_database(server: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    _run(_execute(server, f'CREATE DATABASE "{name}"'))
    try:
        yield urlsplit(server)._replace(path=f"/{name}").geturl()
    finally:
        _run(_execute(server, f'DROP DATABASE "{name}" WITH (FORCE)'))


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """`postgresql+asyncpg://` URL of an empty database that lives as long as the test."""
    with _empty_database(postgres_url) as url:
        yield url


@pytest.fixture(scope="module")
def lasting_postgres_database(postgres_url: str) -> Iterator[str]:
    """The same for all tests of a file, where what uses it is slow to start."""
    with _empty_database(postgres_url) as url:
        yield url


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url.replace("+asyncpg", "", 1))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` on a loop of its own in a thread: the test's loop belongs to the test."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()
