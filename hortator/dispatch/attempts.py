"""The loop that carries one call from attempt to attempt: which deployment, after which wait, and when it is enough.

Both carriers (`whole.py`, `stream.py`) give it a way to ask one deployment once and get the first answer. The order of
things (R-003-10): the model's other deployments, at once; those that failed again, after a wait; then the fallback models.
It never looks into an answer, and an answer that has begun to reach the client never comes back here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic

from hortator.call import Call, Decision, Deployment, ProviderId, Route
from hortator.dispatch.balance import Balance, Turn
from hortator.dispatch.hedge import Ask, Race, Rival
from hortator.dispatch.refusal import final, may_go_elsewhere
from hortator.dispatch.retry import Retry, is_filtered, is_too_long, may_repeat
from hortator.dispatch.trace import Trace
from hortator.errors import HortatorError
from hortator.providers.base import Provider


@dataclass(frozen=True, slots=True)
class Dispatch:
    """What all calls share."""

    providers: Mapping[ProviderId, Provider]
    balance: Balance
    retry: Retry


def begin(dispatch: Dispatch, call: Call, decision: Decision, trace: Trace) -> Turn:
    """Start a call's first attempt. `go_on` takes over if it fails; whoever carries the call ends the turn of a good one."""
    now = monotonic()
    budget = dispatch.retry.budget
    if now >= budget.ends:
        budget.turn(now)
    budget.requests += 1
    turn = dispatch.balance.begin(decision, call, now)
    trace.begin(turn.place.deployment, now)
    return turn


async def carry(
    dispatch: Dispatch,
    call: Call,
    decision: Decision,
    trace: Trace,
    deadline: float,
    ask: Ask,
    rival: Callable[[], Rival],
) -> tuple[bytes, Turn]:
    """Return the first answer `ask` gets, and the turn it came in, which the caller ends together with the trace's attempt.

    Raises the error the client is to get. `deadline` in `monotonic()` seconds is for all attempts and waits together. `rival` makes
    another way to ask, for a model that is hedged.
    """
    turn = begin(dispatch, call, decision, trace)
    race: Race | None = None
    try:
        if decision.hedge_ms and turn.route == 0 and call.resend != "never":
            race = Race(dispatch.balance, dispatch.retry, call, trace, turn)
            answer, turn = await race.run(decision, ask, rival)
        else:
            answer = await ask(turn.place.deployment)
    except BaseException as error:  # noqa: BLE001 - `go_on` raises what is no failure of an attempt
        failure = error
    else:
        turn.answered(monotonic())
        return answer, turn
    lost = None if race is None else race.lost
    return await go_on(dispatch, call, decision, trace, deadline, ask, turn, failure, lost)


async def go_on(
    dispatch: Dispatch,
    call: Call,
    decision: Decision,
    trace: Trace,
    deadline: float,
    ask: Ask,
    turn: Turn,
    failure: BaseException,
    lost: tuple[str, HortatorError] | None = None,
) -> tuple[bytes, Turn]:
    """As `carry`, after the first attempt failed. A failure that is no HortatorError is raised again.

    `lost` is its rival, (deployment id, error), if there was one that failed too.
    """
    plan = Plan(dispatch, call, decision, turn.route, deadline)
    if lost is not None:
        plan.lost(*lost)
    while True:
        now = monotonic()
        trace.end(failure, now)
        turn.leave(failure, now)
        if not isinstance(failure, HortatorError):
            raise failure
        following = plan.after(turn.place.deployment, failure, now)
        if following is None:
            raise final(plan.failures)
        deployment, wait = following
        if wait:
            trace.waited += wait
            await asyncio.sleep(wait)
        now = monotonic()
        turn = dispatch.balance.enter(deployment, now)
        trace.begin(deployment, now)
        try:
            answer = await ask(deployment)
        except BaseException as error:  # noqa: BLE001 - raised above when it is no failure of an attempt
            failure = error
        else:
            turn.answered(monotonic())
            return answer, turn


Step = tuple[Deployment, float]
"""Whom to ask next, and the seconds to wait before."""


