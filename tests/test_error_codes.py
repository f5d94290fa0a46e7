"""The codes that callers see are one closed list, and the contract explains each of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

from hortator.errors import CODES

ROOT = Path(__file__).parent.parent
SDK = ROOT / "hortator" / "client"
"""It has codes of its own, for what happens on the client's side."""
SOURCES = sorted(path for path in (ROOT / "hortator").rglob("*.py") if SDK not in path.parents)
NEVER_TOLD = {
    "ambiguous_key",  # the command line's
    "invalid_configuration",
    "invalid_tenants_file",
    # Defaults of classes that are only raised with a code of their own:
    "forbidden",
    "unavailable",
}


def test_every_code_that_is_raised_is_in_the_closed_list() -> None:
    raised = {code for path in SOURCES for code in _raised(ast.parse(path.read_text("utf-8")))}
    assert raised - NEVER_TOLD <= CODES


def test_every_code_of_the_closed_list_is_used() -> None:
    """Besides standing in the list, it is a word of some program line."""
    words = [node.value for path in SOURCES for node in ast.walk(ast.parse(path.read_text("utf-8"))) if _text(node)]
    in_the_list_alone = {code for code in CODES if words.count(code) < 2}
    assert in_the_list_alone == set()


def test_the_contract_explains_the_codes_of_the_closed_list_and_no_others() -> None:
    page = (ROOT / "docs" / "api-contracts.md").read_text("utf-8")
    rows = re.findall(r"^\| [1-5]\d\d[^|]* \| ([^|]+) \|", page, re.MULTILINE)
    assert {code for row in rows for code in re.findall(r"`([a-z_0-9]+)`", row)} == CODES


def _raised(tree: ast.Module) -> Iterator[str]:
    """The literal values of every `code=` and `default_code =`."""
    given = [node.value for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "code"]
    defaults = [node for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.AnnAssign)]
    given += [node.value for node in defaults if node.value and ast.unparse(node).startswith("default_code")]
    for value in given:
        chosen = (value.body, value.orelse) if isinstance(value, ast.IfExp) else (value,)
        yield from (one.value for one in chosen if isinstance(one, ast.Constant) and isinstance(one.value, str))


def _text(node: ast.AST) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
