"""Outcomes of calls, as the gateway would make them; each test changes what it is about."""

from __future__ import annotations

import time
from typing import Any

from hortator.call import (
    UNKNOWN_USAGE,
    Attempt,
    Deployment,
    KeyHash,
    ModelId,
    Outcome,
    ProviderId,
    RequestId,
    TenantId,
    Usage,
)

TENANT = TenantId("0190a000-0000-7000-8000-000000000001")


def outcome(number: int = 0, **changes: Any) -> Outcome:
    """A streamed, complete, successful call of a Groq model with 100 + 10 tokens: 0.0000058 dollars."""
    values: dict[str, Any] = {
        "request_id": RequestId(f"req_{number}"),
        "tenant_id": TENANT,
        "key_hash": KeyHash("a" * 64),
        "operation": "chat",
        "model": ModelId("groq/llama-3.1-8b-instant"),
        "deployment": Deployment(
            id="groq/llama-3.1-8b-instant", provider=ProviderId("groq"), model="llama-3.1-8b-instant"
        ),
        "response_model": "llama-3.1-8b-instant",
        "attempts": (attempt(),),
        "usage": Usage(input=100, output=10, source="reported"),
        "status": 200,
        "code": None,
        "stream": True,
        "complete": True,
        "received_at": time.time(),
        "latency_ms": 123.4567,
        "first_byte_ms": 22.5,
        "overhead_ms": 0.4567,
    }
    return Outcome(**{**values, **changes})


def attempt(status: int | None = 200, code: str | None = None, usage: Usage = UNKNOWN_USAGE) -> Attempt:
    """One try at the deployment of `outcome`."""
    return Attempt(
        deployment="groq/llama-3.1-8b-instant",
        provider=ProviderId("groq"),
        status=status,
        code=code,
        duration_ms=122.9,
        usage=usage,
    )
