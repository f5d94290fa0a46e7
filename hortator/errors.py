"""Everything that can go wrong, as one tree. Raised in the rooms, rendered to HTTP in `api/problem.py` only.

Each error says what the caller may do next: `code` is stable and machine readable, `status` is the HTTP status it becomes,
`retryable` tells whether the same call may succeed elsewhere or later, `retry_after` (seconds) after how long.
Messages are written for the caller: they never hold database text, stack traces, provider keys or upstream secrets.

    HortatorError
     +-- ConfigError                 start-up only: names file, line and key
     +-- RequestError                4xx: the caller can mend it
     |    +-- InvalidRequest         400  invalid_json | invalid_type | missing_required_parameter | ...
     |    +-- Unauthenticated        401  invalid_api_key
     |    +-- Forbidden              403  model_not_allowed | ...
     |    +-- NotFound               404  model_not_found | unknown_url
     |    +-- MethodNotAllowed       405  method_not_allowed
     |    +-- RequestTimeout         408  request_timeout
     |    +-- Conflict               409  idempotency_key_reused | task_not_running | ...
     |    +-- Gone                   410  events_expired
     |    +-- TooLarge               413  request_too_large
     |    +-- UnsupportedMediaType   415  unsupported_media_type
     |    +-- HeadersTooLarge        431  headers_too_large
     |    +-- RateLimited            429  rate_limit_exceeded | token_limit_exceeded | budget_exceeded | local_model_busy | ...
     +-- Unavailable                 503  store_unavailable | draining | ...
     |    +-- LimitsUnavailable      503  limits_unavailable
     |    +-- Overloaded             503  overloaded
     +-- TaskEnded                   502  task_failed | task_cancelled | task_budget_exceeded; 504 task_timed_out
     +-- ClientGone                  (no reply: the caller hung up)
     +-- UpstreamError               502  the provider failed before or while it answered
          +-- ConnectFailed          502  upstream_connect_failed
          +-- ConnectTimeout         504  upstream_connect_timeout
          +-- FirstByteTimeout       504  upstream_first_byte_timeout
          +-- IdleTimeout            504  upstream_idle_timeout
          +-- TotalTimeout           504  upstream_total_timeout
          +-- ConnectionLost         502  upstream_connection_lost
          +-- InvalidReply           502  upstream_invalid_response
          +-- TruncatedStream        502  upstream_truncated_stream
          +-- Superseded             (only in records: another deployment was quicker)
          +-- UpstreamRefused        as it says: the provider answered with an error status or an error event
"""

from __future__ import annotations

from typing import ClassVar


class HortatorError(Exception):
    """Root of the tree. `message` is safe to show to the caller."""

    status: int = 500
    type: str = "server_error"
    default_code: ClassVar[str] = "internal_error"
    retryable: bool = False
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """Headers that the reply needs besides those every error gets; names in small letters."""
    attempts: tuple[tuple[str, int | None, str], ...] = ()
    """What was tried before the error was told, where more than one attempt was: deployment id, the upstream's status, our code."""

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param
        self.retry_after = retry_after


class ConfigError(HortatorError):
    """The configuration cannot be used. `message` starts with `file:line: key:` where they are known."""

    default_code = "invalid_configuration"


class RequestError(HortatorError):
    """The caller's request cannot be served as it is; sending it again unchanged will not help."""

    status = 400
    type = "invalid_request_error"
    default_code = "invalid_request"


class InvalidRequest(RequestError):
    """400: the body or a header is not what the door documents. `param` names the field."""


class Inapplicable(InvalidRequest):
    """This provider cannot do what is asked, or cannot be told; another may."""

    default_code = "unsupported_by_model"


class Unauthenticated(RequestError):
    """401: no credential, or one we do not know."""

    status = 401
    type = "authentication_error"
    default_code = "invalid_api_key"


class Forbidden(RequestError):
    """403: a good credential that may not do this."""

    status = 403
    type = "permission_error"
    default_code = "forbidden"


class NotFound(RequestError):
    """404: no such model, object or address."""

    status = 404
    default_code = "unknown_url"


