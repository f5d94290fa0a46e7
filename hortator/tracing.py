"""The trace of one request in the making: its ids, when it entered each room, and when each attempt began.

A door asks the ledger's `Tracer` for one, if traces are on; the gateway and dispatch note times in it, adapters send its header
upstream, and the tracer turns it into spans when the request is over. It holds no content, and nothing here does I/O.
"""

from __future__ import annotations

import re
import time
from random import Random
from typing import Literal, NamedTuple

Room = Literal["admit", "route", "reserve", "dispatch", "record"]

_PARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]([0-9a-f])(?:-[0-9a-z-]*)?").fullmatch


class Parent(NamedTuple):
    """What a `traceparent` header says."""

    trace_id: int
    span_id: int
    sampled: bool


class AttemptBegun(NamedTuple):
    """One try at a deployment."""

    deployment: str
    span_id: int
    at: float


class Tracing:
    """Times are `time.monotonic()` seconds; `offset` makes Unix time of them."""

    __slots__ = ("_header", "attempts", "offset", "parent_id", "rooms", "sampled", "span_id", "trace_id")

    def __init__(
        self, parent: Parent | None, header: bytes | None, ratio: float, random: Random, started: float
    ) -> None:
        """`header` is the client's own, which `parent` was read from. Without a parent, `ratio` of all requests are sampled."""
        self.sampled = random.random() < ratio if parent is None else parent.sampled
        self._header = None if parent is None else header
        self.attempts: list[AttemptBegun] = []
        self.rooms: list[tuple[Room, float]] = [("admit", started)]
        if not self.sampled:
            return
        self.offset = time.time() - time.monotonic()
        self.trace_id = random.getrandbits(128) or 1 if parent is None else parent.trace_id
        self.parent_id = None if parent is None else parent.span_id
        self.span_id = random.getrandbits(64) or 1

    def enter(self, room: Room) -> None:
        """The request enters a room, and so leaves the one before."""
        self.rooms.append((room, time.monotonic()))

    def attempt(self, deployment: str, now: float) -> None:
        """A try at a deployment begins."""
        if self.sampled:
            # The id need not be random again: within a trace it has to differ, and the number of the attempt sees to that.
            span_id = (self.span_id + len(self.attempts) + 1) % 2**64 or 1
            self.attempts.append(AttemptBegun(deployment, span_id, now))

    def header(self, deployment: str) -> bytes:
        """Return the `traceparent` line of the last try at a deployment; what the client sent, if this request is not sampled."""
        if not self.sampled:
            return b"" if self._header is None else b"traceparent: %b\r\n" % self._header
        begun = next((each for each in reversed(self.attempts) if each.deployment == deployment), None)
        span_id = self.span_id if begun is None else begun.span_id
        return b"traceparent: 00-%032x-%016x-01\r\n" % (self.trace_id, span_id)


def parent_of(header: bytes | None) -> Parent | None:
    """Read a `traceparent` header; one that breaks the W3C's rules is as good as none."""
    found = None if header is None else _PARENT(header)
    if found is None:
        return None
    trace_id, span_id = int(found[1], 16), int(found[2], 16)
    return Parent(trace_id, span_id, bool(int(found[3], 16) & 1)) if trace_id and span_id else None
