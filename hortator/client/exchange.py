"""HTTP/1.1 as a client speaks it, as data: a request in bytes, and a reply put together from bytes as they come.

Both transports (`connection.py`, `async_connection.py`) do the I/O around it. One `Exchange` is one request and its reply; whether
the connection may carry another is its answer at the end.
"""

from __future__ import annotations

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from hortator import __version__
from hortator.client.errors import HortatorConnectionError
from hortator.client.request import Address, Request

USER_AGENT = f"hortator-python/{__version__}"
MAX_HEAD_BYTES = 256 * 1024
MAX_WHOLE_BYTES = 256 * 1024 * 1024
"""What a reply that is read at once may have; files come in pieces and may be larger."""


def encode(request: Request, address: Address, api_key: str) -> bytes:
    """Return the request's head. Raises ValueError for what cannot stand in one."""
    headers = {
        "Host": address.authority,
        "User-Agent": USER_AGENT,
        "Accept": "*/*",
        "Authorization": f"Bearer {api_key}",
        **request.headers,
    }
    if request.method != "GET" or request.body:
        headers["Content-Length"] = str(len(request.body))
    lines = [f"{request.method} {address.prefix}{request.target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if any("\r" in line or "\n" in line or "\0" in line for line in lines):
        raise ValueError("a header must not hold line breaks")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


class Exchange:
    """One reply. `status` is 0 until its head is there."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        """Names in small letters."""
        self.complete = False
        self.reusable = False
        """Complete, and the connection is good for another request."""
        self._pieces: list[bytes] = []
        self._head_bytes = 0
        self._parser = HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Take bytes from the network. Raises HortatorConnectionError for what is not HTTP."""
        if self.complete:
            self.reusable = False
            return
        if not self.status:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            raise HortatorConnectionError("what answered does not speak HTTP/1.1") from None
        if not self.status and self._head_bytes > MAX_HEAD_BYTES:
            raise HortatorConnectionError("the head of the reply is too long")

    def end(self) -> None:
        """The server closed the connection. Raises HortatorConnectionError where the reply was not complete."""
        if self.complete:
            return
        if not self.status:
            raise HortatorConnectionError("the server closed the connection without an answer")
        if "content-length" in self.headers or "transfer-encoding" in self.headers:
            raise HortatorConnectionError("the connection broke in the middle of the reply")
        self.complete = True

    def take(self) -> bytes:
        """Return what came of the body since the last time."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)

    # httptools calls these.
    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The head is there."""
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        """The reply is whole."""
        self.complete = True
        self.reusable = self._parser.should_keep_alive()
