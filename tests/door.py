"""A client for the public door that shows every byte: one connection, requests as they are given, replies as they came.

Fault tests and journeys use it where an SDK would hide what is being tested: framing, headers, comments, split chunks, the
number of replies. It speaks just enough HTTP/1.1 to read what the gateway sends, and fails on anything it does not expect.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

PATIENCE = 30.0
"""Seconds a read may take before the test fails."""
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Reply:
    """One reply, or only its head when the body is read as a stream."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """The value of a header that may come once at most."""
        found = [value for key, value in self.headers if key == name]
        assert len(found) <= 1, f"{name} came {len(found)} times"
        return found[0] if found else None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object; fails unless it is exactly the OpenAI envelope (C-4)."""
        assert self.header("content-type") == "application/json", self
        return envelope(self.json)

    @property
    def text(self) -> str:
        """The first choice's content."""
        content: str = self.json["choices"][0]["message"]["content"]
        return content


def envelope(document: Any) -> dict[str, Any]:
    """Check the OpenAI error envelope and return the object in it."""
    assert list(document) == ["error"], document
    error: dict[str, Any] = document["error"]
    assert set(error) - {"attempts"} == {"message", "type", "param", "code"}, error
    for attempt in error.get("attempts", ()):
        assert set(attempt) == {"model", "status", "code"}, error
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert isinstance(error["code"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    return error


def head(method: str, path: str, headers: Mapping[str, str]) -> bytes:
    """A request's head."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Connection:
    """One connection to the door."""

    def __init__(self, port: int, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            self.socket.connect(("127.0.0.1", port))
        except BaseException:
            self.socket.close()
            raise
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes; a server that has already answered and closed is no failure of the sender."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def read_head(self) -> Reply:
        """Read a status line and headers; interim replies are skipped."""
        while True:
            line = self.file.readline()
            assert line.endswith(b"\r\n"), f"no status line but {line!r}"
            version, status, *_ = line.decode("latin-1").split(" ")
            assert version == "HTTP/1.1", line
            headers = []
            while (line := self.file.readline()) != b"\r\n":
                assert line.endswith(b"\r\n"), f"the head was cut at {line!r}"
                name, _, value = line.decode("latin-1").rstrip("\r\n").partition(":")
                headers.append((name.lower(), value.strip()))
            if int(status) >= 200:
                return Reply(int(status), headers)

    def read(self, method: str = "POST") -> Reply:
        """Read one whole reply."""
        reply = self.read_head()
        if method == "HEAD" or reply.status in (204, 304):
            return reply
        if reply.header("transfer-encoding") == "chunked":
            return Reply(reply.status, reply.headers, b"".join(self.chunks()))
        length = reply.header("content-length")
        assert length is not None, f"a reply of unknown length: {reply}"
        body = self.file.read(int(length))
        assert len(body) == int(length), f"the body was cut: {body!r}"
        return Reply(reply.status, reply.headers, body)

    def chunks(self) -> Iterator[bytes]:
        """The pieces of a chunked body as they come; fails when the body is cut before its end."""
        while size := int(self.line().split(b";")[0], 16):
            data = self.file.read(size)
            assert len(data) == size, f"a chunk was cut: {data!r}"
            yield data
            assert self.line() == b""
        assert self.line() == b""

    def line(self) -> bytes:
        line = self.file.readline()
        assert line.endswith(b"\r\n"), f"the chunked body was cut at {line!r}"
        return line[:-2]

    def blocks(self) -> Iterator[str]:
        """The blocks of an event stream (comments and events), without their blank lines."""
        rest = b""
        for data in self.chunks():
            rest += data
            while b"\n\n" in rest:
                block, _, rest = rest.partition(b"\n\n")
                yield block.decode()
        assert rest == b"", f"the stream ended in the middle of {rest!r}"

    def at_end(self) -> bool:
        """Whether the server has closed the connection and sent nothing more."""
        try:
            return self.file.read(1) == b""
        except ConnectionResetError:
            return True


def events(blocks: Iterator[str]) -> Iterator[Any]:
    """The data of each event: JSON decoded, `[DONE]` as it is; comments are skipped, anything else fails."""
    for block in blocks:
        if block.startswith(":"):
            continue
        name, _, data = block.partition(": ")
        assert name == "data", f"neither data nor comment: {block!r}"
        assert "\n" not in block, f"an event of more than one line: {block!r}"
        yield data if data == "[DONE]" else json.loads(data)


class Door:
    """The public door of one gateway, as one key sees it."""

    def __init__(self, port: int, key: str, prefix: str = "") -> None:
        self.port = port
        self.key = key
        self.prefix = prefix

    def headers(self, body: bytes | None, changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
        """The headers of an ordinary request; a change to None takes one out."""
        ordinary: dict[str, str | None] = {"host": f"127.0.0.1:{self.port}", "authorization": f"Bearer {self.key}"}
        if body is not None:
            ordinary |= {"content-type": "application/json", "content-length": str(len(body))}
        return {name: value for name, value in {**ordinary, **(changes or {})}.items() if value is not None}

    def raw(self, body: bytes, headers: Mapping[str, str | None] | None = None, path: str = CHAT) -> bytes:
        """The bytes of a POST."""
        return head("POST", self.prefix + path, self.headers(body, headers)) + body

    def exchange(self, raw: bytes, method: str = "POST") -> Reply:
        """Send these bytes; return the reply after showing that it is the only one and that the connection is sane after it.

        The server either closes without another byte, or answers one more request on the same connection.
        """
        with Connection(self.port) as connection:
            connection.send(raw)
            reply = connection.read(method)
            if reply.header("connection") == "close":
                assert connection.at_end(), f"something follows {reply}"
                return reply
            connection.send(head("GET", self.prefix + "/health", {"host": "test", "connection": "close"}))
            second = connection.read("GET")
            assert second.status == 200, f"{reply} was followed by {second}"
            assert connection.at_end(), f"something follows {second}"
            return reply

    def call(self, method: str, path: str, body: bytes | None = None, **headers: str | None) -> Reply:
        """Make one ordinary request. Header names are given with underscores."""
        changes = {name.replace("_", "-"): value for name, value in headers.items()}
        raw = head(method, self.prefix + path, self.headers(body, changes)) + (body or b"")
        return self.exchange(raw, method)

    def post(self, document: Any, **headers: str | None) -> Reply:
        """Ask for a chat completion: `document` is JSON data or the body's own bytes."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return self.call("POST", CHAT, body, **headers)

    def chat(self, model: str, mark: str, **parameters: Any) -> Reply:
        """Ask `model` for a completion that the scripted upstream knows by its mark."""
        return self.post(chat(model, mark, **parameters))

    def begin(self, document: Any, receive_buffer: int | None = None, **headers: str | None) -> Connection:
        """Send a chat completion request and leave the reply to be read."""
        connection = Connection(self.port, receive_buffer)
        changes = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.send(self.raw(json.dumps(document).encode(), changes))
        return connection

    def stream(self, model: str, mark: str, **parameters: Any) -> tuple[Reply, list[str]]:
        """Ask for a stream and read it to its end: the head, and every block. An error reply has no blocks but a body."""
        with self.begin(chat(model, mark, stream=True, **parameters)) as connection:
            reply = connection.read_head()
            if not (reply.header("content-type") or "").startswith("text/event-stream"):
                length = int(reply.header("content-length") or 0)
                return Reply(reply.status, reply.headers, connection.file.read(length)), []
            return reply, list(connection.blocks())


def chat(model: str, mark: str, **parameters: Any) -> dict[str, Any]:
    """A small chat completion request."""
    return {"model": model, "user": mark, "messages": [{"role": "user", "content": "Salve!"}], **parameters}


def content_of(found: list[Any]) -> str:
    """The text that the chunks of a stream add up to."""
    return "".join(
        choice["delta"].get("content") or ""
        for chunk in found
        if isinstance(chunk, dict)
        for choice in chunk.get("choices", ())
    )
