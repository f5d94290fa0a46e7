"""`hortator check`: says what would be served or everything that is wrong, and never a secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hortator.cli import main

CANARY = "sk-canary-77b0e2d94c"
TEXT = """
providers:
  - {id: groq, preset: groq, api_key: "${S}", headers: {x-team: "${S}"}, models: [a, b]}
models: [{id: smart, deployments: [{provider: groq, model: a}, {provider: local, model: qwen2.5-coder-0.5b}]}]
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "GROQ_API_KEY", "WORKERS_AI_TOKEN", "CLOUDFLARE_ACCOUNT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HORTATOR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("S", CANARY)
    path = tmp_path / "a.yaml"
    path.write_text(TEXT)
    return path


def check(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["check", *arguments])
    assert result.exit_code == code, result.output
    assert CANARY not in result.output + repr(result.exception)
    return result


def test_it_prints_what_would_be_served(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HORTATOR_STORE_URL", f"postgresql://me:{CANARY}@db.local:5433/gateway")
    monkeypatch.setenv("HORTATOR_PROT", "1")
    out = check(str(file)).stdout
    for line in (
        f"configuration  {file}",
        "listens on     http://127.0.0.1:8000/v1",
        "store          postgresql, gateway at db.local:5433",
        "https://api.groq.com/openai/v1  (2 models; with key; headers x-team)",
        "groq/b",
        "smart        groq/a, then local/qwen2.5-coder-0.5b",
        "variables used HORTATOR_HOME, HORTATOR_STORE_URL, S",
        "HORTATOR_PROT means nothing here; did you mean HORTATOR_PORT?",
    ):
        assert line in out


def test_it_prints_json_for_programs(file: Path) -> None:
    report = json.loads(check("--json", str(file)).stdout)
    assert report["valid"] is True
    assert report["store"]["database"].endswith("home/hortator.db")
    assert [provider["id"] for provider in report["providers"]] == ["groq", "ollama"]
    assert report["providers"][0]["api_key"] is True
    assert report["models"][0]["deployments"] == ["groq/a", "local/qwen2.5-coder-0.5b"]
    assert report["local"]["id"] == "local/qwen2.5-coder-0.5b"


def test_it_lists_every_problem_on_stderr_and_ends_with_1(file: Path) -> None:
    file.write_text("server: {prot: 1}\nproviders: [{id: a, base_url: nope}]")
    result = check(str(file), code=1)
    assert result.stdout == ""
    assert [line.partition(": ")[0] for line in result.stderr.splitlines()] == [f"{file}:1", f"{file}:2"]
    result = check(str(file), "--json", code=1)
    assert json.loads(result.stdout) == {"valid": False, "problems": result.stderr.splitlines()}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("store: {url: 'postgresql://u:sk-canary-77b0e2d94c@h:x/db'}", "store.url"),
        ("upstream: {ca_file: a.yaml}", "CA file"),
        ("ledger: {price_overrides: a.yaml}", "a.yaml"),
    ],
)
def test_it_finds_what_the_server_would_refuse_at_its_start(file: Path, text: str, problem: str) -> None:
    file.write_text(text)
    assert problem in check(str(file), code=1).stderr


def test_it_says_when_the_embedded_model_cannot_be_had(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HORTATOR_LOCAL_MODEL", "/nowhere/x.gguf")
    assert "cannot be read" in check().stdout
    monkeypatch.setenv("HORTATOR_LOCAL_MODEL", "no-such-model")
    assert "no embedded model named 'no-such-model'" in check().stdout
    monkeypatch.setenv("HORTATOR_LOCAL__ENABLED", "false")
    assert "switched off" in check().stdout


def test_it_writes_nothing(file: Path, tmp_path: Path) -> None:
    check()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.yaml"]
