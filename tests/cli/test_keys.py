"""`hortator keys` and `hortator tenants`, as an operator or a script uses them."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hortator.cli import main

KEY = re.compile(r"hrt_sk_[A-Za-z0-9_-]{43}\n")


class Command:
    """Runs commands on a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._environment = {"HORTATOR_HOME": str(home), "HORTATOR_CONFIG": None}

    def run(self, *words: str) -> Result:
        return CliRunner(env=self._environment).invoke(main, words)

    def __call__(self, *words: str) -> str:
        """The standard output of a command that succeeds."""
        result = self.run(*words)
        assert result.exit_code == 0, result.output
        return result.stdout

    def listed(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self("keys", "list", "--json"))
        return found


@pytest.fixture
def hortator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(tmp_path)
    return Command(tmp_path / "home")


def test_a_new_key_is_alone_on_standard_output_and_never_shown_again(hortator: Command) -> None:
    key = hortator("keys", "create", "--name", "ci")
    assert KEY.fullmatch(key)
    for words in (("keys", "list"), ("keys", "list", "--json"), ("keys", "rotate", "ci"), ("tenants", "list")):
        assert key.strip() not in hortator.run(*words).output


def test_a_key_has_the_tenant_models_life_and_permissions_it_was_given(hortator: Command) -> None:
    hortator("tenants", "create", "--name", "Team A", "--namespace", "team-a")
    hortator(
        *("keys", "create", "--name", "x", "--tenant", "team-a", "--expires", "30d"),
        *("--models", "groq/*", "--models", "local/*", "--permission", "usage:read"),
    )
    (key,) = hortator.listed()
    assert (key["tenant"], key["name"], key["state"]) == ("team-a", "x", "active")
    assert (key["models"], key["permissions"]) == (["groq/*", "local/*"], ["usage:read"])
    assert key["expires_at"] is not None
    listed = hortator("keys", "list").splitlines()
    assert listed[0].split()[:3] == ["PREFIX", "NAME", "TENANT"]
    assert key["prefix"] in listed[1]
    assert [each["namespace"] for each in json.loads(hortator("tenants", "list", "--json"))] == ["team-a"]


def test_rotation_prints_the_new_key_and_until_when_the_old_one_works(hortator: Command) -> None:
    hortator("keys", "create", "--name", "ci")
    result = hortator.run("keys", "rotate", "ci", "--overlap", "2h")
    assert KEY.fullmatch(result.stdout)
    old, new = sorted(hortator.listed(), key=lambda key: str(key["state"]), reverse=True)
    assert (old["state"], new["state"]) == ("replaced", "active")
    assert f"{old['prefix']} (ci) stays valid until {old['expires_at'][:10]}" in result.stderr


def test_an_ambiguous_name_is_an_error_that_names_the_prefixes(hortator: Command) -> None:
    hortator("keys", "create", "--name", "ci")
    hortator("keys", "create", "--name", "ci")
    result = hortator.run("keys", "revoke", "ci")
    assert result.exit_code == 1
    first, second = (key["prefix"] for key in hortator.listed())
    assert first in result.stderr
    assert second in result.stderr
    hortator("keys", "revoke", first)
    assert {key["prefix"]: key["state"] for key in hortator.listed()} == {first: "revoked", second: "active"}


