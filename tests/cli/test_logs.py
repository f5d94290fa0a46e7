"""Log lines: one a record, for people or as JSON, without stacks and keys."""

from __future__ import annotations

import json
import logging
import sys

from hortator.cli.logs import Line


def record(message: str, *, failed: bool = False, **extra: object) -> logging.LogRecord:
    info = None
    if failed:
        try:
            raise ValueError("sk-secret-canary in an exception")
        except ValueError:
            info = sys.exc_info()
    made = logging.LogRecord("hortator.api", logging.ERROR, __file__, 1, message, (), info)
    made.__dict__.update(extra)
    return made


def test_a_json_line_names_the_request_and_never_holds_a_stack() -> None:
    line = Line(frozenset(), as_json=True).format(record("first\nsecond", failed=True, request_id="req_1"))
    assert "\n" not in line
    found = json.loads(line)
    assert set(found) == {"time", "level", "logger", "message", "request_id"}
    assert (found["level"], found["logger"], found["request_id"]) == ("error", "hortator.api", "req_1")
    assert found["message"] == f"first (ValueError at test_logs.py:{found['message'].rpartition(':')[2]}"
    assert "canary" not in line


def test_a_text_line_is_one_line() -> None:
    assert Line(frozenset(), as_json=False).format(record("a\nb")) == "ERROR hortator.api: a b"


def test_keys_are_taken_out_whoever_logged_them() -> None:
    for as_json in (False, True):
        line = Line(frozenset({"sk-provider-key"}), as_json=as_json).format(
            record("x sk-provider-key y hrt_sk_abcdefghijk z Authorization: Bearer abc.def")
        )
        assert all(secret not in line for secret in ("sk-provider-key", "abcdefghijk", "abc.def"))
        assert line.count("[redacted]") == 3
