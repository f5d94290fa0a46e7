"""Words and what they say about a request: the reader of data/lexicon.txt, which is written by hand.

`features.py` asks it for the categories of words, as bits of an integer. Unknown words are tried as stems, then as misspellings, and
remembered in a bounded memory, because a request is judged in microseconds. Chinese and Japanese are matched without word boundaries.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from importlib.resources import files
from typing import Final

_TOKEN = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff]+|[^\W\u3040-\u30ff\u3400-\u9fff\u0900-\u097f]+|[\u0900-\u0963\u0966-\u097f]+"
)
_APART: Final = {code: " " for code in range(128) if not (chr(code).isalnum() or chr(code) == "_")}
"""What stands between words of ASCII text: several times faster than the expression, which finds the same."""
_ACCENTS: Final[dict[str, str]] = {
    chr(code): unicodedata.normalize("NFKD", chr(code))[0]
    for code in range(0xC0, 0x180)
    if unicodedata.decomposition(chr(code))
} | {"ß": "ss", "ё": "е", "’": "'", "ı": "i", "ł": "l", "ø": "o", "：": ": "}
_ACCENT = re.compile("[" + "".join(_ACCENTS) + "]")
_ARABIC_PREFIX = re.compile(r"^(?:[وفبكل]?ال|لل|[وفبل])(?=\w{3})")
_NOT_MISSPELT = ("through", "thought", "though", "single", "sample", "contact", "manger", "resigned")
_MEMORY = 20_000
"""Words remembered with their categories; then the memory starts anew."""
_RUN = 60
"""Characters of an unbroken Chinese or Japanese run that are looked at."""


def plain(text: str) -> str:
    """Lower case, without the accents of Latin letters."""
    text = text.lower()
    return text if text.isascii() else _ACCENT.sub(lambda found: _ACCENTS[found.group()], text)


def is_cjk(token: str) -> bool:
    """Whether a token is a run of Chinese or Japanese, which has no spaces between words."""
    return "\u3040" <= token[0] <= "\u9fff"


class Lexicon:
    """Categories of words and phrases, each a bit."""

    def __init__(self, text: str) -> None:
        """`text` has one category a paragraph: `name: word, phrase of words, stem*, ...`; lines with # are comments."""
        self.categories: list[str] = []
        self._words: dict[str, int] = {}
        self._stems: dict[str, int] = {}
        self._phrases: dict[str, dict[str, list[tuple[list[str], int]]]] = {}
        self._cjk: dict[str, list[tuple[str, int]]] = {}
        self._shuffled: dict[str, int] = {}
        self._shortened: dict[str, int] = {}
        self._memory: dict[str, int] = {}
        body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
        for paragraph in re.split(r"\n\s*\n", body.strip()):
            name, _, words = paragraph.strip().partition(":")
            bit = 1 << len(self.categories)
            self.categories.append(name)
            for word in words.replace("\n", " ").split(","):
                self._add(plain(word.strip()), bit)
        self._stem_lengths = sorted({len(stem) for stem in self._stems}, reverse=True)
        self._index_misspellings()
        self._name_of = {1 << at: name for at, name in enumerate(self.categories)}
        self.names = lru_cache(maxsize=8_192)(self._names)

    def mask(self, *names: str) -> int:
        """The bits of categories."""
        return sum(1 << self.categories.index(name) for name in names)

    def _names(self, mask: int) -> tuple[str, ...]:
        found = []
        while mask:
            lowest = mask & -mask
            found.append(self._name_of[lowest])
            mask ^= lowest
        return tuple(found)

    def tokens(self, text: str) -> list[str]:
        """The words of a text that `plain` has been applied to."""
        return text.translate(_APART).split() if text.isascii() else _TOKEN.findall(text)

    def marked(self, tokens: list[str]) -> tuple[list[str], list[int]]:
        """Words and, for each, the bits of its categories, those of phrases that begin there included.

        A run of Chinese or Japanese becomes its pairs of characters.
        """
        known = list(map(self._memory.get, tokens))
        if None in known:
            return self._marked_anew(tokens)
        marks: list[int] = known  # type: ignore[assignment]  # none of them is None
        last = len(tokens) - 1
        for at, following in enumerate(map(self._phrases.get, tokens)):
            if following is not None and at < last:
                ends = following.get(tokens[at + 1])
                if ends is not None:
                    marks[at] |= _begun(ends, tokens, at)
        return tokens, marks

    def _marked_anew(self, tokens: list[str]) -> tuple[list[str], list[int]]:
        """The same where a word is not remembered, or is a run of Chinese or Japanese."""
        words: list[str] = []
        marks: list[int] = []
        memory, phrases, last = self._memory, self._phrases, len(tokens) - 1
        for at, token in enumerate(tokens):
            kinds = memory.get(token)
            if kinds is None:
                if is_cjk(token):
                    self._mark_run(token[:_RUN], words, marks)
                    continue
                kinds = self._learn(token)
            if token in phrases and at < last:
                kinds |= _begun(phrases[token].get(tokens[at + 1], []), tokens, at)
            words.append(token)
            marks.append(kinds)
        return words, marks

    def _mark_run(self, run: str, words: list[str], marks: list[int]) -> None:
        known = self._cjk
        for at in range(len(run)):
            pair = run[at : at + 2]
            kinds = 0
            for word, bit in known.get(pair, ()):
                if run.startswith(word, at):
                    kinds |= bit
            if len(pair) == 2:
                for _, bit in known.get(pair[0], ()):
                    kinds |= bit
            words.append(pair)
            marks.append(kinds)

    def _learn(self, token: str) -> int:
        if len(self._memory) >= _MEMORY:
            self._memory.clear()
        kinds = self._memory[token] = self._kinds(token)
        return kinds

    def _kinds(self, token: str) -> int:
        found = self._words.get(token)
        if found is not None:
            return found
        for length in self._stem_lengths:
            if length <= len(token) and (found := self._stems.get(token[:length])):
                return found
        if "\u0600" <= token[0] <= "\u06ff" and (bare := _ARABIC_PREFIX.sub("", token)) != token:
            return self._kinds(bare)
        if len(token) < 6 or not token.isascii() or not token.isalpha():
            return 0
        return self._misspelt(token)

    def _misspelt(self, token: str) -> int:
        if token.endswith("s") and (found := self._words.get(token[:-1])):
            return found
        found = self._shortened.get(token) or self._shuffled.get("".join(sorted(token)))
        if found:
            return found
        if len(token) >= 8:
            for at in range(1, len(token)):
                if found := self._words.get(token[:at] + token[at + 1 :]):
                    return found
        return 0

    def _add(self, entry: str, bit: int) -> None:
        tokens = _TOKEN.findall(entry)
        if not tokens:
            return
        if any(map(is_cjk, tokens)):
            whole = "".join(tokens)
            self._cjk.setdefault(whole[:2], []).append((whole, bit))
        elif len(tokens) > 1:
            self._phrases.setdefault(tokens[0], {}).setdefault(tokens[1], []).append((tokens[2:], bit))
        elif entry.endswith("*"):
            self._stems[tokens[0]] = self._stems.get(tokens[0], 0) | bit
        else:
            self._words[tokens[0]] = self._words.get(tokens[0], 0) | bit

    def _index_misspellings(self) -> None:
        """Words of seven letters or more are also found with letters exchanged or one missing."""
        for word, kinds in self._words.items():
            if len(word) >= 7 and word.isascii():
                self._shuffled["".join(sorted(word))] = kinds
                for at in range(1, len(word)):
                    self._shortened.setdefault(word[:at] + word[at + 1 :], kinds)
        for word in _NOT_MISSPELT:
            self._shortened.pop(word, None)


def _begun(ends: list[tuple[list[str], int]], tokens: list[str], at: int) -> int:
    """The bits of the phrases that begin with the two words at `at`."""
    kinds = 0
    for rest, bit in ends:
        if not rest or tokens[at + 2 : at + 2 + len(rest)] == rest:
            kinds |= bit
    return kinds


LEXICON: Final = Lexicon(files("hortator.routing").joinpath("data/lexicon.txt").read_text(encoding="utf-8"))
