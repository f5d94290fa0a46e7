"""Adapter for providers that speak the OpenAI dialect: OpenAI, Groq, Workers AI, Ollama, vLLM, any local service.

All of them are configurations of this one class. Dispatch calls `send`; the body goes out as the client wrote it, but for the
model's name and, in streams, the request for usage, which the gateway always needs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping

import msgspec
from msgspec import Raw

from hortator import __version__
from hortator.call import Call, Deployment, ProviderId
from hortator.providers.base import Reply
from hortator.providers.remote import MAX_MODELS, Remote
from hortator.providers.upstream import Timeouts, Upstream, request_head
from hortator.settings import Secret
from hortator.wire.dialects import Dialect

_INCLUDE_USAGE = Raw(b'{"include_usage":true}')
_PATHS: dict[Dialect, str] = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "embeddings": "/embeddings",
    "moderations": "/moderations",
    "responses": "/responses",
}
SPOKEN: frozenset[Dialect] = frozenset(_PATHS) - {"responses"}
"""What every provider of this kind is asked in; few serve responses themselves."""
_KEPT_HERE = ("previous_response_id", "background")
"""Fields of a response that are the gateway's own work: their provider does not know what they speak of."""
_STREAM_OPTIONS = frozenset(("chat", "completions"))
"""Dialects whose streams say their usage only when asked to."""
_encode = msgspec.json.encode


class OpenAIProvider(Remote):
    """One provider that speaks the OpenAI dialect at `base_url` (which includes its `/v1`)."""

    def __init__(
        self,
        id: ProviderId,
        upstream: Upstream,
        base_url: str,
        timeouts: Timeouts,
        *,
        api_key: Secret | None = None,
        headers: Mapping[str, str | Secret] | None = None,
        dialects: frozenset[Dialect] = SPOKEN,
        extensions: bool = False,
    ) -> None:
        hidden = [value for value in (api_key, *(headers or {}).values()) if isinstance(value, Secret)]
        super().__init__(id, upstream, base_url, timeouts, hidden)
        self.extensions = extensions
        self.dialects = dialects
        pairs = [(b"content-type", b"application/json"), (b"user-agent", f"hortator/{__version__}".encode())]
        if api_key is not None:
            pairs.append((b"authorization", b"Bearer " + api_key.reveal().encode()))
        for name, value in (headers or {}).items():
            pairs.append((name.lower().encode(), (value.reveal() if isinstance(value, Secret) else value).encode()))
        self._heads = {name: self._head(path, pairs) for name, path in _PATHS.items()}
        self._models_head = request_head(self._origin, "GET", f"{self._base}/models", pairs[1:])
        self._names: dict[str, Raw] = {}

    def send(self, call: Call, deployment: Deployment, deadline: float) -> Awaitable[Reply]:
        """Send a call. Raises UpstreamError when awaited; an error status is a reply."""
        body = call.body.copy()
        name = self._names.get(deployment.model)
        if name is None:
            name = self._name(deployment.model)
        body["model"] = name
        if call.operation == "responses":
            for field in _KEPT_HERE:
                body.pop(field, None)
        if call.stream and not call.wants_usage and call.operation in _STREAM_OPTIONS:
            options = body.get("stream_options")
            body["stream_options"] = _INCLUDE_USAGE if options is None else _with_usage(options)
        head = self._heads[call.operation]
        if call.tracing is not None:
            head += call.tracing.header(deployment.id)
        return self._upstream.request(self._origin, head, _encode(body), self._timeouts, deadline)

    def _head(self, path: str, pairs: list[tuple[bytes, bytes]]) -> bytes:
        return request_head(self._origin, "POST", self._base + path, pairs)

    def _name(self, model: str) -> Raw:
        """Return a model's name as JSON; the cache is bounded by forgetting everything, since names are few."""
        if len(self._names) >= MAX_MODELS:
            self._names.clear()
        name = self._names[model] = Raw(_encode(model))
        return name


def _with_usage(options: Raw) -> Raw:
    """Return the client's stream options with `include_usage` on."""
    decoded = msgspec.json.decode(options) or {}
    return Raw(_encode(decoded | {"include_usage": True}))
