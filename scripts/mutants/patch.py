"""A mutant put in place of the code that runs, without importing anything again: a mutant costs what its tests cost."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

from scripts.mutants.mutate import ROOT, Mutant


def module_of(file: str) -> str:
    return file.removeprefix("runtime/").removesuffix(".py").replace("/", ".")


def apply(mutant: Mutant) -> None:
    """Give every function of the module the mutant's code, and every constant its value, wherever they were imported.

    Raises:
        ValueError: nothing is changed by it: a mutant that cannot be tried this way.
    """
    module = sys.modules[module_of(mutant.file)]
    code = compile(mutant.tree, str(ROOT / mutant.file), "exec", dont_inherit=True)
    new = {_key(inner): inner for inner in _inner(code)}
    changed = 0
    for function in [found for found in gc.get_objects() if isinstance(found, FunctionType)]:
        if function.__module__ == module.__name__ and _key(function.__code__) in new:
            changed += function.__code__ != new[_key(function.__code__)]
            function.__code__ = new[_key(function.__code__)]
    if changed + _constants(module, code) == 0:
        raise ValueError(f"{mutant.name} changes neither a function nor a constant.")


def _inner(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _inner(constant)


def _key(code: CodeType) -> tuple[str, int]:
    return code.co_qualname, code.co_firstlineno


def _constants(module: ModuleType, code: CodeType) -> int:
    """Set what the mutant's module, run once more elsewhere, defines otherwise; returns how many."""
    again: dict[str, Any] = {"__name__": module.__name__, "__file__": module.__file__}
    exec(code, again)
    changed = 0
    for name, value in again.items():
        before = vars(module).get(name)
        if isinstance(value, type) and isinstance(before, type) and value.__module__ == module.__name__:
            for attribute in [key for key, at in vars(value).items() if isinstance(at, bool | int | float | str)]:
                if vars(before).get(attribute) != vars(value)[attribute] and not attribute.startswith("__"):
                    setattr(before, attribute, vars(value)[attribute])
                    changed += 1
        elif _is_plain(value) and before is not None and not np.array_equal(value, before):
            changed += 1
            for other in list(sys.modules.values()):
                if getattr(other, "__dict__", {}).get(name, again) is before:
                    vars(other)[name] = value
    return changed


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list | frozenset | set):
        return all(_is_plain(item) for item in value)
    return isinstance(value, bool | int | float | str | bytes | np.ndarray)
