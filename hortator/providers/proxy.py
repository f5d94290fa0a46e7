"""The upstream client for installations that reach their providers through an HTTP proxy: aiohttp behind the same interface.

`providers/upstream.py` hands every request to it when a proxy is configured, and only then. It owns the extra `proxy`:
aiohttp is imported here, when a client is made, and nowhere else. Slower than our own client (about 50 microseconds a call),
and a kept connection that the proxy has closed is ConnectionLost here, not a silent second try.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hortator.errors import (
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    ConnectTimeout,
    FirstByteTimeout,
    IdleTimeout,
    InvalidReply,
    TotalTimeout,
    UpstreamError,
)
from hortator.providers.connection import FOREVER, MAX_BODY, MAX_ERROR_BODY, MAX_HEAD, MAX_HEADERS, Timeouts
from hortator.providers.pool import PoolLimits

if TYPE_CHECKING:
    import aiohttp


class ProxyReply:
    """An upstream's answer that came through the proxy; satisfies `hortator.providers.base.Reply`."""

    def __init__(self, response: aiohttp.ClientResponse, name: str, idle: float, deadline: float) -> None:
        self.status = response.status
        self.headers = [(name.lower(), value) for name, value in response.raw_headers]
        self._response = response
        self._name = name
        self._idle = idle
        self._deadline = deadline
        self._reading: asyncio.Future[bytes] | None = None
        self._poked = asyncio.Event()
        self._error: UpstreamError | None = None
        self._ended = False

    async def read(self, limit: int | None = None) -> bytes:
        """Return the whole body. Raises UpstreamError: InvalidReply when it is longer than `limit` (`MAX_BODY`) bytes.

        Without a limit an error's body is cut after `MAX_ERROR_BODY` bytes instead.
        """
        cut = limit is None and not 200 <= self.status < 300
        if limit is None:
            limit = MAX_ERROR_BODY if cut else MAX_BODY
        pieces: list[bytes] = []
        size = 0
        while (piece := await self.next()) is not None:
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                self.close()
                if cut:
                    return b"".join(pieces)[:limit]
                raise InvalidReply(f"the reply's body is longer than {limit} bytes")
        return b"".join(pieces)

    async def next(self) -> bytes | None:
        """Return the next piece of the body, `b""` when poked, None at the end. Raises UpstreamError."""
        if self._error is not None:
            raise self._error
        if self._ended:
            return None
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._response.content.readany())
        if not self._poked.is_set():
            await self._wait(self._reading)
        if self._poked.is_set():
            self._poked.clear()
            return b""
        piece = await self._take(self._reading)
        if piece:
            return piece
        self._ended = True
        self._response.release()
        return None

    async def flow(self, sink: Callable[[bytes], bool]) -> None:
        """Return at once: pieces come through `next` only."""

    def poke(self) -> None:
        """Make a waiting (or else the next) `next` return `b""` now."""
        self._poked.set()

    def close(self) -> None:
        """Drop the connection unless the reply was read to its end. Never fails; may be called twice."""
        if not self._ended and self._error is None:
            self._fail(ConnectionLost("the reply was closed before its end"))

    async def _wait(self, reading: asyncio.Future[bytes]) -> None:
        """Return when `reading` is done or somebody pokes. Raises IdleTimeout and TotalTimeout."""
        now = asyncio.get_running_loop().time()
        patience = min(self._idle, self._deadline - now)
        poked = asyncio.ensure_future(self._poked.wait())
        try:
            await asyncio.wait(
                (reading, poked), timeout=None if patience == FOREVER else patience, return_when=asyncio.FIRST_COMPLETED
            )
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            poked.cancel()
        if not reading.done() and not self._poked.is_set():
            if self._deadline - now <= self._idle:
                raise self._fail(_overdue(self._name))
            raise self._fail(IdleTimeout(f"{self._name} began its reply, then sent nothing for {self._idle:g} s"))

    async def _take(self, reading: asyncio.Future[bytes]) -> bytes:
        self._reading = None
        try:
            return await reading
        except (OSError, _load().ClientError) as error:
            raise self._fail(_mapped(error, self._name)) from None

    def _fail(self, error: UpstreamError) -> UpstreamError:
        self._error = error
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        self._response.close()
        return error


