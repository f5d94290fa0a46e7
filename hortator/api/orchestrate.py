"""Harpoon's door to teams: `/api/orchestrate/{parallel,workers,optimize,smart}` and `/api/agents/status` (R-002-4 to R-002-7, R-002-10).

A request becomes a tree of the same pattern (`orchestration/patterns.py`), whose result is told in Harpoon's fields once it has ended; a
client that hangs up cancels it. Names of models are resolved and checked here, as at `/api/chat`. Raw ASGI, reached through `doors.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec

from hortator.api import harpoon_view, problem
from hortator.api.inference import FLAT, Exchange, allow, respond, serve
from hortator.api.reading import HangUp, Receive, Scope, Send, bearer, expect_json, read_body, where
from hortator.api.team_stream import LIMIT_CODES
from hortator.call import Call, Caller, ModelId, Preferences, RequestId, Wish
from hortator.dispatch import Trace
from hortator.errors import Forbidden, HortatorError, NotFound, RateLimited, TaskEnded
from hortator.gateway import Gateway
from hortator.orchestration.teams import Order, Teams
from hortator.routing import AUTO, Rules, preview, rules_by_tier
from hortator.routing.catalogue import may_use
from hortator.store.tasks import Step, Task
from hortator.wire import harpoon, patterns
from hortator.wire.patterns import AgentsStatus, OrchestrationMetadata, OrchestrationReply, Wanted
from hortator.wire.tasks import MAX_AGENTS, TERMINAL, Pattern, TaskConfig

ORCHESTRATE = "/api/orchestrate/"
STATUS = "/api/agents/status"
PATHS: Mapping[str, Pattern] = {ORCHESTRATE + pattern: pattern for pattern in patterns.NAMES}

ABANDON_SECONDS = 5.0

log = logging.getLogger("hortator.api")
_JSON = msgspec.json.Encoder(decimal_format="number")
_STATUSES = {"TimedOut": 504}
"""Of a tree that ended without anything; else 502."""


class OrchestrateDoor:
    """Raw ASGI; one for each generation of rooms. `teams`: None = orchestration is off."""

    def __init__(self, gateway: Gateway, teams: Teams | None, max_body_bytes: int) -> None:
        self._gateway = gateway
        self._teams = teams
        self._max_body_bytes = max_body_bytes
        self._rules: Rules = rules_by_tier(gateway.rules)[None]

    def __call__(self, scope: Scope, receive: Receive, send: Send, path: str) -> Awaitable[None]:
        """Answer one request to `path` (below the root path)."""

        async def handle(exchange: Exchange, trace: Trace) -> None:
            pattern = PATHS.get(path)
            if path == STATUS:
                await self._status(exchange)
            elif pattern is None or self._teams is None:
                raise NotFound(f"Unknown request URL: {exchange.method} {path[:200]}.")
            else:
                await self._run(exchange, trace, self._teams, pattern)

        return serve(scope, receive, send, FLAT, handle)

    async def _status(self, exchange: Exchange) -> None:
        """Say whether there are agents: 503 only where the configuration has switched them off (C-26)."""
        allow(exchange, "GET", "HEAD")
        await self._gateway.admit(bearer(exchange.headers))
        on = self._teams is not None
        found = AgentsStatus(
            agents_enabled=on,
            mode="embedded" if on else "disabled",
            mediator="/v1/chat/completions" if on else None,
            orchestrator="/api/v1/orchestrations" if on else None,
            websockets="/ws" if on else None,
            message="Agents are ready." if on else "Agents are switched off (orchestration.enabled).",
        )
        await self._respond(exchange, found, 200 if on else 503, head=exchange.method == "HEAD")

    async def _run(self, exchange: Exchange, trace: Trace, teams: Teams, pattern: Pattern) -> None:
        """Have a pattern worked on, and tell its result."""
        allow(exchange, "POST")
        caller = await self._gateway.admit(bearer(exchange.headers))
        expect_json(exchange.headers)
        body = await read_body(exchange.headers, exchange.direct, exchange.receive, self._max_body_bytes)
        wanted = self._named(caller, patterns.parse(pattern, body))
        decision = self._decision(caller, exchange, wanted) if pattern == "smart" else None
        order = Order(
            messages=wanted.messages,
            model=f"hortator/pattern-{pattern}",
            source="harpoon",
            pattern=pattern,
            arguments=wanted.arguments,
            config=TaskConfig(max_agents=MAX_AGENTS),
            interactive=True,
        )
        task = await self._worked(exchange, trace, teams, caller, order)
        steps = [step for step in await teams.steps(caller, task.id) if step.kind == "model"]
        data = (task.results or {}).get("data")
        if data is not None and decision is not None:
            data = {**data, "routing_decision": decision}
        if data is None and task.status in TERMINAL:
            error = task.error or {}
            raise _refusal(task.status, error.get("code"), str(error.get("message") or "It ended without an answer."))
        error_text = _what_failed(task, pattern, data)
        reply = OrchestrationReply(
            success=error_text is None,
            data=data,
            error=error_text,
            metadata=OrchestrationMetadata(
                pattern=patterns.NAMES[pattern],
                duration_ms=_duration_ms(task),
                cost_estimate=_cost(steps),
                models_used=list(dict.fromkeys(step.deployment for step in steps if step.deployment)),
            ),
        )
        await self._respond(exchange, reply, also=((b"x-hortator-task-id", task.id.encode()),))

    async def _worked(self, exchange: Exchange, trace: Trace, teams: Teams, caller: Caller, order: Order) -> Task:
        """Return the tree once it has ended. Whoever hangs up cancels it."""
        submitting = asyncio.ensure_future(teams.submit(caller, order))
        with HangUp(trace.hang_up, exchange.direct, exchange.receive):
            try:
                task = await asyncio.shield(submitting)
                return await teams.finished(caller, task.id)
            except asyncio.CancelledError as cancelled:
                if trace.hung_up:
                    await _abandon(teams, caller, submitting)
                raise trace.failure(cancelled) from None

    def _named(self, caller: Caller, wanted: Wanted) -> Wanted:
        """Return an order whose models are named by their ids. Raises NotFound, Forbidden."""
        catalogue = self._gateway.catalogue()
        ids: dict[str, str] = {}
        for name in patterns.names(wanted.arguments):
            card = harpoon_view.found(catalogue, caller.allowed_models, name)
            if card is None and catalogue.resolve(ModelId(name)) is None:
                raise NotFound(
                    f"The model '{name[:200]}' does not exist. GET /api/models lists the models you may use.",
                    code="model_not_found",
                    param="model",
                )
            ids[name] = name if card is None else card.id
            if not may_use(caller.allowed_models, ids[name]):
                raise Forbidden(
                    f"This key may not use the model '{name[:200]}'.", code="model_not_allowed", param="model"
                )
        return wanted._replace(arguments=patterns.renamed(wanted.arguments, ids))

    def _decision(self, caller: Caller, exchange: Exchange, wanted: Wanted) -> harpoon.RouteDecision:
        """Return how a prompt will be routed. Raises InvalidRequest (`preferences_unsatisfiable`) before a tree is made."""
        order = harpoon.ChatOrder(prompt=wanted.messages[0]["content"])
        said = wanted.arguments.get("preferences")
        bounds = said and Preferences(
            max_cost=said.get("maxCost"), max_latency=said.get("maxLatency"), min_quality=said.get("minQuality")
        )
        call = Call(
            id=RequestId(exchange.id),
            operation="chat",
            model=ModelId(AUTO),
            body=harpoon.completion_body(order, AUTO),
            stream=False,
            wants_usage=False,
            started=exchange.started,
            received_at=time.time(),
            wish=Wish(preferences=bounds or None),
        )
        catalogue = self._gateway.catalogue()
        anyone = msgspec.structs.replace(caller, allowed_models=("*",))
        found = preview(call, anyone, catalogue, self._rules)
        return harpoon_view.decided(found, catalogue, harpoon_view.reasoning(found.path, found.score, found.reasons))

    async def _respond(
        self,
        exchange: Exchange,
        document: Any,
        status: int = 200,
        *,
        head: bool = False,
        also: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        headers = [problem.JSON, (b"x-request-id", exchange.id.encode()), *also]
        await respond(exchange, status, headers, b"" if head else _JSON.encode(document))


async def _abandon(teams: Teams, caller: Caller, submitting: asyncio.Future[Task]) -> None:
    """Cancel a tree whose client is gone, also where it is still being submitted."""
    try:
        async with asyncio.timeout(ABANDON_SECONDS):
            await teams.cancel(caller, (await asyncio.shield(submitting)).id)
    except (HortatorError, TimeoutError) as error:
        log.warning("a tree whose client is gone was not cancelled: %s", where(error))


def _refusal(status: str, code: str | None, message: str) -> HortatorError:
    """Return the error of a tree that gave nothing; what a limit of the key stopped is refused like any call (R-000-71)."""
    if code in LIMIT_CODES:
        return RateLimited(message, code=code)
    failed = TaskEnded(message, code=code)
    failed.status = _STATUSES.get(status, failed.status)
    return failed


def _what_failed(task: Task, pattern: Pattern, data: Any) -> str | None:
    """Return why an orchestration did not wholly succeed."""
    if task.status != "Completed":
        return str((task.error or {}).get("message") or task.message)
    failed = data["failed"] if pattern == "parallel" else 0
    return f"{failed} of {data['total']} requests failed" if failed else None


def _duration_ms(task: Task) -> int:
    ended = task.completed_at or datetime.now(UTC)
    return max(0, round((ended - task.created_at).total_seconds() * 1000))


def _cost(steps: Sequence[Step]) -> Decimal | None:
    """Return what model calls cost together; None where no price is known of any."""
    known = [step.cost for step in steps if step.cost is not None]
    return sum(known, Decimal(0)) if known else None
