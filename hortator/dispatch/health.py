"""Asks every provider for its models now and then: is it there, are its credentials good, what does it serve?

`app.py` runs it beside the corridor; `/ready` shows what it found and the catalogue is rebuilt when a model list changes.
It never stands in a request's way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, Protocol

from hortator.call import ProviderId
from hortator.errors import UpstreamError

CHECK_SECONDS = 30.0
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


class Health:
    """The state of all providers. `changed` is called after a round in which a model list or an optional provider changed.

    Optional providers are those that count only while they answer, such as an Ollama that may or may not run.
    """

    def __init__(
        self, providers: Mapping[ProviderId, Listing], optional: frozenset[ProviderId], changed: Callable[[], None]
    ) -> None:
        self._providers = providers
        self._optional = optional
        self._changed = changed
        self.states: dict[ProviderId, ProviderHealth] = {key: ProviderHealth() for key in providers}

    @property
    def shown(self) -> dict[ProviderId, ProviderHealth]:
        """The states without those of optional providers that do not answer."""
        return {key: state for key, state in self.states.items() if key not in self._optional or state.state == "up"}

    @property
    def served(self) -> dict[ProviderId, tuple[str, ...]]:
        """What each provider listed; optional ones that do not answer are left out."""
        return {key: state.models for key, state in self.shown.items()}

    async def run(self) -> None:
        """Look at all providers, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(CHECK_SECONDS)

    async def look(self) -> None:
        """Look at all providers once."""
        before = self.served
        await asyncio.gather(*(self._ask(key, provider) for key, provider in self._providers.items()))
        if self.served != before:
            self._changed()

    async def _ask(self, key: ProviderId, provider: Listing) -> None:
        known = self.states[key].models
        try:
            models = await provider.list_models(asyncio.get_running_loop().time() + DEADLINE_SECONDS)
        except UpstreamError as error:
            self.states[key] = ProviderHealth("down", error.code, known)
        else:
            self.states[key] = ProviderHealth("up", None, known if models is None else models)
