"""Watching a tree from a terminal: painted in place where there is one, told line by line where there is not.

`run.py` and `tasks.py watch` call `follow`. A thread reads the events; this one paints, so that seconds count on while nothing happens,
and Ctrl-C is heard at once.
"""

from __future__ import annotations

import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable

import click

from hortator.cli.picture import Picture, told
from hortator.client import HortatorError, Task, TaskEvent

PAINT_SECONDS = 0.1
LEAVE_SECONDS = 15.0
"""How long the end of a cancelled tree is waited for."""
EXITS = {"Completed": 0, "Failed": 1, "BudgetExceeded": 3, "TimedOut": 4, "Cancelled": 5}
"""Exit status by phase; 2 is a wrong command line, 130 Ctrl-C."""

_Item = TaskEvent | HortatorError | None


class Painter:
    """Lines on standard error that are painted over."""

    def __init__(self) -> None:
        self._painted = 0

    def paint(self, lines: list[str]) -> None:
        """Show lines in the place of those before."""
        up = f"\x1b[{self._painted}A\x1b[J" if self._painted else ""
        self._painted = len(lines)
        sys.stderr.write(up + "".join(f"{line}\n" for line in lines))
        sys.stderr.flush()


def follow(
    task: Task,
    title: str,
    *,
    quiet: bool,
    check: Callable[[], None],
    interrupted: Callable[[], None] | None = None,
) -> Picture:
    """Follow a tree to its end. `interrupted` is called at Ctrl-C, after which its end is awaited; without it Ctrl-C is raised.

    `check` raises where the server is known to be gone. Raises HortatorError, KeyboardInterrupt.
    """
    items: queue.Queue[_Item] = queue.Queue(maxsize=1000)
    reader = threading.Thread(target=_read, args=(task, items), daemon=True)
    began = time.monotonic()
    picture = Picture(task.id, title, str(task.data.role or ""), began)
    show = _Show(task, picture, began, quiet=quiet)
    reader.start()
    deadline: float | None = None
    while True:
        try:
            check()
            if show.step(items) or (deadline is not None and time.monotonic() > deadline):
                return picture
        except KeyboardInterrupt:
            if interrupted is None or deadline is not None:
                raise
            deadline = time.monotonic() + LEAVE_SECONDS
            interrupted()


class _Show:
    """One tree on one terminal."""

    def __init__(self, task: Task, picture: Picture, began: float, *, quiet: bool) -> None:
        self._task = task
        self._picture = picture
        self._began = began
        self._quiet = quiet
        self._painter = Painter() if sys.stderr.isatty() and not quiet else None

    def step(self, items: queue.Queue[_Item]) -> bool:
        """Wait a moment for events and show them; True = that was the last. Raises HortatorError."""
        over = False
        try:
            item = items.get(timeout=PAINT_SECONDS if self._painter else 1.0)
            while True:
                if isinstance(item, HortatorError):
                    raise item
                if item is None:
                    over = True
                    break
                self._take(item)
                item = items.get_nowait()
        except queue.Empty:
            pass
        if self._painter is not None:
            if self._picture.unplaced:
                self._picture.place(self._task.tree())
            size = shutil.get_terminal_size()
            self._painter.paint(self._picture.lines(size.columns - 1, max(5, size.lines - 2), time.monotonic()))
        return over

    def _take(self, event: TaskEvent) -> None:
        now = time.monotonic()
        self._picture.take(event, now)
        if self._painter is None and not self._quiet and (line := told(event, self._began, now)) is not None:
            click.echo(line, err=True)


def _read(task: Task, items: queue.Queue[_Item]) -> None:
    """In a thread: put every event into the queue, then None, or what went wrong."""
    try:
        for event in task.stream(level="full"):
            items.put(event)
        items.put(None)
    except HortatorError as error:
        items.put(error)
