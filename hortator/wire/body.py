"""Request bodies: the top level as raw values, checked against a dialect's struct.

The dialects' `parse` functions come here. Values are never re-encoded: a request is kept as its top level, so that unknown fields and
number spellings survive to the upstream.
"""

from __future__ import annotations

import re
from typing import NamedTuple, TypeVar

import msgspec
from msgspec import Raw

from hortator.errors import InvalidRequest

Object = dict[str, Raw]
Shape = TypeVar("Shape")


class ParsedRequest(NamedTuple):
    """A valid request: its top level as raw values, and what the gateway itself needs to know."""

    body: Object
    model: str
    stream: bool
    wants_usage: bool


_top_level = msgspec.json.Decoder(Object)
_OUT_OF_BOUNDS = (
    "Expected `str` of length",
    "Expected `str` matching",
    "Invalid enum value",
    *(f"Expected `{kind}` {sign}" for kind in ("int", "float") for sign in (">=", "<=")),
)
_AT = re.compile(r" - at `(?:key in )?\$\.?(.*)`$")


def parse_as(body: bytes, decoder: msgspec.json.Decoder[Shape]) -> tuple[Object, Shape]:
    """Return a body's top level and what `decoder` makes of it; decoding is the validation.

    Raises InvalidRequest with a stable code and the offending field as `param`.
    """
    try:
        if not body.isascii():
            body.decode()
        return _top_level.decode(body), decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The body is not valid UTF-8 at byte {error.start}.", code="invalid_utf8") from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", code="too_deep") from None


def _invalid(text: str) -> InvalidRequest:
    """Turn msgspec's sentence into the error the caller gets: code by what is wrong, param by where."""
    at = _AT.search(text)
    param = at.group(1) if at else None
    problem = text[: at.start()] if at else text
    missing = re.match(r"Object missing required field `(.+)`", problem)
    if missing:
        name = f"{param}.{missing.group(1)}" if param else missing.group(1)
        return InvalidRequest(f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name)
    unknown = re.match(r"Object contains unknown field `(.*)`", problem)
    if unknown:
        name = f"{param}.{unknown.group(1)}" if param else unknown.group(1)
        return InvalidRequest(f"Unknown parameter: '{name[:100]}'.", code="unknown_parameter", param=name[:100])
    if problem.startswith("Expected `array` of length >= 1"):
        return InvalidRequest(f"'{param}' must not be empty.", code="empty_array", param=param)
    if problem.startswith(_OUT_OF_BOUNDS):
        return InvalidRequest(f"Invalid '{param}': {problem}.", code="invalid_value", param=param)
    if param is None:
        return InvalidRequest(f"The body must be a JSON object: {problem}.", code="invalid_type")
    return InvalidRequest(f"Invalid type for '{param}': {problem}.", code="invalid_type", param=param)
