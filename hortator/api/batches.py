"""The door of `/v1/batches`: new ones, one, a list, and the end of one.

`app.py` mounts it. It parses requests and writes the objects; the room of batches does the rest.
"""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial

from hortator.api.inference import OPENAI, Exchange, allow, serve
from hortator.api.objects import Admit, page, reply, seconds
from hortator.api.query import number, read_query
from hortator.api.reading import Receive, Scope, Send, bearer, expect_json, read_body
from hortator.batches import Batches
from hortator.call import Caller
from hortator.dispatch import Trace
from hortator.errors import NotFound
from hortator.store.batches import Batch
from hortator.wire import batches
from hortator.wire.batches import (
    BatchErrors,
    BatchObject,
    BatchUsage,
    InputDetails,
    OutputDetails,
    RequestCounts,
)

PATH = "/v1/batches"
USUAL_PAGE, MAX_PAGE = 20, 100
"""Batches in one list; as OpenAI's."""


class BatchesDoor:
    """Everything under `/v1/batches`."""

    def __init__(self, admit: Admit, batches: Batches, max_body_bytes: int) -> None:
        self._admit = admit
        self._batches = batches
        self._max_body_bytes = max_body_bytes

    def __call__(self, scope: Scope, receive: Receive, send: Send, path: str) -> Awaitable[None]:
        """Answer one request to `path` (below the root path)."""
        return serve(scope, receive, send, OPENAI, partial(self._answer, path))

    async def _answer(self, path: str, exchange: Exchange, _: Trace) -> None:
        caller = await self._admit(bearer(exchange.headers))
        match path[len(PATH) :].split("/"):
            case [""]:
                allow(exchange, "GET", "HEAD", "POST")
                if exchange.method == "POST":
                    await self._add(exchange, caller)
                else:
                    await self._list(exchange, caller)
            case ["", id] if id:
                allow(exchange, "GET", "HEAD")
                await reply(exchange, shown(await self._batches.find(caller.tenant_id, id)))
            case ["", id, "cancel"] if id:
                allow(exchange, "POST")
                await reply(exchange, shown(await self._batches.cancel(caller.tenant_id, id)))
            case _:
                raise NotFound(f"Unknown request URL: {exchange.method} {path[:200]}.")

    async def _add(self, exchange: Exchange, caller: Caller) -> None:
        expect_json(exchange.headers)
        body = await read_body(exchange.headers, exchange.direct, exchange.receive, self._max_body_bytes)
        asked = batches.parse(body)
        kept = asked.output_expires_after
        lifetime = None if kept is None else kept.seconds
        batch = await self._batches.add(caller, asked.endpoint, asked.input_file_id, asked.metadata, lifetime)
        await reply(exchange, shown(batch))

    async def _list(self, exchange: Exchange, caller: Caller) -> None:
        asked = read_query(exchange.query)
        limit = number(asked, "limit", USUAL_PAGE, 1, MAX_PAGE)
        found = await self._batches.page(caller.tenant_id, asked.get("after"), limit + 1)
        await reply(exchange, page([shown(batch) for batch in found[:limit]], len(found) > limit))


def shown(batch: Batch) -> BatchObject:
    """Return a batch as clients see it."""
    return BatchObject(
        id=batch.id,
        endpoint=batch.endpoint,
        input_file_id=batch.input_file_id,
        status=batch.status,
        created_at=int(batch.created_at.timestamp()),
        expires_at=int(batch.expires_at.timestamp()),
        errors=None if not batch.errors else BatchErrors(batch.errors),
        model=batch.model,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        in_progress_at=seconds(batch.in_progress_at),
        finalizing_at=seconds(batch.finalizing_at),
        completed_at=seconds(batch.completed_at),
        failed_at=seconds(batch.failed_at),
        expired_at=seconds(batch.expired_at),
        cancelling_at=seconds(batch.cancelling_at),
        cancelled_at=seconds(batch.cancelled_at),
        request_counts=RequestCounts(batch.total, batch.completed, batch.failed),
        usage=BatchUsage(
            batch.input_tokens,
            InputDetails(batch.cached_tokens),
            batch.output_tokens,
            OutputDetails(batch.reasoning_tokens),
            batch.input_tokens + batch.output_tokens,
        ),
        metadata=batch.metadata,
    )
