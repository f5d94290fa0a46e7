"""Objects by attribute, and what `from hortator import ...` loads."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest

import hortator
from hortator.client import HortatorClient, Record, TaskConfig, TaskEvent


def test_a_record_is_read_at_any_depth() -> None:
    """R-000-19."""
    record = Record({"papers": [{"citation": "A", "deep": [[{"x": 1}]]}], "odd-name": {"items": 2}, "n": None})
    assert record.papers[0].citation == "A"
    assert record.papers[0].deep[0][0].x == 1
    assert record["odd-name"].items == 2
    assert record.n is None
    assert "papers" in record
    assert "nothing" not in record
    assert list(record) == ["papers", "odd-name", "n"]
    assert len(record) == 3


def test_a_record_says_what_it_has() -> None:
    with pytest.raises(AttributeError, match="alpha, beta"):
        _ = Record({"beta": 1, "alpha": 2}).gamma
    with pytest.raises(KeyError):
        Record()["gamma"]


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Record({"a": 1}).a = 2


def test_a_record_is_a_value() -> None:
    record = Record({"a": {"b": [1]}})
    assert record == {"a": {"b": [1]}} == record.to_dict()
    assert copy.deepcopy(record) == pickle.loads(pickle.dumps(record)) == record
    assert "b" in repr(record)
    assert "a" in dir(record)


def test_an_event_of_a_later_server_is_read_too() -> None:
    event = TaskEvent({"seq": 1, "type": "brand_new", "colour": "red"})
    assert (event.type, event.content, event.colour, event.ends) == ("brand_new", None, "red", False)
    assert event.details.to_dict() == {}


def test_the_sdk_is_imported_from_the_package_itself() -> None:
    """R-000-12."""
    assert hortator.HortatorClient is HortatorClient
    assert hortator.TaskConfig is TaskConfig
    with pytest.raises(AttributeError):
        _ = hortator.HortatorKlient  # type: ignore[attr-defined]


def test_the_server_does_not_load_the_sdk() -> None:
    look = "import sys, hortator.app; sys.exit(any(name.startswith('hortator.client') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", look], check=False, timeout=60).returncode == 0


def test_the_sdk_loads_neither_server_nor_web_framework() -> None:
    look = (
        "import sys; from hortator import HortatorClient, TaskConfig;"
        "bad = {'sqlalchemy', 'fastapi', 'uvicorn', 'dbos', 'click', 'hortator.settings'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", look], check=False, timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