class MethodNotAllowed(RequestError):
    """405: the address exists, the method does not."""

    status = 405
    default_code = "method_not_allowed"

    def __init__(self, message: str, *, allowed: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allowed = allowed


class RequestTimeout(RequestError):
    """408: the body did not arrive in time."""

    status = 408
    default_code = "request_timeout"


class Conflict(RequestError):
    """What is asked does not fit the state of what it is asked of."""

    status = 409
    default_code = "conflict"


class Gone(RequestError):
    """It was there and is not kept any more."""

    status = 410
    default_code = "gone"


class TooLarge(RequestError):
    """413: the body is over the configured limit."""

    status = 413
    default_code = "request_too_large"


class UnsupportedMediaType(RequestError):
    """415: the body is not announced as JSON."""

    status = 415
    default_code = "unsupported_media_type"


class HeadersTooLarge(RequestError):
    """431: too many or too long headers."""

    status = 431
    default_code = "headers_too_large"


class RateLimited(RequestError):
    """429: a limit of ours. `retry_after` says when it may work again; None when waiting will not help."""

    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"
    retryable = True

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        retry_after: float | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message, code=code, retry_after=retry_after)
        self.headers = headers


class Unavailable(HortatorError):
    """503: we cannot serve this now (store down, draining, no capacity)."""

    status = 503
    type = "service_unavailable_error"
    default_code = "unavailable"
    retryable = True


class LimitsUnavailable(Unavailable):
    """503: what the caller has used cannot be counted now, and its limits may not be passed over."""

    default_code = "limits_unavailable"
    headers = ((b"x-hortator-degraded", b"limits"),)


class Overloaded(Unavailable):
    """503: more calls run and wait than this process is to carry."""

    default_code = "overloaded"


class TaskEnded(HortatorError):
    """A team of agents ended without an answer: `task_failed`, `task_cancelled`, `task_timed_out`, `task_budget_exceeded`."""

    status = 502
    default_code = "task_failed"


class ClientGone(HortatorError):
    """The caller hung up. Nobody is left to read a reply; the ledger records 499."""

    status = 499
    default_code = "client_closed_request"


class UpstreamError(HortatorError):
    """502: the provider did not answer properly. Another deployment may."""

    status = 502
    type = "upstream_error"
    default_code = "upstream_error"
    retryable = True


class ConnectFailed(UpstreamError):
    """No connection: refused, unreachable, name not found, TLS not trusted."""

    default_code = "upstream_connect_failed"


class ConnectTimeout(UpstreamError):
    """No connection within `timeouts.connect_ms` (TLS handshake included)."""

    status = 504
    default_code = "upstream_connect_timeout"


class FirstByteTimeout(UpstreamError):
    """Connected, but no byte of a reply within `timeouts.first_byte_ms`."""

    status = 504
    default_code = "upstream_first_byte_timeout"


class IdleTimeout(UpstreamError):
    """The reply began, then fell silent for `timeouts.idle_ms`."""

    status = 504
    default_code = "upstream_idle_timeout"


class TotalTimeout(UpstreamError):
    """The whole request took longer than `timeouts.total_ms`; no time is left for another deployment."""

    status = 504
    default_code = "upstream_total_timeout"
    retryable = False


class ConnectionLost(UpstreamError):
    """The connection broke before the reply was complete."""

    default_code = "upstream_connection_lost"


class InvalidReply(UpstreamError):
    """The reply is not HTTP, not JSON, or not a chat completion."""

    default_code = "upstream_invalid_response"


class TruncatedStream(UpstreamError):
    """The stream ended without a finish reason."""

    default_code = "upstream_truncated_stream"


class Superseded(UpstreamError):
    """A hedge: another deployment answered first, so this attempt was cancelled. Stands in records only."""

    default_code = "superseded"


_LATER = frozenset({408, 409, 425, 429})
"""Statuses below 500 after which the same request may succeed later."""


