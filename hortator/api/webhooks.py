"""The door of `/api/v1/webhooks/secret`: what signs the calls to a tenant's `callback_url`s, and a new one of it.

`doors.py` mounts it. Deliveries are shown by the doors of tasks; the room makes the calls and keeps the secrets.
"""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial

import msgspec

from hortator.api import problem
from hortator.api.inference import OPENAI, Exchange, allow, respond, serve
from hortator.api.objects import Admit
from hortator.api.query import only, read_query
from hortator.api.reading import Receive, Scope, Send, bearer
from hortator.dispatch import Trace
from hortator.errors import NotFound
from hortator.orchestration.webhooks import Webhooks
from hortator.store.audit import Actor
from hortator.wire.webhooks import SecretObject

PATH = "/api/v1/webhooks"


class WebhooksDoor:
    """Everything under `/api/v1/webhooks`."""

    def __init__(self, admit: Admit, webhooks: Webhooks) -> None:
        self._admit = admit
        self._webhooks = webhooks

    def __call__(self, scope: Scope, receive: Receive, send: Send, path: str) -> Awaitable[None]:
        """Answer one request to `path` (below the root path)."""
        return serve(scope, receive, send, OPENAI, partial(self._answer, path))

    async def _answer(self, path: str, exchange: Exchange, _: Trace) -> None:
        caller = await self._admit(bearer(exchange.headers))
        only(read_query(exchange.query))
        match path[len(PATH) :]:
            case "/secret":
                allow(exchange, "GET", "HEAD")
                await _reply(exchange, await self._webhooks.secret(caller))
            case "/secret/rotate":
                allow(exchange, "POST")
                by = Actor(caller.key_name, caller.key_hash, caller.tenant_id, exchange.id)
                await _reply(exchange, await self._webhooks.rotate(caller, by))
            case _:
                raise NotFound(f"Unknown request URL: {exchange.method} {path[:200]}.")


async def _reply(exchange: Exchange, secret: SecretObject) -> None:
    headers = [problem.JSON, (b"x-request-id", exchange.id.encode()), (b"cache-control", b"no-store")]
    await respond(exchange, 200, headers, msgspec.json.encode(secret))
