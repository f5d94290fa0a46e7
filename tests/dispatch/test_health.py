"""Looks at providers: who is up, and how soon one in trouble is looked at again."""

from __future__ import annotations

import asyncio

import pytest

from hortator.call import ProviderId
from hortator.dispatch import health
from hortator.dispatch.health import Health
from hortator.errors import ConnectFailed, UpstreamError
from tests.eventually import eventually

ONE = ProviderId("one")
TWO = ProviderId("two")


class Service:
    """A provider that is there or not."""

    def __init__(self) -> None:
        self.there = True
        self.looks = 0
        self.error: UpstreamError = ConnectFailed("not there")

    async def list_models(self, deadline: float) -> tuple[str, ...] | None:
        self.looks += 1
        if not self.there:
            raise self.error
        return ("m",)


async def test_a_suspect_is_looked_at_soon_and_until_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "DOWN_SECONDS", 0.01)
    one, two = Service(), Service()
    looks = Health({ONE: one, TWO: two}, frozenset(), lambda: None)
    found: list[tuple[str, bool]] = []
    looks.found = lambda provider, up: found.append((provider, up))
    task = asyncio.create_task(looks.run())
    await eventually(lambda: sorted(found) == [(ONE, True), (TWO, True)])
    one.there = False
    looks.suspect(ONE)
    await eventually(lambda: found.count((ONE, False)) >= 3)
    one.there = True
    await eventually(lambda: found[-1] == (ONE, True))
    assert two.looks == 1, "the others are left in peace"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_many_failures_of_a_provider_that_answers_make_few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "DOWN_SECONDS", 0.05)
    one = Service()
    looks = Health({ONE: one}, frozenset(), lambda: None)
    task = asyncio.create_task(looks.run())
    while one.looks < 3:
        looks.suspect(ONE)
        looks.suspect(ProviderId("unknown"))
        before = one.looks
        await asyncio.sleep(0)
        assert one.looks <= before + 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_provider_that_refuses_its_key_is_not_pestered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "DOWN_SECONDS", 0.0)
    one, two = Service(), Service()
    one.error = UpstreamError("wrong key", code="upstream_auth_failed")
    one.there = two.there = False
    looks = Health({ONE: one, TWO: two}, frozenset(), lambda: None)
    task = asyncio.create_task(looks.run())
    await eventually(lambda: two.looks >= 5)
    assert (one.looks, looks.states[ONE].state) == (1, "down")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
