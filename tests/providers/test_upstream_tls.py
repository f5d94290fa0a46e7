"""TLS to upstreams: verified, named, and never silently given up. Certificates are made with the openssl program."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from hortator.errors import ConfigError, ConnectFailed, ConnectionLost
from hortator.providers.upstream import Upstream, trust
from tests.providers.raw_server import PATIENCE, ask, serve


@dataclass(frozen=True)
class Certificates:
    ca: Path
    good: Path
    """Certificate and key for localhost and 127.0.0.1, signed by `ca`."""
    other: Path
    """The same for other.test."""
    lonely: Path
    """Self-signed, for localhost."""


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def issue(folder: Path, name: str, alt: str, ca: Path | None) -> Path:
    key, certificate, both = folder / f"{name}.key", folder / f"{name}.crt", folder / f"{name}.pem"
    signer: list[str | Path] = [] if ca is None else ["-CA", ca / "ca.crt", "-CAkey", ca / "ca.key"]
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
        *("-subj", f"/CN={name}", "-addext", f"subjectAltName={alt}", "-addext", "basicConstraints=critical,CA:FALSE"),
        *("-keyout", key, "-out", certificate, *signer),
    )
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    return both


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("tls")
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
        *("-subj", "/CN=Test CA", "-addext", "keyUsage=critical,keyCertSign", "-keyout", folder / "ca.key"),
        *("-out", folder / "ca.crt"),
    )
    return Certificates(
        folder / "ca.crt",
        issue(folder, "good", "DNS:localhost,IP:127.0.0.1", folder),
        issue(folder, "other", "DNS:other.test", folder),
        issue(folder, "lonely", "DNS:localhost", None),
    )


def server_context(chain: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(chain)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


async def test_a_server_under_the_given_ca_is_trusted_and_told_name_and_protocol(certificates: Certificates) -> None:
    context = server_context(certificates.good)
    names: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    async with serve(tls=context) as server:
        upstream = Upstream(tls=trust(certificates.ca))
        peer = None
        for body in (b"first", b"second"):
            task = ask(upstream, server.url("localhost"))
            peer = peer or await server.accept()
            head = await peer.reply(body)
            assert b"host: localhost:%d" % server.port in head
            assert await (await task).read() == body
        assert peer is not None
        assert peer.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        assert names == ["localhost"]
        assert server.count == 1
        await upstream.close()


async def test_an_address_is_verified_too(certificates: Certificates) -> None:
    async with serve(tls=server_context(certificates.good)) as server:
        upstream = Upstream(tls=trust(certificates.ca))
        task = ask(upstream, server.url())
        await (await server.accept()).reply()
        assert await (await task).read() == b"ok"
        await upstream.close()


@pytest.mark.parametrize(
    ("chain", "own_ca", "reason"),
    [
        ("lonely", True, "not trusted: self-signed certificate"),
        ("lonely", False, "not trusted: self-signed certificate"),
        ("good", False, "not trusted: unable to get local issuer certificate"),
        ("other", True, "not trusted: Hostname mismatch"),
    ],
)
async def test_a_server_that_is_not_verified_is_connect_failed(
    certificates: Certificates, chain: str, own_ca: bool, reason: str
) -> None:
    context = server_context(getattr(certificates, chain))
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)  # the server's side of the failure
    async with serve(tls=context) as server:
        upstream = Upstream(tls=trust(certificates.ca) if own_ca else None)
        with pytest.raises(ConnectFailed, match=reason):
            await ask(upstream, server.url("localhost"))
        assert upstream.open_connections == 0
        await upstream.close()


async def test_a_server_that_does_not_speak_tls_is_connect_failed() -> None:
    async with serve() as server:
        upstream = Upstream(tls=trust())
        task = ask(upstream, f"https://localhost:{server.port}/")
        peer = await server.accept()
        peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with pytest.raises(ConnectFailed, match="TLS failed"):
            await task
        assert await peer.hung_up()
        await upstream.close()


async def test_a_server_that_hangs_up_in_the_handshake_is_connect_failed() -> None:
    async with serve() as server:
        upstream = Upstream(tls=trust())
        task = ask(upstream, f"https://localhost:{server.port}/")
        (await server.accept()).close()
        with pytest.raises(ConnectFailed):
            await task
        assert upstream.open_connections == 0
        await upstream.close()


async def test_a_request_cancelled_in_the_handshake_closes_its_socket() -> None:
    async with serve() as server:
        upstream = Upstream(tls=trust())
        task = ask(upstream, f"https://localhost:{server.port}/")
        peer = await server.accept()
        async with asyncio.timeout(PATIENCE):
            assert await peer.reader.read(1) == b"\x16"
        task.cancel()
        assert await peer.hung_up()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert upstream.open_connections == 0
        await upstream.close()


async def test_large_bodies_go_both_ways_over_tls(certificates: Certificates) -> None:
    async with serve(tls=server_context(certificates.good)) as server:
        upstream = Upstream(tls=trust(certificates.ca))
        body = bytes(range(256)) * 40_000
        task = ask(upstream, server.url("localhost"), body)
        peer = await server.accept()
        _, received = await peer.request()
        assert received == body
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body))
        peer.send(body)
        reply = await task
        back = b""
        while (piece := await reply.next()) is not None:
            back += piece
        assert back == body
        assert upstream.idle_connections == 1
        await upstream.close()


async def test_a_stream_over_tls_that_is_cut_is_lost(certificates: Certificates) -> None:
    async with serve(tls=server_context(certificates.good)) as server:
        upstream = Upstream(tls=trust(certificates.ca))
        task = ask(upstream, server.url("localhost"))
        peer = await server.accept()
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n")
        reply = await task
        assert await reply.next() == b"hi"
        peer.reset()
        with pytest.raises(ConnectionLost):
            await reply.next()
        await upstream.close()


async def test_a_request_on_a_stale_tls_connection_is_sent_again(certificates: Certificates) -> None:
    async with serve(tls=server_context(certificates.good)) as server:
        upstream = Upstream(tls=trust(certificates.ca))
        task = ask(upstream, server.url("localhost"))
        peer = await server.accept()
        await peer.reply()
        assert await (await task).read() == b"ok"
        task = ask(upstream, server.url("localhost"))
        await peer.request()
        peer.reset()
        await (await server.accept()).reply(b"fresh")
        assert await (await task).read() == b"fresh"
        await upstream.close()


async def test_closing_a_reply_over_tls_closes_its_socket(certificates: Certificates) -> None:
    async with serve(tls=server_context(certificates.good)) as server:
        upstream = Upstream(tls=trust(certificates.ca))
        task = ask(upstream, server.url("localhost"))
        peer = await server.accept()
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nsome")
        (await task).close()
        assert await peer.hung_up()
        await upstream.close()


def test_a_ca_file_that_is_not_one_is_a_configuration_error(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("nothing")
    for path in (bad, tmp_path / "missing.pem"):
        with pytest.raises(ConfigError, match=path.name):
            trust(path)


def test_trust_verifies() -> None:
    context = trust()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
