"""Run a user's `module.py:factory`, and turn whatever their code raises into one error that names their line."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.nn as nn

from gptexport.errors import CheckpointError


class UserCodeError(CheckpointError):
    """The user's own code raised."""


def split(source: str) -> tuple[Path, str]:
    """The existing file and the name in it.

    Raises:
        CheckpointError: no such file, or no name.
    """
    file, _, name = source.rpartition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise CheckpointError(f"{source}: no such file: {file}.")
    if not name.isidentifier():
        raise CheckpointError(f"{source}: {name!r} is not a name in the file; expected module.py:factory.")
    return path.resolve(), name


def names_in(path: Path) -> tuple[str, ...]:
    """Top-level names that the file binds, read without running it; none if it cannot be parsed."""
    try:
        body = ast.parse(path.read_bytes()).body
    except (SyntaxError, ValueError):
        return ()
    names: list[str] = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return tuple(names)


def make_module(source: str, path: Path, name: str) -> nn.Module:
    """What the factory gives: called without arguments, or the module that the name already is.

    Raises:
        CheckpointError: the name is not there, needs arguments, or gives no nn.Module.
        UserCodeError: their code raised.
    """
    with users_code(source, path), _importable(path.parent):
        found = _import(source, path, name)
        if isinstance(found, nn.Module):
            return found
        if not callable(found):
            raise CheckpointError(
                f"{source}: {name} is a {_type(found)}; expected a torch.nn.Module or a function returning one."
            )
        if needed := _required(found):
            raise CheckpointError(
                f"{source}: {name} needs {', '.join(needed)}; it is called without arguments. Write a function that "
                f"gives them: def factory(): return {name}(...)."
            )
        made = found()
    if not isinstance(made, nn.Module):
        raise CheckpointError(
            f"{source}: gives a {_type(made)}; expected a torch.nn.Module or a function that returns one."
        )
    return made


def _import(source: str, path: Path, name: str) -> Any:
    module_name = f"gptexport_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # a .py file always has them
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickling look it up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    if not hasattr(module, name):
        has = ", ".join(names_in(path)) or "no names"
        raise CheckpointError(f"{source}: {path.name} has no {name!r}; it has {has}.")
    return getattr(module, name)


def _required(function: Any) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a built-in does not say
        return []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """The user's folder first on sys.path, as it is when they run the file themselves."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


@contextmanager
def users_code(source: str, path: Path) -> Iterator[None]:
    """Whatever the user's code raises becomes one UserCodeError that says what, and at which line of theirs."""
    try:
        yield
    except (CheckpointError, KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # their code may raise anything, sys.exit too
        raise UserCodeError(f"{source}: your code raised {said(error, path)}") from error


def said(error: BaseException, path: Path) -> str:
    """An error's type and text, and the last line of the user's own that it passed."""
    detail = f": {error}" if str(error) else ""
    return f"{_type(error)}{detail}\n  at {_where(error, path)}"


def _where(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    folder = str(path.parent)
    own = [f for f in frames if f.filename.startswith(folder) and "site-packages" not in f.filename[len(folder) :]]
    last = own[-1] if own else None
    return f"{last.filename}:{last.lineno}, in {last.name}" if last else str(path)


def _type(value: object) -> str:
    return type(value).__name__
