"""The configuration changes while requests run: none of them fails, and what is refused changes nothing."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.door import chat, content_of, events
from tests.gateway import MODEL, PAIR, PATIENCE, Gateway, eventually, running_gateway
from tests.journeys.test_admin import Admin, admin_port
from tests.upstream.process import Upstream

WATCH = 0.1
OK = "reload-ok"
"""The mark of requests that are simply answered."""
Change = Callable[[dict[str, Any]], None]


@pytest.fixture(autouse=True)
def _answers(upstream: Upstream) -> None:
    upstream.control("plan", mark=OK, provider="", scenario="ok")


@pytest.fixture
def reloading(tmp_path: Path, upstream: Upstream) -> Iterator[Gateway]:
    """A gateway that looks at its file ten times a second."""
    with running_gateway(tmp_path, upstream, reload={"watch_seconds": WATCH}) as running:
        yield running


def configuration(gateway: Gateway) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(gateway.door.call("GET", "/ready").body)["configuration"]
    return shown


def write(gateway: Gateway, change: Change, *, in_place: bool = False) -> None:
    """Change the document: as an editor does (rename), or by writing into the file."""
    document = yaml.safe_load(gateway.config.read_text())
    change(document)
    text = yaml.safe_dump(document, sort_keys=False)
    if in_place:
        gateway.config.write_text(text)
        return
    beside = gateway.config.with_suffix(".new")
    beside.write_text(text)
    beside.rename(gateway.config)


def taken(gateway: Gateway, generation: int) -> dict[str, Any]:
    """Wait for a generation; return what `/ready` says of it."""

    def look() -> dict[str, Any] | None:
        shown = configuration(gateway)
        assert shown["error"] is None, shown
        return shown if shown["generation"] >= generation else None

    return eventually(look, f"generation {generation}")


def provider(document: dict[str, Any], name: str) -> dict[str, Any]:
    [found] = [each for each in document["providers"] if each["id"] == name]
    assert isinstance(found, dict)
    return found


def without(document: dict[str, Any], name: str) -> None:
    """Take a provider out, and the named models that need it."""
    document["providers"] = [each for each in document["providers"] if each["id"] != name]
    document["models"] = [
        model for model in document["models"] if all(place["provider"] != name for place in model["deployments"])
    ]


def turns(gateway: Gateway) -> Iterator[Change]:
    """Changes of every kind, for ever. `one` and the model `pair` stay; everything about them changes."""
    original = yaml.safe_load(gateway.config.read_text())
    while True:
        yield lambda document: provider(document, "one").update(api_key="${TWO_KEY}")
        yield lambda document: provider(document, "one").update(headers={"x-extra": "yes"}, timeouts={"idle_ms": 9000})
        yield lambda document: document.update(timeouts={"total_ms": 90_000}, retry={"ratio": 0.2, "floor": 3})
        yield lambda document: document.update(breaker={"failures": 3}, stream={"status_wait_ms": 500})
        yield lambda document: document["models"][0].update(strategy="weighted")
        yield lambda document: document["models"].append({**original["models"][0], "id": "another"})
        yield lambda document: document["models"][0].update(deployments=original["models"][0]["deployments"][:1])
        yield lambda document: without(document, "closed")
        yield lambda document: document.update(original)


@pytest.mark.limit(180)
def test_a_thousand_requests_do_not_notice_that_the_configuration_changes_all_the_time(reloading: Gateway) -> None:
    stopped, lock = threading.Event(), threading.Lock()
    answered, failures = 0, []

    def client(number: int) -> None:
        nonlocal answered
        asked = number
        while not stopped.is_set():
            asked += 1
            stream = asked % 2 == 0
            with reloading.door.begin(chat((PAIR, MODEL)[asked % 3 == 0], OK, stream=stream)) as connection:
                reply = connection.read()
            with lock:
                if reply.status == 200 and (not stream or b"data: [DONE]\n\n" in reply.body):
                    answered += 1
                else:
                    failures.append(f"{reply.status} {reply.body[:300]!r}")

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client, number) for number in range(4)]
        try:
            changes = turns(reloading)
            for number in range(36):
                before = configuration(reloading)["generation"]
                write(reloading, next(changes), in_place=number % 2 == 0)
                if number % 3 == 0:
                    assert reloading.process is not None
                    reloading.process.send_signal(signal.SIGHUP)
                taken(reloading, before + 1)
            eventually(lambda: answered >= 1000, "a thousand answers")
        finally:
            stopped.set()
        for each in clients:
            each.result(PATIENCE)
    assert failures == []
    assert configuration(reloading)["generation"] > 36


def test_a_broken_document_is_refused_and_the_old_one_stays(reloading: Gateway) -> None:
    admin = Admin(admin_port(reloading))
    good = reloading.config.read_text()
    write(reloading, lambda document: document.update(retry={"max_retries": "canary-of-a-value"}))
    shown = eventually(lambda: (found := configuration(reloading))["error"] and found, "the refusal")
    assert shown["generation"] == 1
    assert shown["source"] == reloading.config.name
    assert shown["error"].startswith(f"{reloading.config.name}:"), "the place, without this machine's folders"
    assert "retry.max_retries: expected a whole number" in shown["error"]
    assert "canary" not in shown["error"], "a value may be a secret"
    assert b"hortator_config_last_reload_success 0" in admin.call("/metrics").body
    assert reloading.door.chat(MODEL, OK).status == 200

    reloading.config.unlink()
    eventually(lambda: "cannot be read" in (configuration(reloading)["error"] or ""), "the complaint that it is gone")
    assert reloading.door.chat(MODEL, OK).status == 200, "an absent file is not an empty configuration"

    reloading.config.write_text(good)
    eventually(lambda: configuration(reloading)["error"] is None, "the recovery")
    page = admin.call("/metrics").body
    assert b"hortator_config_last_reload_success 1" in page
    assert b"hortator_config_generation 2" in page


def test_a_change_that_needs_a_restart_is_named_and_does_not_keep_the_rest_from_taking_effect(
    reloading: Gateway,
) -> None:
    def change(document: dict[str, Any]) -> None:
        document["server"]["port"] += 1
        document["identity"] = {"refresh_seconds": 5}
        document["models"].append({"id": "fresh", "deployments": [{"provider": "one", "model": "scripted"}]})

    assert reloading.door.chat("fresh", OK).status == 404
    write(reloading, change)
    shown = taken(reloading, 2)
    assert shown["needs_restart"] == ["server.port", "identity.refresh_seconds"]
    assert reloading.door.chat("fresh", OK).status == 200
    assert "needs a restart: server.port" in reloading.log.read_text()


def test_a_stream_ends_on_the_provider_it_began_with_though_that_is_taken_out(
    reloading: Gateway, upstream: Upstream
) -> None:
    admin = Admin(admin_port(reloading))
    mark = upstream.plan("content_then_silence")
    with reloading.door.begin(chat(MODEL, mark, stream=True)) as connection:
        assert connection.read_head().status == 200
        upstream.wait(mark)

        write(reloading, lambda document: without(document, "one"))
        taken(reloading, 2)
        assert reloading.door.chat(MODEL, OK).status == 404
        upstream.release(mark)
        found = list(events(connection.blocks()))
    assert found[-1] == "[DONE]"
    assert content_of(found)
    eventually(lambda: b"hortator_upstream_connections 0\n" in admin.call("/metrics").body, "its connection to close")


def test_a_swapped_symlink_is_noticed_as_kubernetes_makes_it(tmp_path: Path, upstream: Upstream) -> None:
    with running_gateway(tmp_path, upstream, reload={"watch_seconds": WATCH}) as gateway:
        gateway.stop()
        first, second = tmp_path / "..1", tmp_path / "..2"
        first.mkdir()
        second.mkdir()
        document = yaml.safe_load(gateway.config.read_text())
        (first / "hortator.yaml").write_text(yaml.safe_dump(document))
        document["models"][0]["id"] = "renamed"
        (second / "hortator.yaml").write_text(yaml.safe_dump(document))
        data = tmp_path / "..data"
        data.symlink_to(first.name)
        gateway.config.unlink()
        gateway.config.symlink_to("..data/hortator.yaml")
        gateway.start()
        (tmp_path / "..tmp").symlink_to(second.name)
        os.replace(tmp_path / "..tmp", data)
        taken(gateway, 2)
        assert gateway.door.chat("renamed", OK).status == 200
        assert gateway.door.chat(PAIR, OK).status == 404


def test_breakers_stay_open_for_deployments_that_stay_the_same(tmp_path: Path, upstream: Upstream) -> None:
    def state() -> Any:
        return json.loads(gateway.door.call("GET", "/ready").body)["deployments"]["closed/scripted"]["state"]

    changes: dict[str, Any] = {"reload": {"watch_seconds": WATCH}, "breaker": {"failures": 1, "look": False}}
    with running_gateway(tmp_path, upstream, **changes) as gateway:
        assert gateway.door.chat("closed-pair", OK).status == 200
        assert state() == "open"
        write(gateway, lambda document: provider(document, "one").update(api_key="${TWO_KEY}"))
        taken(gateway, 2)
        assert state() == "open"
        write(gateway, lambda document: provider(document, "closed").update(headers={"x-new": "yes"}))
        taken(gateway, 3)
        assert state() == "closed", "a changed provider begins anew"
