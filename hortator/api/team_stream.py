"""The answer of a team as a stream, in its client's dialect: the text as it is written, and what happens before it where the client asks.

`team_chat.py` makes one for each streamed chat with a team. It follows the tree (`orchestration/teams.py`): text comes as deltas, which may be lost,
and whole with the tree's result, so that what was not streamed is said at the end. Never says what agents do as content (C-18).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import NamedTuple

import uuid_utils

from hortator.api.inference import EVENT_STREAM, Exchange, Manner, Seen
from hortator.api.reading import HangUp, where
from hortator.call import Call, Caller
from hortator.dispatch import Trace
from hortator.errors import HortatorError, RateLimited, TaskEnded
from hortator.orchestration.teams import Order, Teams
from hortator.store.tasks import Task
from hortator.wire import dialects
from hortator.wire.chat_stream import KEEP_ALIVE, OPENING
from hortator.wire.dialects import Asked
from hortator.wire.events import ENDS, Delta, Event, Level, shown
from hortator.wire.team_chat import Bound, Chunks, FinishReason, Tokens

ABANDON_SECONDS = 10.0
"""How long a tree whose client is gone is waited for until it can be cancelled."""
_LEVELS: dict[bytes, Level] = {b"verbose": "verbose", b"full": "full"}

log = logging.getLogger(__name__)


class Ending(NamedTuple):
    """How a tree ended that has an answer."""

    text: str
    """Empty where a bound was reached before anything was achieved."""
    reason: FinishReason
    tokens: Tokens
    bound: Bound | None = None
    """Which bound ended it early."""


def outcome(task: Task, told: str = "") -> Ending:
    """Return the answer of a tree that has ended (C-21). `told`: what its client has of it.

    Raises TaskEnded where there is none, RateLimited where a limit of the key left it none.
    """
    tokens = Tokens(task.input_tokens, task.output_tokens)
    results = task.results or {}
    said = results.get("content") or results.get("summary") or ""
    text = said if isinstance(said, str) else ""
    if task.status == "Completed":
        return Ending(text, "stop", tokens)
    error = task.error or {}
    why = error.get("message") or task.message
    if task.status in _BOUNDS:
        code, what = _BOUNDS[task.status]
        return Ending(text or told, "length", tokens, Bound(code, str(why or what)))
    code, what = _FAILURES.get(task.status, ("task_failed", "failed"))
    own = error.get("code")
    ended: HortatorError
    if own in LIMIT_CODES:
        ended = RateLimited(str(why), code=own)
    else:
        also = f" ({own})" if own and own != code else ""
        ended = TaskEnded(f"The team {what}{f': {why}' if why else '.'}{also}", code=code)
    ended.headers = ((b"x-should-retry", b"false"),)
    raise ended


_FAILURES = {"Failed": ("task_failed", "failed"), "Cancelled": ("task_cancelled", "was cancelled")}
LIMIT_CODES = ("rate_limit_exceeded", "token_limit_exceeded", "budget_exceeded", "too_many_concurrent_requests")
"""What a key's own limits say; its holder is told as of any other call (R-000-71)."""
_BOUNDS = {
    "BudgetExceeded": ("task_budget_exceeded", "The budget is used up."),
    "TimedOut": ("task_timed_out", "The time ran out."),
}
"""Phase -> code, and what happened, in words."""


async def abandon(teams: Teams, caller: Caller, submitting: asyncio.Future[Task]) -> None:
    """Cancel a tree whose client is gone, also where it is still being submitted."""
    try:
        async with asyncio.timeout(ABANDON_SECONDS):
            task = await asyncio.shield(submitting)
            await teams.cancel(caller, task.id)
    except (HortatorError, TimeoutError) as error:
        log.warning("a tree whose client is gone was not cancelled: %s", where(error))


