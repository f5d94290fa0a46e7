"""The door of `/api/v1/tasks`: orders for agents and the tasks that come of them, roots and those below.

`doors.py` sends requests here. Everything but what makes it this door is in `task_door.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from hortator.api import task_view
from hortator.api.query import Query, only
from hortator.api.task_door import TaskDoor, choice, tree_filter
from hortator.call import Caller
from hortator.store.tasks import Filter, Task
from hortator.wire import orders
from hortator.wire.orders import Asked, Attachment
from hortator.wire.task_view import TaskNode, TaskView

PATH = "/api/v1/tasks"


class TasksDoor(TaskDoor):
    """Everything under `/api/v1/tasks`."""

    path = PATH
    source = "tasks"

    def parse(self, body: bytes, attached: Sequence[Attachment]) -> Asked:
        """Read an order for a task."""
        return orders.order(body, attached)

    async def shown(self, caller: Caller, tasks: Sequence[Task]) -> Sequence[TaskView]:
        """Return tasks by themselves."""
        return [task_view.shown(task) for task in tasks]

    def nested(self, task: Task, tree: Sequence[Task]) -> TaskNode:
        """Return a task with those below it."""
        return task_view.nested(task, tree)

    def filtered(self, asked: Query) -> Filter:
        """Roots, or with `all=true` every task."""
        only(asked, "limit", "after", "status", "type", "model", "source", "pattern", "all")
        return tree_filter(asked, roots=choice(asked, "all", ("true", "false")) != "true")
