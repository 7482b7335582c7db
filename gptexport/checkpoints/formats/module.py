"""A user's own GPT, `module.py:factory`: the one source that is Python and is run, because the user says so.

`factory` is a function or class that takes no arguments and gives an nn.Module, or is one. Whatever its forward returns
(logits, a tuple, a dict, an object with `.logits`) becomes logits (B,T,V) in `LogitsOf`.
"""

import ast
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from gptexport.casting import cast_parameters, floating_dtypes
from gptexport.checkpoints.formats.forward import LogitsOf, check_signature, probe
from gptexport.checkpoints.types import Checkpoint
from gptexport.errors import CheckpointError

FORMAT = "module"
BLOCK_SIZE_NAMES = (
    "block_size",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_position_embeddings",
    "context_length",
    "sequence_len",
)
VOCAB_SIZE_NAMES = ("vocab_size", "padded_vocab_size", "n_vocab")


def is_module(source: str) -> bool:
    """Whether the source reads `something.py:name`; the file need not exist."""
    file, colon, _ = source.rpartition(":")
    return bool(colon) and file.endswith(".py")


def load(source: str, *, vocab_size: int | None = None, block_size: int | None = None) -> Checkpoint:
    """Run the factory and check that its forward is one that can be exported.

    Raises:
        CheckpointError: the file or the name is not there, the user's code fails (its error and line are told), its
            forward takes or returns something else than token ids and logits, or its block_size is nowhere.
    """
    path, name = split(source)
    with _users_code(source, path):
        made = _make(path, name, source)
    if not isinstance(made, nn.Module):
        raise CheckpointError(
            f"{source}: gives a {_type(made)}; expected a torch.nn.Module or a function that returns one"
        )
    made = getattr(made, "_orig_mod", made)  # what torch.compile wrapped
    notes = _to_float32(made)
    check_signature(made, source)
    T_max = block_size if block_size is not None else _block_size(made, source)
    with _users_code(source, path):
        probed = probe(made, source, block_size=T_max, vocab_size=find_size(made, VOCAB_SIZE_NAMES))
    V = probed.vocab_size
    if vocab_size is not None and vocab_size > V:
        raise CheckpointError(
            f"{source}: --vocab-size {vocab_size} is more than the logits have, {V}; it can only shrink"
        )
    kept = vocab_size if vocab_size not in (None, V) else None
    model = LogitsOf(made, key=probed.key, keep=kept).requires_grad_(False).eval()
    return Checkpoint(
        model=model,
        config=None,
        format=FORMAT,
        block_size=T_max,
        vocab_size=kept or V,
        gelu_source=None,
        sha256=_sha256(path, made),
        notes=notes,
    )


def split(source: str) -> tuple[Path, str]:
    """The existing file and the name in it.

    Raises:
        CheckpointError: no such file, or no name.
    """
    file, _, name = source.rpartition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise CheckpointError(f"{source}: no such file: {file}")
    if not name.isidentifier():
        raise CheckpointError(f"{source}: {name!r} is not a name in the file; expected module.py:factory")
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


def find_size(module: nn.Module, names: tuple[str, ...]) -> int | None:
    """The first of the names that is a positive integer in the module's config or on the module itself."""
    holders = [getattr(module, "config", None), module]
    for name in names:
        for holder in holders:
            value = holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def _block_size(module: nn.Module, source: str) -> int:
    found = find_size(module, BLOCK_SIZE_NAMES)
    if found is None:
        raise CheckpointError(
            f"{source}: the longest sequence is not known: neither {_type(module)} nor its config has one of "
            f"{', '.join(BLOCK_SIZE_NAMES)}. Set one in the module, or pass block_size"
        )
    return found


def _make(path: Path, name: str, source: str) -> Any:
    with _importable(path.parent):
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
            raise CheckpointError(f"{source}: {path.name} has no {name!r}; it has {has}")
        found = getattr(module, name)
        if isinstance(found, nn.Module):
            return found
        if not callable(found):
            raise CheckpointError(
                f"{source}: {name} is a {_type(found)}; expected a torch.nn.Module or a function returning one"
            )
        needed = _required(found)
        if needed:
            raise CheckpointError(
                f"{source}: {name} needs {', '.join(needed)}; it is called without arguments. Write a function that "
                f"gives them: def factory(): return {name}(...)"
            )
        return found()


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
def _users_code(source: str, path: Path) -> Iterator[None]:
    """Whatever the user's code raises becomes one CheckpointError that says what and at which line of theirs."""
    try:
        yield
    except (CheckpointError, KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # their code may raise anything, sys.exit too
        detail = f": {error}" if str(error) else ""
        raise CheckpointError(
            f"{source}: your code raised {_type(error)}{detail}\n  at {_where(error, path)}"
        ) from error


def _where(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    folder = str(path.parent)
    own = [f for f in frames if f.filename.startswith(folder) and "site-packages" not in f.filename[len(folder) :]]
    last = own[-1] if own else None
    return f"{last.filename}:{last.lineno}, in {last.name}" if last else str(path)


def _to_float32(module: nn.Module) -> tuple[str, ...]:
    """Move the module to the CPU and its weights to float32, in place; say so where that changed anything."""
    floats = floating_dtypes(module) - {torch.float32}
    module.to(device="cpu").eval()
    cast_parameters(module, torch.float32)
    names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in floats))
    return (f"the module's weights were {names}, cast to float32",) if floats else ()


def _sha256(path: Path, module: nn.Module) -> str:
    """Of the file and of the weights that it came up with, wherever it has them from."""
    weights = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, torch.Tensor):
            weights.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            weights.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    with path.open("rb") as file:
        source = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(f"{path.name} {source}\nstate_dict {weights.hexdigest()}\n".encode()).hexdigest()


def _type(value: object) -> str:
    return type(value).__name__
