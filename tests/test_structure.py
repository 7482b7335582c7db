"""Rules of CONTRIBUTING that a program can check."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST = 60  # lines of a function, its docstring aside


def lengths(source: str) -> dict[str, int]:
    """By name, the lines of each function's body."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
            if body:
                found[node.name] = (body[-1].end_lineno or 0) - body[0].lineno + 1
    return found


@pytest.mark.parametrize("folder", ["gptexport", "runtime", "scripts", "tests"])
def test_no_function_is_longer_than_a_screen(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert len(files) > 10
    long = {
        f"{file.relative_to(ROOT)}: {name}": lines
        for file in files
        for name, lines in lengths(file.read_text(encoding="utf-8")).items()
        if lines > LONGEST
    }
    assert long == {}


def test_a_docstring_does_not_count_and_what_is_nested_does() -> None:
    source = 'def f():\n    """One.\n\n    Two.\n    """\n    def g():\n        return 1\n    return g\n'
    assert lengths(source) == {"f": 3, "g": 1}


@pytest.mark.parametrize("folder", ["scripts", "tests"])
def test_what_is_not_shipped_is_typed_and_not_ignored(folder: str) -> None:
    ignore = "type" + ": ignore"
    files = sorted((ROOT / folder).rglob("*.py"))
    assert [str(file.relative_to(ROOT)) for file in files if ignore in file.read_text(encoding="utf-8")] == []
