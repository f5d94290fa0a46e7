"""What a request asks for, as numbers: finds the asking part of a conversation and describes it with a few hundred features.

`complexity.py` calls `read` and then `describe`; training/complexity/train.py does the same, so that what is learned is what is used.
Intent matters, not vocabulary: the main verb and the size of its object, whether a keyword is only mentioned (quoted, translated,
defined) or only background, how much is asked, how short the answer may be. Pasted code, logs and tools' boilerplate are set aside.
Pure and bounded: at most 2,200 characters of a turn and `MAX_TOKENS` words are looked at, whatever is sent. No I/O after import.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Final, NamedTuple

from hortator.routing.lexicon import LEXICON, is_cjk, plain
from hortator.routing.pasted import FENCE, capped, from_json, text_of, unwrapped, without_paste

CAP_HEAD, CAP_TAIL = 1_400, 800
"""Characters kept of a turn: its beginning and its end."""
PROSE_HEAD, PROSE_TAIL = 400, 250
"""Characters kept of what is left after pasted matter is set aside."""
MAX_TOKENS: Final = 48
"""Words looked at: three quarters from the beginning, the rest from the end."""
_SENTENCE_COST = 5
"""A shorter sentence counts as so many words."""
_MAX_TURNS = 60
"""Messages looked at, from the end."""

Message = Mapping[str, object]
Features = dict[str, float]


class Ask(NamedTuple):
    """The asking part of a conversation."""

    prose: str
    """What the user wrote, lower case, without accents, quotations and pasted matter."""
    quoted: int
    """Number of quotations that were set aside."""
    pasted: int
    """Characters of code, logs and documents that were set aside."""
    code: bool
    """Some of what was set aside was in a code fence or looked like code."""
    payload: bool
    """Text after a colon was set aside: what is to be translated, corrected, classified."""
    bullets: int
    """Lines that are items of a list."""
    follows: bool = False
    """The last turn only makes sense with the one before, whose words are included."""
    closes: str = ""
    """The last turn's own words where `follows`, else empty."""


class Sentence(NamedTuple):
    """One sentence: its words, and the categories found in it as bits."""

    words: list[str]
    kinds: list[int]
    """For each word, phrases that begin there included."""
    mask: int
    opening: int
    """Intents of the first word that says what is wanted, politeness skipped; 0 = none."""
    direct: bool
    """That word comes first: an imperative."""
    question: bool


# --- finding what is asked -------------------------------------------------------------------------------------------

_QUOTE = re.compile(
    r"""["“„«`「『'‘](?:(?<=")[^"\n]{1,240}"|(?<=“)[^”]{1,240}”|(?<=„)[^“”]{1,240}[“”]|(?<=«)[^»]{1,240}»|(?<=`)[^`\n]{1,160}`"""
    r"""|(?<=「)[^」]{1,120}」|(?<=『)[^』]{1,120}』|(?<=['‘])(?<!\w['‘])[^'’\n]{1,160}['’](?!\w))"""
)
_SPACED = re.compile(r"(?:\S +){5,}\S(?!\S)")
_INLINE_ITEM = re.compile(r"[.)](?<=[1-9a-h].)(?<!\w..)\s")


def _user_prose(raw: str) -> Ask:
    """One user turn on its own."""
    text = unwrapped(capped(raw, CAP_HEAD, CAP_TAIL)).strip()
    if text[:1] in ("{", "[") and text[-1:] in ("}", "]") and '"' in text:
        prose, code, bullets = from_json(text), False, 0
    else:
        prose, code, bullets = without_paste(text)
    if len(prose.strip()) < 2:
        prose = text[:400]
    prose, bullets = _without_document(prose, bullets)
    prose = capped(prose, PROSE_HEAD, PROSE_TAIL)
    aside = len(raw) - len(prose)
    if not bullets and ") " in prose:
        bullets = len(_INLINE_ITEM.findall(prose))
    unquoted, quotes = _QUOTE.subn(" \u00a4 ", prose)
    if quotes and len(unquoted.replace("\u00a4", "").strip(" .?!\n")) < 2:
        unquoted = prose
    unquoted, payload = _without_payload(_narrowed(_joined(plain(unquoted))))
    return Ask(unquoted, quotes, aside, code, payload, bullets)


_ASIDE_KINDS = LEXICON.mask("define", "micro", "mention")
_PAYLOAD_HEADS = frozenset(
    "classify extract label tag sentiment detect count upper lower case uppercase lowercase format sort alphabetical duplicate duplicates transcribe summarize summarise tl tldr paraphrase rephrase reword categorize repeat echo question".split()
)


