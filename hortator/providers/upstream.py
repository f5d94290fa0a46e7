"""The gateway's HTTP/1.1 client: adapters send each model call through `Upstream.request` and read the reply it returns.

Here a request becomes bytes, gets a connection from its origin's pool (`providers/pool.py`), goes out, and is sent once more
on a new connection if a kept one turns out to have been closed meanwhile. `providers/connection.py` has the protocol,
`providers/proxy.py` the slower client that takes over where an outbound proxy is configured. No redirects, no cookies, no
decompression, and no retry once a byte of a reply has come: that is dispatch's decision.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Collection, Iterable
from pathlib import Path

from hortator.errors import ConfigError, ConnectFailed, ConnectionLost, InvalidRequest, TotalTimeout, UpstreamError
from hortator.providers.connection import FOREVER, SLICE, Connection, Timeouts, UpstreamResponse
from hortator.providers.pool import Origin, Pool, PoolLimits
from hortator.providers.proxy import ProxyClient, ProxyReply

__all__ = [
    "Origin",
    "PoolLimits",
    "Timeouts",
    "Upstream",
    "UpstreamResponse",
    "header_lines",
    "request_head",
    "trust",
]

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*").fullmatch
_TARGET = re.compile(r"/[\x21-\x7e]*").fullmatch
_OURS = frozenset(
    (
        b"accept-encoding",
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"keep-alive",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
"""Headers that belong to the connection, not to whoever asks."""


def request_head(origin: Origin, method: str, target: str, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the fixed part of requests to one address, for `Upstream.request`. Made once, when an adapter is set up.

    `target` is the path with its query (`/v1/chat/completions`). `Host` and `Accept-Encoding: identity` are added. A request
    with more headers passes `head + header_lines(pairs)`. Raises ConfigError, which names a header but not its value.
    """
    if not method.isascii() or not method.isalpha() or method.upper() in ("HEAD", "CONNECT"):
        raise ConfigError(f"method {method!r} cannot be sent upstream")
    if _TARGET(target) is None:
        raise ConfigError("the path of a request must begin with / and hold printable ASCII only, percent-encoded")
    try:
        lines = header_lines(headers)
    except InvalidRequest as error:
        raise ConfigError(error.message) from None
    start = f"{method.upper()} {target} HTTP/1.1\r\nhost: ".encode("ascii")
    return b"".join((start, origin.authority, b"\r\naccept-encoding: identity\r\n", lines))


