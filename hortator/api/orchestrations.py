"""The door of `/api/v1/orchestrations`: whole trees and named patterns.

`doors.py` sends requests here. What it has in common with the door of tasks is in `task_door.py`; a task that is no root is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence

from hortator.api import task_view
from hortator.api.query import Query, only
from hortator.api.task_door import TaskDoor, tree_filter
from hortator.call import Caller
from hortator.errors import NotFound
from hortator.store.tasks import Filter, Task
from hortator.wire import orders
from hortator.wire.orders import Asked, Attachment
from hortator.wire.task_view import OrchestrationNode, OrchestrationView

PATH = "/api/v1/orchestrations"


class OrchestrationsDoor(TaskDoor):
    """Everything under `/api/v1/orchestrations`."""

    path = PATH
    source = "orchestrations"

    def parse(self, body: bytes, attached: Sequence[Attachment]) -> Asked:
        """Read an order for a pattern."""
        return orders.orchestration(body, attached)

    async def find(self, caller: Caller, id: str) -> Task:
        """Return a root."""
        task = await super().find(caller, id)
        if task.parent_task_id is not None:
            raise NotFound(f"There is no orchestration '{id[:100]}'.", code="task_not_found")
        return task

    async def shown(self, caller: Caller, tasks: Sequence[Task]) -> Sequence[OrchestrationView]:
        """Return roots with the tasks of their trees counted."""
        counted = await self._teams.counted(caller, [task.id for task in tasks])
        return [task_view.orchestration(task, counted[task.id]) for task in tasks]

    def nested(self, task: Task, tree: Sequence[Task]) -> OrchestrationNode:
        """Return a root with its tree."""
        return task_view.nested_orchestration(task, tree)

    def filtered(self, asked: Query) -> Filter:
        """Roots only."""
        only(asked, "limit", "after", "status", "type", "model", "source", "pattern")
        return tree_filter(asked, roots=True)