def _without_document(prose: str, bullets: int) -> tuple[str, int]:
    """Drop a document that stands before or after one short question or instruction about it."""
    if len(prose) < 350 or "\n" not in prose:
        return prose, bullets
    lines = [line for line in prose.split("\n") if line.strip()]
    first, last = lines[0], lines[-1]
    for asks in (first, last):
        if len(asks) > 320 or len(prose) - len(asks) < 260:
            continue
        sentences = _sentences(plain(asks))
        if any(_asks(one) for one in sentences):
            if asks is first and bullets > 2 and any(one.opening & _CREATES for one in sentences):
                return prose, bullets
            return asks, 0
    return prose, bullets


def _asks(sentence: Sentence) -> bool:
    """A question, an order or a request; not a sentence about who speaks ("You are an architect", "We are a bank")."""
    if sentence.question or sentence.mask & _REQUEST:
        return True
    return sentence.direct and not sentence.kinds[0] & _PERSONA


_ONLY = re.compile(
    r"\b(?:(?:just|only|simply) (?:tell me|answer|say|need to know|want to know|give me)|all i (?:need|want)(?: to know)? is"
    r"|(?:for now|right now|today),? (?:i )?(?:just|only))\b:?"
)


_ONLY_WORDS = ("just ", "only ", "simply ", "all i ")
"""One of these is in whatever the expression finds; looking for them is faster."""


def _narrowed(prose: str) -> str:
    """Only what is asked for in the end, of "don't build the platform, just tell me ...\"."""
    if not any(map(prose.__contains__, _ONLY_WORDS)):
        return prose
    found = _ONLY.search(prose)
    return prose[found.end() :] if found and len(prose) - found.end() > 8 else prose


def _joined(prose: str) -> str:
    """Letters that were set apart (`w h a t   t i m e`) as words again."""
    if _SPACED.match(prose) is None:
        return prose
    return " ".join(word.replace(" ", "") for word in re.split(r" {2,}", prose))


def _without_payload(prose: str) -> tuple[str, bool]:
    """Drop what stands after the colon of "translate into French: ..."; it is matter to work on, not something asked."""
    colon = prose.find(":", 0, 200)
    if colon < 0 or len(prose) - colon < 4 or not prose[colon + 1].isspace():
        return prose, False
    words = LEXICON.tokens(prose[:colon])[:24]
    if not _PAYLOAD_HEADS.isdisjoint(words) or any(kinds & _ASIDE_KINDS for kinds in LEXICON.marked(words)[1]):
        return prose[:colon], True
    return prose, False


def read(messages: Iterable[Message]) -> Ask:
    """Find what the last user turn asks, with the turn before where it only continues that ("yes, do it for all of them").

    `messages` are chat messages as mappings with `role` and `content` (a string or a list of parts); unknown shapes are skipped.
    """
    turns: list[tuple[str, str]] = []
    users = 0
    whole: list[object] = list(messages)
    for message in islice(reversed(whole), _MAX_TURNS):
        if not isinstance(message, Mapping):
            continue
        role = message.get("role")
        if role in ("user", "assistant") and (text := text_of(message.get("content"))) and not text.isspace():
            turns.append((str(role), text))
            users += role == "user"
            if users == 3:
                break
    asks = [index for index, (role, _) in enumerate(turns) if role == "user"]
    if not asks:
        return Ask("", 0, 0, False, False, 0)
    last = _user_prose(turns[asks[0]][1])
    if len(asks) < 2 or not _continues(last):
        return last
    before = _user_prose(turns[asks[1]][1])
    if len(asks) > 2 and _continues(before):
        before = _user_prose(turns[asks[2]][1])
    said = "".join(text for role, text in turns[asks[0] + 1 : asks[1]] if role == "assistant")
    offer = plain(FENCE.sub(" ", said[-600:]))[-240:]
    prose = f"{last.prose}\n{before.prose[:400]}\n{offer}"
    return last._replace(prose=prose, follows=True, closes=last.prose, bullets=last.bullets + before.bullets)


_SOCIAL, _AFFIRM, _ANAPHORA, _FILLER = (LEXICON.mask(name) for name in ("social", "affirm", "anaphora", "filler"))
_STANDS_ALONE = LEXICON.mask("fact", "whatis", "define", "micro", "brevity", "mention", "pick")
_THANKS = frozenset("thanks thank thx ty cheers no enough danke gracias merci grazie obrigado obrigada спасибо".split())


