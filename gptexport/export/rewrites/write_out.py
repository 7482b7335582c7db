"""Attention written out as two products and a softmax, for a backend that does not know ONNX's Attention.

OpenVINO's execution provider leaves Attention to the CPU provider, and cuts the graph there. Written out like this,
OpenVINO's CPU plugin makes one kernel of each again: a `Subgraph` in its execution graph.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from gptexport.export.attention import OP_TYPE, Attention, attentions
from gptexport.export.irtools import constant, number_like, size_of, take_place
from gptexport.export.rewrites import Audit, Rewrite, counted
from gptexport.recipe import Limits

WRITTEN_OUT = "attention written out"
HIDDEN = float(np.array(0xFF7F0000, np.uint32).view(np.float32))  # the lowest bfloat16: that of float32 becomes -inf


def write_out_attention(graph: ir.Graph, _limits: Limits) -> Audit:
    """Before: ONNX's Attention. After: softmax(scale * q @ k.T + mask) @ v, in MatMul, Add and Softmax."""
    expected = sum(node.op_type == OP_TYPE for node in graph)
    masks: dict[ir.Value | None, ir.Value] = {}
    found = attentions(graph)
    for attention in found:
        tape = Tape()
        result = _written_out(tape, attention, masks)
        graph.insert_before(attention.node, tape.nodes)
        take_place(result, attention.node.outputs[0])
        graph.remove(attention.node, safe=True)
    return counted(WRITTEN_OUT, expected, len(found))


def _written_out(tape: Tape, attention: Attention, masks: dict[ir.Value | None, ir.Value]) -> ir.Value:
    key, value = (_repeated(tape, heads, attention) for heads in (attention.key, attention.value))
    scores = tape.op("MatMul", [attention.query, tape.op("Transpose", [key], {"perm": [0, 1, 3, 2]})])
    scale = attention.scale if attention.scale is not None else 1 / math.sqrt(attention.head_size)
    scores = tape.op("Mul", [scores, _number(tape, scale, attention)])
    if attention.softcap:
        cap = _number(tape, attention.softcap, attention)
        scores = tape.op("Mul", [tape.op("Tanh", [tape.op("Div", [scores, cap])]), cap])
    for mask in _masks(tape, attention, masks):
        scores = tape.op("Add", [scores, mask])
    return tape.op("MatMul", [tape.op("Softmax", [scores], {"axis": -1}), value])


def _repeated(tape: Tape, heads: ir.Value, attention: Attention) -> ir.Value:
    """(B,n_head,T,head_size) of key heads (B,n_kv_head,T,head_size): each stands once for each of its queries."""
    group = attention.n_head // attention.n_kv_head
    if group == 1:
        return heads
    apart = tape.op("Unsqueeze", [heads, constant(tape, [2])])
    repeated = tape.op("Expand", [apart, constant(tape, [1, 1, group, 1, 1])])
    shape = tape.op(
        "Concat",
        [size_of(tape, heads, 0), constant(tape, [attention.n_head]), size_of(tape, heads, 2), constant(tape, [-1])],
        {"axis": 0},
    )
    return tape.op("Reshape", [repeated, shape])


def _masks(tape: Tape, attention: Attention, masks: dict[ir.Value | None, ir.Value]) -> list[ir.Value]:
    """What is added to scores: causality, and the node's own mask. Layers share them."""
    wanted = [None] if attention.causal else []
    own = attention.node.inputs[3] if len(attention.node.inputs) > 3 else None
    for key in [*wanted, *([own] if own is not None else [])]:
        if key not in masks:
            seen = key if key is not None else _up_to_its_own(tape, attention)
            masks[key] = _added(tape, seen, attention) if seen.dtype in (None, ir.DataType.BOOL) else seen
    return [masks[key] for key in wanted] + ([masks[own]] if own is not None else [])


def _up_to_its_own(tape: Tape, attention: Attention) -> ir.Value:
    """(T,T) bool: true where the key is not past the query."""
    T = tape.op("Squeeze", [size_of(tape, attention.query, 2)])
    positions = tape.op("Range", [constant(tape, 0), T, constant(tape, 1)])
    return tape.op("LessOrEqual", [positions, tape.op("Unsqueeze", [positions, constant(tape, [1])])])


def _added(tape: Tape, seen: ir.Value, attention: Attention) -> ir.Value:
    return tape.op("Where", [seen, _number(tape, 0.0, attention), _number(tape, HIDDEN, attention)])


def _number(tape: Tape, value: float, like: Attention) -> ir.Value:
    """A scalar of the scores' dtype."""
    dtype = like.query.dtype
    assert dtype is not None, "the exporter infers every type"
    return number_like(tape, value, dtype)


WRITE_OUT_ATTENTION = Rewrite(WRITTEN_OUT, write_out_attention)
