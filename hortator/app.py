"""The composition root: builds what lasts from the settings, sends requests to their doors, starts and drains.

`cli/serve.py` runs an `App`, which is one ASGI app. Everything that lives longer than a configuration is made and ended here;
what does not is a generation of `rooms.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

import msgspec
from fastapi import FastAPI

from hortator.agent_calls import AgentCalls
from hortator.api import shell
from hortator.api.admin import AdminDoor
from hortator.api.harpoon import ProviderState, Sources
from hortator.api.reading import Receive, Scope, Send, naming
from hortator.api.responses import walk
from hortator.api.task_events import Views
from hortator.archive import Archive, Background
from hortator.batching import Batching
from hortator.call import Caller
from hortator.dispatch.balance import Balance
from hortator.doors import Doors
from hortator.errors import Unavailable
from hortator.ledger import Ledger, PriceBook, Tracer
from hortator.ledger.counts import Counts
from hortator.ledger.metrics import Reading, exposition
from hortator.ledger.task_counts import TaskCounts
from hortator.orchestrating import Orchestrating
from hortator.providers.local_model import LocalModel
from hortator.providers.upstream import PoolLimits, Upstream, trust
from hortator.reload import Reload
from hortator.rooms import Lasting, Rooms, breaker_limits, price_book, price_lists, usual_prices
from hortator.routing import rules_by_tier
from hortator.settings import LOCAL, Settings, TierModels, applicable, is_loopback
from hortator.store import Database, configured, migrate
from hortator.tenancy import Admission, Budgets, Identity
from hortator.tenancy.administration import Administration
from hortator.tenancy.admission import AdmissionGauges
from hortator.tenancy.budgets import BudgetGauges
from hortator.tenancy.counters import Counters, MemoryCounters
from hortator.tenancy.limits import NANO
from hortator.tenancy.redis_counters import RedisCounters
from hortator.tenancy.retention import Days, Retention
from hortator.tenancy.spending import spending
from hortator.warm import Warm

MIGRATE_AGAIN_SECONDS = 5.0
HOLD_MARGIN_SECONDS = 60
"""How much longer than a request may take what it reserved is kept for it."""


class App:
    """The rooms, and the ASGI app in front of them. `start` before the first request, `drain` after the last."""

    _doors: Doors

    def __init__(
        self,
        settings: Settings,
        local: LocalModel | None,
        *,
        read: Callable[[], Settings],
        changed: Callable[[Settings], None],
        worker: bool = False,
    ) -> None:
        """`local` is the embedded model, None when it is switched off or cannot be had.

        `read` reads the configuration again, in a thread; `changed` is told the settings that then take effect. `worker`: nobody listens
        for clients; it works on teams of agents, and leaves batches and background responses to servers, whose folder has their files.
        """
        self.settings = settings
        self.worker = worker
        self.database = configured(settings)
        self._identity = Identity(
            self.database,
            refresh_seconds=settings.identity.refresh_seconds,
            stale_seconds=settings.identity.stale_seconds,
        )
        self._counts = Counts(
            lambda model: model in self._rooms.catalogue, lambda task: task in self._rooms.settings.routing.task_types
        )
        prices = price_book(settings)
        self._ledger = ledger(settings, prices, self.database, self._counts)
        self._budgets = budgets(settings, prices, self.database)
        self._admission = admission(settings)
        self._retention = retention(settings, self.database)
        self._upstream = upstream(settings)
        self._local = local
        self._balance = Balance(breaker_limits(settings), prices=usual_prices(settings, prices))
        self._tracer = tracer(settings)
        carried = (self._upstream, self._balance, self._admission, self._tracer, local)
        self._lasting = Lasting(self._identity, self._budgets, self._ledger, *carried)
        self._rooms = Rooms(settings, prices, self._lasting)
        self._root_path = settings.server.root_path
        administration = Administration(self.database, self._identity)
        self._shell: FastAPI = shell.build(self.readiness, lambda: administration)
        self.clients: Callable[[], tuple[int, int]] = lambda: (0, 0)
        """Tells the public listener's open connections and running requests; whoever listens sets it."""
        self._exposed = self.admin(public=True) if settings.admin.expose_on_public else None
        self._health: asyncio.Task[None] | None = None
        self._archive = archive(settings, self.database)
        self._background = None if self._archive is None else self._in_background(self._archive)
        self._batching = Batching(settings, self.database, self._identity, lambda: self._rooms.gateway)
        self._views = Views()
        self._orchestrating = self._with_teams()
        self._tasks: list[asyncio.Task[None]] = []
        self.reload = Reload(settings, read, self._change)
        self._changed = changed
        self._migrated = False

    async def start(self) -> None:
        """Start what runs beside requests. A store that is down does not stop it; one of a newer release does (ConfigError)."""
        await self._migrate()
        await self._identity.start()
        await self._budgets.start()
        await self._ledger.start()
        if self._tracer is not None:
            self._tracer.start()
        if self._local is not None:
            await self._local.start()
        if self._archive is not None:
            await self._archive.start()
        self._open(self._rooms)
        if not self.worker:
            if self._background is not None:
                await self._background.start()
            await self._batching.start()
        if self._orchestrating is not None:
            await self._orchestrating.start()
        self._tasks.append(asyncio.create_task(self.reload.run(), name="reload"))
        self._tasks.append(asyncio.create_task(self._retention.run(), name="retention"))
        if not self._migrated:
            self._tasks.append(asyncio.create_task(self._migrate_later(), name="migrate"))

    def stopping(self) -> None:
        """End what only waits for something to happen, as the server stops: no client needs it to end here."""
        self._views.close()

    async def drain(self) -> None:
        """End everything, the ledger last: what it holds is written down first."""
        tasks = self._tasks if self._health is None else [*self._tasks, self._health]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._orchestrating is not None:
            await self._orchestrating.drain()
        if self._background is not None:
            await self._background.drain()
        await self._batching.drain()
        await self._upstream.close()
        if self._local is not None:
            await self._local.stop()
        await self._identity.close()
        await self._budgets.close()
        await self._ledger.drain()
        if self._archive is not None:
            await self._archive.drain()
        if self._tracer is not None:
            await self._tracer.close()
        await self.database.close()

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Send a request to its door. Returns what the door returns: one coroutine less on the hot path."""
        if scope["type"] == "http":
            path: str = scope["path"]
            if self._root_path and path.startswith(self._root_path + "/"):
                path = scope["path"] = path[len(self._root_path) :]
            door = self._doors.at(path, scope)
            if door is not None:
                return door(scope, receive, send, path)
            if self._exposed is not None and (path == "/metrics" or path.startswith("/metrics/")):
                return self._exposed(scope, receive, send)
        elif scope["type"] == "websocket":
            return self._doors.socket(scope, receive, send, scope["path"].removeprefix(self._root_path))
        return self._shell(scope, receive, naming(scope, send))

    def _in_background(self, kept: Archive) -> Background:
        """Return what works on responses in the background, with the configuration of the moment."""

        async def run(caller: Caller, body: dict[str, msgspec.Raw], at: float) -> bytes:
            return await walk(self._rooms.gateway, caller, body, at)

        chosen = self.settings.responses
        return Background(kept, self._identity.holder, run, slots=chosen.background_slots, most=chosen.background_max)

    def _open(self, rooms: Rooms) -> None:
        """Send requests to these rooms from now on."""
        if self._health is not None:
            self._health.cancel()
        self._rooms = rooms
        rooms.take_over()
        sources = Sources(self._provider_states, rooms.prices.cost, rules_by_tier(rooms.gateway.rules))
        room = self._orchestrating
        self._doors = Doors(
            rooms.gateway,
            rooms.settings.server.max_body_bytes,
            sources,
            self._archive,
            self._background,
            self._batching.door,
            None if room is None else room.teams,
            None if room is None else room.teams.roles,
            root_path=self._root_path,
            called=None if room is None else room.webhooks,
            sockets=None if room is None else room.sockets,
            views=self._views,
        )
        self._health = asyncio.create_task(rooms.health.run(), name="health")

    async def _change(self, wanted: Settings) -> tuple[str, ...]:
        """Put a changed configuration into force. Returns and raises what `Reload` says."""
        settings, waiting = applicable(self.settings, wanted)
        prices = await asyncio.to_thread(price_book, settings, price_lists(self.settings))
        rooms = Rooms(settings, prices, self._lasting, self._rooms)
        await rooms.prepare()
        self._open(rooms)
        self.settings = settings
        self._changed(settings)
        return waiting

    def _with_teams(self) -> Orchestrating | None:
        """Return the room of teams of agents; None where it is switched off."""
        chosen = self.settings.orchestration
        if not chosen.enabled:
            return None
        calls = self.agent_calls(chosen.models)
        warm = Warm(self._upstream, lambda: self._rooms.origins(calls.providers()), chosen.warm_connections)
        return Orchestrating(self.settings, self.database, calls, warm, self._admit, worker=self.worker)

    def _admit(self, token: bytes) -> Awaitable[Caller]:
        """Say who calls, by the configuration of the moment."""
        return self._rooms.gateway.admit(token)

    def agent_calls(self, models: TierModels) -> AgentCalls:
        """Return the corridor as agents see it, with the configuration of the moment."""
        newer = frozenset(p.id for p in self.settings.providers if p.preset == "openai")
        return AgentCalls(lambda: (self._rooms.gateway, self._rooms.prices), self._identity, models, newer)

    def admin(self, *, public: bool = False) -> AdminDoor:
        """Return the admin listener's door, or the one that stands on the public listener and always wants a key."""
        chosen = self.settings.admin

        async def page() -> bytes:
            return await asyncio.to_thread(exposition, self._counts, self._readings(*self.clients()), self._task_counts)

        is_open = is_loopback(chosen.host) and not chosen.require_key and not public
        return AdminDoor(self.database, self._identity, page, open=is_open)

    def _readings(self, connections: int, running: int) -> list[Reading]:
        """Read every room's gauges."""
        ledger, keys, pool = self._ledger.gauges, self._identity.gauges, self._upstream
        found = [
            Reading("hortator_client_connections", "Open connections of clients.", connections),
            Reading("hortator_requests_in_flight", "Requests being answered, streams included.", running),
            Reading("hortator_ledger_queued", "Records not yet in the journal.", ledger.queued),
            Reading("hortator_ledger_written_total", "Records written to the store.", ledger.written),
            Reading("hortator_ledger_spilled_total", "Records that had to wait for the store.", ledger.spilled),
            Reading("hortator_ledger_dropped_total", "Records lost.", ledger.dropped),
            Reading("hortator_ledger_journal_bytes", "Size of the journal.", ledger.journal_bytes),
            Reading("hortator_ledger_behind", "1 while the store does not take records.", ledger.behind),
            Reading("hortator_store_migrated", "1 once the store has this release's schema.", self._migrated),
            Reading("hortator_upstream_connections", "Connections to providers.", pool.open_connections),
            Reading("hortator_upstream_connections_idle", "Those of them without a request.", pool.idle_connections),
            Reading("hortator_upstream_waiting", "Requests waiting for a connection.", pool.waiting_requests),
            Reading("hortator_config_generation", "Configurations that took effect.", self.reload.generation),
            Reading("hortator_config_last_reload_success", "0 = the last was refused.", self.reload.error is None),
            Reading(
                "hortator_config_needs_restart", "Changed settings without effect.", len(self.reload.needs_restart)
            ),
        ]
        found += _limit_readings(self._budgets.gauges, self._admission.gauges)
        if self._tracer is not None:
            traces = self._tracer.gauges
            found += [
                Reading("hortator_traces_exported_total", "Requests whose trace the collector took.", traces.exported),
                Reading("hortator_traces_dropped_total", "Requests whose trace was lost.", traces.dropped),
                Reading("hortator_traces_queued", "Requests whose trace waits.", traces.queued),
            ]
        found += self._work_readings()
        sizes = {"known": keys.known, "refused": keys.refused, "waiting": keys.waiting}
        text = "Keys in the cache, by what is known of them."
        found += [Reading("hortator_identity_keys", text, size, {"state": state}) for state, size in sizes.items()]
        text = "1 = the provider answered when it was last asked."
        for provider, health in self._rooms.health.shown.items():
            found.append(Reading("hortator_provider_up", text, health.state == "up", {"provider": provider}))
        text, flight = "1 = the breaker leaves the deployment of a named model alone.", "Requests at a deployment."
        for place, shown in self._deployments().items():
            name = {"deployment": place}
            found.append(Reading("hortator_deployment_open", text, shown["state"] == "open", name))
            found.append(Reading("hortator_deployment_in_flight", flight, shown.get("in_flight", 0), name))
            for state in ("closed", "open", "half-open"):
                labels = name | {"state": state}
                found.append(Reading("hortator_breaker_state", "1 = it is.", shown["state"] == state, labels))
        if self._local is not None:
            name = {"model": self._local.name}
            up = self._local.state == "ready"
            found += [
                Reading("hortator_local_model_ready", "1 = the embedded model answers.", up, name),
                Reading("hortator_local_model_in_flight", "Its requests.", self._local.in_flight, name),
                Reading("hortator_local_model_restarts_total", "Its restarts.", self._local.restarts, name),
            ]
        return found

    @property
    def _task_counts(self) -> TaskCounts | None:
        return None if self._orchestrating is None else self._orchestrating.counts

    def _work_readings(self) -> list[Reading]:
        """Of what is worked on beside requests."""
        batches, lines = self._batching.running
        found = [
            Reading("hortator_batches_running", "Batches that this process works on.", batches),
            Reading("hortator_batch_lines_in_flight", "Their lines that are being answered.", lines),
        ]
        if self._orchestrating is not None:
            found += self._orchestrating.readings()
        if self._archive is None or self._background is None:
            return found
        kept = self._archive
        return [
            *found,
            Reading("hortator_responses_queued", "Responses not yet in the store.", kept.queued),
            Reading("hortator_responses_queued_bytes", "Their size.", kept.queued_bytes),
            Reading("hortator_responses_dropped_total", "Responses that could not be kept.", kept.dropped),
            Reading("hortator_responses_running", "Background responses being worked on.", self._background.running),
        ]

    async def readiness(self) -> dict[str, Any]:
        """Return the document of `/ready`."""
        store = "up"
        try:
            await self.database.ping()
        except Unavailable:
            store = "down"
        if not self._migrated:
            store = "down"
        states = self._rooms.health.shown
        providers = {key: {"state": s.state, "code": s.code, "models": len(s.models)} for key, s in states.items()}
        model = {"state": "disabled"} if self._local is None else self._local.report()
        serving = model["state"] == "ready" or any(state.state != "down" for state in states.values())
        return {
            "ready": store == "up" and serving,
            "store": {"state": store},
            "providers": providers,
            "deployments": self._deployments(),
            "model": model,
            "ledger": msgspec.to_builtins(self._ledger.gauges),
            "admission": self._admission.gauges._asdict(),
            "limits": self._budgets.gauges.counter._asdict(),
            "configuration": self.reload.report,
        }

    def _deployments(self) -> dict[str, Any]:
        """Return how the deployments of named models do. Others are not shown: clients may have made up their names."""
        named = sorted(self._rooms.catalogue.named_deployments())
        gauges = self._balance.gauges(monotonic(), named)
        return {id: msgspec.to_builtins(gauges[id]) if id in gauges else {"state": "closed"} for id in named}

    def _provider_states(self) -> dict[str, ProviderState]:
        """Return how the providers do, the embedded model among them."""
        shown = self._rooms.health.shown.items()
        states: dict[str, ProviderState] = {key: ProviderState(s.state == "up", s.latency_ms) for key, s in shown}
        if self._local is not None and self._local.state != "disabled":
            states[LOCAL] = ProviderState(self._local.state == "ready", None)
        return states

    async def _migrate(self) -> None:
        with contextlib.suppress(Unavailable):
            await migrate(self.database)
            self._migrated = True

    async def _migrate_later(self) -> None:
        """Go on trying to bring the store to this release's schema; until then `/ready` says no."""
        while not self._migrated:
            await asyncio.sleep(MIGRATE_AGAIN_SECONDS)
            await self._migrate()


