"""What is served, under which ids, and who sees it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hortator.call import Deployment, ProviderId
from hortator.routing import Catalogue

Build = Callable[..., Catalogue]


def places(catalogue: Catalogue, model: str) -> list[tuple[str, str]] | None:
    found = catalogue.resolve(model)
    return None if found is None else [(deployment.provider, deployment.model) for deployment in found]


def ids(catalogue: Catalogue, *allowed: str) -> list[str]:
    return [entry.id for entry in catalogue.visible(allowed)]


@pytest.mark.parametrize(
    ("model", "provider", "name"),
    [
        ("groq/llama-3.1-8b-instant", "groq", "llama-3.1-8b-instant"),
        ("groq/openai/gpt-oss-20b", "groq", "openai/gpt-oss-20b"),
        ("groq/openai/not-listed", "groq", "openai/not-listed"),
        ("openai/gpt-oss-20b", "openai", "gpt-oss-20b"),
        ("workers-ai/@cf/meta/llama-3.1-8b-instruct-fast", "workers-ai", "@cf/meta/llama-3.1-8b-instruct-fast"),
        ("local/qwen2.5-coder-0.5b", "local", "qwen2.5-coder-0.5b"),
    ],
)
def test_only_the_first_slash_divides_provider_and_model(
    catalogue: Catalogue, model: str, provider: str, name: str
) -> None:
    """R-002-2, and the trap that `openai/gpt-oss-20b` is also a model of groq's."""
    assert catalogue.resolve(model) == (Deployment(id=model, provider=ProviderId(provider), model=name),)


def test_the_full_id_is_looked_up_before_it_is_split(catalogue: Catalogue) -> None:
    assert places(catalogue, "openai/gpt-4o") == [("openai", "gpt-4o"), ("groq", "big")]


def test_a_named_model_has_its_deployments_in_order(catalogue: Catalogue) -> None:
    assert places(catalogue, "smart") == [("groq", "big"), ("hidden", "x/y")]


@pytest.mark.parametrize(
    "model",
    ["", "/", "groq", "groq/", "/groq/x", "Groq/x", "nobody/x", "gpt-4o-mini", "workers-ai/other", "hidden/x/y", "local/other",
     "ollama/llama"],
)  # fmt: skip
def test_what_is_not_served_is_not_found(catalogue: Catalogue, model: str) -> None:
    assert catalogue.resolve(model) is None


def test_a_detected_provider_is_served_once_it_has_answered(build: Build) -> None:
    catalogue = build({"ollama": ("llama",)})
    assert places(catalogue, "ollama/llama") == [("ollama", "llama")]
    assert places(catalogue, "home") == [("ollama", "llama"), ("local", "qwen2.5-coder-0.5b")]


def test_a_named_model_keeps_what_can_be_had_and_goes_when_nothing_can(build: Build) -> None:
    assert places(build(), "home") == [("local", "qwen2.5-coder-0.5b")]
    without = build(local=None)
    assert without.resolve("home") is None
    assert without.resolve("local/qwen2.5-coder-0.5b") is None


def test_the_list_shows_named_embedded_and_listed_models_each_once(catalogue: Catalogue) -> None:
    assert ids(catalogue, "*") == [
        "smart",
        "openai/gpt-4o",
        "backed",
        "home",
        "local/qwen2.5-coder-0.5b",
        "groq/llama-3.1-8b-instant",
        "groq/openai/gpt-oss-20b",
        "openai/gpt-4o-mini",
        "workers-ai/@cf/meta/llama-3.1-8b-instruct-fast",
    ]


def test_an_entry_is_an_openai_model_object(catalogue: Catalogue) -> None:
    by_id = {entry.id: msgspec.to_builtins(entry) for entry in catalogue.visible(("*",))}
    assert by_id["smart"].pop("created") > 0
    assert by_id["smart"] == {"id": "smart", "object": "model", "owned_by": "hortator", "description": "Ours"}
    assert by_id["groq/openai/gpt-oss-20b"]["owned_by"] == "groq"
    assert "description" not in by_id["groq/openai/gpt-oss-20b"]
    assert "not for serious work" in by_id["local/qwen2.5-coder-0.5b"]["description"]


def test_a_key_sees_only_the_models_it_may_use(catalogue: Catalogue) -> None:
    assert ids(catalogue, "groq/*", "sm?rt") == ["smart", "groq/llama-3.1-8b-instant", "groq/openai/gpt-oss-20b"]
    assert ids(catalogue, "GROQ/*") == []
    assert ids(catalogue) == []


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=300))
def test_any_model_id_gets_an_answer(catalogue: Catalogue, model: str) -> None:
    found = catalogue.resolve(model)
    assert found is None or all(deployment.model for deployment in found)
    assert len(catalogue.similar(model, ("*",))) <= 3
