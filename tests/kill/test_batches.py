"""kill -9 in the middle of a batch: it goes on after a restart, and what was finished is not asked again."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import openai
import pytest

from tests.gateway import Gateway, eventually, openai_client, running_gateway
from tests.journeys.test_batches import counts, finish, line, results, start
from tests.upstream.process import Upstream, running_upstream


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with running_upstream() as running:
        yield running


@pytest.fixture
def gateway(tmp_path: Path, upstream: Upstream) -> Iterator[Gateway]:
    """A gateway whose batches are free again two seconds after its death."""
    with running_gateway(tmp_path, upstream, batches={"lease_seconds": 2}) as running:
        yield running


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai_client(gateway) as opened:
        yield opened


def finished_lines(gateway: Gateway) -> set[str]:
    """The custom ids of the lines that the store holds."""
    with closing(sqlite3.connect(gateway.database(), timeout=30)) as database:
        return {json.loads(result)["custom_id"] for (result,) in database.execute("select result from batch_lines")}


def asked(upstream: Upstream, mark: str) -> Counter[str]:
    """How often the provider was asked each line."""
    return Counter(one.json["messages"][0]["content"].split()[1].rstrip("!") for one in upstream.seen(mark))


@pytest.mark.limit(120)
def test_a_killed_server_asks_no_finished_line_again(
    gateway: Gateway, client: openai.OpenAI, upstream: Upstream
) -> None:
    quick, slow = upstream.plan("ok"), upstream.plan("slow_first_byte")
    made = start(client, *(line(f"line-{n}", quick if n < 30 else slow) for n in range(60)))
    eventually(lambda: counts(client.batches.retrieve(made.id)) == (60, 30, 0), "half of the batch")
    upstream.wait(slow, count=8)
    gateway.kill()
    assert len(finished_lines(gateway)) == 30
    upstream.release(slow)
    gateway.start()
    batch = finish(client, made)
    assert (batch.status, counts(batch)) == ("completed", (60, 60, 0))
    assert len(results(client, batch.output_file_id)) == 60
    assert set(asked(upstream, quick).values()) == {1}
    answered = Counter(one.json["messages"][0]["content"] for one in upstream.seen(slow, state="finished"))
    assert set(answered.values()) == {1}
    assert len(answered) == 30


@pytest.mark.limit(180)
def test_a_server_that_is_killed_again_and_again_asks_only_what_was_under_way_twice(
    gateway: Gateway, client: openai.OpenAI, upstream: Upstream
) -> None:
    mark = upstream.plan("ok")
    made = start(client, *(line(f"line-{n}", mark) for n in range(400)))
    for goal in (40, 160):

        def far_enough(goal: int = goal) -> bool:
            return counts(client.batches.retrieve(made.id))[1] >= goal

        eventually(far_enough, "some of the batch")
        gateway.kill()
        done, before = finished_lines(gateway), asked(upstream, mark)
        gateway.start()

        def goes_on(before: Counter[str] = before) -> bool:
            return asked(upstream, mark).total() > before.total()

        eventually(goes_on, "the batch to go on")
        after = asked(upstream, mark)
        assert [each for each in done if after[each] != before[each]] == []
    batch = finish(client, made)
    assert (batch.status, counts(batch)) == ("completed", (400, 400, 0))
    found = asked(upstream, mark)
    assert len(found) == 400
    assert found.total() <= 400 + 2 * 8
    assert len(results(client, batch.output_file_id)) == 400


@pytest.mark.limit(120)
def test_a_batch_whose_time_ends_while_the_server_is_dead_keeps_what_was_finished(
    gateway: Gateway, client: openai.OpenAI, upstream: Upstream
) -> None:
    quick, stuck = upstream.plan("ok"), upstream.plan("hang")
    made = start(client, line("done", quick), *(line(f"stuck-{n}", stuck) for n in range(9)))
    upstream.wait(stuck, count=7)
    eventually(lambda: counts(client.batches.retrieve(made.id))[1] == 1, "the quick line")
    gateway.kill()
    with closing(sqlite3.connect(gateway.database(), timeout=30)) as database, database:
        database.execute("update batches set expires_at = '2026-01-01 00:00:00.000000'")
    gateway.start()
    batch = finish(client, made)
    assert (batch.status, counts(batch)) == ("expired", (10, 1, 0))
    assert batch.expired_at is not None
    assert list(results(client, batch.output_file_id)) == ["done"]
    errors = results(client, batch.error_file_id)
    assert len(errors) == 9
    assert {(each["response"], each["error"]["code"]) for each in errors.values()} == {(None, "batch_expired")}


@pytest.mark.limit(120)
def test_a_server_that_is_asked_to_stop_leaves_its_batch_to_the_next(
    gateway: Gateway, client: openai.OpenAI, upstream: Upstream
) -> None:
    mark = upstream.plan("ok")
    made = start(client, *(line(f"line-{n}", mark) for n in range(300)))
    eventually(lambda: counts(client.batches.retrieve(made.id))[1] >= 50, "some of the batch")
    gateway.terminate()
    assert gateway.wait() == 0
    gateway.start()
    batch = finish(client, made)
    assert (batch.status, counts(batch)) == ("completed", (300, 300, 0))
    assert set(asked(upstream, mark).values()) == {1}