def ledger(settings: Settings, prices: PriceBook, store: Database, counts: Counts) -> Ledger:
    """Return what records calls; it counts them where somebody can look at the counts."""
    return Ledger(
        store,
        prices,
        settings.home / "journal",
        journal_limit=settings.ledger.journal_max_bytes,
        flush_seconds=settings.ledger.flush_ms / 1000,
        counts=counts if settings.admin.enabled or settings.admin.expose_on_public else None,
    )


def archive(settings: Settings, store: Database) -> Archive | None:
    """Return what keeps responses, None when none are to be kept."""
    if not settings.responses.store:
        return None
    limit = settings.server.max_body_bytes
    return Archive(store, retention_days=settings.responses.retention_days, max_history=limit)


def admission(settings: Settings) -> Admission:
    """Return what bounds the calls that run at once."""
    chosen = settings.admission
    return Admission(
        max_concurrent=chosen.max_concurrent, max_queue=chosen.max_queue, max_wait=chosen.max_wait_ms / 1000
    )


def retention(settings: Settings, store: Database) -> Retention:
    """Return what deletes records whose time is over."""
    kept = settings.ledger
    return Retention(store, Days(kept.retention_days, kept.rollup_retention_days, kept.audit_retention_days))


def budgets(settings: Settings, prices: PriceBook, store: Database) -> Budgets:
    """Return what counts the limits, in Redis where one is configured."""
    spent = spending(store)
    counters: Counters = MemoryCounters(spending=spent)
    if settings.redis.url is not None:
        counters = RedisCounters(
            settings.redis.url.reveal(),
            deadline=settings.redis.deadline_ms / 1000,
            hold_seconds=math.ceil(settings.timeouts.total_ms / 1000) + HOLD_MARGIN_SECONDS,
            spending=spent,
        )

    return Budgets(
        counters,
        prices.billionths,
        default_max_output_tokens=settings.limits.default_max_output_tokens,
        fail_open=msgspec.structs.asdict(settings.limits.fail_open),
    )


