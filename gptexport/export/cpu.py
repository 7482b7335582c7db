"""`--target cpu`: a portable graph rewritten for ONNX Runtime's CPU provider, by fusion.

Each operation named here is ONNX Runtime's own (com.microsoft; docs/ContribOperators.md in its repository): one kernel,
and one pass over memory, where the portable graph has several. Other runtimes do not have them.

SkipLayerNormalization is not among them: ONNX Runtime 1.31.1's takes 80 ms of a one-thread 1x1024 forward of GPT-2 124M
where Add and LayerNormalization take 22.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tape import Tape

from gptexport.export.check import Audit
from gptexport.export.fusions import (
    HEAD,
    MICROSOFT,
    expected_gelus,
    fuse_gelus,
    fuse_tied_heads,
    heads_merged,
    input_of,
    replace,
    tied_heads,
)

ATTENTION = "GroupQueryAttention"
HEAD_SIZE_MULTIPLE = 8  # of its kernel; attention with other heads stays the portable node
SHORT = 768  # the most tokens for which attention over whole rows is faster than the flash kernel


def fuse_for_cpu(model: ir.Model, *, block_size: int) -> Audit:
    """Fuse a portable graph in place.

    Args:
        block_size: the most tokens that a row will have, by which attention is chosen.

    Returns: of each fused operator, how many were expected, counted before, and how many are there now.
    """
    graph = model.graph
    expected = _expected(graph)
    fuse_gelus(graph)
    attentions = _fuse_attention(graph, both_kernels=block_size > SHORT)
    fuse_tied_heads(graph)
    RemoveUnusedNodesPass()(model)
    graph.opset_imports[MICROSOFT] = 1
    achieved = Counter(node.op_type for node in graph.all_nodes() if node.domain == MICROSOFT)
    achieved[ATTENTION] = attentions  # of which there may be two nodes each, one to a branch
    return {op: {"expected": count, "achieved": achieved[op]} for op, count in expected.items()}


def _expected(graph: ir.Graph) -> dict[str, int]:
    """One for every Attention whose heads the kernel takes, and one for every Gelu."""
    attentions = [node for node in graph if node.op_type == "Attention" and heads_of(node) is not None]
    wanted = {ATTENTION: len(attentions), **expected_gelus(graph), HEAD: len(tied_heads(graph))}
    return {op: count for op, count in wanted.items() if count}


def _fuse_attention(graph: ir.Graph, *, both_kernels: bool) -> int:
    """q, k and v stay side by side as the projection made them, and nothing is transposed. Returns: how many."""
    done = 0
    lengths: Sequence[ir.Value] | None = None
    is_long: ir.Value | None = None
    for node in [node for node in graph if node.op_type == "Attention"]:
        qkv, out, heads = _packed_qkv(node), heads_merged(node), heads_of(node)
        if qkv is None or out is None or heads is None:
            continue
        if lengths is None:
            lengths = _lengths(graph)
            is_long = _is_long(graph, lengths[1]) if both_kernels else None
        attributes: dict[str, int | float] = {"num_heads": heads, "kv_num_heads": heads}
        if "scale" in node.attributes:
            attributes["scale"] = node.attributes["scale"].as_float()
        inputs = [qkv, None, None, None, None, *lengths]
        if is_long is None:
            fused = ir.node(ATTENTION, inputs, attributes, domain=MICROSOFT)
        else:
            branches = {
                name: _branch(f"{out.name}.{name}", out, inputs, attributes, flash=name == "then_branch")
                for name in ("then_branch", "else_branch")
            }
            fused = ir.node("If", [is_long], branches)
        graph.insert_before(node, fused)
        replace(out, fused.outputs[0])
        done += 1
    return done


def _branch(
    name: str, like: ir.Value, inputs: Sequence[ir.Value | None], attributes: Mapping[str, int | float], *, flash: bool
) -> ir.Graph:
    """A graph of one GroupQueryAttention, with one of ONNX Runtime's two kernels for it.

    It takes the flash kernel (onnxruntime#28962) where present K and V are named, though nobody reads them. The other
    holds the scores of all heads at once, T x T each: 50 MB of GPT-2's at T = 1024. But it skips all keys that lie past
    a query, the flash kernel only whole blocks of them, 512 where L2 has 1 MB. Seen of 1.31.1, in its memory and times.
    """
    attention = ir.node(ATTENTION, inputs, attributes, domain=MICROSOFT, num_outputs=3 if flash else 1)
    result, *present = attention.outputs
    result.name, result.type, result.shape = name, like.type, like.shape
    for value, part in zip(present, ("present_key", "present_value"), strict=False):
        value.name, value.type = f"{name}.{part}", like.type
    return ir.Graph([], [result], nodes=[attention], name=name)


def _is_long(graph: ir.Graph, total: ir.Value) -> ir.Value:
    """Whether rows have so many tokens that the flash kernel is the faster one."""
    tape = Tape()
    short = tape.op("Constant", [], {"value": ir.tensor(np.array(SHORT, np.int32))})
    is_long = tape.op("Greater", [total, short])
    node = total.producer()
    assert node is not None
    graph.insert_after(node, tape.nodes)
    return is_long


def heads_of(attention: ir.Node) -> int | None:
    """How many heads, if they are of a size that the fused kernel takes."""
    q = attention.inputs[0]
    assert q is not None and q.shape is not None
    _, heads, _, size = q.shape  # (B, n_head, T, head_size)
    return heads if isinstance(heads, int) and isinstance(size, int) and size % HEAD_SIZE_MULTIPLE == 0 else None


def _packed_qkv(attention: ir.Node) -> ir.Value | None:
    """The (B,T,3C) that is split into q, k and v, if this is how they came, and causality is the only mask."""
    if attention.attributes.get_int("is_causal", 0) != 1 or any(attention.inputs[3:]):
        return None
    parts = [input_of(input_of(part, "Transpose"), "Reshape") for part in attention.inputs]
    split = parts[0].producer() if parts[0] is not None else None
    if split is None or split.op_type != "Split" or list(split.outputs) != parts:
        return None
    return split.inputs[0]


def _lengths(graph: ir.Graph) -> Sequence[ir.Value]:
    """GroupQueryAttention's seqlens_k (B) and total_sequence_length: every row has T tokens, none in a cache."""
    tape = Tape()
    shape = tape.op("Shape", [graph.inputs[0]])
    B = tape.op("Slice", [shape, *(_constant(tape, [value]) for value in (0, 1, 0))])
    T = tape.op("Slice", [shape, *(_constant(tape, [value]) for value in (1, 2, 0))])
    before = tape.op("Cast", [tape.op("Sub", [T, _constant(tape, [1])])], {"to": ir.DataType.INT32})
    seqlens = tape.op("Expand", [before, B])
    total = tape.op("Cast", [tape.op("Squeeze", [T])], {"to": ir.DataType.INT32})
    graph.insert_before(graph[0], tape.nodes)
    return seqlens, total


def _constant(tape: Tape, value: list[int]) -> ir.Value:
    return tape.op("Constant", [], {"value": ir.tensor(np.array(value, np.int64))})
