"""Carries a call whose answer comes in one piece.

The gateway calls `carry_whole`; `attempts.carry` says which deployment is asked, and here it is asked once. A broken reply is never passed on: the client gets another deployment's answer or an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from time import monotonic

from hortator.call import Call, Decision, Deployment
from hortator.dispatch.attempts import Dispatch, begin, carry, go_on
from hortator.dispatch.balance import Turn
from hortator.dispatch.estimate import estimated, reported
from hortator.dispatch.hedge import Ask, Rival
from hortator.dispatch.refusal import passed_headers, refused
from hortator.dispatch.trace import Trace
from hortator.dispatch.translation import answered, checked, said
from hortator.errors import InvalidReply
from hortator.providers.base import Provider, Reply
from hortator.wire import refusal


async def carry_whole(dispatch: Dispatch, call: Call, decision: Decision, trace: Trace, deadline: float) -> bytes:
    """Return the body of the first good answer. Raises the error the caller is to get."""
    if decision.hedge_ms:
        return await _carry_hedged(dispatch, call, decision, trace, deadline)
    turn = begin(dispatch, call, decision, trace)
    deployment = turn.place.deployment
    try:
        body = await _attempt(dispatch.providers[deployment.provider], call, deployment, trace, deadline)
    except BaseException as error:  # noqa: BLE001 - `go_on` raises what is no failure of an attempt
        failure = error
    else:
        now = trace.first_byte_at or trace.begun
        trace.end(None, now)
        turn.done(now)
        return body
    return await _carry_on(dispatch, call, decision, trace, deadline, turn, failure)


async def _carry_on(
    dispatch: Dispatch,
    call: Call,
    decision: Decision,
    trace: Trace,
    deadline: float,
    turn: Turn,
    failure: BaseException,
) -> bytes:
    """As `carry_whole`, after the first attempt failed. Apart from it, so that a call without trouble makes no closure."""

    def ask(deployment: Deployment) -> Awaitable[bytes]:
        return _attempt(dispatch.providers[deployment.provider], call, deployment, trace, deadline)

    body, turn = await go_on(dispatch, call, decision, trace, deadline, ask, turn, failure)
    now = monotonic()
    trace.end(None, now)
    turn.leave(None, now)
    return body


async def _carry_hedged(dispatch: Dispatch, call: Call, decision: Decision, trace: Trace, deadline: float) -> bytes:
    """As `carry_whole`, for a model that is hedged."""

    def asking(into: Trace) -> Ask:
        return lambda deployment: _attempt(dispatch.providers[deployment.provider], call, deployment, into, deadline)

    def rival() -> Rival:
        own = Trace()
        return Rival(own, asking(own), adopt=_nothing, drop=_nothing)

    body, turn = await carry(dispatch, call, decision, trace, deadline, asking(trace), rival)
    now = monotonic()
    trace.end(None, now)
    turn.leave(None, now)
    return body


def _nothing() -> None:
    """A whole reply is closed when it has been read."""


async def _attempt(provider: Provider, call: Call, deployment: Deployment, trace: Trace, deadline: float) -> bytes:
    """Ask one deployment once."""
    sent = said(call, provider, deployment)
    begun = trace.begun if sent is call else monotonic()
    reply: Reply | None = None
    try:
        reply = await provider.send(sent, deployment, deadline)
        trace.status = reply.status
        try:
            body = await reply.read()
        finally:
            reply.close()
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError) or (reply is not None and reply.status < 300):
            trace.usage = estimated(call, None)
        raise
    finally:
        ended = monotonic()
        trace.waited += ended - begun
    if not 200 <= reply.status < 300:
        raise refused(provider, reply.status, reply.headers, refusal.read(body))
    try:
        answer = checked(sent, body)
    except InvalidReply:
        trace.usage = estimated(call, len(body))
        raise
    if answer.error:
        if answer.usage:
            trace.usage = reported(answer.usage)
        refusing = refusal.read_object(answer.error)
        raise refused(provider, refusing.status or 502, reply.headers, refusing)
    trace.first_byte_at = ended
    trace.response_model = answer.model
    trace.headers = passed_headers(reply.headers)
    trace.usage = reported(answer.usage) if answer.usage else estimated(call, len(body))
    body = answered(call, sent, body)
    trace.complete = True
    return body
