"""A stand-in for the embedded model's child process: the same line protocol and HTTP surface, no engine.

Run as `python fake_model.py FOLDER`. What the last message says decides the answer: `die`, `hold` (until the file `release`
is in FOLDER), `overflow`, `say TEXT`; anything else is answered with the request's own body. The files `not-yet`, `exit-N`
and `mute` in FOLDER change its start.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hortator.providers.local_child import ChildConfig, die_with, first_line, leave_at_end_of

FOLDER = Path(sys.argv[1])
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
OVERFLOW = {
    "code": 400,
    "message": "request (6030 tokens) exceeds the available context size (4096 tokens), try increasing it",
    "type": "exceed_context_size_error",
    "n_prompt_tokens": 6030,
    "n_ctx": 4096,
}


def wait_while(condition: Any) -> None:
    """Poll: this is a process of its own, it has no event to wait for."""
    while condition():
        time.sleep(0.01)


class Handler(BaseHTTPRequestHandler):
    """Answers like the engine's server."""

    protocol_version = "HTTP/1.1"
    key = ""

    def log_message(self, *args: object) -> None:
        """Requests are not logged."""

    def do_GET(self) -> None:
        """Health."""
        self.answer(200, {"status": "ok"})

    def do_POST(self) -> None:
        """Chat."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.headers.get("authorization") != f"Bearer {self.key}":
            self.answer(401, {"error": {"message": "Invalid API Key", "type": "authentication_error", "code": 401}})
            return
        said = body["messages"][-1]["content"]
        if said == "die":
            os._exit(1)
        if said == "overflow":
            self.answer(400, {"error": OVERFLOW})
            return
        if said == "hold":
            wait_while(lambda: not (FOLDER / "release").exists())
        text = said.removeprefix("say ") if said.startswith("say ") else json.dumps(body)
        if body.get("stream"):
            self.stream(body, text)
        else:
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self.answer(200, {"id": "c1", "model": body["model"], "choices": [choice], "usage": USAGE})

    def answer(self, status: int, document: Any) -> None:
        """Send a JSON document."""
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, body: Any, text: str) -> None:
        """Send a text as a stream, three characters a chunk."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        deltas: list[Any] = [{"role": "assistant", "content": None}]
        deltas += [{"content": text[at : at + 3]} for at in range(0, len(text), 3)]
        chunks: list[Any] = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if body["stream_options"]["include_usage"]:
            chunks.append({"choices": [], "usage": USAGE})
        for chunk in chunks:
            self.wfile.write(b"data: " + json.dumps({"id": "c1", "model": body["model"], **chunk}).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True


def main() -> None:
    """Serve until standard input ends."""
    config = ChildConfig(**json.loads(first_line(0)))
    die_with(config.parent)
    threading.Thread(target=leave_at_end_of, args=(0,), daemon=True).start()
    (FOLDER / "environment").write_text(json.dumps(dict(os.environ)))
    (FOLDER / "config").write_text(json.dumps({"parallel": config.parallel, "context": config.context}))
    for path in FOLDER.glob("exit-*"):
        sys.stderr.write("something is wrong here\n")
        sys.stderr.flush()
        os._exit(int(path.name.removeprefix("exit-")))
    wait_while((FOLDER / "not-yet").exists)
    if (FOLDER / "mute").exists():
        threading.Event().wait()
    Handler.key = config.key
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sys.stdout.write(json.dumps({"port": server.server_address[1], "model": config.name}) + "\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
