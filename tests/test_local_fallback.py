"""When the embedded model counts as having stood in for another one (R-003-6, `local_fallback_count`)."""

from __future__ import annotations

from hortator.call import Decision, Deployment, ModelId, ProviderId, Route
from hortator.dispatch import Trace
from hortator.gateway import stood_in
from hortator.settings import Strategy

CLOUD = Deployment(id="groq/a", provider=ProviderId("groq"), model="a")
LOCAL = Deployment(id="local/q", provider=ProviderId("local"), model="q")


def decided(*candidates: Deployment, strategy: Strategy = "ordered", fallback: Deployment | None = None) -> Decision:
    routes = () if fallback is None else (Route(model=ModelId("other"), candidates=(fallback,)),)
    return Decision(
        model=ModelId("m"), candidates=candidates, reason="named", status_wait_ms=1, strategy=strategy, fallbacks=routes
    )


def walked(*places: Deployment) -> Trace:
    trace = Trace()
    for place in places:
        trace.begin(place, 0.0)
        trace.end(None, 1.0)
    return trace


def test_it_stood_in_after_a_try_elsewhere() -> None:
    assert stood_in(decided(CLOUD, LOCAL, strategy="least-in-flight"), walked(CLOUD, LOCAL))
    assert stood_in(decided(CLOUD, fallback=LOCAL), walked(CLOUD, CLOUD, LOCAL))


def test_it_stood_in_where_all_others_were_left_alone_and_not_even_tried() -> None:
    assert stood_in(decided(CLOUD, LOCAL), walked(LOCAL))
    assert stood_in(decided(CLOUD, fallback=LOCAL), walked(LOCAL))


def test_it_did_not_where_it_was_asked_itself_however_often() -> None:
    assert not stood_in(decided(LOCAL), walked(LOCAL, LOCAL))
    assert not stood_in(decided(LOCAL, CLOUD), walked(LOCAL))
    assert not stood_in(decided(CLOUD, LOCAL, strategy="least-in-flight"), walked(LOCAL)), "chosen among equals"
