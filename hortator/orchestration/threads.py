"""The default executor of the event loop, in two: threads for the engine, threads for everybody else.

The engine's library does its database work with `asyncio.to_thread` and makes its own pool the loop's default. While the database is down
its threads wait for it, for minutes; files, price lists and `/metrics` use the same call and must not wait with them. Put in place by
`engine.py`, and left there when the engine ends: the library's pool is closed then, ours is not.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

OTHERS = 32
"""Threads for everybody else, at most."""


class Threads(ThreadPoolExecutor):
    """What functions of one package do runs in `executor`, the rest in threads of this."""

    def __init__(self, executor: Executor, package: str) -> None:
        super().__init__(OTHERS, "to-thread")
        self.executor = executor
        self._prefix = package + "."

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn` where it belongs. `asyncio.to_thread` gives a partial of `Context.run` whose first argument is the function."""
        if self._module(fn).startswith(self._prefix):
            return self.executor.submit(fn, *args, **kwargs)
        return super().submit(fn, *args, **kwargs)

    def _module(self, fn: Any) -> str:
        while (inner := getattr(fn, "func", None)) is not None:
            fn = fn.args[0] if getattr(inner, "__name__", "") == "run" and fn.args else inner
        return getattr(fn, "__module__", None) or ""
