"""`--target cuda`: a portable graph rewritten for ONNX Runtime's CUDA provider, by fusion.

What each node is, and why this one and not another of ONNX Runtime's, stands in docs/targets.md with its sources.
"""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tape import Tape

from gptexport.config import DType
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
    unbiased,
)
from gptexport.export.positions import counts_up

ATTENTION, SKIP_NORM = "Attention", "SkipLayerNormalization"
CUDA_SCORE_CHUNK = 2048  # positions whose logits exist at a time: 0.4 GB of float32 at GPT-2's vocabulary
FLASH_HEAD_SIZES = range(8, 257, 8)  # those of ONNX Runtime's flash kernels (flash_attention/flash_api.cc)

# What ONNX Runtime 1.31.1 calls its attention kernels in the log of ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO=1.
FLASH, CUDNN, XQA, EFFICIENT, MATH = (
    "FLASH_ATTENTION",
    "CUDNN_FLASH_ATTENTION",
    "XQA",
    "EFFICIENT_ATTENTION",
    "MATH",
)


def expected_kernels(dtype: DType, head_size: int) -> dict[str, list[str]]:
    """By operator, which attention kernels a GPU of compute capability 8.0 or more is expected to take, any of them.

    An expectation: nothing has run. `scripts/gpu/attention_kernel.py` reads from ONNX Runtime's log which one did.
    """
    if dtype != "float32" and head_size in FLASH_HEAD_SIZES:
        return {ATTENTION: [FLASH], "GroupQueryAttention": [FLASH, CUDNN, XQA]}
    return {ATTENTION: [EFFICIENT, MATH] if head_size % 8 == 0 and head_size <= 1024 else [MATH]}


def fuse_for_cuda(model: ir.Model) -> Audit:
    """Fuse a portable graph in place.

    Returns: of each fused operator, how many were expected, counted before, and how many are there now.
    """
    graph = model.graph
    expected = {
        ATTENTION: sum(node.op_type == "Attention" and not any(node.inputs[3:]) for node in graph),
        SKIP_NORM: sum(_is_norm_of_sum(node) for node in graph),
        **expected_gelus(graph),
        HEAD: len(tied_heads(graph)),
    }
    _cut_tables(graph)
    fuse_gelus(graph)
    _fuse_attention(graph)
    _fuse_norms(graph)
    fuse_tied_heads(graph)
    RemoveUnusedNodesPass()(model)
    graph.opset_imports[MICROSOFT] = 1
    achieved = Counter(
        node.op_type for node in graph.all_nodes() if node.domain == MICROSOFT or _takes_heads_side_by_side(node)
    )
    return {op: {"expected": count, "achieved": achieved[op]} for op, count in expected.items() if count}


def _cut_tables(graph: ir.Graph) -> None:
    """A table read at 0 ... T-1 is cut to its first T rows, with T as the host knows it, a shape.

    ONNX Runtime 1.31 makes a Slice of the Range itself, but of numbers that it copies back from the GPU, three a call:
    each waits for the GPU, and any of them rules out CUDA graphs.
    """
    for node in list(graph):
        table, rows = node.inputs[0] if node.inputs else None, node.outputs[0]
        if node.op_type != "Gather" or table is None or not table.is_initializer() or not counts_up(node.inputs[1]):
            continue
        if node.attributes.get_int("axis", 0) != 0 or rows.shape is None or rows.shape[:-2] not in ((), (1,)):
            continue
        tape = Tape()
        zero = tape.op("Constant", [], {"value": ir.tensor([0], dtype=ir.DataType.INT64)})
        T = tape.op("Shape", [graph.inputs[0]], {"start": 1, "end": 2})
        cut = tape.op("Slice", [table, zero, T, zero])
        if len(rows.shape) == 3:
            cut = tape.op("Unsqueeze", [cut, zero])
        graph.insert_before(node, tape.nodes)
        replace(rows, cut)


