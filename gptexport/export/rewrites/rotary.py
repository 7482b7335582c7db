"""Rotary positions as one RotaryEmbedding, which reads a query or key as its projection made it.

Written out, a rotation is eight passes over half a head's numbers each, and heads must be turned to the front for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.tape import Tape

from gptexport.export.attention import flat_reader, side_by_side, unflatten
from gptexport.export.irtools import constant, producer, replace
from gptexport.export.rewrites import Audit, Rewrite, counted
from gptexport.recipe import Limits

OP_TYPE = "RotaryEmbedding"  # of ONNX, since opset 23


@dataclass(frozen=True, eq=False)
class _Rotation:
    """(x1 * cos - x2 * sin, x2 * cos + x1 * sin) of the halves x1 and x2 of each head."""

    x: ir.Value  # (B,n,T,D)
    cos: ir.Value  # (1 or B,1,T,D/2)
    sin: ir.Value
    result: ir.Value  # (B,n,T,D)


def fuse_rotary(graph: ir.Graph, _limits: Limits) -> Audit:
    """Before: Split, four products, Sub, Add, Concat. After: RotaryEmbedding, with cos and sin of each token."""
    found = [rotation for node in graph if (rotation := _rotation(node)) is not None]
    tables: dict[ir.Value, ir.Value] = {}  # layers share them
    done = 0
    for rotation in found:
        if not all(_is_table(table, rotation.x) for table in (rotation.cos, rotation.sin)):
            continue
        for table in (rotation.cos, rotation.sin):
            if table not in tables:
                tables[table] = _of_each_token(graph, table)
        _fuse(graph, rotation, tables[rotation.cos], tables[rotation.sin])
        done += 1
    return counted(OP_TYPE, len(found), done)


def _fuse(graph: ir.Graph, rotation: _Rotation, cos: ir.Value, sin: ir.Value) -> None:
    node, tape = rotation.result.producer(), Tape()
    assert node is not None and rotation.x.shape is not None
    source = side_by_side(rotation.x)
    if source is None:
        turned = tape.op(OP_TYPE, [rotation.x, cos, sin])
        graph.insert_before(node, tape.nodes)
        replace(rotation.result, turned)
        return
    _, n_head, _, head_size = rotation.x.shape
    assert isinstance(n_head, int) and isinstance(head_size, int)
    flat = tape.op(OP_TYPE, [source, cos, sin], {"num_heads": n_head})
    flat.type, flat.shape = source.type, source.shape
    if (reader := flat_reader(rotation.result, n_head * head_size)) is not None:
        graph.insert_before(node, tape.nodes)
        replace(reader, flat)
        return
    heads = unflatten(tape, flat, n_head, head_size)
    graph.insert_before(node, tape.nodes)
    replace(rotation.result, heads)


def _rotation(node: ir.Node) -> _Rotation | None:
    """What a Concat puts together again, if it is a rotation of halves."""
    if node.op_type != "Concat" or len(node.inputs) != 2:
        return None
    first, second = (producer(value) for value in node.inputs)
    if first is None or second is None or (first.op_type, second.op_type) != ("Sub", "Add"):
        return None
    factors = [_factors(value) for value in (*first.inputs, *second.inputs)]
    split = next((half.producer() for pair in factors for half in pair if _is_of_halves(half)), None)
    if split is None:
        return None
    x, (x1, x2) = split.inputs[0], split.outputs
    tables = [_other(pair, half) for pair, half in zip(factors, (x1, x2, x2, x1), strict=True)]
    if None in tables:  # the sum may stand the other way round
        tables = [_other(pair, half) for pair, half in zip(factors, (x1, x2, x1, x2), strict=True)]
        tables[2:] = tables[:1:-1]
    cos, sin, *again = tables
    if x is None or cos is None or sin is None or again != [cos, sin]:
        return None
    return _Rotation(x, cos, sin, node.outputs[0])


def _factors(value: ir.Value | None) -> tuple[ir.Value, ...]:
    node = producer(value)
    return tuple(v for v in node.inputs if v is not None) if node is not None and node.op_type == "Mul" else ()


def _other(pair: tuple[ir.Value, ...], one: ir.Value) -> ir.Value | None:
    """What a value is multiplied by."""
    return next((b for a, b in (pair, pair[::-1]) if a is one), None) if len(pair) == 2 else None


def _is_of_halves(value: ir.Value) -> bool:
    """One of the two halves of heads (B,n,T,D)."""
    node = value.producer()
    if node is None or node.op_type != "Split" or len(node.outputs) != 2 or node.inputs[0] is None:
        return False
    whole, halves = node.inputs[0].shape, [half.shape for half in node.outputs]
    if whole is None or len(whole) != 4 or node.attributes.get_int("axis", 0) not in (-1, 3):
        return False
    size = whole[3]
    return isinstance(size, int) and all(half is not None and half[3] == size // 2 for half in halves)


def _is_table(table: ir.Value, x: ir.Value) -> bool:
    """(1 or B,1,T,D/2): the same for all heads."""
    shape, whole = table.shape, x.shape
    assert whole is not None and isinstance(whole[3], int)
    return shape is not None and len(shape) == 4 and shape[1] == 1 and shape[3] == whole[3] // 2


def _of_each_token(graph: ir.Graph, table: ir.Value) -> ir.Value:
    """(B,T,D/2), as the operator wants it where it is given no positions."""
    tape = Tape()
    assert table.shape is not None and isinstance(table.shape[3], int)
    flat = tape.op("Squeeze", [table, constant(tape, [1])])
    sizes = [tape.op("Shape", [graph.inputs[0]]), constant(tape, [table.shape[3]])]
    made = tape.op("Expand", [flat, tape.op("Concat", sizes, {"axis": 0})])
    if (node := table.producer()) is not None:
        graph.insert_after(node, tape.nodes)
    else:
        graph.insert_before(graph[0], tape.nodes)
    return made


FUSE_ROTARY = Rewrite("rotary positions", fuse_rotary)
