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

from gptexport.errors import ExportError
from gptexport.export.check import Audit

MICROSOFT = "com.microsoft"
ATTENTION, HEAD = "GroupQueryAttention", "FusedMatMul"
HEAD_SIZE_MULTIPLE = 8  # of its kernel; attention with other heads stays the portable node
SHORT = 768  # the most tokens for which attention over whole rows is faster than the flash kernel
GELU_TANH, GELU_ERF_BIAS, GELU_ERF = "FastGelu", "BiasGelu", "Gelu"


def fuse_for_cpu(model: ir.Model, *, block_size: int) -> Audit:
    """Fuse a portable graph in place.

    Args:
        block_size: the most tokens that a row will have, by which attention is chosen.

    Returns: of each fused operator, how many were expected, counted before, and how many are there now.

    Raises:
        ExportError: opset below 23, where attention is no single node to begin with.
    """
    if model.graph.opset_imports[""] < 23:
        raise ExportError("--target cpu fuses attention, which needs opset 23 or later: leave --opset out.")
    graph = model.graph
    expected = _expected(graph)
    _fuse_gelus(graph)
    attentions = _fuse_attention(graph, both_kernels=block_size > SHORT)
    _fuse_tied_heads(graph)
    RemoveUnusedNodesPass()(model)
    graph.opset_imports[MICROSOFT] = 1
    achieved = Counter(node.op_type for node in graph.all_nodes() if node.domain == MICROSOFT)
    achieved[ATTENTION] = attentions  # of which there may be two nodes each, one to a branch
    return {op: {"expected": count, "achieved": achieved[op]} for op, count in expected.items()}


def _expected(graph: ir.Graph) -> dict[str, int]:
    """One for every Attention whose heads the kernel takes, and one for every Gelu."""
    attentions = [node for node in graph if node.op_type == "Attention" and _heads(node) is not None]
    wanted = {ATTENTION: len(attentions), **_expected_gelus(graph), HEAD: len(_tied_heads(graph))}
    return {op: count for op, count in wanted.items() if count}


def _expected_gelus(graph: ir.Graph) -> dict[str, int]:
    return Counter(
        GELU_TANH if _is_tanh(node) else GELU_ERF_BIAS if _biased(node.inputs[0]) else GELU_ERF
        for node in graph
        if node.op_type == "Gelu"
    )


def _fuse_attention(graph: ir.Graph, *, both_kernels: bool) -> int:
    """q, k and v stay side by side as the projection made them, and nothing is transposed. Returns: how many."""
    done = 0
    lengths: Sequence[ir.Value] | None = None
    is_long: ir.Value | None = None
    for node in [node for node in graph if node.op_type == "Attention"]:
        qkv, out, heads = _packed_qkv(node), _heads_merged(node), _heads(node)
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
        _replace(out, fused.outputs[0])
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


def _heads(attention: ir.Node) -> int | None:
    """How many heads, if they are of a size that the fused kernel takes."""
    q = attention.inputs[0]
    assert q is not None and q.shape is not None
    _, heads, _, size = q.shape  # (B, n_head, T, head_size)
    return heads if isinstance(heads, int) and isinstance(size, int) and size % HEAD_SIZE_MULTIPLE == 0 else None


def _packed_qkv(attention: ir.Node) -> ir.Value | None:
    """The (B,T,3C) that is split into q, k and v, if this is how they came, and causality is the only mask."""
    if attention.attributes.get_int("is_causal", 0) != 1 or any(attention.inputs[3:]):
        return None
    parts = [_input_of(_input_of(part, "Transpose"), "Reshape") for part in attention.inputs]
    split = parts[0].producer() if parts[0] is not None else None
    if split is None or split.op_type != "Split" or list(split.outputs) != parts:
        return None
    return split.inputs[0]


def _heads_merged(attention: ir.Node) -> ir.Value | None:
    """The (B,T,C) that the heads' outputs become."""
    transposed = _only_user(attention.outputs[0], "Transpose")
    merged = _only_user(transposed.outputs[0], "Reshape") if transposed is not None else None
    return merged.outputs[0] if merged is not None else None


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


