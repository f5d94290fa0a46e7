"""Write `docs/openapi.json` from the code, or with `--check` compare it. Called by `make format` and `make check`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hortator.api.shell import document

FILE = Path("docs/openapi.json")


def main() -> int:
    generated = json.dumps(document(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if "--check" not in sys.argv[1:]:
        FILE.write_text(generated, encoding="utf-8")
        return 0
    if FILE.exists() and FILE.read_text(encoding="utf-8") == generated:
        print(f"openapi: {FILE} says what the code says")
        return 0
    print(f"openapi: {FILE} differs from the code: run `make format` and commit the file")
    return 1


if __name__ == "__main__":
    sys.exit(main())
