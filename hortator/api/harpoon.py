"""The Harpoon door: prompts, batches and the model list under `/api`, as clients of Harpoon v2 know them (R-002-8, R-002-9).

A prompt walks the corridor like any call, so limits, records and prices apply to it. Errors are flat: `error` is the message itself
(C-4). Raw ASGI, reached through `doors.py`; it decides nothing, routing does.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

from hortator.api import problem
from hortator.api.harpoon_view import decided, reasoning, shown
from hortator.api.harpoon_view import found as known
from hortator.api.inference import FLAT, Exchange, allow, resend, respond, serve, told
from hortator.api.query import only, read_query
from hortator.api.reading import HangUp, Receive, Scope, Send, bearer, expect_json, read_body
from hortator.call import Call, Caller, Decision, Deployment, ModelId, RequestId, Usage
from hortator.dispatch import Trace
from hortator.errors import Forbidden, HortatorError, InvalidRequest, NotFound
from hortator.gateway import Gateway
from hortator.routing import AUTO, Catalogue, Rules, decide, preview
from hortator.settings import Tier
from hortator.wire import harpoon
from hortator.wire.harpoon import ChatOrder, ChatReply

API_VERSION = "2.0.0"
"""The version of this contract, not of the gateway."""
BATCH_AT_ONCE = 8
"""Requests of one batch that run at the same time."""
TIERS = ("primary", "edge", "flagship", "local")

_JSON = msgspec.json.Encoder(decimal_format="number")


class ProviderState(NamedTuple):
    """How a provider does."""

    available: bool
    latency_ms: float | None
    """Of the last look at it; None = it did not answer, or was not looked at yet."""


class Sources(NamedTuple):
    """What the door asks besides the gateway."""

    providers: Callable[[], Mapping[str, ProviderState]]
    price: Callable[[Deployment, str | None, Usage], Decimal | None]
    """What a call cost, in US dollars; None = not known."""
    rules: Mapping[Tier | None, Rules]
    """What routing goes by, for each tier."""


class HarpoonDoor:
    """`/api/health`, `/api/models`, `/api/models/{id}`, `/api/chat`, `/api/route`, `/api/batch`; everything else under `/api` is unknown."""

    def __init__(self, gateway: Gateway, sources: Sources, max_body_bytes: int) -> None:
        self._gateway = gateway
        self._sources = sources
        self._max_body_bytes = max_body_bytes

    def __call__(self, scope: Scope, receive: Receive, send: Send, path: str) -> Awaitable[None]:
        """Answer one request to `path` (below the root path)."""

        async def handle(exchange: Exchange, trace: Trace) -> None:
            if path == "/api/chat":
                await self._chat(exchange, trace)
            elif path == "/api/route":
                await self._route(exchange)
            elif path == "/api/batch":
                await self._batch(exchange, trace)
            elif path == "/api/health":
                await self._health(exchange)
            elif path == "/api/models":
                await self._models(exchange)
            elif path.startswith("/api/models/"):
                await self._model(exchange, path[len("/api/models/") :])
            else:
                raise NotFound(f"Unknown request URL: {exchange.method} {path[:200]}.")

        return serve(scope, receive, send, FLAT, handle)

    async def _chat(self, exchange: Exchange, trace: Trace) -> None:
        caller, body = await self._taken(exchange)
        order = harpoon.parse_chat(body)
        walk = _Walk(self._gateway, self._sources, caller, order, exchange, exchange.id, trace)
        with HangUp(trace.hang_up, exchange.direct, exchange.receive):
            try:
                reply = await walk.answer()
            except asyncio.CancelledError as cancelled:
                raise trace.failure(cancelled) from None
        headers = [problem.JSON, *told(walk.call, trace, time.monotonic()), *trace.headers]
        await respond(exchange, 200, headers, _JSON.encode(reply))

    async def _route(self, exchange: Exchange) -> None:
        """Tell what would be done with a prompt, and call nothing."""
        caller, body = await self._taken(exchange)
        order = harpoon.parse_chat(body)
        catalogue = self._gateway.catalogue()
        call = _call(order, caller, catalogue, exchange, exchange.id)
        with _nothing_found(order):
            found = preview(call, caller, catalogue, self._sources.rules[order.tier])
        why = reasoning(None if order.model else found.path, found.score, found.reasons, order.tier)
        decision = decided(found, catalogue, why)
        await self._respond(exchange, harpoon.RouteReply(decision, _explanation(decision)))

    async def _batch(self, exchange: Exchange, trace: Trace) -> None:
        """Answer several prompts, some at a time; each fails alone."""
        caller, body = await self._taken(exchange)
        requests = harpoon.parse_batch(body)
        traces = [Trace() for _ in requests]
        places = asyncio.Semaphore(BATCH_AT_ONCE)

        async def one(number: int) -> dict[str, Any]:
            async with places:
                try:
                    order = harpoon.parse_chat(bytes(requests[number]))
                    id = RequestId(f"{exchange.id}.{number}")
                    walk = _Walk(self._gateway, self._sources, caller, order, exchange, id, traces[number])
                    return {"success": True, **msgspec.structs.asdict(await walk.answer())}
                except HortatorError as error:
                    return {"success": False, "error": error.message, "code": error.code}

        def gone() -> None:
            for each in (trace, *traces):
                each.hang_up()

        with HangUp(gone, exchange.direct, exchange.receive):
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(one(number)) for number in range(len(requests))]
            except asyncio.CancelledError as cancelled:
                raise trace.failure(cancelled) from None
        results = [task.result() for task in tasks]
        successful = sum(result["success"] for result in results)
        document = {
            "total": len(results),
            "successful": successful,
            "failed": len(results) - successful,
            "results": results,
        }
        await self._respond(exchange, document)

    async def _health(self, exchange: Exchange) -> None:
        """Say that the gateway lives and which providers answer; without a key."""
        allow(exchange, "GET", "HEAD")
        providers = {key: state._asdict() for key, state in self._sources.providers().items()}
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        await self._respond(
            exchange, {"status": "ok", "version": API_VERSION, "timestamp": now, "providers": providers}
        )

    async def _models(self, exchange: Exchange) -> None:
        """List the models that the key may use."""
        allow(exchange, "GET", "HEAD")
        caller = await self._gateway.admit(bearer(exchange.headers))
        query = read_query(exchange.query)
        only(query, "provider", "tier")
        tier, provider = query.get("tier"), query.get("provider")
        if tier is not None and tier not in TIERS:
            raise InvalidRequest(f"tier must be {', '.join(TIERS)}", code="invalid_value", param="tier")
        models = [
            shown(card)
            for card in self._gateway.catalogue().listed(caller.allowed_models)
            if tier in (None, card.tier) and provider in (None, card.provider)
        ]
        await self._respond(exchange, {"total": len(models), "models": models})

    async def _model(self, exchange: Exchange, wanted: str) -> None:
        """Describe one model."""
        allow(exchange, "GET", "HEAD")
        caller = await self._gateway.admit(bearer(exchange.headers))
        card = known(self._gateway.catalogue(), caller.allowed_models, wanted)
        if card is None:
            raise NotFound("Model not found", code="model_not_found", param="id")
        await self._respond(exchange, shown(card))

    async def _taken(self, exchange: Exchange) -> tuple[Caller, bytes]:
        """Say who posts what."""
        allow(exchange, "POST")
        caller = await self._gateway.admit(bearer(exchange.headers))
        expect_json(exchange.headers)
        return caller, await read_body(exchange.headers, exchange.direct, exchange.receive, self._max_body_bytes)

    async def _respond(self, exchange: Exchange, document: Any) -> None:
        headers = [problem.JSON, (b"x-request-id", exchange.id.encode())]
        await respond(exchange, 200, headers, b"" if exchange.method == "HEAD" else _JSON.encode(document))


class _Walk:
    """One prompt on its way through the corridor."""

    def __init__(
        self,
        gateway: Gateway,
        sources: Sources,
        caller: Caller,
        order: ChatOrder,
        exchange: Exchange,
        id: RequestId,
        trace: Trace,
    ) -> None:
        self._gateway = gateway
        self._sources = sources
        self._caller = caller
        self._order = order
        self._trace = trace
        self._decision: Decision | None = None
        self.call = _call(order, caller, gateway.catalogue(), exchange, id)

    async def answer(self) -> ChatReply:
        """Return the answer. Raises HortatorError; what happened is in the trace."""
        completion = await self._gateway.complete(self._caller, self.call, self._trace, self._choose)
        content = harpoon.content_of(completion)
        seconds = max(time.monotonic() - self.call.started, 1e-6)
        deployment, decision, usage = self._trace.deployment, self._decision, self._trace.usage
        assert deployment is not None
        assert decision is not None
        card = self._gateway.catalogue().card(deployment.id)
        read, written = usage.input or 0, usage.output or 0
        return ChatReply(
            content=content,
            model=deployment.id,
            provider=deployment.provider,
            tier=None if card is None else card.tier,
            usage=harpoon.Tokens(read, written, read + written),
            performance=harpoon.Performance(round(seconds * 1000), round(written / seconds, 1)),
            cost=harpoon.Cost(self._sources.price(deployment, self._trace.response_model, usage)),
            routing=harpoon.Routed(
                decision.model, reasoning(decision.path, decision.score, decision.reasons, self._order.tier)
            ),
        )

    def _choose(self, catalogue: Catalogue) -> Decision:
        """Decide for the model that was named, or among the tier's."""
        with _nothing_found(self._order):
            self._decision = decide(self.call, self._caller, catalogue, self._sources.rules[self._order.tier])
        return self._decision


