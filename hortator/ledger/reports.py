"""What operators and invoices want to know of the usage: totals of a period, single records by page, lines to bill.

The admin door and `hortator usage` call it; it reads through `store/reports.py` and never the journal, so what happened in the
last moment may be missing. Amounts are exact: they leave as decimal numbers or text, never as binary floats.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

from hortator.call import TenantId
from hortator.errors import InvalidRequest
from hortator.store import reports
from hortator.store.database import Database
from hortator.store.queries import OperatorScope, TenantScope, tenant_by_namespace

Only = reports.Only
ALL = reports.ALL
DEFAULT_LIMIT = 50
MAX_LIMIT = 500
MAX_OFFSET = 10_000
"""Beyond it every page costs what all before it cost: a cursor does not."""
MAX_LINES = 50_000
MAX_PERIOD = timedelta(days=366)

_UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_UUID = re.compile(r"[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}")
LINE = ("tenant_id", "provider", "model", "task_type", *reports.COUNTS, "cost_usd")
"""Columns of an export."""


class Period(NamedTuple):
    """From `since` to before `until`, UTC."""

    since: datetime
    until: datetime


def period(given: Mapping[str, str], now: datetime) -> Period:
    """Read `period` (`90m`, `24h`, `7d`, `4w`; 24h by default) or `from` and `to`. Raises InvalidRequest."""
    if "period" in given:
        if "from" in given or "to" in given:
            raise InvalidRequest("give `period`, or `from` and `to`", code="invalid_value", param="period")
        match = re.fullmatch(r"([1-9]\d{0,5})([mhdw])", given["period"])
        if match is None:
            raise InvalidRequest("expected a period such as 24h or 7d", code="invalid_value", param="period")
        seconds = int(match[1]) * _UNITS[match[2]]
        found = Period(now - min(timedelta(seconds=seconds), MAX_PERIOD * 2), now)
    else:
        until = moment(given["to"], "to") if "to" in given else now
        found = Period(moment(given["from"], "from") if "from" in given else until - timedelta(hours=24), until)
    if not timedelta(0) < found.until - found.since <= MAX_PERIOD:
        raise InvalidRequest(
            f"the period must be longer than nothing and at most {MAX_PERIOD.days} days",
            code="invalid_value",
            param="period" if "period" in given else "from",
        )
    return found


def moment(text: str, param: str) -> datetime:
    """Read a date or a moment in ISO 8601; without a zone it is UTC. Raises InvalidRequest."""
    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo is None:
            found = found.replace(tzinfo=UTC)
        found = found.astimezone(UTC)
    except (ValueError, OverflowError):
        found = datetime.min.replace(tzinfo=UTC)
    if not 1970 < found.year < 9999:
        raise InvalidRequest(
            "expected a date or a time, e.g. 2026-11-01 or 2026-11-01T12:00:00Z", code="invalid_value", param=param
        )
    return found


async def scope(database: Database, tenant: str | None) -> TenantScope | OperatorScope:
    """Return whose data is meant: a tenant's, by id or namespace, or everyone's. Raises NotFound, Unavailable."""
    if tenant is None:
        return OperatorScope()
    if _UUID.fullmatch(tenant):
        digits = tenant.replace("-", "").lower()
        parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
        return TenantScope(database, TenantId("-".join(parts)))
    return TenantScope(database, (await tenant_by_namespace(database, tenant)).id)


async def summary(database: Database, tenant: str | None, wanted: Period, only: Only = ALL) -> dict[str, Any]:
    """Return the totals of a period (R-003-6). It is widened to full hours, and says so."""
    whole = Period(_floor(wanted.since), _ceiling(wanted.until))
    found = await reports.sums(database, await scope(database, tenant), *whole, only)
    return {
        "total_requests": found.requests,
        "total_cost_usd": found.cost,
        "local_fallback_count": found.local_fallbacks,
        "average_latency_ms": round(found.latency_us / found.requests / 1000, 3) if found.requests else 0,
        "unpriced_requests": found.unpriced,
        **{name: getattr(found, name) for name in reports.TOKENS},
        "from": whole.since,
        "to": whole.until,
    }


async def requests(
    database: Database,
    tenant: str | None,
    wanted: Period,
    only: Only = ALL,
    *,
    limit: int = DEFAULT_LIMIT,
    offset: int = 0,
    cursor: str | None = None,
) -> dict[str, Any]:
    """Return one page of records, newest first (R-003-7), and the cursor of the next one."""
    found = await reports.records(
        database,
        await scope(database, tenant),
        *wanted,
        only=only,
        limit=limit + 1,
        offset=offset,
        after=None if cursor is None else _place(cursor),
    )
    page = found[:limit]
    more = len(found) > limit
    last = reports.Place(page[-1]["timestamp"], page[-1]["id"]) if more else None
    shown = [{("cost_usd" if k == "cost" else k): v for k, v in record.items() if k != "id"} for record in page]
    return {"requests": shown, "limit": limit, "offset": offset, "next_cursor": None if last is None else _cursor(last)}


async def export(database: Database, tenant: str | None, wanted: Period, only: Only = ALL) -> list[dict[str, Any]]:
    """Return the lines to bill: sums by tenant, provider, model and task type, costs as exact text.

    Raises InvalidRequest unless the period begins and ends at a full hour: an invoice must not be widened.
    """
    if wanted != (_floor(wanted.since), _floor(wanted.until)):
        raise InvalidRequest("an export begins and ends at a full hour, UTC", code="invalid_value", param="from")
    found = await reports.lines(database, await scope(database, tenant), *wanted, MAX_LINES + 1, only)
    if len(found) > MAX_LINES:
        raise InvalidRequest("too many lines; ask for one tenant at a time", code="invalid_value", param="tenant_id")
    return [{**{name: line[name] for name in LINE[:-1]}, "cost_usd": f"{line['cost']:.10f}"} for line in found]


def as_csv(lines: list[dict[str, Any]]) -> str:
    """Return an export as CSV with a heading. Text that a spreadsheet would take for a formula gets a quote before it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(LINE)
    for line in lines:
        writer.writerow([_cell(line[name]) for name in LINE])
    return text.getvalue()


def as_json(lines: list[dict[str, Any]], wanted: Period) -> dict[str, Any]:
    """Return an export as one object with its total."""
    total = sum((Decimal(line["cost_usd"]) for line in lines), Decimal(0))
    return {"from": wanted.since, "to": wanted.until, "lines": lines, "total_cost_usd": f"{total:.10f}"}


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _floor(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)


def _ceiling(at: datetime) -> datetime:
    floor = _floor(at)
    return floor if floor == at else floor + timedelta(hours=1)


def _cursor(place: reports.Place) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def _place(cursor: str) -> reports.Place:
    """Read a cursor. Raises InvalidRequest."""
    try:
        data = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        place = msgspec.json.decode(data, type=reports.Place)
    except (binascii.Error, ValueError, msgspec.DecodeError):
        place = None
    if place is None or place.timestamp.tzinfo is None or not 0 <= place.id < 2**63:
        raise InvalidRequest("not a cursor of this list", code="invalid_value", param="cursor")
    return place