class ProxyClient:
    """Sends requests through one HTTP proxy (`http://[user:password@]host:port`). Raises ConfigError without the extra."""

    def __init__(self, proxy_url: str, limits: PoolLimits, tls: ssl.SSLContext | None) -> None:
        self._aiohttp = _load()
        parts = urlsplit(proxy_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("a proxy URL must be http(s)://[user:password@]host:port")
        self._proxy_url = proxy_url
        self._limits = limits
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def request(
        self, origin: str, name: str, head: bytes, body: bytes, timeouts: Timeouts, deadline: float
    ) -> ProxyReply:
        """Send a request; same contract as `Upstream.request`. `origin` is `scheme://host:port`, `name` what errors call it."""
        if self._closed:
            raise ConnectFailed("the client is closed")
        session = self._session or self._start()
        start, *lines = head.decode("latin-1").removesuffix("\r\n").split("\r\n")
        method, target, _ = start.split(" ")
        pairs = [tuple(line.split(": ", 1)) for line in lines]
        now = asyncio.get_running_loop().time()
        connect = FOREVER if timeouts.connect is None else timeouts.connect
        due = FOREVER if timeouts.first_byte is None else now + connect + timeouts.first_byte
        due = min(due, deadline)
        yarl = self._aiohttp.client.URL
        try:
            async with asyncio.timeout_at(None if due == FOREVER else due):
                response = await session.request(
                    method,
                    yarl(origin + target, encoded=True),
                    headers=[(key, value) for key, value in pairs],
                    data=body,
                    proxy=self._proxy_url,
                    allow_redirects=False,
                    timeout=self._aiohttp.ClientTimeout(connect=timeouts.connect),
                )
        except (OSError, self._aiohttp.ClientError) as error:
            if type(error) is TimeoutError:
                if due == deadline:
                    raise _overdue(name) from None
                raise FirstByteTimeout(f"{name} did not begin its reply within {timeouts.first_byte:g} s") from None
            raise _mapped(error, name) from None
        coding = response.headers.get("content-encoding", "identity").strip().lower()
        if coding != "identity":
            response.close()
            raise InvalidReply(f"{name} sent a reply with content-encoding {coding[:40]!r}, which was not asked for")
        return ProxyReply(response, name, FOREVER if timeouts.idle is None else timeouts.idle, deadline)

    async def close(self) -> None:
        """Close every connection."""
        self._closed = True
        if self._session is not None:
            await self._session.close()

    def _start(self) -> aiohttp.ClientSession:
        client = self._aiohttp
        connector = client.TCPConnector(
            ssl=True if self._tls is None else self._tls,
            limit=0,
            limit_per_host=self._limits.per_host,
            keepalive_timeout=self._limits.idle_seconds,
        )
        self._session = client.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=client.DummyCookieJar(),
            max_field_size=MAX_HEAD,
            max_headers=MAX_HEADERS,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        )
        return self._session


def _load() -> Any:
    """Return the module aiohttp; ConfigError when it is not installed."""
    try:
        import aiohttp
    except ImportError:
        raise ConfigError("an outbound proxy is configured, which needs: pip install 'hortator[proxy]'") from None
    return aiohttp


def _overdue(name: str) -> TotalTimeout:
    return TotalTimeout(f"{name} did not finish its reply within the time for the whole request")


def _mapped(error: Exception, name: str) -> UpstreamError:
    """Translate what aiohttp raises; its own messages may hold the proxy's password, so none is repeated."""
    client = _load()
    if isinstance(error, client.ConnectionTimeoutError):
        return ConnectTimeout(f"no connection to {name} through the proxy in time")
    if isinstance(error, client.ClientConnectorCertificateError):
        return ConnectFailed(f"no connection to {name} through the proxy: its TLS certificate is not trusted")
    if isinstance(error, client.ClientProxyConnectionError):
        return ConnectFailed(f"no connection to {name}: the proxy cannot be reached")
    if isinstance(error, client.ClientHttpProxyError):
        return ConnectFailed(f"no connection to {name}: the proxy answered {error.status}")
    if isinstance(error, client.ClientConnectorError):
        return ConnectFailed(f"no connection to {name} through the proxy")
    if isinstance(error, client.ClientResponseError):
        return InvalidReply(f"{name} sent something that is not a proper HTTP/1.1 reply")
    return ConnectionLost(f"{name} or the proxy closed the connection before the reply was complete")
