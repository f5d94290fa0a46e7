"""What a call may use: reserved before it is dispatched, settled by what it used, given back when it used nothing.

The gateway calls `reserve` once it knows where a call may go, and `settle` however it ended. We estimate, ask a counter
(`counters.py`: memory; `redis_counters.py`: many replicas), and turn its verdict into errors and `x-ratelimit-*` headers. What a token
costs comes as a function from the composition root; callers without limits never get here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import ceil, inf

import msgspec

from hortator.call import Attempt, Call, Caller, Deployment, KeyHash, Limit, LimitKind, Operation, Usage
from hortator.errors import Forbidden, LimitsUnavailable, RateLimited
from hortator.tenancy.counters import CounterGauges, Counters, Hold, Used, Verdict

Price = Callable[[Deployment, str | None, Usage], int | None]
"""Billionths of a dollar that a usage costs at a deployment, given the model name in its reply; None = no price is known."""
Headers = list[tuple[bytes, bytes]]

BYTES_A_TOKEN = 4
ATTACHMENT_TOKENS = 1_000
"""What an embedded image or file counts for before its real usage is known."""
BUSY_SECONDS = 1.0
"""Retry-After of a call that came while too many others of the same caller ran."""
MAX_TOKENS = 10**12
_PROMPT: Mapping[Operation, tuple[str, ...]] = {
    "chat": ("messages", "tools", "functions", "response_format"),
    "responses": ("input", "instructions", "tools", "text"),
    "messages": ("messages", "system", "tools"),
    "completions": ("prompt", "suffix"),
    "embeddings": ("input",),
    "moderations": ("input",),
}
"""What of a body is input."""
_MAXIMUM: Mapping[Operation, tuple[str, ...]] = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "responses": ("max_output_tokens",),
    "messages": ("max_tokens",),
    "completions": ("max_tokens",),
}
"""What says how long an answer may be; dialects that are not here have none."""
_SMALLEST_EMBEDDED = 2_000
_EMBEDDED = re.compile(rb"[A-Za-z0-9+/=_\\-]{2000,}")
_DEGRADED = (b"x-hortator-degraded", b"limits")
_MAX_PLANS = 10_000
_MAX_RESETS = 64
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
    tokens: int
    money: int
    """Billionths of a US dollar."""


class BudgetGauges(msgspec.Struct, frozen=True):
    """State of the limits, for metrics. Totals are of calls with limits, in this process."""

    counter: CounterGauges
    reserved: int
    settled: int
    """Counted by what they used."""
    refunded: int
    """Ended without having used anything: what they had reserved was given back."""
    passed: int
    """Not counted, because the counter could not tell."""
    unavailable: int
    """Refused, because the counter could not tell."""
    refused: Mapping[LimitKind, int]
    """By the kind of the limit that stood in the way."""
    tokens: tuple[int, int]
    """Reserved; used in the end."""
    money: tuple[int, int]
    """The same, billionths of a US dollar."""


class _Plan:
    """What can be said of a caller's limits before there is a call."""

    __slots__ = ("counts_money", "counts_tokens", "limits", "needs", "shown")

    def __init__(self, limits: tuple[Limit, ...]) -> None:
        self.limits = limits
        kinds = [limit.kind for limit in limits]
        self.counts_money = "money" in kinds
        self.counts_tokens = self.counts_money or "tokens" in kinds
        self.needs = [{"tokens": 1, "money": 2}.get(kind, 0) for kind in kinds]
        """Of each limit: which of (1, tokens, money) a call needs of it."""
        self.shown: list[_Shown] = []
        for kind, name in (("requests", b"requests"), ("tokens", b"tokens")):
            places = [place for place, one in enumerate(kinds) if one == kind]
            if places:
                self.shown.append(_Shown(name, places, limits))


