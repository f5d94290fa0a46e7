"""Warm capacity for agents: connections to where their models are, opened before the first agent asks (R-000-41).

The composition of orchestration tells it of every order; it then keeps a few connections idle at the providers that routing would
choose for each tier, for as long as orders come. It sends nothing over them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from time import monotonic

from hortator.providers.upstream import Origin, Upstream

log = logging.getLogger("hortator.warm")

STANDBY_SECONDS = 600.0
"""How long after the last order connections are kept ready."""
LOOK_SECONDS = 3.0
"""Below the time after which the pool closes an idle connection."""
CONNECT_SECONDS = 5.0


class Warm:
    """One per process."""

    def __init__(self, upstream: Upstream, origins: Callable[[], Iterable[Origin]], count: int) -> None:
        """`origins`: where agents' models are now. `count`: idle connections at each; 0 = none are opened ahead."""
        self._upstream = upstream
        self._origins = origins
        self._count = count
        self._until = 0.0
        self._task: asyncio.Task[None] | None = None

    def ordered(self) -> None:
        """An order came: have connections ready from now on."""
        if not self._count:
            return
        self._until = monotonic() + STANDBY_SECONDS
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._keep(), name="warm")

    async def close(self) -> None:
        """Open no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep(self) -> None:
        while monotonic() < self._until:
            for origin in tuple(self._origins()):
                try:
                    await self._upstream.warm(origin, self._count, CONNECT_SECONDS)
                except Exception as error:  # noqa: BLE001 - the outermost edge of a background task
                    log.warning("no connection ahead of its need: %s", type(error).__name__)
            await asyncio.sleep(LOOK_SECONDS)
