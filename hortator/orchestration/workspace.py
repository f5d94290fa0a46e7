"""The files of one task: what an agent finds in `inbox/`, works on in `workspace/` and delivers in `outbox/`.

`tools.py` reads and writes through it; `teams.py` checks the names of input files with `normal`. Files are rows of `task_files`, reached
through `TaskScope`: no path of an agent ever names a file of this machine, but for the folder that the sandbox is given, which
`lay_out` fills and `gather` reads back. Others' files are only read: inputs of the tasks above, results of the tasks waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import mimetypes
import os
import re
import stat
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from hortator.errors import InvalidRequest, NotFound, TooLarge
from hortator.store.tasks import File, NewEvent, NewFile, Task, TaskScope
from hortator.wire.tasks import MAX_DEPTH

INBOX, OUTBOX, WORKSPACE = "inbox/", "outbox/", "workspace/"
MAX_PATH = 300
"""Characters of a path."""
MAX_SEGMENTS = 10
MAX_NAME_BYTES = 200
"""Of one name in a path, so that any file system takes it."""
MAX_DEPENDENCIES = 100
_TOPS = (INBOX, OUTBOX, WORKSPACE)
_FORBIDDEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
"""Unicode categories that no name may hold: controls, invisible and reordering letters, halves of pairs."""
_FOLDER_NAME = re.compile(r"[^A-Za-z0-9._-]+")


class Seen(NamedTuple):
    """A file as the agent sees it."""

    path: str
    task_id: str
    """Whose it is."""
    stored: str
    """Its path there."""
    bytes: int
    sha256: str


class _Source(NamedTuple):
    """Files of another task that are read here."""

    task_id: str
    stored: str
    """Beginning of their paths there."""
    shown: str
    """And here."""


class Gathered(NamedTuple):
    """What came back from a folder."""

    written: tuple[str, ...]
    left_out: tuple[str, ...]
    """Why something was not kept, a line each."""
    events: tuple[NewEvent, ...]


def normal(path: str, default: str = WORKSPACE) -> str:
    """Return a path in its one spelling, under `inbox/`, `outbox/` or `workspace/` (`default` where none is named).

    Raises InvalidRequest (`invalid_file_path`).
    """
    if len(path) > MAX_PATH:
        raise _bad(f"it is longer than {MAX_PATH} characters")
    if path.startswith("/"):
        raise _bad("it must not begin with /")
    path = unicodedata.normalize("NFC", path)
    names = [name for name in path.split("/") if name != "."]
    if not path.startswith(_TOPS):
        names.insert(0, default.rstrip("/"))
    if len(names) > MAX_SEGMENTS:
        raise _bad(f"it has more than {MAX_SEGMENTS} levels")
    for name in names:
        _check_name(name)
    if len(names) < 2:
        raise _bad("it names a folder")
    return "/".join(names)


def _is_normal(path: str) -> bool:
    try:
        return normal(path) == path
    except InvalidRequest:
        return False


def _check_name(name: str) -> None:
    """Raise unless a name is a plain one. Letters that only look like dots or slashes count as such."""
    if not name:
        raise _bad("it has an empty part")
    if any(unicodedata.category(letter) in _FORBIDDEN for letter in name):
        raise _bad("it has a character that cannot be seen")
    like = unicodedata.normalize("NFKC", name)
    if "\\" in like or "/" in like or not like.strip(". "):
        raise _bad("it must not leave its folder (.. or \\)")
    if name != name.strip():
        raise _bad("a name begins or ends with a blank")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise _bad(f"a name is longer than {MAX_NAME_BYTES} bytes")


def media_type(path: str) -> str:
    """Return what a file most likely is, by its name."""
    return mimetypes.guess_type(path, strict=True)[0] or "application/octet-stream"


class Workspace:
    """The files of one task. `most_files` and `most_bytes` bound the task's own."""

    def __init__(self, scope: TaskScope, task: Task, *, most_files: int, most_bytes: int) -> None:
        self._scope = scope
        self._task = task
        self._most_files = most_files
        self._most_bytes = most_bytes
        self._found: tuple[_Source, ...] | None = None

    async def read(self, path: str) -> tuple[str, bytes]:
        """Return a file's path in its one spelling, and its content. Raises InvalidRequest, NotFound, Unavailable."""
        # Clients name their files more freely than agents do: a path that is listed can be read as it is.
        path = path if path.isprintable() and path.startswith(INBOX) and len(path) <= 2 * MAX_PATH else normal(path)
        found = await self._scope.file(self._task.id, path)
        if found is None and path.startswith(INBOX):
            for source in await self._sources():
                if path.startswith(source.shown):
                    found = await self._scope.file(source.task_id, source.stored + path.removeprefix(source.shown))
                if found is not None:
                    break
        if found is None:
            raise NotFound(f"There is no file {path}.", code="file_not_found", param="path")
        return path, found[1]

    async def write(self, path: str, content: bytes) -> tuple[str, tuple[NewEvent, ...]]:
        """Keep a file; return its path and what is to be told of it. Doing it twice does it once.

        Raises InvalidRequest, TooLarge (`workspace_full`), Unavailable.
        """
        path = normal(path)
        if path.startswith(INBOX):
            raise _bad("inbox/ is only read; write to outbox/ or workspace/")
        file = NewFile(path, content, media_type(path))
        if not await self._scope.put(self._task, file, most_files=self._most_files, most_bytes=self._most_bytes):
            raise TooLarge(
                f"The files of this task would be more than {self._most_files} or {self._most_bytes} bytes together.",
                code="workspace_full",
            )
        return path, self._told(path, len(content))

    async def seen(self) -> list[Seen]:
        """Return every file that the agent can read, by path."""
        files: dict[str, Seen] = {}
        for file in await self._scope.files([self._task.id]):
            files[file.path] = Seen(file.path, file.task_id, file.path, file.bytes, file.sha256)
        for source in await self._sources():
            for file in await self._scope.files([source.task_id], source.stored):
                shown = source.shown + file.path.removeprefix(source.stored)
                files.setdefault(shown, Seen(shown, file.task_id, file.path, file.bytes, file.sha256))
        return [files[path] for path in sorted(files)]

    async def lay_out(self, folder: Path) -> Mapping[str, Seen]:
        """Write every file that the agent can read into an empty folder; return them by path. Raises TooLarge, OSError."""
        files = await self.seen()
        if len(files) > 4 * self._most_files or sum(file.bytes for file in files) > 4 * self._most_bytes:
            raise TooLarge("There are too many files for a command.", code="workspace_full")
        for top in _TOPS:
            (folder / top).mkdir()
        for seen in files:
            found = await self._scope.file(seen.task_id, seen.stored)
            if found is not None and _is_normal(seen.path):
                await asyncio.to_thread(_lay, folder / seen.path, found[1])
        return {file.path: file for file in files}

    async def gather(self, folder: Path, before: Mapping[str, Seen]) -> Gathered:
        """Keep what has changed in `workspace/` and `outbox/` since `lay_out`. What is gone stays; what is no plain file is left out."""
        written: list[str] = []
        left_out: list[str] = []
        events: list[NewEvent] = []
        kept = await self._scope.files([self._task.id])
        sizes = {file.path: file.bytes for file in kept}
        for found in await asyncio.to_thread(_plain_files, folder, 4 * self._most_files):
            try:
                path = normal(found)
            except InvalidRequest as error:
                left_out.append(f"{ascii(found)[:120]}: {error.message}")
                continue
            known = before.get(path)
            room = self._most_bytes - sum(sizes.values()) + sizes.get(path, 0)
            content = await asyncio.to_thread(_read_plain, folder, path, room)
            if content is None:
                left_out.append(f"{path}: it is too large, or no plain file")
            elif known is None or known.bytes != len(content) or await self._differs(known, content):
                try:
                    _, told = await self.write(path, content)
                except TooLarge as error:
                    left_out.append(f"{path}: {error.message}")
                    continue
                sizes[path] = len(content)
                written.append(path)
                events.extend(told)
        return Gathered(tuple(written), tuple(left_out), tuple(events))

    async def _differs(self, known: Seen, content: bytes) -> bool:
        found = await self._scope.file(known.task_id, known.stored)
        return found is None or found[1] != content

    def _told(self, path: str, size: int) -> tuple[NewEvent, ...]:
        """Return the event of a delivered file; others are nobody's business."""
        if not path.startswith(OUTBOX):
            return ()
        fields = {"message": f"Wrote {path}.", "details": {"path": path, "bytes": size}}
        return (NewEvent(type="artifact_created", task_id=self._task.id, fields=fields),)

    async def _sources(self) -> tuple[_Source, ...]:
        """Return whose files are read here: inputs of the tasks above, and what the tasks waited for delivered."""
        if self._found is None:
            sources = []
            above = self._task.parent_task_id
            for _ in range(MAX_DEPTH):
                parent = None if above is None else await self._scope.find(above)
                if parent is None:
                    break
                sources.append(_Source(parent.id, INBOX, INBOX))
                above = parent.parent_task_id
            for id in self._task.request.get("dependencies", ())[:MAX_DEPENDENCIES]:
                dependency = await self._scope.find(id)
                if dependency is not None and dependency.root_id == self._task.root_id:
                    name = _FOLDER_NAME.sub("-", dependency.name)[:60].strip(".-") or dependency.id
                    sources.append(_Source(dependency.id, OUTBOX, f"{INBOX}{name}/"))
            self._found = tuple(sources)
        return self._found


