"""Counts in Redis, for many replicas: one script a reservation, one a settlement, 50 ms for an answer.

`budgets.py` calls it as it calls `MemoryCounters`. All commands go through one connection in order, in batches, so that what a call
gives back is there when the next one asks. Slow or gone, Redis is left alone and asked every half second whether it is back;
meanwhile nobody waits for it, and `reserve` says that it cannot tell. The one owner of the extra `redis`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable
from hashlib import sha1
from typing import TYPE_CHECKING, Any, NamedTuple

from hortator.call import TenantId
from hortator.errors import ConfigError
from hortator.tenancy.counters import CounterGauges, Hold, Used, Verdict, window
from hortator.tenancy.limits import MONTH

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

log = logging.getLogger("hortator.tenancy")

RETRY_SECONDS = 0.5
"""How often a Redis that failed is asked whether it is back."""
IDLE_SECONDS = 1.0
"""After this long without use it is asked whether the connection is still open."""
_BATCH = 128
_MAX_UNSETTLED = 20_000
_CLOSE_SECONDS = 1.0

# KEYS[1]: prefix of the tenant's keys, hash-tagged, so that all of them are in one slot.
# A hold is a hash of `<kind>:<counter>` to the amount it reserved; the sorted set `holds` knows when each expires.
_GIVE = """
local base = KEYS[1]
local function add(key, delta)
  if delta ~= 0 and redis.call('EXISTS', key) == 1 then
    if redis.call('INCRBY', key, string.format('%.0f', delta)) < 0 then redis.call('SET', key, 0, 'KEEPTTL') end
  end
end
"""
_RESERVE = (
    _GIVE
    + """
local clock = redis.call('TIME')
local now = tonumber(clock[1])
for _, id in ipairs(redis.call('ZRANGEBYSCORE', base .. 'holds', '-inf', now, 'LIMIT', 0, 100)) do
  local hold = base .. 'hold:' .. id
  local parts = redis.call('HGETALL', hold)
  for i = 1, #parts, 2 do
    add(string.sub(parts[i], 3), -tonumber(parts[i + 1]))
    redis.call('HSET', hold, parts[i], 0)
  end
  redis.call('ZREM', base .. 'holds', id)
