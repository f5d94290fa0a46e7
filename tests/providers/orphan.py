"""A parent that is going to be killed: keeps a fake model alive and prints its process id. Run as `orphan.py FOLDER`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from hortator.providers.local_model import LocalModel

FAKE = Path(__file__).with_name("fake_model.py")


async def main() -> None:
    """Print the child's id once it serves, then wait for the end."""
    folder = Path(sys.argv[1])
    model = LocalModel(folder / "x.gguf", "fake", command=(sys.executable, str(FAKE), str(folder)))
    await model.start()
    serving = await model.serving(asyncio.get_running_loop().time() + 30)
    print(serving.child.pid, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
