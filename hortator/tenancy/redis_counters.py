"""Counts in Redis, for many replicas: whatever the calls of one moment reserve and settle goes as one script, and 50 ms for an answer.

`budgets.py` calls it as it calls `MemoryCounters`. One batch is on its way at a time, over `redis_wire.py`; the next one leaves when
it is answered. Slow or gone, Redis is left alone and asked every half second whether it is back; meanwhile nobody waits for it, and
`reserve` says that it cannot tell. A Redis that has lost its counts is told them again (`spending.py`) before it is believed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from hashlib import sha1
from itertools import count
from secrets import token_hex
from typing import Any, NamedTuple

import msgspec

from hortator.tenancy.counters import CounterGauges, Hold, Used, Verdict
from hortator.tenancy.limits import MONTH, window
from hortator.tenancy.redis_wire import Answered, RedisFailure, Reply, Wire, address, connect
from hortator.tenancy.spending import ReadSpending, StoreSilent

log = logging.getLogger("hortator.tenancy")

RETRY_SECONDS = 0.5
"""How often a Redis that failed is asked whether it is back."""
SETTLE_SECONDS = 0.01
"""How long what a call gives back may wait for a reservation to travel with."""
CONNECT_SECONDS = 1.0
GRACE_SECONDS = 0.002
"""A loop that was held up itself reads what has come meanwhile before it says that Redis is slow."""
_BATCH = 128
_MAX_UNSETTLED = 20_000
_REBUILD = 500
_CLOSE_SECONDS = 1.0

# KEYS[1]: prefix of all keys; those of a tenant are hash-tagged. ARGV[1], in MessagePack:
# the life of a hold, the month's start, its end, the next one's end, the name of a month, settlements (each of them tenant, hold,
# requests, tokens, money) and reservations (each of them tenant, hold, what it needs of each limit, the limits).
# A hold is a list of parts: first letter of the kind, counter, amount; the sorted set `holds` knows when each expires. Of one that has
# expired the amounts are 0, so that a call which ends after all still counts, once.
# Answers seconds, microseconds, and 0 when the counts were lost, else a list with one answer for each reservation: 0 when it could
# not be counted, else a list of 1 or 0 for whether it fits, and, for each limit, what was used and when its window ends.
_SCRIPT = """
local base, batch = KEYS[1], cmsgpack.unpack(ARGV[1])
local life, month = batch[1], batch
local clock = redis.call('TIME')
local now = tonumber(clock[1])
if redis.call('EXISTS', base .. 'epoch') == 0 then return cmsgpack.pack({now, tonumber(clock[2]), 0}) end

local function whole(number) return string.format('%.0f', number) end

local function add(key, delta)
  if delta ~= 0 and redis.call('EXISTS', key) == 1 then
    if redis.call('INCRBY', key, whole(delta)) < 0 then redis.call('SET', key, 0, 'KEEPTTL') end
  end
end

local function settle(item)
  local home = base .. '{' .. item[1] .. '}:'
  local hold = home .. 'hold:' .. item[2]
  local parts = redis.call('GET', hold)
  if not parts then return end
  local actual = {r = item[3], t = item[4], m = item[5], c = 0}
  for _, part in ipairs(cmsgpack.unpack(parts)) do add(part[2], actual[part[1]] - part[3]) end
  redis.call('DEL', hold)
  redis.call('ZREM', home .. 'holds', item[2])
end

local expired = {}
local function expire(home)
  if expired[home] then return end
  expired[home] = true
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', home .. 'holds', '-inf', now, 'LIMIT', 0, 100)) do
    local hold = home .. 'hold:' .. id
    local parts = redis.call('GET', hold)
    if parts then
      parts = cmsgpack.unpack(parts)
      for _, part in ipairs(parts) do
        add(part[2], -part[3])
        part[3] = 0
      end
      redis.call('SET', hold, cmsgpack.pack(parts), 'KEEPTTL')
    end
    redis.call('ZREM', home .. 'holds', id)
  end
end

