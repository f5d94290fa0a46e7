"""The embeddings dialect: what a request must look like, and vectors in the encoding the client asked for.

The door parses requests here; dispatch checks replies here. Official clients ask for base64 (little-endian float32) unless told
otherwise, and openai-node reads a list of numbers as an empty vector then, so a provider's other encoding is put right.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from hortator.errors import InvalidReply, InvalidRequest
from hortator.wire.body import Object, ParsedRequest, parse_as
from hortator.wire.chat import WireUsage

MAX_INPUTS = 2048
"""As OpenAI's."""


class EmbeddingsRequest(Struct):
    """The documented parameters; unknown ones pass."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    input: str | Annotated[list[str | int | list[int]], Meta(min_length=1)]
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None


class EmbeddingsReply(Struct):
    """What the gateway reads of a reply."""

    data: list[Raw] | None = None
    model: str | None = None
    usage: WireUsage | None = None
    error: Any = None


_FIRST = re.compile(rb'"embedding"\s*:\s*(.)')
_request = msgspec.json.Decoder(EmbeddingsRequest)
_reply = msgspec.json.Decoder(EmbeddingsReply)


def parse(body: bytes) -> ParsedRequest:
    """Validate a request body. Raises InvalidRequest."""
    top, request = parse_as(body, _request)
    given = request.input
    if isinstance(given, list):
        if len(given) > MAX_INPUTS:
            raise InvalidRequest(f"'input' has more than {MAX_INPUTS} entries.", code="invalid_value", param="input")
        if len({type(each) for each in given}) > 1:
            raise InvalidRequest("'input' mixes texts and tokens.", code="invalid_type", param="input")
    if given in ("", [""]) or [] in (given if isinstance(given, list) else ()):
        raise InvalidRequest("'input' must not be empty.", code="invalid_value", param="input")
    return ParsedRequest(top, request.model, False, False)


def read_whole(body: bytes) -> EmbeddingsReply:
    """Check that a reply holds embeddings. Raises InvalidReply."""
    try:
        reply = _reply.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidReply("The provider's reply holds no embeddings.") from None
    if reply.data is None and not reply.error:
        raise InvalidReply("The provider's reply holds no embeddings.")
    return reply


def mend_whole(body: bytes, request: Object) -> bytes:
    """Return a checked reply with its vectors in the encoding that the request asks for. Raises InvalidReply."""
    asked = msgspec.json.decode(request.get("encoding_format", b"null"))
    base64_asked = asked == "base64"
    first = _FIRST.search(body)
    if first is None or (first.group(1) == b'"') == base64_asked:
        return body
    document: dict[str, Any] = msgspec.json.decode(body)
    try:
        for entry in document["data"]:
            vector = entry["embedding"]
            if isinstance(vector, str) and not base64_asked:
                data = base64.b64decode(vector)
                entry["embedding"] = list(struct.unpack(f"<{len(data) // 4}f", data))
            elif isinstance(vector, list) and base64_asked:
                entry["embedding"] = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    except (KeyError, TypeError, struct.error, binascii.Error):
        raise InvalidReply("The provider's reply holds no embeddings.") from None
    return msgspec.json.encode(document)
