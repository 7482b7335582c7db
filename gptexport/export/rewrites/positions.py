"""Where a forward takes the positions 0 ... T-1 from, and how a graph counts them from somewhere else instead."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.tape import Tape

from gptexport.errors import ExportError
from gptexport.export.irtools import constant, number
from gptexport_runtime.contract.names import AXIS_B, AXIS_T


def count_from(graph: ir.Graph, positions: ir.Value) -> None:
    """Whatever the forward looks up for 0 ... T-1, it looks up for `positions` (B,T) instead, in place.

    Known are a table that is read by torch.arange(T), in any shape, and the first T rows of a table, as a parameter
    or a buffer is cut; a model without positions has neither. Whether it is the same function then, running it tells.
    """
    for node in list(graph):
        table = node.inputs[0] if node.inputs else None
        if table is None or not table.is_initializer():
            continue
        if node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0 and counts_up(node.inputs[1]):
            node.replace_input_with(1, positions)
            _now_per_row(node.outputs[0])
        elif node.op_type == "Slice" and (axis := _cut_to_length(node)) is not None:
            _look_up(graph, node, table, axis, positions)


def check_counted(graph: ir.Graph) -> None:
    """After `count_from`, and after what it left unused was removed: does anything else count?

    Raises:
        ExportError: it does, and would count the new tokens alone.
    """
    if any(node.op_type == "Range" for node in graph):
        raise ExportError("the forward uses torch.arange(T) for something else than to read a table of positions")


def counts_up(value: ir.Value | None) -> bool:
    """0, 1, ... T-1 along the last axis: a Range from 0 in steps of 1, with axes added or repeated in front."""
    node = value.producer() if value is not None else None
    if node is None:
        return False
    if node.op_type in ("Unsqueeze", "Expand", "Reshape", "Cast", "Identity"):
        return counts_up(node.inputs[0])
    return node.op_type == "Range" and [number(node.inputs[0]), number(node.inputs[2])] == [0, 1]


def _cut_to_length(node: ir.Node) -> int | None:
    """The axis along which a Slice keeps 0 ... T-1, if that is all that it does."""
    start, end, axes, steps = ([*node.inputs[1:], None, None])[:4]
    step = 1 if steps is None else number(steps)
    producer = end.producer() if end is not None else None
    if number(start) != 0 or step != 1 or axes is None or producer is None or producer.op_type != "Shape":
        return None
    shape = node.outputs[0].shape
    axis = number(axes)
    return axis if axis is not None and shape is not None and str(shape[axis]) == AXIS_T else None


def _look_up(graph: ir.Graph, node: ir.Node, table: ir.Value, axis: int, positions: ir.Value) -> None:
    """table[:T] becomes table[positions]; of (1,S,C), cut along its second axis, the first is dropped."""
    if axis > 1 or (axis == 1 and (table.shape is None or table.shape[0] != 1)):
        return
    tape = Tape()
    first = constant(tape, [0])
    rows = tape.op("Gather", [tape.op("Squeeze", [table, first]) if axis else table, positions])
    old = node.outputs[0]
    rows.type, rows.shape = old.type, old.shape
    graph.insert_before(node, tape.nodes)
    old.replace_all_uses_with(rows)
    _now_per_row(rows)


def _now_per_row(rows: ir.Value) -> None:
    """(T,C) or (1,T,C) has become (B,T,C), and so has what is made of it before it meets the tokens."""
    shape = [str(dim) for dim in rows.shape or ()]
    if AXIS_T not in shape or shape[0] == AXIS_B:
        return
    assert rows.shape is not None
    rows.shape = ir.Shape([AXIS_B, *rows.shape[shape.index(AXIS_T) :]])
    for use in rows.uses():
        for made in use.node.outputs:
            _now_per_row(made)
