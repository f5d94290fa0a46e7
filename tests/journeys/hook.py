"""A receiver of webhooks on loopback, in a thread: it keeps what came, and answers when the test lets it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from tests.gateway import eventually


class Call(NamedTuple):
    """What was posted."""

    id: str
    """The header `webhook-id`."""
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Hook:
    """The receiver."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.answers = threading.Event()
        """Calls wait until it is set."""
        self.answers.set()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                hook.calls.append(Call(headers["webhook-id"], headers, body))
                hook.answers.wait(60)
                try:
                    self.send_response(204)
                    self.end_headers()
                except OSError:
                    return

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    @property
    def place(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.server.server_address[1]}"

    def of(self, task_id: str) -> list[Call]:
        """The calls of a tree."""
        return [call for call in self.calls if call.json["task_id"] == task_id]

    def told(self, task_id: str) -> list[Call]:
        """The calls of a tree, once the one of its end has come."""

        def look() -> list[Call]:
            found = self.of(task_id)
            return found if found and found[-1].json["event_type"] != "task_progress" else []

        return eventually(look, "the call of the tree's end")


@contextmanager
def running_hook() -> Iterator[Hook]:
    """Listen for a while."""
    hook = Hook()
    thread = threading.Thread(target=hook.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hook
    finally:
        hook.answers.set()
        hook.server.shutdown()
        hook.server.server_close()
