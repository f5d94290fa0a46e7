"""An operator's own outcomes retrain the complexity score: requests, their rows, `hortator router train`, other decisions."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import yaml

from tests.door import Reply
from tests.gateway import PATIENCE, ROOT, Gateway, eventually, running_gateway
from tests.upstream.process import Upstream

ROUTING = {
    "require_task_type": False,
    "cards": {"one/scripted": {"quality": 5}, "two/scripted": {"quality": 9}},
    "paths": {"fast": {"models": ["one/scripted"]}, "standard": {"models": ["two/scripted"]}},
}
CONTENT, DISAPPOINTING = "What is the capital of country {}?", "Translate the word {} into French"
WORDS = [f"{first}{second}" for first in ("tree", "stone", "cloud", "sea", "fire") for second in "abcdefghijklmnopqrst"]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Gateway]:
    with running_gateway(tmp_path_factory.mktemp("training"), upstream, routing=ROUTING) as running:
        yield running


def ask(gateway: Gateway, mark: str, text: str, model: str = "auto", **headers: str) -> Reply:
    body = {"model": model, "user": mark, "messages": [{"role": "user", "content": text}]}
    reply = gateway.door.post(body, **headers)
    assert reply.status == 200, reply
    return reply


def path_of(gateway: Gateway, text: str) -> str:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
    shown = gateway.door.call("POST", "/api/v1/route", json.dumps(body).encode())
    path: str = shown.json["path"]
    return path


def outcomes(gateway: Gateway) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(f"file:{gateway.database()}?mode=ro", uri=True)) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute("select * from routing_outcomes order by id")]


def train(gateway: Gateway) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hortator", "router", "train", "--config", str(gateway.config)],
        cwd=ROOT,
        env=gateway.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_outcomes_are_recorded_and_retrain_the_score(gateway: Gateway, upstream: Upstream) -> None:
    mark = upstream.plan("ok")
    assert path_of(gateway, DISAPPOINTING.format("oak")) == path_of(gateway, CONTENT.format("oak")) == "fast"
    ask(gateway, mark, "hello", x_hortator_session="first")
    ask(gateway, mark, "What is a noun?", "two/scripted", x_hortator_session="first")
    eventually(lambda: any(row["escalated"] for row in outcomes(gateway)), "the first outcome to be marked")
    [row] = outcomes(gateway)
    assert (row["path"], row["model"], row["retried"], row["error_code"]) == ("fast", "scripted-2026-01-01", 1, None)
    assert "hello" not in "".join(map(str, row.values()))
    refused = train(gateway)
    assert refused.returncode == 1
    assert "there are 1 outcomes, of which 1 can be learnt from, 1 of them escalated" in refused.stderr
    assert "needed are 200, 20 of them escalated" in refused.stderr

    for word in WORDS:
        ask(gateway, mark, CONTENT.format(word))
        ask(gateway, mark, DISAPPOINTING.format(word))
        ask(gateway, mark, DISAPPOINTING.format(word), "two/scripted")
    eventually(lambda: sum(row["escalated"] for row in outcomes(gateway)) == 101, "the outcomes to be marked")
    trained = train(gateway)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "201 examples" in trained.stdout
    before, after = (line.split() for line in trained.stdout.splitlines()[2:4])
    assert (before[0], after[0]) == ("before", "after")
    print(trained.stdout)
    assert float(after[1]) > float(before[1]) + 0.3

    settings = yaml.safe_load(gateway.config.read_text())
    settings["routing"]["complexity_data"] = str(gateway.home / "data" / "complexity.json")
    gateway.config.write_text(yaml.safe_dump(settings, sort_keys=False))
    gateway.terminate()
    gateway.wait()
    gateway.start()
    assert path_of(gateway, DISAPPOINTING.format("oak")) == "standard"
    assert path_of(gateway, CONTENT.format("oak")) == "fast"
    assert path_of(gateway, "Design Netflix") == "complex", "what nothing argued against stays"


def test_nothing_is_recorded_when_the_operator_says_so(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream
) -> None:
    mark = upstream.plan("ok")
    off = {**ROUTING, "record_outcomes": False}
    with running_gateway(tmp_path_factory.mktemp("silent"), upstream, routing=off) as gateway:
        reply = ask(gateway, mark, "hello")
        gateway.row(str(reply.header("x-request-id")))
        gateway.terminate()
        assert gateway.wait() == 0
        assert outcomes(gateway) == []
