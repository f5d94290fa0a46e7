"""The corridor: a call is admitted, routed, dispatched and recorded. Reading this file top to bottom is reading the data flow.

Doors call it with what they parsed; it is the only file that knows all rooms. It holds no state of its own and touches
neither sockets nor the database: rooms do, each behind its own door.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from hortator.call import Call, Caller, Decision, Deployment, Outcome
from hortator.dispatch import RATE_PREFIXES, Dispatch, Stream, Trace, carry_whole, count_tokens
from hortator.errors import ClientGone, HortatorError
from hortator.ledger import Ledger, Tracer
from hortator.routing import Catalogue, Preview, Repeats, Rules, decide, preview, told
from hortator.routing.complexity import load
from hortator.settings import LOCAL, Settings
from hortator.tenancy import Admission, Budgets, Identity, Reservation

Choose = Callable[[Catalogue], Decision]
"""What a door decides with instead of the call's model."""


class StreamedAnswer:
    """A streamed answer: `next` until None, with `flow` between, then `finish`, always."""

    __slots__ = ("_record", "_stream", "failed", "flow", "next")

    def __init__(self, stream: Stream, record: Callable[[BaseException | None], None]) -> None:
        self._stream = stream
        self._record = record
        self.next = stream.next
        """Return the next bytes for the client, None after the end. Raises the HortatorError that ended the answer."""
        self.failed = stream.failed
        """Return the events that tell the client what ended the answer; empty where its dialect needs none of its own."""
        self.flow = stream.flow
        """Let bytes go straight to a `write` that may return False; returns when `next` must be asked."""

    @property
    def ended(self) -> bool:
        """What `next` returned last was the end of the answer."""
        return self._stream.ended

    async def finish(self, error: BaseException | None) -> None:
        """Release the upstream and record the call. `error` is what ended it early: a HortatorError or a cancellation."""
        try:
            await self._stream.close(error)
        finally:
            self._record(error)


