"""Reading and refusing fields that are kept as the client's own bytes; what the translations between dialects share.

A request's values stay `Raw` for as long as they only change places, so that number spellings, long texts and images are
not read and written again. Pure: no I/O.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from hortator.errors import Inapplicable, InvalidRequest
from hortator.wire.body import Object

NULL = Raw(b"null")
_QUOTE = 34
_BRACKET = 91
_BRACE = 123

_objects = msgspec.json.Decoder(list[Object])
_object: msgspec.json.Decoder[Object] = msgspec.json.Decoder(Object)
_text = msgspec.json.Decoder(str)
_encode = msgspec.json.encode


def raw(value: Any) -> Raw:
    """Return a value as JSON; parts of it may be raw already."""
    return Raw(_encode(value))


def given(body: Object, key: str) -> Raw | None:
    """Return a field's value, None when it is absent or null."""
    value = body.get(key)
    return None if value is None or value == NULL else value


def read(decoder: msgspec.json.Decoder[Any], raw: Raw, param: str) -> Any:
    """Decode a part of a request that `parse` did not look into. Raises InvalidRequest that says where it is wrong."""
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"Invalid '{param}': {error}.", code="invalid_type", param=param) from None


def is_text(value: Raw) -> bool:
    """Whether a value is a string."""
    return bool(memoryview(value)[0] == _QUOTE)


def is_list(value: Raw) -> bool:
    """Whether a value is an array."""
    return bool(memoryview(value)[0] == _BRACKET)


def is_object(value: Raw) -> bool:
    """Whether a value is an object."""
    return bool(memoryview(value)[0] == _BRACE)


def text(value: Raw, param: str) -> str:
    """Return a string's text. Raises InvalidRequest."""
    try:
        return _text.decode(value)
    except msgspec.DecodeError:
        raise wrong_type(param, "a string") from None


def required_text(body: Object, key: str, param: str) -> str:
    """Return the text of a string that must be there. Raises InvalidRequest."""
    return text(required(body, key, param), f"{param}.{key}")


def required(body: Object, key: str, param: str) -> Raw:
    """Return the value of a field that must be there. Raises InvalidRequest."""
    value = given(body, key)
    if value is None:
        name = f"{param}.{key}"
        raise InvalidRequest(f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name)
    return value


def optional_text(body: Object, key: str, param: str) -> str | None:
    """Return the text of a string, None when it is absent or null. Raises InvalidRequest."""
    value = given(body, key)
    return None if value is None else text(value, f"{param}.{key}")


def fields(value: Raw, param: str) -> Object:
    """Return an object's fields. Raises InvalidRequest."""
    try:
        return _object.decode(value)
    except msgspec.DecodeError:
        raise wrong_type(param, "an object") from None


def objects(value: Raw, param: str) -> list[Object]:
    """Return an array's objects. Raises InvalidRequest."""
    try:
        return _objects.decode(value)
    except msgspec.DecodeError:
        raise wrong_type(param, "an array of objects") from None


def wrong_type(param: str, wanted: str) -> InvalidRequest:
    """Return the error for a value of another type than `wanted`."""
    return InvalidRequest(f"Invalid type for '{param}': it must be {wanted}.", code="invalid_type", param=param)


def unsupported(param: str, why: str) -> Inapplicable:
    """Return the error for what the other dialect cannot express; a provider that speaks the client's may be able to."""
    return Inapplicable(f"'{param}' cannot be served: {why}", code="unsupported_parameter", param=param)
