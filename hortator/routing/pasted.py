"""Sets pasted matter aside: what of a turn is code, logs, documents and tools' boilerplate, and what somebody says.

`features.py` comes here with the text of one turn. Pure and bounded by what it is given; it judges form, never meaning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_WANTED = (
    "user_query|user_message|user_request|user_input|task|query|question|request|feedback|instructions?|prompt|human"
)
_WANTED_END = re.compile(rf"</({_WANTED})>", re.IGNORECASE)
_OTHER_TAG = re.compile(r"<([a-zA-Z][\w-]*)(?:\s[^<>]*)?>.*?</\1>", re.DOTALL)
_OPEN_TAG = re.compile(r"</?[a-zA-Z][\w-]*(?:\s[^<>]*)?/?>")
_LABEL = re.compile(
    r"\n[#*>_\[ -]{0,4}(?:user(?:'s)? |my )?(?:request|question|query|task|instructions?|message|user|human)\W{0,3}:\s*",
    re.IGNORECASE,
)
FENCE = re.compile(r"```.*?(?:```|$)|~~~.*?(?:~~~|$)", re.DOTALL)
_JSON_MATTER = re.compile(
    r'"(?:input|text|content|code|sql|document|context|data|body|labels|from|to|role|lang|language|source|target)"\s*:\s*'
    r'(?:"(?:[^"\\]|\\.)*"|\[[^\]{}]*\])'
)
_JSON_SAID = re.compile(r'"content"\s*:\s*"((?:[^"\\]|\\.){1,400})"')
_JSON_MARKS = re.compile(r'[{}\[\]":_]+')
_PASTED = re.compile(
    r"\[?\d{4}[-/]\d\d[-/]\d\d|\[?\d\d:\d\d:\d\d|\[\w+\] |\{\"|\[[{\[\"]|(?:INFO|WARN|WARNING|ERROR|DEBUG|FATAL|TRACE)\b"
    r"|[A-Z][a-z]{2} +\d+ \d\d:\d\d|at [\w.$<>]+\(|Traceback \(|File \"|[$>] |>>> |#include|(?:from \S+ )?import \S+$|import [\w{*]"
    r"|def \w+\(|class \w+[(:{ ].*[:{]$|function \w*\(|func |(?:public|private|protected|static|const|let|var|return|package|using"
    r"|namespace|struct|impl|fn|pub|async)\s\S.*[;{(=]|</?\w|@@|[+-]{3} |diff --git|@\w+|//|/\*|\* |#!|SELECT .*\b(?:FROM|,)"
    r"|INSERT INTO|CREATE TABLE|\d{1,3}(?:\.\d{1,3}){3}\b|\|.*\||[\w.\[\]\"']+ ?[-+]?= ?\S+$|\"[\w -]+\"\s*:|[\w.-]+:(?: \S+)?$"
    r"|- \w+: \S+$|[^,\s]+(?:,[^,\s]*){3,}$|[A-Z][\w-]*Error: |(?:From|To|Subject|Date|Cc): "
)
_BULLET = re.compile(r"(?:[-*•–]|\(?\d{1,2}[.)]|\(?[a-z][.)])\s+\S")
_YAML_ITEM = re.compile(r"\s*- [\w.-]+:(?: \S+)?$")
_MAX_TAGS = 40
"""With more, a text is marked-up matter; looking for the ends of its tags would take time that grows with their square."""
_MAX_PARTS = 16
"""Parts of a message looked at: half from the beginning, half from the end."""


def text_of(content: object) -> str:
    """The text of a message's content: a string, or its text parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        return ""
    parts = content if len(content) <= _MAX_PARTS else [*content[: _MAX_PARTS // 2], *content[-_MAX_PARTS // 2 :]]
    texts = [
        part.get("text") for part in parts if isinstance(part, Mapping) and part.get("type") in ("text", "input_text")
    ]
    return "\n".join(text for text in texts if isinstance(text, str))


def capped(text: str, head: int, tail: int) -> str:
    """Its first `head` and last `tail` characters, or all of a text that is not longer."""
    return text if len(text) <= head + tail else text[:head] + "\n" + text[-tail:]


def _wanted(text: str) -> str | None:
    """What stands in the last tag that a tool puts around what the user typed."""
    lowered = text.lower()
    if len(lowered) != len(text):
        return None
    for end in reversed(list(_WANTED_END.finditer(lowered))):
        opening = f"<{end.group(1)}>"
        start = lowered.rfind(opening, 0, end.start())
        if start >= 0:
            return text[start + len(opening) : end.start()].strip()
    return None


def unwrapped(text: str) -> str:
    """Without the tags and labels that tools put around what the user typed."""
    if "</" in text:
        wanted = _wanted(text)
        if wanted is not None:
            text = wanted
        elif text.count("<") <= _MAX_TAGS:
            rest = _OPEN_TAG.sub(" ", _OTHER_TAG.sub("\n", text))
            text = rest if len(rest.strip()) > 2 else _OPEN_TAG.sub(" ", text)
    if len(text) > 200 and ":" in text:
        end = 0
        for found in _LABEL.finditer("\n" + text):
            end = found.end() - 1
        if 0 < end < len(text) - 1:
            text = text[end:]
    return text


def _is_pasted(line: str) -> bool:
    """Looks like code, a log line, a table or a header, not like a sentence."""
    bare = line.strip()
    if not bare:
        return False
    if line[0] in " \t" and (line.startswith("    ") or line[0] == "\t"):
        return True
    return (
        bare[-1] in ";{}[(" or bare.endswith("):") or bare in ("]", ")", "},", "],") or _PASTED.match(bare) is not None
    )


def without_paste(text: str) -> tuple[str, bool, int]:
    """Prose lines; whether some of the rest was code; the lines that are items of a list."""
    code = "```" in text or "~~~" in text
    if code:
        text = FENCE.sub("\n", text)
    if "\n" not in text:
        return text, code, 0
    lines = text.split("\n")
    if len(lines) > 20:
        lines = lines[:12] + lines[-8:]
    kept: list[str] = []
    bullets = 0
    for line in lines:
        if _BULLET.match(line.lstrip()[:12]) and not _YAML_ITEM.match(line):
            bullets += 1
            kept.append(line[:300])
        elif not _is_pasted(line[:300]):
            kept.append(line)
    return "\n".join(kept), code or len(lines) - len(kept) > 1, bullets


def from_json(text: str) -> str:
    """A request that is one JSON document: its words, without the matter to work on."""
    words = _JSON_MARKS.sub(" ", _JSON_MATTER.sub("", text[:1_500])).strip(" ,\n")
    if len(words) > 8:
        return words
    said = _JSON_SAID.findall(text[:1_500])
    return said[-1] if said else text[:400]
