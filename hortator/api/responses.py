"""The responses door: `/v1/responses` and what hangs below it, as raw ASGI like its sister, the OpenAI door.

A request becomes a `Call` in the responses dialect and walks the corridor; what the client is to find again is shown to the archive as it
is written. The only reads of the store on the way of a call are the chain behind `previous_response_id`, which is cached, and those
for background work, which is durable before it is answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import parse_qs

import msgspec
import uuid_utils
from msgspec import Raw
from msgspec.structs import replace

from hortator.api import problem
from hortator.api.inference import EVENT_STREAM, Exchange, Manner, Seen, allow, answer, may, resend, respond, serve
from hortator.api.reading import HangUp, Receive, Scope, Send, bearer, expect_json, read_body
from hortator.api.team_chat import TeamChat
from hortator.api.wishes import take_wish
from hortator.archive import Archive, Background
from hortator.call import Call, Caller, ModelId, RequestId, Wish
from hortator.dispatch import Trace
from hortator.errors import HortatorError, InvalidRequest, NotFound
from hortator.gateway import Gateway
from hortator.store.responses import UNFINISHED, Kept
from hortator.wire import responses
from hortator.wire.body import Object, ParsedRequest
from hortator.wire.chat_stream import KEEP_ALIVE
from hortator.wire.fields import fields, given, raw, text
from hortator.wire.responses_items import estimated_tokens, input_items, with_ids
from hortator.wire.responses_replay import events
from hortator.wire.responses_stream import error_event, last_response

PATH = "/v1/responses"
_TRUE = Raw(b"true")
_FALSE = Raw(b"false")
_MOST_ITEMS = 100
_MOST_EVENTS = 10_000_000
_LOOK_SECONDS = 1.0
_KEEP_ALIVE_SECONDS = 5.0

MANNER = Manner(
    lambda error, _: problem.body(error),
    lambda error, _: error_event(0, error),
    lambda error: error.status,
)


class ResponsesDoor:
    """Create, read, delete and cancel responses; list what went in; estimate how many tokens that is."""

    def __init__(
        self,
        gateway: Gateway,
        archive: Archive | None,
        background: Background | None,
        max_body_bytes: int,
        team: TeamChat | None = None,
    ) -> None:
        """Without an archive nothing is kept, and there is nothing to find. `team` answers for roles and patterns; None = there are none."""
        self._gateway = gateway
        self._team = team
        self._archive = archive
        self._background = background
        self._max_body_bytes = max_body_bytes

    def __call__(self, scope: Scope, receive: Receive, send: Send, path: str) -> Awaitable[None]:
        """Answer one request to `path` (below the root path), which is `PATH` or below it."""
        if path == PATH:
            return serve(scope, receive, send, MANNER, self._create)
        id, _, rest = path[len(PATH) + 1 :].partition("/")
        return serve(scope, receive, send, MANNER, partial(self._below, id, rest))

    async def _below(self, id: str, rest: str, exchange: Exchange, trace: Trace) -> None:
        if not rest and id == "input_tokens":
            await self._input_tokens(exchange)
        elif not id or (id == "compact" and not rest):
            raise NotFound(f"This gateway does not serve {PATH}/{id}.", code="unsupported_endpoint")
        elif not rest:
            await self._one(exchange, trace, id)
        elif rest == "input_items":
            await self._input_items(exchange, id)
        elif rest == "cancel":
            await self._cancel(exchange, id)
        else:
            raise NotFound(f"Unknown request URL: {exchange.method} {PATH}/{id[:100]}/{rest[:100]}.")

    async def _caller(self, exchange: Exchange) -> Caller:
        token = bearer(exchange.headers)
        return self._gateway.known(token) or await self._gateway.admit(token)

    async def _create(self, exchange: Exchange, trace: Trace) -> None:
        allow(exchange, "POST")
        headers = exchange.headers
        caller = await self._caller(exchange)
        expect_json(headers)
        parsed = responses.parse(await read_body(headers, exchange.direct, exchange.receive, self._max_body_bytes))
        now = time.time()
        as_sent = parsed.body.copy()
        wish = take_wish(headers, parsed.body)
        if wish.tenant_id is not None:
            caller = await self._gateway.on_behalf(caller, wish.tenant_id)
            wish = replace(wish, tenant_id=None)
        team = self._team if self._team is not None and self._team.takes(parsed.model) else None
        if parsed.body.get("background") == _TRUE:
            if team is not None:
                said = "background is not served for this model; order the work at POST /api/v1/tasks."
                raise InvalidRequest(said, code="unsupported_parameter", param="background")
            _write_down(exchange, wish, as_sent)
            await self._begin(exchange, trace, caller, parsed._replace(body=as_sent), now)
            return
        seen = await self._prepare(caller, parsed.body, now)
        call = Call(
            id=exchange.id,
            operation="responses",
            model=ModelId(parsed.model),
            body=parsed.body,
            stream=parsed.stream,
            wants_usage=True,
            started=exchange.started,
            received_at=now,
            session=headers.get(b"x-hortator-session"),
            wish=wish,
            resend=resend(headers, parsed.body),
            fallback=may(parsed.body, "hortator_fallback"),
        )
        if team is None:
            await answer(self._gateway, exchange, caller, call, trace, MANNER, seen)
        else:
            await team.answer(exchange, caller, call, trace, MANNER, seen)

    async def _prepare(self, caller: Caller, body: Object, now: float) -> Seen | None:
        """Put the history into a request's input; return who keeps its answer, None when nobody does."""
        previous = _previous(body)
        if self._archive is None:
            if previous is not None:
                raise _nothing_kept("previous_response_id")
            body["store"] = _FALSE
            return None
        if previous is None and body.get("store") == _FALSE:
            return None
        own = input_items(body)
        if previous is not None:
            behind = await self._archive.history(caller.tenant_id, previous)
            body["input"] = raw([*behind, *own])
        if body.get("store") == _FALSE:
            return None
        return partial(_keep, self._archive, caller, previous, raw(own), now)

    async def _begin(self, exchange: Exchange, trace: Trace, caller: Caller, parsed: ParsedRequest, now: float) -> None:
        """Take a request for the background: it is in the store before it is answered."""
        body = parsed.body
        if self._background is None:
            raise _nothing_kept("background")
        if body.get("store") == _FALSE:
            raise InvalidRequest("background needs store=true.", code="invalid_value", param="store")
        may(body.copy(), "hortator_fallback")
        for field in ("stream", "stream_options"):  # nobody reads along while it is made
            body.pop(field, None)
        id = responses.response_id(exchange.id, now)
        queued = bytes(responses.unanswered(body, id, now))
        kept = Kept(
            caller.tenant_id,
            id,
            datetime.fromtimestamp(now, UTC),
            "queued",
            _previous(body),
            bytes(raw(input_items(body))),
            queued,
            True,
            caller.key_hash,
            msgspec.json.encode(body),
        )
        await self._background.add(kept)
        if parsed.stream:
            await self._follow(exchange, trace, caller, kept, 0)
        else:
            await respond(exchange, 200, _headers(exchange), queued)

    async def _one(self, exchange: Exchange, trace: Trace, id: str) -> None:
        """Give a response again, whole or as a stream, or delete it."""
        allow(exchange, "GET", "DELETE")
        caller = await self._caller(exchange)
        archive = self._known(id)
        if exchange.method == "DELETE":
            await archive.remove(caller.tenant_id, id)
            body = msgspec.json.encode({"id": id, "object": "response", "deleted": True})
            await respond(exchange, 200, _headers(exchange), body)
            return
        streamed = _one_of(exchange, "stream", "false", ("false", "true")) == "true"
        first = _number(exchange, "starting_after", -1, 0, _MOST_EVENTS) + 1
        kept = await archive.find(caller.tenant_id, id)
        if streamed:
            await self._follow(exchange, trace, caller, kept, first)
        else:
            await respond(exchange, 200, _headers(exchange), kept.response)

    async def _follow(self, exchange: Exchange, trace: Trace, caller: Caller, kept: Kept, first: int) -> None:
        """Stream a response's events from number `first` on, waiting for those to come. It is looked at once a second."""
        headers = [*EVENT_STREAM, *_headers(exchange)[1:]]
        await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
        archive, quiet, last = self._known(kept.id), 0.0, b""
        with HangUp(trace.hang_up, exchange.direct, exchange.receive):
            try:
                while True:
                    piece = b"".join(events(kept.response)[first:])
                    first = max(first, len(events(kept.response)))
                    if kept.status not in UNFINISHED:
                        last = piece
                        break
                    quiet = 0.0 if piece else quiet + _LOOK_SECONDS
                    if quiet >= _KEEP_ALIVE_SECONDS:
                        piece, quiet = KEEP_ALIVE, 0.0
                    if piece:
                        await exchange.send({"type": "http.response.body", "body": piece, "more_body": True})
                    await asyncio.sleep(_LOOK_SECONDS)
                    kept = await archive.find(caller.tenant_id, kept.id)
            except (HortatorError, asyncio.CancelledError) as raised:
                last = error_event(first, trace.failure(raised))
        if not trace.hung_up:
            await exchange.send({"type": "http.response.body", "body": last, "more_body": False})

    async def _input_items(self, exchange: Exchange, id: str) -> None:
        """List the items of a response's own request, newest first unless asked otherwise."""
        allow(exchange, "GET")
        caller = await self._caller(exchange)
        kept = await self._known(id).find(caller.tenant_id, id)
        items = with_ids(msgspec.json.decode(kept.input, type=list[Object]), id)
        if _one_of(exchange, "order", "desc", ("asc", "desc")) == "desc":
            items.reverse()
        ids = [msgspec.json.decode(item["id"]) for item in items]
        after = _asked(exchange, "after", "")
        if after and after not in ids:
            raise InvalidRequest(f"No item has the id '{after[:100]}'.", code="invalid_value", param="after")
        start = ids.index(after) + 1 if after else 0
        limit = _number(exchange, "limit", 20, 1, _MOST_ITEMS)
        page, names = items[start : start + limit], ids[start : start + limit]
        document: dict[str, Any] = {"object": "list", "data": page, "has_more": start + limit < len(items)}
        document |= {"first_id": names[0] if names else "", "last_id": names[-1] if names else ""}
        await respond(exchange, 200, _headers(exchange), msgspec.json.encode(document))

    async def _cancel(self, exchange: Exchange, id: str) -> None:
        allow(exchange, "POST")
        caller = await self._caller(exchange)
        self._known(id)
        assert self._background is not None
        await respond(exchange, 200, _headers(exchange), await self._background.cancel(caller.tenant_id, id))

    async def _input_tokens(self, exchange: Exchange) -> None:
        """Estimate a request's tokens: no provider is asked."""
        allow(exchange, "POST")
        caller = await self._caller(exchange)
        expect_json(exchange.headers)
        body = responses.parse_count(
            await read_body(exchange.headers, exchange.direct, exchange.receive, self._max_body_bytes)
        )
        previous = _previous(body)
        if previous is not None:
            if self._archive is None:
                raise _nothing_kept("previous_response_id")
            behind = await self._archive.history(caller.tenant_id, previous)
            body["input"] = raw([*behind, *input_items(body)])
        document = {"object": "response.input_tokens", "input_tokens": estimated_tokens(body)}
        await respond(exchange, 200, _headers(exchange), msgspec.json.encode(document))

    def _known(self, id: str) -> Archive:
        if self._archive is None:
            raise NotFound(f"Response with id '{id[:100]}' not found.", code="response_not_found")
        return self._archive


