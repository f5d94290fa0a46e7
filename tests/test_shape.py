"""The shape check finds what is over its limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import shape


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = Path("house")
    folder.mkdir()
    (folder / "__init__.py").write_text('"""A house."""\n')
    return folder


def test_a_file_of_501_lines_of_code_is_found_and_prose_is_not_counted(package: Path) -> None:
    prose = '"""Some\n\nprose."""\n' + "# a comment\n\n" * 100
    (package / "small.py").write_text(prose + "x = 1\n" * 500)
    (package / "large.py").write_text(prose + "x = 1\n" * 501)
    assert list(shape.findings(package)) == ["house/large.py: 501 lines of code (limit 500)"]


def test_a_function_of_61_lines_is_found(package: Path) -> None:
    lines = "".join(f"    x = {number}\n" for number in range(59))
    (package / "rooms.py").write_text(f"def fits():\n{lines}\n\nasync def grew():\n{lines}    x = 0\n    return x\n")
    assert list(shape.findings(package)) == ["house/rooms.py:63: grew has 62 lines (limit 60)"]


def test_an_import_cycle_through_a_function_is_found(package: Path) -> None:
    (package / "cellar.py").write_text("from house import attic\n")
    (package / "attic.py").write_text("def climb():\n    from house.cellar import attic\n    return attic\n")
    [found] = shape.findings(package)
    assert found.startswith("house: import cycle: ")
    assert {"house.cellar", "house.attic"} <= set(found.replace("<-", " ").split())


def test_an_import_for_type_checking_only_makes_no_cycle(package: Path) -> None:
    guarded = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.cellar import Wine\n"
    (package / "cellar.py").write_text("import house.attic\n")
    (package / "attic.py").write_text(guarded)
    assert list(shape.findings(package)) == []
