"""A catalogue with one of everything: listed, open, detected, named and embedded models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from hortator.call import ProviderId
from hortator.routing import Catalogue
from hortator.settings import load

TEXT = """
providers:
  - {id: groq, base_url: "http://h/v1"}
  - {id: openai, base_url: "http://h/v1"}
  - {id: workers-ai, base_url: "http://h/v1", models: ["@cf/meta/llama-3.1-8b-instruct-fast"]}
  - {id: hidden, base_url: "http://h/v1", models: []}
  - {id: ollama, base_url: "http://h/v1", detect: true}
models:
  - {id: smart, description: Ours, deployments: [{provider: groq, model: big}, {provider: hidden, model: x/y}]}
  - {id: openai/gpt-4o, deployments: [{provider: openai, model: gpt-4o}, {provider: groq, model: big}]}
  - id: backed
    strategy: weighted
    deployments: [{provider: ollama, model: llama}, {provider: groq, model: big, weight: 3}]
    fallbacks: [smart, home, openai/anything]
    context_fallbacks: [groq/long]
  - {id: home, deployments: [{provider: ollama, model: llama}, {provider: local, model: qwen2.5-coder-0.5b}]}
"""
LISTED = {
    "groq": ("llama-3.1-8b-instant", "openai/gpt-oss-20b"),
    "openai": ("gpt-4o", "gpt-4o-mini"),
    "hidden": ("x/y",),
}

Build = Callable[..., Catalogue]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Make the catalogue, with what providers list and the embedded model's name."""

    def built(listed: Mapping[str, tuple[str, ...]] = LISTED, local: str | None = "qwen2.5-coder-0.5b") -> Catalogue:
        path = tmp_path / "hortator.yaml"
        path.write_text(TEXT)
        return Catalogue(load(path, {}), {ProviderId(key): models for key, models in listed.items()}, local)

    return built


@pytest.fixture
def catalogue(build: Build) -> Catalogue:
    return build()
