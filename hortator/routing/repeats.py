"""Notices that a client asks again what a routed call has answered: it was not content, or the path was too low.

The gateway tells it of every call that ended; what it finds goes to the ledger, and from there to `hortator router train`. A heuristic,
and only within one process and ten minutes. Kept are digests, never text. Pure: no I/O; the caller says what time it is.
"""

from __future__ import annotations

from hortator.call import Call, Caller, Decision, ModelId, Repeat, RequestId, Routed, TenantId
from hortator.routing.auto import AUTO
from hortator.routing.catalogue import Catalogue

SECONDS = 600.0
"""How long a repetition counts as one."""
MAX_ASKED = 10_000
"""Routed calls remembered, by their words and by their session."""
MAX_TENANTS = 10_000
TAIL = 1_000
"""Bytes of a conversation's end by which it is known again, beside its length."""

_Key = tuple[TenantId, int, int, int]
"""Whose; a digest of the session, 0 = none; the conversation's length and digest, both 0 = any of the session."""


class Asked:
    """A routed call that ended."""

    __slots__ = ("at", "model", "request_id")

    def __init__(self, request_id: RequestId, model: ModelId, at: float) -> None:
        self.request_id = request_id
        self.model = model
        self.at = at


class Repeats:
    """One per process: the routed calls of the last ten minutes, at most `MAX_ASKED` of them."""

    __slots__ = ("_asked", "_tenants")

    def __init__(self) -> None:
        self._asked: dict[_Key, Asked] = {}
        self._tenants: dict[TenantId, float] = {}
        """When a tenant's last routed call ended: the calls of others are not looked at."""

    def __len__(self) -> int:
        return len(self._asked)

    def note(
        self, call: Call, caller: Caller, decision: Decision, catalogue: Catalogue, now: float
    ) -> tuple[Routed | None, Repeat | None]:
        """Say what a call that ended tells: how it was routed, and which earlier one it repeats. `now` in seconds, monotonic.

        The same words of the same session, or of a tenant that names none, repeat what was asked: with a stronger model as an
        escalation, else as a retry. Other words are an escalation when the session's client now names a stronger model.
        """
        tenant = caller.tenant_id
        if decision.score is None:
            last = self._tenants.get(tenant)
            if last is None:
                return None, None
            if now - last > SECONDS:
                del self._tenants[tenant]
                return None, None
        session = _session(call)
        key = (tenant, session, *_words(call))
        whole = (tenant, session, 0, 0) if session else None
        repeat = self._repeat(call, decision, catalogue, key, whole, now)
        routed = None
        if decision.score is not None:
            routed = _routed(call, decision)
            asked = Asked(call.id, decision.model, now)
            self._remember(key, asked)
            if whole is not None:
                self._remember(whole, asked)
            self._tenants.pop(tenant, None)
            if len(self._tenants) >= MAX_TENANTS:
                del self._tenants[next(iter(self._tenants))]
            self._tenants[tenant] = now
        return routed, repeat

    def _repeat(
        self, call: Call, decision: Decision, catalogue: Catalogue, key: _Key, whole: _Key | None, now: float
    ) -> Repeat | None:
        same = self._recall(key, now)
        if same is not None:
            return Repeat(request_id=same.request_id, escalated=_stronger(catalogue, decision.model, same.model))
        before = None if whole is None or call.model == AUTO else self._recall(whole, now)
        if before is not None and _stronger(catalogue, decision.model, before.model):
            return Repeat(request_id=before.request_id, escalated=True)
        return None

    def _recall(self, key: _Key, now: float) -> Asked | None:
        asked = self._asked.get(key)
        return asked if asked is not None and now - asked.at <= SECONDS else None

    def _remember(self, key: _Key, asked: Asked) -> None:
        """The newest last, so that the oldest go first."""
        self._asked.pop(key, None)
        if len(self._asked) >= MAX_ASKED:
            del self._asked[next(iter(self._asked))]
        self._asked[key] = asked


def _session(call: Call) -> int:
    """A digest of what the client calls its session; 0 = nothing."""
    session = call.session or call.body.get("prompt_cache_key")
    return 0 if session is None or bytes(session) == b"null" else hash(bytes(session))


def _words(call: Call) -> tuple[int, int]:
    """The length of the conversation and a digest of its end: cheap however long it is."""
    raw = call.body.get("messages") or call.body.get("input")
    if raw is None:
        return -1, 0
    view = memoryview(raw)
    return len(view), hash(bytes(view[-TAIL:]))


def _routed(call: Call, decision: Decision) -> Routed | None:
    if decision.path is None or decision.score is None or decision.confidence is None:
        return None
    return Routed(
        path=decision.path,
        score=decision.score,
        confidence=decision.confidence,
        features=decision.features,
        words=decision.words,
        retried=call.resend == "elsewhere",
    )


def _stronger(catalogue: Catalogue, model: ModelId, than: ModelId) -> bool:
    """Whether a model's quality is known to be higher."""
    one, other = catalogue.card(model), catalogue.card(than)
    if one is None or other is None or one.quality is None or other.quality is None:
        return False
    return one.quality > other.quality
