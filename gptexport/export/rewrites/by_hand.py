"""Attention written by hand, or with a mask that is causality, as one Attention node that says so.

What people write: softmax(q @ k.transpose(-2, -1) * scale, masked) @ v, with the mask from a buffer, from torch.tril,
or compared from positions; and scaled_dot_product_attention with such a mask. Each becomes ONNX's Attention, which
every target fuses and `decode` caches. What is matched is proved by evaluating the mask, and by running the graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tape import Tape

from gptexport.errors import ExportError
from gptexport.export.attention import OP_TYPE, describe
from gptexport.export.irtools import constant, insert_before, only_reader, producer, replace
from gptexport.export.masks import evaluate_mask
from gptexport.export.rewrites import Audit, counted
from gptexport.export.sizes import Sizes
from gptexport.export.trace import Trace
from gptexport_runtime.contract.names import AXIS_B, AXIS_T

BY_HAND, CAUSAL_MASK = "attention written by hand", "causal masks"
SINCE = 23  # the opset that has Attention


@dataclass(frozen=True, eq=False)
class _Scores:
    """softmax's input, taken apart: q @ k.T, times scale, softcapped, masked."""

    query: ir.Value  # (B,n_head,T,head_size)
    turned_key: ir.Value  # (B,n_head,head_size,T)
    scale: float
    softcap: float
    mask: ir.Value | None  # boolean, True is seen; or added


def recognise_attention(trace: Trace, *, block_size: int) -> Audit:
    """Before: MatMul, Softmax, MatMul; or Attention with a mask that is causality. After: Attention with is_causal."""
    graph = trace.graph
    if graph.opset_imports[""] < SINCE:
        return {}
    softmaxes = [node for node in graph if node.op_type == "Softmax" and _is_square(node.outputs[0])]
    done = sum(_fuse(trace, node) for node in softmaxes)
    masked = [found for node in graph if (found := describe(node)) is not None and found.masked and not found.causal]
    causal = sum(_mask_to_causality(trace, found.node, block_size) for found in masked)
    if done or causal:
        RemoveUnusedNodesPass()(trace.model)
    return {**counted(BY_HAND, len(softmaxes), done), **(counted(CAUSAL_MASK, causal, causal))}


def _mask_to_causality(trace: Trace, node: ir.Node, block_size: int) -> bool:
    mask = node.inputs[3]
    if mask is None or any(node.inputs[4:]):
        return False
    try:
        if not evaluate_mask(Sizes(trace.graph, trace.weights), mask, block_size).causal:
            return False
    except ExportError:
        return False
    attributes = [value for name, value in node.attributes.items() if name != "is_causal"]
    made = ir.Node("", OP_TYPE, node.inputs[:3], [*attributes, ir.AttrInt64("is_causal", 1)], num_outputs=1)
    trace.graph.insert_before(node, made)
    replace(node.outputs[0], made.outputs[0])
    trace.graph.remove(node, safe=True)
    return True


def _fuse(trace: Trace, softmax: ir.Node) -> bool:
    graph = trace.graph
    value = softmax.outputs[0]
    reader = only_reader(value)
    while reader is not None and reader.op_type in ("Cast", "Identity"):
        value = reader.outputs[0]
        reader = only_reader(value)
    scores = _take_apart(graph, softmax)
    if reader is None or reader.op_type != "MatMul" or reader.inputs[0] is not value or scores is None:
        return False
    if reader.outputs[0].is_graph_output():
        return False
    q, key, v = scores.query, _turned(graph, scores.turned_key), reader.inputs[1]
    if key is None or v is None or v.shape is None or len(v.shape) != len(q.shape or ()) or q.dtype != v.dtype:
        return False
    attributes: dict[str, int | float] = {"scale": scores.scale}
    if scores.softcap:
        attributes["softcap"] = scores.softcap
    tape = Tape()
    alone = len(v.shape) == 3  # one head, without an axis for it
    heads = [_with_head(tape, value) if alone else value for value in (q, key, v)]
    attended = tape.op(OP_TYPE, [*heads, *([scores.mask] if scores.mask is not None else [])], attributes)
    attended.type, attended.shape = v.type, heads[0].shape
    out = tape.op("Squeeze", [attended, constant(tape, [1])]) if alone else attended
    graph.insert_before(reader, tape.nodes)
    replace(reader.outputs[0], out)
    graph.remove(reader, safe=True)
    return True


def _with_head(tape: Tape, value: ir.Value) -> ir.Value:
    """(B,1,T,head_size) of (B,T,head_size)."""
    made = tape.op("Unsqueeze", [value, constant(tape, [1])])
    assert value.shape is not None
    made.type, made.shape = value.type, ir.Shape([value.shape[0], 1, *value.shape[1:]])
    return made


