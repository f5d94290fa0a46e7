"""HTTP to URLs that clients or models give (webhooks, `web_fetch`): they must not reach what only we can reach.

`orchestration/` calls `Guarded.request`. A name is looked up once, every address of it must be public, and the connection goes to an
address that was checked: no second look-up can answer differently (DNS rebinding). Below are `connection.py`, which speaks HTTP,
and `addresses.py`, which judges. Redirects are followed only where asked for, and each hop is checked like the first. Time, size and
number of requests are bounded; errors say nothing of what is inside the network. Outbound proxies are not used.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import urljoin

from hortator.errors import ConfigError, ConnectFailed, InvalidRequest, TotalTimeout
from hortator.providers.addresses import Place, is_link_local, is_public, matches, place, refused_by_name
from hortator.providers.connection import SLICE, Connection, Timeouts
from hortator.providers.pool import Origin, reason
from hortator.providers.upstream import request_head, trust

MAX_AT_ONCE = 64
"""Requests of one client at the same time; more wait, within their own time."""
MAX_ADDRESSES = 4
"""Addresses of a host that are tried, in the order of the look-up."""
MAX_HEADERS = 64
_CONNECT = 5.0
"""Seconds for TCP and TLS to one address."""
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_KEPT = frozenset((b"accept", b"accept-language", b"user-agent"))
"""Headers that go along to another origin."""

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Addresses of a host and port. Raises OSError."""


