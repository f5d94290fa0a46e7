"""What `web_fetch` reads: a page or document of a host that the operator allows, as text.

`tools.py` calls it; `providers/guarded.py` does the asking and decides what may be reached. HTML becomes plain text by one pass over it
whose time grows with its length only, whatever the page is made of. Nothing of a page is run or fetched besides.
"""

from __future__ import annotations

import asyncio
import codecs
import html
import re
from collections.abc import Sequence
from typing import NamedTuple

from hortator.errors import InvalidReply
from hortator.providers.guarded import Guarded, Reply

MAX_BYTES = 2 * 1024 * 1024
"""Of a page; the rest is not read."""
TIMEOUT = 30.0
"""Seconds."""
REDIRECTS = 3
_HEADERS = (
    (b"user-agent", b"hortator"),
    (b"accept", b"text/html, text/plain, application/json, application/xml;q=0.9, text/*;q=0.8"),
)
_TEXT = re.compile(r"text/.*|application/(.*\+)?(json|xml|yaml|javascript|x-ndjson)")
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([A-Za-z0-9._:-]{1,40})", re.IGNORECASE)
_NAME = re.compile(r"/?([A-Za-z][A-Za-z0-9]{0,20})")
_SKIPPED = frozenset(("script", "style", "noscript", "template", "svg", "iframe", "textarea"))
_BLOCKS = frozenset(
    "address article aside blockquote br dd div dl dt fieldset figure footer form h1 h2 h3 h4 h5 h6 header hr li main nav ol "
    "option p pre section table tbody td th thead title tr ul".split()
)
_BLANKS = re.compile(r"[ \t\r\f\v\xa0]+")
_LINES = re.compile(r" ?\n[ \n]*")


class Page(NamedTuple):
    """What was read."""

    url: str
    """Of the last redirect."""
    status: int
    media_type: str
    text: str
    cut: bool
    """It was longer than what is read."""


class Fetcher:
    """Reads pages of the hosts in `egress` (globs of `host[:port]`). An entry in full with a port may be a private address."""

    def __init__(self, egress: Sequence[str], guarded: Guarded | None = None) -> None:
        """`guarded`: the client, else one is made."""
        private = [host for host in egress if not set(host) & set("*?") and re.search(r":\d+$", host)]
        self._guarded = guarded or Guarded(private, only_hosts=egress)

    async def fetch(self, url: str) -> Page:
        """Read a page. Raises InvalidRequest (`invalid_url`, `url_not_allowed`), UpstreamError (also for what is no text)."""
        reply = await self._guarded.request(
            "GET", url, _HEADERS, b"", timeout=TIMEOUT, max_bytes=MAX_BYTES, redirects=REDIRECTS
        )
        declared = reply.header(b"content-type")
        kind = declared.partition(";")[0].strip().lower() or "text/plain"
        if _TEXT.fullmatch(kind) is None:
            raise InvalidReply(f"{url[:200]} is of the type {kind[:60]}, which cannot be read as text.")
        text = await asyncio.to_thread(_readable, reply, declared, kind)
        return Page(reply.url, reply.status, kind, text, reply.cut)


def _readable(reply: Reply, declared: str, kind: str) -> str:
    """Return a reply's body as text."""
    is_html = kind in ("text/html", "application/xhtml+xml")
    match = _CHARSET.search(declared)
    if match is None and is_html:
        match = _CHARSET.search(reply.body[:2048].decode("latin-1"))
    text = reply.body.decode(_charset(match), errors="replace").replace("\0", "")
    return text_of(text) if is_html else text


def _charset(match: re.Match[str] | None) -> str:
    """Return the name of a text encoding that Python knows, UTF-8 where none is named."""
    name = "utf-8" if match is None else match[1]
    try:
        found = codecs.lookup(name)
    except LookupError:
        return "utf-8"
    # Python's codecs are not all of text: some unpack what is small into what is not.
    return found.name if found._is_text_encoding else "utf-8"


def text_of(page: str) -> str:
    """Return what a reader of an HTML page sees, roughly: a line a block, no scripts."""
    lower = page.lower()
    if len(lower) != len(page):  # a few letters grow when made small; places must agree
        lower = page
    said: list[str] = []
    at = 0
    while True:
        start = page.find("<", at)
        said.append(page[at:] if start < 0 else page[at:start])
        if start < 0:
            break
        if page.startswith("<!--", start):
            at = _behind(lower, "-->", start)
            continue
        named = _NAME.match(lower, start + 1)
        if named is None and lower[start + 1 : start + 2] not in ("!", "?", "/"):
            said.append("<")
            at = start + 1
            continue
        name = "" if named is None else named[1]
        at = _behind(lower, ">", start)
        if name in _SKIPPED and lower[start + 1] != "/":
            at = _behind(lower, f"</{name}", at)
            at = _behind(lower, ">", at)
        if name in _BLOCKS:
            said.append("\n")
    text = html.unescape("".join(said))
    return _LINES.sub("\n", _BLANKS.sub(" ", text)).strip()


def _behind(text: str, mark: str, at: int) -> int:
    """Return the place behind the next `mark`; the text's end where there is none, so that nothing is searched twice."""
    found = text.find(mark, at)
    return len(text) if found < 0 else found + len(mark)
