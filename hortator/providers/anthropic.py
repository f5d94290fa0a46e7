"""Adapter for providers that speak the messages dialect: Anthropic, and what imitates it.

Dispatch calls `send` with a call in that dialect (chat calls are translated before); the body goes out as it is but for the
model's name. The client's `anthropic-version` and `anthropic-beta` go with it where the client speaks the dialect itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from urllib.parse import urlsplit

import msgspec
from msgspec import Raw

from hortator import __version__
from hortator.call import Call, Deployment, ProviderId
from hortator.errors import UpstreamError
from hortator.providers.base import Reply
from hortator.providers.upstream import Origin, Timeouts, Upstream, header_lines, request_head
from hortator.settings import Secret
from hortator.wire.dialects import Dialect

VERSION = (b"anthropic-version", b"2023-06-01")
"""Sent where the client names no version: the only one there has been since."""

_PAGE = 1000
_encode = msgspec.json.encode


class ModelEntry(msgspec.Struct):
    """One entry of the provider's model list."""

    id: str


class ModelList(msgspec.Struct):
    """The provider's `GET /models`."""

    data: list[ModelEntry]


class AnthropicProvider:
    """One provider that speaks the messages dialect at `base_url` (which includes its `/v1`)."""

    dialects: frozenset[Dialect] = frozenset(("messages",))
    extensions = True

    def __init__(
        self,
        id: ProviderId,
        upstream: Upstream,
        base_url: str,
        timeouts: Timeouts,
        *,
        api_key: Secret | None = None,
        headers: Mapping[str, Secret] | None = None,
    ) -> None:
        self.id = id
        self._upstream = upstream
        self._timeouts = timeouts
        self._origin = Origin.of(base_url, id)
        values = [*([api_key] if api_key is not None else []), *(headers or {}).values()]
        self._secrets = tuple(secret.reveal() for secret in values if len(secret.reveal()) >= 4)
        pairs = [(b"user-agent", f"hortator/{__version__}".encode())]
        if api_key is not None:
            pairs.append((b"x-api-key", api_key.reveal().encode()))
        pairs += [(name.lower().encode(), value.reveal().encode()) for name, value in (headers or {}).items()]
        base = urlsplit(base_url).path.rstrip("/")
        posted = [(b"content-type", b"application/json"), *pairs]
        self._messages_head = request_head(self._origin, "POST", f"{base}/messages", posted)
        self._count_head = request_head(self._origin, "POST", f"{base}/messages/count_tokens", posted)
        self._models_head = request_head(self._origin, "GET", f"{base}/models?limit={_PAGE}", [*pairs, VERSION])

    @property
    def origin(self) -> Origin:
        """Where its server is."""
        return self._origin

    def send(self, call: Call, deployment: Deployment, deadline: float) -> Awaitable[Reply]:
        """Send a message. Raises UpstreamError when awaited; an error status is a reply."""
        return self._post(self._messages_head, call, deployment, deadline)

    def count_tokens(self, call: Call, deployment: Deployment, deadline: float) -> Awaitable[Reply]:
        """Ask how many tokens a message's request has. Raises UpstreamError when awaited."""
        return self._post(self._count_head, call, deployment, deadline)

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
        return tuple(entry.id for entry in models.data)

    def scrub(self, text: str) -> str:
        """Return `text` without this provider's secrets."""
        for secret in self._secrets:
            text = text.replace(secret, "[redacted]")
        return text

    async def close(self) -> None:
        """Nothing of its own to close: the upstream client is shared."""

    def _post(self, head: bytes, call: Call, deployment: Deployment, deadline: float) -> Awaitable[Reply]:
        body = call.body.copy()
        body["model"] = Raw(_encode(deployment.model))
        named = any(name == VERSION[0] for name, _ in call.forwarded)
        lines = header_lines(call.forwarded if named else (*call.forwarded, VERSION))
        return self._upstream.request(self._origin, head + lines, _encode(body), self._timeouts, deadline)
