"""Durable engines for tests, on either database, and steps that count themselves."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from hortator.orchestration.engine import DurableEngine, Role
from hortator.orchestration.ports import Handler
from hortator.store import Database


def made(database: Database, folder: Path, role: Role = "alone", slots: int = 8) -> DurableEngine:
    """An engine on the kind of database that the test is about."""
    if database.is_sqlite:
        return DurableEngine(file=folder / "home" / "engine.db")
    url = database.url.render_as_string(hide_password=False)
    return DurableEngine(url=url, database=database, role=role, slots=slots)


@contextlib.asynccontextmanager
async def running(engine: DurableEngine, handlers: dict[str, Handler]) -> AsyncIterator[DurableEngine]:
    await engine.start(handlers)
    try:
        yield engine
    finally:
        await engine.stop()


def counted(acts: list[str], name: str, result: Any = None) -> Callable[[], Awaitable[Any]]:
    async def act() -> Any:
        acts.append(name)
        return result

    return act