def _continues(ask: Ask) -> bool:
    """Whether a turn only makes sense with the one before: an agreement, or a short one about "it" that asks nothing of its own."""
    words = LEXICON.tokens(ask.prose[:200])
    if not words or len(words) > 18 or ask.pasted > 250:
        return False
    kinds = LEXICON.marked(words)[1]
    mask = 0
    for some in kinds:
        mask |= some
    if not _THANKS.isdisjoint(words) and not mask & _CREATES:
        return False
    if all(some & _SOCIAL and not some & _AFFIRM for some in kinds):
        return False
    if any(some & _AFFIRM for some in kinds[:2]):
        return not (mask & LEXICON.mask("fact", "whatis", "mention") and "?" in ask.prose)
    return bool(mask & _ANAPHORA) and not mask & _STANDS_ALONE and "?" not in ask.prose


# --- sentences -------------------------------------------------------------------------------------------------------

_INTENTS = LEXICON.mask(
    "define", "micro", "fact", "whatis", "pick", "explain", "debug", "write", "judge", "rework", "solve", "plan", "build", "design",
    "transform", "research",
)  # fmt: skip
_CREATES = LEXICON.mask("build", "design", "transform", "research", "plan")
_REQUEST, _PERSONA = LEXICON.mask("request"), LEXICON.mask("persona")
_SKIPPED = _FILLER | _REQUEST | _SOCIAL
# Expressions that search begin with the characters they look for, which makes them several times faster than a choice would.
_STOP = re.compile(
    r"([.!?？؟;。！।\n:](?:(?<=[.!])(?=\s|$)|(?<=[?？؟;。！।\n])|(?<=:)(?= (?:who|what|when|where|which|how|is|are|was|does|did|why)\b)))"
)


_QUESTIONS = frozenset("?？؟")
_Piece = tuple[list[str], bool]
"""The words of a sentence, and whether it ends as a question."""


def _sentences(prose: str) -> list[Sentence]:
    """The sentences of a text, at most `MAX_TOKENS` words: three quarters of them from its beginning, the rest from its end."""
    pieces = _STOP.split(prose)
    pieces.append("")
    found: list[_Piece] = []
    total = 0
    tokens = LEXICON.tokens
    for at in range(0, len(pieces), 2):
        if pieces[at] and (words := tokens(pieces[at])):
            found.append((words, pieces[at + 1] in _QUESTIONS))
            total += max(len(words), _SENTENCE_COST)
            if total > MAX_TOKENS:
                found = _within_budget(found, pieces[at + 2 :])
                break
    return [_sentence(words, question) for words, question in found]


def _within_budget(found: list[_Piece], rest: list[str]) -> list[_Piece]:
    """The beginning of `found`, and the end of what is left of it and of `rest`: words of both are only told apart as far as needed."""
    kept: list[_Piece] = []
    room = MAX_TOKENS * 3 // 4
    at = 0
    while at < len(found) and room > 0:
        words, question = found[at]
        kept.append((words[:room], question))
        room -= max(len(words), _SENTENCE_COST)
        at += 1
    tail: list[_Piece] = []
    room = MAX_TOKENS // 4
    for place in range(len(rest) - 2, -1, -2):
        words = LEXICON.tokens(rest[place])
        if words:
            tail.append((words[-room:], rest[place + 1] in _QUESTIONS))
            room -= max(len(words), _SENTENCE_COST)
            if room <= 0:
                return kept + tail[::-1]
    for words, question in reversed(found[at:] if tail else found[at:] or found[-1:]):
        if room <= 0:
            break
        tail.append((words[-room:], question))
        room -= max(len(words), _SENTENCE_COST)
    return kept + tail[::-1]


def _sentence(words: list[str], question: bool) -> Sentence:
    words, kinds = LEXICON.marked(words)
    mask = 0
    for some in kinds:
        mask |= some
    if mask & _REQUEST and len(words) > 6 and not is_cjk(words[-1]) and not _opening(kinds)[1]:
        at = max(index for index, some in enumerate(kinds) if some & _REQUEST)
        if 3 < at < len(words) - 3:
            words, kinds = words[at:], kinds[at:]
            mask = 0
            for some in kinds:
                mask |= some
    opening, direct = _opening(kinds)
    return Sentence(words, kinds, mask, opening, direct, question)


def _opening(kinds: Sequence[int]) -> tuple[int, bool]:
    """The intents of the first word that says what is wanted, and whether only politeness stands before it."""
    passed = 0
    for some in kinds[:16]:
        if some & _INTENTS:
            return some & _INTENTS, passed == 0
        if not some & _SKIPPED:
            passed += 1
            if passed > 5:
                break
    return 0, False


# --- describing it ---------------------------------------------------------------------------------------------------