def _write_down(exchange: Exchange, wish: Wish, body: Object) -> None:
    """Put what the headers say of a request for the background into its body, where the same can be said: they are not kept."""
    said: dict[str, object] = {}
    if wish.task_type is not None:
        said["task_type"] = wish.task_type
    if wish.force_local:
        said["force_local"] = True
    if said:
        metadata = given(body, "metadata")
        body["metadata"] = raw({**({} if metadata is None else fields(metadata, "metadata")), **said})
    if resend(exchange.headers, body.copy()) == "never":
        body["hortator_retry"] = _FALSE


async def walk(gateway: Gateway, caller: Caller, body: Object, received_at: float) -> bytes:
    """Answer a request that nobody waits for; return the response's body. `received_at` in Unix seconds."""
    wish = take_wish({}, body)
    if wish.tenant_id is not None:
        caller = await gateway.on_behalf(caller, wish.tenant_id)
        wish = replace(wish, tenant_id=None)
    call = Call(
        id=RequestId(f"req_{uuid_utils.uuid7().hex}"),
        operation="responses",
        model=ModelId(text(body["model"], "model")),
        body=body,
        stream=False,
        wants_usage=True,
        started=time.monotonic(),
        received_at=received_at,
        wish=wish,
        resend=resend({}, body),
        fallback=may(body, "hortator_fallback"),
    )
    return await gateway.complete(caller, call, Trace())


