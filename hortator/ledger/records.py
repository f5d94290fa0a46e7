"""From what became of a call to one priced record: `Outcome` in, `UsageRow` out.

Called by the ledger's writer in its worker thread, never on the request path. Text that a client or an upstream chose is cut
to its column and made valid, so that no request can produce a record that the database refuses.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import msgspec
import uuid_utils

from hortator.call import Attempt, Deployment, Outcome, Usage
from hortator.ledger.counts import OTHER_TASK
from hortator.ledger.prices import FREE, Price, PriceBook
from hortator.store.tables import MONEY_SCALE
from hortator.store.usage import UsageRow

_UNITS = 10**MONEY_SCALE
_ENCODER = msgspec.json.Encoder()
MAX_TOKENS = 2**31
"""A count beyond this is an upstream's mistake and recorded as unknown."""


class AttemptRecord(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One of `metadata.attempts`. `cost` is in US dollars; it and the tokens are missing where they are not known."""

    deployment: str
    provider: str
    status: int | None
    code: str | None
    duration_ms: float
    usage: str
    """Where the tokens are from: `reported`, `estimated`, `unknown`."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    cache_write_tokens: int | None = None
    cost: str | None = None


class Cost(NamedTuple):
    """What a call or an attempt cost, and by which price."""

    state: str
    amount: int | None
    """In 1e-10 dollars; None when it is not known."""
    price: Price | None


class Served(NamedTuple):
    """Three columns of a record."""

    model: str | None
    provider: str | None
    deployment: str | None


NOBODY = Served(None, None, None)
MAX_SERVED = 4096
MAX_TASKS = 1000
"""Task types with sums of their own, in this process."""


class Recorder:
    """Makes records. Not thread safe; it remembers the last second's text and the names it has cleaned."""

    def __init__(self, prices: PriceBook) -> None:
        self._prices = prices
        self._second = -1
        self._second_text = ""
        self._tasks: set[str] = set()
        self._served: dict[tuple[str, str | None], Served] = {}

    def row(self, outcome: Outcome) -> UsageRow:
        """Price `outcome` and make its record, with a new event id."""
        usage = _plausible(outcome.usage)
        tokens, output = usage.input, usage.output
        served = self._serving(outcome)
        (state, cost, price), attempts = self._costs(
            outcome.deployment, outcome.attempts, outcome.response_model, outcome.received_at, usage
        )
        latency_ms, overhead_ms, first_byte_ms = outcome.latency_ms, outcome.overhead_ms, outcome.first_byte_ms
        return UsageRow(
            event_id=uuid_utils.uuid7().hex,
            tenant_id=outcome.tenant_id.replace("-", ""),
            event_type="model_call",
            timestamp=self._timestamp(outcome.received_at),
            request_id=_text(outcome.request_id, 255),
            key_hash=outcome.key_hash,
            operation=outcome.operation,
            model_asked=_text(outcome.model, 255),
            usage_source=usage.source,
            price_state=state,
            latency_ms=int(latency_ms * 1000 + 0.5) / 1000,
            overhead_ms=int(overhead_ms * 1000 + 0.5) / 1000,
            status=outcome.status,
            attempts=len(outcome.attempts),
            stream=outcome.stream,
            complete=outcome.complete,
            token_count=None if tokens is None or output is None else tokens + output,
            compute_seconds=int(max(0.0, latency_ms - overhead_ms) * 1000 + 0.5) / 1_000_000,
            metadata=_metadata(outcome, attempts),
            model_served=served.model,
            provider=served.provider,
            deployment=served.deployment,
            input_tokens=tokens,
            output_tokens=output,
            cached_tokens=usage.cached,
            reasoning_tokens=usage.reasoning,
            cache_write_tokens=usage.cache_write,
            price=None if price is None else price.record,
            cost=cost,
            first_byte_ms=None if first_byte_ms is None else int(first_byte_ms * 1000 + 0.5) / 1000,
            error_code=None if outcome.code is None else _text(outcome.code, 100),
            task_type=None if outcome.task_type is None else self._task(_text(outcome.task_type, 100)),
            local_fallback=outcome.local_fallback,
            task_id=None if outcome.task_id is None else outcome.task_id.replace("-", ""),
        )

    def _task(self, task: str) -> str:
        """A task type as it is kept: clients choose them, so from the thousandth on, new ones are `other`."""
        if task not in self._tasks:
            if len(self._tasks) >= MAX_TASKS:
                return OTHER_TASK
            self._tasks.add(task)
        return task

    def cost(
        self,
        deployment: Deployment | None,
        attempts: tuple[Attempt, ...],
        response_model: str | None,
        received_at: float,
        usage: Usage,
    ) -> int | None:
        """What the record of a call says that it cost, in 1e-10 dollars; None = it is not known."""
        return self._costs(deployment, attempts, response_model, received_at, _plausible(usage))[0].amount

    def _costs(
        self,
        deployment: Deployment | None,
        tries: tuple[Attempt, ...],
        response_model: str | None,
        received_at: float,
        usage: Usage,
    ) -> tuple[Cost, list[AttemptRecord]]:
        """Price the call and its attempts: the call costs what its attempts do. A call that no upstream saw is free.

        The last attempt's usage is the call's. Where its cost is not known, that of the others still counts.
        """
        if deployment is None or not tries:
            return Cost("free", 0, FREE), []
        cost = self._cost(deployment.provider, deployment.model, response_model, received_at, usage)
        records = [_attempt(tries[-1], usage, cost.amount)]
        if len(tries) == 1:
            return cost, records
        for attempt in tries[-2::-1]:
            took = _plausible(attempt.usage)
            model = attempt.deployment.partition("/")[2]
            own = self._cost(attempt.provider, model, attempt.response_model, received_at, took)
            if own.amount is not None and took.source != "unknown":
                cost = Cost(cost.state, cost.amount + own.amount, cost.price) if cost.amount is not None else own
                records.append(_attempt(attempt, took, own.amount))
            else:
                records.append(_attempt(attempt, took, None))
        records.reverse()
        return cost, records

    def _cost(self, provider: str, model: str, response_model: str | None, at: float, usage: Usage) -> Cost:
        """Price one attempt."""
        price = self._prices.price(provider, model, response_model, at)
        cost = None if price is None else price.cost(usage)
        if price is None or cost is None:
            return Cost("unpriced", None, price)
        return Cost(price.state, round(cost * _UNITS), price)

    def _serving(self, outcome: Outcome) -> Served:
        """Who answered, as text for the columns. The same few come again and again: at most 4,096 are remembered."""
        deployment = outcome.deployment
        if deployment is None:
            return NOBODY
        key = (deployment.id, outcome.response_model)
        served = self._served.get(key)
        if served is None:
            if len(self._served) >= MAX_SERVED:
                self._served.clear()
            served = self._served[key] = Served(
                _text(outcome.response_model or deployment.model, 255),
                _text(deployment.provider, 100),
                _text(deployment.id, 255),
            )
        return served

    def _timestamp(self, at: float) -> str:
        """UTC text with microseconds, as both databases read it."""
        second = int(at)
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(second))
        return f"{self._second_text}.{int((at - second) * 1e6):06d}"


