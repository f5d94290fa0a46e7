"""What the limits' connection to Redis promises: the URL is obeyed, replies come whole and in order, and nobody waits in vain."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from hortator.errors import ConfigError
from hortator.tenancy.redis_wire import RedisFailure, Wire, address, connect

PATIENCE = 20


def nothing(wire: Wire) -> None:
    """Nobody cares that it is lost."""


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Wire]:
    async with asyncio.timeout(PATIENCE):
        wire = await connect(address(url), nothing)
        try:
            yield wire
        finally:
            wire.abort()
            while wire.open:
                await asyncio.sleep(0)


@asynccontextmanager
async def relay(redis_url: str, *, path: Path | None = None, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Redis behind a Unix socket, or behind TLS on the port that is yielded."""
    port = urlsplit(redis_url).port
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind = await asyncio.open_connection("127.0.0.1", port)
        tasks.add(asyncio.create_task(pump(reader, behind[1])))
        tasks.add(asyncio.create_task(pump(behind[0], writer)))

    if path is not None:
        server = await asyncio.start_unix_server(accept, path)
    else:
        server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    try:
        yield 0 if path is not None else server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.wait(tasks, timeout=PATIENCE)


async def test_user_password_and_database_of_the_url_are_used(redis_url: str) -> None:
    port, name, password = urlsplit(redis_url).port, f"u{uuid.uuid4().hex}", "p@ss/word:1"
    async with opened(redis_url) as wire:
        rights = (b">" + password.encode(), b"~*", b"+@all")
        await wire.ask(b"ACL", b"SETUSER", name.encode(), b"on", *rights)
        key = name.encode()
        async with opened(f"redis://{name}:p%40ss%2Fword%3A1@127.0.0.1:{port}/3") as other:
            assert await other.ask(b"ACL", b"WHOAMI") == name.encode()
            await other.ask(b"SET", key, b"here", b"EX", b"60")
        assert await wire.ask(b"EXISTS", key) == b"0"
        async with opened(f"redis://127.0.0.1:{port}?db=3") as third:
            assert await third.ask(b"GET", key) == b"here"
        with pytest.raises(RedisFailure, match="WRONGPASS") as refused:
            async with opened(f"redis://{name}:wrong-password@127.0.0.1:{port}/0"):
                pass
        assert "wrong-password" not in str(refused.value)
        await wire.ask(b"ACL", b"DELUSER", name.encode())


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of 127.0.0.1, signed by itself; its key is beside it."""
    path = tmp_path / "redis.crt"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=redis"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path.with_suffix(".key")), "-out", str(path)]
    subprocess.run(made, check=True, capture_output=True)
    return path


async def test_a_unix_socket_and_tls_reach_redis_and_an_untrusted_one_does_not(
    redis_url: str, tmp_path: Path, certificate: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    async with relay(redis_url, path=tmp_path / "s"), opened(f"unix://{tmp_path}/s?db=0") as wire:
        assert await wire.ask(b"PING") == b"PONG"
    async with relay(redis_url, tls=context) as port:
        async with opened(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}") as wire:
            assert await wire.ask(b"PING") == b"PONG"
        async with opened(f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=none") as wire:
            assert await wire.ask(b"PING") == b"PONG"
        with pytest.raises(ssl.SSLCertVerificationError):
            async with opened(f"rediss://127.0.0.1:{port}/0"):
                pass


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1",
        "127.0.0.1:6379",
        "redis://host:port/0",
        "redis://host/name",
        "redis://:secret-word@host/0?unknown=1",
        "redis://host/0?ssl_ca_certs=/x",
        "rediss://host/0?ssl_ca_certs=/does/not/exist",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_telling_it(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        address(url)
    assert refused.value.message.startswith("redis.url: ")
    assert "secret-word" not in refused.value.message


@asynccontextmanager
async def answering(*pieces: bytes) -> AsyncIterator[Wire]:
    """A server that answers the first command with these pieces, one a write, and hangs up."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError):
            await reader.readuntil(b"PING\r\n")
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.001)
        writer.close()
        ended.set()

    ended = asyncio.Event()
    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server, opened(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}") as wire:
        yield wire
    async with asyncio.timeout(PATIENCE):
        await ended.wait()
        await asyncio.sleep(0)


async def test_replies_are_read_whole_however_they_are_cut() -> None:
    sent = b"+OK\r\n$5\r\na\r\nbc\r\n:17\r\n-ERR secret text\r\n$0\r\n\r\n"
    async with answering(*(sent[place : place + 1] for place in range(len(sent)))) as wire:
        replies = await asyncio.gather(*(wire.ask(b"PING") for _ in range(5)), return_exceptions=True)
    assert replies[:3] == [b"OK", b"a\r\nbc", b"17"]
    assert isinstance(replies[3], RedisFailure)
    assert str(replies[3]) == "ERR"
    assert replies[4] == b""


@pytest.mark.parametrize(
    "sent", [b"HTTP/1.1 400 Bad Request\r\n", b"$-1\r\n", b"$99999999999\r\n", b"*1\r\n:1\r\n", b""]
)
async def test_whoever_waits_is_told_when_the_connection_ends_or_talks_nonsense(sent: bytes) -> None:
    async with answering(sent) as wire:
        replies = await asyncio.gather(wire.ask(b"PING"), wire.ask(b"PING"), return_exceptions=True)
        assert all(isinstance(reply, RedisFailure) for reply in replies)
        assert not wire.open
        with pytest.raises(RedisFailure):
            await wire.ask(b"PING")


async def test_a_reply_that_nobody_asked_for_ends_the_connection() -> None:
    async with answering(b"+OK\r\n+OK\r\n") as wire:
        assert await wire.ask(b"PING") == b"OK"
        async with asyncio.timeout(PATIENCE):
            while wire.open:
                await asyncio.sleep(0.001)
