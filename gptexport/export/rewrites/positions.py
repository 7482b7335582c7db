"""Where a forward takes the positions 0 ... T-1 from, and how a graph counts them from somewhere else instead."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tape import Tape

from gptexport.errors import ExportError
from gptexport.export.attention import OP_TYPE
from gptexport.export.irtools import constant, number
from gptexport.export.positionwise import ELEMENTWISE
from gptexport.export.sizes import Sizes, length_axes
from gptexport.export.trace import Trace
from gptexport_runtime.contract.names import AXIS_B, AXIS_T

LARGEST_TABLE = 64 << 20  # bytes


def count_from(trace: Trace, positions: ir.Value) -> None:
    """Where a forward adds the rows 0 ... T-1 of a table to the tokens, it adds those of `positions` (B,T), in place.

    Known are a table that is read by torch.arange(T), in any shape, and the first T rows of a table, as a parameter
    or a buffer is cut; a model without positions has neither. Whether it is the same function then, running it tells.
    """
    graph = trace.graph
    on_tokens = Sizes(graph, trace.weights).on_tokens
    for node in list(graph):
        table = node.inputs[0] if node.inputs else None
        if table is None or not table.is_initializer() or not _meets(node.outputs[0], on_tokens):
            continue
        if node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0 and counts_up(node.inputs[1]):
            node.replace_input_with(1, positions)
            _now_per_row(node.outputs[0])
        elif node.op_type == "Slice" and (axis := _cut_to_length(node)) is not None:
            _look_up(graph, node, table, axis, positions)


def _meets(rows: ir.Value, on_tokens: set[ir.Value]) -> bool:
    """Whether all that reads `rows` (T,C) or (1,T,C) combines them with tokens (B,T,C), element by element."""
    return (
        rows.shape is not None
        and len(rows.shape) in (2, 3)
        and all(
            use.node.op_type in ELEMENTWISE
            and len(use.node.outputs[0].shape or ()) == 3
            and any(value in on_tokens for value in use.node.inputs)
            for use in rows.uses()
        )
    )


def look_up_sizes(trace: Trace, positions: ir.Value, block_size: int) -> None:
    """What else depends on T and on no token - a rotary table cut or computed - is read at `positions`, in place.

    It is evaluated once for all positions, stored as a table, and read where it meets the tokens. Masks are left to
    attention.

    Raises:
        ExportError: it meets them otherwise than element by element, or differs from row to row of something else.
    """
    sizes = Sizes(trace.graph, trace.weights, positions)
    on_tokens = sizes.on_tokens
    rows: dict[tuple[ir.Value, int], ir.Value] = {}
    for node in list(trace.graph):
        if not any(value in on_tokens for value in node.inputs) or node.op_type == OP_TYPE:
            continue
        for index, value in enumerate(node.inputs):
            if value is None or value in on_tokens or not length_axes(value):
                continue
            if _is_repeated(value):
                continue
            if node.op_type not in ELEMENTWISE:
                raise ExportError(
                    f"{node.op_type} ({node.outputs[0].name}) does not combine positions with tokens element by "
                    "element, so they cannot be counted from what a cache holds"
                )
            rank = len(node.outputs[0].shape or ())
            if (value, rank) not in rows:
                rows[value, rank] = _read_at(trace, node, value, rank, positions, block_size, sizes)
            node.replace_input_with(index, rows[value, rank])


def _is_repeated(value: ir.Value) -> bool:
    """The same for every position: what has no axis of T, expanded to as many as there are."""
    node = value.producer()
    if node is None or node.op_type not in ("Expand", "ConstantOfShape"):
        return False
    source = node.inputs[0]
    return node.op_type == "ConstantOfShape" or (source is not None and not length_axes(source))


def _read_at(
    trace: Trace, node: ir.Node, value: ir.Value, rank: int, positions: ir.Value, block_size: int, sizes: Sizes
) -> ir.Value:
    """(B,1,...,T,...) of `rank` axes: the rows of what `value` is for every position, at `positions` (B,T)."""
    (axis, *others) = length_axes(value)
    if others:
        raise ExportError(
            f"{node.op_type} ({node.outputs[0].name}) makes a mask that depends on the tokens. A mask of padding is "
            "not needed here, where rows of unequal lengths are kept apart; without it there would be a cache"
        )
    table = sizes.evaluate(value, T=block_size)
    if any(size != 1 for size in table.shape[:axis]) or table.shape[axis] != block_size:
        raise ExportError(
            f"{node.op_type} ({node.outputs[0].name}) takes {value.name} of shape {value.shape}, made of sizes; "
            "expected a row for each position, to be counted from what a cache holds"
        )
    if table.nbytes > LARGEST_TABLE:
        raise ExportError(f"a table of positions takes {table.nbytes / 1e6:,.0f} MB; expected at most 64")
    after = table.shape[axis + 1 :]
    assert value.dtype is not None
    name = f"{value.name}.table"
    stored = ir.Value(name=name, type=value.type, shape=ir.Shape([block_size, *after]))
    trace.graph.initializers[name] = stored
    flat = torch.from_numpy(np.ascontiguousarray(table.reshape(block_size, *after)))
    trace.weights[name] = flat.to(ir.tensor_adapters.to_torch_dtype(value.dtype))
    tape = Tape()
    found = tape.op("Gather", [stored, positions])  # (B,T,...)
    between = rank - len(after) - 2
    shape: list[int | str] = [AXIS_B, *[1] * between, AXIS_T, *after]
    if between > 0:
        found = tape.op("Unsqueeze", [found, constant(tape, list(range(1, 1 + between)))])
    found.type, found.shape = value.type, ir.Shape(shape)
    trace.graph.insert_before(node, tape.nodes)
    return found


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
    flat = tape.op("Squeeze", [table, first]) if axis else table
    if axis and table.shape is not None:
        flat.type, flat.shape = table.type, ir.Shape(table.shape[1:])
    rows = tape.op("Gather", [flat, positions])
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
