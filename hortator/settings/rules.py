"""What the fields of the document have to do with each other and with the world: addresses, references, ids, files.

`load` asks once, after `build`; every violation is noted with the place it was written at. Files are looked at, never opened,
and nothing is connected to.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from hortator.settings.build import Builder, closest
from hortator.settings.document import Document, NamedModel, Provider
from hortator.settings.tree import Node, Problems

LOCAL = "local"
"""Id of the embedded model's provider."""

_PROVIDER_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MODEL_ID = re.compile(r"[^\s\x00-\x1f\x7f]+")
_TASK_TYPE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]+")
_KEY = re.compile(r"[\x21-\x7e]+")
_ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_OURS = frozenset(
    {"host", "content-length", "content-type", "transfer-encoding", "connection", "te", "upgrade", "expect"}
)
_DATABASES = ("postgresql", "postgres", "postgresql+asyncpg", "sqlite", "sqlite+aiosqlite")


class Rules:
    """One look at a document."""

    def __init__(self, document: Document, root: Node, builder: Builder, problems: Problems) -> None:
        self._document = document
        self._root = root
        self._place = builder.place
        self._problems = problems

    def check(self) -> None:
        """Note every violation."""
        self._server()
        self._admin()
        self._single("store", "url", self._store_problem())
        redis = self._document.redis.url
        if redis is not None and not redis.reveal().startswith(("redis://", "rediss://", "unix://")):
            self._single("redis", "url", "expected redis://:password@host:6379/0")
        proxy = self._document.upstream.proxy_url
        if proxy is not None:
            self._single("upstream", "proxy_url", url_problem(proxy.reveal(), credentials=True))
        bucket = self._document.files.s3
        if bucket.endpoint is not None and (problem := url_problem(bucket.endpoint)) is not None:
            self._note(bucket, "endpoint", problem)
        if (bucket.access_key_id is None) != (bucket.secret_access_key is None):
            self._note(bucket, "access_key_id", "needs `secret_access_key`, and the reverse")
        if self._document.tracing.endpoint is not None:
            self._single("tracing", "endpoint", url_problem(self._document.tracing.endpoint))
        self._file("upstream", "ca_file", self._document.upstream.ca_file)
        self._file("ledger", "price_overrides", self._document.ledger.price_overrides)
        self._file("routing", "complexity_data", self._document.routing.complexity_data)
        for provider in self._document.providers:
            self._provider(provider)
        self._unique(self._document.providers, "provider")
        for model in self._document.models:
            self._model(model)
        self._unique(self._document.models, "model")
        self._routing()

    def _single(self, section: str, field: str, problem: str | None) -> None:
        if problem is not None:
            self._problems.add(self._root.at(section, field).where, f"{section}.{field}", problem)

    def _note(self, item: object, field: str, problem: str) -> None:
        """Note a problem of a provider, a model or a deployment."""
        node, key = self._place(item)
        self._problems.add(node.at(field).where if field else node.where, f"{key}.{field}" if field else key, problem)

    def _server(self) -> None:
        root_path = self._document.server.root_path
        if root_path and _ROOT_PATH.fullmatch(root_path) is None:
            self._single("server", "root_path", "expected a path such as `/hortator`, without a slash at its end")
        if _MODEL_ID.fullmatch(self._document.server.host) is None or "/" in self._document.server.host:
            self._single("server", "host", "expected an address or a host name, such as 127.0.0.1 or 0.0.0.0")

    def _admin(self) -> None:
        """The two listeners must not want the same address."""
        admin, server = self._document.admin, self._document.server
        if _MODEL_ID.fullmatch(admin.host) is None or "/" in admin.host:
            self._single("admin", "host", "expected an address or a host name, such as 127.0.0.1 or 0.0.0.0")
        if admin.enabled and admin.port == server.port != 0:
            self._single("admin", "port", f"is the public listener's ({server.port}); choose another")

    def _store_problem(self) -> str | None:
        url = self._document.store.url
        if url is None:
            return None
        scheme = url.reveal().partition("://")[0]
        if scheme not in _DATABASES or "://" not in url.reveal():
            return "expected postgresql://user:password@host/name or sqlite:////path/file.db"
        return None

    def _file(self, section: str, field: str, path: Path | None) -> None:
        if path is not None and not path.is_file():
            self._single(section, field, f"there is no file {path}")

    def _unique(self, items: Iterable[Provider | NamedModel], what: str) -> None:
        first: dict[str, object] = {}
        for item in items:
            if item.id in first:
                other = self._place(first[item.id])[0].at("id").where
                self._note(item, "id", f"another {what} has this id ({other}); ids are unique")
            first.setdefault(item.id, item)

    def _provider(self, provider: Provider) -> None:
        if _PROVIDER_ID.fullmatch(provider.id) is None:
            self._note(provider, "id", "expected small letters, digits, `.`, `_` and `-`, at most 64 characters")
        elif provider.id == LOCAL:
            self._note(provider, "id", "`local` is the embedded model's; choose another id")
        if provider.base_url:
            problem = url_problem(provider.base_url) or self._loop_problem(provider.base_url)
            if problem is not None:
                self._note(provider, "base_url", problem)
        if provider.api_key is not None and _KEY.fullmatch(provider.api_key.reveal()) is None:
            self._note(provider, "api_key", "holds blanks or characters that cannot be sent")
        names = [name.lower() for name in provider.headers]
        for name, value in provider.headers.items():
            if _HEADER_NAME.fullmatch(name) is None or _HEADER_VALUE.fullmatch(value.reveal()) is None:
                self._note(provider, "headers", f"{name!r} is not a header that can be sent")
            elif name.lower() in _OURS or names.count(name.lower()) > 1:
                self._note(provider, "headers", f"{name!r} is set by the gateway itself or given twice; remove it")
        for model in provider.models or ():
            if _MODEL_ID.fullmatch(model) is None or (provider.models or ()).count(model) > 1:
                self._note(provider, "models", f"{model!r} holds blanks or is listed twice")

    def _loop_problem(self, base_url: str) -> str | None:
        """A provider at our own address would ask itself for ever."""
        address = urlsplit(base_url)
        server = self._document.server
        if (
            address.port == server.port
            and is_loopback(address.hostname or "")
            and is_loopback(server.host, wildcard=True)
        ):
            return f"is this server itself (port {server.port}); change it, or `server.port`"
        return None

    def _model(self, model: NamedModel) -> None:
        if _MODEL_ID.fullmatch(model.id) is None:
            self._note(model, "id", "a model's id has no blanks")
        known = [provider.id for provider in self._document.providers] + [LOCAL] * self._document.local.enabled
        seen = set()
        for deployment in model.deployments:
            if deployment.provider not in known:
                hint = closest(deployment.provider, known)
                self._note(
                    deployment, "provider", f"there is no provider {deployment.provider!r}{hint}; define it first"
                )
            if (
                deployment.provider == LOCAL
                and self._document.local.enabled
                and deployment.model != self._document.local.name
            ):
                self._note(deployment, "model", f"the embedded model is {self._document.local.name!r}")
            pair = (deployment.provider, deployment.model)
            if pair in seen:
                self._note(deployment, "", "this deployment is listed twice; keep one")
            seen.add(pair)
        if model.strategy == "weighted" and not any(deployment.weight for deployment in model.deployments):
            self._note(model, "strategy", "every `weight` is 0; give one deployment more")
        for field in ("fallbacks", "context_fallbacks", "content_fallbacks"):
            for fallback in getattr(model, field):
                problem = self._fallback_problem(model, field, fallback)
                if problem is not None:
                    self._note(model, field, problem)

    def _routing(self) -> None:
        routing = self._document.routing
        if routing.fast_below > routing.complex_from:
            self._single("routing", "fast_below", "is above `complex_from`")
        for name in routing.task_types:
            if _TASK_TYPE.fullmatch(name) is None:
                self._single("routing", "task_types", f"{name!r}: expected up to 64 letters, digits, `.`, `_`, `-`")
        named = [model.id for model in self._document.models]
        paths = routing.paths
        for choice in (*routing.task_types.values(), paths.fast, paths.standard, paths.complex):
            for model in choice.models:
                provider = model.partition("/")[0]
                known = [*(each.id for each in self._document.providers), LOCAL]
                if model not in named and ("/" not in model or provider not in known):
                    self._note(choice, "models", f"there is no model {model!r}{closest(model, named)}")

    def _fallback_problem(self, model: NamedModel, field: str, fallback: str) -> str | None:
        """A fallback is another model of the document, or any at a known provider."""
        if fallback == model.id:
            return "a model is not its own fallback"
        if getattr(model, field).count(fallback) > 1:
            return f"{fallback!r} is listed twice; keep one"
        named = [other.id for other in self._document.models]
        provider, _, name = fallback.partition("/")
        offered = {known.id: known.models for known in self._document.providers}
        if self._document.local.enabled:
            offered[LOCAL] = (self._document.local.name,)
        models = offered.get(provider, ())
        if fallback in named or (name and (models is None or name in models)):
            return None
        return f"there is no model {fallback!r}{closest(fallback, named)}; write the id of one above, or provider/model"


def url_problem(url: str, *, credentials: bool = False) -> str | None:
    """Say what is wrong with an http address; None = nothing. The address itself is never quoted."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "is not a valid address"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "expected an address such as https://api.example.com/v1"
    if re.search(r"[\s\x00-\x1f\x7f]", url) or not url.isascii() or port == 0:
        return "holds blanks, characters outside ASCII, or port 0"
    if parts.query or parts.fragment:
        return "must not hold `?` or `#`"
    if parts.username is not None and not credentials:
        return "must not hold a user or password; use `api_key` or `headers`"
    return None


def is_loopback(host: str, *, wildcard: bool = False) -> bool:
    """Say whether a host is this machine; with `wildcard`, all its addresses count too."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or (wildcard and address.is_unspecified)
