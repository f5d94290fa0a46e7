"""Turns a tree into the structs of the document, by their annotations, noting every problem instead of stopping at the first.

`load` calls `build` once. It knows types, not meanings: what fields have to do with each other is checked in `rules.py`.
Where a problem was noted the default stands in, so that the rest can still be checked; the result is then never used.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from hortator.settings.secret import Secret
from hortator.settings.tree import Node, Problems

MISSING: Any = msgspec.UNSET
"""What `build` returns where it noted a problem."""

_NAMES: Mapping[Any, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


@cache
def hints(struct: type) -> dict[str, Any]:
    """Return the fields of a struct with their annotations."""
    return get_type_hints(struct, include_extras=True)


def closest(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean ...?)`, or nothing."""
    found = difflib.get_close_matches(word[:100], known, 1)
    return f" (did you mean `{found[0]}`?)" if found else ""


class Builder:
    """Builds values out of nodes. `folder` is what relative paths in the file are relative to."""

    def __init__(self, folder: Path, problems: Problems) -> None:
        self._folder = folder
        self._problems = problems
        self._places: dict[int, tuple[object, Node, str]] = {}

    def placed(self, built: object, node: Node, key: str) -> None:
        """Remember the node and the dotted key that a struct was built from; the struct is kept, so that its id stays its own."""
        self._places[id(built)] = (built, node, key)

    def place(self, built: object) -> tuple[Node, str]:
        """Return the node and the dotted key of a struct; for a provider that is not in the file, the environment."""
        found = self._places.get(id(built))
        return (Node(None, "environment"), f"provider {getattr(built, 'id', '')}") if found is None else found[1:]

    def build(self, kind: Any, node: Node, key: str) -> Any:
        """Return the node's content as `kind`, or MISSING after noting why not."""
        if node.broken:
            return MISSING
        origin = get_origin(kind)
        if origin in (Union, types.UnionType):
            if node.content is None:
                return None
            kind = next(choice for choice in get_args(kind) if choice is not types.NoneType)
            return self.build(kind, node, key)
        constraints = None
        if origin is Annotated and get_origin(get_args(kind)[0]) is tuple:
            constraints = get_args(kind)[1]
            kind = get_args(kind)[0]
            origin = tuple
        if origin is tuple:
            return self._tuple(get_args(kind)[0], node, key, constraints)
        if origin is not None and is_mapping(origin):
            return self._mapping(get_args(kind)[1], node, key)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return self._struct(kind, node, key)
        return self._leaf(kind, node, key)

    def _wrong(self, node: Node, key: str, message: str) -> Any:
        self._problems.add(node.where, key, message)
        return MISSING

    def _struct(self, struct: type[msgspec.Struct], node: Node, key: str) -> Any:
        content = {} if node.content is None else node.content
        if not isinstance(content, dict):
            return self._wrong(node, key, "expected a mapping of settings")
        fields = {field.name: field for field in msgspec.structs.fields(struct)}
        values: dict[str, Any] = {}
        for name, child in content.items():
            path = f"{key}.{name}" if key else name
            if name not in fields:
                known = ", ".join(fields)
                self._wrong(child, path, f"unknown setting{closest(name, fields)}; known here: {known}")
                continue
            hint = hints(struct)[name]
            if child.content is None and not child.broken and is_collection(hint):
                continue  # a section whose lines are all commented out
            value = self.build(hint, child, path)
            if value is not MISSING:
                values[name] = value
        lacking = [name for name, field in fields.items() if field.required and name not in values]
        for name in lacking:
            if name not in content:
                self._wrong(node, key, f"`{name}` is missing")
        if lacking:
            return MISSING
        built = struct(**values)
        self.placed(built, node, key)
        return built

    def _tuple(self, kind: Any, node: Node, key: str, constraints: msgspec.Meta | None) -> Any:
        if not isinstance(node.content, list):
            return self._wrong(node, key, "expected a list; in the file, each item begins with `-`")
        if constraints is not None and len(node.content) < (constraints.min_length or 0):
            return self._wrong(node, key, f"expected at least {constraints.min_length} item")
        values = (self.build(kind, child, f"{key}[{index}]") for index, child in enumerate(node.content))
        return tuple(value for value in values if value is not MISSING)

    def _mapping(self, kind: Any, node: Node, key: str) -> Any:
        if not isinstance(node.content, dict):
            return self._wrong(node, key, "expected a mapping, `name: value`")
        values = {name: self.build(kind, child, f"{key}.{name}") for name, child in node.content.items()}
        return types.MappingProxyType({name: value for name, value in values.items() if value is not MISSING})

    def _leaf(self, kind: Any, node: Node, key: str) -> Any:
        content = node.content
        if content is None:
            return self._wrong(node, key, "a value is missing")
        if isinstance(content, dict | list):
            return self._wrong(node, key, "expected a single value")
        if kind is Secret or kind is Path:
            if not isinstance(content, str) or not content:
                return self._wrong(node, key, "expected text; put it in quotes" if content != "" else "is empty")
            return Secret(content) if kind is Secret else self._path(content, node)
        if get_origin(kind) is Literal:
            choices = get_args(kind)
            if content in choices:
                return content
            return self._wrong(node, key, f"expected one of: {', '.join(choices)}")
        try:
            return msgspec.convert(content, kind, strict=not node.from_variable)
        except msgspec.ValidationError:
            return self._wrong(node, key, f"expected {describe(kind)}")

    def _path(self, text: str, node: Node) -> Path:
        in_file = ":" in node.where  # a variable's path is relative to where the command runs
        return (self._folder if in_file else Path.cwd()) / Path(text).expanduser()


def is_collection(hint: Any) -> bool:
    """Say whether nothing at all may stand for an empty value of this kind."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    origin = get_origin(hint)
    if origin is None:
        return isinstance(hint, type) and issubclass(hint, msgspec.Struct)
    return origin is tuple or is_mapping(origin)


def is_mapping(origin: Any) -> bool:
    """Say whether a generic annotation is a mapping."""
    return isinstance(origin, type) and issubclass(origin, Mapping)


def describe(kind: Any) -> str:
    """Say in words what a leaf of the document may hold."""
    if get_origin(kind) is not Annotated:
        return _NAMES[kind]
    base, meta = get_args(kind)
    words = _NAMES[base]
    if base is str:
        low, high = meta.min_length or 0, meta.max_length
        return f"{words} of {low} to {high} characters" if low else f"{words} of at most {high} characters"
    return f"{words} from {meta.ge:,} to {meta.le:,}"