class Plan:
    """What one call has tried and what is left. Made at its first failure."""

    def __init__(self, dispatch: Dispatch, call: Call, decision: Decision, index: int, deadline: float) -> None:
        """`index` is the route that the call began with, as `Balance.first` returned it."""
        self._dispatch = dispatch
        self._call = call
        self._decision = decision
        self._deadline = deadline
        routes: Sequence[Route | Decision] = (decision, *decision.fallbacks) if call.fallback else (decision,)
        self._route = routes[index]
        self._later = list(routes[index + 1 :])
        self._left = dispatch.retry.limits.max_retries if call.resend != "never" else 0
        self._rounds = 0
        self._tried: set[str] = set()
        self._repeatable: dict[str, tuple[Deployment, float]] = {}
        self.failures: list[tuple[str, HortatorError]] = []
        """(deployment id, error), in order."""

    def lost(self, deployment: str, error: HortatorError) -> None:
        """A rival of the first attempt has failed."""
        self.failures.append((deployment, error))
        self._tried.add(deployment)
        self._left = max(0, self._left - 1)

    def after(self, deployment: Deployment, error: HortatorError, now: float) -> Step | None:
        """Return the step after `deployment` failed with `error`; None = the call has failed."""
        self.failures.append((deployment.id, error))
        self._tried.add(deployment.id)
        if not self._left or now >= self._deadline:
            return None
        step = self._step(deployment, error, now)
        if step is not None:
            self._left -= 1
        return step

    def _step(self, deployment: Deployment, error: HortatorError, now: float) -> Step | None:
        made_for = self._made_for(error)
        if made_for:
            self._route, self._later = made_for[0], list(made_for[1:])
            self._repeatable.clear()
            chosen = self._elsewhere(now) or self._fallback(now)
            return (chosen or self._dispatch.balance.soonest(self._route, self._tried), 0.0)
        if not may_go_elsewhere(error):
            return None
        self._note(deployment, error, now)
        chosen = self._elsewhere(now)
        if chosen is None:
            again = self._again(now)
            if again is not None:
                return again
            chosen = self._fallback(now)
        return None if chosen is None else (chosen, 0.0)

    def _made_for(self, error: HortatorError) -> tuple[Route, ...]:
        """Return the routes made for errors of this kind that have not been tried."""
        if not self._call.fallback:
            return ()
        if is_too_long(error):
            routes = self._decision.context_fallbacks
        elif is_filtered(error):
            routes = self._decision.content_fallbacks
        else:
            return ()
        return tuple(route for route in routes if any(d.id not in self._tried for d in route.candidates))

    def _note(self, deployment: Deployment, error: HortatorError, now: float) -> None:
        """Remember whether and when a deployment may be asked again."""
        self._repeatable.pop(deployment.id, None)
        asked_for = error.retry_after or 0.0
        if may_repeat(error) and asked_for <= self._dispatch.retry.limits.max_wait:
            self._repeatable[deployment.id] = (deployment, now + asked_for)

    def _elsewhere(self, now: float) -> Deployment | None:
        """Return a deployment of the current model that has not been tried."""
        return self._dispatch.balance.choose(self._route, self._call, now, self._tried)

    def _fallback(self, now: float) -> Deployment | None:
        """Go on to the next model that can be had; return its best deployment."""
        while self._later:
            self._route = self._later.pop(0)
            self._repeatable.clear()
            chosen = self._elsewhere(now)
            if chosen is not None:
                return chosen
        return None

    def _again(self, now: float) -> Step | None:
        """Return a second try at a deployment, unless it is out, or time or a budget is.

        Where another model stands by, the last of the request's tries is kept for it.
        """
        if self._call.resend != "again" or (self._left == 1 and self._stands_by(now)):
            return None
        retry, balance = self._dispatch.retry, self._dispatch.balance
        working = [step for step in self._repeatable.values() if balance.working(step[0])]
        if not working:
            return None
        deployment, ready_at = min(working, key=lambda step: step[1])
        wait = max(retry.delay(self._rounds), ready_at - now)
        if now + wait >= self._deadline or not retry.budget.take(now):
            return None
        self._rounds += 1
        return deployment, wait

    def _stands_by(self, now: float) -> bool:
        """Whether a later model has a deployment to ask."""
        balance = self._dispatch.balance
        return any(balance.open_to(route, now, self._tried) for route in self._later)
