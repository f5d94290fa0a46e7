"""The preview door: `POST /api/v1/route` takes the body of a chat completion and tells how it would be routed (R-002-9).

Raw ASGI, reached through `doors.py`. Nothing is called, reserved or recorded. Errors are OpenAI objects (C-4).
"""

from __future__ import annotations

import time

import msgspec

from hortator.api import problem
from hortator.api.inference import OPENAI, Exchange, allow, respond, serve
from hortator.api.reading import Receive, Scope, Send, bearer, expect_json, read_body
from hortator.api.wishes import take_wish
from hortator.call import Call, ModelId
from hortator.dispatch import Trace
from hortator.gateway import Gateway
from hortator.wire import chat

PATH = "/api/v1/route"


class RouteDoor:
    """One address."""

    def __init__(self, gateway: Gateway, max_body_bytes: int) -> None:
        self._gateway = gateway
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        """Answer one request."""
        await serve(scope, receive, send, OPENAI, self._preview)

    async def _preview(self, exchange: Exchange, _: Trace) -> None:
        allow(exchange, "POST")
        caller = await self._gateway.admit(bearer(exchange.headers))
        expect_json(exchange.headers)
        parsed = chat.parse(await read_body(exchange.headers, exchange.direct, exchange.receive, self._max_body_bytes))
        call = Call(
            id=exchange.id,
            operation="chat",
            model=ModelId(parsed.model),
            body=parsed.body,
            stream=parsed.stream,
            wants_usage=parsed.wants_usage,
            started=exchange.started,
            received_at=time.time(),
            wish=take_wish(exchange.headers, parsed.body),
        )
        if call.wish.tenant_id is not None:
            caller = await self._gateway.on_behalf(caller, call.wish.tenant_id)
        shown = self._gateway.preview(caller, call)
        headers = [problem.JSON, (b"x-request-id", exchange.id.encode())]
        await respond(exchange, 200, headers, msgspec.json.encode(shown))
