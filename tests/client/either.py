"""Both clients for one test: the asynchronous one is driven from a loop of its own, so that it looks like the other.

Everything a coroutine function returns is awaited, every asynchronous iterator is read one item at a time.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any

from hortator.client import AsyncHortatorClient, AsyncTask, HortatorClient


class Either:
    """An object of the asynchronous client, driven."""

    def __init__(self, loop: asyncio.AbstractEventLoop, held: Any) -> None:
        self._loop = loop
        self._held = held

    def __getattr__(self, name: str) -> Any:
        return self._shown(getattr(self._held, name))

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._shown(self._held(*arguments, **options))

    def __iter__(self) -> Iterator[Any]:
        iterator = aiter(self._held)
        try:
            while True:
                try:
                    yield self._shown(self._loop.run_until_complete(_next(iterator)))
                except StopAsyncIteration:
                    return
        finally:
            if inspect.isasyncgen(iterator):
                self._loop.run_until_complete(iterator.aclose())

    def _shown(self, value: Any) -> Any:
        if inspect.iscoroutine(value):
            value = self._loop.run_until_complete(value)
        if isinstance(value, list):
            return [self._shown(each) for each in value]
        driven = callable(value) or isinstance(value, AsyncTask) or type(value).__module__.endswith("async_client")
        driven = driven or hasattr(value, "__aiter__") or type(value).__module__.endswith("async_tasks")
        return Either(self._loop, value) if driven and not isinstance(value, type) else value


async def _next(iterator: AsyncIterator[Any]) -> Any:
    return await anext(iterator)


def blocking(loop: asyncio.AbstractEventLoop, *arguments: Any, **options: Any) -> Any:
    """Make an asynchronous client that can be used like the other."""
    return Either(loop, AsyncHortatorClient(*arguments, **options))


def client_of(kind: str, loop: asyncio.AbstractEventLoop, *arguments: Any, **options: Any) -> Any:
    """Make the client of a kind, `threads` or `asyncio`."""
    return HortatorClient(*arguments, **options) if kind == "threads" else blocking(loop, *arguments, **options)
