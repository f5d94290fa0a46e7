"""The plan that needs no model: a request cut into parts by its own words.

`tree.py` takes it where a planner's answer cannot be read, which small models do often. In order: what the request lists (bullets,
numbers), what it compares, how many of something it wants, its questions, and else a frame of views that fits the role. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from hortator.orchestration.plans import Part
from hortator.wire.tasks import Strategy

_BULLET = re.compile(r"^\s*(?:[-*•+]|\(?\d{1,2}[.)]|\(?[a-h][.)])\s+(\S.*)$", re.MULTILINE)
_INLINE = re.compile(r"(?:^|[\s,;:])\(?(\d)[.)]\s+(.+?)(?=(?:[\s,;]\(?\d[.)]\s)|$)", re.DOTALL)
_COMPARE = re.compile(
    r"\b(?:compar(?:e|ing|ison of)|contrast(?:ing)?|differences? between|choos(?:e|ing) (?:between|among)|decid(?:e|ing) between|weigh)\s+(.+?)"
    r"(?:[.?!;\n]|\band (?:then )?(?:recommend|tell|say|decide|explain|give|choose|pick|suggest|conclude|write)\b|\b(?:for|in terms of|with regard to|by|on the basis of)\b|$)",
    re.IGNORECASE | re.DOTALL,
)
_VERSUS = re.compile(
    r"([\w.+#/-]+(?: [\w.+#/-]+){0,3}?)\s+(?:vs\.?|versus)\s+([\w.+#/-]+(?: [\w.+#/-]+){0,2})", re.IGNORECASE
)
_NUMBERS: Final[Mapping[str, int]] = {
    word: number for number, word in enumerate("two three four five six seven eight nine ten".split(), 2)
}
_COUNT = re.compile(
    rf"\b({'|'.join(_NUMBERS)}|[2-9]|10)\s+((?:[\w-]+\s+){{0,3}}?(?:ways?|options?|approach(?:es)?|alternatives?|methods?|strateg(?:y|ies)|ideas?|"
    r"solutions?|designs?|reasons?|examples?|steps?|techniques?|patterns?|aspects?|scenarios?|variants?|proposals?|risks?|topics?|sections?|chapters?))\b([^.?!\n]*)",
    re.IGNORECASE,
)
_QUESTION = re.compile(r"[^.?!\n]*\?")
_EITHER = re.compile(
    r"\b(?:use|choose|pick|prefer|take|adopt|try|better|best|between)[:,]?\s+([^.?!\n]*?\bor\b[^.?!\n]*)\?",
    re.IGNORECASE,
)
_SPLIT = re.compile(r"\s*(?:,|;|\bor\b|\bversus\b|\bvs\b\.?|\band\b)\s*", re.IGNORECASE)
_WITH = re.compile(r"\s+(?:with|to|against)\s+", re.IGNORECASE)
_NO_ITEM = re.compile(
    r"^(?:the|a|an|them|it|these|those|each other|following|advantages?|disadvantages?|pros|cons)$", re.IGNORECASE
)
_RECOMMEND = re.compile(r"\b(?:recommend|choose|pick|decide|suggest|best|which|conclu)", re.IGNORECASE)

_FRAMES: Final[Mapping[str, Sequence[tuple[str, str]]]] = {
    "coding": (
        (
            "requirements",
            "State precisely what the code has to do: inputs, outputs, constraints, edge cases and assumptions.",
        ),
        ("design", "Work out the design or the solution itself, with the important code."),
        ("failures", "Find what can go wrong: errors, security, concurrency, performance, and how to deal with each."),
        ("tests", "Say how to test it: the important cases and what each must show."),
        ("alternatives", "Describe other ways to do it and when they are better."),
    ),
    "legal": (
        ("facts", "Set out the facts and the legal questions they raise."),
        ("rules", "Set out the rules that apply and what they require."),
        ("risks", "Find the risks and obligations, and say how grave each is."),
        ("steps", "Say what should be done or changed, with the wording where it matters."),
        ("open", "List what is not known and would change the answer."),
    ),
    "research": (
        ("background", "Summarise what is known and define the terms."),
        ("evidence", "Set out the main findings and the evidence for each."),
        ("limits", "Find contradictions, gaps and weaknesses of the evidence."),
        ("outlook", "Say what follows from it, for practice and for further work."),
        ("views", "Describe the different positions and who holds them."),
    ),
    "content": (
        ("audience", "Say who it is for, what they need, and the tone and structure that follow."),
        ("draft", "Write the text itself."),
        ("examples", "Collect examples, figures and arguments that make it convincing."),
        ("review", "Find what is weak, missing or could be misunderstood in such a text, and how to mend it."),
        ("titles", "Propose titles, a summary and key sentences."),
    ),
    "": (
        ("analysis", "Analyse the question: what is asked, what matters, the facts that decide it."),
        ("alternatives", "Describe the possible answers or ways to do it, with strengths and weaknesses."),
        ("risks", "Find risks, limits and what is easily overlooked, and how to deal with each."),
        ("recommendation", "Work out a recommendation with reasons and the first steps."),
        ("examples", "Give concrete examples, figures or code that make it clear."),
    ),
}
_SIDES: Final = (
    ("strengths", "how it works and its strengths"),
    ("limits", "its weaknesses, risks and costs"),
    ("fit", "when it fits and when it does not, with an example"),
)
_LEAST_ITEM, _MOST_ITEM = 2, 300


def _clean(text: str) -> str:
    text = re.sub(
        r"^(?:(?:the|a|an|between|of|both|and|using)\s+)+",
        "",
        " ".join(text.split()).strip(" ,;:.\"'`*"),
        flags=re.IGNORECASE,
    )
    return text[:_MOST_ITEM].strip()


def _distinct(items: Sequence[str]) -> list[str]:
    kept: dict[str, str] = {}
    for item in items:
        text = _clean(item)
        if len(text) >= _LEAST_ITEM and not _NO_ITEM.match(text):
            kept.setdefault(text.casefold(), text)
    return list(kept.values())


def _listed(request: str) -> list[str]:
    """What stands in the request as a list."""
    found = _distinct(_BULLET.findall(request))
    if len(found) < 2:
        found = _distinct([text for _, text in _INLINE.findall(request)])
    return found if len(found) >= 2 else []


def _bundled(items: Sequence[str], most: int) -> list[str]:
    """At most `most` items; those beyond are one with the last."""
    return list(items) if len(items) <= most else [*items[: most - 1], "; ".join(items[most - 1 :])[:1_000]]


def _compared(request: str) -> list[str]:
    """What the request compares; nothing where it only says how many things (`compare three ways to ...`)."""
    match = _COMPARE.search(request) or _EITHER.search(request)
    if match is not None and _COUNT.match(match.group(1)):
        return []
    found = _distinct(_SPLIT.split(match.group(1))) if match else []
    if match is not None and len(found) == 1:
        found = _distinct(_WITH.split(match.group(1), maxsplit=1))
    if len(found) < 2 and (versus := _VERSUS.search(request)):
        found = _distinct([versus.group(1), versus.group(2)])
    short = [item for item in found if len(item.split()) <= 6]
    return short if len(short) >= 2 and len(short) == len(found) else []


def _counted(request: str) -> tuple[int, str] | None:
    """How many of something it wants, and of what."""
    match = _COUNT.search(request)
    if match is None:
        return None
    said = match.group(1).casefold()
    rest = re.split(
        r"\band (?:then )?(?:recommend|tell|say|decide|explain|give|choose|pick|suggest|conclude)\b|[,;]",
        match.group(3),
    )[0]
    return _NUMBERS.get(said) or int(said), _clean(f"{match.group(2)} {rest}")


def _parts(items: Sequence[tuple[str, str]]) -> list[Part]:
    return [Part(id=id, description=description) for id, description in items]


def _recommended(parts: list[Part], request: str, most: int) -> list[Part]:
    """Add a part that sets criteria, which does not wait for the others, where a choice is wanted and there is room."""
    if len(parts) >= most or not _RECOMMEND.search(request):
        return parts
    text = "Set out the criteria that decide between the options, in order of weight, and what each means here."
    return [*parts, Part(id="criteria", description=text)]


def _sided(subjects: Sequence[str], strategy: Strategy, most: int) -> list[Part]:
    """One part for each subject; with `aggressive` and room, several sides of each, grouped."""
    subjects = _bundled(subjects, most)
    sides = min(len(_SIDES), most // len(subjects)) if strategy == "aggressive" else 1
    if sides < 2:
        told = "Explain {}: how it works, its strengths, weaknesses and costs, and when it fits. Nothing else."
        return _parts([(f"option-{n}", told.format(text)) for n, text in enumerate(subjects, 1)])
    return [
        Part(id=f"option-{n}-{id}", description=f"Explain of {text} only {what}.", group=f"option-{n}")
        for n, text in enumerate(subjects, 1)
        for id, what in _SIDES[:sides]
    ]


def _hints(what: str, number: int) -> list[str]:
    """Return so many different ones of what is wanted, described so that agents who do not see each other take different ones."""
    kinds = ("the most common", "the simplest", "the most powerful", "the one for special needs", "the most unusual")
    hints = [*kinds, *(f"one that is number {n} on a long list" for n in range(len(kinds) + 1, number + 1))]
    return [f"one of the {what} ({hint}; name it first)" for hint in hints[:number]]


def fallback(request: str, domain: str, strategy: Strategy, most: int) -> list[Part]:
    """Return a plan of at least one and at most `most` parts, the same for the same request. `none`: one part, the request itself."""
    whole = [Part(id="answer", description="Do all that the request asks.")]
    if strategy == "none" or most < 2:
        return whole
    text = request[:20_000]
    if compared := _compared(text):
        return _recommended(_sided(compared, strategy, most), text, most)
    if listed := _listed(text):
        return _parts(
            [
                (f"point-{n}", f"Deal with this point of the request only: {item}")
                for n, item in enumerate(_bundled(listed, most), 1)
            ]
        )
    counted = _counted(text)
    if counted is not None:
        number, what = min(counted[0], most), counted[1]
        return _recommended(_sided(_hints(what, number), strategy, most), text, most)
    questions = _distinct(_QUESTION.findall(text))
    if len(questions) >= 2:
        return _parts(
            [
                (f"question-{n}", f"Answer this question only: {item}")
                for n, item in enumerate(_bundled(questions, most), 1)
            ]
        )
    frame = _FRAMES.get(domain, _FRAMES[""])
    number = min(most, 5 if strategy == "aggressive" else 4)
    return _parts(list(frame[:number])) if number > 1 else whole
