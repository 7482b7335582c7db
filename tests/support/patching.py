"""Does a test that patches something patch what the code will read?

Two ways of patching change nothing and say nothing: a dotted string names a module that nobody may look into any more,
and a constant may since have become a default argument or another module's own name, both read long before the patch.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
OURS = ("gptexport", "gptexport_runtime", "scripts")


def faults_of(source: str) -> Iterator[str]:
    """What is wrong with each `monkeypatch.setattr` of a test's source, with its line."""
    tree = ast.parse(source)
    modules = imported_modules(tree)
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr"):
            continue
        target, *rest = node.args
        if isinstance(target, ast.Constant):
            yield f"line {node.lineno}: {target.value!r} is patched by a string; import its module and patch that"
            continue
        file = modules.get(ast.unparse(target))
        name = rest[0].value if rest and isinstance(rest[0], ast.Constant) else None
        if file is not None and isinstance(name, str) and name.isupper() and not read_when_called(parsed(file), name):
            yield f"line {node.lineno}: no function in {file.relative_to(ROOT)} reads {name} when it is called"


def read_when_called(tree: ast.Module, name: str) -> bool:
    """A function's body reads the name; its defaults and decorators are read once, when it is defined."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    statements = [s for function in functions for s in function.body if s not in functions]  # a nested one: by itself
    names = (node for s in statements for node in ast.walk(s) if isinstance(node, ast.Name))
    return any(node.id == name and isinstance(node.ctx, ast.Load) for node in names)


def imported_modules(tree: ast.Module) -> dict[str, Path]:
    """The files of our modules that a source imports, anywhere, by the names that it gives them."""
    named: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return {name: file for name, module in named.items() if (file := source_of(module)) is not None}


@cache
def source_of(module: str) -> Path | None:
    """The file of one of our modules; None for others', and for what is a name in a module."""
    if module.split(".")[0] not in OURS:
        return None
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # its parent is no package
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())
