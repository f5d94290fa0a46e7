"""`hortator keys` and `hortator tenants`, as an operator or a script uses them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hortator.cli import main

KEY = re.compile(r"hrt_sk_[A-Za-z0-9_-]{43}\n")


class Command:
    """Runs commands on a home of its own."""

    def __init__(self, home: Path) -> None:
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
