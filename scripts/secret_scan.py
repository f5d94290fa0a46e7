"""Look for secrets and for addresses of package registries in every file that git tracks or would track. Called by `make secrets`.

A key is found by its provider's form. What is plainly made up is let through: a placeholder word in it, or too little variety.
Registries are the installing machine's choice, so no file names one, lock files included. Values are never printed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SECRETS = {
    "Hortator key": r"hrt_sk_[A-Za-z0-9_-]{20,}",
    "OpenAI or Anthropic key": r"\bsk-(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{20,}",
    "Groq key": r"gsk_[A-Za-z0-9]{20,}",
    "AWS access key": r"(?:AKIA|ASIA)[A-Z0-9]{16}",
    "GitHub token": r"(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,})",
    "Hugging Face token": r"hf_[A-Za-z0-9]{30,}",
    "Google key": r"AIza[A-Za-z0-9_-]{35}",
    "Slack token": r"xox[abprs]-[A-Za-z0-9-]{10,}",
    "private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
    "Cloudflare token": r"(?i:cloudflare|workers_ai|cf_api)[A-Za-z_]*(?i:token|key)['\"]?\s*[:=]\s*['\"]?[A-Za-z0-9_-]{37,}",
    "password in a URL": r"[a-z][a-z0-9+]*://[^\s:/@'\"{}$<>]+:[^\s:/@'\"{}$<>]{12,}@",
}
REGISTRIES = r"pypi[.]org|pythonhosted[.]org|npmjs[.]org|yarnpkg[.]com|proxy[.]golang[.]org|(?:static[.])?crates[.]io"
INDEX_OPTIONS = r"^\s*--(?:extra-)?(?:index-url|find-links|trusted-host)\b"

MADE_UP = re.compile(
    r"example|placeholder|canary|planted|fake|dummy|test|wrong|unknown|nobody|secret|your[-_]|\.\.\.", re.IGNORECASE
)
VARIETY = 10
"""A real key of 20 characters or more practically always holds at least this many different ones."""


def is_made_up(value: str) -> bool:
    return bool(MADE_UP.search(value)) or len(set(value)) < VARIETY


def findings(text: str) -> Iterator[tuple[int, str]]:
    """Yield line number and kind of everything in `text` that must not be there."""
    for number, line in enumerate(text.splitlines(), start=1):
        for kind, pattern in SECRETS.items():
            if any(not is_made_up(found.group()) for found in re.finditer(pattern, line)):
                yield number, kind
        if re.search(REGISTRIES, line) or re.search(INDEX_OPTIONS, line):
            yield number, "address of a package registry"


def files() -> list[Path]:
    """Return what git tracks, and what is new and not ignored: a key is best found before it is committed."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    return [path for path in map(Path, filter(None, names)) if path.is_file()]


def main() -> int:
    scanned = files()
    found = 0
    for path in scanned:
        for number, kind in findings(path.read_text(encoding="utf-8", errors="replace")):
            print(f"{path}:{number}: {kind}")
            found += 1
    print(f"secrets: {found} found in {len(scanned)} files")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
