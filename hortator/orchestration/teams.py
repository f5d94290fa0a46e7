"""The room's door: what is asked of teams of agents, and what is told of them.

Doors (`api/tasks.py`, `api/orchestrations.py`, `api/socket.py`, the chat doors on `hortator/*`, Harpoon's) come here with a `Caller` that
the corridor has admitted; everything they see and touch is that caller's tenant's. The work itself is `tree.py`'s, run by the engine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from msgspec import Struct

from hortator.call import Caller
from hortator.store.tasks import File, Filter, NewFile, Step, Task
from hortator.wire.events import Delta, Event
from hortator.wire.tasks import Pattern, TaskConfig


class Order(Struct, frozen=True, kw_only=True):
    """Something to be worked on, as a door understood it."""

    messages: Sequence[Mapping[str, Any]]
    """Chat messages; a prompt is one user message."""
    model: str = "hortator/default"
    """`hortator/<role>`, `hortator/{domain}-{role}` or `hortator/pattern-<pattern>`."""
    task_type: str = "chat"
    source: str = "tasks"
    pattern: Pattern = "team"
    arguments: Mapping[str, Any] = {}
    """What the pattern needs besides (Harpoon's field names): `requests`, `orchestrator_model`, `worker_model`, `quality_threshold`, ..."""
    config: TaskConfig = TaskConfig()
    files: Sequence[NewFile] = ()
    """Into `inbox/`; paths without that prefix."""
    callback_url: str | None = None
    callback_events: Sequence[str] | None = None
    """Types of events to send; None = progress and ends."""
    idempotency_key: str | None = None
    interactive: bool = False
    """A client waits for the answer: run in this process, now, so that text streams."""


class Teams:
    """One per process."""

    async def submit(self, caller: Caller, order: Order, *, id: str | None = None) -> Task:
        """Take an order, durably, and have it worked on; returns the root, which is an earlier one where its idempotency key is known.

        `id`: the id (a UUID) that a new root gets; None = any. Another one is returned: the order was known.

        Raises InvalidRequest (unknown role, bad domain parameters, budget above the caller's own), Forbidden (a model or capability
        that the key may not use), RateLimited (`too_many_tasks`), Conflict (`idempotency_key_reused`), Overloaded, Unavailable.
        """
        raise NotImplementedError

    async def find(self, caller: Caller, id: str) -> Task:
        """A task, root or not. Raises NotFound (`task_not_found`; also for other tenants' and for what is no id), Unavailable."""
        raise NotImplementedError

    async def page(self, caller: Caller, chosen: Filter, after: str | None, limit: int) -> list[Task]:
        """At most `limit` tasks, newest first, older than the one of id `after`."""
        raise NotImplementedError

    async def tree(self, caller: Caller, id: str) -> list[Task]:
        """The task and all below it, parents first. Raises NotFound."""
        raise NotImplementedError

    async def cancel(self, caller: Caller, id: str) -> Task:
        """Cancel a task and all below it; running calls end within a second. One that has ended is left as it is. Raises NotFound."""
        raise NotImplementedError

    async def say(self, caller: Caller, id: str, text: str) -> Event:
        """Send a message to a running tree: its agents read it before their next model call.

        Raises NotFound, Conflict (`task_not_running`), TooLarge.
        """
        raise NotImplementedError

    async def steps(self, caller: Caller, id: str) -> list[Step]:
        """Every model and tool call of the task and of all below it, in order. Raises NotFound."""
        raise NotImplementedError

    async def files(self, caller: Caller, id: str, prefix: str = "outbox/") -> list[File]:
        """Files of the task and all below it (a child's keep its task id). Raises NotFound."""
        raise NotImplementedError

    async def file(self, caller: Caller, id: str, path: str) -> tuple[File, bytes]:
        """A file of the task, or of the first task below it that has one of that path. Raises NotFound (`artifact_not_found`)."""
        raise NotImplementedError

    async def events(self, caller: Caller, id: str, after: int, limit: int) -> list[Event]:
        """The log of the tree the task belongs to, behind `after`. Raises NotFound."""
        raise NotImplementedError

    def follow(self, caller: Caller, id: str, after: int = 0, *, deltas: bool = False) -> AsyncIterator[Event | Delta]:
        """The log behind `after`, then live, until the event that ends the tree. `deltas`: also the answer's text while it is written.

        Raises NotFound, Gone (`events_expired`: what follows `after` is not kept any more). Costs the database nothing while nothing happens.
        """
        raise NotImplementedError

    async def finished(self, caller: Caller, id: str, timeout: float | None = None) -> Task:
        """The task once it has ended, or as it is after `timeout` seconds. Raises NotFound."""
        raise NotImplementedError
