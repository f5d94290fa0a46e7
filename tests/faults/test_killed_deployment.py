"""One of several deployments dies under load and comes back: nobody notices who had not begun to read an answer (R-004-3)."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.door import chat
from tests.gateway import PATIENCE, Gateway, eventually, running_gateway
from tests.upstream.process import Upstream, running_upstream

CLIENTS = 8


PAIR = ("one", "two")
SERVICES = {
    11400: "mixtral/Mixtral-8x7B",
    11401: "hermes/Hermes-2",
    11402: "openchat/OpenChat-3.5",
    11403: "phi/Phi-3-Mini",
}
"""The model services of one machine (R-004-2), where `local_services` looks for them."""


def providers(names: Sequence[str], ports: Sequence[int]) -> list[dict[str, object]]:
    return [
        {
            "id": name,
            "base_url": f"http://127.0.0.1:{port}/{name}/v1",
            "models": ["ok"],
            "timeouts": {"connect_ms": 500},
        }
        for name, port in zip(names, ports, strict=True)
    ]


def models(names: Sequence[str]) -> list[dict[str, object]]:
    return [{"id": "all", "deployments": [{"provider": name, "model": "ok"} for name in names]}]


class Load:
    """Clients that ask without end, every other request streamed."""

    def __init__(self, gateway: Gateway, model: str) -> None:
        self.gateway = gateway
        self.model = model
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
            with self.gateway.door.begin(chat(self.model, f"load-{number}", stream=stream)) as connection:
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


def survive(gateway: Gateway, services: list[Upstream], model: str, deployments: Sequence[str]) -> None:
    """Load all deployments, kill the first one's service under load, start it again; nobody notices."""
    with ExitStack() as stack:
        load = Load(gateway, model)
        pool = stack.enter_context(ThreadPoolExecutor(CLIENTS))
        stack.callback(load.stopped.set)
        clients = [pool.submit(load.client, number) for number in range(CLIENTS)]

        def more(deployment: str, wanted: int) -> None:
            goal = load.count(deployment) + wanted
            eventually(lambda: load.count(deployment) >= goal, f"{wanted} more answers of {deployment}")

        for deployment in deployments:
            more(deployment, 50)
        services[0].kill()
        for deployment in deployments[1:]:
            more(deployment, 300 // (len(deployments) - 1))
        stack.enter_context(running_upstream(services[0].port, default="ok"))
        more(deployments[0], 100)
        load.stopped.set()
        for client in clients:
            client.result(PATIENCE)
    assert load.failures == []
    assert load.broken <= CLIENTS, "only streams that were under way when it was killed"
    assert max(row["attempts"] for row in gateway.rows()) <= 4


@pytest.mark.limit(120)
def test_a_deployment_that_is_killed_under_load_and_comes_back_costs_no_request(tmp_path: Path) -> None:
    with ExitStack() as stack:
        services = [stack.enter_context(running_upstream()) for _ in PAIR]
        gateway = stack.enter_context(
            running_gateway(
                tmp_path,
                services[0],
                providers=providers(PAIR, [service.port for service in services]),
                models=models(PAIR),
                breaker={"open_ms": 300},
                retry={"delay_ms": 20},
            )
        )
        survive(gateway, services, "all", [f"{name}/ok" for name in PAIR])


def is_free(port: int) -> bool:
    """Whether nobody listens at a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@pytest.mark.limit(150)
def test_one_of_the_four_local_services_is_killed_under_load_and_comes_back(tmp_path: Path) -> None:
    """R-004-2, R-004-3: with nothing configured but `local_services`; breakers and retries have their defaults."""
    eventually(lambda: all(map(is_free, SERVICES)), "ports 11400 to 11403, which belong to the services")
    with ExitStack() as stack:
        services = [stack.enter_context(running_upstream(port, default="ok")) for port in SERVICES]
        gateway = stack.enter_context(
            running_gateway(tmp_path, services[0], local_services=True, providers=[], models=[], breaker={}, retry={})
        )
        survive(gateway, services, "local-services", list(SERVICES.values()))
        assert all(row["price_state"] == "free" for row in gateway.rows() if row["complete"])


@pytest.mark.limit(60)
def test_a_service_that_comes_back_has_traffic_long_before_its_breaker_is_over(tmp_path: Path) -> None:
    """Looking at providers notices it, with the breaker's own 60 s."""
    with ExitStack() as stack:
        services = [stack.enter_context(running_upstream()) for _ in PAIR]
        gateway = stack.enter_context(
            running_gateway(
                tmp_path,
                services[0],
                providers=providers(PAIR, [service.port for service in services]),
                models=models(PAIR),
                breaker={},
            )
        )

        def is_down() -> bool:
            state: str = gateway.door.call("GET", "/ready").json["providers"]["one"]["state"]
            return state == "down"

        def ask() -> str | None:
            reply = gateway.door.chat("all", "return")
            assert reply.status == 200
            return reply.header("x-hortator-model")

        assert {ask() for _ in range(4)} == {"one/ok", "two/ok"}
        services[0].kill()
        eventually(lambda: ask() and is_down(), "the look that finds it gone")
        assert {ask() for _ in range(6)} == {"two/ok"}
        stack.enter_context(running_upstream(services[0].port))
        eventually(lambda: ask() == "one/ok", "its return")
