"""The ledger's journal: records on disk before they are in the database, so that neither a dead process nor a dead store loses them.

`usage.py` appends each batch, marks it done when the database has it, and replays what other processes left behind. A journal
is a folder of segments, `<uuid>.jsonl`, one record a line. A process holds a lock on each segment it owns; the kernel drops it
when the process dies, however it dies, and then another process may adopt the segment. A segment is deleted, or emptied when
it is the one being written, once every record in it is in the database.
Not thread safe: every call comes from the ledger's one worker thread. Never raises for a full disk: it says so and goes on.
"""

from __future__ import annotations

import fcntl
import os
from collections import deque
from pathlib import Path

import uuid_utils

SEGMENT_BYTES = 8 * 1024 * 1024
"""A segment is closed beyond this size."""


class Segment:
    """One file of the journal, owned by this process."""

    __slots__ = ("descriptor", "path", "pending", "size")

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path = path
        self.descriptor = descriptor
        self.size = size
        """Bytes of whole lines."""
        self.pending = 0
        """Batches that the database does not have yet; only known for those this process wrote."""


class Journal:
    """Segments in one folder, at most `limit` bytes of them owned by this process."""

    def __init__(self, folder: Path, limit: int = 1024**3) -> None:
        self.folder = folder
        self.limit = limit
        self.backlog: deque[Segment] = deque()
        """Closed segments whose records must be replayed from the file, oldest first."""
        self.bytes = 0
        """Bytes in the segments this process owns."""
        self._active: Segment | None = None
        self._closed: set[Segment] = set()

    def append(self, lines: bytes) -> Segment | None:
        """Write whole lines; returns the segment they are in, None when the disk or the limit is reached.

        The bytes are with the kernel when this returns, so killing the process does not lose them. They are not forced to
        the disk: a power cut may lose what SQLite with synchronous=NORMAL would lose too.
        """
        if self.bytes + len(lines) > self.limit:
            return None
        if self._active is not None and self._active.size >= SEGMENT_BYTES:
            self.close_active()
        try:
            segment = self._active or self._open()
            self._write(segment, lines)
        except OSError:
            return None
        self._active = segment
        segment.size += len(lines)
        segment.pending += 1
        self.bytes += len(lines)
        return segment

    def done(self, segment: Segment) -> None:
        """The database has one batch of `segment`; drop the segment's content when it was the last."""
        segment.pending -= 1
        if segment.pending > 0:
            return
        if segment is self._active:
            os.ftruncate(segment.descriptor, 0)
            self.bytes -= segment.size
            segment.size = 0
        elif segment in self._closed:
            self._closed.discard(segment)
            self._delete(segment)

    def give_up(self) -> None:
        """The database does not take batches: from now on everything written so far is replayed from the files."""
        self.close_active()
        for segment in sorted(self._closed, key=lambda segment: segment.path.name):
            self.backlog.append(segment)
        self._closed.clear()

    def close_active(self) -> None:
        """Write the next batch to a new segment."""
        if self._active is not None:
            self._closed.add(self._active)
            self._active = None

    def adopt(self) -> int:
        """Take over the segments whose processes are dead; returns how many. They join the backlog."""
        adopted = 0
        for path in sorted(self.folder.glob("*.jsonl")):
            segment = _claim(path)
            if segment is not None:
                self.backlog.append(segment)
                self.bytes += segment.size
                adopted += 1
        return adopted

    def read(self, segment: Segment, offset: int, size: int = 256 * 1024) -> tuple[list[bytes], int]:
        """The whole lines at `offset` and the next offset; no lines at the end.

        What follows the last newline was torn when its process died: it is left out.
        """
        block = os.pread(segment.descriptor, size, offset)
        end = block.rfind(b"\n") + 1
        if end == 0 and len(block) == size:
            return self.read(segment, offset, size * 4)
        return block[:end].splitlines(), offset + end

    def drop(self, segment: Segment) -> None:
        """Every record of this backlog segment is in the database."""
        self.backlog.remove(segment)
        self._delete(segment)

    def close(self) -> None:
        """Let go of every segment; empty ones are deleted, others are there for the next start."""
        for segment in (*self.backlog, *self._closed, *([self._active] if self._active else [])):
            if segment.size == 0:
                segment.path.unlink(missing_ok=True)
            os.close(segment.descriptor)
        self.backlog.clear()
        self._closed.clear()
        self._active = None

    def _open(self) -> Segment:
        """A new segment. It gets its name once it is locked, so that nobody adopts it in between."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / f"{uuid_utils.uuid7()}.jsonl"
        unlocked = path.with_suffix(".new")
        descriptor = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        unlocked.rename(path)
        return Segment(path, descriptor, 0)

    def _write(self, segment: Segment, lines: bytes) -> None:
        """Append, or leave no trace: a full disk may take half a batch, which is cut off again."""
        try:
            view = memoryview(lines)
            while view:
                view = view[os.write(segment.descriptor, view) :]
        except OSError:
            os.ftruncate(segment.descriptor, segment.size)
            if segment is not self._active:
                self._delete(segment)
            raise

    def _delete(self, segment: Segment) -> None:
        segment.path.unlink(missing_ok=True)
        os.close(segment.descriptor)
        self.bytes -= segment.size


def _claim(path: Path) -> Segment | None:
    """Lock a segment that nobody holds. None when its process lives (this one's too), or when another one was faster."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(descriptor)
        if status.st_nlink > 0:
            return Segment(path, descriptor, status.st_size)
    except BlockingIOError:
        pass
    os.close(descriptor)
    return None
