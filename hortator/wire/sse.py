"""Server-sent events, reading side: bytes as the network split them in, whole events out.

Dispatch feeds every piece of an upstream's stream through `EventSplitter`; what it returns are the payloads of `data:` lines.
Comments, event names, ids and retry hints are dropped: no dialect here needs them, as events say their kind in their data.
"""

from __future__ import annotations

from hortator.errors import InvalidReply

MAX_EVENT_BYTES = 16 * 1024 * 1024
"""One event may not be larger: an endless line must not fill the memory."""


_CR, _LF = 13, 10
"""`byte in data` with a number is a memchr; with a bytes object CPython first raises and drops a TypeError."""


class EventSplitter:
    """Re-assembles events that the network cut anywhere, also inside a UTF-8 character or a line end."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the payloads of the events that `data` completes. Raises InvalidReply for an oversized event."""
        if self._rest:
            data = self._rest + data
        if _CR in data:
            data = _unix_line_ends(data)
        *events, self._rest = data.split(b"\n\n")
        if len(self._rest) > MAX_EVENT_BYTES:
            raise InvalidReply("The provider sent an event that is too large.")
        payloads = []
        for event in events:
            if event.startswith(b"data: ") and _LF not in event:
                payloads.append(event[6:])
            else:
                payload = _payload(event)
                if payload is not None:
                    payloads.append(payload)
        return payloads

    def end(self) -> bytes | None:
        """Return the payload of a last event that lacks its blank line, None if there is none."""
        rest, self._rest = self._rest, b""
        return _payload(rest.replace(b"\r", b"\n"))


def _unix_line_ends(data: bytes) -> bytes:
    """Turn CRLF and CR into LF; a CR at the very end stays, because its LF may be in the next piece."""
    held = b"\r" if data.endswith(b"\r") else b""
    return data[: len(data) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + held


def _payload(event: bytes) -> bytes | None:
    """Return the joined `data:` lines of one event, None when it has none (a comment, a bare name)."""
    lines = []
    for line in event.split(b"\n"):
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines) if lines else None