class _Shown:
    """The `x-ratelimit-` headers of one kind, as far as they are the same for every call."""

    __slots__ = ("first", "limits", "others", "remaining", "reset", "resets")

    def __init__(self, name: bytes, places: list[int], limits: tuple[Limit, ...]) -> None:
        self.first, *self.others = places
        self.limits = {place: (b"x-ratelimit-limit-" + name, b"%d" % limits[place].amount) for place in places}
        self.remaining = b"x-ratelimit-remaining-" + name
        self.reset = b"x-ratelimit-reset-" + name
        self.resets: dict[int, tuple[bytes, bytes]] = {}
        """By whole seconds: calls of one second say the same."""

    def new_reset(self, seconds: float, whole: int) -> tuple[bytes, bytes]:
        """Write the header; remember it where it does not change within a second."""
        header = (self.reset, go_duration(seconds))
        if whole > 1:
            if len(self.resets) >= _MAX_RESETS:
                self.resets.clear()
            self.resets[whole] = header
        return header


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
        self.configure(price, default_max_output_tokens=default_max_output_tokens, fail_open=fail_open)
        self._plans: dict[KeyHash, _Plan] = {}
        self._reserved = self._settled = self._refunded = self._passed = self._unavailable = 0
        self._refused: dict[LimitKind, int] = dict.fromkeys(_CODES, 0)
        self._tokens_reserved = self._tokens_used = self._money_reserved = self._money_used = 0

    def configure(self, price: Price, *, default_max_output_tokens: int, fail_open: Mapping[str, bool]) -> None:
        """Go on with other prices and rules; what is reserved stays as it is."""
        self._price = price
        self._default_output = default_max_output_tokens
        self._fail_open = fail_open

    @property
    def gauges(self) -> BudgetGauges:
        """The state now."""
        return BudgetGauges(
            counter=self._counters.gauges,
            reserved=self._reserved,
            settled=self._settled,
            refunded=self._refunded,
            passed=self._passed,
            unavailable=self._unavailable,
            refused=self._refused,
            tokens=(self._tokens_reserved, self._tokens_used),
            money=(self._money_reserved, self._money_used),
        )

    async def start(self) -> None:
        """Start the counter."""
        await self._counters.start()

    async def close(self) -> None:
        """End the counter; what waits to be settled is."""
        await self._counters.close()

    async def reserve(self, caller: Caller, call: Call, candidates: Sequence[Deployment]) -> Reservation:
        """Take what the call may use at most from all its limits. Raises RateLimited, having taken nothing; LimitsUnavailable."""
        plan = self._plans.get(caller.key_hash)
        if plan is None or plan.limits is not caller.limits:
            plan = self._new_plan(caller)
        tokens = money = 0
        if plan.counts_tokens:
            input_tokens, output_tokens = self._estimate(call)
            tokens = input_tokens + output_tokens
            if plan.counts_money:
                money = self._dearest(candidates, Usage(input=input_tokens, output=output_tokens))
        amounts = (1, tokens, money)
        hold = Hold("", caller.tenant_id, plan.limits, [amounts[which] for which in plan.needs])
        verdict = await self._counters.reserve(hold)
        if verdict is None:
            return self._unknown(hold, tokens, money)
        if not verdict.fits:
            error, kind = _refusal(plan, hold, verdict)
            self._refused[kind] += 1
            raise error
        self._reserved += 1
        self._tokens_reserved += tokens
        self._money_reserved += money
        return Reservation(hold, _rate_headers(plan, hold.needs, verdict), tokens, money)

    def settle(
        self,
        reservation: Reservation,
        usage: Usage,
        deployment: Deployment | None,
        model: str | None,
        complete: bool,
        attempts: Sequence[Attempt] = (),
    ) -> None:
        """Count what the call has used instead of what it reserved. `model`: the name in the reply. `complete`: it was answered.

        An answer whose usage nobody knows counts as reserved; a call that failed without any counts nothing but itself (the
        requests of a minute are those that were let through). `usage` is the last attempt's; of `attempts` those before it are
        counted beside it, where an answer had begun: providers charge for these too.
        """
        tokens, money = reservation.tokens, reservation.money
        if not tokens:
            # Neither tokens nor money are limited: a call that is counted needs one token at least.
            self._settled += 1
        else:
            known = usage.input is not None or usage.output is not None
            if known:
                tokens, money = self._took(usage, deployment, model, money)
            elif not complete:
                tokens = money = 0
            if len(attempts) > 1:
                more, dollars = self._earlier(attempts, reservation.money)
                tokens, money = min(tokens + more, MAX_TOKENS), money + dollars
            if known or complete or tokens:
                self._settled += 1
            else:
                self._refunded += 1
        self._tokens_used += tokens
        self._money_used += money
        self._counters.settle(reservation.hold, Used(1, tokens, money))

    def _took(self, usage: Usage, deployment: Deployment | None, model: str | None, reserved: int) -> tuple[int, int]:
        """The tokens and the money of one attempt. Money is only counted where some is `reserved`, and is that without a price."""
        read, written = usage.input, usage.output
        if read is None or written is None or read < 0 or written < 0:
            read, written = max(0, read or 0), max(0, written or 0)
            usage = msgspec.structs.replace(usage, input=read, output=written)
        tokens = read + written
        if tokens > MAX_TOKENS:
            tokens = MAX_TOKENS
        if deployment is None:
            return tokens, 0
        cost = self._price(deployment, model, usage) if reserved else 0
        return tokens, reserved if cost is None else cost

    def _earlier(self, attempts: Sequence[Attempt], reserved: int) -> tuple[int, int]:
        """What the attempts before the last took, as far as is known."""
        tokens = money = 0
        for attempt in attempts[:-1]:
            usage = attempt.usage
            if usage.input is not None or usage.output is not None:
                model = attempt.deployment.partition("/")[2]
                place = Deployment(id=attempt.deployment, provider=attempt.provider, model=model)
                more, dollars = self._took(usage, place, attempt.response_model, reserved)
                tokens, money = tokens + more, money + dollars
        return tokens, money

    def _new_plan(self, caller: Caller) -> _Plan:
        """Remember the plan of a key; a bounded number of them."""
        if len(self._plans) >= _MAX_PLANS:
            self._plans.pop(next(iter(self._plans)))
        known = self._plans.get(caller.key_hash)
        if known is not None and known.limits == caller.limits:
            known.limits = caller.limits
            return known
        plan = self._plans[caller.key_hash] = _Plan(caller.limits)
        return plan

    def _unknown(self, hold: Hold, tokens: int, money: int) -> Reservation:
        """What to do with a call of which the counter cannot tell whether it fits. Raises LimitsUnavailable."""
        if all(self._fail_open[limit.kind] for limit in hold.limits):
            self._passed += 1
            return Reservation(hold, [_DEGRADED], tokens, money)
        self._counters.settle(hold, Used(0, 0, 0))
        self._unavailable += 1
        raise LimitsUnavailable("What this key has used cannot be counted now; try again.", retry_after=1)

    def _estimate(self, call: Call) -> tuple[int, int]:
        """Return the tokens a call may take at most: of its input, from its bytes; of its answers, as asked or the default."""
        get, operation = call.body.get, call.operation
        size = 0
        for field in _PROMPT[operation]:
            raw = get(field)
            if raw is not None:
                length = len(raw)
                size += length if length < _SMALLEST_EMBEDDED else _prompt_size(bytes(raw))
        maximum = _MAXIMUM.get(operation)
        output = 0
        if maximum is not None:
            asked = None
            for field in maximum:
                raw = get(field)
                if raw is not None and asked is None:
                    asked = _whole(raw)
            output = self._default_output if asked is None else max(0, asked)
            many = get("n")
            if many is not None:
                output *= max(1, _whole(many) or 1)
        return max(1, -(-size // BYTES_A_TOKEN)), output if output < MAX_TOKENS else MAX_TOKENS

    def _dearest(self, candidates: Sequence[Deployment], usage: Usage) -> int:
        """Return what a usage costs at most where the call may go. Raises Forbidden when that cannot be said."""
        dearest = 0
        for deployment in candidates:
            cost = self._price(deployment, None, usage)
            if cost is None:
                raise Forbidden(
                    "This model has no price, so it cannot be used under a budget of money.",
                    code="model_not_priced",
                    param="model",
                )
            if cost > dearest:
                dearest = cost
        return dearest


def _rate_headers(plan: _Plan, needs: Sequence[int], verdict: Verdict) -> Headers:
    """Return `x-ratelimit-{limit,remaining,reset}-{requests,tokens}` of the limits that are nearest, after a call with these needs."""
    limits, used = plan.limits, verdict.used
    headers: Headers = []
    for shown in plan.shown:
        nearest = shown.first
        left = limits[nearest].amount - used[nearest] - needs[nearest]
        for place in shown.others:
            remaining = limits[place].amount - used[place] - needs[place]
            if remaining < left:
                nearest, left = place, remaining
        headers.append(shown.limits[nearest])
        headers.append((shown.remaining, b"%d" % left if left > 0 else b"0"))
        seconds = ceil(verdict.ends[nearest])
        reset = shown.resets.get(seconds)
        headers.append(reset if reset is not None else shown.new_reset(verdict.ends[nearest], seconds))
    return headers


def go_duration(seconds: float) -> bytes:
    """Write a duration as Go does and clients of OpenAI expect: `120ms`, `12s`, `6m0s`, `1h0m0s`."""
    if seconds < 1:
        return b"%dms" % max(0, ceil(seconds * 1000))
    minutes, rest = divmod(ceil(seconds), 60)
    if not minutes:
        return b"%ds" % rest
    hours, minutes = divmod(minutes, 60)
    return b"%dh%dm%ds" % (hours, minutes, rest) if hours else b"%dm%ds" % (minutes, rest)


def _refusal(plan: _Plan, hold: Hold, verdict: Verdict) -> tuple[RateLimited, LimitKind]:
    """Return the error, and the kind, of the limit that stands longest in the way: one the call never fits in, else the one that ends last."""

    def wait(place: int) -> float:
        limit = hold.limits[place]
        if hold.needs[place] > limit.amount:
            return inf
        return BUSY_SECONDS if limit.kind == "concurrent" else verdict.ends[place]

    full = [place for place, limit in enumerate(hold.limits) if verdict.used[place] + hold.needs[place] > limit.amount]
    place = max(full, key=wait)
    limit, seconds = hold.limits[place], wait(place)
    code, reason = _CODES[limit.kind]
    whose = limit.key.partition(":")[0]
    if seconds == inf:
        said = "This request alone may use more than that; ask for less, for example with a lower max_tokens."
    else:
        said = f"Try again in {max(1, ceil(seconds))} s."
    error = RateLimited(
        f"{reason}: {limit.text} for this {whose}. {said}",
        code=code,
        retry_after=None if seconds == inf else max(1, ceil(seconds)),
        headers=tuple(_rate_headers(plan, [0] * len(hold.needs), verdict)),
    )
    return error, limit.kind


def _prompt_size(raw: bytes) -> int:
    """Bytes of text in a part of the body; an embedded image or file counts for `ATTACHMENT_TOKENS`."""
    if raw.find(b";base64,") < 0:
        return len(raw)
    embedded = [len(found[0]) for found in _EMBEDDED.finditer(raw)]
    return len(raw) - sum(embedded) + len(embedded) * ATTACHMENT_TOKENS * BYTES_A_TOKEN


def _whole(raw: msgspec.Raw) -> int | None:
    """A whole number of the body. Doors check the types that matter to them; what is none here is none asked for."""
    try:
        number: int | None = _WHOLE.decode(raw)
    except msgspec.ValidationError:
        return None
    return number
