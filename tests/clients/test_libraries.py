"""Published client libraries against the gateway, each by its own test file in its own environment; one test here is one file there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.clients.conftest import INSTALLED, MODEL, PATIENCE, Client

HERE = Path(__file__).resolve().parent

pytestmark = pytest.mark.limit(PATIENCE + 30)


MAY_SKIP = {"langchain_openai_standard": 1, "langchain_anthropic_standard": 3}
"""LangChain has a test that needs recordings of a real model, and two of what Anthropic's dialect does not have: JSON mode and sound."""


def environment(client: Client) -> dict[str, str]:
    """R-000-54: a client needs two variables, and a model's name."""
    return {
        "OPENAI_BASE_URL": f"{client.url}/v1",
        "OPENAI_API_KEY": client.key,
        "ANTHROPIC_BASE_URL": client.url,
        "ANTHROPIC_AUTH_TOKEN": client.key,
        "MODEL": MODEL,
    }


def all_passed(said: str, passed: str, skipped: str, may_skip: int = 0) -> None:
    """The library's tests ran, all of them."""
    ran, left_out = re.search(passed, said), re.search(skipped, said)
    assert ran is not None and int(ran[1]) > 0, said
    assert int(left_out[1] if left_out else 0) == may_skip, said
    print(f"{ran[1]} passed")


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("python", "openai_chat"),
        ("python", "openai_responses"),
        ("python", "openai_batches"),
        ("python", "langchain_openai_standard"),
        ("python", "langchain_anthropic_standard"),
        ("python", "anthropic_messages"),
        ("litellm", "litellm_client"),
    ],
)
def test_a_python_library_works_unchanged(client: Client, where: str, name: str) -> None:
    python = client.program(where, "bin/python")
    said = client.run(python, "-m", "pytest", str(HERE / "python" / f"{name}.py"), **environment(client))
    all_passed(said, r"(\d+) passed", r"(\d+) skipped", MAY_SKIP.get(name, 0))
    assert client.records()


@pytest.mark.parametrize(
    "name",
    [
        "openai_chat",
        "openai_responses",
        "vercel_chat",
        "vercel_responses",
        "vercel_anthropic",
        "langchain_chat",
        "anthropic_messages",
    ],
)
def test_a_node_library_works_unchanged(client: Client, name: str) -> None:
    node = client.program("node", "node_modules/.bin/node")
    # Node looks for packages beside the file that imports them.
    shutil.copytree(HERE / "node", INSTALLED / "node", dirs_exist_ok=True)
    script = INSTALLED / "node" / f"{name}.mjs"
    said = client.run(node, "--test", "--test-timeout=30000", "--test-reporter=tap", str(script), **environment(client))
    all_passed(said, r"# pass (\d+)", r"# skipped (\d+)")
    assert client.records()
