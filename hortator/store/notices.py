"""Words between processes that share a Postgres database: LISTEN and NOTIFY on a connection of their own.

The hub (`orchestration/events.py`) sends and hears. A word may get lost while the connection is down, so nothing may depend on one: `again`
tells that some may have been missed. Needs a real session: a pooler that hands out connections by transaction swallows them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from asyncpg import InterfaceError, InternalClientError, PostgresError  # type: ignore[import-untyped]
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from hortator.store.database import Database

log = logging.getLogger("hortator.store")

CHANNEL = "hortator_tasks"
LONGEST = 7_000
"""Bytes of a payload; Postgres takes less than 8,000."""
_PATIENCE = 5.0
_BEAT = 10.0
_BROKEN = (PostgresError, InterfaceError, InternalClientError, OSError, TimeoutError)
"""What the driver raises on a connection that is of no use any more."""
_PAUSES = (0.1, 0.3, 1.0, 3.0)


class Notices:
    """One per process, on Postgres only."""

    def __init__(self, database: Database, channel: str = CHANNEL) -> None:
        self._engine = create_async_engine(
            database.url,
            poolclass=NullPool,
            hide_parameters=True,
            connect_args={"timeout": _PATIENCE, "server_settings": {"application_name": "hortator notices"}},
        )
        self._channel = channel
        self._driver: Any = None
        self._gone = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._listening = asyncio.Event()
        self._sending = asyncio.Lock()

    @property
    def connected(self) -> bool:
        """Whether words come and go."""
        return self._listening.is_set()

    async def start(self, heard: Callable[[str], None], again: Callable[[], None]) -> None:
        """Listen from now on: `heard` gets each payload, `again` is called whenever listening begins. Neither may raise."""
        self._task = asyncio.create_task(self._keep(heard, again), name="notices")

    async def ready(self) -> None:
        """Return once words come and go."""
        await self._listening.wait()

    async def stop(self) -> None:
        """Hear nothing more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await self._engine.dispose()

    async def send(self, payloads: Sequence[str]) -> bool:
        """Say words of at most `LONGEST` bytes to all who listen; False when they did not all go out."""
        async with self._sending:
            driver = self._driver
            if driver is None:
                return False
            try:
                async with asyncio.timeout(_PATIENCE):
                    await driver.executemany("SELECT pg_notify($1, $2)", [(self._channel, each) for each in payloads])
            except _BROKEN:
                self._lost()
                return False
        return True

    def _lost(self) -> None:
        """Have the connection made anew."""
        self._driver = None
        self._gone.set()

    async def _keep(self, heard: Callable[[str], None], again: Callable[[], None]) -> None:
        """Connect, listen until the connection dies, connect again."""
        failures = 0
        while True:
            try:
                await self._listen(heard, again)
                failures = 0
            except (SQLAlchemyError, *_BROKEN) as error:
                if not failures:
                    log.warning("cannot listen to other processes: %s", type(error).__name__)
                failures += 1
            await asyncio.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])

    async def _listen(self, heard: Callable[[str], None], again: Callable[[], None]) -> None:
        """Return when the connection is lost. Raises what connecting raises."""
        async with asyncio.timeout(2 * _PATIENCE):
            raw = await self._engine.raw_connection()
        driver: Any = raw.driver_connection
        self._gone = over = asyncio.Event()
        try:
            driver.add_termination_listener(lambda _: over.set())
            async with asyncio.timeout(_PATIENCE):
                await driver.add_listener(self._channel, lambda _c, _p, _n, payload: heard(payload))
            self._driver = driver
            self._listening.set()
            again()
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_BEAT):
                        await over.wait()
                if not over.is_set():
                    await self._beat()
        finally:
            self._driver = None
            self._listening.clear()
            driver.terminate()
            raw.invalidate()

    async def _beat(self) -> None:
        """A connection whose other side has gone says so only when it is asked."""
        async with self._sending:
            if self._driver is None:
                return
            try:
                async with asyncio.timeout(_PATIENCE):
                    await self._driver.execute("SELECT 1")
            except _BROKEN:
                self._lost()
