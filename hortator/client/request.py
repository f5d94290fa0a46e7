"""What is sent and where to: a request as the resources make it, the server's address, and whether a failure may be tried again.

Resources make `Request`s, the two transports send them to an `Address`; `Tries` is the judgement they share. No I/O, no sleeping.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from hortator.client.errors import HortatorConnectionError, HortatorError

FIRST_DELAY, LONGEST_DELAY = 0.25, 8.0
LONGEST_WAIT = 60.0
"""Seconds of a Retry-After beyond which the caller is told at once instead."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request. `path` is below the base URL, quoted."""

    method: str
    path: str
    query: Mapping[str, str | int | None] = field(default_factory=dict)
    """None = left out."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    idempotent: bool = False
    """Doing it twice does it once: it may be sent again although it may have arrived."""
    timeout: float | None = None
    """Seconds without a byte; None = the client's own."""

    @property
    def target(self) -> str:
        """Path and query."""
        asked = {name: str(value) for name, value in self.query.items() if value is not None}
        return f"{self.path}?{urlencode(asked)}" if asked else self.path


def get(path: str, timeout: float | None = None, **query: str | int | None) -> Request:
    """Return a request that only looks."""
    return Request(method="GET", path=path, query=query, idempotent=True, timeout=timeout)


def post(path: str, body: Any, *, idempotent: bool = False) -> Request:
    """Return a request with a JSON body."""
    return Request(
        method="POST",
        path=path,
        headers={"Content-Type": "application/json"},
        body=msgspec.json.encode(body),
        idempotent=idempotent,
    )


def with_headers(request: Request, headers: Mapping[str, str]) -> Request:
    """Return the request with more headers."""
    return replace(request, headers={**request.headers, **headers})


def segment(value: str) -> str:
    """Quote what stands between two slashes of a path."""
    return quote(value, safe="")


@dataclass(frozen=True)
class Address:
    """Where the server is."""

    host: str
    port: int
    tls: bool
    prefix: str = ""
    """Path that the server has in front of all others (R-000-53), without a slash at its end."""

    @classmethod
    def of(cls, base_url: str) -> Address:
        """Read a base URL, with or without `/v1` at its end (R-000-13). Raises ValueError."""
        parts = urlsplit(base_url.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not a base URL such as https://hortator.example.com: {base_url!r}")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("a base URL has no credentials, query or fragment")
        prefix = parts.path.rstrip("/")
        prefix = prefix.removesuffix("/v1").rstrip("/")
        tls = parts.scheme == "https"
        return cls(parts.hostname, parts.port or (443 if tls else 80), tls, quote(prefix, safe="/%~"))

    @property
    def authority(self) -> str:
        """For the `Host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.prefix}"


class Tries:
    """How often one request is tried again, and after how long."""

    def __init__(self, request: Request, most: int) -> None:
        self._idempotent = request.idempotent
        self._left = most
        self._delay = FIRST_DELAY

    def pause(self, error: HortatorError) -> float:
        """Return the seconds to wait before the request is sent again. Raises the error itself where it is not to be."""
        harmless = error.again or (self._idempotent and isinstance(error, HortatorConnectionError))
        if not harmless or self._left <= 0 or (error.retry_after or 0) > LONGEST_WAIT:
            raise error
        self._left -= 1
        delay, self._delay = self._delay, min(self._delay * 2, LONGEST_DELAY)
        return max(error.retry_after or 0, delay * (0.75 + random.random() / 2))
