"""House rules that no ruff rule covers. Each failure names the place and the rule."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 500
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "misc", "common", "manager", "managers"}
PACKAGES = ("policyd", "audit", "connectors")


def modules(repository: Path) -> Iterator[tuple[Path, str, ast.Module]]:
    """Path from the root, text and tree of every module that ships."""
    for package in PACKAGES:
        for path in sorted((repository / package).rglob("*.py")):
            text = path.read_text()
            yield path.relative_to(repository), text, ast.parse(text)


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_files_stay_short(repository: Path) -> None:
    long = [str(path) for path, text, _ in modules(repository) if text.count("\n") > FILE_LINES_MAX]
    assert long == [], f"over {FILE_LINES_MAX} lines"


def test_functions_stay_short(repository: Path) -> None:
    long = [
        f"{path}:{node.lineno} {node.name}"
        for path, _, tree in modules(repository)
        for node in functions(tree)
        if (node.end_lineno or node.lineno) - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert long == [], f"over {FUNCTION_LINES_MAX} lines"


def test_names_say_something(repository: Path) -> None:
    empty = [str(path) for path, _, _ in modules(repository) if {*path.parts[:-1], path.stem} & EMPTY_NAMES]
    getters = [
        f"{path}:{node.lineno} {node.name}"
        for path, _, tree in modules(repository)
        for node in functions(tree)
        if node.name.startswith("get_")
    ]
    assert empty + getters == [], "a name is a noun of the domain"


def test_modules_say_what_they_do(repository: Path) -> None:
    silent = [str(path) for path, _, tree in modules(repository) if tree.body and not ast.get_docstring(tree)]
    assert silent == [], "a module opens with what it does, its rules and what it refuses to do"


def float_typed(node: ast.AST) -> bool:
    """A conversion to float, or an annotation that admits one. A literal, say of a spelling cutoff, is neither."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "float"
    annotation = getattr(node, "annotation", None) or getattr(node, "returns", None)
    return annotation is not None and any(
        isinstance(part, ast.Name) and part.id == "float" for part in ast.walk(annotation)
    )


def test_the_core_has_no_floats(repository: Path) -> None:
    floats = [
        f"{path}:{getattr(node, 'lineno', 0)}"
        for path, _, tree in modules(repository)
        if path.parts[:2] == ("policyd", "core")
        for node in ast.walk(tree)
        if float_typed(node)
    ]
    assert floats == [], "no float is hashed, summed or compared (docs/adr/0001-integers.md)"