class Written:
    """The answer's text as far as the client has it. Deltas of one run that follow each other are told at once; the rest waits for the result."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._length = 0
        self._run: int | None = None
        self._broken = False

    @property
    def text(self) -> str:
        """What the client has."""
        return "".join(self._pieces)

    def take(self, delta: Delta) -> str:
        """Return what of a delta the client is told now."""
        if delta.run != self._run and not self._length:
            self._run, self._broken = delta.run, False
        if delta.run != self._run or self._broken or delta.offset > self._length:
            self._broken = True
            return ""
        return self._add(delta.text[self._length - delta.offset :])

    def rest(self, whole: str) -> str | None:
        """Return what of the whole text is still to be told; None when what was told is not its beginning."""
        told = self.text
        for begun in (told, told.lstrip(), told.strip()):
            if whole.startswith(begun):
                return self._add(whole[len(begun) :])
            if begun.startswith(whole) and not begun[len(whole) :].strip():
                return ""
        return None

    def _add(self, text: str) -> str:
        self._pieces.append(text)
        self._length += len(text)
        return text


class TeamStream:
    """One streamed answer of a team."""

    def __init__(
        self,
        teams: Teams,
        exchange: Exchange,
        caller: Caller,
        call: Call,
        trace: Trace,
        manner: Manner,
        seen: Seen | None,
    ) -> None:
        self._teams = teams
        self._exchange = exchange
        self._caller = caller
        self._call = call
        self._trace = trace
        self._manner = manner
        self._seen = seen
        self._level = _LEVELS.get(exchange.headers.get(b"x-hortator-verbosity", b""), "default")
        about = Asked(call.body, call.id, call.received_at, call.wants_usage)
        self._reader = dialects.reader(call.operation, "chat", about)
        self._opened = False

    async def run(self, order: Order, status_wait: float, keep_alive: float, *, reasoning: bool) -> None:
        """Have an order worked on, and stream its answer. `status_wait`, `keep_alive`: seconds. Where taking the order needs longer
        than `status_wait`, the stream opens with a comment (C-17).

        Raises what is wrong before the status line has gone out; a failure after it is an error event. A client that hangs up cancels the tree.
        """
        # Known before the order is taken, so that the head can tell it; an order given twice may be an earlier task.
        id = None if order.idempotency_key is not None else str(uuid_utils.uuid7())
        submitting = asyncio.ensure_future(self._teams.submit(self._caller, order, id=id))
        failure: HortatorError | None = None
        with HangUp(self._trace.hang_up, self._exchange.direct, self._exchange.receive):
            try:
                await asyncio.wait({submitting}, timeout=status_wait)
                if not submitting.done():
                    await self._open(id)
                    await self._send(OPENING)
                task = await asyncio.shield(submitting)
                await self._answer(task, keep_alive, reasoning=reasoning)
            except (HortatorError, asyncio.CancelledError) as raised:
                failure = self._trace.failure(raised)
            except Exception as raised:  # noqa: BLE001 - the outermost edge of a stream, whose status line may have gone out
                log.error(
                    "internal error: request=%s %s",
                    self._exchange.id,
                    where(raised),
                    extra={"request_id": self._exchange.id},
                )
                failure = self._trace.failure(raised)
        if self._trace.hung_up:
            await abandon(self._teams, self._caller, submitting)
        if failure is None:
            return
        if not self._opened:
            raise failure
        if not self._trace.hung_up:
            last = self._reader.failed(failure) or self._manner.event(failure, self._exchange.id)
            await self._send(last, more=False)

    async def _open(self, id: str | None) -> None:
        """Send the head, with the task's id where it is known."""
        headers = [*EVENT_STREAM, (b"x-request-id", self._exchange.id.encode()), *self._trace.route]
        if id is not None:
            headers.append((b"x-hortator-task-id", id.encode()))
        if self._manner.also is not None:
            headers += self._manner.also([], self._exchange.id)
        self._opened = True
        await self._exchange.send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _answer(self, task: Task, keep_alive: float, *, reasoning: bool) -> None:
        """Tell the answer of a tree, from its role to its end."""
        call, written = self._call, Written()
        if not self._opened:
            await self._open(task.id)
        chunks = Chunks(f"chatcmpl-{task.id}", call.model, int(call.received_at), call.wants_usage)
        await self._say(chunks.role())
        async with contextlib.aclosing(self._followed(task, keep_alive)) as items:
            async for item in items:
                if isinstance(item, Delta):
                    text = written.take(item)
                    if text:
                        await self._say(chunks.text(text))
                    continue
                if call.operation == "chat" and self._level != "default" and shown(item, self._level):
                    await self._say(chunks.event(item))
                if item.type in ENDS:
                    break
                if reasoning and item.message and shown(item, "verbose") and not written.text:
                    await self._say(chunks.thinking(f"{item.message}\n"))
        ending = outcome(await self._teams.find(self._caller, task.id), written.text)
        rest = written.rest(ending.text)
        if rest is None and ending.reason == "stop":
            raise TaskEnded(
                f"The answer had to be written anew; the result of the task {task.id} has it whole.", code="interrupted"
            )
        last = [chunks.text(rest)] if rest else []
        last += [chunks.finish(ending.reason, ending.bound), chunks.usage(ending.tokens)]
        await self._send(self._reader.feed(last) + self._reader.end(), more=False)

    async def _followed(self, task: Task, keep_alive: float) -> AsyncGenerator[Event | Delta]:
        """Follow a tree; while nothing happens the client gets comments."""
        events = self._teams.follow(self._caller, task.id, deltas=True)

        async def following() -> Event | Delta | None:
            return await anext(events, None)

        waiting = asyncio.ensure_future(following())
        try:
            while True:
                await asyncio.wait({waiting}, timeout=keep_alive)
                if not waiting.done():
                    await self._send(KEEP_ALIVE)
                    continue
                item = waiting.result()
                if item is None:
                    return
                waiting = asyncio.ensure_future(following())
                yield item
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            if isinstance(events, AsyncGenerator):
                await events.aclose()

    async def _say(self, chunk: bytes) -> None:
        """Tell a chunk in the client's dialect."""
        piece = self._reader.feed([chunk])
        if piece:
            await self._send(piece)

    async def _send(self, piece: bytes, *, more: bool = True) -> None:
        if self._seen is not None:
            self._seen(piece)
        await self._exchange.send({"type": "http.response.body", "body": piece, "more_body": more})