_BIG = ("huge", "named", "system")
_ACTS = "build design transform research plan write judge explain debug rework solve pick micro".split()
_REACH = ("scope", "scale", "programme")
_BIG_MASK, _REACH_MASK = LEXICON.mask(*_BIG), LEXICON.mask(*_REACH)
_ACT_BITS = tuple((name, LEXICON.mask(name)) for name in _ACTS)
_OBJECT_BITS = tuple((name, LEXICON.mask(name)) for name in (*_BIG, *_REACH, "medium"))
_COUNTED = LEXICON.mask(*_BIG, *_REACH, "medium", "small", "depth", *_ACTS)
_SMALL, _MEDIUM = LEXICON.mask("small"), LEXICON.mask("medium")
_PAIRED = LEXICON.mask(*_BIG, *_REACH, "medium", "small", *_ACTS)
_FACT, _THOUGHT = LEXICON.mask("fact", "whatis"), LEXICON.mask("judge", "explain", "solve", "design")
_MENTION, _DEFINE = LEXICON.mask("mention"), LEXICON.mask("define")
_LARGE_ACT = LEXICON.mask("design", "transform", "research")
_SILENT = LEXICON.mask("filler", "request", "persona", "people")
_NUMBER = re.compile(r"(\d(?<![\w.]\d)(?:\d{0,2}(?:,\d{3})+|\d{0,8}))\s?(k|m|million|billion|thousand|tb|gb)?(?!\w)")
_ASCII_NUMBER = re.compile(_NUMBER.pattern.replace(r"\d", "[0-9]"), re.ASCII)
"""Faster, and finds the same where there is nothing else."""
_OPENERS = frozenset("is are was were do does did has have had will should am isn aren".split())


def describe(ask: Ask) -> tuple[Features, list[str]]:
    """The features of what is asked, name -> value (absent = 0, most are 0 or 1), and its words, which may have weights of their own."""
    features: Features = {"bias": 1.0}
    sentences = _sentences(ask.prose)
    if not sentences:
        features["empty"] = 1.0
        return features, []
    asking = [one for one in sentences if _asks(one)]
    social = not asking and not ask.follows and not _THANKS.isdisjoint(sentences[0].words[:2])
    if social and not any(one.mask & (_BIG_MASK | _REACH_MASK) for one in sentences):
        features["only social"] = 1.0
        return features, []
    background = [one for one in sentences if one not in asking] if asking else []
    asking = asking or sentences
    mask = 0
    for one in asking:
        mask |= one.mask
    features |= _having(mask & ~_SILENT)
    _background(features, background)
    _counts(features, asking)
    size = sum(len(one.words) for one in asking)
    _size(features, size, ask)
    for one in asking:
        _combinations(features, one)
    _head(features, "head ", asking[0])
    if len(asking) > 1:
        _head(features, "last ", asking[-1])
    _shape(features, ask, asking, mask)
    return features, list(dict.fromkeys(word for one in asking for word in one.words))


def _background(features: Features, background: Sequence[Sentence]) -> None:
    mask = 0
    for one in background:
        mask |= one.mask
    for name in LEXICON.names(mask & ~_SILENT):
        features["background " + name] = 1.0
    if background:
        features["background"] = min(len(background), 6) / 3


def _counts(features: Features, asking: Sequence[Sentence]) -> None:
    counts: dict[str, int] = {}
    for one in asking:
        for some in one.kinds:
            if some & _COUNTED:
                for name in LEXICON.names(some & _COUNTED):
                    counts[name] = counts.get(name, 0) + 1
    for name, count in counts.items():
        if count > 1:
            features["many " + name] = min(count - 1, 5) / 5


def _size(features: Features, size: int, ask: Ask) -> None:
    for limit in (3, 6, 10, 18, 35, 80):
        if size > limit:
            features[f"words>{limit}"] = 1.0
    if ask.bullets > 1:
        features["items"] = min(ask.bullets, 8) / 4
        features["has items"] = 1.0
    if ask.pasted > 80:
        features["pasted"] = 1.0
        if ask.pasted > 900:
            features["pasted a lot"] = 1.0
        if size <= 14:
            features["pasted, asked briefly"] = 1.0
    for name, present in (
        ("code", ask.code),
        ("quotes", ask.quoted),
        ("payload", ask.payload),
        ("follows", ask.follows),
    ):
        if present:
            features[name] = 1.0


