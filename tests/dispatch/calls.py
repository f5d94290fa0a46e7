"""Calls, deployments and decisions for tests of the dispatch room."""

from __future__ import annotations

from typing import Any

import msgspec

from hortator.call import Call, Decision, Deployment, ModelId, ProviderId, RequestId, Route
from hortator.errors import UpstreamRefused

A, B, C, D = (Deployment(id=f"{name}/m", provider=ProviderId(name), model="m") for name in "abcd")


def call(**changes: Any) -> Call:
    """A plain request."""
    values: dict[str, Any] = {
        "id": RequestId("req_1"),
        "operation": "chat",
        "model": ModelId("m"),
        "body": {},
        "stream": False,
        "wants_usage": False,
        "started": 0.0,
        "received_at": 0.0,
    }
    return Call(**{**values, **changes})


def keyed(prompt_cache_key: str) -> Call:
    """A request whose body names its session."""
    return call(body={"prompt_cache_key": msgspec.Raw(msgspec.json.encode(prompt_cache_key))})


def decision(*candidates: Deployment, **changes: Any) -> Decision:
    """A decision for these deployments."""
    values: dict[str, Any] = {"model": ModelId("m"), "candidates": candidates, "reason": "named", "status_wait_ms": 0}
    return Decision(**{**values, **changes})


def route(*candidates: Deployment, model: str = "other") -> Route:
    """Another model's deployments."""
    return Route(model=ModelId(model), candidates=candidates)


def refusal(
    status: int, retry_after: float | None = None, code: str | None = None, text: str = "no"
) -> UpstreamRefused:
    """A provider's error status."""
    return UpstreamRefused(
        text, upstream_status=status, status=status, type="upstream_error", code=code, retry_after=retry_after
    )
