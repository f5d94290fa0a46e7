"""The log of a tree, sent to the `callback_url` of its order (R-000-57 to R-000-59): signed, in order, again until it arrives.

`teams.py` checks a callback with `check` and begins it with `begin`; the engine runs `run`, which follows the log like any other view,
writes each delivery down before its first try, and goes on where a dead process stopped, at the same try. What the log is, the hub
knows; what may be called, `providers/guarded.py`. The API asks for a `page` of deliveries, `redeliver` and the secrets.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Protocol
from uuid import UUID
from weakref import WeakValueDictionary

import uuid_utils

from hortator import __version__
from hortator.call import Caller, TenantId
from hortator.errors import Conflict, Gone, HortatorError, InvalidRequest, NotFound, RateLimited, Unavailable
from hortator.orchestration.ports import Engine, Handler
from hortator.settings import Webhooks as Settings
from hortator.store.audit import Actor
from hortator.store.database import Database
from hortator.store.webhooks import Delivery, Signing, Webhook, WebhookScope, find_webhook
from hortator.wire import webhooks as wire
from hortator.wire.events import ENDS, Delta, Event
from hortator.wire.webhooks import DeliveryObject, SecretObject

KIND = "webhook"
"""Of the engine's handler; its id is the tree's root."""
PAUSES = (5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 36_000.0)
"""Seconds after each failed try; then the last again, until `give_up_hours`."""
PROGRESS_TRIES = 4
"""Tries of a call that tells of no end: late news of progress must not hold up the end."""
AT_ONCE = 64
"""Tries at the same time, of a process."""
AT_ONCE_OF_TENANT = 8
"""The same of one tenant, so that nobody's slow receiver takes all places."""
LOOK_SECONDS = 300.0
"""How often a pending delivery is looked at: another process may have redelivered it."""
STORE_SECONDS = 5.0
"""Pause where the store does not answer, or the hub stops."""
MAX_LISTED = 1_000
BOTH_SIGN = timedelta(hours=24)
"""How long the secret before a rotation goes on to sign."""
MAX_REPLY_BYTES = 1_024
"""What a receiver says besides its status is of no interest."""
STOP = 410
"""The status by which a receiver says that it wants no more (as in Standard Webhooks)."""

_ID = re.compile(r"msg_[0-9a-f]{32}").fullmatch
_AGENT = (b"user-agent", f"hortator/{__version__}".encode())

log = logging.getLogger(__name__)

Follow = Callable[[TenantId, str, int], AsyncGenerator[Event | Delta, None]]
"""The hub's: the log of a tree (its root's id) behind a `seq`, then live, until its end. Raises Gone, Unavailable."""


class Answered(Protocol):
    """What a receiver answered."""

    @property
    def status(self) -> int:
        """The HTTP status."""


class Client(Protocol):
    """What makes calls to addresses that clients name, and only to those that may be called."""

    def check(self, url: str) -> None:
        """Raise InvalidRequest (`invalid_url`, `url_not_allowed`) for an address that is never called."""

    async def request(
        self,
        method: str,
        url: str,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes,
        *,
        timeout: float,
        max_bytes: int,
    ) -> Answered:
        """Make one call; redirects are replies. Raises HortatorError."""


class Result(NamedTuple):
    """How a try went."""

    status: int | None
    """None = there was no answer."""
    error: str | None
    """A code; None = it arrived."""