class Reply(NamedTuple):
    """What a host answered."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    cut: bool = False
    """There was more than `max_bytes`."""
    url: str = ""
    """Of the last hop."""

    def header(self, name: bytes) -> str:
        """The first header of that name (small letters), empty where there is none."""
        return next((value.decode("latin-1") for key, value in self.headers if key.lower() == name), "")


class Guarded:
    """A client for URLs of others. No connection is kept; there is nothing to close."""

    def __init__(
        self,
        allow_hosts: Iterable[str] = (),
        *,
        only_hosts: Iterable[str] | None = None,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`allow_hosts`, `only_hosts`: globs of `host[:port]`; without a port the scheme's own.

        Those of `allow_hosts` may have addresses that are not public, though link-local ones only where the pattern is that address.
        `only_hosts`: no others are asked at all; None = any. `tls` is what `upstream.trust` returns.
        """
        self._allowed = tuple(allow_hosts)
        self._exact = tuple(pattern for pattern in self._allowed if not set(pattern) & set("*?"))
        self._only = None if only_hosts is None else tuple(only_hosts)
        self._resolve = resolve or _look_up
        self._tls = tls
        self._places = asyncio.Semaphore(MAX_AT_ONCE)

    def check(self, url: str) -> None:
        """Raise InvalidRequest (`invalid_url`, `url_not_allowed`) for a URL that would be refused whatever its host's addresses are."""
        self._checked(url)

    async def request(
        self,
        method: str,
        url: str,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes,
        *,
        timeout: float,
        max_bytes: int,
        redirects: int = 0,
    ) -> Reply:
        """Send a request; any status is a reply, and its body is cut after `max_bytes`. `timeout` in seconds covers everything.

        `redirects`: how many are followed of a GET; else they are replies. To another origin only harmless headers go along.
        Raises InvalidRequest (`invalid_url`, `url_not_allowed`, `invalid_header`), UpstreamError.
        """
        sent = tuple(headers)
        if len(sent) > MAX_HEADERS:
            raise InvalidRequest(f"A request may have at most {MAX_HEADERS} headers.", code="invalid_header")
        where = self._checked(url)
        try:
            async with asyncio.timeout(timeout), self._places:
                deadline = asyncio.get_running_loop().time() + timeout
                for hop in range(redirects + 1):
                    reply = await self._ask(method, where, sent, body, deadline, max_bytes)
                    reply = reply._replace(url=url)
                    location = reply.header(b"location")
                    if method != "GET" or reply.status not in _REDIRECTS or not location or hop == redirects:
                        break
                    url = urljoin(url, location)
                    last, where = where, self._checked(url)
                    if last[:3] != where[:3]:
                        sent = tuple((name, value) for name, value in sent if name.lower() in _KEPT)
                return reply
        except TimeoutError:
            raise TotalTimeout(f"{where.host} did not answer within {timeout:g} s") from None

    def _checked(self, url: str) -> Place:
        where = place(url)
        if self._only is not None and not matches(where, self._only):
            raise InvalidRequest(
                "The host of this URL is not among those allowed.", code="url_not_allowed", param="url"
            )
        if not matches(where, self._allowed) and refused_by_name(where.host):
            raise _not_public()
        return where

    async def _ask(
        self,
        method: str,
        where: Place,
        headers: tuple[tuple[bytes, bytes], ...],
        body: bytes,
        deadline: float,
        max_bytes: int,
    ) -> Reply:
        """Make one request to one place."""
        origin = Origin(where.scheme, where.host, where.port)
        try:
            head = request_head(origin, method, where.target, headers)
        except ConfigError as error:
            raise InvalidRequest(error.message, code="invalid_header") from None
        first = b"%bconnection: close\r\ncontent-length: %d\r\n\r\n" % (head, len(body))
        whole = len(body) <= SLICE
        connection = await self._connect(where, await self._addresses(where))
        try:
            reply = connection.start(first + body if whole else first, whole, Timeouts(None, None, None), deadline)
            if not whole:
                await connection.pump(reply, body)
            failure = await connection.head(reply)
            if failure is not None:
                raise failure
            pieces: list[bytes] = []
            size = 0
            while size <= max_bytes and (piece := await reply.next()) is not None:
                pieces.append(piece)
                size += len(piece)
            return Reply(reply.status, tuple(reply.headers), b"".join(pieces)[:max_bytes], size > max_bytes)
        finally:
            connection.abort()

    async def _addresses(self, where: Place) -> list[str]:
        """Look a host up, once. Raises InvalidRequest unless all its addresses may be asked, ConnectFailed to be tried again."""
        try:
            found = [ip_address(text) for text in await self._resolve(where.host, where.port)]
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN:
                raise ConnectFailed(f"no connection to {where.host}: its name cannot be looked up now") from None
            # Whether a name exists inside is not told: the same words as for one that is not public.
            raise _not_public() from None
        except (OSError, ValueError):
            raise _not_public() from None
        if not found:
            raise _not_public()
        named = matches(where, self._allowed)
        exact = matches(where, self._exact) and [str(address) for address in found] == [where.host]
        for address in found:
            if not (is_public(address) or exact or (named and not is_link_local(address))):
                raise _not_public()
        return [str(address) for address in found[:MAX_ADDRESSES]]

    async def _connect(self, where: Place, addresses: Sequence[str]) -> Connection:
        """Connect to one of the addresses. TLS checks the name of the URL, not the address."""
        loop = asyncio.get_running_loop()
        name = Origin(where.scheme, where.host, where.port).name
        tls = None
        if where.scheme == "https":
            # Reading the system's certificates takes a while: not on the loop.
            tls = self._tls = self._tls or await asyncio.to_thread(trust)
        failure = "none of its addresses could be reached"
        for address in addresses:
            try:
                async with asyncio.timeout(_CONNECT):
                    _, connection = await loop.create_connection(
                        lambda: Connection(loop, _Once(), name),
                        address,
                        where.port,
                        ssl=tls,
                        server_hostname=where.host if tls is not None else None,
                        flags=socket.AI_NUMERICHOST,
                    )
                    return connection
            except TimeoutError:
                failure = "it did not accept a connection in time"
            except OSError as error:
                failure = reason(error)
        raise ConnectFailed(f"no connection to {name}: {failure}")


class _Once:
    """The keeper of a connection that is used once."""

    def release(self, connection: Connection, now: float) -> None:
        connection.abort()

    def forget(self, connection: Connection) -> None:
        """Nothing counts it."""

    def gone(self, connection: Connection) -> None:
        """Nothing waits for it."""


async def _look_up(host: str, port: int) -> list[str]:
    """Ask the system. An address is returned as it is, a scope (`%eth0`) included."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for _, _, _, _, address in found))


def _not_public() -> InvalidRequest:
    return InvalidRequest(
        "The host of this URL is not known, or not a public one.", code="url_not_allowed", param="url"
    )
