"""Attention written by hand, or with a mask that is causality, as one Attention node that says so.

What people write: softmax(q @ k.transpose(-2, -1) * scale, masked) @ v, with the mask from a buffer, from torch.tril,
or compared from positions; with heads in an axis of their own, in that of the batch, or one after the other; and
scaled_dot_product_attention with such a mask. Each becomes ONNX's Attention, which every target fuses and `decode`
caches. What is matched is proved by evaluating the mask, and by running the graph.
"""

from __future__ import annotations

import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tape import Tape

from gptexport.errors import ExportError
from gptexport.export.attention import OP_TYPE, WINDOW, describe
from gptexport.export.irtools import constant, only_reader, replace
from gptexport.export.masks import evaluate_mask
from gptexport.export.rewrites import Audit, counted
from gptexport.export.rewrites.einsum import multiply
from gptexport.export.rewrites.heads import from_heads, is_folded, padded, to_heads
from gptexport.export.rewrites.scores import Scores, take_apart
from gptexport.export.rewrites.softmax import name_softmaxes
from gptexport.export.sizes import Sizes, has_length
from gptexport.export.trace import Trace
from gptexport_runtime.contract.names import AXIS_T

BY_HAND, CAUSAL_MASK = "attention written by hand", "causal masks"
SINCE = 23  # the opset that has Attention


def recognise_attention(trace: Trace, *, block_size: int) -> Audit:
    """Before: MatMul, Softmax, MatMul; or Attention with a mask that is causality. After: Attention with is_causal."""
    graph = trace.graph
    if graph.opset_imports[""] < SINCE:
        return {}
    name_softmaxes(graph)
    audit = multiply(graph)
    softmaxes = [node for node in graph if node.op_type == "Softmax" and _is_of_keys(node.outputs[0])]
    for softmax in softmaxes:
        try:
            _fuse(trace, softmax, block_size)
        except ExportError as error:
            trace.by_hand.append(str(error))
    for node in [node for node in graph if node.op_type == OP_TYPE]:
        _heads_of_one_size(graph, _rows_and_heads(graph, node))
    masked = [found for node in graph if (found := describe(node)) is not None and found.masked and not found.causal]
    causal = sum(_look_at_mask(trace, found.node, block_size) for found in masked)
    RemoveUnusedNodesPass()(trace.model)
    done = len(softmaxes) - len(trace.by_hand)
    return {**audit, **counted(BY_HAND, len(softmaxes), done), **counted(CAUSAL_MASK, causal, causal)}


def _look_at_mask(trace: Trace, node: ir.Node, block_size: int) -> bool:
    """Make a mask that is causality is_causal, and note one that is a window; whether it was causality."""
    value = node.inputs[3]
    if value is None or any(node.inputs[4:]):
        return False
    try:
        mask = evaluate_mask(Sizes(trace.graph, trace.weights), value, block_size)
    except ExportError:
        return False
    if not mask.causal:
        if (window := mask.window) is not None:
            node.meta[WINDOW] = window
        return False
    _again(trace.graph, node, [*node.inputs[:3]], {"is_causal": 1})
    return True


def _fuse(trace: Trace, softmax: ir.Node, block_size: int) -> None:
    """Before: the softmax of the scores, times values. After: Attention.

    Raises:
        ExportError: it is something else; the message says what.
    """
    graph = trace.graph
    product, v = _product_with_values(softmax)
    scores = take_apart(Sizes(graph, trace.weights), softmax, block_size)
    if v.dtype != scores.query.dtype:
        raise ExportError(f"its queries are {scores.query.dtype}, its values {v.dtype}")
    tape = Tape()
    q = to_heads(tape, scores.query)
    if scores.per_head is not None:
        q = _scaled(trace, tape, q, scores)
    k, v = (to_heads(tape, value) for value in (_turned(tape, scores.turned_key), v))
    attributes: dict[str, int | float] = {"scale": scores.scale}
    if scores.softcap:
        attributes["softcap"] = scores.softcap
    inputs = [q, k, v]
    if scores.causal:
        attributes["is_causal"] = 1
    elif not scores.sees_all:
        inputs.append(scores.mask(tape))
    attended = tape.op(OP_TYPE, inputs, attributes)
    assert q.shape is not None and v.shape is not None and product.outputs[0].shape is not None
    attended.type, attended.shape = v.type, ir.Shape([*q.shape[:3], v.shape[3]])
    out = from_heads(tape, attended, product.outputs[0].shape)
    graph.insert_before(product, tape.nodes)
    replace(product.outputs[0], out)
    graph.remove(product, safe=True)


def _product_with_values(softmax: ir.Node) -> tuple[ir.Node, ir.Value]:
    """The MatMul that alone reads the weights, and the values.

    Raises:
        ExportError: something else reads them.
    """
    weights = softmax.outputs[0]
    reader = only_reader(weights)
    while reader is not None and reader.op_type in ("Cast", "Identity", "Reshape"):
        weights = reader.outputs[0]
        reader = only_reader(weights)
    if reader is None:
        raise ExportError("its weights are read more than once")
    values = reader.inputs[1] if len(reader.inputs) > 1 else None
    if reader.op_type != "MatMul" or reader.inputs[0] is not weights or values is None or not _is_square(weights):
        raise ExportError(f"its weights go through {reader.op_type} before they meet values")
    if reader.outputs[0].is_graph_output() or reader.outputs[0].shape is None:
        raise ExportError("it is all that forward returns")
    return reader, values


