"""A fake server and a client of each kind for every test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.client.either import client_of
from tests.client.fake import Fake, running_fake

KEY = "hrt_sk_test"


@pytest.fixture
def fake() -> Iterator[Fake]:
    with running_fake() as running:
        yield running


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.run_until_complete(made.shutdown_asyncgens())
    made.run_until_complete(made.shutdown_default_executor())
    made.close()


@pytest.fixture(params=["threads", "asyncio"])
def make(request: pytest.FixtureRequest, loop: asyncio.AbstractEventLoop) -> Iterator[Callable[..., Any]]:
    """Make a client of either kind, to be closed at the end."""
    made = []

    def one(*arguments: Any, **options: Any) -> Any:
        made.append(client_of(request.param, loop, *arguments, **options))
        return made[-1]

    yield one
    for each in made:
        each.close()


@pytest.fixture
def client(make: Callable[..., Any], fake: Fake) -> Any:
    return make(KEY, fake.url, timeout=5)
