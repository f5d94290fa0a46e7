"""The admin listener's door: Prometheus metrics, totals, single records and exports of usage, for operators only.

A listener of its own carries it (`cli/serve.py`), never the public one (R-003-8). On a loopback address it asks for no key unless
told to, but for a Host that is this machine's, so that no web page can reach it by a name of its own; on any other address a key
with the permission `admin` is needed. Errors are OpenAI objects (C-4). Nothing here changes anything.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec

from hortator.api import problem
from hortator.api.query import Query, number, only, read_query
from hortator.api.reading import Receive, Scope, Send, bearer, request_id, where
from hortator.errors import Forbidden, HortatorError, InvalidRequest, MethodNotAllowed, NotFound
from hortator.ledger import metrics, reports
from hortator.settings import is_loopback
from hortator.store import Database
from hortator.tenancy import Identity

log = logging.getLogger("hortator.api")

PERMISSION = "admin"
_JSON = msgspec.json.Encoder(decimal_format="number")
_TEXT = "application/json"

Page = tuple[str, bytes]
"""Content type and body."""


class AdminDoor:
    """One ASGI app."""

    def __init__(
        self, database: Database, identity: Identity, exposition: Callable[[], Awaitable[bytes]], *, open: bool
    ) -> None:
        """`exposition` makes the page of metrics; `open` means that no key is needed."""
        self._database = database
        self._identity = identity
        self._exposition = exposition
        self._open = open
        self._pages: dict[str, Callable[[Query], Awaitable[Page]]] = {
            "/metrics": self._metrics,
            "/metrics/summary": self._summary,
            "/metrics/requests": self._requests,
            "/metrics/export": self._export,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; the outermost edge of the admin listener."""
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        id = request_id(headers)
        extra: problem.Headers = []
        try:
            kind, body = await self._answer(scope, headers)
            status = 200
        except HortatorError as error:
            status, kind, body, extra = error.status, _TEXT, problem.body(error), problem.headers(error)
        except Exception as error:  # noqa: BLE001 - the outermost edge of a request
            log.error("internal error: request=%s %s", id, where(error), extra={"request_id": id})
            status, kind, body = 500, _TEXT, problem.body(HortatorError("The request failed inside the gateway."))
        named = [
            (b"content-type", kind.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            (b"x-request-id", id.encode()),
            *extra,
        ]
        await send({"type": "http.response.start", "status": status, "headers": named})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, scope: Scope, headers: dict[bytes, bytes]) -> Page:
        await self._admit(headers)
        page = self._pages.get(scope["path"])
        if page is None:
            raise NotFound(f"Unknown request URL: {scope['method']} {scope['path'][:200]}.")
        if scope["method"] not in ("GET", "HEAD"):
            raise MethodNotAllowed("Only GET is allowed here.", allowed=("GET", "HEAD"))
        return await page(read_query(scope["query_string"]))

    async def _admit(self, headers: dict[bytes, bytes]) -> None:
        """Raise Unauthenticated or Forbidden unless the caller may see everything."""
        if self._open:
            host = headers.get(b"host", b"").decode("latin-1")
            name = host.partition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
            if not is_loopback(name):
                raise Forbidden("This listener answers to this machine's own names only.", code="host_not_allowed")
            return
        caller = await self._identity.authenticate(bearer(headers))
        if PERMISSION not in caller.permissions:
            raise Forbidden(f"This key lacks the permission `{PERMISSION}`.", code="permission_required")

    async def _metrics(self, query: Query) -> Page:
        return metrics.CONTENT_TYPE, await self._exposition()

    async def _summary(self, query: Query) -> Page:
        only(query, "period", "from", "to", "tenant_id", "model", "task_type")
        wanted = reports.period(query, datetime.now(UTC))
        return _page(await reports.summary(self._database, query.get("tenant_id"), wanted, _filters(query)))

    async def _requests(self, query: Query) -> Page:
        only(query, "period", "from", "to", "tenant_id", "model", "task_type", "limit", "offset", "cursor")
        page = await reports.requests(
            self._database,
            query.get("tenant_id"),
            reports.period(query, datetime.now(UTC)),
            _filters(query),
            limit=number(query, "limit", reports.DEFAULT_LIMIT, 1, reports.MAX_LIMIT),
            offset=number(query, "offset", 0, 0, reports.MAX_OFFSET),
            cursor=query.get("cursor"),
        )
        return _page(page)

    async def _export(self, query: Query) -> Page:
        only(query, "period", "from", "to", "tenant_id", "task_type", "format")
        format = query.get("format", "json")
        if format not in ("csv", "json"):
            raise InvalidRequest("expected csv or json", code="invalid_value", param="format")
        wanted = reports.period(query, datetime.now(UTC))
        lines = await reports.export(self._database, query.get("tenant_id"), wanted, _filters(query))
        if format == "csv":
            return "text/csv; charset=utf-8", reports.as_csv(lines).encode()
        return _page(reports.as_json(lines, wanted))


def _page(document: dict[str, Any]) -> Page:
    """Return a document as JSON; amounts are exact numbers, without an exponent."""
    return _TEXT, _JSON.encode({name: _plain(value) for name, value in document.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return value.to_integral_value() if value == value.to_integral_value() else value.normalize()
    if isinstance(value, list):
        return [{name: _plain(inner) for name, inner in item.items()} for item in value]
    return value


def _filters(query: Query) -> reports.Only:
    return reports.Only(query.get("model"), query.get("task_type"))