def _take_apart(graph: ir.Graph, softmax: ir.Node) -> _Scores | None:
    """Follow the scores from the softmax back to their product; None where something else is on the way."""
    rank = len(softmax.inputs[0].shape or ()) if softmax.inputs[0] is not None else 0
    if softmax.attributes.get_int("axis", -1) not in (-1, rank - 1):
        return None
    value, mask, scale, softcap = softmax.inputs[0], None, 1.0, 0.0
    while (node := producer(value)) is not None and node.op_type != "MatMul":
        first = node.inputs[0]
        other = node.inputs[1] if len(node.inputs) > 1 else None
        if node.op_type in ("Cast", "Identity"):
            value = first
        elif node.op_type == "Mul" and (cap := _softcap(node)) is not None and scale == 1 and not softcap:
            value, softcap = cap
        elif node.op_type in ("Mul", "Div") and (factor := _scalar(other)) is not None:
            scale *= factor if node.op_type == "Mul" else 1 / factor
            value = first
        elif (
            node.op_type in ("Add", "Where")
            and mask is None
            and not softcap
            and (scale == 1 or node.op_type == "Where")
        ):
            found = _masked(graph, node) if not softcap else None
            if found is None:
                return None
            value, mask = found
        else:
            return None
    if node is None or node.inputs[0] is None or node.inputs[1] is None:
        return None
    query, key = node.inputs[0], node.inputs[1]
    ranks = [len(v.shape) if v.shape is not None else 0 for v in (query, key)]
    return _Scores(query, key, scale, softcap, mask) if ranks in ([4, 4], [3, 3]) else None


def _masked(graph: ir.Graph, node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """The scores, and the mask that is added to them or that chooses them."""
    if node.op_type == "Add":
        for scores, mask in (node.inputs, node.inputs[::-1]):
            if scores is not None and mask is not None and _is_square(scores) and not _both_scores(scores, mask):
                return scores, mask
        return None
    chosen, yes, no = node.inputs
    if chosen is None or yes is None or no is None:
        return None
    if _is_hidden(no):
        return yes, chosen
    if _is_hidden(yes):
        inverted = insert_before(node, "Not", [chosen], {}, domain="").outputs[0]
        inverted.type, inverted.shape = chosen.type, chosen.shape
        return no, inverted
    return None


def _both_scores(scores: ir.Value, mask: ir.Value) -> bool:
    """Both are scores: neither is a mask, which is one for all rows of a batch."""
    return mask.shape == scores.shape and mask.shape is not None and has_batch(mask.shape)


def has_batch(shape: ir.Shape) -> bool:
    return str(shape[0]) == AXIS_B


def _softcap(node: ir.Node) -> tuple[ir.Value, float] | None:
    """x and c of c * tanh(x / c)."""
    for tanh, factor in (node.inputs, node.inputs[::-1]):
        cap, inner = _scalar(factor), producer(tanh)
        if cap is None or inner is None or inner.op_type != "Tanh":
            continue
        divided = producer(inner.inputs[0])
        if divided is not None and divided.op_type == "Div" and _scalar(divided.inputs[1]) == cap:
            assert divided.inputs[0] is not None
            return divided.inputs[0], cap
    return None


def _turned(graph: ir.Graph, turned: ir.Value) -> ir.Value | None:
    """k (..., T, head_size) of its transpose (..., head_size, T)."""
    transpose = turned.producer()
    if transpose is None or transpose.op_type != "Transpose" or transpose.inputs[0] is None:
        return None
    perm = list(transpose.attributes["perm"].as_ints())
    swapped = [*range(len(perm) - 2), len(perm) - 1, len(perm) - 2]
    if perm == swapped:
        return transpose.inputs[0]
    back = [perm[axis] for axis in swapped]  # the transpose and its undoing, in one
    made = ir.node("Transpose", [transpose.inputs[0]], {"perm": back})
    graph.insert_before(transpose, made)
    key = made.outputs[0]
    assert turned.shape is not None
    key.type, key.shape = turned.type, ir.Shape([turned.shape[axis] for axis in swapped])
    return key


def _is_square(value: ir.Value) -> bool:
    """(..., T, T): scores of each position for each."""
    shape = value.shape
    return shape is not None and len(shape) in (3, 4) and str(shape[-1]) == str(shape[-2]) == AXIS_T


def _scalar(value: ir.Value | None) -> float | None:
    tensor = value.const_value if value is not None else None
    return float(tensor.numpy().item()) if tensor is not None and tensor.size == 1 else None


def _is_hidden(value: ir.Value) -> bool:
    """Minus infinity, or a number as good as that."""
    number = _scalar(value)
    return number is not None and (number == -np.inf or number <= -1e4)
