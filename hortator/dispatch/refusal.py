"""Turns a provider's refusal into the error our caller gets, and says whether another deployment may do better.

Called by the carriers and `attempts.py`. The caller's status is true where the caller can act on it (400, 404, 413, 422, 429, 503); a provider
key that is refused is our operator's trouble, not the caller's, and its text never leaves the house.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime

from hortator.errors import HortatorError, Inapplicable, TotalTimeout, UpstreamError, UpstreamRefused
from hortator.providers.base import Provider
from hortator.wire.refusal import Refusal

Headers = Sequence[tuple[bytes, bytes]]

_TRUE_STATUS = frozenset({400, 404, 409, 413, 422, 429, 503})
_OTHER_STATUS = {402: 429, 408: 504, 504: 504, 529: 503}
_PASSED = frozenset({b"retry-after", b"retry-after-ms", b"openai-processing-ms", b"openai-version"})
RATE_PREFIXES = (b"x-ratelimit-", b"anthropic-ratelimit-")
"""How the headers begin that tell what is left of a limit."""
_ELSEWHERE = frozenset({401, 402, 403, 404, 408, 409, 429})
"""Client-error statuses after which another deployment is worth a try: they speak of the provider, not of the request."""

_NUMBER = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,9})?").fullmatch

_TYPES = {429: "rate_limit_error", 502: "upstream_error", 503: "service_unavailable_error", 504: "upstream_error"}


def passed_headers(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return the upstream headers that clients are to see."""
    return [pair for pair in headers if pair[0] in _PASSED or pair[0].startswith(RATE_PREFIXES)]


def refused(provider: Provider, status: int, headers: Headers, refusal: Refusal) -> UpstreamRefused:
    """Make the error for an upstream status that is not 2xx, or for an in-stream error object."""
    ours = status if status in _TRUE_STATUS else _OTHER_STATUS.get(status, 502 if status >= 500 else 400)
    if status in (401, 403):
        return UpstreamRefused(
            "The provider refused the gateway's credentials for this model.",
            upstream_status=status,
            status=502,
            type="upstream_error",
            code="upstream_auth_failed",
        )
    message = refusal.message or f"The provider answered with status {status}."
    code = refusal.code or _default_code(ours)
    return UpstreamRefused(
        provider.scrub(message),
        upstream_status=status,
        status=ours,
        type=_TYPES.get(ours) or refusal.type or "invalid_request_error",
        code=code if ours != 502 else "upstream_error",
        param=refusal.param,
        retry_after=_retry_after(headers),
        headers=tuple(passed_headers(headers)),
    )


def _default_code(status: int) -> str:
    codes = {404: "model_not_found", 429: "rate_limit_exceeded", 503: "upstream_unavailable", 504: "upstream_timeout"}
    return codes.get(status, "upstream_refused")


def _retry_after(headers: Headers) -> float | None:
    """Return the seconds that a provider asks to wait: `retry-after-ms`, else Retry-After as a number or an HTTP date."""
    found = {name: value for name, value in headers if name in (b"retry-after", b"retry-after-ms")}
    milliseconds, seconds = found.get(b"retry-after-ms", b""), found.get(b"retry-after", b"")
    if _NUMBER(milliseconds):
        return float(milliseconds) / 1000
    if _NUMBER(seconds):
        return float(seconds)
    try:
        at = parsedate_to_datetime(seconds.decode("latin-1"))
    except ValueError:
        return None
    return max(0.0, at.timestamp() - time.time())


def may_go_elsewhere(error: HortatorError) -> bool:
    """Whether the same call may succeed at another deployment."""
    if isinstance(error, UpstreamRefused):
        return error.upstream_status >= 500 or error.upstream_status in _ELSEWHERE
    return error.retryable or isinstance(error, Inapplicable)


def final(failures: Sequence[tuple[str, HortatorError]]) -> HortatorError:
    """Return the one error for a call whose candidates all failed; `failures` holds (deployment id, error), in order.

    One deployment, or all alike: the last error, with its true status and Retry-After. Otherwise a 502 of our own. Either way it
    lists the attempts where there were several.
    """
    last = failures[-1][1]
    deployments = {deployment for deployment, _ in failures}
    kinds = {(error.status, error.code) for _, error in failures}
    if isinstance(last, TotalTimeout) or len(deployments) == 1 or len(kinds) == 1:
        error = last
    else:
        listed = ", ".join(f"{deployment}: {error.code}" for deployment, error in failures)
        error = UpstreamError(f"All deployments failed ({listed}).", code="all_deployments_failed")
    if len(failures) > 1:
        error.attempts = tuple((deployment, _upstream_status(failed), failed.code) for deployment, failed in failures)
    return error


def _upstream_status(error: HortatorError) -> int | None:
    return error.upstream_status if isinstance(error, UpstreamRefused) else None
