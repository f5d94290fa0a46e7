"""Hedging: a second deployment is asked when the first has said nothing for a while, and the first content wins.

`attempts.carry` comes here with a call's first attempt where the model has `hedge_ms`. A hedge is a retry made early, so it comes out of
the same budget. The loser is cancelled and recorded, its usage estimated: its provider may charge for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import NamedTuple

from hortator.call import Call, Decision, Deployment
from hortator.dispatch.balance import Balance, Turn
from hortator.dispatch.retry import Retry
from hortator.dispatch.trace import Trace
from hortator.errors import HortatorError, Superseded

Ask = Callable[[Deployment], Awaitable[bytes]]


class Rival(NamedTuple):
    """A second way to ask, which shares nothing with the first until it has won."""

    trace: Trace
    ask: Ask
    adopt: Callable[[], None]
    """Make what the rival has begun the call's own answer; the first attempt is over."""
    drop: Callable[[], None]
    """Give back what the rival holds; it was too late."""


class Race:
    """A call's first attempt and, after a while, its rival."""

    def __init__(self, balance: Balance, retry: Retry, call: Call, trace: Trace, turn: Turn) -> None:
        """`turn` is the first attempt's, which has begun."""
        self._balance = balance
        self._retry = retry
        self._call = call
        self._trace = trace
        self._turn = turn
        self.lost: tuple[str, HortatorError] | None = None
        """The rival, (deployment id, error), once it has failed by itself: the plan that goes on has to know."""

    async def run(self, decision: Decision, ask: Ask, rival: Callable[[], Rival]) -> tuple[bytes, Turn]:
        """Return the first content and its turn. If none came, raises the first attempt's error, whose turn the caller ends."""
        first = asyncio.ensure_future(ask(self._turn.place.deployment))
        try:
            await asyncio.wait((first,), timeout=decision.hedge_ms / 1000)
            other = None if first.done() else self._other(decision)
            if other is None:
                return await first, self._turn
            return await self._against(first, other, rival())
        finally:
            await _end(first)

    def _other(self, decision: Decision) -> Deployment | None:
        """Return whom to ask too; None when nobody is left or the budget has no room."""
        now = monotonic()
        other = self._balance.choose(decision, self._call, now, {self._turn.place.deployment.id})
        return other if other is not None and self._retry.budget.take(now) else None

    async def _against(self, first: asyncio.Future[bytes], other: Deployment, rival: Rival) -> tuple[bytes, Turn]:
        """Wait for the first of the two that answers."""
        now = monotonic()
        turn = self._balance.enter(other, now)
        rival.trace.begin(other, now)
        self._trace.tries += 1
        second = asyncio.ensure_future(rival.ask(other))
        won = False
        end: BaseException = Superseded("Another deployment answered first.")
        try:
            await asyncio.wait((first, second), return_when=asyncio.FIRST_COMPLETED)
            if _failure(first) or _failure(second):
                await asyncio.wait((first, second))
            failed = _failure(second)
            if failed is not None:
                end = failed
                if isinstance(failed, HortatorError):
                    self.lost = (other.id, failed)
            elif not first.done() or _failure(first):
                await _end(first)
                won = True
        except asyncio.CancelledError as cancelled:
            end = cancelled
            raise
        finally:
            if not won:
                await self._close(second, rival, turn, end)
        if not won:
            return await first, self._turn
        now = monotonic()
        end = _failure(first) or end
        self._trace.end(end, now)
        self._turn.leave(end, now)
        self._trace.adopt(rival.trace)
        rival.adopt()
        return second.result(), turn

    async def _close(self, second: asyncio.Future[bytes], rival: Rival, turn: Turn, end: BaseException) -> None:
        """The rival has not won: cancel it and note its attempt."""
        await _end(second)
        rival.drop()
        now = monotonic()
        rival.trace.hung_up = self._trace.hung_up
        rival.trace.end(end, now)
        turn.leave(end, now)
        self._trace.attempts += rival.trace.attempts


def _failure(attempt: asyncio.Future[bytes]) -> BaseException | None:
    """Return what an attempt failed with; None when it did not, was cancelled, or is not over."""
    return attempt.exception() if attempt.done() and not attempt.cancelled() else None


async def _end(attempt: asyncio.Future[bytes]) -> None:
    """Cancel an attempt that is not over, and wait until it is."""
    if not attempt.done():
        attempt.cancel()
        await asyncio.wait((attempt,))
    _failure(attempt)  # looked at: nobody is warned of it
