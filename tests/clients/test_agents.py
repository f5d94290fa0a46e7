"""Coding agents against the gateway: each is asked for a file, in an empty home and an empty folder, and must have written it.

The configurations are those of docs/guides/coding-agents.md.
"""

from __future__ import annotations

import json

import pytest

from tests.clients.conftest import MODEL, PATIENCE, Client

TEXT = "Ave Hortator"
PROMPT = f"Create the file hello.txt with exactly this text: {TEXT}"

pytestmark = pytest.mark.limit(PATIENCE + 60)


def agent(name: str) -> str:
    return f"node_modules/.bin/{name}"


def the_file_is_written(client: Client, said: str, operation: str) -> None:
    """The file is there, and its making is recorded: every call under the client's key, through the door that it speaks to."""
    written = client.folder / "hello.txt"
    assert written.exists(), said
    assert written.read_text().rstrip("\n") == TEXT, said
    records = client.records()
    assert {(row["model_asked"], row["operation"], row["status"]) for row in records} == {(MODEL, operation, 200)}, said
    assert all(row["input_tokens"] and row["output_tokens"] for row in records)


def test_aider_writes_a_file(client: Client) -> None:
    aider = client.program("aider", "bin/aider")
    said = client.run(
        aider,
        *("--model", f"openai/{MODEL}", "--edit-format", "diff", "--yes-always", "--no-auto-commits", "--no-git"),
        *("--no-analytics", "--no-check-update", "--no-show-model-warnings", "--message", PROMPT, "hello.txt"),
        OPENAI_API_BASE=f"{client.url}/v1",
        OPENAI_API_KEY=client.key,
    )
    the_file_is_written(client, said, "chat")


def test_opencode_writes_a_file(client: Client) -> None:
    opencode = client.program("agents", agent("opencode"))
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Hortator",
        "options": {"baseURL": f"{client.url}/v1", "apiKey": "{env:HORTATOR_KEY}"},
        "models": {MODEL: {"name": "obedient"}},
    }
    document = {
        "$schema": "https://opencode.ai/config.json",
        "provider": {"hortator": provider},
        "model": f"hortator/{MODEL}",
        "small_model": f"hortator/{MODEL}",
        "permission": {"edit": "allow", "bash": "allow"},
        "autoupdate": False,
        "share": "disabled",
    }
    (client.folder / "opencode.json").write_text(json.dumps(document))
    said = client.run(opencode, "run", PROMPT, HORTATOR_KEY=client.key)
    the_file_is_written(client, said, "chat")


def test_continue_writes_a_file(client: Client) -> None:
    cn = client.program("agents", agent("cn"))
    (client.home / "config.yaml").write_text(
        f"""\
name: hortator
version: 1.0.0
schema: v1
models:
  - name: hortator
    provider: openai
    model: {MODEL}
    apiBase: {client.url}/v1
    apiKey: {client.key}
    roles: [chat, edit, apply]
    capabilities: [tool_use]
"""
    )
    said = client.run(cn, "--config", str(client.home / "config.yaml"), "--auto", "-p", PROMPT)
    the_file_is_written(client, said, "chat")


def test_cline_writes_a_file(client: Client) -> None:
    cline = client.program("agents", agent("cline"))
    client.run(
        *(cline, "auth", "openai-compatible"),
        *("--apikey", client.key, "--modelid", MODEL, "--baseurl", f"{client.url}/v1"),
    )
    said = client.run(cline, "-P", "openai-compatible", "-m", MODEL, PROMPT)
    the_file_is_written(client, said, "chat")


def test_codex_writes_a_file(client: Client) -> None:
    codex = client.program("agents", agent("codex"))
    settings = client.home / ".codex"
    settings.mkdir()
    (settings / "config.toml").write_text(
        f"""\
model = "{MODEL}"
model_provider = "hortator"
approval_policy = "never"
sandbox_mode = "danger-full-access"

[model_providers.hortator]
name = "Hortator"
base_url = "{client.url}/v1"
env_key = "HORTATOR_KEY"
wire_api = "responses"
"""
    )
    said = client.run(codex, "exec", "--skip-git-repo-check", PROMPT, HORTATOR_KEY=client.key)
    the_file_is_written(client, said, "responses")


def test_claude_code_writes_a_file(client: Client) -> None:
    claude = client.program("agents", agent("claude"))
    said = client.run(
        *(claude, "-p", PROMPT, "--permission-mode", "acceptEdits", "--allowedTools", "Write", "Bash"),
        ANTHROPIC_BASE_URL=client.url,
        ANTHROPIC_AUTH_TOKEN=client.key,
        ANTHROPIC_MODEL=MODEL,
        ANTHROPIC_SMALL_FAST_MODEL=MODEL,
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
        IS_SANDBOX="1",  # it asks whoever runs it as root for this
    )
    the_file_is_written(client, said, "messages")
