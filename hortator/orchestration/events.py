"""The hub: views of trees' logs in this process, woken by whoever writes, here or in another process.

`TaskScope`s made by `scope` tell it of events and ends after their commit; agents `say` pieces of an answer. Doors `follow`, parents
`wait`, workers hear who was cancelled. What is told here is a hint: the table is the truth, and one small read every two seconds finds
what a hint did not bring. On Postgres hints go to the other processes, gathered for 20 ms, text for 80 ms, so that they cost writers nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec
from msgspec import Struct

from hortator.call import TenantId
from hortator.errors import Unavailable
from hortator.orchestration.followed import Followed, Memory
from hortator.store.database import Database
from hortator.store.notices import LONGEST, Notices
from hortator.store.task_rows import text
from hortator.store.tasks import Task, TaskScope, cancelled_since, states
from hortator.wire.events import ENDS, Delta, Event
from hortator.wire.tasks import TERMINAL

log = logging.getLogger("hortator.orchestration")

RECHECK = 2.0
"""Seconds between two looks at what is followed and waited for."""
GATHER = 0.02
"""Seconds for which hints are gathered before other processes get them."""
GATHER_TEXT = 0.08
_TEXT = 1_000
"""Characters of a delta that goes to another process; six bytes each at most."""
_UNSENT = 10_000
"""Most hints, and most pieces of text, that wait to be sent; more are dropped, the oldest first."""

_LAST = ENDS | {"agent_cancelled", "agent_failed"}
"""Types that tell that a task may have ended: whoever waits for it looks."""

OnCancel = Callable[[Sequence[str]], None]


class Word(Struct, frozen=True, omit_defaults=True):
    """What one process says to the others. One letter a field: a payload is small."""

    p: str
    """Who says it."""
    r: list[str] = []
    """Roots whose log has grown."""
    e: list[str] = []
    """Tasks that have ended."""
    c: list[str] = []
    """Those of them that were cancelled."""
    d: list[Delta] = []


class Gauges(NamedTuple):
    """What metrics show."""

    followers: int
    trees: int
    """That are followed."""
    buffered: int
    """Events and deltas in memory."""
    behind: int
    """How often, since the start, a follower was fed from the log because it fell behind what is in memory, or began before it."""
    waiting: int
    reads: int
    """How often, since the start, the store was read for followers and for who waits, all together."""
    bytes: int
    """Of memory, roughly, that the events and deltas take."""


class _Counted:
    """A log whose reads are counted."""

    def __init__(self, scope: TaskScope, count: Callable[[], None]) -> None:
        self._scope = scope
        self._count = count

    async def events(self, root_id: str, after: int, limit: int, types: Sequence[str] | None = None) -> list[Event]:
        self._count()
        return await self._scope.events(root_id, after, limit, types)


class Hub:
    """One per process."""

    def __init__(
        self,
        database: Database,
        notices: Notices | None = None,
        counted: Callable[[TenantId, Sequence[Event]], None] | None = None,
    ) -> None:
        """`notices`: None where no other process shares the database (SQLite). `counted` is given what this process writes; it must not raise."""
        self._database = database
        self._notices = notices
        self._counted = counted
        self._process = uuid4().hex[:12]
        self._followed: dict[str, Followed] = {}
        self._memory = Memory()
        self._opening: dict[tuple[TenantId, str], asyncio.Task[Followed | None]] = {}
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._on_cancel: list[OnCancel] = []
        self._reads: set[asyncio.Task[Any]] = set()
        """Of trees that were dropped meanwhile."""
        self._behind = 0
        self._looked = 0
        self._grown: dict[str, None] = {}
        self._ends: dict[str, None] = {}
        self._cancelled: dict[str, None] = {}
        self._texts: list[Delta] = []
        self._hinted = asyncio.Event()
        self._texted = asyncio.Event()
        self._heard_at = datetime.now(UTC)
        self._tasks: list[asyncio.Task[None]] = []
        self._decoder = msgspec.json.Decoder(Word)

    async def start(self) -> None:
        """Begin to hear other processes, and to look again."""
        self._tasks.append(asyncio.create_task(self._look(), name="hub recheck"))
        if self._notices is not None:
            self._tasks.append(asyncio.create_task(self._send_hints(), name="hub hints"))
            self._tasks.append(asyncio.create_task(self._send_texts(), name="hub text"))
            await self._notices.start(self._heard, self._listening)

    async def stop(self) -> None:
        """End every follower."""
        for task in (*self._tasks, *self._opening.values()):
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks.clear()
        for tree in list(self._followed.values()):
            self._drop(tree)
        await asyncio.gather(*self._reads, return_exceptions=True)
        if self._notices is not None:
            await self._notices.stop()

    def scope(self, tenant_id: TenantId) -> TaskScope:
        """The tasks of a tenant, whose changes are told here."""
        return TaskScope(self._database, tenant_id, self.told, self.ended)

    # What is told in this process.

    def told(self, tenant_id: TenantId, events: Sequence[Event]) -> None:
        """Take new events, after their commit."""
        if self._counted is not None:
            self._counted(tenant_id, events)
        grown: dict[str, list[Event]] = {}
        for event in events:
            grown.setdefault(event.task_id, []).append(event)
        for root_id, new in grown.items():
            tree = self._followed.get(root_id)
            if tree is not None:
                tree.offer(new)
        self._wake(each.agent_id or each.task_id for each in events if each.type in _LAST)
        cancelled = [each.agent_id or each.task_id for each in events if each.type in ("agent_cancelled", "cancelled")]
        if cancelled:
            self._tell_cancelled(cancelled)
        if self._notices is not None:
            self._hint(self._grown, grown)
            self._hint(self._cancelled, cancelled)

    def ended(self, tenant_id: TenantId, ids: Sequence[str]) -> None:
        """Take ids of tasks that have ended, after the commit."""
        self._wake(ids)
        if self._notices is not None:
            self._hint(self._ends, ids)

    def say(self, delta: Delta) -> None:
        """Show a piece of text to whoever follows its tree, here and elsewhere."""
        fit = text(delta.text)  # a provider may cut a character in two
        if fit != delta.text:
            delta = msgspec.structs.replace(delta, text=fit)
        tree = self._followed.get(delta.task_id)
        if tree is not None:
            tree.say(delta)
        if self._notices is not None and len(self._texts) < _UNSENT:
            self._texts.append(delta)
            self._texted.set()

    def on_cancel(self, callback: OnCancel) -> None:
        """Have `callback` called with ids of tasks that were cancelled, by any process. It must not raise; it may hear of one twice."""
        self._on_cancel.append(callback)

    def _tell_cancelled(self, ids: Sequence[str]) -> None:
        for callback in self._on_cancel:
            callback(ids)

    def _wake(self, ids: Iterable[str]) -> None:
        for id in ids:
            for waiting in self._waiting.get(id, ()):
                waiting.set()

    # Who follows and waits.

    async def follow(
        self, tenant_id: TenantId, root_id: str, after: int = 0, deltas: bool = False
    ) -> AsyncGenerator[Event | Delta, None]:
        """The log behind `after`, then live, until the event that ends the tree; nothing where the tenant has no such tree.

        Ends early when the tree is deleted or the process stops. Raises Unavailable.
        """
        while True:
            tree = await self._open(tenant_id, root_id)
            if tree is None:
                return
            if self._followed.get(root_id) is tree:  # else its last follower left before this one woke
                break
        tree.followers += 1
        try:
            async with contextlib.aclosing(tree.follow(after, deltas)) as items:
                async for item in items:
                    yield item
        finally:
            tree.followers -= 1
            if not tree.followers and self._followed.get(root_id) is tree:
                self._drop(tree)

    def _drop(self, tree: Followed) -> None:
        """Forget a tree that nobody follows; what it is reading comes to its end."""
        del self._followed[tree.root_id]
        tree.close()
        tree.leave()
        for task in tree.reads:
            self._reads.add(task)
            task.add_done_callback(self._reads.discard)

    async def _open(self, tenant_id: TenantId, root_id: str) -> Followed | None:
        """The tree's log in memory, read once for all who come at the same time."""
        tree = self._followed.get(root_id)
        if tree is not None:
            return tree if tree.tenant_id == tenant_id else None
        key = tenant_id, root_id
        opening = self._opening.get(key)
        if opening is None:
            opening = asyncio.create_task(self._load(tenant_id, root_id), name="follow")
            self._opening[key] = opening
            opening.add_done_callback(lambda done: (self._opening.pop(key, None), done.cancelled() or done.exception()))
        return await asyncio.shield(opening)

    async def _load(self, tenant_id: TenantId, root_id: str) -> Followed | None:
        scope = self.scope(tenant_id)
        tail = await scope.tail(root_id, self._memory.items)
        if not tail:
            root = await scope.find(root_id)
            if root is None or root.id != root.root_id:
                return None
        counted = _Counted(scope, self._read_once)
        tree = Followed(counted, tenant_id, root_id, tail, self._memory, self._fell_behind)
        self._followed[root_id] = tree
        tree.read()  # what was told between the two
        return tree

    def _fell_behind(self) -> None:
        self._behind += 1

    async def wait(self, tenant_id: TenantId, task_id: str, timeout: float | None = None) -> Task | None:
        """The task once it has ended, or as it is after `timeout` seconds; None where the tenant has no such task. Raises Unavailable."""
        scope = self.scope(tenant_id)
        over = asyncio.Event()
        self._waiting.setdefault(task_id, set()).add(over)
        until = None if timeout is None else asyncio.get_running_loop().time() + timeout
        late = False
        try:
            while True:
                over.clear()
                task = await scope.find(task_id)
                if task is None or task.status in TERMINAL or late:
                    return task
                try:
                    async with asyncio.timeout_at(until):  # around no read: one that is cancelled costs its connection
                        await over.wait()
                except TimeoutError:
                    late = True
        finally:
            waiting = self._waiting[task_id]
            waiting.discard(over)
            if not waiting:
                del self._waiting[task_id]

    def gauges(self) -> Gauges:
        """What metrics show."""
        trees = self._followed.values()
        followers = sum(tree.followers for tree in trees)
        waiting = sum(map(len, self._waiting.values()))
        buffered = sum(tree.buffered for tree in trees)
        return Gauges(followers, len(trees), buffered, self._behind, waiting, self._looked, self._memory.bytes)

    def _read_once(self) -> None:
        self._looked += 1

    # What no hint brought.

    async def _look(self) -> None:
        """Look again, as long as somebody follows or waits."""
        while True:
            await asyncio.sleep(RECHECK)
            if self._notices is not None and self._notices.connected:
                self._heard_at = datetime.now(UTC)
            with contextlib.suppress(Unavailable):
                await self._recheck()

    async def _recheck(self) -> None:
        """One read for all that is followed or waited for. Raises Unavailable."""
        for tree in list(self._followed.values()):
            if not tree.followers:  # who opened it left before it was there
                self._drop(tree)
        trees = dict(self._followed)
        ids = list({*trees, *self._waiting})
        if not ids:
            return
        self._read_once()
        found = await states(self._database, ids)
        for root_id, tree in trees.items():
            state = found.get(root_id)
            if state is None:
                tree.close()
            elif state.last_seq > tree.last:
                tree.read()
        self._wake(id for id in ids if id not in found or found[id].status in TERMINAL)

    # Other processes.

    def _hint(self, unsent: dict[str, None], ids: Iterable[str]) -> None:
        for id in ids:
            unsent[id] = None
        while len(unsent) > _UNSENT:
            del unsent[next(iter(unsent))]
        if unsent:
            self._hinted.set()

    async def _send_hints(self) -> None:
        while True:
            await self._hinted.wait()
            await asyncio.sleep(GATHER)
            self._hinted.clear()
            grown, ends, cancelled = list(self._grown), list(self._ends), list(self._cancelled)
            for unsent in (self._grown, self._ends, self._cancelled):
                unsent.clear()
            if not await self._send(self._words(grown, ends, cancelled)):
                for unsent, ids in ((self._grown, grown), (self._ends, ends), (self._cancelled, cancelled)):
                    self._hint(unsent, ids)
                await asyncio.sleep(1.0)

    def _words(self, grown: Sequence[str], ends: Sequence[str], cancelled: Sequence[str]) -> list[Word]:
        """Fifty ids of each kind a word: 150 are 6 kB."""
        longest = max(map(len, (grown, ends, cancelled)))
        parts = (slice(start, start + 50) for start in range(0, longest, 50))
        return [Word(self._process, [*grown[at]], [*ends[at]], [*cancelled[at]]) for at in parts]

    async def _send_texts(self) -> None:
        while True:
            await self._texted.wait()
            await asyncio.sleep(GATHER_TEXT)
            self._texted.clear()
            texts, self._texts = self._texts, []
            await self._send(Word(self._process, d=part) for part in _packed(texts))

    async def _send(self, words: Iterable[Word]) -> bool:
        if self._notices is None:
            return True
        return await self._notices.send([msgspec.json.encode(word).decode() for word in words])

    def _heard(self, payload: str) -> None:
        """Take what another process says."""
        try:
            word = self._decoder.decode(payload)
        except msgspec.MsgspecError:
            log.warning("another process says what this release does not understand")
            return
        if word.p == self._process:
            return
        for root_id in word.r:
            tree = self._followed.get(root_id)
            if tree is not None:
                tree.read()
        for delta in word.d:
            tree = self._followed.get(delta.task_id)
            if tree is not None:
                tree.say(delta)
        self._wake(word.e)
        if word.c:
            self._tell_cancelled(word.c)

    def _listening(self) -> None:
        """Words may have been missed: look at everything once."""
        self._tasks = [task for task in self._tasks if not task.done()]
        self._tasks.append(asyncio.create_task(self._catch_up(), name="hub catch up"))

    async def _catch_up(self) -> None:
        since = self._heard_at - timedelta(seconds=10)
        with contextlib.suppress(Unavailable):
            self._read_once()
            cancelled = await cancelled_since(self._database, since)
            if cancelled:
                self._tell_cancelled(cancelled)
            await self._recheck()


def _packed(deltas: Sequence[Delta]) -> list[list[Delta]]:
    """Deltas in lists that fit a payload, neighbours joined."""
    pieces: list[Delta] = []
    open_: dict[tuple[str, int], int] = {}
    for delta in deltas:
        place = open_.get((delta.task_id, delta.run))
        before = pieces[place] if place is not None else None
        if before is not None and before.offset + len(before.text) == delta.offset:
            pieces[place or 0] = msgspec.structs.replace(before, text=before.text + delta.text)
        else:
            open_[delta.task_id, delta.run] = len(pieces)
            pieces.append(delta)
    parts: list[list[Delta]] = []
    room = 0
    for piece in pieces:
        for start in range(0, len(piece.text), _TEXT):
            part = msgspec.structs.replace(piece, offset=piece.offset + start, text=piece.text[start : start + _TEXT])
            size = len(msgspec.json.encode(part)) + 1
            if not parts or size > room:
                parts.append([])
                room = LONGEST - 100
            parts[-1].append(part)
            room -= size
    return parts
