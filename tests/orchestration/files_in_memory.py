"""The files of tasks in memory, for tests of what agents do with them: what `TaskScope` does, without a database."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from hortator.call import KeyHash, TenantId
from hortator.store.tasks import File, NewEvent, NewFile, Task, TaskScope

BORN = datetime(2026, 11, 21, tzinfo=UTC)


def a_task(
    id: str, *, parent: str | None = None, name: str = "", dependencies: Sequence[str] = (), **values: Any
) -> Task:
    given: dict[str, Any] = {
        "id": id,
        "tenant_id": TenantId("t"),
        "root_id": "root",
        "parent_task_id": parent,
        "key_hash": KeyHash("k"),
        "name": name or id,
        "status": "Running",
        "task_type": "chat",
        "model": None,
        "role": "generalist",
        "tier": "legionary",
        "pattern": "team",
        "source": "tasks",
        "priority": "standard",
        "depth": 0 if parent is None else 1,
        "position": 0,
        "created_at": BORN,
        "request": {"prompt": "", "dependencies": list(dependencies)},
    }
    return Task(**(given | values))


class FilesInMemory(TaskScope):
    """The part of a tenant's tasks that a workspace asks."""

    def __init__(self, *tasks: Task) -> None:
        self.tasks = {task.id: task for task in tasks}
        self.contents: dict[tuple[str, str], NewFile] = {}

    def add_file(self, task_id: str, path: str, content: bytes) -> None:
        self.contents[task_id, path] = NewFile(path, content, "text/plain")

    def paths(self, task_id: str) -> dict[str, bytes]:
        return {path: file.content for (id, path), file in sorted(self.contents.items()) if id == task_id}

    async def find(self, id: str) -> Task | None:
        return self.tasks.get(id)

    async def put(
        self, task: Task, file: NewFile, *, most_files: int, most_bytes: int, events: Sequence[NewEvent] = ()
    ) -> bool:
        after = {**self.paths(task.id), file.path: file.content}
        if len(after) > most_files or sum(map(len, after.values())) > most_bytes:
            return False
        self.contents[task.id, file.path] = file
        return True

    async def file(self, task_id: str, path: str) -> tuple[File, bytes] | None:
        found = self.contents.get((task_id, path))
        return None if found is None else (_row(task_id, found), found.content)

    async def files(self, task_ids: Sequence[str], prefix: str = "") -> list[File]:
        return [
            _row(id, file)
            for (id, path), file in sorted(self.contents.items())
            if id in task_ids and path.startswith(prefix)
        ]


def _row(task_id: str, file: NewFile) -> File:
    digest = hashlib.sha256(file.content).hexdigest()
    return File(task_id, file.path, len(file.content), file.media_type, digest, BORN)
