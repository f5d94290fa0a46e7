"""Outcomes of routing by complexity: written by the ledger beside the usage records, read by `hortator router train`.

A row is one routed request: numbers, never its text. It may be marked later, when its client asks again. Rows are a sample to learn
from, not an account: those of a time when the store is down are not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import func, insert, or_, update

from hortator.call import KeyHash, Path, RequestId, TenantId
from hortator.store.database import Database
from hortator.store.queries import OperatorScope
from hortator.store.tables import routing_outcomes


class OutcomeRow(NamedTuple):
    """One row of `routing_outcomes`, in column order; see `docs/data-schema.md`."""

    request_id: RequestId
    tenant_id: TenantId
    key_hash: KeyHash
    at: datetime
    path: Path
    score: float
    confidence: float
    features: dict[str, Any]
    """Feature -> value; `words`: what the words add up to for each path."""
    model: str | None
    cost: Decimal | None
    retried: bool
    escalated: bool
    error_code: str | None


class Mark(NamedTuple):
    """An earlier row whose client has asked again."""

    tenant_id: TenantId
    request_id: RequestId
    escalated: bool


class Learnt(NamedTuple):
    """What can be learnt from a row."""

    request_id: RequestId
    path: Path
    features: dict[str, Any]
    escalated: bool


class Known(NamedTuple):
    """How many rows there are."""

    rows: int
    usable: int
    """Without an error, and not asked again with the same model."""
    escalated: int
    """Of those."""


async def insert_outcomes(database: Database, rows: Sequence[OutcomeRow], marks: Sequence[Mark]) -> None:
    """Insert rows, then mark rows, these or earlier ones, in one transaction. Raises Unavailable, Refused."""
    column = routing_outcomes.c
    async with database.write() as connection:
        if rows:
            await connection.execute(insert(routing_outcomes), [each._asdict() for each in rows])
        for mark in marks:
            change = {"retried": True, "escalated": True} if mark.escalated else {"retried": True}
            whose = column.tenant_id == mark.tenant_id, column.request_id == mark.request_id
            await connection.execute(update(routing_outcomes).where(*whose).values(change))


async def known(database: Database) -> Known:
    """Count every tenant's rows. Raises Unavailable."""
    column = routing_outcomes.c
    usable = func.count().filter(column.error_code.is_(None), or_(column.escalated, ~column.retried))
    escalated = func.count().filter(column.error_code.is_(None), column.escalated)
    async with database.read() as connection:
        found = await connection.execute(OperatorScope().rows(routing_outcomes, func.count(), usable, escalated))
        return Known(*found.one())


async def learnt(database: Database, limit: int) -> list[Learnt]:
    """Return the newest usable rows, of every tenant. Raises Unavailable."""
    column = routing_outcomes.c
    wanted = (
        OperatorScope()
        .rows(routing_outcomes, column.request_id, column.path, column.features, column.escalated)
        .where(column.error_code.is_(None), or_(column.escalated, ~column.retried))
    )
    async with database.read() as connection:
        return [Learnt(*each) for each in await connection.execute(wanted.order_by(column.id.desc()).limit(limit))]
