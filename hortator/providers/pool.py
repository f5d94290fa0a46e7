"""The keepalive connections to one origin: who may open one, who waits, which one is used next.

`providers/upstream.py` keeps one pool an origin and asks it for a connection before each request; a connection comes back by
itself (`Connection` calls `release`) or is forgotten. The last one used goes out first, so that the rest can grow old and
close. Each connection, open or being opened, holds one of `per_host` slots; who finds none waits in a bounded queue, first
come first served.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections import deque
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from hortator.errors import ConfigError, ConnectFailed, ConnectTimeout, TotalTimeout
from hortator.providers.connection import FOREVER, Connection

_DEFAULT_PORTS = {"http": 80, "https": 443}
_CLOSING = 1.0
"""Seconds that `Pool.close` waits at most for the loop to have closed its sockets."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a server is: scheme (`http` or `https`), host (a name, or an address without brackets) and port."""

    scheme: str
    host: str
    port: int
    name: str = field(default="", compare=False)
    """What errors call it, and clients read: a provider's id. Empty = `host:port`."""
    url: str = field(init=False, compare=False)
    """`scheme://host:port`."""
    key: str = field(init=False, compare=False, repr=False)
    """The pool's key: providers that share a server have connections of their own, under their own names."""
    authority: bytes = field(init=False, compare=False, repr=False)
    """The `Host` header: the port is named unless it is the scheme's own."""

    def __post_init__(self) -> None:
        host = f"[{self.host}]" if ":" in self.host else self.host
        object.__setattr__(self, "url", f"{self.scheme}://{host}:{self.port}")
        object.__setattr__(self, "name", self.name or f"{host}:{self.port}")
        object.__setattr__(self, "key", f"{self.url} {self.name}")
        named = host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"
        object.__setattr__(self, "authority", named.encode("ascii"))

    @classmethod
    def of(cls, url: str, name: str = "") -> Origin:
        """Return the origin of a base URL, whose path is not looked at. Raises ConfigError without repeating the URL."""
        try:
            parts = urlsplit(url)
            scheme, host, port = parts.scheme, parts.hostname or "", parts.port
            host = host if host.isascii() else host.encode("idna").decode("ascii")
        except ValueError:
            raise ConfigError("a base URL cannot be read: expected http(s)://host[:port][/path]") from None
        if scheme not in _DEFAULT_PORTS or not host or port == 0 or any(c <= " " or c in "%\x7f" for c in host):
            raise ConfigError("a base URL must be http(s)://host[:port][/path]")
        if parts.username is not None or parts.password is not None:
            raise ConfigError("a base URL must not hold a user name or password; use api_key or headers")
        return cls(scheme, host, _DEFAULT_PORTS[scheme] if port is None else port, name)


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Bounds of the pool of one origin."""

    per_host: int = 1000
    """Connections, in use, idle and being opened."""
    max_idle: int = 100
    idle_seconds: float = 4.0
    """An unused connection is closed after this long: below the 5 s after which uvicorn and node close theirs."""
    max_age_seconds: float = 600.0
    """A connection older than this is not used again, so that a changed address is noticed."""
    max_waiting: int = 1000
    """Requests that may wait for a connection."""


class Pool:
    """The connections to one origin. Not thread safe: belongs to the loop that it was made for."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, origin: Origin, limits: PoolLimits, tls: ssl.SSLContext | None
    ) -> None:
        self._loop = loop
        self.time = loop.time
        self._origin = origin
        self._limits = limits
        self._tls = tls
        self._name = origin.name
        self._idle: dict[Connection, None] = {}
        self._sockets: set[Connection] = set()
        self._waiters: deque[asyncio.Future[Connection | None]] = deque()
        self._emptied: asyncio.Future[None] | None = None
        self._closed = False
        self._kept = True
        self.slots = 0
        """Connections that are open or being opened."""

    @property
    def idle(self) -> int:
        """Connections that wait for a request."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection."""
        return len(self._waiters)

    def take(self) -> Connection | None:
        """Return the connection used last if it is still good."""
        idle = self._idle
        if idle:
            now = self._loop.time()
            while idle:
                connection, _ = idle.popitem()
                if now < connection.good_until:
                    return connection
                connection.abort()
        return None

    async def acquire(self, connect: float | None, deadline: float, *, fresh: bool = False) -> Connection:
        """Return a connection, waiting for a slot if need be; `fresh` = one that has not been used before.

        `connect` in seconds, `deadline` in `loop.time()` seconds. Raises ConnectFailed, ConnectTimeout, TotalTimeout.
        """
        first = False
        while True:
            if self._closed:
                raise self._shut()
            connection = None if fresh else self.take()
            if connection is not None:
                return connection
            if self.slots < self._limits.per_host:
                self.slots += 1
                break
            if self._idle:
                self._strip(next(iter(self._idle)))
                break
            connection = await self._wait(deadline, first)
            if connection is None:
                break
            if not connection.dead and not fresh:
                return connection
            if not connection.dead:
                self._strip(connection)
                break
            first = True  # it died on the way here: ask again, ahead of those who came later
        return await self._open(connect, deadline)

    def keep(self, connections: bool) -> None:
        """Whether connections are kept for later. If not, the unused ones close now, the others when their replies end."""
        self._kept = connections
        if not connections:
            for connection in tuple(self._idle):
                connection.abort()

    async def close(self) -> None:
        """Close every socket, send away who waits, and return when the sockets are closed."""
        self._closed = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(self._shut())
        self._waiters.clear()
        for connection in tuple(self._sockets):
            connection.abort()
        if self._sockets:
            self._emptied = self._emptied or self._loop.create_future()
            await asyncio.wait((self._emptied,), timeout=_CLOSING)

    # ---- called by Connection (its Keeper)

    def release(self, connection: Connection, now: float) -> None:
        limits = self._limits
        expiry = connection.born + limits.max_age_seconds
        good_until = now + limits.idle_seconds
        connection.good_until = min(expiry, good_until)
        if self._closed or now >= expiry:
            connection.abort()
            return
        waiters = self._waiters
        while waiters:
            waiter = waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        if len(self._idle) < limits.max_idle and self._kept:
            self._idle[connection] = None
        else:
            connection.abort()

    def forget(self, connection: Connection) -> None:
        self._idle.pop(connection, None)
        if connection.holds_slot:
            connection.holds_slot = False
            self._free_slot()

    def gone(self, connection: Connection) -> None:
        self._sockets.discard(connection)
        if self._emptied is not None and not self._sockets and not self._emptied.done():
            self._emptied.set_result(None)

    # ---- inside

    def _free_slot(self) -> None:
        """Pass a slot on to the first who waits, or give it up."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self.slots -= 1

    def _strip(self, connection: Connection) -> None:
        """Close a connection but keep its slot for a new one."""
        connection.holds_slot = False
        connection.abort()

    async def _wait(self, deadline: float, first: bool) -> Connection | None:
        """Wait for a connection to be handed over; None = a slot to open one in."""
        if len(self._waiters) >= self._limits.max_waiting:
            raise ConnectFailed(
                f"{self._name}: all {self._limits.per_host} connections are in use and {len(self._waiters)} requests wait",
                code="upstream_pool_full",
            )
        waiter: asyncio.Future[Connection | None] = self._loop.create_future()
        if first:
            self._waiters.appendleft(waiter)
        else:
            self._waiters.append(waiter)
        try:
            async with asyncio.timeout_at(None if deadline == FOREVER else deadline):
                return await waiter
        except TimeoutError:
            self._give_up(waiter)
            raise TotalTimeout(
                f"no connection to {self._name} became free within the time for the whole request"
            ) from None
        except asyncio.CancelledError:
            self._give_up(waiter)
            raise

    def _give_up(self, waiter: asyncio.Future[Connection | None]) -> None:
        """Pass on what a waiter was given but will not use."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        elif not waiter.cancelled() and waiter.exception() is None:
            connection = waiter.result()
            if connection is None:
                self._free_slot()
            elif not connection.dead:
                self.release(connection, self._loop.time())

    async def _open(self, connect: float | None, deadline: float) -> Connection:
        """Open a connection in a slot that is already ours."""
        due = min(deadline, FOREVER if connect is None else self._loop.time() + connect)
        opened = False
        try:
            async with asyncio.timeout_at(None if due == FOREVER else due) as limit:
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self._loop, self, self._name),
                    self._origin.host,
                    self._origin.port,
                    ssl=self._tls,
                )
            if self._closed or connection.dead:
                connection.abort()
                raise ConnectFailed(f"no connection to {self._name}: it was closed at once")
            opened = connection.holds_slot = True
            self._sockets.add(connection)
            return connection
        except TimeoutError:
            if limit.expired() and due == deadline:
                raise TotalTimeout(f"no connection to {self._name} within the time for the whole request") from None
            raise ConnectTimeout(f"{self._name} did not accept a connection in time") from None
        except (OSError, UnicodeError) as error:
            raise ConnectFailed(f"no connection to {self._name}: {reason(error)}") from None
        finally:
            if not opened:
                self._free_slot()

    def _shut(self) -> ConnectFailed:
        return ConnectFailed(f"no connection to {self._name}: the client is closed")


def reason(error: Exception) -> str:
    """Say what the system said, without addresses or stack traces."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its TLS certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or 'handshake failure'}"
    if isinstance(error, socket.gaierror):
        return f"its name cannot be looked up: {error.strerror}"
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else "no address of it could be reached"
    return "its name cannot be looked up"
