"""Open WebUI in front of the gateway: its own server runs, and is asked as its page in the browser asks it.

It is large, so `make test-clients` installs it only with OPEN_WEBUI=1.
"""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.clients.conftest import INSTALLED, MODEL, PATIENCE, Client
from tests.gateway import eventually, free_port

START = 120.0
"""Seconds it may take to start; it makes a database first."""

pytestmark = pytest.mark.limit(PATIENCE + START)


class OpenWebUI:
    """A running Open WebUI and a user's token."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.port = port
        self.process = process
        self.token = ""

    def ask(self, path: str, document: Any = None) -> str:
        """GET, or POST a document; the body of the answer."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            None if document is None else json.dumps(document).encode(),
            {"content-type": "application/json", "authorization": f"Bearer {self.token}"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
            body: bytes = reply.read()
        return body.decode()

    def sign_in(self) -> bool:
        """Whether it is there by now."""
        assert self.process.poll() is None, "Open WebUI ended"
        try:
            self.token = json.loads(self.ask("/api/v1/auths/signin", {"email": "", "password": ""}))["token"]
        except urllib.error.URLError:
            return False
        return True


@contextmanager
def open_webui(client: Client) -> Iterator[OpenWebUI]:
    if not (INSTALLED / "open-webui").exists():
        pytest.skip("Open WebUI is not installed: OPEN_WEBUI=1 make test-clients")
    program = client.program("open-webui", "bin/open-webui")
    port = free_port()
    environment = client.environment(
        DATA_DIR=str(client.folder),
        WEBUI_AUTH="false",
        WEBUI_SECRET_KEY="secret of a test",
        OFFLINE_MODE="true",
        OPENAI_API_BASE_URL=f"{client.url}/v1",
        OPENAI_API_KEY=client.key,
        ENABLE_OLLAMA_API="false",
        RAG_EMBEDDING_ENGINE="openai",
        RAG_EMBEDDING_MODEL=MODEL,
        RAG_OPENAI_API_BASE_URL=f"{client.url}/v1",
        RAG_OPENAI_API_KEY=client.key,
    )
    log = client.home / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "serve", "--host", "127.0.0.1", "--port", str(port)],
            cwd=client.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        running = OpenWebUI(port, process)
        eventually(running.sign_in, "Open WebUI", START)
        yield running
    except AssertionError as failed:
        failed.add_note(log.read_text(errors="replace"))
        raise
    finally:
        process.kill()
        process.wait()


def test_open_webui_chats_and_embeds(client: Client) -> None:
    with open_webui(client) as running:
        assert MODEL in [model["id"] for model in json.loads(running.ask("/api/models"))["data"]]
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "Salve"}]}
        whole = json.loads(running.ask("/api/chat/completions", asked))
        assert whole["choices"][0]["message"]["content"] == "You said: Salve"
        lines = running.ask("/api/chat/completions", {**asked, "stream": True}).splitlines()
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk.get("choices"))
        assert text == "You said: Salve"
        embedded = json.loads(running.ask("/api/embeddings", {"model": MODEL, "input": ["Salve"]}))
        assert len(embedded["data"][0]["embedding"]) == 32
    operations = {"chat", "embeddings"}
    eventually(lambda: {row["operation"] for row in client.records()} == operations, "a record of each operation")
