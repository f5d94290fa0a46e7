"""Contents of files: a folder on this machine, and the interface that a bucket has too (`bucket.py`).

Called by `batches/`, which makes the names; no name comes from a client. Contents are written and read piece by piece and never
whole. A content is there completely or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Protocol

from hortator.errors import NotFound, Unavailable

PIECE_BYTES = 1 << 16
"""Bytes read at once: to check a piece of a batch's file holds up the event loop for a millisecond or so."""


class Blobs(Protocol):
    """Where contents are kept. Everything raises Unavailable (`files_unavailable`) when it does not answer."""

    async def put(self, name: str, pieces: AsyncIterator[bytes]) -> None:
        """Write a content; when `pieces` raises, nothing is left of it."""
        ...

    def read(self, name: str) -> AsyncIterator[bytes]:
        """Return the pieces of a content. Raises NotFound (`file_not_found`) where there is none."""
        ...

    async def remove(self, name: str) -> None:
        """Delete a content; nothing happens where there is none."""
        ...


def unavailable() -> Unavailable:
    """Return the error of a storage that does not do what it must."""
    return Unavailable("The files cannot be reached now; try again.", code="files_unavailable", retry_after=2)


def gone() -> NotFound:
    """Return the error of a content that should be there."""
    return NotFound("The file's content is gone.", code="file_not_found")


class Folder:
    """Contents as files of one folder, readable by their owner only. File operations run in threads."""

    def __init__(self, path: Path) -> None:
        """The folder is made when the first content comes."""
        self._path = path

    async def put(self, name: str, pieces: AsyncIterator[bytes]) -> None:
        """Write beside the final name, then give the name: a crash leaves no half content under it."""
        part = self._path / f"{name}.part"
        try:
            file = await asyncio.to_thread(self._open, part)
            try:
                async for piece in pieces:
                    await asyncio.to_thread(file.write, piece)
                await asyncio.to_thread(_settle, file)
            finally:
                file.close()
            await asyncio.to_thread(os.replace, part, self._path / name)
        except BaseException as error:
            with contextlib.suppress(OSError):
                part.unlink()
            if isinstance(error, OSError):
                raise unavailable() from None
            raise

    def _open(self, path: Path) -> IO[bytes]:
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb")

    async def read(self, name: str) -> AsyncIterator[bytes]:
        """Give the content's pieces."""
        try:
            file = await asyncio.to_thread((self._path / name).open, "rb")
            try:
                while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
                    yield piece
            finally:
                file.close()
        except FileNotFoundError:
            raise gone() from None
        except OSError:
            raise unavailable() from None

    async def remove(self, name: str) -> None:
        """Delete the content, also one that was never finished."""
        for path in (self._path / name, self._path / f"{name}.part"):
            try:
                await asyncio.to_thread(path.unlink, missing_ok=True)
            except OSError:
                raise unavailable() from None


def _settle(file: IO[bytes]) -> None:
    """Make sure of what was written."""
    file.flush()
    os.fsync(file.fileno())
