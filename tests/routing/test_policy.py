"""Deciding where a call may go: who may use what, and what a refused caller learns."""

from __future__ import annotations

import pytest

from hortator.call import ModelId
from hortator.errors import Forbidden, NotFound
from hortator.routing import Catalogue
from hortator.routing.policy import named as decide
from tests.routing.conftest import Build

ALL = ("*",)


def test_a_decision_carries_the_model_its_deployments_and_the_wait(catalogue: Catalogue) -> None:
    decision = decide(ModelId("smart"), ALL, catalogue, 1234)
    assert decision.model == "smart"
    assert [deployment.id for deployment in decision.candidates] == ["groq/big", "hidden/x/y"]
    assert decision.status_wait_ms == 1234


def test_a_decision_carries_the_strategy_and_the_fallbacks_that_are_served(build: Build) -> None:
    decision = decide(ModelId("backed"), ALL, build(), 0)
    assert (decision.strategy, [d.id for d in decision.candidates], decision.weights) == (
        "weighted",
        ["groq/big"],
        (3,),
    ), "a deployment that is not there takes its weight with it"
    assert [route.model for route in decision.fallbacks] == ["smart", "home", "openai/anything"]
    assert [d.id for d in decision.fallbacks[0].candidates] == ["groq/big", "hidden/x/y"]
    assert decision.fallbacks[0].strategy == "least-in-flight"
    assert [route.model for route in decision.context_fallbacks] == ["groq/long"]
    assert decision.content_fallbacks == ()
    alone = decide(ModelId("backed"), ALL, build(local=None), 0)
    assert [route.model for route in alone.fallbacks] == ["smart", "openai/anything"]


def test_a_fallback_must_be_allowed_to_the_key_as_well(catalogue: Catalogue) -> None:
    decision = decide(ModelId("backed"), ("backed", "openai/*"), catalogue, 0)
    assert [route.model for route in decision.fallbacks] == ["openai/anything"]
    assert decision.context_fallbacks == ()


def refusal(model: str, allowed: tuple[str, ...], catalogue: Catalogue) -> NotFound | Forbidden:
    with pytest.raises((NotFound, Forbidden)) as caught:
        decide(ModelId(model), allowed, catalogue, 0)
    error = caught.value
    assert isinstance(error, NotFound | Forbidden) and error.param == "model"
    return error


def test_an_unknown_model_is_404_and_the_message_says_how_to_see_models(catalogue: Catalogue) -> None:
    error = refusal("nobody/x", ALL, catalogue)
    assert (error.status, error.code) == (404, "model_not_found")
    assert "GET /v1/models" in error.message


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("gpt-4o-mini", "openai/gpt-4o-mini"),
        ("opneai/gpt-4o-mini", "openai/gpt-4o-mini"),
        ("GPT-OSS-20B", "groq/openai/gpt-oss-20b"),
        ("smrt", "smart"),
        ("local/qwen2.5-coder", "local/qwen2.5-coder-0.5b"),
    ],
)
def test_the_model_that_was_probably_meant_is_named(catalogue: Catalogue, asked: str, meant: str) -> None:
    assert f"Did you mean {meant}" in refusal(asked, ALL, catalogue).message


def test_a_model_the_key_may_not_use_is_403(catalogue: Catalogue) -> None:
    for model in ("smart", "openai/gpt-4o-mini", "openai/anything"):
        error = refusal(model, ("groq/*",), catalogue)
        assert (error.status, error.code) == (403, "model_not_allowed")


def test_a_key_learns_nothing_of_models_it_may_not_use(catalogue: Catalogue) -> None:
    for model in ("smrt", "gpt-4o-mini"):
        assert "Did you mean" not in refusal(model, ("groq/*",), catalogue).message


@pytest.mark.parametrize(
    ("globs", "allowed"),
    [
        (("*",), True),
        (("groq/*",), True),
        (("openai/*", "groq/openai/gpt-oss-20b"), True),
        (("*20b",), True),
        (("groq/openai/gpt-oss-?0b",), True),
        (("groq/[op]*",), True),
        (("GROQ/*",), False),
        (("groq",), False),
        (("groq/openai",), False),
        ((), False),
    ],
)
def test_a_keys_globs_are_case_sensitive_and_match_the_whole_id(
    catalogue: Catalogue, globs: tuple[str, ...], allowed: bool
) -> None:
    if allowed:
        assert decide(ModelId("groq/openai/gpt-oss-20b"), globs, catalogue, 0).candidates
    else:
        assert refusal("groq/openai/gpt-oss-20b", globs, catalogue).status == 403


def test_a_key_may_use_a_named_model_without_its_deployments(catalogue: Catalogue) -> None:
    assert decide(ModelId("smart"), ("smart",), catalogue, 0).candidates


def test_a_long_model_id_is_cut_in_the_message(catalogue: Catalogue) -> None:
    assert len(refusal("x" * 100_000, ALL, catalogue).message) < 400
