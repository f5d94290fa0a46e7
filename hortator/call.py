"""The values that walk the corridor, frozen. Every room takes some of them and returns others; none of them does anything.

A door makes a `Call`; tenancy says which `Caller` makes it; routing answers with a `Decision`; dispatch returns `Attempt`s and
a `Usage`; the gateway ties them into an `Outcome`, which the ledger prices and records. They are msgspec structs because those
cost a third of a frozen dataclass to make, and several are made for every request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NewType

import msgspec

from hortator.settings import Strategy
from hortator.tracing import Tracing
from hortator.wire.dialects import Dialect

TenantId = NewType("TenantId", str)
KeyHash = NewType("KeyHash", str)
ModelId = NewType("ModelId", str)
ProviderId = NewType("ProviderId", str)
RequestId = NewType("RequestId", str)

Operation = Dialect
"""What a call is for: the dialect it is asked in, and also what is recorded."""
Resend = Literal["again", "elsewhere", "never"]
Path = Literal["fast", "standard", "complex"]
UsageSource = Literal["reported", "estimated", "unknown"]
Priority = Literal["high", "standard", "low"]
"""Who goes first when not everybody can (R-000-72): immediate, balanced, best effort."""


LimitKind = Literal["requests", "tokens", "money", "concurrent"]


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """A bound on what a tenant or a key may use in a window of time."""

    key: str
    """Whose and which: `tenant:<id>:tokens:3600`. One counter a key."""
    text: str
    """As the operator wrote it: `1000 tokens/hour`."""
    kind: LimitKind
    window: int
    """Seconds, counted from the epoch (C-23); `MONTH` = calendar month, UTC; 0 = at any one time (`concurrent`)."""
    amount: int
    """Requests, tokens, or billionths of a US dollar."""


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who calls: a key of a tenant, and what that key may do."""

    tenant_id: TenantId
    key_hash: KeyHash
    key_name: str
    allowed_models: tuple[str, ...] = ("*",)
    """Globs over model ids, case sensitive. `("*",)` = every model."""
    permissions: frozenset[str] = frozenset()
    limits: tuple[Limit, ...] = ()
    """The tenant's and the key's own; a call must fit them all. Empty = none."""
    priority: Priority = "standard"
    """The lower of the tenant's and the key's."""
    namespace: str = ""
    """The tenant's namespace, its other name."""


