"""Watches the configuration while the server runs: reads it again when a file of it changes or on SIGHUP.

`app.py` runs it beside the requests and says how a configuration is read and put into force. A document that is refused changes
nothing: the old one stays, and `/ready`, the metrics and the log say so. It never looks into a configuration itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from hortator.errors import ConfigError
from hortator.settings import Settings

log = logging.getLogger("hortator.reload")

MAX_ERROR = 2_000
"""Characters of an error that are shown."""
MAX_FILE_BYTES = 1 << 24
IDLE_SECONDS = 3600.0
"""How long a turn lasts when no files are watched."""

Read = Callable[[], Settings]
Apply = Callable[[Settings], Awaitable[tuple[str, ...]]]
"""Puts settings into force; returns the names of those that need a restart. Raises ConfigError, having changed nothing."""
Look = tuple[bytes, ...]
"""What the files held, as digests."""


class Reload:
    """The configuration's history in this process."""

    def __init__(self, settings: Settings, read: Read, apply: Apply) -> None:
        """`settings` are those in force; `read` is called in a thread."""
        self._settings = settings
        self._read = read
        self._apply = apply
        self._asked = asyncio.Event()
        self.generation = 1
        """Rises by one with every configuration that takes effect."""
        self.loaded_at = time.time()
        """When the one in force was read, Unix seconds."""
        self.error: str | None = None
        """Why the last one was refused; None = it was not."""
        self.needs_restart: tuple[str, ...] = ()
        """Settings that differ from the file's until a restart."""

    def ask(self) -> None:
        """Read everything again as soon as possible: SIGHUP."""
        self._asked.set()

    @property
    def report(self) -> dict[str, Any]:
        """What `/ready` shows."""
        return {
            "generation": self.generation,
            "loaded_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.loaded_at)),
            "source": None if self._settings.source is None else self._settings.source.name,
            "error": self.error,
            "needs_restart": list(self.needs_restart),
        }

    async def run(self) -> None:
        """Watch, for ever."""
        taken = seen = await self._look()
        while True:
            pause = self._settings.reload.watch_seconds
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause or IDLE_SECONDS):
                    await self._asked.wait()
            asked = self._asked.is_set()
            self._asked.clear()
            found = await self._look()
            # A file that still changes is not read: it may be half written.
            if asked or (pause and found == seen != taken):
                taken = found
                await self._once()
            seen = found

    async def _once(self) -> None:
        """Read the configuration and put it into force, or say why not."""
        try:
            wanted = await asyncio.to_thread(self._read)
            waiting = await self._apply(wanted)
        except ConfigError as error:
            self.error = self._shown(error.message)
            log.error("the new configuration is refused, the old one stays: %s", self.error)
            return
        except Exception as error:  # the outermost edge of a background task
            self.error = f"internal error: {type(error).__name__}"
            log.exception("the new configuration is refused, the old one stays")
            return
        self._settings, self.needs_restart, self.error = wanted, waiting, None
        self.generation += 1
        self.loaded_at = time.time()
        log.info("a new configuration is in force, generation %d", self.generation)
        for name in waiting:
            log.warning("needs a restart: %s", name)

    async def _look(self) -> Look:
        chosen = self._settings
        data = chosen.ledger.price_overrides, chosen.routing.complexity_data
        files = (chosen.source, chosen.env_file, *data)
        return await asyncio.to_thread(_digests, [path for path in files if path is not None])

    def _shown(self, text: str) -> str:
        """An error without the folders of this machine. Values never are part of one."""
        if self._settings.source is not None:
            text = text.replace(f"{self._settings.source.absolute().parent}/", "")
            text = text.replace(str(self._settings.source), self._settings.source.name)
        return text[:MAX_ERROR]


def _digests(files: list[Path]) -> Look:
    """Read the files: they are small, and times and sizes can stay the same. One that is not there counts as empty."""
    found = []
    for path in files:
        content = b""
        with contextlib.suppress(OSError), path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES)
        found.append(blake2b(content, digest_size=16).digest())
    return tuple(found)