local function reserve(item)
  local home, needs, limits = base .. '{' .. item[1] .. '}:', item[3], item[4]
  expire(home)
  local reply, keys, fits = {1}, {}, true
  for i, limit in ipairs(limits) do
    local seconds, from, to = limit.window, 0, 0
    if seconds == month[5] then
      from, to = month[2], month[3]
      if now >= to then from, to = to, month[4] end
    elseif seconds > 0 then
      from = now - now % seconds
      to = from + seconds
    end
    local key = home .. limit.key .. ':' .. whole(from)
    local used = tonumber(redis.call('GET', key) or '0')
    if used + needs[i] > limit.amount then fits = false end
    keys[i] = key
    reply[#reply + 1], reply[#reply + 2] = used, to
  end
  if not fits then
    reply[1] = 0
    return reply
  end
  local parts = {}
  for i, limit in ipairs(limits) do
    local key, to = keys[i], reply[2 * i + 1]
    redis.call('INCRBY', key, whole(needs[i]))
    if to > 0 then redis.call('EXPIREAT', key, to + 60) else redis.call('EXPIRE', key, life + 3600) end
    parts[i] = {string.sub(limit.kind, 1, 1), key, needs[i]}
  end
  redis.call('SET', home .. 'hold:' .. item[2], cmsgpack.pack(parts), 'EX', life + 3600)
  redis.call('ZADD', home .. 'holds', now + life, item[2])
  redis.call('EXPIRE', home .. 'holds', life + 3600)
  return reply
end

local replies = {}
for _, item in ipairs(batch[6]) do pcall(settle, item) end
for i, item in ipairs(batch[7]) do
  local counted, reply = pcall(reserve, item)
  replies[i] = counted and reply or 0
end
return cmsgpack.pack({now, tonumber(clock[2]), replies})
"""
# KEYS[1]: as above. ARGV[1]: counters, each with what is used and when it expires; ARGV[2]: 1 = that was all.
_REBUILD_SCRIPT = """
for _, one in ipairs(cmsgpack.unpack(ARGV[1])) do
  redis.call('SET', KEYS[1] .. one[1], string.format('%.0f', one[2]), 'NX', 'EXAT', string.format('%.0f', one[3]))
end
if ARGV[2] == '1' then redis.call('SET', KEYS[1] .. 'epoch', redis.call('TIME')[1], 'NX') end
return 1
"""
_SHA = sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest().encode()
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, int, int | list[int | list[int]]]).decode

_Waiter = asyncio.Future[Verdict | None]


class _Batch(NamedTuple):
    """What is on its way to Redis."""

    settled: list[tuple[Hold, Used]]
    asked: list[tuple[Hold, _Waiter]]
    sent_at: float
    deadline: float


class RedisCounters:
    """One per process; see `Counters` for what it promises."""

    def __init__(
        self,
        url: str,
        *,
        deadline: float,
        hold_seconds: int,
        prefix: str = "hortator",
        spending: ReadSpending | None = None,
    ) -> None:
        """`deadline`: seconds an answer may take. `hold_seconds`: what is reserved returns after this long if nobody settles it,
        as when the replica died. `spending`: what the ledger knows, for a Redis that lost its counts. Raises ConfigError.
        """
        self._address = address(url)
        self._deadline = deadline
        self._hold_seconds = hold_seconds
        self._prefix = prefix.encode() + b":"
        self._spending = spending
        self._replica = token_hex(8)
        self._number = count()
        self._asked: deque[tuple[Hold, _Waiter]] = deque()
        self._settled: deque[tuple[Hold, Used]] = deque()
        self._asked_since = 0.0
        self._batch: _Batch | None = None
        self._flushing = False
        self._settling = False
        self._watching = False
        self._wire: Wire | None = None
        self._up = False
        self._closing = False
        self._returning: asyncio.Task[None] | None = None
        self._failed_at = float("-inf")
        self._month = (0, 0, 0)
        self._dropped = 0
        self._calls = 0
        self._seconds = 0.0
        self._rebuilt = 0

    async def start(self) -> None:
        """Begin to talk to Redis. One that is not there does not stop the start."""
        if not await self._open():
            log.warning("redis cannot be used (it did not answer at the start): limits hold as limits.fail_open says")
            self._come_back()

    async def close(self) -> None:
        """Settle what waits, if Redis answers, and hang up."""
        self._closing = True
        if self._returning is not None:
            self._returning.cancel()
            await asyncio.wait((self._returning,), timeout=_CLOSE_SECONDS)
        deadline = time.monotonic() + _CLOSE_SECONDS
        while self._up and (self._settled or self._batch is not None) and time.monotonic() < deadline:
            self._flush()
            await asyncio.sleep(SETTLE_SECONDS)
        if self._wire is not None:
            self._wire.abort()

    @property
    def gauges(self) -> CounterGauges:
        """See `Counters`."""
        return CounterGauges(
            degraded=not self._up,
            scopes=0,
            unsettled=len(self._settled),
            dropped=self._dropped,
            calls=self._calls,
            call_seconds=self._seconds,
            rebuilt=self._rebuilt,
        )

    async def reserve(self, hold: Hold) -> Verdict | None:
        """See `Counters`. Answers within the deadline."""
        if not self._up:
            return None
        if not hold.id:
            hold.id = f"{self._replica}-{next(self._number)}"
        loop = asyncio.get_running_loop()
        waiter: _Waiter = loop.create_future()
        if not self._asked:
            self._asked_since = time.monotonic()
            if not self._flushing:
                self._flushing = True
                loop.call_soon(self._flush)
        self._asked.append((hold, waiter))
        try:
            return await waiter
        except asyncio.CancelledError:
            if hold.uncertain:
                self.settle(hold, Used(0, 0, 0))
            raise

    def settle(self, hold: Hold, used: Used) -> None:
        """See `Counters`. Runs as soon as Redis answers; given up when too many wait."""
        if not hold.uncertain:
            return
        hold.uncertain = False
        if len(self._settled) >= _MAX_UNSETTLED:
            self._dropped += 1
            return
        self._settled.append((hold, used))
        if not self._settling and self._up:
            self._settling = True
            asyncio.get_running_loop().call_later(SETTLE_SECONDS, self._flush_settled)

    def _flush_settled(self) -> None:
        self._settling = False
        if self._settled:
            self._flush()

    def _flush(self) -> None:
        """Send what waits, up to 128 of each kind, unless a batch is on its way: its answer sends the next."""
        self._flushing = False
        if self._batch is not None or not self._up or self._wire is None:
            return
        asked: list[tuple[Hold, _Waiter]] = []
        while self._asked and len(asked) < _BATCH:
            one = self._asked.popleft()
            if not one[1].done():
                one[0].uncertain = True
                asked.append(one)
        settled = [self._settled.popleft() for _ in range(min(_BATCH, len(self._settled)))]
        if not asked and not settled:
            return
        now = time.monotonic()
        self._batch = _Batch(settled, asked, now, (self._asked_since if asked else now) + self._deadline)
        self._send(settled, asked, self._answered)
        if not self._watching:
            self._watching = True
            asyncio.get_running_loop().call_later(self._deadline, self._watch)

    def _send(self, settled: list[tuple[Hold, Used]], asked: list[tuple[Hold, _Waiter]], answered: Answered) -> None:
        """Send one batch. The months' bounds are ours: Redis picks the one its own clock is in."""
        now = time.time()
        if not self._month[0] <= now < self._month[1]:
            start, end = window(MONTH, now)
            self._month = (int(start), int(end), int(window(MONTH, end)[1]))
        batch = (
            self._hold_seconds,
            *self._month,
            MONTH,
            [(hold.tenant_id, hold.id, used.requests, used.tokens, used.money) for hold, used in settled],
            [(hold.tenant_id, hold.id, hold.needs, hold.limits) for hold, _ in asked],
        )
        assert self._wire is not None
        self._wire.send((b"EVALSHA", _SHA, b"1", self._prefix, _encode(batch)), answered)

    def _answered(self, reply: Reply) -> None:
        """Tell everyone in the batch, and send the next one."""
        batch, self._batch = self._batch, None
        if batch is None:
            return
        now = time.monotonic()
        self._calls += 1
        self._seconds += now - batch.sent_at
        try:
            if isinstance(reply, RedisFailure):
                raise reply
            seconds, micros, replies = _decode(reply)
            if isinstance(replies, int) or (replies and not any(replies)):
                raise RedisFailure("counts were lost" if isinstance(replies, int) else "nothing can be counted")
        except (RedisFailure, msgspec.DecodeError) as error:
            self._fail(batch, str(error))
            return
        moment = seconds + micros / 1_000_000
        for (hold, waiter), said in zip(batch.asked, replies, strict=True):
            if waiter.done():
                continue
            if isinstance(said, int):
                waiter.set_result(None)
                continue
            fits = said[0] == 1
            hold.uncertain = fits
            ends = [end - moment if end else float("inf") for end in said[2::2]]
            waiter.set_result(Verdict(fits, said[1::2], ends))
        if self._asked:
            self._flush()

    def _watch(self) -> None:
        """While batches are on their way, look now and then whether one is late: one timer for many batches."""
        batch = self._batch
        self._watching = batch is not None
        if batch is None:
            return
        left = batch.deadline - time.monotonic()
        loop = asyncio.get_running_loop()
        if left > 0:
            loop.call_later(left, self._watch)
        else:
            self._watching = False
            loop.call_later(GRACE_SECONDS, self._late, batch)

    def _late(self, batch: _Batch) -> None:
        if self._batch is batch:
            self._batch = None
            self._fail(batch, "no answer in time")
        elif self._batch is not None and not self._watching:
            self._watching = True
            self._watch()

    def _fail(self, batch: _Batch | None, why: str) -> None:
        """Redis cannot be asked: nobody waits for it, settlements are kept, and it is asked whether it is back."""
        was_up, self._up = self._up, False
        if batch is not None:
            self._settled.extendleft(reversed(batch.settled))
        for _, waiter in (*(batch.asked if batch is not None else ()), *self._asked):
            if not waiter.done():
                waiter.set_result(None)
        self._asked.clear()
        if self._wire is not None:
            wire, self._wire = self._wire, None
            wire.abort()
        if was_up and not self._closing:
            log.warning("redis cannot be used (%s): limits hold as limits.fail_open says", why)
        self._come_back()

    def _lost(self, wire: Wire) -> None:
        """The connection broke; those who waited for a reply have been told."""
        if wire is self._wire:
            self._wire = None
            self._fail(None, "connection lost")

    def _come_back(self) -> None:
        if not self._closing and (self._returning is None or self._returning.done()):
            self._returning = asyncio.create_task(self._return(), name="limits-redis")

    async def _return(self) -> None:
        """Ask now and then whether Redis is back; at once when it has not failed just before."""
        while True:
            pause = self._failed_at + RETRY_SECONDS - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
            self._failed_at = time.monotonic()
            try:
                if await self._open():
                    break
            except Exception as error:  # noqa: BLE001 - the outermost edge of this task; without it limits would fail for good
                log.error("redis cannot be used: %s", type(error).__name__)
        log.warning("redis answers again: limits hold")
        if self._settled:
            self._flush()

    async def _open(self) -> bool:
        """Connect, load the script, and rebuild the counts if they are gone. Says whether Redis can be used."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                wire = await connect(self._address, self._lost)
                self._wire = wire
                await wire.ask(b"SCRIPT", b"LOAD", _SCRIPT.encode())
            if not await self._counting(wire):
                await self._rebuild(wire)
                if not await self._counting(wire):
                    raise RedisFailure("counts do not stay")
        except (OSError, TimeoutError, RedisFailure, StoreSilent, msgspec.DecodeError):
            if self._wire is not None:
                wire, self._wire = self._wire, None
                wire.abort()
            return False
        self._up = self._wire is wire
        return self._up

    async def _counting(self, wire: Wire) -> bool:
        """Whether an empty batch is answered in time, and the counts are there."""
        waiter: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._send([], [], lambda reply: None if waiter.done() else waiter.set_result(reply))
        async with asyncio.timeout(self._deadline):
            reply = await waiter
        if isinstance(reply, RedisFailure):
            raise reply
        return not isinstance(_decode(reply)[2], int)

    async def _rebuild(self, wire: Wire) -> None:
        """Tell Redis what the ledger knows of the running windows. What another replica has told it stays."""
        spent = [] if self._spending is None else await self._spending(time.time())
        found: list[Any] = [
            (f"{{{one.tenant_id}}}:{one.key}:{int(one.start)}", one.used, int(one.end) + 60) for one in spent
        ]
        async with asyncio.timeout(CONNECT_SECONDS * (1 + len(found) / _REBUILD)):
            for start in range(0, max(1, len(found)), _REBUILD):
                last = b"1" if start + _REBUILD >= len(found) else b"0"
                some = _encode(found[start : start + _REBUILD])
                await wire.ask(b"EVAL", _REBUILD_SCRIPT.encode(), b"1", self._prefix, some, last)
        self._rebuilt += 1
        if spent:
            log.warning("redis had lost its counts: %d were rebuilt from the usage records", len(found))
