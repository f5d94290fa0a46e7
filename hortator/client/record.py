"""What a server says, as objects: every JSON object is read by attribute at any depth (`results.papers[0].citation`, R-000-19).

All resources return these. A class that annotates attributes says what is usual there: such an attribute is None where the server
left it out; what no class names is there too when the server said it, and an AttributeError when it did not. No I/O.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import get_annotations
from typing import Any, ClassVar

import msgspec

from hortator.client.errors import ServerError


class Record:
    """A JSON object that is read and never changed. `record["name"]` reaches names that are no Python names."""

    _data: dict[str, Any]
    _known: ClassVar[frozenset[str]] = frozenset()
    _kinds: ClassVar[Mapping[str, type[Record]]] = {}
    """Of attributes that hold objects, or lists of them: what they are."""

    def __init_subclass__(cls, kinds: Mapping[str, type[Record]] | None = None, own: tuple[str, ...] = ()) -> None:
        """`own`: attributes that hold objects of the class itself."""
        super().__init_subclass__()
        cls._known = cls._known | set(get_annotations(cls))
        cls._kinds = {**cls._kinds, **(kinds or {}), **dict.fromkeys(own, cls)}

    def __init__(self, data: Mapping[str, Any] | None = None) -> None:
        object.__setattr__(self, "_data", dict(data or {}))

    def __getattr__(self, name: str) -> Any:
        if name == "_data" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        if name not in self._data:
            if name in self._known:
                return None
            has = ", ".join(sorted(self._data)) or "nothing"
            raise AttributeError(f"this {type(self).__name__} has no {name!r}; it has: {has}")
        value = self.__dict__[name] = _read(self._data[name], self._kinds.get(name, Record))
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a {type(self).__name__} cannot be changed")

    def __getitem__(self, name: str) -> Any:
        return _read(self._data[name], self._kinds.get(name, Record))

    def __contains__(self, name: object) -> bool:
        return name in self._data

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return self._data == (other._data if isinstance(other, Record) else other)

    __hash__ = None  # type: ignore[assignment]  # equal to dictionaries, which have none either

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._data!r})"

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._data})

    def to_dict(self) -> dict[str, Any]:
        """Return what the server said, as plain JSON values."""
        return dict(self._data)


def _read(value: Any, kind: type[Record]) -> Any:
    if isinstance(value, Mapping):
        return kind(value)
    if isinstance(value, list):
        return [_read(each, kind) for each in value]
    return value


def plain(value: Any) -> Any:
    """Return what can say itself as JSON values, everything else as it is."""
    return value.to_dict() if hasattr(value, "to_dict") else value


def read_object(body: bytes) -> dict[str, Any]:
    """Read a JSON object. Raises ServerError for what is none."""
    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError:
        found = None
    if not isinstance(found, dict):
        raise ServerError("The server's reply is not a JSON object; is this the address of a Hortator?")
    return found
