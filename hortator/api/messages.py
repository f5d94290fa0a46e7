"""The messages door: `/v1/messages` and `/v1/messages/count_tokens`, and `/v1/models` for clients of Anthropic's dialect.

`doors.py` chooses between it and the OpenAI door. It reads requests as Anthropic's clients send them, lets the gateway walk them, and tells
errors and limits in their words. Of the rooms it knows only the list of models.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import parse_qs

import msgspec

from hortator.api import problem
from hortator.api.inference import Exchange, Manner, allow, answer, may, resend, respond, serve
from hortator.api.reading import HangUp, Receive, Scope, Send, bearer, expect_json, read_body
from hortator.api.team_chat import TeamChat
from hortator.api.wishes import take_wish
from hortator.call import Call, Caller, ModelId, RequestId
from hortator.dispatch import Trace
from hortator.errors import HortatorError, InvalidRequest, NotFound, Unauthenticated, UpstreamRefused
from hortator.gateway import Gateway
from hortator.routing import Catalogue
from hortator.routing.catalogue import CREATED, Entry
from hortator.wire import messages
from hortator.wire.body import ParsedRequest
from hortator.wire.messages_error import error_body, error_event

VERSION = b"anthropic-version"
"""The header that every client of the dialect sends."""

ALIAS = "claude-hortator-"
"""Begins the ids of models that are not Claude's, because some clients show no others: `claude-hortator-groq/llama-3.1-8b-instant`."""

_OWN = "anthropic/"
_OWN_NAMES = ("claude", "anthropic")
_FORWARDED = (VERSION, b"anthropic-beta")
_MAX_PAGE, _PAGE = 1000, 20
_OVERLOADED = 529
_LIMIT = re.compile(rb"x-ratelimit-(limit|remaining|reset)-(requests|tokens)").fullmatch
_DURATION = re.compile(rb"(\d+)(ms|h|m|s)")
_SECONDS = {b"ms": 0.001, b"s": 1.0, b"m": 60.0, b"h": 3600.0}


def told_also(headers: problem.Headers, id: RequestId) -> problem.Headers:
    """Return the headers that say the same in Anthropic's words: the request's id, and what is left of limits."""
    found = [(b"request-id", id.encode())]
    for name, value in headers:
        limit = _LIMIT(name)
        if limit is None:
            continue
        if limit[1] == b"reset":
            seconds = sum(int(number) * _SECONDS[unit] for number, unit in _DURATION.findall(value))
            end = datetime.now(UTC) + timedelta(seconds=seconds)
            value = end.strftime("%Y-%m-%dT%H:%M:%SZ").encode()
        found.append((b"anthropic-ratelimit-%b-%b" % (limit[2], limit[1]), value))
    return found


def status(error: HortatorError) -> int:
    """Return an error's status; an overloaded provider's own is one that clients of this dialect know."""
    overloaded = isinstance(error, UpstreamRefused) and error.upstream_status == _OVERLOADED
    return _OVERLOADED if overloaded else error.status


ANTHROPIC = Manner(error_body, error_event, status, told_also)


