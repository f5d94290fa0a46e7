"""The room of teams of agents as the composition root has it: built from the settings, its doors, its work beside requests.

`app.py` makes one, starts and drains it, and gives it to the doors. A change of the configuration leaves it alone: model calls of agents
walk the corridor of the generation that serves when they are asked.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Collection, Sequence

from hortator.agent_calls import AgentCalls
from hortator.api.objects import Admit
from hortator.api.socket import SocketDoor
from hortator.ledger.metrics import Reading
from hortator.ledger.task_counts import TaskCounts
from hortator.orchestration.engine import DurableEngine, Role
from hortator.orchestration.events import Hub
from hortator.orchestration.patterns import PATTERNS
from hortator.orchestration.roles import Roles
from hortator.orchestration.slots import Slots
from hortator.orchestration.teams import KIND, Teams
from hortator.orchestration.tools import Equipment, Tools
from hortator.orchestration.tree import Tree
from hortator.orchestration.webhooks import Webhooks
from hortator.orchestration.workspace import Workspace
from hortator.providers.guarded import Guarded
from hortator.settings import Settings
from hortator.store import Database
from hortator.store.notices import Notices
from hortator.store.tasks import Task, TaskScope
from hortator.warm import Warm

log = logging.getLogger("hortator.orchestration")

ENGINE_FILE = "engine.db"
"""Beside the database: the engine's own tables, where the store is SQLite."""
ASIDE_SECONDS = 0.25
"""Pause before the engine loads, which takes half a second of processor time: the listener opens first."""
START_SECONDS = 20.0
"""How long the engine's start is waited for when the process ends."""


class Orchestrating:
    """The room and its work."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        calls: AgentCalls,
        warm: Warm,
        admit: Admit,
        *,
        worker: bool = False,
    ) -> None:
        """`admit` says who opens a WebSocket. `worker`: this process takes what servers leave to workers. Raises ConfigError for a role file that cannot be read."""
        chosen = settings.orchestration
        self.counts = TaskCounts()
        self._warm = warm
        self._starting: asyncio.Task[None] | None = None
        self.hub = Hub(database, None if database.is_sqlite else Notices(database), self.counts.told)
        self.engine = _engine(settings, database, worker=worker)
        self._slots = Slots(chosen.max_trees)
        self.webhooks = Webhooks(
            database,
            self.engine,
            self.hub.follow,
            Guarded(chosen.webhooks.allow_hosts),
            chosen.webhooks,
            unfinished=chosen.tenant_unfinished,
        )
        roles = Roles(chosen.roles)
        self._tree = Tree(
            database,
            self.engine,
            calls,
            self.hub,
            roles,
            chosen,
            _tool_maker(settings),
            PATTERNS,
            slots=self._slots,
        )
        self.teams = Teams(
            database,
            self.engine,
            self.hub,
            roles,
            chosen,
            callbacks=self.webhooks,
            slots=self._slots,
            ordered=warm.ordered,
            served=calls.served,
        )
        self.sockets = SocketDoor(admit, self.teams)

    async def start(self) -> None:
        """Begin to work, on what an earlier process left behind too. The engine takes a second to load: it starts beside requests, and
        orders that come before it works are kept and begun then.
        """
        await self.hub.start()
        self._starting = asyncio.create_task(self._start(), name="orchestration")

    async def _start(self) -> None:
        await asyncio.sleep(ASIDE_SECONDS)
        handlers = {KIND: self._tree.work, f"{KIND}.dead": self._tree.interrupted, **self.webhooks.handlers}
        try:
            await self.engine.start(handlers)
            # What it has loaded lives as long as the process: collections need not walk it (as in `cli/serve.py`).
            gc.freeze()
            await self.teams.start()
        except Exception as error:  # noqa: BLE001 - the outermost edge of a background task
            log.error("teams of agents cannot work: %s", type(error).__name__)

    async def drain(self) -> None:
        """Leave what is not finished to others or to the next start. Before the corridor ends."""
        if self._starting is not None:
            # What it loads in threads cannot be cut off.
            await asyncio.wait({self._starting}, timeout=START_SECONDS)
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        await self.teams.stop()
        await self._warm.close()
        await self.engine.stop()
        await self.hub.stop()

    def readings(self) -> list[Reading]:
        """Read the gauges."""
        hub = self.hub.gauges()
        return [
            Reading("hortator_tasks_handled", "Tasks whose handler runs in this process.", self.engine.running),
            Reading("hortator_trees_waiting", "Trees that wait for a place in this process.", self._slots.waiting),
            Reading("hortator_engine_works", "1 while the durable engine works.", self.engine.works),
            Reading("hortator_task_followers", "Views of logs that are open.", hub.followers),
            Reading("hortator_task_logs_followed", "Trees whose log somebody views.", hub.trees),
            Reading("hortator_task_events_buffered", "Events and pieces of text in memory.", hub.buffered),
            Reading("hortator_task_log_reads_total", "Reads of the store for views and for who waits.", hub.reads),
            Reading("hortator_task_followers_behind_total", "Times that a view was fed from the log.", hub.behind),
        ]


def _engine(settings: Settings, database: Database, *, worker: bool) -> DurableEngine:
    """Return the durable engine: a file beside the SQLite database, the application's Postgres otherwise."""
    slots = settings.orchestration.max_trees
    if database.is_sqlite:
        return DurableEngine(file=settings.home / ENGINE_FILE, slots=slots)
    url = settings.store.url
    assert url is not None
    role: Role = "worker" if worker else "server" if settings.orchestration.workers else "alone"
    return DurableEngine(url=url.reveal(), database=database, role=role, slots=slots)


def _tool_maker(settings: Settings) -> Callable[[TaskScope, Task, Sequence[str]], Tools]:
    """Return what equips an agent."""
    chosen = settings.orchestration
    equipment = Equipment(chosen)

    def made(scope: TaskScope, task: Task, capabilities: Collection[str]) -> Tools:
        workspace = Workspace(scope, task, most_files=chosen.max_files, most_bytes=chosen.max_files_bytes)
        return Tools(workspace, equipment, capabilities)

    return made
