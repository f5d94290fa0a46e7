"""One of two deployments dies under load and comes back: nobody notices who had not begun to read an answer (R-004-3)."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.door import chat
from tests.gateway import PATIENCE, Gateway, eventually, running_gateway
from tests.upstream.process import running_upstream

CLIENTS = 8


def providers(ports: tuple[int, int]) -> list[dict[str, object]]:
    return [
        {"id": name, "base_url": f"http://127.0.0.1:{port}/{name}/v1", "models": ["ok"]}
        for name, port in zip(("one", "two"), ports, strict=True)
    ]


MODELS = [{"id": "both", "deployments": [{"provider": name, "model": "ok"} for name in ("one", "two")]}]


class Load:
    """Clients that ask without end, every other request streamed."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.stopped = threading.Event()
        self.answers: Counter[str | None] = Counter()
        self.failures: list[str] = []
        self.broken = 0
        """Streams that broke after their first content: an error event, no `[DONE]`."""
        self.lock = threading.Lock()

    def client(self, number: int) -> None:
        asked = number
        while not self.stopped.is_set():
            asked += 1
            stream = asked % 2 == 0
            with self.gateway.door.begin(chat("both", f"load-{number}", stream=stream)) as connection:
                reply = connection.read()
            whole = reply.status == 200 and (not stream or b"data: [DONE]\n\n" in reply.body)
            with self.lock:
                if whole:
                    self.answers[reply.header("x-hortator-model")] += 1
                elif reply.status == 200 and b'"content":"Ave, "' in reply.body and b'"error"' in reply.body:
                    self.broken += 1
                else:
                    self.failures.append(f"{reply.status} {reply.body[:300]!r}")

    def count(self, model: str) -> int:
        with self.lock:
            return self.answers[model]


@pytest.mark.limit(120)
def test_a_deployment_that_is_killed_under_load_and_comes_back_costs_no_request(tmp_path: Path) -> None:
    with ExitStack() as stack:
        one, two = (stack.enter_context(running_upstream()) for _ in range(2))
        gateway = stack.enter_context(
            running_gateway(
                tmp_path,
                one,
                providers=providers((one.port, two.port)),
                models=MODELS,
                breaker={"open_ms": 300},
                retry={"delay_ms": 20},
            )
        )
        load = Load(gateway)
        pool = stack.enter_context(ThreadPoolExecutor(CLIENTS))
        stack.callback(load.stopped.set)
        clients = [pool.submit(load.client, number) for number in range(CLIENTS)]

        def more(model: str, wanted: int) -> None:
            goal = load.count(model) + wanted
            eventually(lambda: load.count(model) >= goal, f"{wanted} more answers of {model}")

        more("one/ok", 50)
        more("two/ok", 50)
        one.kill()
        more("two/ok", 300)
        stack.enter_context(running_upstream(one.port))
        more("one/ok", 100)
        load.stopped.set()
        for client in clients:
            client.result(PATIENCE)
        assert load.failures == []
        assert load.broken <= CLIENTS, "only streams that were under way when it was killed"
        rows = gateway.rows()
        assert max(row["attempts"] for row in rows) <= 4
