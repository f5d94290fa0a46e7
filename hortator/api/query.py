"""How doors read the query of an address: each parameter once, bounded numbers, nothing that a database cannot take."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl

from hortator.errors import InvalidRequest

Query = Mapping[str, str]
MAX_PARAMETERS = 20


def read_query(raw: bytes) -> Query:
    """Return the query's parameters. Raises InvalidRequest for one that comes twice."""
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_PARAMETERS, errors="strict")
    except ValueError:
        raise InvalidRequest("the query cannot be read", code="invalid_value") from None
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InvalidRequest("a parameter comes twice", code="invalid_value")
    if any("\0" in value for value in found.values()):
        raise InvalidRequest("a parameter holds a NUL", code="invalid_value")
    return found


def number(query: Query, name: str, default: int, low: int, high: int) -> int:
    """Return a whole number of the query, or the default. Raises InvalidRequest."""
    text = query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not low <= int(text) <= high:
        raise InvalidRequest(f"expected a whole number from {low} to {high}", code="invalid_value", param=name)
    return int(text)


def only(query: Query, *names: str) -> None:
    """Raise InvalidRequest for a parameter that would be passed over silently."""
    for name in query:
        if name not in names:
            known = ", ".join(names) or "none"
            raise InvalidRequest(f"known here: {known}", code="unknown_parameter", param=name[:100])
