"""The webhook dialect: what is posted to a `callback_url`, how it is signed, and how deliveries and secrets are shown.

`orchestration/webhooks.py` posts with it, the SDK's receivers verify with it. Signing is the Standard Webhooks scheme
(https://www.standardwebhooks.com): HMAC-SHA256 over `id.timestamp.body`, a secret `whsec_` and base64. No I/O.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from hortator.errors import InvalidRequest
from hortator.wire.events import ENDS, LEVELS, Event
from hortator.wire.tasks import Phase

PREFIX = "whsec_"
SECRET_BYTES = 32
"""The scheme wants 24 to 64."""
COMPLETED, FAILED, PROGRESS = "task_completed", "task_failed", "task_progress"
"""The kinds of calls (R-000-58); `task_failed` is every other end."""
EVERYTHING = "*"
USUAL = frozenset({"progress", "partial_result"}) | ENDS
"""What is sent where the order does not say."""
MAX_CHOSEN = 40
"""Most entries of `callback_events`."""
_PHASES: dict[str, Phase] = {
    "task_created": "Pending",
    "completed": "Completed",
    "failed": "Failed",
    "cancelled": "Cancelled",
    "budget_exceeded": "BudgetExceeded",
    "timed_out": "TimedOut",
}
_KNOWN = frozenset({EVERYTHING, COMPLETED, FAILED, PROGRESS}) | LEVELS.keys()


class Call(Struct, frozen=True, kw_only=True):
    """The body of a call."""

    event_type: str
    task_id: str
    progress_percent: int
    status: Phase
    results: Any | msgspec.UnsetType = msgspec.UNSET
    """Of ends: what was achieved."""
    event: Event
    """As every view shows it."""
    timestamp: str


class DeliveryObject(Struct, frozen=True, kw_only=True):
    """A delivery as clients see it. Moments are RFC 3339."""

    id: str
    """The call's `webhook-id`."""
    object: str = "webhook_delivery"
    task_id: str
    seq: int
    event_type: str
    url: str
    status: str
    attempts: int
    last_status: int | None
    last_error: str | None
    next_attempt_at: str | None
    created_at: str
    delivered_at: str | None


class SecretObject(Struct, frozen=True, kw_only=True):
    """What signs a tenant's calls."""

    object: str = "webhook_secret"
    secret: str
    created_at: str
    previous: Sequence[str]
    """When those before it stop to sign, newest first."""


def kind(event: Event) -> str:
    """Return which kind of call tells of an event."""
    if event.type == "completed":
        return COMPLETED
    return FAILED if event.type in ENDS else PROGRESS


def checked(events: Sequence[str] | None) -> None:
    """Raise InvalidRequest unless these are types of events, kinds of calls, or `*`."""
    if events is None:
        return
    if len(events) > MAX_CHOSEN:
        raise InvalidRequest(
            f"'callback_events' may have {MAX_CHOSEN} entries.", code="invalid_value", param="callback_events"
        )
    for number, name in enumerate(events):
        if name not in _KNOWN:
            where = f"callback_events[{number}]"
            raise InvalidRequest(f"'{name[:100]}' is no type of event.", code="invalid_value", param=where)


def chosen(event: Event, events: Sequence[str] | None) -> bool:
    """Whether an event is sent to who asked for these; None = progress and ends."""
    if events is None:
        return event.type in USUAL
    return EVERYTHING in events or event.type in events or kind(event) in events


def progress(event: Event, before: int) -> int:
    """Return the percent of the work that is done, where `before` was."""
    if event.type == "completed":
        return 100
    said = event.details.get("progress_percent") if event.type == "progress" else None
    return max(0, min(100, int(said))) if isinstance(said, int | float) else before


def body(event: Event, percent: int) -> bytes:
    """Return the body of the call that tells of an event."""
    results: Any = msgspec.UNSET
    if event.type in ENDS:
        results = event.result if event.result is not None else event.details.get("result")
    return msgspec.json.encode(
        Call(
            event_type=kind(event),
            task_id=event.task_id,
            progress_percent=percent,
            status=_PHASES.get(event.type, "Running"),
            results=results,
            event=event,
            timestamp=event.timestamp,
        )
    )


def new_secret() -> str:
    """Return a secret nobody knows."""
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def sign(secret: str, id: str, timestamp: int, content: bytes) -> str:
    """Return the signature of a call: `v1,` and base64. `timestamp`: Unix seconds of this try. Raises ValueError for no secret."""
    key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    digest = hmac.new(key, b"%b.%d.%b" % (id.encode(), timestamp, content), hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def headers(signing: Iterable[str], id: str, timestamp: int, content: bytes) -> list[tuple[bytes, bytes]]:
    """Return the headers of a try, signed with each of the secrets."""
    signatures = " ".join(sign(secret, id, timestamp, content) for secret in signing)
    return [
        (b"content-type", b"application/json"),
        (b"webhook-id", id.encode()),
        (b"webhook-timestamp", b"%d" % timestamp),
        (b"webhook-signature", signatures.encode()),
    ]


SCHEMAS: tuple[type[Struct], ...] = (DeliveryObject, SecretObject)