def _scaled(trace: Trace, tape: Tape, q: ir.Value, scores: Scores) -> ir.Value:
    """Queries times what each head's scores are multiplied by, a weight (n,1,1)."""
    assert scores.per_head is not None and q.dtype is not None
    name = f"{q.name}.scales"
    stored = ir.Value(name=name, type=q.type, shape=ir.Shape(scores.per_head.shape))
    trace.graph.initializers[name] = stored
    trace.weights[name] = torch.from_numpy(scores.per_head).to(ir.tensor_adapters.to_torch_dtype(q.dtype))
    made = tape.op("Mul", [q, stored])
    made.type, made.shape = q.type, q.shape
    return made


def _turned(tape: Tape, turned: ir.Value) -> ir.Value:
    """k (..., T, head_size) of its transpose (..., head_size, T)."""
    assert turned.shape is not None
    rank = len(turned.shape)
    swapped = [*range(rank - 2), rank - 1, rank - 2]
    transpose, source, perm = turned.producer(), turned, swapped
    if transpose is not None and transpose.op_type == "Transpose" and transpose.inputs[0] is not None:
        source = transpose.inputs[0]
        first = transpose.attributes["perm"].as_ints()
        perm = [first[axis] for axis in swapped]  # the transpose and its undoing, in one
    if perm == [*range(rank)]:
        return source
    key = tape.op("Transpose", [source], {"perm": perm})
    key.type, key.shape = turned.type, ir.Shape([turned.shape[axis] for axis in swapped])
    return key


def _rows_and_heads(graph: ir.Graph, node: ir.Node) -> ir.Node:
    """Before: Attention of (B * n,1,T,size), heads in the axis of rows. After: of (B,n,T,size), between Reshapes."""
    q, k, v = node.inputs[:3]
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    shapes_of_mask = mask.shape if mask is not None else ir.Shape([])
    if not all(is_folded(value) for value in (q, k, v)) or any(node.inputs[4:]) or shapes_of_mask is None:
        return node
    if any(str(dim) not in ("1", AXIS_T) for dim in shapes_of_mask):
        return node
    tape = Tape()
    heads: list[ir.Value | None] = [to_heads(tape, value) for value in (q, k, v) if value is not None]
    graph.insert_before(node, tape.nodes)
    made, out = _between(graph, node, [*heads, *node.inputs[3:]])
    query, _, values = heads
    assert query is not None and values is not None and query.shape is not None and values.shape is not None
    assert node.outputs[0].shape is not None
    out.type, out.shape = values.type, ir.Shape([*query.shape[:3], values.shape[3]])
    back = Tape()
    rows = from_heads(back, out, node.outputs[0].shape)
    graph.insert_before(node, back.nodes)
    replace(node.outputs[0], rows)
    graph.remove(node, safe=True)
    return made


def _heads_of_one_size(graph: ir.Graph, node: ir.Node) -> None:
    """Before: Attention whose values are of another size than its keys. After: the narrower ones end in zeros.

    A cache keeps both in one tensor, and so do the fused kernels.
    """
    sizes = [value.shape[-1] if value is not None and value.shape else None for value in node.inputs[:3]]
    q, k, v = node.inputs[:3]
    if not all(isinstance(size, int) for size in sizes) or sizes[0] != sizes[1] or sizes[1] == sizes[2]:
        return
    if q is None or k is None or v is None or any(len(value.shape or ()) != 4 for value in (q, k, v)):
        return
    own, narrow = int(str(sizes[0])), int(str(sizes[2]))
    tape, size = Tape(), max(own, narrow)
    inputs = [padded(tape, value, size) for value in (q, k, v)]
    graph.insert_before(node, tape.nodes)
    scale = node.attributes.get_float("scale", own**-0.5)
    _, out = _between(graph, node, [*inputs, *node.inputs[3:]], {"scale": scale})
    old = node.outputs[0]
    assert q.shape is not None
    out.type, out.shape = old.type, ir.Shape([*q.shape[:3], size])
    if narrow < size:
        back = Tape()
        zero, end, axis = (constant(back, [number]) for number in (0, narrow, 3))
        out = back.op("Slice", [out, zero, end, axis])
        graph.insert_before(node, back.nodes)
    replace(old, out)
    graph.remove(node, safe=True)


def _again(
    graph: ir.Graph, node: ir.Node, inputs: list[ir.Value | None], attributes: dict[str, int | float]
) -> ir.Node:
    """The node with other inputs and attributes, in its place."""
    made, out = _between(graph, node, inputs, attributes)
    replace(node.outputs[0], out)
    graph.remove(node, safe=True)
    return made


def _between(
    graph: ir.Graph, node: ir.Node, inputs: list[ir.Value | None], attributes: dict[str, int | float] | None = None
) -> tuple[ir.Node, ir.Value]:
    """A copy of the node with other inputs and attributes, in front of it, and what it returns."""
    own = {name: attribute.value for name, attribute in node.attributes.items()}
    made = ir.node(node.op_type, inputs, {**own, **(attributes or {})})
    graph.insert_before(node, made)
    return made, made.outputs[0]


def _is_of_keys(weights: ir.Value) -> bool:
    """(..., T, T), or a few more columns: of each position for each."""
    shape = weights.shape
    return shape is not None and len(shape) > 2 and all(map(has_length, shape[-2:]))


def _is_square(value: ir.Value) -> bool:
    """(..., T, T): of each position for each."""
    shape = value.shape
    return shape is not None and len(shape) > 2 and str(shape[-1]) == str(shape[-2]) == AXIS_T
