"""The OpenAI door: chat completions and models under `/v1`, as raw ASGI, because this is the hot path.

`app.py` mounts it in front of everything else. It reads the request, lets the gateway walk it, and writes the answer; what
the gateway raises becomes an OpenAI error object. It decides nothing and knows no room.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import Any

import msgspec

from hortator.api import problem
from hortator.api.inference import OPENAI, Exchange, allow, answer, resend, respond, serve
from hortator.api.reading import Receive, Scope, Send, bearer, expect_json, read_body
from hortator.call import Call, ModelId
from hortator.dispatch import Trace
from hortator.errors import InvalidRequest, NotFound
from hortator.gateway import Gateway
from hortator.wire import chat

_VERBOSITIES = frozenset((b"default", b"verbose", b"full"))


class OpenAIDoor:
    """`POST /v1/chat/completions`, `GET /v1/models`, `GET /v1/models/{id}`; everything else under `/v1` is unknown."""

    def __init__(self, gateway: Gateway, max_body_bytes: int) -> None:
        self._gateway = gateway
        self._max_body_bytes = max_body_bytes

    def __call__(self, scope: Scope, receive: Receive, send: Send, path: str) -> Awaitable[None]:
        """Answer one request to `path` (below the root path)."""
        if path == "/v1/chat/completions":
            return serve(scope, receive, send, OPENAI, self._chat)

        async def other(exchange: Exchange, _: Trace) -> None:
            if path != "/v1/models" and not path.startswith("/v1/models/"):
                raise NotFound(f"Unknown request URL: {exchange.method} {path[:200]}.")
            await self._models(exchange, path[len("/v1/models/") :])

        return serve(scope, receive, send, OPENAI, other)

    async def _chat(self, exchange: Exchange, trace: Trace) -> None:
        allow(exchange, "POST")
        headers = exchange.headers
        token = bearer(headers)
        caller = self._gateway.known(token) or await self._gateway.admit(token)
        expect_json(headers)
        if headers.get(b"x-hortator-verbosity", b"default") not in _VERBOSITIES:
            raise InvalidRequest(
                "X-Hortator-Verbosity must be default, verbose or full.",
                code="invalid_value",
                param="X-Hortator-Verbosity",
            )
        parsed = chat.parse(await read_body(headers, exchange.direct, exchange.receive, self._max_body_bytes))
        call = Call(
            id=exchange.id,
            operation="chat",
            model=ModelId(parsed.model),
            body=parsed.body,
            stream=parsed.stream,
            wants_usage=parsed.wants_usage,
            started=exchange.started,
            received_at=time.time(),
            session=headers.get(b"x-hortator-session"),
            resend=resend(headers),
        )
        await answer(self._gateway, exchange, caller, call, trace)

    async def _models(self, exchange: Exchange, wanted: str) -> None:
        """List the models the key may use, or describe one."""
        allow(exchange, "GET", "HEAD")
        caller = await self._gateway.admit(bearer(exchange.headers))
        entries = self._gateway.catalogue().visible(caller.allowed_models)
        document: Any
        if wanted:
            document = next((entry for entry in entries if entry.id == wanted), None)
            if document is None:
                raise NotFound(f"The model '{wanted[:200]}' does not exist.", code="model_not_found", param="model")
        else:
            document = {"object": "list", "data": list(entries)}
        headers = [problem.JSON, (b"x-request-id", exchange.id.encode())]
        await respond(exchange, 200, headers, msgspec.json.encode(document))
