"""Every statement on the files of tasks, `task_files`: what was given to them, what they give, what is their own.

`TaskScope` (`tasks.py`) is this and more; `workspace.py` checks paths. Contents are small and bounded by the caller's figures, so they
stand in the table; lists never read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, func
from sqlalchemy.dialects import postgresql, sqlite

from hortator.store.tables import task_files
from hortator.store.task_events import EventScope
from hortator.store.task_rows import File, NewEvent, NewFile, Task, as_file, now
from hortator.wire.events import Event

_column = task_files.c
_KEPT = (
    _column.task_id,
    _column.path,
    _column.bytes,
    _column.media_type,
    _column.sha256,
    _column.created_at,
)


class TaskFileScope(EventScope):
    """The files of one tenant's tasks."""

    async def put(
        self, task: Task, file: NewFile, *, most_files: int, most_bytes: int, events: Sequence[NewEvent] = ()
    ) -> bool:
        """Keep a file, in place of one at the same path; False where the task's files would be too many or too large. Raises Unavailable."""

        def act(connection: Connection) -> list[Event] | None:
            self._lock(connection, task.root_id)
            others = self._rows(task_files, func.count(), func.coalesce(func.sum(_column.bytes), 0))
            others = others.where(_column.task_id == task.id, _column.path != file.path)
            count, size = connection.execute(others).one()
            if count + 1 > most_files or size + len(file.content) > most_bytes:
                return None
            connection.execute(self._upsert({**file_row(task, file), "tenant_id": self.tenant_id}))
            return self._append(connection, task.root_id, events)

        told = await self._database.work(act)
        self._tell(told or ())
        return told is not None

    def _upsert(self, row: dict[str, Any]) -> Any:
        """Insert a file, or put it in the place of the one that is there."""
        dialect = sqlite if self._database.is_sqlite else postgresql
        replaced = {name: row[name] for name in ("bytes", "media_type", "sha256", "created_at", "content")}
        values = dialect.insert(task_files).values({**row, "tenant_id": self.tenant_id})
        return values.on_conflict_do_update(index_elements=["task_id", "path"], set_=replaced)

    async def file(self, task_id: str, path: str) -> tuple[File, bytes] | None:
        """A file and its content. Raises Unavailable."""
        statement = self._rows(task_files).where(_column.task_id == task_id, _column.path == path)
        async with self._database.read() as connection:
            row = (await connection.execute(statement)).first()
        return None if row is None else (as_file(row), bytes(row.content))

    async def files(self, task_ids: Sequence[str], prefix: str = "") -> list[File]:
        """The files of tasks whose path begins with `prefix`, by task and path. Raises Unavailable."""
        statement = (
            self._rows(task_files, *_KEPT)
            .where(_column.task_id.in_(list(task_ids)), _column.path.startswith(prefix, autoescape=True))
            .order_by(_column.task_id, _column.path)
        )
        return [as_file(row) for row in await self._database.rows(statement)]


def file_row(task: Task, file: NewFile) -> dict[str, Any]:
    """The row of a new file, but for its tenant."""
    return {
        "task_id": task.id,
        "path": file.path,
        "root_id": task.root_id,
        "bytes": len(file.content),
        "media_type": file.media_type,
        "sha256": sha256(file.content).hexdigest(),
        "created_at": now(),
        "content": file.content,
    }
