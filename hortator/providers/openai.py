"""Adapter for providers that speak the OpenAI dialect: OpenAI, Groq, Workers AI, Ollama, vLLM, any local service.

All of them are configurations of this one class. Dispatch calls `send`; the body goes out as the client wrote it, but for the
model's name and, in streams, the request for usage, which the gateway always needs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping
from urllib.parse import urlsplit

import msgspec
from msgspec import Raw

from hortator import __version__
from hortator.call import Call, Deployment, ProviderId
from hortator.errors import UpstreamError
from hortator.providers.base import Reply
from hortator.providers.upstream import Origin, Timeouts, Upstream, request_head
from hortator.settings import Secret
from hortator.wire.dialects import Dialect

_INCLUDE_USAGE = Raw(b'{"include_usage":true}')
_MAX_MODELS = 10_000
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


class ModelEntry(msgspec.Struct):
    """One entry of a provider's model list."""

    id: str


class ModelList(msgspec.Struct):
    """A provider's `GET /models`."""

    data: list[ModelEntry]


class OpenAIProvider:
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
        self.id = id
        self.extensions = extensions
        self.dialects = dialects
        self._upstream = upstream
        self._timeouts = timeouts
        self._origin = Origin.of(base_url, id)
        self._secrets = tuple(_secrets(api_key, headers or {}))
        pairs = [(b"content-type", b"application/json"), (b"user-agent", f"hortator/{__version__}".encode())]
        if api_key is not None:
            pairs.append((b"authorization", b"Bearer " + api_key.reveal().encode()))
        for name, value in (headers or {}).items():
            pairs.append((name.lower().encode(), (value.reveal() if isinstance(value, Secret) else value).encode()))
        base = urlsplit(base_url).path.rstrip("/")
        self._heads = {name: request_head(self._origin, "POST", base + path, pairs) for name, path in _PATHS.items()}
        self._models_head = request_head(self._origin, "GET", f"{base}/models", pairs[1:])
        self._names: dict[str, Raw] = {}

    @property
    def origin(self) -> Origin:
        """Where its server is."""
        return self._origin

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
        return tuple(entry.id for entry in models.data[:_MAX_MODELS])

    def scrub(self, text: str) -> str:
        """Return `text` without this provider's secrets."""
        for secret in self._secrets:
            text = text.replace(secret, "[redacted]")
        return text

    async def close(self) -> None:
        """Nothing of its own to close: the upstream client is shared."""

    def _name(self, model: str) -> Raw:
        """Return a model's name as JSON; the cache is bounded by forgetting everything, since names are few."""
        if len(self._names) >= _MAX_MODELS:
            self._names.clear()
        name = self._names[model] = Raw(_encode(model))
        return name


def _with_usage(options: Raw) -> Raw:
    """Return the client's stream options with `include_usage` on."""
    decoded = msgspec.json.decode(options) or {}
    return Raw(_encode(decoded | {"include_usage": True}))


def _secrets(api_key: Secret | None, headers: Mapping[str, str | Secret]) -> Iterable[str]:
    """Yield what must never be seen outside: keys, and the token inside a `Bearer` header."""
    values = [value for value in (api_key, *headers.values()) if isinstance(value, Secret)]
    for value in values:
        text = value.reveal()
        if len(text) >= 4:
            yield text
            scheme, _, token = text.partition(" ")
            if len(token) >= 4 and scheme.isalpha():
                yield token