class UpstreamRefused(UpstreamError):
    """The provider answered with an error status, or sent an error event in a stream.

    `upstream_status` is its own status, `status` the one our caller gets: 400, 404, 409, 413, 422 and 429 pass, 503 and 529
    become 503, a refused provider key (401, 403) and every other 5xx become 502.
    """

    default_code = "upstream_refused"

    def __init__(
        self,
        message: str,
        *,
        upstream_status: int,
        status: int,
        type: str,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message, code=code, param=param, retry_after=retry_after)
        self.upstream_status = upstream_status
        self.retryable = upstream_status >= 500 or upstream_status in _LATER
        self.status = status
        self.type = type
        self.headers = headers


CODES = frozenset(
    {
        "all_deployments_failed",
        "artifact_not_found",
        "batch_not_active",
        "batch_not_found",
        "budget_exceeded",
        "capability_not_allowed",
        "client_closed_request",
        "conflict",
        "content_filter",
        "context_length_exceeded",
        "delivery_not_found",
        "draining",
        "empty_array",
        "events_expired",
        "expired_api_key",
        "file_in_use",
        "file_not_found",
        "file_quota_exceeded",
        "file_too_large",
        "files_unavailable",
        "gone",
        "headers_too_large",
        "host_not_allowed",
        "idempotency_key_reused",
        "insufficient_quota",
        "internal_error",
        "interrupted",
        "invalid_api_key",
        "invalid_domain_parameter",
        "invalid_expiry",
        "invalid_file_path",
        "invalid_form",
        "invalid_header",
        "invalid_json",
        "invalid_limit",
        "invalid_models",
        "invalid_name",
        "invalid_namespace",
        "invalid_permission",
        "invalid_priority",
        "invalid_request",
        "invalid_retention",
        "invalid_type",
        "invalid_url",
        "invalid_utf8",
        "invalid_value",
        "key_not_active",
        "key_not_found",
        "limits_unavailable",
        "local_model_busy",
        "local_model_loading",
        "local_model_restarting",
        "local_model_unavailable",
        "malformed_http",
        "method_not_allowed",
        "missing_api_key",
        "missing_required_parameter",
        "missing_task_type",
        "model_not_allowed",
        "model_not_found",
        "model_not_priced",
        "namespace_taken",
        "no_local_deployment",
        "overloaded",
        "own_tenant",
        "permission_required",
        "preferences_unsatisfiable",
        "previous_response_not_finished",
        "previous_response_not_found",
        "rate_limit_exceeded",
        "request_timeout",
        "request_too_large",
        "response_not_background",
        "response_not_found",
        "revoked_api_key",
        "schema_too_large",
        "store_unavailable",
        "superseded",
        "task_budget_exceeded",
        "task_cancelled",
        "task_failed",
        "task_not_found",
        "task_not_running",
        "task_not_terminal",
        "task_timed_out",
        "tenant_disabled",
        "tenant_not_allowed",
        "tenant_not_found",
        "token_limit_exceeded",
        "too_deep",
        "too_many_background_responses",
        "too_many_batches",
        "too_many_concurrent_requests",
        "too_many_connections",
        "too_many_subscriptions",
        "too_many_tasks",
        "too_many_tools",
        "unknown_parameter",
        "unknown_role",
        "unknown_url",
        "unsupported_by_model",
        "unsupported_content",
        "unsupported_content_encoding",
        "unsupported_endpoint",
        "unsupported_media_type",
        "unsupported_parameter",
        "unsupported_tool",
        "upstream_auth_failed",
        "upstream_connect_failed",
        "upstream_connect_timeout",
        "upstream_connection_lost",
        "upstream_error",
        "upstream_first_byte_timeout",
        "upstream_idle_timeout",
        "upstream_invalid_response",
        "upstream_pool_full",
        "upstream_refused",
        "upstream_timeout",
        "upstream_total_timeout",
        "upstream_truncated_stream",
        "upstream_unavailable",
        "url_not_allowed",
        "workspace_full",
    }
)
"""Every code of ours that callers and usage records see, one a line, as in docs/api-contracts.md. Providers may say anything: in metrics
all others are `_OTHER`."""
