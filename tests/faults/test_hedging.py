"""A model with `hedge_ms`: a silent deployment gets a rival, the first content wins, and the loser is cancelled and recorded."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.door import Reply, chat, content_of, events
from tests.gateway import Gateway, running_gateway
from tests.upstream.process import Upstream
from tests.upstream.script import CONTENT, ROLE, STOP, TEXT, completion, dump, reply, sse, stream_head

PLACES = [{"provider": name, "model": "scripted"} for name in ("one", "two")]
MODELS = [
    {"id": "hedged", "strategy": "ordered", "hedge_ms": 30, "deployments": PLACES},
    {"id": "patient", "strategy": "ordered", "hedge_ms": 60_000, "deployments": PLACES},
    {"id": "alone", "hedge_ms": 1, "deployments": PLACES[:1]},
]

both = pytest.mark.parametrize("stream", [False, True])


@pytest.fixture(scope="module")
def hedging(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Gateway]:
    with running_gateway(
        tmp_path_factory.mktemp("hedging"), upstream, models=MODELS, retry={"floor": 1000, "max_retries": 1}
    ) as running:
        yield running


class Asked:
    """A request on its way; `read` waits for its end."""

    def __init__(self, gateway: Gateway, model: str, mark: str, stream: bool, **fields: Any) -> None:
        self.gateway = gateway
        self.id = uuid.uuid4().hex
        self.connection = gateway.door.begin(chat(model, mark, stream=stream, **fields), x_request_id=self.id)

    def read(self) -> tuple[Reply, str, list[dict[str, Any]]]:
        """The reply, its text, and the attempts of its record."""
        with self.connection as connection:
            got = connection.read_head()
            if (got.header("content-type") or "").startswith("text/event-stream"):
                text = content_of(list(events(connection.blocks())))
            else:
                got = Reply(got.status, got.headers, connection.file.read(int(got.header("content-length") or "0")))
                text = got.text if got.status == 200 else ""
        return got, text, self.attempts()

    def attempts(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.gateway.row(self.id)["metadata"])["attempts"]
        return found


def told(attempts: list[dict[str, Any]]) -> list[tuple[str, str | None, str]]:
    return [(one["provider"], one["code"], one["usage"]) for one in attempts]


@both
def test_a_silent_deployment_is_overtaken_cancelled_and_recorded(
    hedging: Gateway, upstream: Upstream, stream: bool
) -> None:
    mark = upstream.plan(one="hang", two="ok")
    got, text, attempts = Asked(hedging, "hedged", mark, stream).read()
    assert (got.status, text, got.header("x-hortator-model")) == (200, TEXT, "two/scripted")
    assert got.header("x-hortator-attempts") == "2"
    assert told(attempts) == [("one", "superseded", "estimated"), ("two", None, "reported")]
    [left] = upstream.wait(mark, "aborted")
    assert left.provider == "one"


@both
def test_a_first_deployment_that_answers_after_all_keeps_its_call(
    hedging: Gateway, upstream: Upstream, stream: bool
) -> None:
    mark = upstream.plan(one="slow_first_byte", two="hang")
    asked = Asked(hedging, "hedged", mark, stream)
    upstream.wait(mark, count=2)
    upstream.release(mark)
    got, text, attempts = asked.read()
    assert (got.status, text) == (200, TEXT)
    assert told(attempts) == [("two", "superseded", "estimated"), ("one", None, "reported")]
    [left] = upstream.wait(mark, "aborted")
    assert left.provider == "two"


@both
def test_a_failure_of_the_first_leaves_the_rival_to_answer(hedging: Gateway, upstream: Upstream, stream: bool) -> None:
    answer = (
        [stream_head(), *sse(ROLE, *CONTENT, STOP, "[DONE]"), ["end"]] if stream else reply(200, dump(completion()))
    )
    mark = upstream.plan(one="slow_500", two=[["gate", "later"], *answer])
    asked = Asked(hedging, "hedged", mark, stream)
    upstream.wait(mark, count=2)
    upstream.release(mark)
    upstream.wait(mark, "finished")
    upstream.release(mark, "later")
    got, text, attempts = asked.read()
    assert (got.status, text, got.header("x-hortator-model")) == (200, TEXT, "two/scripted")
    assert [(one["provider"], one["code"]) for one in attempts] == [("one", "upstream_error"), ("two", None)]


@both
def test_a_rival_that_fails_leaves_the_first_to_answer(hedging: Gateway, upstream: Upstream, stream: bool) -> None:
    mark = upstream.plan(one="slow_first_byte", two="status_500")
    asked = Asked(hedging, "hedged", mark, stream)
    upstream.wait(mark, "finished")
    upstream.release(mark)
    got, text, attempts = asked.read()
    assert (got.status, text) == (200, TEXT)
    assert told(attempts) == [("two", "upstream_error", "unknown"), ("one", None, "reported")]


@both
def test_when_both_fail_the_rival_was_the_one_retry_and_both_are_listed(
    hedging: Gateway, upstream: Upstream, stream: bool
) -> None:
    mark = upstream.plan(one="slow_500", two="status_401")
    asked = Asked(hedging, "hedged", mark, stream)
    upstream.wait(mark, "finished")
    upstream.release(mark)
    got, _, attempts = asked.read()
    assert (got.status, got.error["code"]) == (502, "all_deployments_failed")
    assert [one["code"] for one in got.error["attempts"]] == ["upstream_auth_failed", "upstream_error"]
    assert told(attempts) == [("two", "upstream_auth_failed", "unknown"), ("one", "upstream_error", "unknown")]


@both
def test_a_client_that_hangs_up_cancels_both(hedging: Gateway, upstream: Upstream, stream: bool) -> None:
    mark = upstream.plan("hang")
    asked = Asked(hedging, "hedged", mark, stream)
    upstream.wait(mark, count=2)
    asked.connection.close()
    upstream.wait(mark, "aborted", count=2)
    assert [one["code"] for one in asked.attempts()] == ["client_closed_request"] * 2


@both
@pytest.mark.parametrize(("model", "fields"), [("patient", {}), ("alone", {}), ("hedged", {"hortator_retry": False})])
def test_nobody_else_is_asked_when_the_answer_comes_in_time_or_nobody_may_be(
    hedging: Gateway, upstream: Upstream, stream: bool, model: str, fields: dict[str, Any]
) -> None:
    mark = upstream.plan("slow_first_byte")
    asked = Asked(hedging, model, mark, stream, **fields)
    upstream.wait(mark)
    upstream.release(mark)
    got, text, attempts = asked.read()
    assert (got.status, text, told(attempts)) == (200, TEXT, [("one", None, "reported")])
    assert len(upstream.seen(mark)) == 1


def test_hedges_come_out_of_the_budget_of_all_retries(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream
) -> None:
    with running_gateway(
        tmp_path_factory.mktemp("budget"), upstream, models=MODELS, retry={"ratio": 0, "floor": 1}
    ) as running:
        mark = upstream.plan(one="slow_first_byte", two="ok")
        assert Asked(running, "hedged", mark, True).read()[0].header("x-hortator-model") == "two/scripted"
        asked = Asked(running, "hedged", mark, False)
        upstream.wait(mark, count=3)
        upstream.release(mark)
        assert asked.read()[0].header("x-hortator-model") == "one/scripted"
        assert len(upstream.seen(mark)) == 3
