"""Who calls: from an API key to a `Caller`, fast, and honest when the store is down.

The doors call `known` (a hash and a dictionary, no waiting) and, when that says None, await `authenticate`. Keys are found by
SHA-256 alone; the prefix means nothing (C-11). A known key is asked about again in the background once it is 2 s old and not
believed beyond 4.5 s, so revocation works within 5 s on every replica. While the store does not answer, known keys keep
working (`stale_seconds`) and unknown ones get 503: never a 401 for a key that may be good.
Never writes on the request path: `last_used_at` is noted once a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from hmac import compare_digest
from typing import NamedTuple

from msgspec.structs import replace

from hortator.call import Caller, KeyHash, TenantId
from hortator.errors import Forbidden, Unauthenticated, Unavailable
from hortator.store.database import Database
from hortator.store.queries import ApiKey, FoundKey, Tenant, find_keys, find_tenant, touch_keys
from hortator.tenancy.limits import both, limits_of, priority_of

log = logging.getLogger("hortator.tenancy")

TRUST_SECONDS = 2.5
"""How much longer than `refresh_seconds` a known key is served without having asked: 5 s less the time an answer takes."""
REFUSAL_SECONDS = 1.0
"""How long a refusal is remembered."""
RETRY_SECONDS = 0.5
"""Pause after the store failed before it is asked again."""
TOUCH_SECONDS = 60.0
"""How often `last_used_at` is written."""
MAX_TOKEN_BYTES = 512
IMPERSONATE = "tenant:impersonate"
"""Permission of a key to act for any tenant (C-2)."""
_BATCH = 500
"""Keys asked about in one query."""
_MAX_WAITING = 10_000


class _Refusal(NamedTuple):
    """Why a key is not good."""

    code: str
    message: str

    def error(self) -> Unauthenticated:
        return Unauthenticated(self.message, code=self.code)


_INVALID = _Refusal("invalid_api_key", "Incorrect API key provided.")
_REVOKED = _Refusal("revoked_api_key", "This API key has been revoked. Ask your administrator for another one.")
_EXPIRED = _Refusal("expired_api_key", "This API key has expired. Ask your administrator for another one.")
_DISABLED = _Refusal("tenant_disabled", "The tenant of this API key is disabled. Ask your administrator.")


class _Known:
    """A key that was good when the store was last asked. Times are `time.monotonic()`, `expires_at` is Unix time."""

    __slots__ = ("caller", "confirmed", "digest", "expires_at", "fresh_until")

    def __init__(self, digest: bytes) -> None:
        self.digest = digest
        self.caller: Caller
        self.confirmed = 0.0
        self.fresh_until = 0.0
        self.expires_at: float | None = None

    def expired(self) -> bool:
        return self.expires_at is not None and time.time() >= self.expires_at


_Answer = _Known | _Refusal | None
"""What asking the store gave; None = it did not answer."""


@dataclass(frozen=True, slots=True)
class Gauges:
    """Sizes of the caches, for metrics."""

    known: int
    refused: int
    waiting: int


class Identity:
    """One per process. Everything happens in one event loop; the caches are bounded."""

    def __init__(
        self,
        database: Database,
        *,
        refresh_seconds: float = 2.0,
        stale_seconds: float = 86_400.0,
        deadline: float = 1.0,
        max_keys: int = 10_000,
    ) -> None:
        """`refresh_seconds`: age at which a known key is asked about again; a revoked one works 3 s longer at most.
        `stale_seconds`: how long a known key works while the store is down. `deadline`: seconds a look-up may take.
        """
        self._database = database
        self._fresh_seconds = refresh_seconds
        self._trust_seconds = refresh_seconds + TRUST_SECONDS
        self._stale_seconds = stale_seconds
        self._deadline = deadline
        self._max_keys = max_keys
        self._known: dict[bytes, _Known] = {}
        self._refused: dict[bytes, tuple[float, _Refusal]] = {}
        self._waiting: dict[bytes, asyncio.Future[_Answer]] = {}
        self._asking: asyncio.Task[None] | None = None
        self._queries: set[asyncio.Task[list[FoundKey]]] = set()
        self._tenants: dict[str, tuple[float, Tenant | None]] = {}
        self._failed_at = float("-inf")
        self._forgot_at = float("-inf")
        self._used: set[bytes] = set()
        self._toucher: asyncio.Task[None] | None = None

    def known(self, token: bytes) -> Caller | None:
        """The caller behind `token` if that is certain without waiting, else None: then `authenticate` decides."""
        digest = sha256(token).digest()
        entry = self._known.get(digest)
        if entry is None or not compare_digest(entry.digest, digest):
            return None
        now = time.monotonic()
        if now < entry.fresh_until:
            return entry.caller
        return self._aging(entry, now)

    async def authenticate(self, token: str | bytes) -> Caller:
        """The caller behind `token`.

        Raises Unauthenticated (`invalid_api_key`, `revoked_api_key`, `expired_api_key`, `tenant_disabled`), or Unavailable
        (`store_unavailable`) when the store does not answer and the key is not known.
        """
        data = token.encode("utf-8", "replace") if isinstance(token, str) else token
        if not data or len(data) > MAX_TOKEN_BYTES:
            raise _INVALID.error()
        caller = self.known(data)
        if caller is not None:
            return caller
        return await self._look_up(sha256(data).digest())

    async def holder(self, key_hash: KeyHash) -> Caller:
        """The caller of a key that is known by its hash: for work that outlives its request. Raises as `authenticate` does."""
        digest = bytes.fromhex(key_hash)
        entry = self._known.get(digest)
        if entry is not None and time.monotonic() < entry.fresh_until:
            return entry.caller
        return await self._look_up(digest)

    async def _look_up(self, digest: bytes) -> Caller:
        """The caller of a key that is not known well enough to do without asking."""
        until, refusal = self._refused.get(digest, (0.0, _INVALID))
        if time.monotonic() < until:
            raise refusal.error()
        answer = await self._ask(digest)
        if answer is None:
            answer = self._stale(digest)
        if isinstance(answer, _Refusal):
            raise answer.error()
        return answer.caller

    async def on_behalf(self, caller: Caller, tenant: str) -> Caller:
        """The caller as `tenant`, an id or namespace, has it (C-2): itself for its own; else, where its key may impersonate, with that
        tenant's limits and models besides the key's own. Raises Forbidden, Unavailable.
        """
        if tenant in (caller.tenant_id, caller.namespace):
            return caller
        if IMPERSONATE not in caller.permissions:
            raise _not_yours()
        now = time.monotonic()
        until, found = self._tenants.get(tenant, (0.0, None))
        if now >= until:
            found = await find_tenant(self._database, tenant, self._deadline)
            if len(self._tenants) >= self._max_keys:
                self._tenants.clear()
            self._tenants[tenant] = now + self._fresh_seconds, found
        if found is None or found.disabled_at is not None:
            raise _not_yours()
        own = tuple(limit for limit in caller.limits if limit.key.startswith("key:"))
        return replace(
            caller,
            tenant_id=found.id,
            namespace=found.namespace,
            allowed_models=both(found.config, caller.allowed_models),
            limits=limits_of(found.id, found.config, caller.key_hash, {}) + own,
            priority=priority_of(found.config, {"priority": caller.priority}),
        )

    def forget(self, *, key_hash: KeyHash | None = None, tenant_id: TenantId | None = None) -> None:
        """Ask anew about a key, or all keys of a tenant: they were changed by this very process."""
        self._forgot_at = time.monotonic()
        if key_hash is not None:
            self._known.pop(bytes.fromhex(key_hash), None)
        if tenant_id is not None:
            for digest in [d for d, entry in self._known.items() if entry.caller.tenant_id == tenant_id]:
                del self._known[digest]
        self._refused.clear()
        self._tenants.clear()

    @property
    def gauges(self) -> Gauges:
        """The sizes now."""
        return Gauges(known=len(self._known), refused=len(self._refused), waiting=len(self._waiting))

    async def start(self) -> None:
        """Begin to note `last_used_at`."""
        self._toucher = asyncio.create_task(self._touch_forever(), name="identity-touch")

    async def close(self) -> None:
        """Stop; notes the last uses if the store answers in time."""
        tasks = [task for task in (self._toucher, self._asking, *self._queries) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._touch()

    def _aging(self, entry: _Known, now: float) -> Caller | None:
        """A known key past its fresh time: ask again in the background; serve it meanwhile if it may be."""
        if entry.expired():
            return None
        self._used.add(entry.digest)
        self._want(entry.digest)
        age = now - entry.confirmed
        if age < self._trust_seconds or (age < self._stale_seconds and now - self._failed_at < self._trust_seconds):
            return entry.caller
        return None

    def _stale(self, digest: bytes) -> _Known | _Refusal:
        """What to say of a key when the store did not answer. Raises Unavailable for one we do not know."""
        entry = self._known.get(digest)
        if entry is None or time.monotonic() - entry.confirmed >= self._stale_seconds:
            raise Unavailable(
                "The key cannot be checked now; try again.", code="store_unavailable", retry_after=self._deadline
            )
        return _EXPIRED if entry.expired() else entry

    async def _ask(self, digest: bytes) -> _Answer:
        """Ask the store about one key, together with everyone else who asks; None when it does not answer in time."""
        if time.monotonic() - self._failed_at < RETRY_SECONDS:
            return None
        future = self._want(digest)
        if future is None:
            return None
        done, _ = await asyncio.wait((future,), timeout=self._deadline * 1.5)
        return future.result() if done else None

    def _want(self, digest: bytes) -> asyncio.Future[_Answer] | None:
        """Have the store asked about a key, once however many want to know. None when too many others wait."""
        future = self._waiting.get(digest)
        if future is None:
            if len(self._waiting) >= _MAX_WAITING:
                return None
            future = self._waiting[digest] = asyncio.get_running_loop().create_future()
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_all(), name="identity-ask")
        return future

    async def _ask_all(self) -> None:
        """Ask about all that wait, up to 500 keys a query, one query at a time, until nobody waits."""
        while self._waiting:
            pause = self._failed_at + RETRY_SECONDS - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
            digests = list(self._waiting)[:_BATCH]
            asked_at = time.monotonic()
            keys = await self._query(digests)
            if keys is None:
                self._failed_at = time.monotonic()
            elif asked_at <= self._forgot_at:
                continue  # what the store said may be older than a change made here
            for digest in digests:
                answer = None if keys is None else self._learn(digest, keys.get(digest), asked_at)
                self._waiting.pop(digest).set_result(answer)

    async def _query(self, digests: list[bytes]) -> dict[bytes, FoundKey] | None:
        """One query under the deadline. A query that hangs is left behind to be cancelled: nobody waits for it."""
        query = asyncio.create_task(find_keys(self._database, [digest.hex() for digest in digests], self._deadline))
        self._queries.add(query)
        query.add_done_callback(self._forget_query)
        done, _ = await asyncio.wait((query,), timeout=self._deadline)
        if not done:
            query.cancel()
            return None
        if query.cancelled() or query.exception() is not None:
            return None
        return {bytes.fromhex(found.key.key_hash): found for found in query.result()}

    def _forget_query(self, query: asyncio.Task[list[FoundKey]]) -> None:
        self._queries.discard(query)
        error = None if query.cancelled() else query.exception()
        if error is not None and not isinstance(error, Unavailable):
            log.error("keys cannot be looked up: %s", type(error).__name__)

    def _learn(self, digest: bytes, found: FoundKey | None, asked_at: float) -> _Known | _Refusal:
        """Keep what the store said of one key, as of the moment it was asked."""
        key = None if found is None else found.key
        refusal = _refusal(key) or (_DISABLED if found is not None and found.tenant_disabled else None)
        entry = self._known.pop(digest, None)
        if found is None or key is None or refusal is not None:
            if len(self._refused) >= self._max_keys:
                self._refused.pop(next(iter(self._refused)))
            refusal = refusal or _INVALID
            self._refused[digest] = (asked_at + REFUSAL_SECONDS, refusal)
            return refusal
        self._refused.pop(digest, None)
        entry = entry or _Known(digest)
        if len(self._known) >= self._max_keys:
            self._known.pop(next(iter(self._known)))
        self._known[digest] = entry
        self._used.add(digest)
        entry.caller = Caller(
            tenant_id=key.tenant_id,
            key_hash=key.key_hash,
            key_name=key.name,
            allowed_models=both(found.tenant_config, key.allowed_models),
            permissions=frozenset(key.permissions),
            limits=limits_of(key.tenant_id, found.tenant_config, key.key_hash, key.config),
            priority=priority_of(found.tenant_config, key.config),
            namespace=found.namespace,
        )
        entry.confirmed = asked_at
        entry.expires_at = key.expires_at.timestamp() if key.expires_at is not None else None
        left = self._fresh_seconds
        if entry.expires_at is not None:
            left = min(left, entry.expires_at - time.time())
        entry.fresh_until = asked_at + left
        return entry

    async def _touch_forever(self) -> None:
        while True:
            await asyncio.sleep(TOUCH_SECONDS)
            await self._touch()

    async def _touch(self) -> None:
        """Note the keys used since the last time; when the store is down, next time."""
        used = sorted(self._used)[: self._max_keys]
        self._used.clear()
        for digests in _chunks(used):
            with contextlib.suppress(Unavailable):
                await touch_keys(self._database, [digest.hex() for digest in digests], datetime.now(UTC))


def _refusal(key: ApiKey | None) -> _Refusal | None:
    """Why this key may not be used; None when it may."""
    if key is None:
        return _INVALID
    if key.revoked_at is not None:
        return _REVOKED
    if key.expires_at is not None and key.expires_at <= datetime.now(UTC):
        return _EXPIRED
    return None


def _not_yours() -> Forbidden:
    return Forbidden(
        f"This key may not act for that tenant; it would need the permission `{IMPERSONATE}`.",
        code="tenant_not_allowed",
        param="metadata.tenant_id",
    )


def _chunks(digests: list[bytes]) -> Iterable[list[bytes]]:
    return (digests[start : start + _BATCH] for start in range(0, len(digests), _BATCH))
