"""One connection to Redis: commands out, replies in, in the order they were sent. Only what counting needs of the protocol.

`redis_counters.py` opens it and gives each command a function that takes its reply. Speaks RESP2 over TCP, TLS or a Unix socket,
with the password, user and database of the URL. Keeps no time and never reconnects: its owner does. A client library in
this place cost more processor time a request than everything else that the gateway does.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from hortator.errors import ConfigError

MAX_REPLY = 16 * 1024 * 1024
"""Largest reply in bytes; the ones we ask for are a thousandth of that."""
_TLS_OPTIONS = frozenset(("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"))
_PREFIX = {"redis": 6379, "rediss": 6379, "unix": 0}


class RedisFailure(Exception):
    """Redis answered with an error, with what we do not understand, or the connection is gone."""


Reply = bytes | RedisFailure
Answered = Callable[[Reply], None]


class Address(NamedTuple):
    """What a URL says. Never printed: it may hold a password."""

    host: str
    port: int
    path: str
    """Of a Unix socket; empty = TCP."""
    tls: ssl.SSLContext | None
    greeting: tuple[tuple[bytes, ...], ...]
    """Commands that a new connection begins with: AUTH, SELECT."""


def address(url: str) -> Address:
    """Read `redis://`, `rediss://` or `unix://`, with `?db=` and, for TLS, the `ssl_` options of Redis clients. Raises ConfigError."""
    try:
        parts = urlsplit(url)
        port = parts.port or _PREFIX[parts.scheme]
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        is_socket = parts.scheme == "unix"
        database = int(options.pop("db", "") or ("" if is_socket else parts.path.strip("/")) or 0)
    except (ValueError, KeyError):
        raise ConfigError("redis.url: expected redis://, rediss:// or unix://") from None
    secure = parts.scheme == "rediss"
    if unknown := sorted(set(options) - (_TLS_OPTIONS if secure else frozenset())):
        raise ConfigError(f"redis.url: unknown option {unknown[0]}")
    greeting: list[tuple[bytes, ...]] = []
    if parts.password:
        user = (unquote(parts.username).encode(),) if parts.username else ()
        greeting.append((b"AUTH", *user, unquote(parts.password).encode()))
    if database:
        greeting.append((b"SELECT", b"%d" % database))
    path = unquote(parts.path) if is_socket else ""
    return Address(parts.hostname or "localhost", port, path, _tls(options) if secure else None, tuple(greeting))


def _tls(options: dict[str, str]) -> ssl.SSLContext:
    """What certificates are trusted: the system's, or those of `ssl_ca_certs`."""
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if "ssl_certfile" in options:
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    except OSError as error:
        raise ConfigError(f"redis.url: its certificates cannot be read: {type(error).__name__}") from error
    if options.get("ssl_check_hostname", "true").lower() in ("false", "0", "no"):
        context.check_hostname = False
    if options.get("ssl_cert_reqs", "required") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class Wire(asyncio.Protocol):
    """An open connection; make it with `connect`."""

    def __init__(self, lost: Callable[[Wire], None]) -> None:
        self._lost = lost
        self._transport: asyncio.WriteTransport
        self._waiting: deque[Answered] = deque()
        self._rest = b""
        self.open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's says of itself that it is none
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio. Whoever waits for a reply is told."""
        self.open = False
        self._rest = b""
        while self._waiting:
            self._waiting.popleft()(RedisFailure("connection lost"))
        self._lost(self)

    def send(self, parts: tuple[bytes, ...], answered: Answered) -> None:
        """Send a command; its reply goes to `answered`, also when it is that the connection broke."""
        if not self.open:
            answered(RedisFailure("not connected"))
            return
        self._waiting.append(answered)
        self._transport.write(
            b"*%d\r\n" % len(parts) + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])
        )

    async def ask(self, *parts: bytes) -> bytes:
        """Send a command and wait for its reply. Raises RedisFailure."""
        waiter: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.send(parts, lambda reply: None if waiter.done() else waiter.set_result(reply))
        reply = await waiter
        if isinstance(reply, RedisFailure):
            raise reply
        return reply

    def abort(self) -> None:
        """Hang up at once."""
        if self.open:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """See asyncio. What is no reply, or one that nobody asked for, ends the connection."""
        try:
            self._rest = self._read(self._rest + data if self._rest else data)
        except (ValueError, IndexError):
            self._rest = b""
            self._transport.abort()

    def _read(self, data: bytes) -> bytes:
        """Hand out the whole replies; return what is left. They are `+text`, `-error`, `:number`, or `$length` and bytes."""
        start, size = 0, len(data)
        while start < size:
            line = data.find(b"\r\n", start)
            if line < 0:
                break
            kind, after = data[start], line + 2
            reply: Reply = data[start + 1 : line]
            if kind == 36:  # $
                length = int(data[start + 1 : line])
                if not 0 <= length <= MAX_REPLY:
                    raise ValueError("length")
                after += length + 2
                if after > size:
                    break
                reply = data[line + 2 : after - 2]
            elif kind == 45:  # -
                reply = RedisFailure(data[start + 1 : line].decode("utf-8", "replace").partition(" ")[0])
            elif kind not in (43, 58):  # + :
                raise ValueError("kind")
            start = after
            self._waiting.popleft()(reply)
        return data[start:]


async def connect(where: Address, lost: Callable[[Wire], None]) -> Wire:
    """Return a connection that is ready for commands. `lost` is called when it breaks. Raises OSError, RedisFailure."""
    loop = asyncio.get_running_loop()
    if where.path:
        _, wire = await loop.create_unix_connection(lambda: Wire(lost), where.path)
    else:
        _, wire = await loop.create_connection(lambda: Wire(lost), where.host, where.port, ssl=where.tls)
    try:
        for command in where.greeting:
            await wire.ask(*command)
    except BaseException:
        wire.abort()
        raise
    return wire