@pytest.mark.parametrize(
    "words",
    [
        ("keys", "revoke", "nobody"),
        ("keys", "rotate", "nobody"),
        ("keys", "create", "--name", "x", "--tenant", "nobody"),
        ("keys", "create", "--name", "x", "--expires", "soon"),
        ("keys", "create", "--name", ""),
        ("tenants", "create", "--name", "X", "--namespace", "Not A Label"),
        ("keys", "list", "--tenant", "nobody"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(hortator: Command, words: tuple[str, ...]) -> None:
    result = hortator.run(*words)
    assert result.exit_code != 0
    assert "Error: " in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert hortator.listed() == []


MAPPING = """
tenants:
  hortator-dev-alpha:
    namespace: hortator-dev-alpha
    budget_limit: "1000 tokens/hour"
    allowed_models: ["hortator/coding-expert"]
  hortator-legal:
    namespace: hortator-legal
    budget_limit: "5000 tokens/hour"
    allowed_models: ["hortator/legal-*"]
    data_retention: "7 years"
  hortator-research:
    namespace: hortator-research
    budget_limit: unlimited
    allowed_models: ["*"]
    priority: high
"""


def _tenants(hortator: Command) -> dict[str, dict[str, Any]]:
    return {each["namespace"]: each for each in json.loads(hortator("tenants", "list", "--json"))}


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_tenants_of_a_config_map_are_imported_and_again_changed(
    hortator: Command, tmp_path: Path, wrapped: bool
) -> None:
    """R-000-66, R-000-67, R-000-68."""
    text = MAPPING
    if wrapped:
        data = {"tenant-mapping.yaml": MAPPING}
        text = json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "data": data})
    file = tmp_path / "tenants.yaml"
    file.write_text(text)
    hortator("tenants", "import", str(file))
    file.write_text(text.replace("5000 tokens", "7000 tokens"))
    hortator("tenants", "import", str(file))
    found = _tenants(hortator)
    assert found["hortator-dev-alpha"]["limits"] == ["1000 tokens/hour"]
    assert found["hortator-dev-alpha"]["models"] == ["hortator/coding-expert"]
    legal, research = found["hortator-legal"], found["hortator-research"]
    assert (legal["limits"], legal["data_retention"]) == (["7000 tokens/hour"], "7 years")
    assert (research["limits"], research["priority"], research["models"]) == ([], "high", ["*"])
    assert "7000 tokens/hour" in hortator("tenants", "list")


@pytest.mark.parametrize(
    "text",
    [
        "tenants: []",
        "a: [",
        "tenants: {a: {namespace: UPPER}}",
        "tenants: {a: {namespace: a, budget: 5}}",
        "tenants: {a: {namespace: a, budget_limit: lots}}",
        "tenants: {a: {namespace: a, allowed_models: '*'}}",
        "tenants: {a: {namespace: a}, b: {namespace: a}}",
        "tenants: {a: {namespace: a, data_retention: for ever}}",
    ],
)
def test_a_file_with_one_fault_changes_nothing(hortator: Command, tmp_path: Path, text: str) -> None:
    file = tmp_path / "tenants.yaml"
    file.write_text(text.replace("tenants: {", "tenants: {good: {namespace: good}, "))
    result = hortator.run("tenants", "import", str(file))
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert "good" not in _tenants(hortator)


def test_a_file_that_names_tenants_by_keys_is_refused_without_repeating_them(hortator: Command, tmp_path: Path) -> None:
    file = tmp_path / "tenants.yaml"
    file.write_text("tenants: {hrt_sk_secret: {namespace: a}}")
    result = hortator.run("tenants", "import", str(file))
    assert result.exit_code == 1
    assert "hrt_sk_secret" not in result.output


def test_limits_of_keys_are_set_shown_kept_by_rotation_and_taken_away(hortator: Command) -> None:
    hortator("keys", "create", "--name", "ci", "--limit", "60 Requests/minute", "--limit", "5 usd/day")
    assert hortator.listed()[0]["limits"] == ["60 requests/minute", "5 usd/day"]
    assert "60 requests/minute, 5 usd/day" in hortator("keys", "list")
    hortator("keys", "rotate", "ci")
    assert [key["limits"] for key in hortator.listed()] == [["60 requests/minute", "5 usd/day"]] * 2
    prefix = next(key["prefix"] for key in hortator.listed() if key["state"] == "active")
    hortator("keys", "set", prefix, "--limit", "unlimited")
    assert sorted(map(len, (key["limits"] for key in hortator.listed()))) == [0, 2]


def test_what_is_set_of_a_tenant_leaves_the_rest(hortator: Command) -> None:
    hortator("tenants", "create", "--name", "A", "--namespace", "a", "--limit", "5 usd/day", "--priority", "high")
    hortator("tenants", "set", "a", "--models", "groq/*", "--data-retention", "30 days")
    tenant = _tenants(hortator)["a"]
    assert (tenant["limits"], tenant["models"], tenant["priority"]) == (["5 usd/day"], ["groq/*"], "high")
    assert tenant["data_retention"] == "30 days"


@pytest.mark.parametrize(
    "words",
    [
        ("keys", "create", "--name", "x", "--limit", "5 apples/day"),
        ("keys", "set", "x"),
        ("tenants", "create", "--name", "x", "--namespace", "x", "--limit", "lots"),
        ("tenants", "set", "default"),
        ("tenants", "set", "nobody", "--limit", "5 usd/day"),
        ("tenants", "create", "--name", "x", "--namespace", "x", "--priority", "No 1"),
    ],
)
def test_what_cannot_be_set_is_refused_in_a_line(hortator: Command, words: tuple[str, ...]) -> None:
    result = hortator.run(*words)
    assert result.exit_code in (1, 2)
    assert "Traceback" not in result.output


def test_what_the_command_line_changes_is_in_the_audit_log(hortator: Command) -> None:
    """R-000-89."""
    hortator("tenants", "create", "--name", "A", "--namespace", "a")
    hortator("keys", "create", "--name", "ci", "--tenant", "a", "--priority", "low", "--data-retention", "30 days")
    hortator("keys", "set", "ci", "--models", "groq/*", "--permission", "usage:read")
    hortator("keys", "rotate", "ci")
    hortator("tenants", "set", "a", "--disable")
    with closing(sqlite3.connect(hortator.home / "hortator.db")) as database:
        found = database.execute("select action, actor_name, actor_key_hash from audit order by id").fetchall()
    assert [action for action, *_ in found] == [
        "tenant.create",
        "key.create",
        "key.change",
        "key.rotate",
        "tenant.change",
    ]
    assert all(name.startswith("command line (") and key is None for _, name, key in found)


def test_a_key_keeps_what_is_set_of_it(hortator: Command) -> None:
    hortator("keys", "create", "--name", "ci", "--limit", "5 usd/day")
    hortator("keys", "set", "ci", "--priority", "low", "--models", "groq/*")
    (key,) = hortator.listed()
    assert (key["limits"], key["priority"], key["models"]) == (["5 usd/day"], "low", ["groq/*"])


def test_a_tenant_is_disabled_and_enabled(hortator: Command) -> None:
    hortator("tenants", "create", "--name", "A", "--namespace", "a")
    hortator("tenants", "set", "a", "--disable")
    assert _tenants(hortator)["a"]["disabled_at"] is not None
    hortator("tenants", "set", "a", "--enable")
    assert _tenants(hortator)["a"]["disabled_at"] is None
