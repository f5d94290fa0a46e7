"""The log of a tree as a client sees it: events with the attributes of R-000-17, and where a reader stands in it.

`Follow` is shared by both clients: it says what to ask for next, takes each event once, and judges how long a broken connection is
tried again. No I/O, no sleeping.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

from hortator.client.errors import HortatorConnectionError, HortatorError, ServerError, told
from hortator.client.order import TASKS
from hortator.client.record import Record, read_object
from hortator.client.request import Request, get, segment, with_headers
from hortator.errors import InvalidReply
from hortator.wire.events import ENDS, Level
from hortator.wire.sse import EventSplitter

PATIENCE = 120.0
"""Seconds of failed attempts in a row after which a broken stream is given up."""
IDLE_SECONDS = 60.0
"""Seconds without a byte after which the connection is taken for dead; the server sends comments more often."""
NOTHING_TO_COME = 204
"""The reply's status where the tree has ended and everything was taken."""
PAGE = 1000
FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0
PHASES = {
    "completed": "Completed",
    "failed": "Failed",
    "cancelled": "Cancelled",
    "budget_exceeded": "BudgetExceeded",
    "timed_out": "TimedOut",
}
"""The status of a tree after its last event."""


class TaskEvent(Record):
    """One event. What its type does not have is None; `details` is always an object. Types: docs/orchestration.md."""

    seq: int
    task_id: str
    type: str
    timestamp: str
    message: str | None
    agent_id: str | None
    task: str | None
    content: str | None
    result: Any
    document: str | None
    risk_description: str | None
    severity: str | None
    details: Record

    def __init__(self, data: Mapping[str, Any]) -> None:
        super().__init__({"details": {}, **data})

    @property
    def ends(self) -> bool:
        """Whether it is the last event of its tree."""
        return self.type in ENDS


class Follow:
    """A reader of one tree's log."""

    def __init__(self, task_id: str, level: Level, after: int) -> None:
        self._task_id = task_id
        self._level = level
        self._splitter = EventSplitter()
        self._failing = 0.0
        self._delay = FIRST_DELAY
        self.after = after
        """`seq` of the last event that was taken."""
        self.ended = False

    def request(self) -> Request:
        """Return what to ask for now: the log behind what was taken."""
        self._splitter = EventSplitter()
        asked = get(f"{TASKS}/{segment(self._task_id)}/events", timeout=IDLE_SECONDS, level=self._level)
        headers = {"Accept": "text/event-stream"}
        if self.after:
            headers["Last-Event-ID"] = str(self.after)
        return with_headers(asked, headers)

    def feed(self, data: bytes) -> Iterator[TaskEvent]:
        """Give the events that `data` completes and that were not taken before. Raises HortatorError for an error event."""
        self._failing, self._delay = 0.0, FIRST_DELAY
        try:
            payloads = self._splitter.feed(data)
        except InvalidReply as error:
            raise ServerError(error.message) from None
        for payload in payloads:
            found = read_object(payload)
            if isinstance(found.get("error"), dict) and "seq" not in found:
                raise told(found["error"], None, self._task_id, again=True)
            event = TaskEvent(found)
            if self.ended or found.get("seq", 0) <= self.after:
                continue
            self.after = event.seq
            self.ended = event.ends
            yield event

    def pause(self, error: HortatorError | None) -> float:
        """Return the seconds to wait before asking again. None: the stream ended, but not the tree. Raises `error` when all is in vain."""
        if error is not None and not (error.again or isinstance(error, HortatorConnectionError | ServerError)):
            raise error
        if self._failing >= PATIENCE:
            raise error or HortatorConnectionError("the stream of events breaks again and again")
        delay, self._delay = self._delay, min(self._delay * 2, LONGEST_DELAY)
        wait = max(delay * (0.75 + random.random() / 2), (error.retry_after if error else None) or 0.0)
        self._failing += wait
        return wait


def so_far(task_id: str, level: Level, after: int) -> Request:
    """Ask for a page of what has happened."""
    return get(f"{TASKS}/{segment(task_id)}/events", level=level, after=after, limit=PAGE, stream="false")


def past(page: Mapping[str, Any], after: int) -> tuple[list[TaskEvent], int, bool]:
    """Return a page's events, where the next one begins, and whether there is one."""
    events = [TaskEvent(each) for each in page.get("data", ())]
    last = page.get("last_seq") or max((event.seq for event in events), default=after)
    return events, last, bool(page.get("has_more")) and last > after


def seen(known: Mapping[str, Any], event: TaskEvent) -> dict[str, Any]:
    """Return what is known of a root after one of its events, without asking the server."""
    changed = dict(known)
    details = event.details.to_dict()
    if event.type == "progress" and "progress_percent" in details:
        changed["progress_percent"] = details["progress_percent"]
    if event.ends:
        said = event.to_dict()
        changed["status"] = PHASES[event.type]
        changed["completed_at"] = event.timestamp
        changed["results"] = said.get("result") or details.get("result")
        changed |= {name: details[name] for name in ("usage", "cost_usd") if name in details}
        if event.type != "completed" and details.get("code"):
            changed["error"] = {"code": details["code"], "message": event.message}
    return changed
