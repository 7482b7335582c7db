"""Einsum as MatMul, which every backend has in every dtype, and which is fused, quantized and cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.tape import Tape

from gptexport.export.irtools import constant, take_place
from gptexport.export.rewrites import Audit, counted

EINSUMS = "products written as einsum"


@dataclass(frozen=True, eq=False)
class _Operand:
    labels: str  # one an axis
    value: ir.Value


def multiply(graph: ir.Graph) -> Audit:
    """Before: Einsum of two or more operands. After: MatMul, with Transpose and Unsqueeze where axes lie otherwise.

    Left as they are: diagonals, sums over an axis of one operand alone, and two axes that are summed at once.
    """
    found = [node for node in graph if node.op_type == "Einsum" and len(node.inputs) > 1]
    return counted(EINSUMS, len(found), sum(_rewrite(graph, node) for node in found))


def _rewrite(graph: ir.Graph, node: ir.Node) -> bool:
    sides, arrow, result = node.attributes.get_string("equation", "").replace(" ", "").partition("->")
    labels = sides.split(",")
    if not arrow or "." in sides or any(len(set(part)) != len(part) for part in (*labels, result)):
        return False
    if any(value is None or value.shape is None for value in node.inputs):
        return False
    tape = Tape()
    left, *others = [_Operand(part, value) for part, value in zip(labels, node.inputs, strict=True) if value]
    for number, right in enumerate(others):
        wanted = set(result).union(*(other.labels for other in others[number + 1 :]))
        made = _product(tape, left, right, wanted, result)
        if made is None:
            return False
        left = made
    if set(left.labels) != set(result):
        return False
    out = _turn(tape, left, result)
    graph.insert_before(node, tape.nodes)
    take_place(out, node.outputs[0])
    graph.remove(node, safe=True)
    return True


def _product(tape: Tape, left: _Operand, right: _Operand, wanted: set[str], order: str) -> _Operand | None:
    """left and right multiplied, and summed over what is not wanted any more: at most one axis, of both.

    Axes of both that stay come first; then those of one alone, each 1 in the other, but for the last of each side,
    which are the matrices' own.
    """
    both = [label for label in left.labels if label in right.labels]
    summed = [label for label in both if label not in wanted]
    alone = [_in_order([x for x in one.labels if x not in both], order) for one in (left, right)]
    if len(summed) > 1 or any(label not in wanted for label in "".join(alone)):
        return None
    batch = _in_order([label for label in both if label in wanted], order)
    rows, columns = (part[-1:] for part in alone)
    outer_left, outer_right = (part[:-1] for part in alone)
    middle = summed[0] if summed else ""
    a = _lay_out(tape, left, [*batch, *outer_left, *([None] * len(outer_right)), rows or None, middle or None])
    b = _lay_out(tape, right, [*batch, *([None] * len(outer_left)), *outer_right, middle or None, columns or None])
    made = tape.op("MatMul", [a, b])
    sizes = dict(zip(left.labels + right.labels, (*_dims(left.value), *_dims(right.value)), strict=True))
    axes: list[str | None] = [*batch, *outer_left, *outer_right, rows or None, columns or None]
    made.type = left.value.type
    made.shape = ir.Shape([sizes[label] if label else 1 for label in axes])
    ones = [axis for axis, label in enumerate(axes) if label is None]
    labels = "".join(label for label in axes if label)
    if ones:
        squeezed = tape.op("Squeeze", [made, constant(tape, ones)])
        squeezed.type, squeezed.shape = made.type, ir.Shape([sizes[label] for label in labels])
        made = squeezed
    return _Operand(labels, made)


def _in_order(labels: Sequence[str], order: str) -> str:
    return "".join(sorted(labels, key=lambda label: order.find(label)))


def _lay_out(tape: Tape, operand: _Operand, axes: list[str | None]) -> ir.Value:
    """The operand with its axes in this order, and 1 for each None; none in front, where MatMul adds them."""
    while len(axes) > 2 and axes[0] is None:
        axes = axes[1:]
    value = _turn(tape, operand, "".join(label for label in axes if label))
    ones = [axis for axis, label in enumerate(axes) if label is None]
    if not ones:
        return value
    made = tape.op("Unsqueeze", [value, constant(tape, ones)])
    dims = iter(_dims(value))
    made.type, made.shape = value.type, ir.Shape([1 if label is None else next(dims) for label in axes])
    return made


def _turn(tape: Tape, operand: _Operand, labels: str) -> ir.Value:
    if labels == operand.labels:
        return operand.value
    perm = [operand.labels.index(label) for label in labels]
    made = tape.op("Transpose", [operand.value], {"perm": perm})
    dims = _dims(operand.value)
    made.type, made.shape = operand.value.type, ir.Shape([dims[axis] for axis in perm])
    return made


def _dims(value: ir.Value) -> list[int | ir.SymbolicDim]:
    assert value.shape is not None
    return list(value.shape)