class Webhooks:
    """One per process."""

    def __init__(
        self,
        database: Database,
        engine: Engine,
        follow: Follow,
        client: Client,
        settings: Settings,
        *,
        unfinished: int,
        pauses: Sequence[float] = PAUSES,
    ) -> None:
        """`unfinished`: most trees of a tenant whose calls are not all made."""
        self._database = database
        self._engine = engine
        self._follow = follow
        self._client = client
        self._timeout = settings.timeout_seconds
        self._patience = timedelta(hours=settings.give_up_hours)
        self._most = unfinished
        self._pauses = pauses
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._waiting: dict[str, asyncio.Event] = {}
        """By delivery: set to look at it again now. Those of the handlers that wait."""

    async def check(self, caller: Caller, url: str, events: Sequence[str] | None) -> None:
        """Say whether an order's callback can be taken. Raises InvalidRequest, RateLimited (`too_many_tasks`), Unavailable."""
        try:
            self._client.check(url)
        except InvalidRequest as error:
            raise InvalidRequest(error.message, code=error.code, param="callback_url") from None
        wire.checked(events)
        if await self._scope(caller.tenant_id).unfinished() >= self._most:
            raise RateLimited(
                f"The calls of {self._most} tasks to their callback_url are not finished.", code="too_many_tasks"
            )

    async def begin(self, tenant_id: TenantId, root_id: str, url: str, events: Sequence[str] | None) -> None:
        """Have the log of a tree sent, durably. Its root is in the store; a second time does nothing. Raises Unavailable."""
        await self._scope(tenant_id).add(root_id, url, events, _now())
        # Here: it mostly waits, and must not take a place that a tree could work in.
        await self._engine.begin(KIND, root_id, tenant_id=tenant_id, here=True)

    @property
    def handlers(self) -> dict[str, Handler]:
        """For the engine. What it gave up because its process died too often goes on: a call may wait through many restarts."""
        return {KIND: self.run, f"{KIND}.dead": self.run}

    async def run(self, root_id: str) -> None:
        """Send the log of a tree to its end: the engine's handler of `KIND`."""
        while True:
            try:
                hook = await find_webhook(self._database, root_id)
                if hook is None or hook.finished_at is not None:
                    return
                scope = self._scope(hook.tenant_id)
                if await self._send(scope, hook):
                    await scope.finish(root_id, _now())
            except Unavailable:
                await asyncio.sleep(STORE_SECONDS)

    async def _send(self, scope: WebhookScope, hook: Webhook) -> bool:
        """Send what is pending, else what follows until something does not arrive; whether that was all. Raises Unavailable."""
        last = await scope.last(hook.root_id)
        if last is not None and last.status == "pending":
            await self._insist(scope, last)
            return False
        if last is not None and (last.event_type != wire.PROGRESS or _unwanted(last)):
            return True
        percent, doubted, ended = hook.progress, last is not None and last.status == "failed", False
        try:
            async with aclosing(self._follow(hook.tenant_id, hook.root_id, hook.next_seq - 1)) as events:
                async for event in events:
                    if isinstance(event, Delta):
                        continue
                    percent, ended = wire.progress(event, percent), event.type in ENDS
                    if not wire.chosen(event, hook.events):
                        continue
                    delivery, body = _delivery(hook, event), wire.body(event, percent)
                    if not await scope.enqueue(delivery, body, percent):
                        return False
                    delivery = await self._try(scope, delivery, body, doubted=doubted)
                    if delivery.status == "pending" or _unwanted(delivery):
                        return False
                    doubted = delivery.status == "failed"
        except (Gone, NotFound):
            log.info("the log of task %s is not kept any more: its webhook ends", hook.root_id)
            return True
        if not ended:  # the hub stops
            raise Unavailable("The log is not shown any more.", code="draining")
        return True

    async def _insist(self, scope: WebhookScope, delivery: Delivery) -> None:
        """Try a delivery again, each time when it is due, until it has arrived or is given up. Raises Unavailable."""
        again = self._waiting.setdefault(delivery.id, asyncio.Event())
        try:
            while (found := await scope.delivery(delivery.root_id, delivery.id)) is not None:
                delivery, body = found
                if delivery.status != "pending":
                    return
                wait = 0.0 if delivery.next_at is None else (delivery.next_at - _now()).total_seconds()
                if wait <= 0:
                    await self._try(scope, delivery, body)
                    continue
                again.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(wait, LOOK_SECONDS)):
                        await again.wait()
        finally:
            self._waiting.pop(delivery.id, None)

    async def _try(self, scope: WebhookScope, delivery: Delivery, body: bytes, *, doubted: bool = False) -> Delivery:
        """Make a call and write down how it went. `doubted`: the one before was given up. Raises Unavailable."""
        status, error = await self._post(scope, delivery, body)
        now = _now()
        if status is not None and error is None:
            await scope.delivered(delivery.id, status, now)
            return delivery._replace(status="delivered")
        vain = status == STOP or (doubted and delivery.event_type == wire.PROGRESS)
        next_at = None if vain else self._next(delivery, now)
        await scope.missed(delivery.id, status, error or "", next_at)
        return delivery._replace(status="failed" if next_at is None else "pending", last_status=status)

    def _next(self, delivery: Delivery, now: datetime) -> datetime | None:
        """When a delivery whose latest try has failed is tried again, None = never."""
        tries = delivery.attempts + 1
        if delivery.event_type == wire.PROGRESS and tries >= PROGRESS_TRIES:
            return None
        at = now + timedelta(seconds=self._pauses[min(tries, len(self._pauses)) - 1])
        return at if at - delivery.created_at <= self._patience else None

    async def _post(self, scope: WebhookScope, delivery: Delivery, body: bytes) -> Result:
        """Make one call. Raises Unavailable where the secrets cannot be read."""
        turn = self._turns.setdefault(delivery.tenant_id, asyncio.Semaphore(AT_ONCE_OF_TENANT))
        signing = [each.secret for each in await self._secrets(scope)]
        async with turn, self._slots:
            headers = [_AGENT, *wire.headers(signing, delivery.id, int(time.time()), body)]
            try:
                answered = await self._client.request(
                    "POST", delivery.url, headers, body, timeout=self._timeout, max_bytes=MAX_REPLY_BYTES
                )
            except HortatorError as error:
                return Result(None, error.code)
        return Result(answered.status, None if 200 <= answered.status < 300 else "upstream_error")

    async def page(self, caller: Caller, task_id: str) -> list[DeliveryObject]:
        """What was sent and is to be sent of the tree that a task belongs to, in the order of its log, the first thousand.

        Raises NotFound (`task_not_found`), Unavailable.
        """
        scope = self._scope(caller.tenant_id)
        root_id = await _root(scope, task_id)
        return [_shown(each) for each in await scope.deliveries(root_id, MAX_LISTED)]

    async def redeliver(self, caller: Caller, task_id: str, delivery_id: str) -> DeliveryObject:
        """Make a call again, once and now, with the same id and body; return the delivery as it is then.

        Success counts, also for one that was given up or waits for its next try; failure changes neither. Raises NotFound
        (`task_not_found`, `delivery_not_found`), Unavailable.
        """
        scope = self._scope(caller.tenant_id)
        root_id = await _root(scope, task_id)
        found = await scope.delivery(root_id, delivery_id) if _ID(delivery_id) else None
        if found is None:
            raise _no_delivery()
        status, error = await self._post(scope, *found)
        if status is not None and error is None:
            await scope.delivered(delivery_id, status, _now())
            if (waiting := self._waiting.get(delivery_id)) is not None:
                waiting.set()
        else:
            await scope.missed_again(delivery_id, status, error or "")
        found = await scope.delivery(root_id, delivery_id)
        if found is None:
            raise _no_delivery()
        return _shown(found[0])

    async def secret(self, caller: Caller) -> SecretObject:
        """What signs the calls of a tenant; made when it is first asked for. Raises Unavailable."""
        return _secret(await self._secrets(self._scope(caller.tenant_id)))

    async def rotate(self, caller: Caller, by: Actor) -> SecretObject:
        """Make a new secret; for 24 h the one before signs too. Raises Conflict, Unavailable."""
        scope = self._scope(caller.tenant_id)
        await self._secrets(scope)
        now = _now()
        if not await scope.rotate_secret(wire.new_secret(), now, now + BOTH_SIGN, by):
            raise Conflict("The secret was rotated by somebody else at the same moment.")
        return _secret(await self._secrets(scope))

    async def _secrets(self, scope: WebhookScope) -> list[Signing]:
        """The secrets that sign, newest first: at least one."""
        found = await scope.secrets(_now())
        if not found:
            await scope.add_first_secret(wire.new_secret(), _now())
            found = await scope.secrets(_now())
        return found

    def _scope(self, tenant_id: TenantId) -> WebhookScope:
        return WebhookScope(self._database, tenant_id)


