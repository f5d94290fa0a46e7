"""URLs of others must not reach what only we can reach: spellings, names, redirects, answers that change (R-000-57, R-000-59)."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest

from hortator.errors import ConnectFailed, InvalidRequest, TotalTimeout
from hortator.providers.addresses import is_public
from hortator.providers.guarded import Guarded, Reply
from hortator.providers.upstream import trust
from tests.conftest import NotLoopback
from tests.providers.raw_server import RawServer, serve
from tests.providers.test_upstream_tls import issue, openssl


class Names:
    """A resolver whose answers a test decides; each list of addresses is one answer, the last one stays."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        known = self.answers.get(host.replace(".", "_"))
        if known is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return known.pop(0) if len(known) > 1 else known[0]


@pytest.fixture
async def server() -> AsyncIterator[RawServer]:
    async with serve() as listening:
        yield listening


async def get(client: Guarded, url: str, *, redirects: int = 0, max_bytes: int = 1000, timeout: float = 10) -> Reply:
    return await client.request("GET", url, [], b"", timeout=timeout, max_bytes=max_bytes, redirects=redirects)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1"),
        *("169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "198.18.0.1", "224.0.0.1", "240.0.0.1"),
        *(
            "255.255.255.255",
            "192.88.99.1",
            "203.0.113.9",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
        ),
        *(
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
        ),
        *("2002:7f00:1::", "2001::1", "2001:db8::1", "fec0::1", "100::1", "2606:4700::5efe:7f00:1", "fe80::1%eth0"),
        "3fff::1",
    ],
)
def test_an_address_that_is_not_public_is_known_as_such(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"],
)
def test_a_public_address_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("ftp://example.com/", "invalid_url"),
        ("file:///etc/passwd", "invalid_url"),
        ("gopher://example.com/", "invalid_url"),
        ("//example.com/", "invalid_url"),
        ("example.com", "invalid_url"),
        ("http://", "invalid_url"),
        ("http://user@example.com/", "invalid_url"),
        ("http://user:hunter2@example.com/", "invalid_url"),
        ("http://@example.com/", "invalid_url"),
        ("http://exam\tple.com/", "invalid_url"),
        ("http://example.com/\r\nx: y", "invalid_url"),
        ("http://example.com\\@127.0.0.1/", "invalid_url"),
        ("http://exa mple.com/", "invalid_url"),
        ("http://example.com:0/", "invalid_url"),
        ("http://example.com:22/", "invalid_url"),
        ("http://example.com:99999/", "invalid_url"),
        ("http://example.com:x/", "invalid_url"),
        ("http://[::1/", "invalid_url"),
        ("http://[v1.a]/", "invalid_url"),
        ("http://127.1/", "invalid_url"),
        ("http://2130706433/", "invalid_url"),
        ("http://0x7f000001/", "invalid_url"),
        ("http://0177.0.0.1/", "invalid_url"),
        ("http://127.0.0.1%00.example.com/", "invalid_url"),
        ("http://a..example.com/", "invalid_url"),
        ("http://example.com/" + "a" * 4100, "invalid_url"),
        ("http://127.0.0.1/", "url_not_allowed"),
        ("http://127.0.0.1./", "url_not_allowed"),
        ("http://１２７.0.0.1/", "url_not_allowed"),
        ("http://127。0。0。1/", "url_not_allowed"),
        ("http://[::1]/", "url_not_allowed"),
        ("http://[::ffff:127.0.0.1]/", "url_not_allowed"),
        ("http://169.254.169.254/latest/meta-data/", "url_not_allowed"),
        ("https://localhost/", "url_not_allowed"),
        ("https://LOCALHOST./", "url_not_allowed"),
        ("https://ⓛocalhost/", "url_not_allowed"),
        ("https://metadata.google.internal/", "url_not_allowed"),
    ],
)
def test_a_url_that_can_be_refused_by_its_text_is(url: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Guarded().check(url)
    assert refused.value.code == code
    assert "hunter2" not in refused.value.message


@pytest.mark.parametrize(
    "url", ["https://example.com", "http://example.com:8080/a?b=c#d", "https://bücher.example/ü?ö", "http://1.1.1.1/"]
)
def test_a_url_of_a_public_host_is_not_refused(url: str) -> None:
    Guarded().check(url)


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["10.0.0.1"], ["1.1.1.1", "127.0.0.1"], ["::ffff:192.168.0.1"], [], ["fe80::1%eth0"]]
)
async def test_a_name_is_refused_unless_every_address_of_it_is_public(addresses: list[str]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await get(Guarded(resolve=Names(evil_example=[addresses])), "http://evil.example/")
    assert refused.value.code == "url_not_allowed"


async def test_a_name_inside_the_network_is_refused_in_the_words_of_one_that_does_not_exist() -> None:
    client = Guarded(resolve=Names(db_corp=[["10.0.0.5"]]))
    told = []
    for url in ("http://db.corp/", "http://none.corp/"):
        with pytest.raises(InvalidRequest) as refused:
            await get(client, url)
        told.append((refused.value.code, refused.value.message, refused.value.param))
    assert told[0] == told[1]
    assert "10.0.0.5" not in told[0][1]


async def test_an_answer_that_changes_after_the_check_reaches_nothing(server: RawServer) -> None:
    """DNS rebinding: the first answer is public, every later one is the loopback server."""
    names = Names(rebind_example=[["198.41.0.4"], ["127.0.0.1"]])
    # The tests' fence sees where the socket goes: to the address that was checked.
    with pytest.raises(NotLoopback, match=re.escape("198.41.0.4")):
        await get(Guarded(resolve=names), f"http://rebind.example:{server.port}/")
    assert names.asked == ["rebind.example"]
    assert server.count == 0
    # Asked anew, it is looked up anew and judged by the new answer.
    with pytest.raises(InvalidRequest):
        await get(Guarded(resolve=names), f"http://rebind.example:{server.port}/")
    assert server.count == 0


async def test_a_host_that_the_operator_allows_is_asked_by_the_address_that_was_checked(server: RawServer) -> None:
    names = Names(hooks_corp=[["127.0.0.1"], ["10.255.255.1"]])
    client = Guarded([f"*.corp:{server.port}"], resolve=names)
    asked = asyncio.create_task(
        client.request(
            "POST",
            f"http://hooks.corp:{server.port}/a b".replace(" ", "%20") + "?q=ü#part",
            [(b"content-type", b"application/json"), (b"webhook-id", b"1")],
            b'{"a": 1}',
            timeout=10,
            max_bytes=1000,
        )
    )
    peer = await server.accept()
    head, body = await peer.request()
    peer.send(b"HTTP/1.1 204 No Content\r\nx-a: 1\r\n\r\n")
    reply = await asked
    assert head.split(b"\r\n")[0] == b"POST /a%20b?q=%C3%BC HTTP/1.1"
    assert b"host: hooks.corp:%d" % server.port in head
    assert b"webhook-id: 1" in head
    assert body == b'{"a": 1}'
    assert (reply.status, reply.header(b"x-a"), reply.body, reply.cut) == (204, "1", b"", False)
    assert names.asked == ["hooks.corp"]


async def test_a_pattern_without_a_port_means_the_schemes_own(server: RawServer) -> None:
    with pytest.raises(InvalidRequest):
        Guarded(["127.0.0.1"]).check(f"http://127.0.0.1:{server.port}/")
    Guarded(["127.0.0.1"]).check("http://127.0.0.1/")
    Guarded(["[::1]:9000"]).check("http://[::1]:9000/")
    with pytest.raises(InvalidRequest):
        Guarded(["[::1]:9000"]).check("http://[::1]:9001/")


async def test_an_allowed_name_does_not_reach_the_metadata_of_a_cloud() -> None:
    names = Names(meta_corp=[["169.254.169.254"]])
    with pytest.raises(InvalidRequest):
        await get(Guarded(["*"], resolve=names), "http://meta.corp/")


async def test_only_hosts_leaves_no_others() -> None:
    client = Guarded(only_hosts=["docs.example", "*.wiki.example"])
    client.check("https://docs.example/")
    client.check("https://a.wiki.example/")
    for url in ("https://example.com/", "https://docs.example.evil.com/", "https://docs.example:8443/"):
        with pytest.raises(InvalidRequest) as refused:
            client.check(url)
        assert refused.value.code == "url_not_allowed"


async def test_a_redirect_is_a_reply_unless_asked_for(server: RawServer) -> None:
    client = Guarded([f"127.0.0.1:{server.port}"])
    asked = asyncio.create_task(get(client, server.url()))
    peer = await server.accept()
    await peer.request()
    peer.send(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n")
    assert (await asked).status == 302


async def test_each_hop_of_a_redirect_is_checked(server: RawServer) -> None:
    names = Names(a_corp=[["127.0.0.1"]], b_corp=[["127.0.0.1"]])
    client = Guarded([f"a.corp:{server.port}"], resolve=names)
    for location in (
        f"http://b.corp:{server.port}/",
        f"http://127.0.0.1:{server.port}/",
        "file:///etc/passwd",
        "http://169.254.169.254/latest/",
    ):
        asked = asyncio.create_task(get(client, f"http://a.corp:{server.port}/", redirects=3))
        peer = await server.accept()
        await peer.request()
        peer.send(b"HTTP/1.1 302 Found\r\nlocation: %b\r\ncontent-length: 0\r\n\r\n" % location.encode())
        with pytest.raises(InvalidRequest):
            await asked
    assert server.count == 4


async def test_redirects_are_followed_so_often_and_secrets_stay_with_their_origin(server: RawServer) -> None:
    names = Names(a_corp=[["127.0.0.1"]], b_corp=[["127.0.0.1"]])
    client = Guarded([f"*.corp:{server.port}"], resolve=names)
    asked = asyncio.create_task(
        client.request(
            "GET",
            f"http://a.corp:{server.port}/start",
            [(b"authorization", b"Bearer x"), (b"accept", b"text/html")],
            b"",
            timeout=10,
            max_bytes=1000,
            redirects=2,
        )
    )
    heads = []
    for location in (b"/next", b"http://b.corp:%d/end" % server.port, b"/never"):
        peer = await server.accept()
        heads.append((await peer.request())[0])
        peer.send(b"HTTP/1.1 302 Found\r\nlocation: %b\r\ncontent-length: 0\r\n\r\n" % location)
    reply = await asked
    assert reply.status == 302
    assert reply.url == f"http://b.corp:{server.port}/end"
    assert [head.split(b" ")[1] for head in heads] == [b"/start", b"/next", b"/end"]
    assert [b"authorization" in head for head in heads] == [True, True, False]
    assert b"accept: text/html" in heads[2]
    assert names.asked == ["a.corp", "a.corp", "b.corp"]


async def test_a_body_is_cut_and_the_connection_dropped(server: RawServer) -> None:
    asked = asyncio.create_task(get(Guarded([f"127.0.0.1:{server.port}"]), server.url(), max_bytes=10))
    peer = await server.accept()
    await peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * 5000)
    reply = await asked
    assert (reply.body, reply.cut) == (b"a" * 10, True)
    assert await peer.hung_up()


async def test_time_is_bounded_as_a_whole(server: RawServer) -> None:
    asked = asyncio.create_task(get(Guarded([f"127.0.0.1:{server.port}"]), server.url(), timeout=0.2))
    peer = await server.accept()
    peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\na")
    with pytest.raises(TotalTimeout):
        await asked
    assert await peer.hung_up()


async def test_a_name_service_that_is_down_may_be_asked_again() -> None:
    async def down(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with pytest.raises(ConnectFailed) as failed:
        await get(Guarded(resolve=down), "http://example.com/")
    assert failed.value.retryable


async def test_a_header_cannot_start_another(server: RawServer) -> None:
    client = Guarded([f"127.0.0.1:{server.port}"])
    for method, name, value in [
        ("GET", b"x-a", b"1\r\nx-b: 2"),
        ("GET", b"host", b"inside"),
        ("GET", b"transfer-encoding", b"chunked"),
        ("CONNECT", b"x-a", b"1"),
        ("GET / HTTP/1.1\r\nx: y", b"x-a", b"1"),
    ]:
        with pytest.raises(InvalidRequest) as refused:
            await client.request(method, server.url(), [(name, value)], b"", timeout=5, max_bytes=10)
        assert refused.value.code == "invalid_header"
    assert server.count == 0


async def test_tls_is_checked_by_the_name_of_the_url(tmp_path: Path) -> None:
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
        *("-subj", "/CN=Test CA", "-addext", "keyUsage=critical,keyCertSign", "-keyout", tmp_path / "ca.key"),
        *("-out", tmp_path / "ca.crt"),
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(issue(tmp_path, "good", "DNS:good.corp", tmp_path))
    names = Names(good_corp=[["127.0.0.1"]], bad_corp=[["127.0.0.1"]])
    async with serve(tls=context) as server:
        client = Guarded([f"*.corp:{server.port}"], resolve=names, tls=trust(tmp_path / "ca.crt"))
        asked = asyncio.create_task(get(client, f"https://good.corp:{server.port}/"))
        await (await server.accept()).reply(b"over TLS")
        assert (await asked).body == b"over TLS"
        with pytest.raises(ConnectFailed) as failed:
            await get(client, f"https://bad.corp:{server.port}/")
        assert "not trusted" in failed.value.message
