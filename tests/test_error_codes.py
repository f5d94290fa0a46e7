"""The codes that callers see are written down."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
CODE = re.compile(r'(?:code|default_code)\s*=\s*"([a-z_]+)"')
ROOMS = ("api", "batches", "store/blobs.py", "dispatch", "providers", "routing", "wire", "tenancy", "errors.py")
NEVER_ON_THE_WIRE = {
    "invalid_configuration",  # start-up only
    "invalid_header",  # adapters check what they are given; no door passes client headers on
    # Defaults of classes that are only raised with a code of their own:
    "forbidden",
    "invalid_request",
    "unavailable",
}


def test_every_code_that_a_client_can_get_is_in_the_contract() -> None:
    files = [
        path
        for room in ROOMS
        for path in [ROOT / "hortator" / room, *(ROOT / "hortator" / room).rglob("*.py")]
        if path.is_file()
    ]
    raised = {code for path in files for code in CODE.findall(path.read_text(encoding="utf-8"))}
    documented = set(re.findall(r"`([a-z_]+)`", (ROOT / "docs/api-contracts.md").read_text(encoding="utf-8")))
    assert raised - documented - NEVER_ON_THE_WIRE == set()
