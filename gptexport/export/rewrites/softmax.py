"""A softmax written by hand, exp(x - max(x)) / sum(exp(x - max(x))) or exp(log_softmax(x)), as one Softmax node."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.tape import Tape

from gptexport.export.irtools import input_of, number, producer, replace


def name_softmaxes(graph: ir.Graph) -> None:
    """Before: Div(Exp, ReduceSum(Exp)) or Exp(LogSoftmax), over the last axis. After: Softmax."""
    for node in list(graph):
        scores = _of_division(node) if node.op_type == "Div" else _of_exp(node) if node.op_type == "Exp" else None
        if scores is None:
            continue
        tape = Tape()
        made = tape.op("Softmax", [scores], {"axis": -1})
        graph.insert_before(node, tape.nodes)
        replace(node.outputs[0], made)


def _of_exp(node: ir.Node) -> ir.Value | None:
    logs = producer(node.inputs[0])
    if (
        logs is None
        or logs.op_type != "LogSoftmax"
        or not _is_last(logs.attributes.get_int("axis", -1), logs.inputs[0])
    ):
        return None
    return logs.inputs[0]


def _of_division(node: ir.Node) -> ir.Value | None:
    """x of exp(x) / sum(exp(x)); or of exp(x - max(x)), which is the same softmax."""
    total, exp = producer(node.inputs[1]), producer(node.inputs[0])
    if total is None or exp is None or total.op_type != "ReduceSum" or exp.op_type != "Exp":
        return None
    if total.inputs[0] is not node.inputs[0] or not _keeps_last(total):
        return None
    scores = exp.inputs[0]
    less = producer(scores)
    if less is not None and less.op_type == "Sub":
        most = producer(less.inputs[1])
        same = most is not None and input_of(less.inputs[1], "ReduceMax") is less.inputs[0]
        if most is not None and same and _keeps_last(most):
            return less.inputs[0]
    return scores


def _keeps_last(node: ir.Node) -> bool:
    """A reduction over the last axis alone, which is kept."""
    axis = number(node.inputs[1]) if len(node.inputs) > 1 else None
    return axis is not None and _is_last(axis, node.inputs[0]) and node.attributes.get_int("keepdims", 1) == 1


def _is_last(axis: int, value: ir.Value | None) -> bool:
    return axis == -1 or (value is not None and value.shape is not None and axis == len(value.shape) - 1)
