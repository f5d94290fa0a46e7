"""What every provider adapter looks like from dispatch: one method that sends a call, one kind of reply.

Dispatch calls `Provider.send` with a call in one of the adapter's dialects (translating is dispatch's work, by `wire/dialects.py`); an
adapter sends it through `providers/upstream.py` and hands the reply back in the same dialect. Adapters do not retry, choose or record.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from hortator.call import Call, Deployment, ProviderId
from hortator.wire.dialects import Dialect


class Reply(Protocol):
    """An upstream's answer whose head has arrived. Either `read` or `next` (with `flow`) is used, then `close`, always."""

    status: int
    headers: list[tuple[bytes, bytes]]
    """The upstream's headers, names in lower case."""

    async def read(self) -> bytes:
        """Return the whole body, in the call's dialect when `status` is 200. Raises UpstreamError."""
        ...

    async def next(self) -> bytes | None:
        """Return the next piece of the event stream (any split), `b""` when poked, None at its end. Raises UpstreamError."""
        ...

    async def flow(self, sink: Callable[[bytes], bool]) -> None:
        """Give pieces straight to `sink` for as long as it returns True; return when there is more to say than pieces.

        A way to spare a task switch a piece. An adapter that cannot do it returns at once, and `next` does everything.
        """
        ...

    def poke(self) -> None:
        """Make a waiting (or else the next) `next` return `b""` now. Used to write keep-alive comments."""
        ...

    def close(self) -> None:
        """Give the connection back if the reply was read to its end, else drop it. Never fails; may be called twice."""
        ...


class Provider(Protocol):
    """One configured provider."""

    id: ProviderId
    dialects: frozenset[Dialect]
    """Those it can be asked in."""
    extensions: bool
    """Whether a translated request may hold fields that are not of its dialect; else they are left out."""

    def send(self, call: Call, deployment: Deployment, deadline: float) -> Awaitable[Reply]:
        """Send `call`, in one of `dialects`, to `deployment` and return once the reply's head is there.

        `deadline` is in `loop.time()` seconds and covers the reply to its last byte.
        Raises UpstreamError (connect, TLS, time-outs, malformed head); an error *status* is a Reply, not an exception.
        """
        ...

    def scrub(self, text: str) -> str:
        """Return `text`, which the provider sent, without this provider's secrets."""
        ...

    async def close(self) -> None:
        """Drop every connection."""
        ...
