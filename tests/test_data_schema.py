"""The page about the tables names every table, and in each section every column and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hortator.store.tables import metadata

PAGE = (Path(__file__).parent.parent / "docs" / "data-schema.md").read_text("utf-8")


@pytest.mark.parametrize("table", sorted(metadata.tables))
def test_each_table_is_explained_column_by_column(table: str) -> None:
    section = re.search(rf"^## `{table}`\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
    assert section is not None
    cells: list[str] = re.findall(r"^\| (`[^|]+) \|", section[1], re.MULTILINE)
    explained = {name for cell in cells for name in re.findall(r"`([a-z0-9_]+)`", cell)}
    assert explained == set(metadata.tables[table].columns.keys())
