"""One tree that somebody follows: the end of its log in memory, shared by all who follow it here.

The hub (`events.py`) makes one at the first follower and drops it after the last; new events come from the hub, or are read from the store,
once for everybody. Text deltas stand between the events as they came. Who falls behind what is in memory is fed from the log again and
misses deltas; nobody waits for anybody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Protocol

from hortator.errors import Unavailable
from hortator.wire.events import ENDS, Delta, Event, encode

ITEMS = 1_024
"""Most events and deltas of a tree in memory, the newest."""
BYTES = 4 << 20
FEW_ITEMS, FEW_BYTES = 32, 64 << 10
"""The same where all trees together have more than `ALL_BYTES`."""
ALL_BYTES = 128 << 20
_OVERHEAD = 600
"""Bytes of an item besides its text, roughly."""
PAGE = 500
GRACE = 0.1
"""Seconds that an event may come after one behind it: commits in one process tell in no order."""
_EARLY = 1_000


class Log(Protocol):
    """A tenant's logs in the store; `TaskScope` is one."""

    async def events(self, root_id: str, after: int, limit: int, types: Sequence[str] | None = None) -> list[Event]:
        """At most `limit` events behind `after`, in order. Raises Unavailable."""


class Memory:
    """What all trees that are followed have in memory together."""

    def __init__(self) -> None:
        self.bytes = 0

    @property
    def items(self) -> int:
        """Most items that one tree may have now."""
        return ITEMS if self.bytes <= ALL_BYTES else FEW_ITEMS

    @property
    def share(self) -> int:
        """Most bytes that one tree may have now."""
        return BYTES if self.bytes <= ALL_BYTES else FEW_BYTES


class Followed:
    """The end of one tree's log."""

    def __init__(
        self,
        log: Log,
        tenant_id: str,
        root_id: str,
        tail: Sequence[Event],
        memory: Memory,
        missed: Callable[[], None],
    ) -> None:
        """`tail`: the last events, without a gap. `missed` is called when somebody falls behind what is in memory."""
        self.tenant_id = tenant_id
        self.root_id = root_id
        self.last = tail[-1].seq if tail else 0
        """The highest `seq` here."""
        self.followers = 0
        self.ended = False
        """The log has its last event, or is no more."""
        self._log = log
        self._memory = memory
        self._missed = missed
        self._items: deque[tuple[Event | Delta, int]] = deque()
        self._base = 0
        """Place of the first item; places only grow."""
        self._bytes = 0
        self._early: dict[int, Event] = {}
        """Events that came before one in front of them."""
        self._wakes: set[asyncio.Event] = set()
        self._reading: asyncio.Task[None] | None = None
        self._again = False
        self._pages: dict[int, asyncio.Task[list[Event]]] = {}
        for event in tail:
            self._put(event)

    @property
    def buffered(self) -> int:
        """How many events and deltas are in memory."""
        return len(self._items)

    def _put(self, item: Event | Delta) -> None:
        size = (len(encode(item)) if isinstance(item, Event) else len(item.text)) + _OVERHEAD
        self._items.append((item, size))
        self._count(size)
        if isinstance(item, Event):
            self.last = item.seq
            self.ended = self.ended or item.type in ENDS
        most, share = self._memory.items, self._memory.share
        while len(self._items) > most or (self._bytes > share and len(self._items) > 1):
            self._count(-self._items.popleft()[1])
            self._base += 1

    def _count(self, size: int) -> None:
        self._bytes += size
        self._memory.bytes += size

    def offer(self, events: Sequence[Event]) -> None:
        """Take new events, in any order, known ones too."""
        before = self.last
        for event in events:
            if event.seq > self.last and len(self._early) < _EARLY:
                self._early[event.seq] = event
        while (following := self._early.pop(self.last + 1, None)) is not None:
            self._put(following)
        if self._early:
            asyncio.get_running_loop().call_later(GRACE, self._mend, self.last)
        if self.last != before:
            self._early = {seq: event for seq, event in self._early.items() if seq > self.last}
            self._wake()

    def _mend(self, last: int) -> None:
        """Read what did not come in time."""
        if self._early and self.last == last:
            self.read()

    def say(self, delta: Delta) -> None:
        """Take a piece of text."""
        self._put(delta)
        self._wake()

    @property
    def reads(self) -> list[asyncio.Task[Any]]:
        """What is being read."""
        tasks = (self._reading, *self._pages.values())
        return [task for task in tasks if task is not None and not task.done()]

    def close(self) -> None:
        """There is nothing more: the tree is no more, or the process stops."""
        self.ended = True
        self._wake()

    def leave(self) -> None:
        """Count no longer among the trees that are followed."""
        self._memory.bytes -= self._bytes
        self._memory = Memory()

    def _wake(self) -> None:
        for wake in self._wakes:
            wake.set()

    def read(self) -> None:
        """Have what is new read from the store; one read at a time, for everybody."""
        self._again = True
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read(), name="task log")

    async def _read(self) -> None:
        while self._again and not self.ended:
            self._again = False
            try:
                found = await self._log.events(self.root_id, self.last, PAGE)
            except Unavailable:
                return  # the hub looks again soon
            self._again = self._again or len(found) == PAGE
            self.offer(found)

    async def _page(self, after: int) -> list[Event]:
        """Events that are not in memory any more; who asks for the same at once shares the answer. Raises Unavailable."""
        task = self._pages.get(after)
        if task is None:
            task = asyncio.create_task(self._log.events(self.root_id, after, PAGE))
            self._pages[after] = task
            task.add_done_callback(lambda done: (self._pages.pop(after, None), done.cancelled() or done.exception()))
        return await asyncio.shield(task)

    def _place(self, seq: int) -> int | None:
        """Where the event behind `seq` is: a place in memory, the end where it has not come yet, None where only the log has it."""
        if seq >= self.last:
            return self._base + len(self._items)
        for place, (item, _) in enumerate(self._items, self._base):
            if isinstance(item, Event):
                if item.seq > seq + 1:
                    return None
                if item.seq == seq + 1:
                    return place
        return None

    async def follow(self, after: int, deltas: bool) -> AsyncGenerator[Event | Delta, None]:
        """Everything behind `after`, then what comes, until the end. Raises Unavailable."""
        wake = asyncio.Event()
        self._wakes.add(wake)
        place: int | None = None
        try:
            while True:
                items, place = await self._next(place, after, wake)
                if items is None:
                    return
                for item in items:
                    if isinstance(item, Delta):
                        if deltas:
                            yield item
                    elif item.seq > after:
                        after = item.seq
                        yield item
                        if item.type in ENDS:
                            return
        finally:
            self._wakes.discard(wake)

    async def _next(
        self, place: int | None, after: int, wake: asyncio.Event
    ) -> tuple[Sequence[Event | Delta] | None, int | None]:
        """What is at a place in memory, or behind an event in the log, and the place behind that; nothing yet after a wake; None at the end."""
        if place is None or place < self._base:
            place = self._place(after)
        end = self._base + len(self._items)
        if place is None:
            self._missed()
            page = await self._page(after)
            return page, None if page else end
        if place < end:
            return (self._items[place - self._base][0],), place + 1
        if self.ended:
            return None, place
        wake.clear()
        await wake.wait()
        return (), place
