"""Check the shape of the code: file sizes, function sizes, import cycles. Called by `make shape`.

Usage: shape.py FOLDER...

A file may have 500 lines of code (comments, docstrings and blank lines not counted), a function 60 lines from `def` to its
end. No cycle of imports may exist among the modules of a folder, imports inside functions included; imports for type
checking only are not counted. Complexity and imports inside functions as such are ruff's C901 and PLC0415.
"""

from __future__ import annotations

import ast
import graphlib
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

FILE_LINES = 500
FUNCTION_LINES = 60
SKIPPED = {"__pycache__", "node_modules", "out"}
QUIET = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def python_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*.py")):
        if not any(part in SKIPPED or part.startswith(".") for part in path.parts):
            yield path


def code_lines(source: str, tree: ast.Module) -> int:
    """Count the lines that hold a token which is neither a comment nor part of a docstring."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in QUIET:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def long_functions(tree: ast.Module) -> Iterator[tuple[str, int, int]]:
    """Yield name, line and length of each function that is over the limit."""
    for node in ast.walk(tree):
        if isinstance(node, Function):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                yield node.name, node.lineno, length


def imported_names(node: ast.AST, package: list[str]) -> Iterator[str]:
    """Yield the dotted names that `node` and what is in it import at run time; `package` is the module's own package."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            above = package[: len(package) - child.level + 1] if child.level else []
            base = ".".join([*above, child.module] if child.module else above)
            for alias in child.names:
                yield f"{base}.{alias.name}"
        else:
            yield from imported_names(child, package)


def import_graph(trees: dict[Path, ast.Module]) -> dict[str, set[str]]:
    """Return module -> the modules among `trees` that it imports. A name that is no module counts as its longest prefix."""

    def dotted(path: Path) -> str:
        parts = path.with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    known = {dotted(path) for path in trees}
    graph: dict[str, set[str]] = {}
    for path, tree in trees.items():
        module = dotted(path)
        found = graph.setdefault(module, set())
        for name in imported_names(tree, list(path.parent.parts)):
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name and name != module:
                found.add(name)
    return graph


def findings(folder: Path) -> Iterator[str]:
    """Yield one line for each thing in `folder` that is over its limit."""
    trees: dict[Path, ast.Module] = {}
    for path in python_files(folder):
        source = path.read_text(encoding="utf-8")
        trees[path] = tree = ast.parse(source)
        size = code_lines(source, tree)
        if size > FILE_LINES:
            yield f"{path}: {size} lines of code (limit {FILE_LINES})"
        for name, line, length in long_functions(tree):
            yield f"{path}:{line}: {name} has {length} lines (limit {FUNCTION_LINES})"
    try:
        graphlib.TopologicalSorter(import_graph(trees)).prepare()
    except graphlib.CycleError as error:
        yield f"{folder}: import cycle: {' <- '.join(error.args[1])}"


def main() -> int:
    found = [line for folder in sys.argv[1:] for line in findings(Path(folder))]
    print("\n".join(found) if found else "shape: nothing over its limit")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