def _fuse_attention(graph: ir.Graph) -> None:
    """q, k and v (B,T,C) go in as the projection made them, heads side by side, and so comes the result.

    The flash kernel reads this layout; of (B,n_head,T,head_size) ONNX Runtime turns q, and the result back.
    """
    for node in [node for node in graph if node.op_type == "Attention" and not any(node.inputs[3:])]:
        parts, out = [_side_by_side(part) for part in node.inputs[:3]], heads_merged(node)
        heads = [part.shape[1] for part in node.inputs[:3] if part is not None and part.shape is not None]
        if out is None or not all(parts) or len(heads) != 3 or not all(isinstance(count, int) for count in heads):
            continue
        attributes = [*node.attributes.values()]
        attributes += [ir.AttrInt64("q_num_heads", heads[0]), ir.AttrInt64("kv_num_heads", heads[1])]  # type: ignore[arg-type]
        fused = ir.Node("", "Attention", parts, attributes, num_outputs=1)
        graph.insert_before(node, fused)
        replace(out, fused.outputs[0])


def _side_by_side(heads: ir.Value | None) -> ir.Value | None:
    """The (B,T,C) that was cut into heads (B,n_head,T,head_size), if it was."""
    turned = heads.producer() if heads is not None else None
    if turned is None or turned.op_type != "Transpose" or list(turned.attributes["perm"].as_ints()) != [0, 2, 1, 3]:
        return None
    merged = input_of(turned.inputs[0], "Reshape")
    if merged is None or merged.shape is None or heads is None or heads.shape is None:
        return None
    _, n_head, _, size = heads.shape
    width = n_head * size if isinstance(n_head, int) and isinstance(size, int) else None
    return merged if len(merged.shape) == 3 and merged.shape[-1] == width else None


def _takes_heads_side_by_side(node: ir.Node) -> bool:
    return node.op_type == "Attention" and "q_num_heads" in node.attributes


def _fuse_norms(graph: ir.Graph) -> None:
    """A residual sum, the bias of the projection that is added, and the norm that reads the sum: one node.

    Its second result is the sum itself, which the next residual needs. It adds up in float32 (onnxruntime#28682).
    """
    for node in [node for node in graph if _is_norm_of_sum(node)]:
        sum_ = node.inputs[0]
        assert sum_ is not None
        added, skip = _projection_first(sum_)
        added, bias = unbiased(added)
        is_read = len(sum_.uses()) > 1 or sum_.is_graph_output()
        scale, shift = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        epsilon = ir.AttrFloat32("epsilon", node.attributes.get_float("epsilon", 1e-5))
        outputs = 4 if is_read else 1
        fused = ir.Node(MICROSOFT, SKIP_NORM, [added, skip, scale, shift, bias], [epsilon], num_outputs=outputs)
        graph.insert_before(node, fused)
        replace(node.outputs[0], fused.outputs[0])
        if is_read:
            for unused in fused.outputs[1:3]:
                unused.name = ""
            replace(sum_, fused.outputs[3])


def _is_norm_of_sum(node: ir.Node) -> bool:
    """LayerNormalization over the last axis of a sum (B,T,C) of two activations."""
    value = node.inputs[0] if node.op_type == "LayerNormalization" else None
    add = value.producer() if value is not None else None
    if value is None or add is None or add.op_type != "Add" or node.attributes.get_int("axis", -1) not in (-1, 2):
        return False
    if (
        value.shape is None
        or len(value.shape) != 3
        or any(term is None or term.is_initializer() for term in add.inputs)
    ):
        return False
    whole, other = _projection_first(value)
    return whole.shape == value.shape and other.shape is not None and other.shape in _skips(value.shape)


def _skips(shape: ir.Shape) -> tuple[ir.Shape, ...]:
    """What may be added to (B,T,C) within the node: as much again, or the same for every row."""
    return shape, ir.Shape([1, *shape[1:]]), ir.Shape(shape[1:])


def _projection_first(sum_: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The two terms: first the one of the sum's own shape, with a bias if either has one; the other may be (T,C)."""
    add = sum_.producer()
    assert add is not None
    terms = [term for term in add.inputs if term is not None]
    terms.sort(key=lambda term: (term.shape != sum_.shape, unbiased(term)[1] is None))
    return terms[0], terms[1]