end
local id, life = ARGV[1], tonumber(ARGV[2])
local reply, keys, ends, fits = {1, now, tonumber(clock[2])}, {}, {}, true
for i = 7, #ARGV, 5 do
  local name, seconds, amount, need = ARGV[i], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3]), tonumber(ARGV[i + 4])
  local from, to = 0, 0
  if seconds == tonumber(ARGV[3]) then
    from, to = tonumber(ARGV[4]), tonumber(ARGV[5])
    if now >= to then from, to = to, tonumber(ARGV[6]) end
  elseif seconds > 0 then
    from = now - now % seconds
    to = from + seconds
  end
  local key = base .. name .. ':' .. string.format('%.0f', from)
  local used = tonumber(redis.call('GET', key) or '0')
  if used + need > amount then fits = false end
  keys[#keys + 1], ends[#ends + 1] = key, to
  reply[#reply + 1], reply[#reply + 2] = used, to
end
if not fits then
  reply[1] = 0
  return reply
end
local hold = base .. 'hold:' .. id
for n, key in ipairs(keys) do
  local place = 7 + (n - 1) * 5
  redis.call('INCRBY', key, ARGV[place + 4])
  if ends[n] > 0 then redis.call('EXPIREAT', key, ends[n] + 60) else redis.call('EXPIRE', key, life + 3600) end
  redis.call('HSET', hold, ARGV[place + 1] .. ':' .. key, ARGV[place + 4])
end
redis.call('EXPIRE', hold, life + 3600)
redis.call('ZADD', base .. 'holds', now + life, id)
redis.call('EXPIRE', base .. 'holds', life + 3600)
return reply
"""
)
_SETTLE = (
    _GIVE
    + """
local hold = base .. 'hold:' .. ARGV[1]
local actual = {r = tonumber(ARGV[2]), t = tonumber(ARGV[3]), m = tonumber(ARGV[4]), c = 0}
local parts = redis.call('HGETALL', hold)
for i = 1, #parts, 2 do
  add(string.sub(parts[i], 3), actual[string.sub(parts[i], 1, 1)] - tonumber(parts[i + 1]))
end
redis.call('DEL', hold)
redis.call('ZREM', base .. 'holds', ARGV[1])
return #parts
"""
)
_RESERVE_SHA, _SETTLE_SHA = (sha1(script.encode(), usedforsecurity=False).hexdigest() for script in (_RESERVE, _SETTLE))


class _Command(NamedTuple):
    """A script to run. A reservation has somebody who waits for it; a settlement must be run in the end."""

    sha: str
    hold: Hold
    arguments: tuple[str | int, ...]
    waiter: asyncio.Future[list[int] | None] | None


class RedisCounters:
    """One per process; see `Counters` for what it promises."""

    def __init__(self, url: str, *, deadline: float, hold_seconds: int, prefix: str = "hortator") -> None:
        """`deadline`: seconds an answer may take. `hold_seconds`: what is reserved returns after this long if nobody settles it,
        as when the replica died. Raises ConfigError when the client is not installed or the address is none.
        """
        self._connection, failed, self._refused = connection_to(url)
        self._failures = (OSError, TimeoutError, failed)
        self._deadline = deadline
        self._hold_seconds = hold_seconds
        self._prefix = prefix
        self._queue: deque[_Command] = deque()
        self._wake = asyncio.Event()
        self._up = True
        self._closing = False
        self._dropped = 0
        self._used_at = 0.0
        self._worker: asyncio.Task[None] | None = None
        self._month = (0.0, 0.0, 0.0)

    async def start(self) -> None:
        """Begin to talk to Redis. One that is not there does not stop the start."""
        self._up = await self._probe()
        self._worker = asyncio.create_task(self._work(), name="limits-redis")

    async def close(self) -> None:
        """Settle what waits, if Redis answers, and hang up."""
        if self._worker is not None:
            self._closing = True
            self._wake.set()
            done, _ = await asyncio.wait((self._worker,), timeout=_CLOSE_SECONDS)
            if not done:
                self._worker.cancel()
                await asyncio.wait((self._worker,), timeout=_CLOSE_SECONDS)
        await self._connection.disconnect()

    @property
    def gauges(self) -> CounterGauges:
        """See `Counters`."""
        return CounterGauges(degraded=not self._up, scopes=0, unsettled=len(self._queue), dropped=self._dropped)

    async def reserve(self, hold: Hold) -> Verdict | None:
        """See `Counters`. Answers within the deadline."""
        if not self._up:
            return None
        waiter: asyncio.Future[list[int] | None] = asyncio.get_running_loop().create_future()
        self._send(_Command(_RESERVE_SHA, hold, self._reservation(hold), waiter))
        try:
            async with asyncio.timeout(self._deadline):
                reply = await waiter
        except TimeoutError:
            return None
        except asyncio.CancelledError:
            if hold.uncertain:
                self.settle(hold, Used(0, 0, 0))
            raise
        if reply is None:
            return None
        fits, seconds, microseconds, *rest = reply
        hold.uncertain = fits == 1
        now = seconds + microseconds / 1_000_000
        return Verdict(fits == 1, rest[::2], [end - now if end else float("inf") for end in rest[1::2]])

    def settle(self, hold: Hold, used: Used) -> None:
        """See `Counters`. Runs as soon as Redis answers; given up when too many wait."""
        if not hold.uncertain:
            return
        hold.uncertain = False
        if len(self._queue) >= _MAX_UNSETTLED:
            self._dropped += 1
            return
        self._send(_Command(_SETTLE_SHA, hold, (hold.id, used.requests, used.tokens, used.money), None))

    def _reservation(self, hold: Hold) -> tuple[str | int, ...]:
        """The script's arguments. The months' bounds are ours: Redis picks the one its own clock is in."""
        now = time.time()
        if not self._month[0] <= now < self._month[1]:
            start, end = window(MONTH, now)
            self._month = (start, end, window(MONTH, end)[1])
        arguments: list[str | int] = [hold.id, self._hold_seconds, MONTH, *map(int, self._month)]
        for limit, need in zip(hold.limits, hold.needs, strict=True):
            arguments += (limit.key, limit.kind[0], limit.window, limit.amount, need)
        return tuple(arguments)

    def _send(self, command: _Command) -> None:
        self._queue.append(command)
        self._wake.set()

    async def _work(self) -> None:
        """Run what is queued; while Redis fails, ask now and then whether it is back."""
        while not self._closing or (self._queue and self._up):
            if not self._up:
                await asyncio.sleep(RETRY_SECONDS)
                self._up = await self._probe()
                if self._up:
                    log.warning("redis answers again: limits hold")
            elif self._queue:
                try:
                    await self._run_batch()
                except Exception as error:  # noqa: BLE001 - the outermost edge of this task; without it limits would fail for good
                    log.error("redis cannot be used: %s", type(error).__name__)
                    self._up = False
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _run_batch(self) -> None:
        """Run up to 128 commands in one round trip. When it fails, reservations get no answer and settlements stay queued."""
        batch: list[_Command] = []
        while self._queue and len(batch) < _BATCH:
            command = self._queue.popleft()
            if command.waiter is None or not command.waiter.done():
                batch.append(command)
        if not batch:
            return
        for command in batch:
            if command.waiter is not None:
                command.hold.uncertain = True
        replies = await self._within_deadline(
            ("EVALSHA", command.sha, 1, self._base(command.hold.tenant_id), *command.arguments) for command in batch
        )
        if replies is None:
            replies = [None] * len(batch)
        failed = False
        for command, reply in zip(batch, replies, strict=True):
            if not isinstance(reply, (list, int)):
                failed, reply = True, None
            if command.waiter is not None and not command.waiter.done():
                command.waiter.set_result(reply if isinstance(reply, list) else None)
        if failed:
            self._queue.extendleft(
                command
                for command, reply in zip(reversed(batch), reversed(replies), strict=True)
                if command.waiter is None and not isinstance(reply, int)
            )
            self._up = False
            log.warning("redis is slow or gone: limits hold as limits.on_failure says")

    def _base(self, tenant_id: TenantId) -> str:
        return f"{self._prefix}:{{{tenant_id}}}:"

    async def _probe(self) -> bool:
        """Whether Redis answers in time and knows the scripts."""
        replies = await self._within_deadline([("SCRIPT LOAD", _RESERVE), ("SCRIPT LOAD", _SETTLE)])
        return replies is not None and not any(isinstance(reply, Exception) for reply in replies)

    async def _within_deadline(self, commands: Iterable[tuple[str | int, ...]]) -> list[Any] | None:
        """The replies, errors among them, or None when they did not come in time; the connection is closed then.

        Talks to the connection itself: a pipeline object costs three times as much.
        """
        sent = list(commands)
        try:
            async with asyncio.timeout(self._deadline):
                await self._connect()
                await self._connection.send_packed_command(self._connection.pack_commands(sent))
                return [await self._reply() for _ in sent]
        except self._failures:
            await self._connection.disconnect(nowait=True)
            return None

    async def _connect(self) -> None:
        """Open the connection; one that was idle and that Redis has closed meanwhile is opened again."""
        now = time.monotonic()
        idle, self._used_at = now - self._used_at, now
        if self._connection.is_connected and idle > IDLE_SECONDS and await self._connection.can_read():
            await self._connection.disconnect(nowait=True)
        if not self._connection.is_connected:
            await self._connection.connect()  # type: ignore[no-untyped-call]

    async def _reply(self) -> Any:
        """One reply; an error that Redis answers with is one."""
        try:
            return await self._connection.read_response()
        except self._refused as error:
            return error


def connection_to(url: str) -> tuple[AbstractConnection, type[Exception], type[Exception]]:
    """Return a connection that is not open yet, what it raises when it fails, and when Redis answers with an error.

    It never tries again by itself and keeps no time: `_within_deadline` does. Raises ConfigError.
    """
    try:
        from redis.asyncio import ConnectionPool
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError, ResponseError
    except ModuleNotFoundError:
        raise ConfigError("redis.url is set but the client is not installed: pip install 'hortator[redis]'") from None
    try:
        pool = ConnectionPool.from_url(
            url, socket_timeout=None, socket_connect_timeout=None, retry=Retry(NoBackoff(), 0)
        )
    except ValueError as error:
        raise ConfigError("redis.url: expected redis://, rediss:// or unix://") from error
    connection: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]
    return connection, RedisError, ResponseError
