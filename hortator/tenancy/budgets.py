"""What a call may use: reserved before it is dispatched, settled by what it used, given back when it used nothing.

The gateway calls `reserve` once it knows where a call may go, and `settle` however it ended. We estimate, ask a counter
(`counters.py`: memory; `redis_counters.py`: many replicas), and turn its verdict into errors and `x-ratelimit-*` headers. What a token
costs comes as a function from the composition root; callers without limits never get here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import ROUND_CEILING, Decimal
from itertools import count
from secrets import token_hex

import msgspec

from hortator.call import Call, Caller, Deployment, Limit, LimitKind, Usage
from hortator.errors import Forbidden, LimitsUnavailable, RateLimited
from hortator.tenancy.counters import CounterGauges, Counters, Hold, Used, Verdict
from hortator.tenancy.limits import NANO

Price = Callable[[Deployment, str | None, Usage], Decimal | None]
"""Dollars that a usage costs at a deployment, given the model name in its reply; None = no price is known."""
Headers = list[tuple[bytes, bytes]]

BYTES_A_TOKEN = 4
ATTACHMENT_TOKENS = 1_000
"""What an embedded image or file counts for before its real usage is known."""
BUSY_SECONDS = 1.0
"""Retry-After of a call that came while too many others of the same caller ran."""
MAX_TOKENS = 10**12
_PROMPT = ("messages", "tools", "functions", "response_format")
_EMBEDDED = re.compile(rb"[A-Za-z0-9+/=_\\-]{2000,}")
_DEGRADED = (b"x-hortator-degraded", b"limits")
_WHOLE = msgspec.json.Decoder(int | None)
_CODES: Mapping[LimitKind, tuple[str, str]] = {
    "requests": ("rate_limit_exceeded", "Request rate limit exceeded"),
    "tokens": ("token_limit_exceeded", "Token limit exceeded"),
    "money": ("budget_exceeded", "Budget exceeded"),
    "concurrent": ("too_many_concurrent_requests", "Too many concurrent requests"),
}


class Reservation(msgspec.Struct):
    """What a call has reserved, and the headers that tell its caller what is left."""

    hold: Hold
    headers: Headers
    reserved: Used


class Budgets:
    """One per process."""

    def __init__(
        self,
        counters: Counters,
        price: Price,
        *,
        default_max_output_tokens: int,
        fail_open: Mapping[str, bool],
    ) -> None:
        """`default_max_output_tokens`: what is reserved for an answer whose request names no maximum. `fail_open`: kinds of limits
        that are passed over while the counter cannot tell.
        """
        self._counters = counters
        self._price = price
        self._default_output = default_max_output_tokens
        self._fail_open = fail_open
        self._replica = token_hex(8)
        self._number = count()

    @property
    def gauges(self) -> CounterGauges:
        """The counter's state."""
        return self._counters.gauges

    async def start(self) -> None:
        """Start the counter."""
        await self._counters.start()

    async def close(self) -> None:
        """End the counter; what waits to be settled is."""
        await self._counters.close()

    async def reserve(self, caller: Caller, call: Call, candidates: Sequence[Deployment]) -> Reservation:
        """Take what the call may use at most from all its limits. Raises RateLimited, having taken nothing; LimitsUnavailable."""
        requested = Used(1, 0, 0)
        kinds = [limit.kind for limit in caller.limits]
        if "tokens" in kinds or "money" in kinds:
            input_tokens, output_tokens = self._estimate(call)
            money = 0
            if "money" in kinds:
                money = self._dearest(candidates, Usage(input=input_tokens, output=output_tokens))
            requested = Used(1, input_tokens + output_tokens, money)
        needs = [_need(limit, requested) for limit in caller.limits]
        hold = Hold(f"{self._replica}-{next(self._number)}", caller.tenant_id, caller.limits, needs)
        verdict = await self._counters.reserve(hold)
        if verdict is None:
            if not all(self._fail_open[kind] for kind in kinds):
                self._counters.settle(hold, Used(0, 0, 0))
                raise LimitsUnavailable("What this key has used cannot be counted now; try again.", retry_after=1)
            return Reservation(hold, [_DEGRADED], requested)
        if not verdict.fits:
            raise _refusal(hold, verdict)
        return Reservation(hold, rate_headers(hold, verdict), requested)

    def settle(
        self, reservation: Reservation, usage: Usage, deployment: Deployment | None, model: str | None, complete: bool
    ) -> None:
        """Count what the call has used instead of what it reserved. `model`: the name in the reply. `complete`: it was answered.

        An answer whose usage nobody knows counts as reserved; a call that failed without any counts nothing but itself (the
        requests of a minute are those that were let through).
        """
        reserved = reservation.reserved
        if usage.input is None and usage.output is None:
            used = reserved if complete else Used(1, 0, 0)
        else:
            input_tokens, output_tokens = max(0, usage.input or 0), max(0, usage.output or 0)
            money = 0
            if reserved.money and deployment is not None:
                known = msgspec.structs.replace(usage, input=input_tokens, output=output_tokens)
                cost = self._price(deployment, model, known)
                money = reserved.money if cost is None else _nano(cost)
            used = Used(1, min(MAX_TOKENS, input_tokens + output_tokens), money)
        self._counters.settle(reservation.hold, used)

    def _estimate(self, call: Call) -> tuple[int, int]:
        """Return the tokens a call may take at most: of its input, from its bytes; of its answers, as asked or the default."""
        size = 0
        for field in _PROMPT:
            raw = call.body.get(field)
            if raw is not None:
                size += _prompt_size(bytes(raw))
        asked = _whole(call, "max_completion_tokens")
        if asked is None:
            asked = _whole(call, "max_tokens")
        output = self._default_output if asked is None else max(0, asked)
        answers = max(1, _whole(call, "n") or 1)
        return max(1, -(-size // BYTES_A_TOKEN)), min(MAX_TOKENS, output * answers)

    def _dearest(self, candidates: Sequence[Deployment], usage: Usage) -> int:
        """Return what a usage costs at most where the call may go. Raises Forbidden when that cannot be said."""
        dearest = Decimal(0)
        for deployment in candidates:
            cost = self._price(deployment, None, usage)
            if cost is None:
                raise Forbidden(
                    "This model has no price, so it cannot be used under a budget of money.",
                    code="model_not_priced",
                    param="model",
                )
            dearest = max(dearest, cost)
        return _nano(dearest)


def rate_headers(hold: Hold, verdict: Verdict) -> Headers:
    """Return `x-ratelimit-{limit,remaining,reset}-{requests,tokens}` of the limits that are nearest, as they are after the call."""
    headers: Headers = []
    for kind, name in (("requests", b"requests"), ("tokens", b"tokens")):
        nearest, left = -1, 0
        for place, limit in enumerate(hold.limits):
            if limit.kind == kind:
                remaining = limit.amount - verdict.used[place] - (hold.needs[place] if verdict.fits else 0)
                if nearest < 0 or remaining < left:
                    nearest, left = place, remaining
        if nearest >= 0:
            headers.append((b"x-ratelimit-limit-" + name, b"%d" % hold.limits[nearest].amount))
            headers.append((b"x-ratelimit-remaining-" + name, b"%d" % max(0, left)))
            headers.append((b"x-ratelimit-reset-" + name, go_duration(verdict.ends[nearest])))
    return headers


def go_duration(seconds: float) -> bytes:
    """Write a duration as Go does and clients of OpenAI expect: `120ms`, `12s`, `6m0s`, `1h0m0s`."""
    if seconds < 1:
        return b"%dms" % max(0, math.ceil(seconds * 1000))
    minutes, rest = divmod(math.ceil(seconds), 60)
    if not minutes:
        return b"%ds" % rest
    hours, minutes = divmod(minutes, 60)
    return b"%dh%dm%ds" % (hours, minutes, rest) if hours else b"%dm%ds" % (minutes, rest)


def _need(limit: Limit, requested: Used) -> int:
    if limit.kind == "tokens":
        return requested.tokens
    return requested.money if limit.kind == "money" else 1


def _refusal(hold: Hold, verdict: Verdict) -> RateLimited:
    """Return the error of the limit that stands longest in the way: one the call never fits in, else the one that ends last."""

    def wait(place: int) -> float:
        limit = hold.limits[place]
        if hold.needs[place] > limit.amount:
            return math.inf
        return BUSY_SECONDS if limit.kind == "concurrent" else verdict.ends[place]

    full = [place for place, limit in enumerate(hold.limits) if verdict.used[place] + hold.needs[place] > limit.amount]
    place = max(full, key=wait)
    limit, seconds = hold.limits[place], wait(place)
    code, reason = _CODES[limit.kind]
    whose = limit.key.partition(":")[0]
    if seconds == math.inf:
        said = "This request alone may use more than that; ask for less, for example with a lower max_tokens."
    else:
        said = f"Try again in {max(1, math.ceil(seconds))} s."
    return RateLimited(
        f"{reason}: {limit.text} for this {whose}. {said}",
        code=code,
        retry_after=None if seconds == math.inf else max(1, math.ceil(seconds)),
        headers=tuple(rate_headers(hold, verdict)),
    )


def _prompt_size(raw: bytes) -> int:
    """Bytes of text in a part of the body; an embedded image or file counts for `ATTACHMENT_TOKENS`."""
    if b";base64," not in raw:
        return len(raw)
    embedded = [len(found[0]) for found in _EMBEDDED.finditer(raw)]
    return len(raw) - sum(embedded) + len(embedded) * ATTACHMENT_TOKENS * BYTES_A_TOKEN


def _whole(call: Call, field: str) -> int | None:
    """A whole number of the body, whose type the door has checked."""
    raw = call.body.get(field)
    return None if raw is None else _WHOLE.decode(raw)


def _nano(dollars: Decimal) -> int:
    """Billionths, rounded up."""
    return int((dollars * NANO).to_integral_value(ROUND_CEILING))
