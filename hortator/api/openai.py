"""The OpenAI door: model calls and the list of models under `/v1`, as raw ASGI, because this is the hot path.

`doors.py` sends it what is under `/v1` and no other door's. It reads the request, lets the gateway walk it, and writes the answer; what
the gateway raises becomes an OpenAI error object. It decides nothing and knows no room.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import msgspec

from hortator.api import problem
from hortator.api.inference import OPENAI, Exchange, allow, answer, may, resend, respond, serve
from hortator.api.reading import Receive, Scope, Send, bearer, expect_json, read_body
from hortator.api.team_chat import TeamChat
from hortator.api.wishes import take_wish
from hortator.call import Call, ModelId
from hortator.dispatch import Trace
from hortator.errors import InvalidRequest, NotFound
from hortator.gateway import Gateway
from hortator.wire import completions, embeddings, moderations, responses
from hortator.wire.body import ParsedRequest
from hortator.wire.dialects import Dialect

Parse = Callable[[bytes], ParsedRequest]

OPERATIONS: dict[str, tuple[Dialect, Parse]] = {
    "/v1/chat/completions": ("chat", responses.parse_chat),
    "/v1/completions": ("completions", completions.parse),
    "/v1/embeddings": ("embeddings", embeddings.parse),
    "/v1/moderations": ("moderations", moderations.parse),
}
_NOT_SERVED = (
    "assistants audio chat/completions containers conversations evals fine_tuning images realtime responses skills threads "
    "uploads vector_stores videos"
).split()
"""What else OpenAI documents under /v1: clients are told so, instead of that the URL is unknown."""
_VERBOSITIES = frozenset((b"default", b"verbose", b"full"))


class OpenAIDoor:
    """Chat completions, completions, embeddings, moderations and models; everything else under `/v1` is unknown here."""

    def __init__(self, gateway: Gateway, max_body_bytes: int, team: TeamChat | None = None) -> None:
        """`team` answers for roles and patterns; None = there are none."""
        self._gateway = gateway
        self._team = team
        self._max_body_bytes = max_body_bytes

    def __call__(self, scope: Scope, receive: Receive, send: Send, path: str) -> Awaitable[None]:
        """Answer one request to `path` (below the root path)."""
        operation = OPERATIONS.get(path)
        if operation is not None:
            return serve(scope, receive, send, OPENAI, partial(self._call, *operation))
        return serve(scope, receive, send, OPENAI, partial(self._other, path))

    async def _call(self, dialect: Dialect, parse: Parse, exchange: Exchange, trace: Trace) -> None:
        """Answer one model call."""
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
        parsed = parse(await read_body(headers, exchange.direct, exchange.receive, self._max_body_bytes))
        call = Call(
            id=exchange.id,
            operation=dialect,
            model=ModelId(parsed.model),
            body=parsed.body,
            stream=parsed.stream,
            wants_usage=parsed.wants_usage,
            started=exchange.started,
            received_at=time.time(),
            session=headers.get(b"x-hortator-session"),
            wish=take_wish(headers, parsed.body),
            resend=resend(headers, parsed.body),
            fallback=may(parsed.body, "hortator_fallback"),
        )
        if self._team is None or not self._team.takes(call.model):
            await answer(self._gateway, exchange, caller, call, trace)
        elif dialect == "chat":
            await self._team.answer(exchange, caller, call, trace, OPENAI)
        else:
            raise InvalidRequest(
                f"The model '{call.model[:200]}' answers chats only.", code="unsupported_by_model", param="model"
            )

    async def _other(self, path: str, exchange: Exchange, _: Trace) -> None:
        if path == "/v1/models" or path.startswith("/v1/models/"):
            await self._models(exchange, path[len("/v1/models/") :])
            return
        rest = path[len("/v1/") :]
        if not rest.endswith("/") and any(f"{rest}/".startswith(f"{known}/") for known in _NOT_SERVED):
            raise NotFound(f"This gateway does not serve {exchange.method} {path[:200]}.", code="unsupported_endpoint")
        raise NotFound(f"Unknown request URL: {exchange.method} {path[:200]}.")

    async def _models(self, exchange: Exchange, wanted: str) -> None:
        """List the models the key may use, or describe one."""
        allow(exchange, "GET", "HEAD")
        caller = await self._gateway.admit(bearer(exchange.headers))
        allowed = caller.allowed_models
        entries = self._gateway.catalogue().visible(allowed)
        document: Any
        if wanted:
            document = next((entry for entry in entries if entry.id == wanted), None)
            if document is None and self._team is not None:
                document = self._team.entry(wanted, allowed)
            if document is None:
                raise NotFound(f"The model '{wanted[:200]}' does not exist.", code="model_not_found", param="model")
        else:
            team = [] if self._team is None else self._team.visible(allowed)
            document = {"object": "list", "data": [*entries, *team]}
        headers = [problem.JSON, (b"x-request-id", exchange.id.encode())]
        await respond(exchange, 200, headers, msgspec.json.encode(document))