class MessagesDoor:
    """`POST /v1/messages`, `POST /v1/messages/count_tokens`, `GET /v1/models` and `GET /v1/models/{id}`. Queries are ignored but
    for the pages of the list."""

    def __init__(self, gateway: Gateway, max_body_bytes: int, team: TeamChat | None = None) -> None:
        """`team` answers for roles and patterns; None = there are none."""
        self._gateway = gateway
        self._team = team
        self._max_body_bytes = max_body_bytes

    def __call__(self, scope: Scope, receive: Receive, send: Send, path: str) -> Awaitable[None]:
        """Answer one request to `path` (below the root path)."""
        if path == "/v1/messages":
            return serve(scope, receive, send, ANTHROPIC, self._messages)
        return serve(scope, receive, send, ANTHROPIC, partial(self._other, path))

    async def _messages(self, exchange: Exchange, trace: Trace) -> None:
        allow(exchange, "POST")
        caller, body = await self._read(exchange)
        call = self._call(exchange, messages.parse(body))
        if self._team is not None and self._team.takes(call.model):
            await self._team.answer(exchange, caller, call, trace, ANTHROPIC)
        else:
            await answer(self._gateway, exchange, caller, call, trace, ANTHROPIC)

    async def _other(self, path: str, exchange: Exchange, trace: Trace) -> None:
        if path == "/v1/messages/count_tokens":
            await self._count(exchange, trace)
        elif path == "/v1/models" or path.startswith("/v1/models/"):
            await self._models(exchange, path[len("/v1/models/") :])
        elif path.startswith("/v1/messages/batches"):
            raise NotFound(f"This gateway does not serve {exchange.method} {path[:200]}.", code="unsupported_endpoint")
        else:
            raise NotFound(f"Unknown request URL: {exchange.method} {path[:200]}.")

    async def _count(self, exchange: Exchange, trace: Trace) -> None:
        """Tell how many tokens a request has: the provider's own count, else an estimate."""
        allow(exchange, "POST")
        caller, body = await self._read(exchange)
        call = self._call(exchange, messages.parse_count(body))
        if self._team is not None and self._team.takes(call.model):
            await self._tell(exchange, {"input_tokens": messages.estimate_tokens(call.body)})
            return
        with HangUp(trace.hang_up, exchange.direct, exchange.receive):
            try:
                count = await self._gateway.count_tokens(caller, call)
            except asyncio.CancelledError as cancelled:
                raise trace.failure(cancelled) from None
        await self._tell(exchange, {"input_tokens": messages.estimate_tokens(call.body) if count is None else count})

    async def _models(self, exchange: Exchange, wanted: str) -> None:
        """List the models the key may use, or describe one, as Anthropic does."""
        allow(exchange, "GET", "HEAD")
        caller = await self._gateway.admit(_token(exchange.headers))
        entries = self._gateway.catalogue().visible(caller.allowed_models)
        if not wanted:
            team = [] if self._team is None else self._team.visible(caller.allowed_models)
            await self._tell(exchange, _page([_shown(entry) for entry in [*entries, *team]], exchange.query))
            return
        meant = self._meant(wanted)
        found = next((entry for entry in entries if entry.id == meant), None)
        if found is None and self._team is not None:
            found = self._team.entry(meant, caller.allowed_models)
        if found is None:
            raise NotFound(f"The model '{wanted[:200]}' does not exist.", code="model_not_found", param="model")
        await self._tell(exchange, _shown(found) | {"id": wanted})

    async def _read(self, exchange: Exchange) -> tuple[Caller, bytes]:
        """Say who calls, then read the body."""
        token = _token(exchange.headers)
        caller = self._gateway.known(token) or await self._gateway.admit(token)
        expect_json(exchange.headers)
        return caller, await read_body(exchange.headers, exchange.direct, exchange.receive, self._max_body_bytes)

    def _call(self, exchange: Exchange, parsed: ParsedRequest) -> Call:
        headers = exchange.headers
        return Call(
            id=exchange.id,
            operation="messages",
            model=ModelId(self._meant(parsed.model)),
            body=parsed.body,
            stream=parsed.stream,
            wants_usage=parsed.wants_usage,
            started=exchange.started,
            received_at=time.time(),
            session=headers.get(b"x-hortator-session"),
            forwarded=tuple((name, headers[name]) for name in _FORWARDED if name in headers),
            wish=take_wish(headers, parsed.body),
            resend=resend(headers, parsed.body),
            fallback=may(parsed.body, "hortator_fallback"),
        )

    def _meant(self, model: str) -> str:
        """Return the id that a client means: also of a role or pattern by its alias."""
        for prefix in (ALIAS, _OWN):
            if self._team is not None and model.startswith(prefix) and self._team.takes(model[len(prefix) :]):
                return model[len(prefix) :]
        return _meant(model, self._gateway.catalogue())

    async def _tell(self, exchange: Exchange, document: Any) -> None:
        headers = [problem.JSON, (b"x-request-id", exchange.id.encode()), (b"request-id", exchange.id.encode())]
        await respond(exchange, 200, headers, msgspec.json.encode(document))


def _token(headers: dict[bytes, bytes]) -> bytes:
    """Return the caller's token: `x-api-key`, or a bearer token; one of ours goes first. Raises Unauthenticated."""
    key = headers.get(b"x-api-key", b"").strip()
    if key.startswith(b"hrt_"):
        return key
    try:
        return bearer(headers)
    except Unauthenticated:
        if key:
            return key
        said = "No API key was given: send `x-api-key: hrt_sk_...` or `Authorization: Bearer hrt_sk_...`."
        raise Unauthenticated(said, code="missing_api_key") from None


def _meant(model: str, catalogue: Catalogue) -> str:
    """Return the id that a client means. What the catalogue knows comes first, then its aliases.

    `claude-hortator-<id>` and `anthropic/<id>` are `<id>`; a bare `claude-...` is the provider `anthropic`'s.
    """
    if catalogue.resolve(model) is not None:
        return model
    for prefix in (ALIAS, _OWN):
        if model.startswith(prefix) and catalogue.resolve(model[len(prefix) :]) is not None:
            return model[len(prefix) :]
    if model.startswith("claude-") and catalogue.resolve(_OWN + model) is not None:
        return _OWN + model
    return model


def _shown(entry: Entry) -> dict[str, Any]:
    """Return a model as Anthropic's list shows it."""
    created = datetime.fromtimestamp(CREATED, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    id = entry.id if entry.id.startswith(_OWN_NAMES) else ALIAS + entry.id
    return {"type": "model", "id": id, "display_name": entry.id, "created_at": created, "lifecycle": "active"}


def _page(models: list[dict[str, Any]], query: bytes) -> dict[str, Any]:
    """Return the page that a query asks for: `limit` models after `after_id`, or before `before_id`. Raises InvalidRequest."""
    asked = {name: values[-1] for name, values in parse_qs(query.decode("latin-1")).items()}
    text = asked.get("limit", str(_PAGE))
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= _MAX_PAGE):
        raise InvalidRequest(f"'limit' must be from 1 to {_MAX_PAGE}.", code="invalid_value", param="limit")
    limit = int(text)
    places = {model["id"]: at for at, model in enumerate(models)}
    for name in ("after_id", "before_id"):
        if name in asked and asked[name] not in places:
            raise InvalidRequest(f"'{name}' is not in the list.", code="invalid_value", param=name)
    if "before_id" in asked:
        end = places[asked["before_id"]]
        page, more = models[max(0, end - limit) : end], end > limit
    else:
        start = places[asked["after_id"]] + 1 if "after_id" in asked else 0
        page, more = models[start : start + limit], len(models) > start + limit
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    return {"data": page, "has_more": more, "first_id": first, "last_id": last}
