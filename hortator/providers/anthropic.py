"""Adapter for providers that speak the messages dialect: Anthropic, and what imitates it.

Dispatch calls `send` with a call in that dialect (chat calls are translated before); the body goes out as it is but for the
model's name. The client's `anthropic-version` and `anthropic-beta` go with it where the client speaks the dialect itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping

import msgspec
from msgspec import Raw

from hortator import __version__
from hortator.call import Call, Deployment, ProviderId
from hortator.providers.base import Reply
from hortator.providers.remote import Remote
from hortator.providers.upstream import Timeouts, Upstream, header_lines, request_head
from hortator.settings import Secret
from hortator.wire.dialects import Dialect

VERSION = (b"anthropic-version", b"2023-06-01")
"""Sent where the client names no version: the only one there has been since."""

_PAGE = 1000
_encode = msgspec.json.encode


class AnthropicProvider(Remote):
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
        hidden = [*([api_key] if api_key is not None else []), *(headers or {}).values()]
        super().__init__(id, upstream, base_url, timeouts, hidden)
        pairs = [(b"user-agent", f"hortator/{__version__}".encode())]
        if api_key is not None:
            pairs.append((b"x-api-key", api_key.reveal().encode()))
        pairs += [(name.lower().encode(), value.reveal().encode()) for name, value in (headers or {}).items()]
        posted = [(b"content-type", b"application/json"), *pairs]
        self._messages_head = request_head(self._origin, "POST", f"{self._base}/messages", posted)
        self._count_head = request_head(self._origin, "POST", f"{self._base}/messages/count_tokens", posted)
        self._models_head = request_head(self._origin, "GET", f"{self._base}/models?limit={_PAGE}", [*pairs, VERSION])

    def send(self, call: Call, deployment: Deployment, deadline: float) -> Awaitable[Reply]:
        """Send a message. Raises UpstreamError when awaited; an error status is a reply."""
        return self._post(self._messages_head, call, deployment, deadline)

    def count_tokens(self, call: Call, deployment: Deployment, deadline: float) -> Awaitable[Reply]:
        """Ask how many tokens a message's request has. Raises UpstreamError when awaited."""
        return self._post(self._count_head, call, deployment, deadline)

    def _post(self, head: bytes, call: Call, deployment: Deployment, deadline: float) -> Awaitable[Reply]:
        body = call.body.copy()
        body["model"] = Raw(_encode(deployment.model))
        named = any(name == VERSION[0] for name, _ in call.forwarded)
        lines = header_lines(call.forwarded if named else (*call.forwarded, VERSION))
        if call.tracing is not None:
            lines += call.tracing.header(deployment.id)
        return self._upstream.request(self._origin, head + lines, _encode(body), self._timeouts, deadline)