def header_lines(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return headers as lines, checked: what comes from a client cannot start another header or request.

    Raises InvalidRequest, which names the header but not its value.
    """
    lines: list[bytes] = []
    for name, value in pairs:
        if _NAME(name) is None or name.lower() in _OURS or _VALUE(value) is None:
            shown = name[:60].decode("latin-1")
            raise InvalidRequest(f"header {shown!r} cannot be sent upstream", code="invalid_header", param=shown)
        lines += (name, b": ", value, b"\r\n")
    return b"".join(lines)


def trust(ca_file: Path | None = None) -> ssl.SSLContext:
    """Return a TLS context that verifies servers against the system's store, or against `ca_file` (PEM) alone.

    Raises ConfigError when the file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the CA file {ca_file} cannot be used: {error.strerror or 'not PEM'}") from None
    context.set_alpn_protocols(["http/1.1"])
    return context


class Upstream:
    """A client for any number of origins. Belongs to the event loop of its first request.

    `tls` is what `trust` returns; without it the system's store is loaded at the first https request. `proxy_url`
    (`http://[user:password@]host:port`) sends everything through that proxy and needs the extra `proxy`.
    """

    def __init__(
        self,
        *,
        limits: PoolLimits | None = None,
        tls: ssl.SSLContext | None = None,
        proxy_url: str | None = None,
    ) -> None:
        self._limits = limits or PoolLimits()
        self._tls = tls
        self._pools: dict[str, Pool] = {}
        self._closed = False
        self._proxy = None if proxy_url is None else ProxyClient(proxy_url, self._limits, tls)

    @property
    def open_connections(self) -> int:
        """Connections that are open or being opened. Gauge; connections to a proxy are not counted."""
        return sum(pool.slots for pool in self._pools.values())

    @property
    def idle_connections(self) -> int:
        """Open connections without a request. Gauge."""
        return sum(pool.idle for pool in self._pools.values())

    @property
    def waiting_requests(self) -> int:
        """Requests that wait for a connection. Gauge."""
        return sum(pool.waiting for pool in self._pools.values())

    async def request(
        self, origin: Origin, head: bytes, body: bytes, timeouts: Timeouts, deadline: float
    ) -> UpstreamResponse | ProxyReply:
        """Send a request; return when the final status and headers of its reply are there. Cancelling it closes the socket.

        `head` is what `request_head` returned, plus `header_lines`; `Content-Length` and the empty line are added here.
        `deadline` in `loop.time()` seconds covers the reply to its last byte. Raises UpstreamError; any status is a reply.
        """
        if self._proxy is not None:
            return await self._proxy.request(origin.url, origin.name, head, body, timeouts, deadline)
        pool = self._pools.get(origin.key)
        if pool is None:
            pool = self._pool(origin)
        if pool.time() >= deadline:
            raise TotalTimeout("the time for the whole request was over before it was sent upstream")
        size = len(body)
        whole = size <= SLICE
        first = b"%bcontent-length: %d\r\n\r\n%b" % (head, size, body if whole else b"")
        connection = pool.take() or await pool.acquire(timeouts.connect, deadline)
        while True:
            reply = connection.start(first, whole, timeouts, deadline)
            if not whole:
                await connection.pump(reply, body)
            error = await connection.head(reply)
            if error is None:
                return reply
            if not (connection.served and not connection.heard and isinstance(error, ConnectionLost)) or self._closed:
                raise error
            # The upstream closed a kept connection just as we wrote. A new one has served nothing, so this happens once.
            connection = await pool.acquire(timeouts.connect, deadline, fresh=True)

    async def expect(self, origins: Collection[Origin]) -> None:
        """Make ready for these: the certificates of the system are read now, in a thread, and not during a request."""
        if self._tls is None and any(origin.scheme == "https" for origin in origins):
            self._tls = await asyncio.to_thread(trust)

    def keep(self, origins: Collection[Origin]) -> None:
        """Let go of all others: their connections close, those in use once their replies have ended."""
        kept = {origin.key for origin in origins}
        for key, pool in tuple(self._pools.items()):
            pool.keep(key in kept)
            if key not in kept and not pool.slots and not pool.waiting:
                del self._pools[key]

    async def warm(self, origin: Origin, count: int, connect: float) -> None:
        """Have `count` connections to an origin open and idle (R-000-41). One that cannot be opened within `connect` seconds is left out."""
        if self._proxy is not None:
            return
        await self.expect([origin])
        pool = self._pools.get(origin.key) or self._pool(origin)
        missing = count - pool.idle
        opening = (pool.acquire(connect, FOREVER, fresh=True) for _ in range(missing))
        for opened in await asyncio.gather(*opening, return_exceptions=True):
            if isinstance(opened, Connection):
                pool.release(opened, pool.time())
            elif not isinstance(opened, UpstreamError):
                raise opened

    async def close(self) -> None:
        """Close every connection, also those in use. Requests after it fail with ConnectFailed."""
        self._closed = True
        for pool in self._pools.values():
            await pool.close()
        if self._proxy is not None:
            await self._proxy.close()

    def _pool(self, origin: Origin) -> Pool:
        if self._closed:
            raise ConnectFailed("the client is closed")
        if origin.scheme == "https" and self._tls is None:
            self._tls = trust()
        tls = self._tls if origin.scheme == "https" else None
        pool = self._pools[origin.key] = Pool(asyncio.get_running_loop(), origin, self._limits, tls)
        return pool