def _delivery(hook: Webhook, event: Event) -> Delivery:
    now = _now()
    id = f"msg_{uuid_utils.uuid7().hex}"
    kind = wire.kind(event)
    return Delivery(id, hook.tenant_id, hook.root_id, event.seq, kind, hook.url, "pending", 0, None, None, now, now)


def _unwanted(delivery: Delivery) -> bool:
    """Whether the receiver has said that it wants no more."""
    return delivery.status == "failed" and delivery.last_status == STOP


async def _root(scope: WebhookScope, task_id: str) -> str:
    """The root of the tree of a task, by an id that a client wrote. Raises NotFound."""
    try:
        root_id = await scope.root_of(str(UUID(task_id)))
    except ValueError:
        root_id = None
    if root_id is None:
        raise NotFound("There is no such task.", code="task_not_found")
    return root_id


def _no_delivery() -> NotFound:
    return NotFound("There is no such delivery.", code="delivery_not_found")


def _shown(delivery: Delivery) -> DeliveryObject:
    return DeliveryObject(
        id=delivery.id,
        task_id=delivery.root_id,
        seq=delivery.seq,
        event_type=delivery.event_type,
        url=delivery.url,
        status=delivery.status,
        attempts=delivery.attempts,
        last_status=delivery.last_status,
        last_error=delivery.last_error,
        next_attempt_at=_moment(delivery.next_at),
        created_at=_rfc3339(delivery.created_at),
        delivered_at=_moment(delivery.delivered_at),
    )


def _secret(signing: Sequence[Signing]) -> SecretObject:
    newest, *before = signing
    ends = [_rfc3339(each.expires_at) for each in before if each.expires_at is not None]
    return SecretObject(secret=newest.secret, created_at=_rfc3339(newest.created_at), previous=ends)


def _moment(at: datetime | None) -> str | None:
    return None if at is None else _rfc3339(at)


def _rfc3339(at: datetime) -> str:
    """Return a moment as events have it."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _now() -> datetime:
    return datetime.now(UTC)