def _combinations(features: Features, sentence: Sentence) -> None:
    """What stands together in one sentence: an act and its object, an act and its reach; or only a mention of a big thing."""
    mask = sentence.mask
    if mask & _MENTION or sentence.opening & _DEFINE:
        _mentions(features, mask)
        return
    if sentence.opening & _FACT and not mask & _THOUGHT:
        features["asks a fact"] = 1.0
        if mask & _BIG_MASK:
            features["asks a fact about something big"] = 1.0
        return
    if sentence.opening & _FACT:
        features["asks what, for a judgement"] = 1.0
    _acts_and_objects(features, mask)
    big, reach = mask & _BIG_MASK, mask & _REACH_MASK
    if big:
        if reach:
            features["big and wide"] = 1.0
        if mask & _MEDIUM:
            features["big and medium"] = 1.0
    elif mask & _MEDIUM:
        features["only medium"] = 1.0
    elif mask & _SMALL:
        features["only small"] = 1.0
    if reach.bit_count() > 1:
        features["wide reach"] = 1.0


def _mentions(features: Features, mask: int) -> None:
    features["mentions"] = 1.0
    if mask & (_BIG_MASK | _LARGE_ACT):
        features["mentions something big"] = 1.0
    if mask & _REACH_MASK:
        features["mentions something wide"] = 1.0


def _acts_and_objects(features: Features, mask: int) -> None:
    features |= _pairs(mask & _PAIRED)


@lru_cache(maxsize=8_192)
def _pairs(mask: int) -> Features:
    objects = [name for name, bit in _OBJECT_BITS if mask & bit]
    if mask & _SMALL and not mask & (_BIG_MASK | _REACH_MASK):
        objects.append("small")
    return {f"{act} {name}": 1.0 for act, bit in _ACT_BITS if mask & bit for name in objects}


@lru_cache(maxsize=8_192)
def _having(mask: int) -> Features:
    return {"has " + name: 1.0 for name in LEXICON.names(mask)}


def _head(features: Features, prefix: str, sentence: Sentence) -> None:
    for name in LEXICON.names(sentence.opening):
        features[prefix + name] = 1.0
    if not sentence.opening:
        features[prefix + "nothing"] = 1.0
    elif sentence.direct:
        features[prefix + "imperative"] = 1.0
    start = sentence.words[:4]
    if start[0] in _OPENERS:
        features[prefix + "yes or no"] = 1.0
    if "how" in start:
        if not {"would", "should", "could"}.isdisjoint(start):
            features[prefix + "how would"] = 1.0
        elif not {"to", "i", "2"}.isdisjoint(start):
            features[prefix + "how to"] = 1.0


def _shape(features: Features, ask: Ask, asking: Sequence[Sentence], mask: int) -> None:
    """The whole request: numbers in it, lists in running text, questions, politeness without content, breadth of the work."""
    prose = ask.prose
    if all(some & (_SOCIAL | _FILLER) for one in asking for some in one.kinds):
        features["only social"] = 1.0
    if any(one.question for one in asking):
        features["question"] = 1.0
    commas = prose.count(",") + prose.count("\u3001") + prose.count("\uff0c") + prose.count("\u060c")
    if commas:
        features["commas"] = min(commas, 8) / 4
        if not mask & _BIG_MASK:
            features["commas, nothing big"] = min(commas, 8) / 4
    if len(asking) > 1:
        features["sentences"] = min(len(asking) - 1, 6) / 3
    acts = bool(mask & _CREATES)
    for limit in _limits(prose):
        features[f"number>{limit}"] = 1.0
        if acts:
            features[f"number>{limit} to act on"] = 1.0
    features["acts"] = (mask & _CREATES).bit_count() / 3
    reach = len([some for one in asking for some in one.kinds if some & _REACH_MASK])
    features["breadth"] = min(reach, 8) / 4
    if ask.follows:
        closing = LEXICON.marked(LEXICON.tokens(ask.closes[:120]))[1]
        if any(some & LEXICON.mask("scope") for some in closing):
            features["follows, for all of it"] = 1.0


_DIGITS = "0123456789"
_FACTORS: Final = {"k": 1e3, "thousand": 1e3, "m": 1e6, "million": 1e6, "billion": 1e9, "tb": 1e6}


def _limits(prose: str) -> list[int]:
    """Which of a few limits the largest number passes; years do not count."""
    if prose.isascii() and not any(map(prose.__contains__, _DIGITS)):
        return []
    largest = 0.0
    for digits, unit in (_ASCII_NUMBER if prose.isascii() else _NUMBER).findall(prose):
        value = float(digits.replace(",", "")) * _FACTORS.get(unit, 1.0)
        if not 1900 <= value <= 2035:
            largest = max(largest, value)
    return [limit for limit in (9, 30, 1_000, 50_000) if largest > limit]
