"""Asks every provider for its models now and then: is it there, are its credentials good, what does it serve?

`app.py` runs it beside the corridor; `/ready` shows what it found, the catalogue is rebuilt when a model list changes, and the
balance asks the deployments of a provider that is down after all others. It never stands in a request's way.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import Literal, NamedTuple, Protocol

from hortator.call import ProviderId
from hortator.errors import UpstreamError

CHECK_SECONDS = 30.0
DOWN_SECONDS = 2.0
"""So often one that cannot be connected to, or has just failed a request, is looked at."""
_AWAY = frozenset({"upstream_connect_failed", "upstream_connect_timeout"})
DEADLINE_SECONDS = 5.0


class Listing(Protocol):
    """A provider that can be asked for its models."""

    async def list_models(self, deadline: float) -> tuple[str, ...] | None:
        """Return the models it lists, None when it lists none. Raises UpstreamError."""
        ...


class ProviderHealth(NamedTuple):
    """What the last look at a provider found."""

    state: Literal["unknown", "up", "down"] = "unknown"
    code: str | None = None
    """Why it is down: an error code."""
    models: tuple[str, ...] = ()
    """What it listed when it last answered."""
    latency_ms: float | None = None
    """How long its last answer took; None when it gave none."""


class Health:
    """The state of all providers. `changed` is called after a round in which a model list or an optional provider changed.

    Optional providers are those that count only while they answer, such as an Ollama that may or may not run.
    """

    def __init__(
        self,
        providers: Mapping[ProviderId, Listing],
        optional: frozenset[ProviderId],
        changed: Callable[[], None],
        known: Mapping[ProviderId, ProviderHealth] | None = None,
    ) -> None:
        """`known`: what an earlier look found at providers that are still the same."""
        self._providers = providers
        self._optional = optional
        self._changed = changed
        self.found: Callable[[ProviderId, bool], None] | None = None
        """Called after each look at a provider, with whether it is up. Set before `run`, by whoever wants to know."""
        self._suspects: set[ProviderId] = set()
        self._suspected = asyncio.Event()
        self.states: dict[ProviderId, ProviderHealth] = {
            key: (known or {}).get(key, ProviderHealth()) for key in providers
        }

    @property
    def shown(self) -> dict[ProviderId, ProviderHealth]:
        """The states without those of optional providers that do not answer."""
        return {key: state for key, state in self.states.items() if key not in self._optional or state.state == "up"}

    @property
    def served(self) -> dict[ProviderId, tuple[str, ...]]:
        """What each provider listed; optional ones that do not answer are left out."""
        return {key: state.models for key, state in self.shown.items()}

    def suspect(self, provider: ProviderId) -> None:
        """A request to `provider` has failed: look at it soon."""
        if provider in self._providers and provider not in self._suspects:
            self._suspects.add(provider)
            self._suspected.set()

    async def run(self) -> None:
        """Look at all providers, for ever; at those in trouble as soon as they are, and then every two seconds."""
        while True:
            await self.look()
            until = monotonic() + CHECK_SECONDS
            while (left := until - monotonic()) > 0:
                await asyncio.sleep(min(left, DOWN_SECONDS))
                if not self._troubled():
                    await self._suspicion(until)
                if monotonic() < until:
                    await self.look(self._troubled())

    async def _suspicion(self, until: float) -> None:
        """Wait for the next suspect, until that moment at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(until - monotonic()):
                await self._suspected.wait()

    def _troubled(self) -> set[ProviderId]:
        """Return the suspects, and those that cannot be connected to unless they are optional.

        One that answers with an error is looked at as seldom as one that is up: a provider with a wrong key is not to be pestered.
        """
        down = {key for key, state in self.states.items() if state.code in _AWAY and key not in self._optional}
        return down | self._suspects

    async def look(self, keys: Iterable[ProviderId] | None = None) -> None:
        """Look once at all providers, or at some."""
        before = self.served
        chosen = list(self._providers if keys is None else keys)
        self._suspects.difference_update(chosen)
        self._suspected.clear()
        await asyncio.gather(*(self._ask(key, self._providers[key]) for key in chosen))
        if self.served != before:
            self._changed()

    async def _ask(self, key: ProviderId, provider: Listing) -> None:
        known = self.states[key].models
        begun = monotonic()
        try:
            models = await provider.list_models(asyncio.get_running_loop().time() + DEADLINE_SECONDS)
        except UpstreamError as error:
            self.states[key] = ProviderHealth("down", error.code, known)
        else:
            took = (monotonic() - begun) * 1000
            self.states[key] = ProviderHealth("up", None, known if models is None else models, round(took, 1))
        if self.found is not None:
            self.found(key, self.states[key].state == "up")