def _limit_readings(limits: BudgetGauges, admission: AdmissionGauges) -> list[Reading]:
    """Read what limits and admission say of themselves."""
    counter = limits.counter
    found = [
        Reading("hortator_limits_degraded", "1 while limits cannot be counted.", counter.degraded),
        Reading("hortator_limits_counters", "Counters in memory.", counter.scopes),
        Reading("hortator_limits_unsettled", "Settlements waiting for Redis.", counter.unsettled),
        Reading("hortator_limits_dropped_total", "Settlements given up.", counter.dropped),
        Reading("hortator_limits_redis_calls_total", "Batches that Redis has answered.", counter.calls),
        Reading("hortator_limits_redis_seconds_total", "Time they took.", counter.call_seconds),
        Reading("hortator_limits_rebuilt_total", "Counts made anew from the usage records.", counter.rebuilt),
        Reading("hortator_admission_running", "Calls that have a place.", admission.running),
        Reading("hortator_admission_limit", "Places.", admission.limit),
    ]
    text = "Calls with limits, by what became of them."
    calls = {
        "reserved": limits.reserved,
        "settled": limits.settled,
        "refunded": limits.refunded,
        "passed": limits.passed,
        "unavailable": limits.unavailable,
    }
    found += [Reading("hortator_limits_calls_total", text, count, {"state": state}) for state, count in calls.items()]
    text = "Calls that did not fit, by the kind of the limit in their way."
    for kind, count in limits.refused.items():
        found.append(Reading("hortator_limits_refused_total", text, count, {"kind": kind}))
    for place, state in enumerate(("reserved", "used")):
        label, dollars = {"state": state}, limits.money[place] / NANO
        found.append(
            Reading("hortator_limits_tokens_total", "Tokens of calls with limits.", limits.tokens[place], label)
        )
        found.append(Reading("hortator_limits_dollars_total", "US dollars under limits of money.", dollars, label))
    for name, count in admission.queued.items():
        found.append(Reading("hortator_admission_queued", "Calls that wait for one.", count, {"priority": name}))
    for name, count in admission.refused.items():
        found.append(Reading("hortator_admission_refused_total", "Calls that got none.", count, {"priority": name}))
    return found


def tracer(settings: Settings) -> Tracer | None:
    """Return what sends traces to a collector, where one is configured. Raises ConfigError without its extra."""
    chosen = settings.tracing
    if chosen.endpoint is None:
        return None
    headers = {name: value.reveal() for name, value in chosen.headers.items()}
    return Tracer(chosen.endpoint, headers, chosen.ratio, chosen.service_name)


def upstream(settings: Settings) -> Upstream:
    """Return the one client that all providers share."""
    chosen = settings.upstream
    # The certificates of the system are read before the first request and not during it, where any provider needs them.
    secure = any(provider.base_url.startswith("https:") for provider in settings.providers)
    limits = PoolLimits(
        per_host=chosen.per_host_connections,
        max_idle=chosen.per_host_connections,
        idle_seconds=chosen.idle_seconds,
        max_age_seconds=chosen.max_age_seconds,
        max_waiting=settings.server.max_connections,
    )
    return Upstream(
        limits=limits,
        tls=trust(chosen.ca_file) if chosen.ca_file is not None or secure else None,
        proxy_url=None if chosen.proxy_url is None else chosen.proxy_url.reveal(),
    )
