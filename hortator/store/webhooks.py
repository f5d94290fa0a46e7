"""Every statement on webhooks, their deliveries and the secrets that sign them; all but one in `WebhookScope`, which adds the tenant filter.

Called by `orchestration/webhooks.py`. A delivery and the place in the log behind its event are written in one transaction, before the
first try: what was to be sent once is sent by whoever goes on. Webhooks and deliveries are deleted with their tree, by its foreign key.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple

from sqlalchemy import Row, and_, delete, func, insert, select, update

from hortator.call import TenantId
from hortator.store.audit import Actor, write
from hortator.store.database import Database, Refused
from hortator.store.queries import TenantRows
from hortator.store.tables import tasks, webhook_deliveries, webhook_secrets, webhooks

Status = Literal["pending", "delivered", "failed"]
MAX_SECRETS = 5
"""Secrets of a tenant that sign at the same time: rotating more often ends the oldest early."""


class Webhook(NamedTuple):
    """A row of `webhooks`."""

    root_id: str
    tenant_id: TenantId
    url: str
    events: Sequence[str] | None
    """Types of events that are sent; None = progress and ends."""
    next_seq: int
    """The first event of the tree's log that was not looked at."""
    progress: int
    """Percent, before that event."""
    created_at: datetime
    finished_at: datetime | None = None
    """Set: nothing more is sent."""


class Delivery(NamedTuple):
    """A row of `webhook_deliveries` without the body."""

    id: str
    tenant_id: TenantId
    root_id: str
    seq: int
    event_type: str
    url: str
    status: Status
    attempts: int
    last_status: int | None
    """What the receiver answered, None where it did not."""
    last_error: str | None
    """A code."""
    next_at: datetime | None
    created_at: datetime
    delivered_at: datetime | None = None


class Signing(NamedTuple):
    """A row of `webhook_secrets`."""

    tenant_id: TenantId
    id: int
    secret: str
    created_at: datetime
    expires_at: datetime | None = None
    """None = the tenant's newest."""

    def __repr__(self) -> str:
        return f"Signing({self.id})"


def _webhook(row: Row[Any]) -> Webhook:
    return Webhook(*(row._mapping[name] for name in Webhook._fields))


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(*(row._mapping[name] for name in Delivery._fields))


