"""Configuration as written: a tree whose every node knows the file and line, or the variable, it came from.

`load` asks for the tree of a YAML file and lays variables over it; `build` turns the tree into `Settings`. Anchors and merge
keys work, tags that build objects do not exist here, and size, depth and the number of nodes after aliases are bounded.
A value is never part of a message: it may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

import yaml

from hortator.errors import ConfigError

MAX_FILE_BYTES = 1 << 20
MAX_NODES = 50_000
MAX_DEPTH = 32

_INT = re.compile(r"[-+]?[0-9][0-9_]*")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?")
_WORDS: Mapping[str, bool | None] = {"": None, "~": None, "null": None, "true": True, "false": False}
_REFERENCE = re.compile(r"\$(\$)?\{(?:([A-Za-z_][A-Za-z0-9_]*)(?:(:-)([^}]*))?\})?")
_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")
_QUOTED = re.compile(r"""(?:"([^"]*)"|'([^']*)')\s*(?:#.*)?""")

Content: TypeAlias = "dict[str, Node] | list[Node] | str | int | float | bool | None"


class Node:
    """One value with where it was written.

    `from_variable`: it is text, whatever it stands for. `broken`: a problem was noted, the content stands for nothing.
    """

    __slots__ = ("broken", "content", "from_variable", "where")

    def __init__(self, content: Content, where: str, *, from_variable: bool = False) -> None:
        self.content = content
        self.where = where
        self.from_variable = from_variable
        self.broken = False

    def at(self, *path: str | int) -> Node:
        """Return the node at `path`, or the nearest one above it that was written."""
        node = self
        for step in path:
            found = node.child(step)
            if found is None:
                return node
            node = found
        return node

    def child(self, step: str | int) -> Node | None:
        """Return the value of a key or the item at an index; None when it was not written."""
        if isinstance(self.content, dict) and isinstance(step, str):
            return self.content.get(step)
        if isinstance(self.content, list) and isinstance(step, int) and step < len(self.content):
            return self.content[step]
        return None


class Problems:
    """Everything found wrong, in the order it was found."""

    def __init__(self) -> None:
        self._lines: dict[str, None] = {}

    def add(self, where: str, key: str, message: str) -> None:
        """Note a problem: `where` is `file:line` or a variable's name, `key` the dotted key."""
        self._lines[": ".join(part for part in (where, key, message) if part)] = None

    def raise_any(self) -> None:
        """Raise ConfigError with one line for each problem, if there is any."""
        if self._lines:
            raise ConfigError("\n".join(self._lines))


class Variables(Mapping[str, str]):
    """The environment, and which of its variables were used."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.used: set[str] = set()

    def use(self, name: str) -> str:
        """Return a variable's value, empty when it is not set, and remember that it counted."""
        value = self._environ.get(name, "")
        if value:
            self.used.add(name)
        return value

    def __getitem__(self, name: str) -> str:
        return self._environ[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._environ)

    def __len__(self) -> int:
        return len(self._environ)


def read_tree(path: Path, variables: Variables, problems: Problems) -> Node:
    """Return the tree of a YAML file, `${NAME}` references replaced. Raises ConfigError when it cannot be read at all."""
    text = _read_text(path)
    loader = yaml.SafeLoader(text)
    loader.yaml_implicit_resolvers = {}  # scalars are read here, by the rules of YAML 1.2
    try:
        root = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = str(path) if mark is None else f"{path}:{mark.line + 1}"
        raise ConfigError(f"{where}: not valid YAML: {error.problem or error.context}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    finally:
        loader.dispose()
    if root is None:
        return Node({}, str(path))
    node = _Reader(str(path), variables, problems).read(root, "", 0)
    if node.content is None:
        return Node({}, str(path))
    if not isinstance(node.content, dict):
        raise ConfigError(f"{node.where}: expected settings such as `server:` and `providers:` at the top")
    return node


def read_env_file(path: Path) -> dict[str, str]:
    """Return the variables of a file of NAME=VALUE lines (`.env`, `.dev.vars`: R-002-15).

    Blank lines and `#` comments are skipped, `export ` is allowed, quotes around a value are taken off. Raises ConfigError.
    """
    found: dict[str, str] = {}
    problems = Problems()
    for number, raw in enumerate(_read_text(path).splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            problems.add(f"{path}:{number}", "", "expected NAME=VALUE")
            continue
        name, value = match.groups()
        quoted = _QUOTED.fullmatch(value)
        if quoted is not None:
            value = quoted[1] if quoted[1] is not None else quoted[2]
        elif value[:1] in ('"', "'"):
            problems.add(f"{path}:{number}", name, "the quote is not closed")
        else:
            value = re.split(r"(?:^|\s)#", value, maxsplit=1)[0].rstrip()
        if name in found:
            problems.add(f"{path}:{number}", name, "set twice in this file; keep one")
        found[name] = value
    problems.raise_any()
    return found


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or 'unknown reason'}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES:,} bytes, so not a configuration file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text") from None
    bad = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if bad is not None:
        line = text.count("\n", 0, bad.start()) + 1
        raise ConfigError(f"{path}:{line}: holds a control character (U+{ord(bad.group()):04X})")
    return text