class Gateway:
    """One corridor for all doors."""

    def __init__(
        self,
        settings: Settings,
        identity: Identity,
        catalogue: Callable[[], Catalogue],
        dispatch: Dispatch,
        ledger: Ledger,
        budgets: Budgets,
        admission: Admission,
        tracer: Tracer | None = None,
        repeats: Repeats | None = None,
    ) -> None:
        """`repeats`: what notices that clients ask again; None = outcomes of routing are not recorded. Raises ConfigError."""
        self._identity = identity
        self._catalogue = catalogue
        self._dispatch = dispatch
        self._ledger = ledger
        self._budgets = budgets
        self._admission = admission
        self.tracer = tracer
        """What makes traces of calls; None = nothing does."""
        self._total = settings.timeouts.total_ms / 1000
        self.keep_alive = settings.stream.keep_alive_ms / 1000
        """Seconds of silence after which a stream gets a comment."""
        self.agents = settings.orchestration.models
        """The models that stand behind roles."""
        self._repeats = repeats
        data = settings.routing.complexity_data
        waits = settings.stream.status_wait_ms, settings.stream.routed_status_wait_ms
        self._rules = Rules(settings.routing, *waits, *(() if data is None else (load(data),)))

    def known(self, token: bytes) -> Caller | None:
        """Say who calls, if that is certain without waiting; else `admit` decides."""
        return self._identity.known(token)

    async def admit(self, token: bytes) -> Caller:
        """Say who calls. Raises Unauthenticated, or Unavailable when the store cannot tell."""
        return self._identity.known(token) or await self._identity.authenticate(token)

    async def on_behalf(self, caller: Caller, tenant: str) -> Caller:
        """Say who calls when the request names a tenant (C-2). Raises Forbidden for one that is not the caller's to name."""
        return await self._identity.on_behalf(caller, tenant)

    def catalogue(self) -> Catalogue:
        """Return what is served now."""
        return self._catalogue()

    @property
    def rules(self) -> Rules:
        """What routing goes by."""
        return self._rules

    def preview(self, caller: Caller, call: Call) -> Preview:
        """Say how a call would be routed, without calling anything. Raises what routing raises."""
        return preview(call, caller, self._catalogue(), self._rules)

    async def complete(self, caller: Caller, call: Call, trace: Trace, choose: Choose | None = None) -> bytes:
        """Walk a call whose answer comes in one piece; return its body. What happened is in `trace`, also after an error.

        `choose`: routing's answer to what the door knows and the call does not say; None = to the call's model.
        """
        if not self._admission.enter(caller.priority):
            await self._wait(caller, call, trace)
        held: Reservation | None = None
        decision: Decision | None = None
        try:
            decision = self._route(caller, call, trace, choose)
            if caller.limits:
                held = await self._reserve(caller, call, decision)
            if call.tracing is not None:
                call.tracing.enter("dispatch")
            body = await carry_whole(self._dispatch, call, decision, trace, call.started + self._total)
        except BaseException as error:
            self._record(caller, call, trace, decision, held, error)
            raise
        self._record(caller, call, trace, decision, held, None)
        if held is not None:
            _tell_limits(held, trace)
        return body

    async def count_tokens(self, caller: Caller, call: Call) -> int | None:
        """Return the tokens of a request in the messages dialect, None when its provider does not count. Nothing is recorded."""
        decision = decide(call, caller, self._catalogue(), self._rules)
        return await count_tokens(self._dispatch, call, decision, call.started + self._total)

    async def stream(self, caller: Caller, call: Call, trace: Trace, choose: Choose | None = None) -> StreamedAnswer:
        """Walk a call whose answer is streamed; return when its status is known or the wait for it is over. `choose`: as above."""
        if not self._admission.enter(caller.priority):
            await self._wait(caller, call, trace)
        held: Reservation | None = None
        decision: Decision | None = None
        try:
            decision = self._route(caller, call, trace, choose)
            if caller.limits:
                held = await self._reserve(caller, call, decision)
        except BaseException as error:
            self._record(caller, call, trace, decision, held, error)
            raise
        if call.tracing is not None:
            call.tracing.enter("dispatch")
        stream = Stream(self._dispatch, call, decision, trace, call.started + self._total, self.keep_alive)
        try:
            await stream.open()
        except BaseException as error:
            try:
                await stream.close(error)
            finally:
                self._record(caller, call, trace, decision, held, error)
            raise
        if held is not None:
            _tell_limits(held, trace)
        return StreamedAnswer(
            stream, lambda error: self._record(caller, call, trace, decision, held, error, opened=True)
        )

    async def _wait(self, caller: Caller, call: Call, trace: Trace) -> None:
        """Wait for a place among the calls that run. One that gets none, or whose client does not wait for it, leaves a record."""
        try:
            await self._admission.wait(caller.priority, call.started + self._total)
        except BaseException as error:
            self._write(caller, call, trace, None, error, opened=False)
            raise

    def _route(self, caller: Caller, call: Call, trace: Trace, choose: Choose | None = None) -> Decision:
        """Decide where the call may go, and note what its reply tells of that."""
        if call.tracing is not None:
            call.tracing.enter("route")
        catalogue = self._catalogue()
        decision = decide(call, caller, catalogue, self._rules) if choose is None else choose(catalogue)
        trace.route = told(decision, call)
        return decision

    async def _reserve(self, caller: Caller, call: Call, decision: Decision) -> Reservation | None:
        """Reserve what the call may use of its caller's limits. Raises RateLimited, LimitsUnavailable."""
        if call.tracing is not None:
            call.tracing.enter("reserve")
        return await self._budgets.reserve(caller, call, _places(decision))

    def _record(
        self,
        caller: Caller,
        call: Call,
        trace: Trace,
        decision: Decision | None,
        held: Reservation | None,
        error: BaseException | None,
        *,
        opened: bool = False,
    ) -> None:
        """Give the call's place back, settle it and leave one record of it. `opened`: its status line had gone out before that."""
        self._admission.leave()
        tracing = call.tracing
        if tracing is not None:
            tracing.enter("record")
        if held is not None:
            took = trace.usage, trace.deployment, trace.response_model
            self._budgets.settle(held, *took, trace.complete, trace.attempts)
        self._write(caller, call, trace, decision, error, opened=opened)

    def _write(
        self,
        caller: Caller,
        call: Call,
        trace: Trace,
        decision: Decision | None,
        error: BaseException | None,
        *,
        opened: bool,
    ) -> None:
        """Leave one record of a call, however it ended."""
        now = monotonic()
        first = trace.first_byte_at
        failure = None if error is None else trace.failure(error)
        routed = repeat = None
        if self._repeats is not None and decision is not None:
            routed, repeat = self._repeats.note(call, caller, decision, self._catalogue(), now)
        outcome = Outcome(
            request_id=call.id,
            tenant_id=caller.tenant_id,
            key_hash=caller.key_hash,
            operation=call.operation,
            model=call.model,
            deployment=trace.deployment,
            response_model=trace.response_model,
            attempts=tuple(trace.attempts),
            usage=trace.usage,
            status=_status(failure, opened),
            code=None if failure is None else failure.code,
            stream=call.stream,
            complete=trace.complete,
            received_at=call.received_at,
            latency_ms=(now - call.started) * 1000,
            first_byte_ms=None if first is None else (first - call.started) * 1000,
            overhead_ms=overhead_ms(call, trace, first if call.stream and first is not None else now),
            task_type=call.wish.task_type,
            path=None if decision is None else decision.path,
            local_fallback=trace.deployment is not None
            and trace.deployment.provider == LOCAL
            and stood_in(decision, trace),
            routed=routed,
            repeat=repeat,
            task_id=call.task_id,
        )
        self._ledger.record(outcome)
        if call.tracing is not None and self.tracer is not None:
            self.tracer.finish(call.tracing, outcome)


def _places(decision: Decision) -> tuple[Deployment, ...]:
    """Return everywhere a call may go, its fallbacks included."""
    routes = (*decision.fallbacks, *decision.context_fallbacks, *decision.content_fallbacks)
    if not routes:
        return decision.candidates
    return decision.candidates + tuple(place for route in routes for place in route.candidates)


def stood_in(decision: Decision | None, trace: Trace) -> bool:
    """Whether the embedded model, which answered or was tried last, took the place of another one (R-003-6).

    Either another one was tried before, or all that come first were left alone. A strategy that picks it among equals does not count.
    """
    if any(attempt.provider != LOCAL for attempt in trace.attempts):
        return True
    if decision is None or decision.candidates[0].provider == LOCAL:
        return False
    return decision.strategy == "ordered" or trace.deployment not in decision.candidates


def _tell_limits(held: Reservation, trace: Trace) -> None:
    """Put what is left of the caller's limits among the reply's headers, in place of what the provider said of its own."""
    ours = held.headers
    kept = [pair for pair in trace.headers if not pair[0].startswith(RATE_PREFIXES)] if ours else trace.headers
    trace.headers = [*kept, *ours]


def overhead_ms(call: Call, trace: Trace, now: float) -> float:
    """Return the milliseconds of a call that were not spent waiting for upstreams."""
    return max(0.0, now - call.started - trace.waited) * 1000


def _status(failure: HortatorError | None, opened: bool) -> int:
    """Return the status the client saw; 499 when it hung up, whatever it saw."""
    if failure is None or (opened and not isinstance(failure, ClientGone)):
        return 200
    return failure.status