class WebhookScope(TenantRows):
    """The webhooks of one tenant."""

    async def add(self, root_id: str, url: str, events: Sequence[str] | None, now: datetime) -> None:
        """Have a tree's log sent; a second time does nothing. Its root is there already. Raises Unavailable."""
        values = Webhook(root_id, self.tenant_id, url, None if events is None else list(events), 1, 0, now)._asdict()
        there = self._rows(webhooks, webhooks.c.root_id).where(webhooks.c.root_id == root_id)
        with contextlib.suppress(Refused):  # somebody was quicker
            async with self._database.write() as connection:
                if (await connection.execute(there)).first() is None:
                    await connection.execute(insert(webhooks).values(**{**values, "tenant_id": self.tenant_id}))

    async def unfinished(self) -> int:
        """How many of the tenant's still have something to send. Raises Unavailable."""
        statement = self._rows(webhooks, func.count()).where(webhooks.c.finished_at.is_(None))
        async with self._database.read() as connection:
            found: int = (await connection.execute(statement)).scalar_one()
        return found

    async def finish(self, root_id: str, now: datetime) -> None:
        """Nothing more is sent of this tree. Raises Unavailable."""
        statement = update(webhooks).where(self._where(webhooks), webhooks.c.root_id == root_id)
        async with self._database.write() as connection:
            await connection.execute(statement.values(finished_at=now))

    async def enqueue(self, delivery: Delivery, body: bytes, progress: int) -> bool:
        """Keep a delivery to be made, and the place behind its event; False where somebody else did. Raises Unavailable."""
        behind = update(webhooks).where(self._where(webhooks), webhooks.c.root_id == delivery.root_id)
        try:
            async with self._database.write() as connection:
                await connection.execute(
                    insert(webhook_deliveries).values(
                        **{**delivery._asdict(), "tenant_id": self.tenant_id, "body": body}
                    )
                )
                await connection.execute(behind.values(next_seq=delivery.seq + 1, progress=progress))
        except Refused:
            return False
        return True

    async def last(self, root_id: str) -> Delivery | None:
        """The delivery of the latest event. Raises Unavailable."""
        column = webhook_deliveries.c
        statement = self._rows(webhook_deliveries).where(column.root_id == root_id).order_by(column.seq.desc()).limit(1)
        async with self._database.read() as connection:
            row = (await connection.execute(statement)).first()
        return None if row is None else _delivery(row)

    async def delivery(self, root_id: str, id: str) -> tuple[Delivery, bytes] | None:
        """A delivery and its body. Raises Unavailable."""
        column = webhook_deliveries.c
        statement = self._rows(webhook_deliveries).where(column.root_id == root_id, column.id == id)
        async with self._database.read() as connection:
            row = (await connection.execute(statement)).first()
        return None if row is None else (_delivery(row), bytes(row.body))

    async def deliveries(self, root_id: str, limit: int) -> list[Delivery]:
        """At most `limit` deliveries of a tree, in the order of its log. Raises Unavailable."""
        column = webhook_deliveries.c
        columns = [column[name] for name in Delivery._fields]
        statement = self._rows(webhook_deliveries, *columns).where(column.root_id == root_id)
        async with self._database.read() as connection:
            return [_delivery(row) for row in await connection.execute(statement.order_by(column.seq).limit(limit))]

    async def delivered(self, id: str, status: int, now: datetime) -> None:
        """A try has succeeded. Raises Unavailable."""
        column = webhook_deliveries.c
        statement = update(webhook_deliveries).where(self._where(webhook_deliveries), column.id == id)
        values = {
            "status": "delivered",
            "delivered_at": now,
            "next_at": None,
            "last_status": status,
            "last_error": None,
        }
        async with self._database.write() as connection:
            await connection.execute(statement.values(**values, attempts=column.attempts + 1))

    async def missed(self, id: str, status: int | None, error: str, next_at: datetime | None) -> None:
        """A try has failed; the next is at `next_at`, None = there is none. Raises Unavailable."""
        column = webhook_deliveries.c
        pending = and_(column.id == id, column.status == "pending")
        statement = update(webhook_deliveries).where(self._where(webhook_deliveries), pending)
        then = {"next_at": next_at, "status": "failed" if next_at is None else "pending"}
        async with self._database.write() as connection:
            await connection.execute(
                statement.values(**then, last_status=status, last_error=error, attempts=column.attempts + 1)
            )

    async def missed_again(self, id: str, status: int | None, error: str) -> None:
        """A try that a client asked for has failed: it is counted, and changes nothing else. Raises Unavailable."""
        column = webhook_deliveries.c
        statement = update(webhook_deliveries).where(self._where(webhook_deliveries), column.id == id)
        async with self._database.write() as connection:
            await connection.execute(
                statement.values(last_status=status, last_error=error, attempts=column.attempts + 1)
            )

    async def root_of(self, task_id: str) -> str | None:
        """The root of the tree of a task. Raises Unavailable."""
        statement = self._rows(tasks, tasks.c.root_id).where(tasks.c.id == task_id)
        async with self._database.read() as connection:
            found: str | None = (await connection.execute(statement)).scalar()
        return found

    async def secrets(self, now: datetime) -> list[Signing]:
        """The secrets that sign, newest first. Raises Unavailable."""
        column = webhook_secrets.c
        good = column.expires_at.is_(None) | (column.expires_at > now)
        statement = self._rows(webhook_secrets).where(good).order_by(column.id.desc()).limit(MAX_SECRETS)
        async with self._database.read() as connection:
            return [Signing(*row) for row in await connection.execute(statement)]

    async def add_first_secret(self, secret: str, now: datetime) -> None:
        """Keep the tenant's first secret, unless it has one. Raises Unavailable."""
        values = Signing(self.tenant_id, 1, secret, now)._asdict()
        there = self._rows(webhook_secrets, webhook_secrets.c.id).limit(1)
        with contextlib.suppress(Refused):  # somebody was quicker
            async with self._database.write() as connection:
                if (await connection.execute(there)).first() is None:
                    await connection.execute(insert(webhook_secrets).values(**{**values, "tenant_id": self.tenant_id}))

    async def rotate_secret(self, secret: str, now: datetime, until: datetime, by: Actor) -> bool:
        """Keep a new secret; the one before signs until `until` too. False where somebody did so at the same moment. Raises Unavailable."""
        column = webhook_secrets.c
        before = update(webhook_secrets).where(self._where(webhook_secrets), column.expires_at.is_(None))
        try:
            async with self._database.write() as connection:
                last = (await connection.execute(self._rows(webhook_secrets, func.max(column.id)))).scalar() or 0
                old = delete(webhook_secrets).where(
                    self._where(webhook_secrets), (column.expires_at <= now) | (column.id <= last + 1 - MAX_SECRETS)
                )
                await connection.execute(before.values(expires_at=until))
                await connection.execute(old)
                values = Signing(self.tenant_id, last + 1, secret, now)._asdict()
                await connection.execute(insert(webhook_secrets).values(**{**values, "tenant_id": self.tenant_id}))
                await write(connection, by, "webhook_secret.rotate", self.tenant_id, self.tenant_id, {})
        except Refused:
            return False
        return True


async def find_webhook(database: Database, root_id: str) -> Webhook | None:
    """The webhook of a tree of any tenant, for who works on it. Raises Unavailable."""
    async with database.read() as connection:
        row = (await connection.execute(select(webhooks).where(webhooks.c.root_id == root_id))).first()
    return None if row is None else _webhook(row)
