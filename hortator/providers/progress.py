"""A progress line on standard error, for obtaining a model. `cli` passes it to `weights.obtain`; it decides nothing.

On a terminal it is one line that is drawn again; in a log it is one line for every tenth.
"""

from __future__ import annotations

import time
from typing import TextIO

WIDTH = 30
REDRAW_SECONDS = 0.1
MIB = 1024 * 1024


class ProgressBar:
    """Callable as `weights.Progress`. `close` ends the line."""

    def __init__(self, label: str, stream: TextIO) -> None:
        self._label = label
        self._stream = stream
        self._terminal = stream.isatty()
        self._shown: tuple[str, int] | None = None
        self._drawn_at = 0.0
        self._open = False

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show `what` with the bytes done and in all."""
        percent = done * 100 // total if total else 0
        if self._terminal:
            now = time.monotonic()
            if now - self._drawn_at < REDRAW_SECONDS and done != total:
                return
            self._drawn_at = now
            filled = "#" * (percent * WIDTH // 100)
            line = f"{self._label}: {what} [{filled:<{WIDTH}}] {percent:3d}% {done // MIB}/{total // MIB} MiB"
            self._stream.write(f"\r{line}\x1b[K")
            self._open = True
        else:
            step = (what, percent // 10)
            if step == self._shown:
                return
            self._shown = step
            self._stream.write(f"{self._label}: {what} {percent}% {done // MIB}/{total // MIB} MiB\n")
        self._stream.flush()

    def close(self) -> None:
        """End the line, so that what is printed next starts on its own."""
        if self._open:
            self._stream.write("\n")
            self._stream.flush()
            self._open = False
