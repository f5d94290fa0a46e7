"""One scripted upstream and one gateway for all journeys; those that need other settings start their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.door import Door
from tests.gateway import Gateway, running_gateway
from tests.upstream.process import Upstream, running_upstream


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    with running_upstream() as running:
        yield running


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Gateway]:
    with running_gateway(tmp_path_factory.mktemp("gateway"), upstream, server={"max_body_bytes": 1_000_000}) as running:
        yield running


@pytest.fixture(scope="session")
def door(gateway: Gateway) -> Door:
    return gateway.door


@pytest.fixture(scope="session")
def stranger(gateway: Gateway) -> str:
    """A key of another tenant."""
    namespace = ("--namespace", "strangers")
    gateway.command("tenants", "create", "--config", str(gateway.config), "--name", "Strangers", *namespace)
    return gateway.new_key("stranger", "--tenant", "strangers")
