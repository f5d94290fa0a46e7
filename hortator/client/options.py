"""What both clients are made with, and where it comes from when the caller does not say: the environment. No I/O."""

from __future__ import annotations

import os

from hortator.client.errors import AuthenticationError
from hortator.client.request import Address

KEY_VARIABLE, URL_VARIABLE = "HORTATOR_API_KEY", "HORTATOR_BASE_URL"
DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT = 300.0
"""Seconds without a byte: a team that answers a chat that is not streamed takes its time."""
DEFAULT_RETRIES = 2


def chosen(api_key: str | None, base_url: str | None) -> tuple[str, Address]:
    """Return the key and the address. Raises AuthenticationError where there is no key, ValueError for what is no address."""
    key = api_key or os.environ.get(KEY_VARIABLE)
    if not key:
        raise AuthenticationError(f"No API key: give `api_key`, or set {KEY_VARIABLE}.", code="missing_api_key")
    return key, Address.of(base_url or os.environ.get(URL_VARIABLE) or DEFAULT_URL)