def _lay(at: Path, content: bytes) -> None:
    at.parent.mkdir(parents=True, exist_ok=True)
    at.write_bytes(content)


def _plain_files(folder: Path, most: int) -> list[str]:
    """Return the paths of at most `most` files in `workspace/` and `outbox/`, sorted, to the depth of a path; links are not followed."""
    found: list[str] = []
    left = [top for top in ("workspace", "outbox") if not (folder / top).is_symlink()]
    while left and len(found) < most:
        inside = left.pop()
        with contextlib.suppress(OSError), os.scandir(folder / inside) as entries:
            for entry in entries:
                path = f"{inside}/{entry.name}"
                if not entry.is_dir(follow_symlinks=False):
                    found.append(path)
                elif path.count("/") < MAX_SEGMENTS:
                    left.append(path)
    return sorted(found)[:most]


def _read_plain(folder: Path, path: str, most: int) -> bytes | None:
    """Return a file's content; None where it is no plain file or longer than `most`. No link on the way is followed."""
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        *parents, name = path.split("/")
        for parent in parents:
            inner = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = inner
        # Not blocking: opening a pipe without a writer would wait for ever.
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
        with os.fdopen(file, "rb") as content:
            held = os.fstat(file)
            if not stat.S_ISREG(held.st_mode) or held.st_size > most:
                return None
            return content.read(most + 1)[:most]
    except OSError:
        return None
    finally:
        os.close(at)


def _bad(reason: str) -> InvalidRequest:
    return InvalidRequest(f"This path cannot be used: {reason}.", code="invalid_file_path", param="path")


def described(file: Seen | File) -> str:
    """Return a file in a line."""
    return f"{file.path} ({file.bytes} bytes)"
