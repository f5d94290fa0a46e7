"""The services that other tests rely on are the real ones, and tests cannot leave the machine."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import asyncpg  # type: ignore[import-untyped]
import pytest
import uvloop

from tests.conftest import NotLoopback, started
from tests.services import ServiceMissing


async def test_each_test_gets_an_empty_postgres_database(postgres_database: str) -> None:
    connection = await asyncpg.connect(postgres_database.replace("+asyncpg", ""))
    try:
        version = await connection.fetchval("SELECT version()")
        tables = await connection.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
    finally:
        await connection.close()
    assert version.startswith("PostgreSQL ")
    assert tables == 0


async def test_redis_keeps_what_it_is_given(redis_url: str) -> None:
    address = urlsplit(redis_url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(b"SET test-services:key value EX 60\r\nGET test-services:key\r\nDEL test-services:key\r\n")
    reply = await reader.readuntil(b":1\r\n")
    writer.close()
    await writer.wait_closed()
    assert reply == b"+OK\r\n$5\r\nvalue\r\n:1\r\n"


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_test_cannot_reach_another_machine(factory: object) -> None:
    async def leave() -> None:
        await asyncio.open_connection("192.0.2.1", 80)

    assert callable(factory)
    with asyncio.Runner(loop_factory=factory) as runner, pytest.raises(NotLoopback):
        runner.run(leave())


def test_a_test_cannot_look_up_a_name() -> None:
    with pytest.raises(NotLoopback):
        socket.create_connection(("example.com", 80))


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_a_missing_service_skips_its_tests_and_fails_them_in_ci(
    ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def missing() -> Iterator[str]:
        raise ServiceMissing("install it")
        yield ""

    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="install it"):
        next(started(missing()))
