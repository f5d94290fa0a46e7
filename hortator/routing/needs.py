"""What a request needs of a model: room, tools, vision, a schema for the answer; and whether a model is known not to have it.

`policy.py` asks `may_matter` for every call, so that costs under a microsecond where nothing can be excluded; only then is a request
looked at closely. What is not known of a model excludes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from re import compile as pattern
from typing import Final, NamedTuple

import msgspec
from msgspec import Raw

from hortator.routing.cards import Card
from hortator.settings import Feature

CHARACTERS_A_TOKEN: Final = 5
"""More than a token of common text has: a request that would just fit is not turned away. What slips through meets the provider."""
ATTACHMENT_TOKENS: Final = 1_000
"""What an embedded image or file is taken for."""
_TEXTS: Final = ("messages", "tools", "functions", "response_format", "input", "prompt", "instructions", "system")
_LIMITS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_EMBEDDED: Final = pattern(rb"[A-Za-z0-9+/=_\\-]{2000,}")
_UNDERSCORE: Final = 95
_NOTHING: Final = frozenset((b"null", b"[]", b"{}"))
_whole = msgspec.json.Decoder(int | None)


class _Part(msgspec.Struct):
    type: str = ""


class _Message(msgspec.Struct):
    content: str | list[_Part] | None = None


_messages = msgspec.json.Decoder(list[_Message])


class Needs(NamedTuple):
    """What one request needs."""

    input_tokens: int
    """Estimated, low rather than high."""
    output_tokens: int | None
    """The most it asks for; None = it does not say."""
    features: frozenset[Feature]


class Guard(NamedTuple):
    """The tightest bounds of a model, its deployments and fallbacks: a request within them fits everywhere."""

    window: int | None
    lacks: frozenset[Feature]


Body = Mapping[str, Raw]


def guard(cards: Iterable[Card]) -> Guard | None:
    """Return the tightest bounds of all; None = nothing is known that could exclude a request."""
    found = list(cards)
    windows = [card.context_window for card in found if card.context_window is not None]
    lacks = frozenset[Feature]().union(*(card.lacks for card in found))
    return Guard(min(windows, default=None), lacks) if windows or lacks else None


def may_matter(bounds: Guard, body: Body) -> bool:
    """Whether a request could be over these bounds. Bytes count as tokens here: no request has more tokens."""
    messages = body.get("messages", b"")
    size = len(memoryview(messages))
    lacks = bounds.lacks
    if "tools" in body or "functions" in body:
        if "tools" in lacks:
            return True
        size += sum(len(memoryview(body[field])) for field in ("tools", "functions") if field in body)
    if "response_format" in body and "json_schema" in lacks:
        return True
    if "vision" in lacks:
        raw = bytes(messages)
        if _UNDERSCORE in raw and b'"image_url"' in raw:  # a single byte is found ten times as fast
            return True
    return bounds.window is not None and size + (asked_output(body) or 0) > bounds.window


def asked_output(body: Body) -> int | None:
    """Return the most tokens that the answer may have; None = the request does not say."""
    for field in _LIMITS:
        if field in body:
            asked: int | None = _whole.decode(body[field])
            if asked is not None:
                return max(0, asked)
    return None


def needs(body: Body) -> Needs:
    """Look closely at a request's body, whose types a door has checked."""
    features: set[Feature] = set()
    if any(bytes(body[field]) not in _NOTHING for field in ("tools", "functions") if field in body):
        features.add("tools")
    if b'"json_schema"' in bytes(body.get("response_format", b"")):
        features.add("json_schema")
    messages = bytes(body.get("messages", b""))
    if b'"image_url"' in messages and _shows_images(messages):
        features.add("vision")
    size = sum(_characters(bytes(body[field])) for field in _TEXTS if field in body)
    return Needs(-(-size // CHARACTERS_A_TOKEN), asked_output(body), frozenset(features))


def lacking(card: Card, needed: Needs) -> tuple[str, str] | None:
    """Return what a model is known to lack for a request, as a bound and a sentence; None = nothing known."""
    window = card.context_window
    total = needed.input_tokens + (needed.output_tokens or 0)
    if window is not None and total > window:
        asked = "" if needed.output_tokens is None else f" and an answer of up to {needed.output_tokens}"
        return "context_window", f"{window} tokens; the request has about {needed.input_tokens}{asked}"
    missing = needed.features & card.lacks
    return ("capabilities", f"takes no {' and no '.join(sorted(missing))}") if missing else None


def _shows_images(messages: bytes) -> bool:
    """Whether a part of a message really is an image, and the word is not only in a text."""
    try:
        found = _messages.decode(messages)
    except msgspec.DecodeError:
        return False
    return any(part.type == "image_url" for one in found if isinstance(one.content, list) for part in one.content)


def _characters(raw: bytes) -> int:
    """Characters of JSON: an escape is one, and what is embedded in base64 counts for `ATTACHMENT_TOKENS`."""
    size = len(raw)
    if b";base64," in raw:
        embedded = [len(found[0]) for found in _EMBEDDED.finditer(raw)]
        size += len(embedded) * ATTACHMENT_TOKENS * CHARACTERS_A_TOKEN - sum(embedded)
    return size - 5 * raw.count(b"\\u")
