"""The gateway behind a path prefix, as `https://legal.lawfirm.com/hortator` (R-000-53)."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.door import Connection, head
from tests.gateway import MODEL, Gateway, running_gateway
from tests.upstream.process import Upstream
from tests.upstream.script import TEXT


@pytest.fixture(scope="module")
def prefixed(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Gateway]:
    with running_gateway(
        tmp_path_factory.mktemp("prefixed"), upstream, server={"root_path": "/legal/hortator"}
    ) as running:
        yield running


def test_every_door_is_under_the_prefix(prefixed: Gateway, upstream: Upstream) -> None:
    door = prefixed.door
    assert door.chat(MODEL, upstream.plan("ok")).text == TEXT
    assert door.call("GET", "/v1/models").status == 200
    assert door.call("GET", "/v1/models/one/deep/name@v1").json["id"] == "one/deep/name@v1"
    assert door.call("GET", "/health").status == 200
    assert door.call("GET", "/v1/nothing").error["code"] == "unknown_url"


@pytest.mark.parametrize("path", ["/legal/v1/models", "/legal/hortatorv1/models", "/other/v1/models"])
def test_nothing_is_served_elsewhere(prefixed: Gateway, path: str) -> None:
    with Connection(prefixed.port) as connection:
        connection.send(head("GET", path, prefixed.door.headers(None)))
        reply = connection.read("GET")
    assert (reply.status, reply.error["code"]) == (404, "unknown_url")


def test_openai_python_works_under_the_prefix(prefixed: Gateway, upstream: Upstream) -> None:
    base_url = f"http://127.0.0.1:{prefixed.port}/legal/hortator/v1"
    with openai.OpenAI(api_key=prefixed.key, base_url=base_url, max_retries=0) as client:
        answer = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Salve!"}], user=upstream.plan("ok")
        )
        assert answer.choices[0].message.content == TEXT
        assert client.models.retrieve("one/deep/name@v1").id == "one/deep/name@v1"


def test_sockets_are_under_the_prefix_too(prefixed: Gateway) -> None:
    """This gateway has no teams, so that there is nothing; what is told says which path the door saw."""
    asked = {"upgrade": "websocket", "connection": "upgrade", "sec-websocket-version": "13"}
    asked |= {"sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==", **prefixed.door.headers(None)}
    for path, seen in (("/legal/hortator/ws", "GET /ws."), ("/legal/hortator/wsx", "GET /wsx."), ("/ws", "GET /ws.")):
        with Connection(prefixed.port) as connection:
            connection.send(head("GET", path, asked))
            reply = connection.read("GET")
        assert (reply.status, reply.error["code"]) == (404, "unknown_url")
        assert seen in reply.error["message"]