class _Reader:
    """Turns composed YAML into nodes."""

    def __init__(self, file: str, variables: Variables, problems: Problems) -> None:
        self._file = file
        self._variables = variables
        self._problems = problems
        self._count = 0

    def read(self, node: yaml.Node, key: str, depth: int) -> Node:
        where = self._where(node)
        self._count += 1
        if depth > MAX_DEPTH:
            raise ConfigError(f"{where}: {key[:100]}: nested too deeply, or an alias that contains itself")
        if self._count > MAX_NODES:
            raise ConfigError(f"{where}: more than {MAX_NODES:,} values once aliases are followed")
        if isinstance(node, yaml.MappingNode):
            self._standard(node, key, "tag:yaml.org,2002:map")
            return Node(self._mapping(node, key, depth), where)
        if isinstance(node, yaml.SequenceNode):
            self._standard(node, key, "tag:yaml.org,2002:seq")
            items = [self.read(item, f"{key}[{index}]", depth + 1) for index, item in enumerate(node.value)]
            return Node(items, where)
        assert isinstance(node, yaml.ScalarNode)
        self._standard(node, key, "tag:yaml.org,2002:str")
        return self._scalar(node, key, where)

    def _where(self, node: yaml.Node) -> str:
        return f"{self._file}:{node.start_mark.line + 1}"

    def _standard(self, node: yaml.Node, key: str, tag: str) -> None:
        if node.tag != tag:
            self._problems.add(self._where(node), key, "YAML tags are not supported; remove the `!...`")

    def _mapping(self, node: yaml.MappingNode, key: str, depth: int) -> dict[str, Node]:
        merged: dict[str, Node] = {}
        own: dict[str, Node] = {}
        for name_node, value_node in node.value:
            if not isinstance(name_node, yaml.ScalarNode):
                self._problems.add(self._where(name_node), key, "a key must be plain text")
                continue
            name = str(name_node.value)
            path = f"{key}.{name}" if key else name
            if name == "<<" and name_node.style is None:
                merged = self._merge(value_node, path, depth) | merged
                continue
            if name in own:
                first = own[name].where.rpartition(":")[2]
                self._problems.add(self._where(name_node), path, f"given twice (first in line {first}); keep one")
                continue
            value = self.read(value_node, path, depth + 1)
            value.where = self._where(name_node)
            own[name] = value
        return merged | own

    def _merge(self, node: yaml.Node, key: str, depth: int) -> dict[str, Node]:
        value = self.read(node, key, depth + 1)
        sources = value.content if isinstance(value.content, list) else [value]
        merged: dict[str, Node] = {}
        for source in reversed(sources):
            if isinstance(source.content, dict):
                merged |= source.content
            else:
                self._problems.add(source.where, key, "expected a mapping, or a list of mappings, to merge")
        return merged

    def _scalar(self, node: yaml.ScalarNode, key: str, where: str) -> Node:
        text = str(node.value)
        if node.style is None:
            if text.lower() in _WORDS:
                return Node(_WORDS[text.lower()], where)
            if _INT.fullmatch(text) and len(text) < 30:
                return Node(int(text.replace("_", "")), where)
            if _FLOAT.fullmatch(text) and len(text) < 30:
                return Node(float(text.replace("_", "")), where)
        if "${" not in text:
            return Node(text, where)
        return self._replace(text, key, where)

    def _replace(self, text: str, key: str, where: str) -> Node:
        """Fill in `${NAME}` and `${NAME:-default}`; `$${` stands for `${`. Empty in the end = as if it were not given."""
        node = Node(None, where, from_variable=True)

        def one(match: re.Match[str]) -> str:
            escaped, name, has_default, default = match.groups()
            if escaped:
                return match.group()[1:]
            if name is None:
                node.broken = True
                self._problems.add(
                    where, key, "a `${` without its end; write ${NAME}, ${NAME:-default}, or $${ for the characters"
                )
                return ""
            value = self._variables.use(name)
            if value or has_default:
                return value or default
            node.broken = True
            self._problems.add(
                where, key, f"the environment variable {name} is not set; set it, or write ${{{name}:-default}}"
            )
            return ""

        node.content = _REFERENCE.sub(one, text) or None
        return node
