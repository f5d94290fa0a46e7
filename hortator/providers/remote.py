"""What the adapters of providers at an address have in common: their secrets, and the question which models they serve.

`openai.py` and `anthropic.py` are made of this; each says its own dialect's requests. It knows no dialect and sends no call.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

import msgspec

from hortator.call import ProviderId
from hortator.errors import UpstreamError
from hortator.providers.upstream import Origin, Timeouts, Upstream
from hortator.settings import Secret

MAX_MODELS = 10_000
"""Of a longer list the rest is left out."""


class ModelEntry(msgspec.Struct):
    """One entry of a provider's model list."""

    id: str


class ModelList(msgspec.Struct):
    """A provider's `GET /models`."""

    data: list[ModelEntry]


class Remote:
    """One provider at `base_url`; the adapter makes `_models_head`."""

    _models_head: bytes

    def __init__(
        self, id: ProviderId, upstream: Upstream, base_url: str, timeouts: Timeouts, secrets: Iterable[Secret]
    ) -> None:
        self.id = id
        self._upstream = upstream
        self._timeouts = timeouts
        self._origin = Origin.of(base_url, id)
        self._base = urlsplit(base_url).path.rstrip("/")
        self._secrets = tuple(text for secret in secrets for text in _hidden(secret.reveal()))

    @property
    def origin(self) -> Origin:
        """Where its server is."""
        return self._origin

    async def list_models(self, deadline: float) -> tuple[str, ...] | None:
        """Return the names of the models the provider lists, None when it lists none. Raises UpstreamError."""
        reply = await self._upstream.request(self._origin, self._models_head, b"", self._timeouts, deadline)
        try:
            body = await reply.read()
        finally:
            reply.close()
        if reply.status in (401, 403):
            raise UpstreamError("The provider refused the configured credentials.", code="upstream_auth_failed")
        if reply.status >= 500:
            raise UpstreamError(f"The provider answered with status {reply.status}.")
        try:
            models = msgspec.json.decode(body, type=ModelList)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return tuple(entry.id for entry in models.data[:MAX_MODELS])

    def scrub(self, text: str) -> str:
        """Return `text` without this provider's secrets."""
        for secret in self._secrets:
            text = text.replace(secret, "[redacted]")
        return text

    async def close(self) -> None:
        """Nothing of its own to close: the upstream client is shared."""


def _hidden(text: str) -> Iterable[str]:
    """Yield what of a secret must never be seen outside: itself, and the token inside a `Bearer` header."""
    if len(text) >= 4:
        yield text
        scheme, _, token = text.partition(" ")
        if len(token) >= 4 and scheme.isalpha():
            yield token
