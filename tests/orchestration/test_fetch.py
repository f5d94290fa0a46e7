"""Pages as text: what a reader sees, bounded, from allowed hosts only, and never slower than in line with their length."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from hortator.errors import HortatorError, InvalidReply, InvalidRequest
from hortator.orchestration.fetch import MAX_BYTES, Fetcher, Page, text_of
from tests.providers.raw_server import RawServer, serve

PAGE = """<!DOCTYPE html><html><head><title>Storing &amp; finding</title><style>p {color: red}</style>
<script>if (1 < 2) alert("</p>")</script></head><body><!-- <p>hidden</p> --><h1>Sessions</h1>
<p>Three   ways,\n<b>all</b> good:<br>a &lt; b&nbsp;c</p><ul><li>cookies<li>tables</ul><noscript>no</noscript>5 < 6</body></html>"""


@pytest.fixture
async def server() -> AsyncIterator[RawServer]:
    async with serve() as listening:
        yield listening


async def fetched(server: RawServer, reply: bytes, body: bytes) -> Page:
    task = asyncio.create_task(Fetcher([f"127.0.0.1:{server.port}"]).fetch(server.url()))
    peer = await server.accept()
    await peer.request()
    peer.send(b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n\r\n%b" % (reply, len(body), body))
    return await task


def test_a_page_becomes_what_a_reader_sees() -> None:
    assert text_of(PAGE).split("\n") == [
        "Storing & finding",
        "Sessions",
        "Three ways,",
        "all good:",
        "a < b c",
        "cookies",
        "tables",
        "5 < 6",
    ]


@pytest.mark.parametrize(
    "piece", ["<", "<!--", "<script>", "<a ", "</", "<![CDATA[", "<?", "&", "&#", "<p", "\u0130<p>", "<svg></svg"]
)
async def test_a_page_made_to_be_slow_is_not(piece: str) -> None:
    async with asyncio.timeout(20):
        await asyncio.to_thread(text_of, piece * (MAX_BYTES // len(piece)))


@pytest.mark.parametrize(
    ("kind", "body", "text"),
    [
        (b"text/html; charset=iso-8859-1", b"<p>caf\xe9", "café"),
        (b"text/html", b'<meta charset="windows-1252"><p>\x80 5', "€ 5"),
        (b"text/html; charset=base64", b"<p>aGk=", "aGk="),
        (b"text/plain; charset=nonsense", "café".encode(), "café"),
        (b"text/plain", b"a\xff\0b", "a\ufffdb"),
        (b"application/json", b'{"a": "<p>"}', '{"a": "<p>"}'),
        (b"application/feed+xml", b"<a/>", "<a/>"),
    ],
)
async def test_text_is_read_in_its_own_letters(server: RawServer, kind: bytes, body: bytes, text: str) -> None:
    assert (await fetched(server, b"content-type: %b\r\n" % kind, body)).text == text


async def test_what_is_no_text_is_said_to_be_none(server: RawServer) -> None:
    with pytest.raises(InvalidReply, match="image/png"):
        await fetched(server, b"content-type: image/png\r\n", b"\x89PNG")


async def test_a_long_page_is_read_in_part(server: RawServer) -> None:
    page = await fetched(server, b"content-type: text/plain\r\n", b"a" * (MAX_BYTES + 1))
    assert (len(page.text), page.cut) == (MAX_BYTES, True)


async def test_only_the_operators_hosts_are_asked(server: RawServer) -> None:
    for egress in ([], ["docs.example"], ["127.0.0.1"], ["*"], ["127.0.0.?:*"], [f"*.0.0.1:{server.port}"]):
        with pytest.raises(InvalidRequest) as refused:
            await Fetcher(egress).fetch(server.url())
        assert refused.value.code == "url_not_allowed"
    assert server.count == 0


async def test_a_redirect_to_another_host_is_not_followed(server: RawServer) -> None:
    task = asyncio.create_task(Fetcher([f"127.0.0.1:{server.port}"]).fetch(server.url()))
    peer = await server.accept()
    await peer.request()
    peer.send(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.2:%d/\r\ncontent-length: 0\r\n\r\n" % server.port)
    with pytest.raises(HortatorError):
        await task
