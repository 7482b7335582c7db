"""Causal attention as ONNX Runtime's GroupQueryAttention on the CPU, which takes q, k and v packed in one tensor.

q, k and v stay side by side as the projection made them, and nothing is transposed.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.tape import Tape

from gptexport.export.attention import WINDOW, Attention, attentions, flatten, unflatten
from gptexport.export.irtools import MICROSOFT, constant, replace
from gptexport.export.rewrites import Audit, Rewrite, counted
from gptexport.recipe import Limits

OP_TYPE = "GroupQueryAttention"
HEAD_SIZE_MULTIPLE = 8  # of its kernel; attention with other heads stays the portable node
FLASH_MIN_LENGTH = 769  # tokens from which the flash kernel is faster than attention over whole rows


def fuse_attention(graph: ir.Graph, limits: Limits) -> Audit:
    """Before: ONNX's Attention. After: GroupQueryAttention; an If of two where rows may be long enough for both."""
    expected = sum(_is_expected(node) for node in graph)
    found = [attention for attention in attentions(graph) if takes(attention)]
    if found:
        seqlens, total = _lengths(graph)
        is_long = _is_long(graph, total) if limits.block_size >= FLASH_MIN_LENGTH else None
        for attention in found:
            inputs, out = side_by_side(attention)
            fused = _node(attention, [*inputs, None, None, seqlens, total], out, is_long)
            graph.insert_before(attention.node, fused)
            take_result(attention, fused.outputs[0], out)
    return counted(OP_TYPE, expected, len(found))


def side_by_side(attention: Attention) -> tuple[list[ir.Value | None], ir.Value]:
    """The operator's query, key and value, packed in one where they come so; and what its result (B,T,C) stands for."""
    packed, merged, graph = attention.packed, attention.merged, attention.node.graph
    assert graph is not None
    tape = Tape()
    inputs: list[ir.Value | None] = [packed, None, None]
    if packed is None:
        inputs = [flatten(tape, heads) for heads in (attention.query, attention.key, attention.value)]
        graph.insert_before(attention.node, tape.nodes)
    return inputs, merged if merged is not None else attention.node.outputs[0]


def take_result(attention: Attention, result: ir.Value, out: ir.Value) -> None:
    """Let what read the attention's result read the fused one, heads side by side."""
    graph, own = attention.node.graph, attention.node.outputs[0]
    assert graph is not None and own.shape is not None
    if out is own:
        tape = Tape()
        result.type = own.type
        result.shape = ir.Shape([own.shape[0], own.shape[2], attention.n_head * attention.head_size])
        own_again = unflatten(tape, result, attention.n_head, attention.head_size)
        graph.insert_before(attention.node, tape.nodes)
        replace(own, own_again)
    else:
        replace(out, result)


def _is_expected(node: ir.Node) -> bool:
    """A causal Attention over all keys or a window, with heads that the kernel takes; counted apart from the fused."""
    shape = node.inputs[0].shape if node.op_type == "Attention" and node.inputs[0] is not None else None
    size = shape[-1] if shape is not None else None
    plain = node.attributes.get_int("is_causal", 0) == 1 and not any(node.inputs[3:])
    return (plain or WINDOW in node.meta) and isinstance(size, int) and size % HEAD_SIZE_MULTIPLE == 0


def takes(attention: Attention) -> bool:
    """Whether the kernel computes it: causality or a window is all that it adds, and its heads are of such a size."""
    return (attention.plain or attention.window is not None) and attention.head_size % HEAD_SIZE_MULTIPLE == 0


def attributes_of(attention: Attention) -> dict[str, int | float]:
    attributes: dict[str, int | float] = {"num_heads": attention.n_head, "kv_num_heads": attention.n_kv_head}
    if attention.scale is not None:
        attributes["scale"] = attention.scale
    if attention.window is not None:
        attributes["local_window_size"] = attention.window  # a query's own key is one of them
    return attributes


def _node(attention: Attention, inputs: list[ir.Value | None], out: ir.Value, is_long: ir.Value | None) -> ir.Node:
    attributes = attributes_of(attention)
    if is_long is None:
        return ir.node(OP_TYPE, inputs, attributes, domain=MICROSOFT)
    branches = {
        name: _branch(f"{out.name}.{name}", out, inputs, attributes, flash=name == "then_branch")
        for name in ("then_branch", "else_branch")
    }
    return ir.node("If", [is_long], branches)


def _branch(
    name: str, like: ir.Value, inputs: list[ir.Value | None], attributes: Mapping[str, int | float], *, flash: bool
) -> ir.Graph:
    """A graph of one GroupQueryAttention, with one of ONNX Runtime's two kernels for it.

    It takes the flash kernel (onnxruntime#28962) where present K and V are named, though nothing reads them. The other
    holds the scores of all heads at once, T x T each: 50 MB of GPT-2's at T = 1024. But it skips all keys that lie past
    a query, the flash kernel only whole blocks of them, 512 where L2 has 1 MB. Seen of 1.31.1, in its memory and times.
    """
    attention = ir.node(OP_TYPE, inputs, attributes, domain=MICROSOFT, num_outputs=3 if flash else 1)
    result, *present = attention.outputs
    result.name, result.type, result.shape = name, like.type, like.shape
    for value, part in zip(present, ("present_key", "present_value"), strict=False):
        value.name, value.type = f"{name}.{part}", like.type
    return ir.Graph([], [result], nodes=[attention], name=name)


def _is_long(graph: ir.Graph, total: ir.Value) -> ir.Value:
    """Whether rows have so many tokens that the flash kernel is the faster one."""
    tape = Tape()
    is_long = tape.op("Greater", [total, constant(tape, FLASH_MIN_LENGTH - 1, ir.DataType.INT32)])
    node = total.producer()
    assert node is not None
    graph.insert_after(node, tape.nodes)
    return is_long


def _lengths(graph: ir.Graph) -> tuple[ir.Value, ir.Value]:
    """The operator's seqlens_k (B) and total_sequence_length: every row has T tokens, none in a cache."""
    tape = Tape()
    shape = tape.op("Shape", [graph.inputs[0]])
    B = tape.op("Slice", [shape, *(constant(tape, [value]) for value in (0, 1, 0))])
    T = tape.op("Slice", [shape, *(constant(tape, [value]) for value in (1, 2, 0))])
    before = tape.op("Cast", [tape.op("Sub", [T, constant(tape, [1])])], {"to": ir.DataType.INT32})
    seqlens = tape.op("Expand", [before, B])
    total = tape.op("Cast", [tape.op("Squeeze", [T])], {"to": ir.DataType.INT32})
    graph.insert_before(graph[0], tape.nodes)
    return seqlens, total


FUSE_ATTENTION = Rewrite("fused attention", fuse_attention)