def _fuse_gelus(graph: ir.Graph) -> None:
    for node in [node for node in graph if node.op_type == "Gelu" and node.domain == ""]:
        value = node.inputs[0]
        assert value is not None
        projected, bias = unbiased(value)
        op = GELU_TANH if _is_tanh(node) else GELU_ERF_BIAS if bias is not None else GELU_ERF
        fused = _insert_before(node, op, [projected] if bias is None else [projected, bias], {})
        _replace(node.outputs[0], fused.outputs[0])


def _fuse_tied_heads(graph: ir.Graph) -> None:
    """x @ Transpose(wte) with the transposition inside, so that ONNX Runtime packs what the embedding reads, as it is.

    It else folds the Transpose when it loads, and holds a second (C,V) for as long as that takes, or for ever where
    weights are not packed. Since ONNX Runtime 1.31 FusedMatMul packs a transposed weight; before, T = 1 cost twice.
    """
    for node in _tied_heads(graph):
        assert node.inputs[1] is not None
        (weight,) = node.inputs[1].producer().inputs  # type: ignore[union-attr]
        fused = _insert_before(node, HEAD, [node.inputs[0], weight], {"transB": 1})
        take_place(fused.outputs[0], node.outputs[0])
        node.graph.remove(node, safe=True)  # type: ignore[union-attr]


def _tied_heads(graph: ir.Graph) -> list[ir.Node]:
    """The MatMuls, in the loop of the score graph too, with a weight that is turned for them alone."""
    return [
        node
        for node in graph.all_nodes()
        if node.op_type == "MatMul"
        and (weight := _input_of(node.inputs[1], "Transpose")) is not None
        and weight.is_initializer()
        and weight.dtype is not None
        and weight.dtype.is_floating_point()
    ]


def _is_tanh(gelu: ir.Node) -> bool:
    return gelu.attributes.get_string("approximate", "none") == "tanh"


def _biased(value: ir.Value | None) -> bool:
    return value is not None and unbiased(value)[1] is not None


def unbiased(value: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """x and b of x + b, where b is a vector of weights that nobody else's sum needs; else the value itself."""
    add = value.producer()
    if add is not None and add.op_type == "Add" and len(value.uses()) == 1:
        for x, b in (add.inputs, add.inputs[::-1]):
            if x is not None and b is not None and b.is_initializer() and b.shape is not None and len(b.shape) == 1:
                return x, b
    return value, None


def _input_of(value: ir.Value | None, op_type: str) -> ir.Value | None:
    """What went into the operation that made `value`, if it is an `op_type`."""
    node = value.producer() if value is not None else None
    return node.inputs[0] if node is not None and node.op_type == op_type else None


def _only_user(value: ir.Value, op_type: str) -> ir.Node | None:
    nodes = [use.node for use in value.uses()]
    return nodes[0] if len(nodes) == 1 and nodes[0].op_type == op_type else None


def _insert_before(
    node: ir.Node, op: str, inputs: list[ir.Value | None], attributes: Mapping[str, int | float]
) -> ir.Node:
    fused = ir.node(op, inputs, attributes, domain=MICROSOFT)
    assert node.graph is not None
    node.graph.insert_before(node, fused)
    return fused


def _replace(old: ir.Value, new: ir.Value) -> None:
    """Everybody who read `old` reads `new`, which inherits what is known of it."""
    new.shape, new.type = old.shape, old.type
    old.replace_all_uses_with(new)


def take_place(new: ir.Value, old: ir.Value) -> None:
    """As `_replace`, and `new` is called as `old` was, also where it leaves the graph."""
    new.shape, new.type = old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name, old.name = old.name, None


def _constant(tape: Tape, value: list[int]) -> ir.Value:
    return tape.op("Constant", [], {"value": ir.tensor(np.array(value, np.int64))})
