"""The moderations dialect, passed through: is a text or picture harmful?"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from hortator.errors import InvalidReply
from hortator.wire.body import ParsedRequest, parse_as
from hortator.wire.chat import WireUsage

DEFAULT_MODEL = "omni-moderation-latest"
"""What OpenAI takes when a request names none."""


class ModerationRequest(Struct):
    """The documented parameters; unknown ones pass."""

    input: str | list[Raw]
    model: Annotated[str, Meta(min_length=1, max_length=512)] = DEFAULT_MODEL


class ModerationReply(Struct):
    """What the gateway reads of a reply."""

    results: list[Raw] | None = None
    model: str | None = None
    usage: WireUsage | None = None
    error: Any = None


_request = msgspec.json.Decoder(ModerationRequest)
_reply = msgspec.json.Decoder(ModerationReply)


def parse(body: bytes) -> ParsedRequest:
    """Validate a request body. Raises InvalidRequest."""
    top, request = parse_as(body, _request)
    return ParsedRequest(top, request.model, False, False)


def read_whole(body: bytes) -> ModerationReply:
    """Check that a reply is a moderation. Raises InvalidReply."""
    try:
        reply = _reply.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidReply("The provider's reply is not a moderation.") from None
    if reply.results is None and not reply.error:
        raise InvalidReply("The provider's reply is not a moderation.")
    return reply
