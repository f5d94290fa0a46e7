"""How a task ends: its phase, its result and the event that tells of it, in one transaction, once.

`tree.py` calls exactly one of these for a task. What is still at work below is cancelled first, so that nothing happens in a tree after
the event that ends it. A task that is short of time or budget keeps what was achieved. Asks no model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from hortator.errors import HortatorError
from hortator.orchestration import family, results
from hortator.orchestration.desk import money, patiently
from hortator.orchestration.lead import Outcome, duration
from hortator.store.tasks import UNFINISHED, NewEvent, NewFile, Place, Task, TaskScope
from hortator.wire.tasks import TERMINAL

RESULT_FILE: Final = "outbox/result.md"
_EVENTS: Final[Mapping[str, str]] = {
    "Completed": "completed",
    "Failed": "failed",
    "BudgetExceeded": "budget_exceeded",
    "TimedOut": "timed_out",
    "Cancelled": "cancelled",
}
_MOST_RISKS: Final = 50
_EVENT_TEXT: Final = 20_000
_PLANNED, _WORKED = 10, 85
"""Percent of progress when the plan is made, and when all parts have ended."""


class Ending:
    """Ends one task."""

    def __init__(
        self, scope: TaskScope, task: Task, leave: Callable[[], object], *, most_files: int, most_bytes: int
    ) -> None:
        """`leave`: called before the end is written, so that nobody cancels who ends it."""
        self._scope = scope
        self._task = task
        self._leave = leave
        self._most = most_files, most_bytes
        self._kept: Outcome | None = None

    @property
    def _root(self) -> bool:
        return self._task.id == self._task.root_id

    def keep(self, outcome: Outcome) -> None:
        """Take what was achieved so far: the result, should the task end early."""
        self._kept = outcome

    async def completed(self, outcome: Outcome) -> None:
        """End with a result."""
        found = await self._results(outcome.content, outcome.parts, outcome.data, text_only=not outcome.parts)
        events = self._risks(found) if outcome.alone else []
        await self._end("Completed", found, None, outcome.message, events)

    async def failed(self, error: HortatorError) -> None:
        """End without a result, but with a pattern's data so far: it says what failed of each request."""
        kept = self._kept
        found = None
        if kept is not None and kept.data is not None:
            found = {"summary": error.message[:500], "content": kept.content, "data": kept.data}
        await self._end("Failed", found, {"code": error.code, "message": error.message[:500]}, error.message)

    async def short(self, phase: str, message: str, code: str, *, of: str | None = None) -> None:
        """End with what was achieved, if anything. `of`: the task whose budget is used up."""
        await self._stop_children()
        parts = await self._children()
        done = [family.done(child) for child in parts]
        kept = self._kept
        text = (
            kept.content if kept else results.joined([part for part in done if part.text]) or await self._last_words()
        )
        error = {"code": code, "message": message, **({} if of is None else {"task_id": of})}
        found = await self._results(text, parts, kept.data if kept else None, text_only=False) if text else None
        await self._end(phase, found, error, message)

    async def cancelled(self, message: str) -> None:
        """End because it cannot be done."""
        await self._end("Cancelled", None, {"code": "task_cancelled", "message": message}, message)

    # What there is.

    async def _children(self) -> list[Task]:
        rows = await patiently(lambda: self._scope.tree(self._task.root_id))
        return [row for row in rows if row.parent_task_id == self._task.id]

    async def _last_words(self) -> str:
        """Return what the task's own agent said last, other than a plan."""
        steps = await patiently(lambda: self._scope.steps(self._task.root_id))
        for step in reversed(steps):
            own = step.task_id == self._task.id and step.kind == "model" and step.status == "finished"
            if own and not step.key.startswith(("plan", "replan")):
                text = ((step.result or {}).get("said") or {}).get("text")
                if text:
                    return str(text)
        return ""

    async def _results(self, content: str, parts: Sequence[Task], data: Any, *, text_only: bool) -> dict[str, Any]:
        """Return what the task gives, as docs/orchestration.md has it."""
        done = [family.done(part) for part in parts]
        found: dict[str, Any] = {"summary": results.summary(content), "content": content}
        added = results.added(self._task.task_type, [content])
        if not any(added.values()) and not text_only:
            added = results.added(self._task.task_type, [part.text for part in done])
        found |= added
        if data is not None:
            found["data"] = data
        if not self._root:
            return found
        found["parts"] = [
            {
                "agent_id": part.id,
                "task": part.name,
                "role": part.role,
                "status": part.status,
                "summary": results.summary(text.text),
            }
            for part, text in zip(parts, done, strict=True)
        ]
        found["artifacts"] = await self._artifacts(content)
        return found

    async def _artifacts(self, content: str) -> list[dict[str, Any]]:
        """Keep the answer as a file; return all files that the tree gives."""
        file = NewFile(RESULT_FILE, content.encode(errors="replace"), "text/markdown")
        files, bytes_ = self._most
        await patiently(lambda: self._scope.put(self._task, file, most_files=files, most_bytes=bytes_))
        rows = await patiently(lambda: self._scope.outline(self._task.root_id))
        kept = await patiently(lambda: self._scope.files([row.id for row in rows], "outbox/"))
        return [{"path": each.path, "bytes": each.bytes, "task_id": each.task_id} for each in kept]

    def _risks(self, found: Mapping[str, Any]) -> list[NewEvent]:
        """Return an event for each finding."""
        return [
            self._event(
                "risk_identified",
                risk["description"][:500],
                risk_description=risk["description"],
                severity=risk["severity"],
                document=risk["document"],
            )
            for risk in found.get("findings", ())[:_MOST_RISKS]
        ]

    # The end.

    def _event(self, type: str, message: str, **fields: Any) -> NewEvent:
        named = {} if self._root else {"task": self._task.name}
        given = {name: value for name, value in fields.items() if value not in (None, "", {})}
        return NewEvent(type=type, task_id=self._task.id, fields={"message": message[:500], **named, **given})

    async def _stop_children(self) -> None:
        """Cancel what is still at work below; a legionary has nobody."""
        if self._task.tier == "legionary" and not self._root:
            return
        rows = await patiently(lambda: self._scope.outline(self._task.root_id))
        for child in rows:
            if child.parent_task_id == self._task.id and child.status in UNFINISHED:
                await patiently(lambda child=child: self._scope.cancel(child.id, "The task above it has ended."))  # type: ignore[misc]

    async def _end(
        self,
        phase: str,
        found: Mapping[str, Any] | None,
        error: Mapping[str, Any] | None,
        message: str,
        events: Sequence[NewEvent] = (),
    ) -> None:
        await self._stop_children()
        last = await self._tree_end(phase, found, error) if self._root else self._agent_end(phase, found, error)
        values: dict[str, Any] = {"results": found, "error": error, "message": message[:500]}
        if phase == "Completed":
            values["progress"] = 100
        self._leave()
        ended = await patiently(
            lambda: self._scope.change(
                self._task.id, phase, of=UNFINISHED, values=values, events=[*events, *last], place=self._task
            )
        )
        if ended and not self._root:
            await self._progress()

    async def _tree_end(
        self, phase: str, found: Mapping[str, Any] | None, error: Mapping[str, Any] | None
    ) -> list[NewEvent]:
        """Return the last events of a tree, with what it took."""
        fresh = await patiently(lambda: self._scope.find(self._task.id)) or self._task
        began = fresh.started_at or fresh.created_at
        details: dict[str, Any] = {
            "usage": {
                "input_tokens": fresh.input_tokens,
                "output_tokens": fresh.output_tokens,
                "total_tokens": fresh.input_tokens + fresh.output_tokens,
            },
            "cost_usd": money(fresh.cost),
            "duration_ms": round((datetime.now(UTC) - began).total_seconds() * 1000),
        }
        if error is not None:
            details["code"] = error["code"]
        events = []
        for artifact in (found or {}).get("artifacts", ()):
            if artifact["path"] == RESULT_FILE and artifact["task_id"] == self._task.id:
                told = {"path": artifact["path"], "bytes": artifact["bytes"]}
                events.append(
                    self._event("artifact_created", artifact["path"], document=artifact["path"], details=told)
                )
        said = str((error or {}).get("message") or (found or {}).get("summary") or "Done")
        return [*events, self._event(_EVENTS[phase], said, result=found, details=details)]

    def _agent_end(
        self, phase: str, found: Mapping[str, Any] | None, error: Mapping[str, Any] | None
    ) -> list[NewEvent]:
        """Return the events that tell of an agent's end."""
        name = self._task.name
        events = []
        if found is not None:
            text = str(found["content"])
            events.append(self._event("partial_result", f"{name} has a result", content=text[:_EVENT_TEXT]))
        if error is not None:
            details = {"code": error["code"]}
            type = "agent_cancelled" if phase == "Cancelled" else "agent_failed"
            events.append(self._event(type, f"{name}: {error['message']}", details=details))
        return events

    async def _progress(self) -> None:
        """Tell how far the tree is. Told once for each agent that ends; a crash in between loses one."""
        rows = await patiently(lambda: self._scope.outline(self._task.root_id))
        root, below = rows[0], rows[1:]
        done = sum(row.status in TERMINAL for row in below)
        percent = max(root.progress, _PLANNED + (_WORKED - _PLANNED) * done // max(1, len(below)))
        details: dict[str, Any] = {"progress_percent": percent, "done": done, "total": len(below)}
        if root.started_at is not None and done:
            spent = (datetime.now(UTC) - root.started_at).total_seconds() * 1000
            left = spent * (len(below) - done + 1) / (done + 1)
            details |= {"estimated_time_remaining": duration(left), "estimated_time_remaining_ms": round(left)}
        event = NewEvent(
            type="progress", task_id=root.id, fields={"message": f"{done} of {len(below)} done", "details": details}
        )
        if root.status in UNFINISHED:
            await patiently(
                lambda: self._scope.change(
                    root.id,
                    root.status,
                    of=(root.status,),
                    values={"progress": percent},
                    events=[event],
                    place=Place(root.id, root.id, None, 0),
                )
            )
