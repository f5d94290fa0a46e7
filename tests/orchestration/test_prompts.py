"""What agents are told fits the model, and what they report is found in their texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hortator.orchestration import prompts, results
from hortator.orchestration.prompts import TIGHT, WIDE, Brief, Done

LONG = "word and another word. " * 5_000


def size(messages: list[prompts.Message]) -> int:
    return sum(prompts.tokens(message["content"]) for message in messages)


def test_every_prompt_fits_a_context_of_4096_tokens_with_its_answer() -> None:
    brief = Brief(
        instructions=LONG,
        request=LONG,
        exit_criteria=LONG,
        parameters=LONG,
        inputs=(("a.txt", LONG),),
        said=(LONG,),
        report=results.FINDINGS,
    )
    done = [Done(f"part-{n}", "Completed", LONG) for n in range(8)]
    told = [
        prompts.planner(brief, [("generalist", LONG)], 8, "aggressive", TIGHT),
        prompts.replanner(brief, done, done[:2], 3, TIGHT),
        prompts.worker(brief, LONG[:3000], done, TIGHT, tools=True),
        prompts.single(brief, [{"role": "user", "content": LONG}], TIGHT),
        prompts.synthesiser(brief, done, TIGHT),
    ]  # fmt: skip
    for messages in told:
        assert size(messages) < 2_600
        assert "characters left out" in messages[-1]["content"]


def test_short_texts_are_told_whole() -> None:
    brief = Brief(
        instructions="Be exact.",
        request="Compare A and B",
        exit_criteria="both named",
        parameters="tone: dry",
        said=("Hurry",),
    )
    (system, user) = prompts.worker(
        brief, "Look at A", [Done("b", "Completed", "B is good"), Done("c", "Failed", "")], WIDE
    )
    assert "Be exact." in system["content"]
    for text in (
        "Compare A and B",
        "both named",
        "tone: dry",
        "Hurry",
        "Look at A",
        "B is good",
        "(no result)",
        "Failed: not complete",
    ):
        assert text in user["content"]
    assert "left out" not in user["content"]


@given(st.text(max_size=3000), st.integers(10, 400))
def test_a_cut_text_is_about_as_long_as_it_may_be(text: str, most: int) -> None:
    short = prompts.cut(text, most)
    assert short == text if prompts.tokens(text) <= most else prompts.tokens(short) <= most + 60


def test_a_conversation_is_one_text_and_a_single_question_is_itself() -> None:
    assert prompts.conversation([{"role": "user", "content": [{"type": "text", "text": "hi"}]}]) == "hi"
    text = prompts.conversation(
        [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}]
    )
    assert text == "[System context]\nS\n\n[User]\nU\n\n[Earlier answer]\nA"


def test_an_agents_long_conversation_is_cut_at_its_older_results() -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        *({"role": "tool", "content": LONG[:8000]} for _ in range(8)),
    ]
    assert size(prompts.trimmed(messages, TIGHT)) < TIGHT.input + 500
    assert prompts.trimmed(messages[:2], TIGHT) == messages[:2]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("FINDING [high] src/app.py: SQL is put together", ("high", "src/app.py", "SQL is put together")),
        ("- **FINDING [Critical]** `auth.py:12` - no check", ("critical", "auth.py:12", "no check")),
        ("1. FINDING (minor): the names are long", ("low", "", "the names are long")),
        ("RISK: medium - the deadline is near", ("medium", "", "the deadline is near")),
    ],
)
def test_findings_are_read_from_lines(line: str, found: tuple[str, str, str]) -> None:
    (finding,) = results.findings(f"Intro\n{line}\n{line}\nEnd")
    assert (finding["severity"], finding["document"], finding["description"]) == found


def test_papers_are_read_from_lines() -> None:
    text = "PAPER: Doe, J. (2021). On things. | themes: caching, *storage*\n- PAPER: Roe 2020"
    assert results.added("literature_review", [text, text]) == {
        "papers": [
            {"citation": "Doe, J. (2021). On things.", "themes": ["caching", "storage"]},
            {"citation": "Roe 2020", "themes": []},
        ]
    }
    assert results.added("chat", [text]) == {}


def test_a_review_has_findings_and_recommendations() -> None:
    text = "FINDING [low] a.py: long\n**RECOMMENDATION:** split it\nRECOMMENDATION: Split it"
    assert results.added("code_review", [text]) == {
        "findings": [{"severity": "low", "description": "long", "document": "a.py"}],
        "recommendations": ["Split it"],
    }


def test_a_summary_is_the_first_paragraph_that_says_something() -> None:
    assert results.summary("# Title\n\n---\n\nUse cookies.\nThey scale.\n\nMore.") == "Use cookies. They scale."
    assert len(results.summary("x" * 900)) == 500
    assert (
        results.joined([Done("a", "Completed", "one"), Done("b", "Failed", ""), Done("c", "TimedOut", "two")])
        == "## a\n\none\n\n## c\n\ntwo"
    )
