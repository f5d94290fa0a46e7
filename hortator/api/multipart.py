"""`multipart/form-data` as it comes: the parts of a request's body one after the other, each piece by piece, none of them whole.

The doors of `/v1/files` and of tasks use it. What it holds in memory is one message of the server and one part's head (RFC 7578, RFC 2046).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from email.message import Message

from hortator.api.reading import BODY_SECONDS, Receive
from hortator.errors import ClientGone, InvalidRequest, RequestTimeout, UnsupportedMediaType

MAX_HEAD_BYTES = 16_384
MAX_FIELD_BYTES = 4096
MAX_PARTS = 32


class Part:
    """One part. Its content must be read before the next one is asked for."""

    def __init__(self, form: Form, name: str, filename: str | None) -> None:
        self._form = form
        self.name = name
        self.filename = filename
        """None for what is no file."""

    def content(self) -> AsyncIterator[bytes]:
        """Give the content's pieces. Raises InvalidRequest, ClientGone, RequestTimeout."""
        return self._form.content()

    async def text(self) -> str:
        """Return the content of a short field. Raises InvalidRequest."""
        found = b""
        async for piece in self.content():
            found += piece
            if len(found) > MAX_FIELD_BYTES:
                raise InvalidRequest(f"'{self.name}' is too long.", code="invalid_value", param=self.name)
        return found.decode("utf-8", "replace")


class Form:
    """One request's form."""

    def __init__(self, content_type: bytes, receive: Receive, most_parts: int = MAX_PARTS) -> None:
        """Raises UnsupportedMediaType where the request holds no form, InvalidRequest where its boundary is missing."""
        head = Message()
        head["content-type"] = content_type.decode("latin-1")
        if head.get_content_type() != "multipart/form-data":
            raise UnsupportedMediaType("The body must be sent as `Content-Type: multipart/form-data`.")
        boundary = head.get_boundary()
        if not boundary or len(boundary) > 200:
            raise _malformed("it has no boundary")
        self._receive = receive
        self._most_parts = most_parts
        self._delimiter = b"\r\n--" + boundary.encode("latin-1")
        self._buffer = bytearray(b"\r\n")
        """What has come and is not read yet. The first delimiter needs no line before it: here is one."""
        self._ended = False

    async def parts(self) -> AsyncIterator[Part]:
        """Give the parts. Raises InvalidRequest, ClientGone, RequestTimeout."""
        async for piece in self.content():
            if piece.strip():
                raise _malformed("it does not start with its boundary")
        for _ in range(self._most_parts):
            while len(self._buffer) < 2:
                await self._fill()
            if self._buffer.startswith(b"--"):
                await self._discard()
                return
            yield await self._head()
        raise _malformed(f"it has more than {self._most_parts} parts")

    async def _head(self) -> Part:
        """Read the headers of a part."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise _malformed("the head of a part is too long")
            await self._fill()
        lines = bytes(self._buffer[:end]).decode("utf-8", "replace").split("\r\n")
        del self._buffer[: end + 4]
        head = Message()
        for line in lines[1:]:
            header, _, value = line.partition(":")
            if header.strip().lower() == "content-disposition":
                head["content-disposition"] = value.strip()
        name = head.get_param("name", header="content-disposition")
        if head.get_content_disposition() != "form-data" or not isinstance(name, str):
            raise _malformed("a part has no name")
        return Part(self, name, head.get_filename())

    async def content(self) -> AsyncIterator[bytes]:
        """Give what comes before the next delimiter, and take that away."""
        size = len(self._delimiter)
        while (at := self._buffer.find(self._delimiter)) < 0:
            if len(self._buffer) >= size:
                piece = bytes(self._buffer[: 1 - size])
                del self._buffer[: 1 - size]
                yield piece
            await self._fill()
        if at:
            yield bytes(self._buffer[:at])
        del self._buffer[: at + size]

    async def _fill(self) -> None:
        """Wait for more of the body."""
        if self._ended:
            raise _malformed("it ends in the middle")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                message = await self._receive()
        except TimeoutError:
            raise RequestTimeout("The body did not go on in time.") from None
        if message["type"] == "http.disconnect":
            raise ClientGone("The client hung up while it sent its request.")
        self._buffer += message.get("body", b"")
        self._ended = not message.get("more_body")

    async def _discard(self) -> None:
        """Read what follows the last part: nothing, mostly."""
        while not self._ended:
            self._buffer.clear()
            await self._fill()


def _malformed(why: str) -> InvalidRequest:
    return InvalidRequest(f"The form cannot be read: {why}.", code="invalid_form")