def _attempt(attempt: Attempt, usage: Usage, cost: int | None) -> AttemptRecord:
    """Return what is kept of an attempt that took `usage` and cost `cost` 1e-10 dollars."""
    return AttemptRecord(
        attempt.deployment,
        attempt.provider,
        attempt.status,
        attempt.code,
        attempt.duration_ms,
        usage.source,
        usage.input,
        usage.output,
        usage.cached,
        usage.reasoning,
        usage.cache_write,
        None if cost is None else f"{cost // _UNITS}.{cost % _UNITS:0{MONEY_SCALE}d}",
    )


def _metadata(outcome: Outcome, attempts: list[AttemptRecord]) -> str:
    """The attempts, one by one, and what the gateway noted beside them (at most 32 notes)."""
    notes = outcome.metadata
    content: dict[str, object] = {"attempts": attempts}
    if notes:
        content |= {_text(name, 100): _text(notes[name], 1000) for name in list(notes)[:32] if name != "attempts"}
    return _ENCODER.encode(content).decode()


def _text(value: str, limit: int) -> str:
    """Cut to `limit` characters, without NUL (Postgres refuses it) and lone surrogates (nobody can encode them)."""
    if len(value) > limit:
        value = value[:limit]
    if not value.isascii():
        value = value.encode("utf-8", "replace").decode()
    return value.replace("\0", "") if "\0" in value else value


def _count(tokens: int | None) -> int | None:
    return tokens if tokens is not None and 0 <= tokens < MAX_TOKENS else None


def _plausible(usage: Usage) -> Usage:
    """The usage without counts that cannot be; the common case is the usage itself."""
    if (
        0 <= (usage.input or 0) < MAX_TOKENS
        and 0 <= (usage.output or 0) < MAX_TOKENS
        and 0 <= (usage.cached or 0) < MAX_TOKENS
        and 0 <= (usage.reasoning or 0) < MAX_TOKENS
        and 0 <= (usage.cache_write or 0) < MAX_TOKENS
    ):
        return usage
    counts = (usage.input, usage.output, usage.cached, usage.reasoning, usage.cache_write)
    read, written, cached, reasoning, cache_write = map(_count, counts)
    return Usage(
        input=read, output=written, cached=cached, reasoning=reasoning, cache_write=cache_write, source=usage.source
    )
