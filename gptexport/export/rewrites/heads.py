"""Queries, keys and values as an Attention node takes them, (B,n,T,size), of whatever axes people keep heads in."""

from __future__ import annotations

import re

import onnx_ir as ir
from onnx_ir.tape import Tape

from gptexport.errors import ExportError
from gptexport.export.irtools import constant
from gptexport_runtime.contract.names import AXIS_B


def to_heads(tape: Tape, value: ir.Value) -> ir.Value:
    """(B,n,T,size) of (B,T,size), which is one head, of (B * n,T,size), or of groups (B,n,g,T,size).

    Raises:
        ExportError: its axes are others.
    """
    shape = value.shape
    assert shape is not None
    *lead, length, size = shape
    match [str(dim) for dim in lead]:
        case [batch, _] if batch == AXIS_B:
            return value
        case [batch] if batch == AXIS_B:
            made = tape.op("Unsqueeze", [value, constant(tape, [1])])
            heads = 1
        case [rows] | [rows, "1"] if (folded := _heads_in(rows)) is not None:
            made, heads = _reshape(tape, value, [-1, folded]), folded
        case [batch, n, g] if batch == AXIS_B and n.isdigit() and g.isdigit():
            made, heads = _reshape(tape, value, [0, int(n) * int(g)]), int(n) * int(g)
        case _:
            raise ExportError(f"its heads lie in axes {[*map(str, shape)]}; expected (B,n_head,T,head_size)")
    made.type, made.shape = value.type, ir.Shape([AXIS_B, heads, length, size])
    return made


def from_heads(tape: Tape, heads: ir.Value, like: ir.Shape) -> ir.Value:
    """(B,n,T,size) as (B,T,size), (B * n,T,size) or (B,n,g,T,size): the inverse of `to_heads`."""
    lead = like[:-2]
    if len(lead) == 2 and str(lead[0]) == AXIS_B:
        return heads
    if len(lead) == 1 and str(lead[0]) == AXIS_B:
        return tape.op("Squeeze", [heads, constant(tape, [1])])
    first = [0] if str(lead[0]) == AXIS_B else [-1]
    return _reshape(tape, heads, [*first, *(int(str(dim)) for dim in lead[1:])])


def is_folded(value: ir.Value | None) -> bool:
    """(B * n,1,T,size): heads are rows of the batch."""
    shape = value.shape if value is not None else None
    return shape is not None and len(shape) == 4 and _heads_in(str(shape[0])) is not None and shape[1] == 1


def padded(tape: Tape, heads: ir.Value, size: int) -> ir.Value:
    """(B,n,T,size) of heads that are narrower, with zeros behind."""
    assert heads.shape is not None and heads.dtype is not None
    *lead, own = heads.shape
    assert isinstance(own, int)
    if own == size:
        return heads
    lengths = tape.op("Shape", [heads], {"start": 0, "end": 3})
    shape = tape.op("Concat", [lengths, constant(tape, [size - own])], {"axis": 0})
    zeros = tape.op("Expand", [constant(tape, 0, heads.dtype), shape])
    zeros.type, zeros.shape = heads.type, ir.Shape([*lead, size - own])
    made = tape.op("Concat", [heads, zeros], {"axis": -1})
    made.type, made.shape = heads.type, ir.Shape([*lead, size])
    return made


def _heads_in(rows: str) -> int | None:
    """n of B * n."""
    found = re.fullmatch(rf"(\d+)\*{AXIS_B}|{AXIS_B}\*(\d+)", rows)
    return int(found[1] or found[2]) if found else None


def _reshape(tape: Tape, value: ir.Value, lead: list[int]) -> ir.Value:
    """The same with other axes in front of its last two."""
    assert value.shape is not None
    rank = len(value.shape)
    last = tape.op("Shape", [value], {"start": rank - 2, "end": rank})
    return tape.op("Reshape", [value, tape.op("Concat", [constant(tape, lead), last], {"axis": 0})])
