#!/usr/bin/env python3
"""Writes the tables of docs/configuration.md from the docstrings of the settings, so that they never disagree.

`configuration_page.py` rewrites the page between its marks; `--check` ends with 1 if that would change it. Called by `make format` and `make check`.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

from hortator.settings import document
from hortator.settings.build import hints

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->\n"


def main() -> int:
    """Write or check the page."""
    old = PAGE.read_text()
    new = rendered(old)
    if "--check" in sys.argv[1:]:
        same = old == new
        print(f"configuration: docs/configuration.md {'says' if same else 'does not say'} what the settings say")
        return int(not same)
    PAGE.write_text(new)
    return 0


def rendered(page: str) -> str:
    """Return the page with its tables as the settings have them now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + tables() + END + after


def tables() -> str:
    """Return one table for each struct of the document."""
    docs = field_docs()
    lines: list[str] = []
    for struct, title in sections():
        lines += [
            "",
            f"### {title}",
            "",
            inspect.getdoc(struct) or "",
            "",
            "| Setting | Default | Meaning |",
            "|---|---|---|",
        ]
        for field in msgspec.structs.fields(struct):
            meaning = docs[struct.__name__][field.name] + choices(hints(struct)[field.name])
            lines.append(f"| `{field.name}` | {default(field)} | {meaning} |")
    return "\n".join(lines) + "\n\n"


def sections() -> list[tuple[type[msgspec.Struct], str]]:
    """Return the structs in the document's order, each with its heading."""
    found: list[tuple[type[msgspec.Struct], str]] = [(document.Document, "The top level")]
    for name, hint in hints(document.Document).items():
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            found.append((hint, f"`{name}`"))
        elif get_origin(hint) is tuple:
            found.append((get_args(hint)[0], f"`{name}`, each item"))
            if get_args(hint)[0] is document.NamedModel:
                found.append((document.DeploymentChoice, f"`{name}`, each item of `deployments`"))
        for inner, kind in hints(hint).items() if isinstance(hint, type) and issubclass(hint, msgspec.Struct) else ():
            if get_origin(kind) is Mapping and issubclass(get_args(kind)[1], msgspec.Struct):
                found.append((get_args(kind)[1], f"`{name}.{inner}`, each value"))
            elif isinstance(kind, type) and issubclass(kind, document.Paths):
                found.append((kind, f"`{name}.{inner}`, each as in `{name}.task_types`"))
            elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
                found.append((kind, f"`{name}.{inner}`"))
    return found


def field_docs() -> dict[str, dict[str, str]]:
    """Return the docstring under each field, by class and field."""
    docs: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(document)).body:
        if isinstance(node, ast.ClassDef):
            docs[node.name] = {}
            for field, text in zip(node.body, node.body[1:], strict=False):
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(field.target, ast.Name)
                    and isinstance(text, ast.Expr)
                ):
                    docs[node.name][field.target.id] = " ".join(ast.literal_eval(text.value).split())
    return docs


def choices(hint: Any) -> str:
    """Return the words a setting may have, for the table; empty when they are not counted."""
    literal = next((kind for kind in (hint, *get_args(hint)) if get_origin(kind) is Literal), None)
    return "" if literal is None else f" One of {', '.join(f'`{word}`' for word in get_args(literal))}."


def default(field: Any) -> str:
    """Return a field's default for the table."""
    if field.required:
        return "required"
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    if isinstance(value, msgspec.Struct):
        return "defaults"
    if value is None:
        return "None"
    if value in ("", (), {}):
        return "empty"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    raise SystemExit(main())