def _call(order: ChatOrder, caller: Caller, catalogue: Catalogue, exchange: Exchange, id: RequestId) -> Call:
    """Return the call that a prompt means."""
    model = order.model or AUTO
    if order.model is not None:
        card = known(catalogue, caller.allowed_models, order.model)
        model = order.model if card is None else card.id
    body = harpoon.completion_body(order, model)
    return Call(
        id=id,
        operation="chat",
        model=ModelId(model),
        body=body,
        stream=False,
        wants_usage=False,
        started=time.monotonic(),
        received_at=time.time(),
        session=exchange.headers.get(b"x-hortator-session"),
        resend=resend(exchange.headers, body),
    )


@contextlib.contextmanager
def _nothing_found(order: ChatOrder) -> Iterator[None]:
    """Say in Harpoon's words that smart routing has no model to choose from."""
    try:
        yield
    except (NotFound, Forbidden):
        if order.model is not None:
            raise
        of = "" if order.tier is None else f" of the tier `{order.tier}`"
        raise NotFound(f"No model{of} is served that this key may use.", code="model_not_found", param="tier") from None


def _explanation(decision: harpoon.RouteDecision) -> str:
    """Return a decision in Markdown."""
    chosen = decision.selected_model
    cost, latency = decision.estimated_cost, decision.estimated_latency
    standing_by = ", ".join(f"`{model.id}`" for model in decision.fallback_models)
    return "\n".join(
        (
            f"**`{chosen.id}`** ({chosen.provider}, {chosen.tier or 'no tier known'})",
            "",
            f"- Why: {decision.reasoning}",
            f"- Estimated cost: {'not known' if cost is None else f'${cost:.6f}'}",
            f"- Estimated latency: {'not known' if latency is None else f'{latency:.0f} ms'}",
            f"- Standing by: {standing_by or 'none'}",
        )
    )
