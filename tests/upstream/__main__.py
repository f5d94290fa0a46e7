"""Run the scripted upstream: `python -m tests.upstream [--port N] [--default SCENARIO]`.

Prints `{"port": N}` once it listens, and ends when its standard input closes, so it never outlives the tests that
started it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

from tests.upstream.server import HEAD_LIMIT, Upstream


async def run(port: int, default: str) -> None:
    upstream = Upstream(default)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", port, limit=HEAD_LIMIT, backlog=1024)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.upstream")
    parser.add_argument("--port", type=int, default=0, help="0 = any free port")
    parser.add_argument("--default", default="", help="scenario of requests for which nothing was planned")
    given = parser.parse_args()
    asyncio.run(run(given.port, given.default))


if __name__ == "__main__":
    main()
