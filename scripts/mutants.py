"""Which changes of the code do no test notice? Each mutant is one change of a file; its tests run in a forked child.

    python -m scripts.mutants                             every mutant of every file in FILES: an hour
    python -m scripts.mutants --only judge --sample 100   a hundred of one file's, drawn by --seed

Prints the survivors, as `file:line: before -> after`. docs/reliability.md has
those that are known, with why they do not matter.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import ModuleType

ROOT = Path(__file__).parents[1]
PATIENCE = 300  # seconds: a mutant that never ends was noticed
FILES: dict[str, tuple[str, ...]] = {
    "gptexport/parity/measure/metrics.py": ("tests/parity/measure/test_metrics.py", "tests/parity/verdict"),
    "gptexport/parity/verdict/judge.py": ("tests/parity/verdict",),
    "gptexport/parity/verdict/statistics.py": ("tests/parity/verdict",),
    "runtime/gptexport_runtime/inputs.py": ("tests/runtime/test_inputs.py", "tests/runtime/generate/test_stream.py"),
    "gptexport/staging/bundle.py": ("tests/staging",),
    "gptexport/staging/files.py": ("tests/staging",),
    "gptexport/staging/outputs.py": ("tests/staging",),
    "gptexport/staging/pair.py": ("tests/staging",),
    "gptexport/staging/stage.py": ("tests/staging",),
}
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
}
CALLS = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "abs": "float",
    "minimum": "maximum",
    "maximum": "minimum",
}


@dataclass(frozen=True)
class Mutant:
    file: str
    line: int
    what: str
    source: str


def mutants_of(file: str) -> Iterator[Mutant]:
    """Every mutant of a file; docstrings, annotations and messages are left alone."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    count = sum(1 for _ in _places(tree))
    for number in range(count):
        changed = copy.deepcopy(tree)
        node = next(node for at, node in enumerate(_places(changed)) if at == number)
        before = ast.unparse(node)
        _change(node)
        yield Mutant(file, getattr(node, "lineno", 0), f"{before}  ->  {ast.unparse(node)}", ast.unparse(changed))


def _places(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that can be changed, but for those in what is said to people."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.JoinedStr | ast.Raise | ast.arguments | ast.AnnAssign | ast.Assert):
            continue
        if _is_place(node):
            yield node
        waiting += list(ast.iter_child_nodes(node))[::-1]


def _is_place(node: ast.AST) -> bool:
    match node:
        case ast.Compare(ops=[op]) | ast.BoolOp(op=op) | ast.BinOp(op=op):
            return type(op) in SWAPS and not _is_text(node)
        case ast.UnaryOp(op=ast.Not()):
            return True
        case ast.Constant(value=bool() | int() | float()):
            return True
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name in CALLS
        case ast.If():
            return True
    return False


def _is_text(node: ast.AST) -> bool:
    return any(isinstance(inner, ast.JoinedStr) for inner in ast.walk(node)) or (
        isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr)
    )


def _change(node: ast.AST) -> None:
    match node:
        case ast.Compare(ops=[op]):
            vars(node)["ops"] = [SWAPS[type(op)]()]
        case ast.BoolOp(op=op) | ast.BinOp(op=op):
            vars(node)["op"] = SWAPS[type(op)]()
        case ast.UnaryOp():
            node.op = ast.UAdd()
            node.operand = ast.Call(ast.Name("bool", ast.Load()), [node.operand], [])
        case ast.Constant(value=bool()):
            node.value = not node.value
        case ast.Constant(value=int() | float() as value):
            node.value = value + 1
        case ast.Call(func=ast.Name() as function):
            function.id = CALLS[function.id]
        case ast.Call(func=ast.Attribute() as function):
            function.attr = CALLS[function.attr]
        case ast.If():
            node.test = ast.Constant(False)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the mutant where its file's module is imported."""

    def __init__(self, module: str, path: Path) -> None:
        self.module, self.path = module, path

    def find_spec(
        self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, self.path) if name == self.module else None


def survives(mutant: Mutant, tests: Sequence[str], folder: Path) -> bool:
    """Whether its tests pass with it."""
    module = mutant.file.removeprefix("runtime/").removesuffix(".py").replace("/", ".")
    path = folder / "mutant.py"
    path.write_text(mutant.source, encoding="utf-8")
    child = os.fork()
    if child == 0:
        import pytest

        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        sys.meta_path.insert(0, _Finder(module, path))
        options = [
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            "--tb=no",
            "-m",
            "not slow and not gpu",
            f"--basetemp={folder / 'tmp'}",
        ]
        os._exit(int(pytest.main([*options, *tests])))
    until = time.monotonic() + PATIENCE
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status == 0
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.01)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a part of a file's name")
    parser.add_argument("--sample", type=int, help="so many of each file, drawn at random")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    import onnx  # noqa: F401 - whatever the tests import is here when they are forked
    import onnxruntime  # noqa: F401
    import torch

    torch.set_num_threads(1)
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="gptexport-mutants-") as name:
        for file, tests in FILES.items():
            if asked.only not in file:
                continue
            mutants = list(mutants_of(file))
            if asked.sample is not None and asked.sample < len(mutants):
                mutants = Random(asked.seed).sample(mutants, asked.sample)
            plain = Mutant(file, 0, "", (ROOT / file).read_text(encoding="utf-8"))
            assert survives(plain, tests, Path(name)), f"the tests of {file} fail as it is"
            left = 0
            for mutant in sorted(mutants, key=lambda m: m.line):
                if survives(mutant, tests, Path(name)):
                    print(f"    {mutant.line}: {mutant.what}", flush=True)
                    left += 1
            print(f"{file}: {len(mutants)} mutants, {left} survive", flush=True)
            survivors += left
    print(f"{survivors} survivors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
