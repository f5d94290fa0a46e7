"""A form comes out of its bytes the same, in whatever pieces those come."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import MutableMapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hortator.api.multipart import Form

BOUNDARY = "--x"
CONTENT = st.lists(
    st.sampled_from([b"\r\n", b"--", b"--x", b"\r\n--", b"\r", b"\n", b"-", b"a", b"\0", b"\r\n----"])
).map(b"".join)


def encoded(parts: list[tuple[str, bytes]]) -> bytes:
    """A form, as RFC 7578 has it."""
    body = b""
    for name, content in parts:
        body += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + content + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


async def decoded(body: bytes, cuts: list[int]) -> list[tuple[str, bytes]]:
    """What the reader makes of a body that comes in pieces."""
    places = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    messages: list[MutableMapping[str, Any]] = [
        {"type": "http.request", "body": body[start:end], "more_body": end < len(body)}
        for start, end in itertools.pairwise(places)
    ]

    async def receive() -> MutableMapping[str, Any]:
        return messages.pop(0)

    form = Form(f'multipart/form-data; boundary="{BOUNDARY}"'.encode(), receive)
    found = []
    async for part in form.parts():
        found.append((part.name, b"".join([piece async for piece in part.content()])))
    assert messages == [], "the whole body is read"
    return found


@given(
    st.lists(st.tuples(st.sampled_from(["file", "purpose"]), CONTENT), max_size=5),
    st.lists(st.integers(0, 10_000), max_size=30),
)
def test_parts_survive_any_cut(parts: list[tuple[str, bytes]], cuts: list[int]) -> None:
    fair = [(name, content) for name, content in parts if b"\r\n--" + BOUNDARY.encode() not in b"\r\n" + content]
    assert asyncio.run(decoded(encoded(fair), cuts)) == fair


def test_parts_survive_every_byte_alone() -> None:
    parts = [("purpose", b"batch"), ("file", b"a\r\n--\r\n----\r\n"), ("empty", b"")]
    body = encoded(parts)
    assert asyncio.run(decoded(body, list(range(len(body))))) == parts