class Preferences(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on the model that may answer (R-002-7). None = no bound."""

    max_cost: float | None = None
    """US dollars for the request, estimated."""
    max_latency: float | None = None
    """Milliseconds, estimated."""
    min_quality: float | None = None
    """0 to 10."""


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What a client says to routing besides a model's name (R-003-3)."""

    task_type: str | None = None
    force_local: bool = False
    """Only deployments on the operator's own machines, whatever fails."""
    tenant_id: str | None = None
    """On whose behalf; the caller's own tenant unless it may impersonate (C-2)."""
    preferences: Preferences | None = None


NO_WISH = Wish()


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """One place where a model can be had: a provider and the provider's own name for the model."""

    id: str
    """`provider/upstream-model`, unique in the catalogue; shown to clients in `x-hortator-model`."""
    provider: ProviderId
    model: str
    """The name sent upstream in the body's `model`."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One request, as its door understood it."""

    id: RequestId
    operation: Operation
    model: ModelId
    """As the client asked for it."""
    body: dict[str, msgspec.Raw]
    """The request's top level; values are the client's own bytes. Adapters replace keys in a copy, never in place."""
    stream: bool
    wants_usage: bool
    """The client asked for the usage chunk (`stream_options.include_usage`)."""
    started: float
    """`time.monotonic()` when the request's head was read, seconds."""
    received_at: float
    """Unix time of the same moment, seconds."""
    session: bytes | None = None
    """What the client named its session, so that its requests meet the same deployment."""
    wish: Wish = NO_WISH
    """What the client says to routing."""
    forwarded: tuple[tuple[bytes, bytes], ...] = ()
    """Headers of the client that a provider of the same kind is to see; names in small letters."""
    resend: Resend = "again"
    """After a failure: also ask the same deployment again, only others, or nobody."""
    fallback: bool = True
    """Another model may answer, where the one asked for has fallbacks."""
    tracing: Tracing | None = None
    """Where the times of its trace are noted; None = traces are off."""
    task_id: str | None = None
    """The task of a team that it is made for; None = a client's own."""


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One model's deployments and how to choose among them."""

    model: ModelId
    candidates: tuple[Deployment, ...]
    strategy: Strategy = "ordered"
    weights: tuple[int, ...] = ()
    """One for each candidate where the strategy is `weighted`."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Where a call may go and why. A room that only wants the model's own deployments sees it as a `Route`."""

    model: ModelId
    candidates: tuple[Deployment, ...]
    reason: str
    status_wait_ms: int
    """How long a stream's status line waits for the upstream's verdict, milliseconds."""
    strategy: Strategy = "ordered"
    weights: tuple[int, ...] = ()
    fallbacks: tuple[Route, ...] = ()
    """Other models, in order, for when no candidate answers."""
    context_fallbacks: tuple[Route, ...] = ()
    """Instead of `fallbacks` when the request is too long for the model."""
    content_fallbacks: tuple[Route, ...] = ()
    """Instead of `fallbacks` when the provider's content filter refuses the request."""
    hedge_ms: int = 0
    """Milliseconds without a first byte after which another candidate is asked too; 0 = never."""
    path: Path | None = None
    """`fast`, `standard` or `complex`; None = the model was named."""
    score: float | None = None
    """Complexity, 0 to 1; None = it was not asked for."""
    confidence: float | None = None
    """Of the score."""
    features: Mapping[str, float] = {}
    """What the score was computed from."""
    words: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """What the words among them add up to, for fast, standard and complex."""
    reasons: tuple[str, ...] = ()
    """Of the score, for people."""
    task_type: str | None = None
    """As the client said it; None = it did not."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """What every reply tells of this decision."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one call. None = the upstream did not say; 0 = it said zero."""

    input: int | None = None
    output: int | None = None
    cached: int | None = None
    """Part of `input` that the provider read from its cache."""
    reasoning: int | None = None
    """Part of `output` spent on reasoning."""
    cache_write: int | None = None
    """Part of `input` that the provider wrote to its cache."""
    source: UsageSource = "unknown"


UNKNOWN_USAGE = Usage()


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try at one deployment."""

    deployment: str
    provider: ProviderId
    status: int | None
    """The upstream's HTTP status; None when it never answered."""
    code: str | None
    """Our error code; None when it succeeded."""
    duration_ms: float
    usage: Usage = UNKNOWN_USAGE
    """What this attempt took. Unknown where no answer began: providers do not charge for refusals."""
    response_model: str | None = None
    """The model name in its reply."""


class Routed(msgspec.Struct, frozen=True, kw_only=True):
    """How a call's complexity chose its path; what `hortator router train` learns from."""

    path: Path
    score: float
    confidence: float
    features: Mapping[str, float]
    words: tuple[float, float, float]
    retried: bool
    """It was itself a client's second try."""


class Repeat(msgspec.Struct, frozen=True, kw_only=True):
    """A call that asks again what a routed one has answered, by the rule in `routing/repeats.py`."""

    request_id: RequestId
    """The routed one's."""
    escalated: bool
    """With a stronger model; else with the same or an unknown one."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a call; the ledger's only input."""

    request_id: RequestId
    tenant_id: TenantId
    key_hash: KeyHash
    operation: Operation
    model: ModelId
    """As asked."""
    deployment: Deployment | None
    """The one that answered, or the last one tried; None when none was."""
    response_model: str | None
    """The model name in the upstream's reply, where it gave one (providers answer aliases with dated names)."""
    attempts: tuple[Attempt, ...]
    usage: Usage
    status: int
    """The HTTP status the caller got, 499 when it hung up first."""
    code: str | None
    """Error code, None on success. A failed stream keeps status 200 and carries the code here."""
    stream: bool
    complete: bool
    """The whole answer reached the caller."""
    received_at: float
    """Unix time, seconds."""
    latency_ms: float
    """From the request's head to the last byte handed to the server."""
    first_byte_ms: float | None
    """To the first content byte of the upstream's answer."""
    overhead_ms: float
    """`latency_ms` less the time spent waiting for upstreams."""
    task_type: str | None = None
    """As the client said it; None = it did not."""
    path: Path | None = None
    """The one that routing took; None = the model was named, or none was decided on."""
    local_fallback: bool = False
    """The embedded model stood in for another one."""
    routed: Routed | None = None
    """None = its complexity was not judged, or is not to be recorded."""
    repeat: Repeat | None = None
    """None = it repeats nothing."""
    task_id: str | None = None
    """The task it was made for; None = a client's own call."""
    metadata: dict[str, str] = {}
    """What doors add for reports, bounded by the door."""
