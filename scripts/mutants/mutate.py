"""The mutants of a file: one operator, constant, branch or call changed at a time."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
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
    number: int
    line: int
    what: str
    tree: ast.Module

    @property
    def name(self) -> str:
        return f"{self.file}:{self.line}: {self.what}"


def mutants_of(file: str) -> Iterator[Mutant]:
    """Every mutant of a file; docstrings, annotations, decorators and messages are left alone."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    count = sum(1 for _ in _places(tree))
    for number in range(count):
        changed = copy.deepcopy(tree)
        node = next(node for at, node in enumerate(_places(changed)) if at == number)
        before = ast.unparse(node)
        _change(node)
        ast.fix_missing_locations(changed)
        yield Mutant(file, number, getattr(node, "lineno", 0), f"{before}  ->  {ast.unparse(node)}", changed)


def _places(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that can be changed, but for those in what is said to people and in how a class is made."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.JoinedStr | ast.Raise | ast.arguments | ast.AnnAssign | ast.Assert):
            continue
        if _is_place(node):
            yield node
        decorators = getattr(node, "decorator_list", [])
        waiting += [inner for inner in ast.iter_child_nodes(node) if inner not in decorators][::-1]


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