def _keep(archive: Archive, caller: Caller, previous: str | None, items: Raw, now: float, piece: bytes) -> None:
    """Keep the response that is in a body, or in a stream's last event; other pieces hold none."""
    last = last_response(piece)
    if last is None:
        return
    body = last.body
    if previous is not None:
        body = msgspec.json.encode({**fields(Raw(body), "response"), "previous_response_id": previous})
    at = datetime.fromtimestamp(now, UTC)
    archive.keep(Kept(caller.tenant_id, last.id, at, last.status, previous, bytes(items), body, False, caller.key_hash))


def _previous(body: Object) -> str | None:
    value = given(body, "previous_response_id")
    return None if value is None else text(value, "previous_response_id")


def _nothing_kept(param: str) -> HortatorError:
    return InvalidRequest("This gateway keeps no responses.", code="unsupported_parameter", param=param)


def _headers(exchange: Exchange) -> problem.Headers:
    return [problem.JSON, (b"x-request-id", exchange.id.encode())]


def _asked(exchange: Exchange, name: str, default: str) -> str:
    """Return a query parameter."""
    found = parse_qs(exchange.query.decode("latin-1")).get(name)
    return found[-1] if found else default


def _one_of(exchange: Exchange, name: str, default: str, choices: tuple[str, ...]) -> str:
    value = _asked(exchange, name, default)
    if value not in choices:
        raise InvalidRequest(f"'{name}' must be {' or '.join(choices)}.", code="invalid_value", param=name)
    return value


def _number(exchange: Exchange, name: str, default: int, least: int, most: int) -> int:
    """Return a query parameter that is a whole number."""
    value = _asked(exchange, name, "")
    if not value:
        return default
    if not value.isascii() or not value.isdigit() or not least <= int(value[:9]) <= most:
        raise InvalidRequest(f"'{name}' must be a number from {least} to {most}.", code="invalid_value", param=name)
    return int(value)
