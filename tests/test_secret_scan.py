"""The secret scan finds what must not be committed, and lets made-up keys be. Real-looking keys are put together here at run time."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import secret_scan

ROOT = Path(__file__).resolve().parents[1]
DIGEST = hashlib.sha256(b"looks like a secret").digest()
"""The same in every process: tests are named after it."""
RANDOM = DIGEST.hex()


@pytest.mark.parametrize(
    "line",
    [
        "key = hrt_" + f"sk_{base64.urlsafe_b64encode(DIGEST).decode().rstrip('=')}",
        "OPENAI_API_KEY=sk-" + f"proj-{RANDOM}",
        "groq: gs" + f"k_{RANDOM}",
        "AKI" + "A" + "Q3EGRB7ZLP2MXNT5",
        "gh" + f"p_{RANDOM[:36]}",
        "-----BEGIN " + "EC PRIVATE KEY-----",
        "CLOUDFLARE_API_" + f"TOKEN={RANDOM[:40]}",
        "WORKERS_AI_" + f"TOKEN: '{RANDOM[:40]}'",
        "postgresql" + f"://hortator:{RANDOM[:16]}@db/hortator",
        "https://" + "pypi" + ".org/simple",
        "--extra-" + "index-url https://packages.example",
    ],
)
def test_a_planted_secret_or_registry_is_found(line: str) -> None:
    assert [number for number, _ in secret_scan.findings(f"harmless\n{line}\n")] == [2]


@pytest.mark.parametrize(
    "line",
    [
        "export OPENAI_API_KEY=hrt_sk_...",
        "re.compile(r'hrt_sk_[A-Za-z0-9_-]{43}')",
        "hrt_sk_" + "nobody_knows_this_one",
        "sk-" + "0" * 40,
        "CLOUDFLARE_API_TOKEN=${WORKERS_AI_TOKEN}",
        "postgresql://hortator:password@127.0.0.1/hortator",
        "    --hash=sha256:" + RANDOM,
    ],
)
def test_a_made_up_key_is_let_through(line: str) -> None:
    assert list(secret_scan.findings(line)) == []


def test_a_key_in_a_new_file_fails_the_scan_and_is_not_printed(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "notes.md").write_text("gs" + f"k_{RANDOM}\n")
    command = [sys.executable, str(ROOT / "scripts/secret_scan.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "notes.md:1: Groq key" in done.stdout
    assert RANDOM not in done.stdout + done.stderr
