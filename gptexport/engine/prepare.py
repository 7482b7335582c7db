"""The portable graph as TensorRT keeps it smallest and most exact. Only the structure is touched, never the weights.

Both rewrites leave the function as it is; a test runs the rewritten graph in ONNX Runtime against the first.
Measured with TensorRT for RTX 1.7.1: docs/tensorrt.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

ALIGNMENT = 16  # bytes. TensorRT's matrix products read rows that begin on such a bound, and pad a copy if they do not
SIXTEEN_BITS = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
ITEM_BYTES: dict[int, int] = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.FLOAT16: 2, onnx.TensorProto.BFLOAT16: 2}


@dataclass(frozen=True)
class Prepared:
    """What was rewritten."""

    padded_vocab: int | None  # rows that the tied weight was padded to; None: there was nothing to do
    float32_norms: int  # LayerNormalization nodes that were given float32 inputs


def prepare_graph(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Prepared]:
    """A rewritten copy of `model`, whose external data stays where it is."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    padded = _pad_tied_weight(copy.graph)
    norms = _norms_in_float32(copy.graph)
    return copy, Prepared(padded, norms)


def _pad_tied_weight(graph: onnx.GraphProto) -> int | None:
    """Let embedding and head share a weight (V,C) whose V is padded to a multiple that matrix products can read.

    With an odd V (50257) TensorRT keeps the head's weight again, padded: 77 MB more for GPT-2 124M in 16 bits. Where
    the padding is in the graph, both read the one padded weight, and a Slice drops the padding's logits.
    """
    for transpose in graph.node:
        if transpose.op_type != "Transpose":
            continue
        weight = next((tensor for tensor in graph.initializer if tensor.name == transpose.input[0]), None)
        readers = [node for node in graph.node if weight is not None and weight.name in node.input]
        heads = [node for node in graph.node if transpose.output[0] in node.input]
        if (
            weight is None
            or len(weight.dims) != 2
            or weight.data_type not in ITEM_BYTES
            or sorted(node.op_type for node in readers) != ["Gather", "Transpose"]
            or [node.op_type for node in heads] != ["MatMul"]
        ):
            continue
        V, C = (int(dim) for dim in weight.dims)
        rows = -V % (ALIGNMENT // ITEM_BYTES[weight.data_type])
        if rows == 0:
            return None
        _share_padded(graph, weight, readers, heads[0], V, C, rows)
        return V + rows
    return None


def _share_padded(
    graph: onnx.GraphProto,
    weight: onnx.TensorProto,
    readers: list[onnx.NodeProto],
    head: onnx.NodeProto,
    V: int,
    C: int,
    rows: int,
) -> None:
    padded = f"{weight.name}.padded"
    zeros = helper.make_tensor(
        f"{weight.name}.padding", weight.data_type, [rows, C], bytes(rows * C * ITEM_BYTES[weight.data_type]), raw=True
    )
    bounds = {"start": 0, "end": V, "axis": 2}
    names = {name: f"{head.output[0]}.{name}" for name in bounds}
    graph.initializer.append(zeros)
    graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array([value], dtype=np.int64), names[name]) for name, value in bounds.items()
    )
    # Concat, not Pad: TensorRT folds a Concat of constants, and computes a Pad at every call
    concat = helper.make_node("Concat", [weight.name, zeros.name], [padded], name=padded, axis=0)
    logits = head.output[0]
    head.output[0] = f"{logits}.padded"
    cut = helper.make_node("Slice", [head.output[0], *names.values()], [logits], name=f"{logits}.unpadded")
    for node in readers:
        node.input[list(node.input).index(weight.name)] = padded
    stale = [value for value in graph.value_info if value.name == head.input[1]]  # the transposed weight was (C,V)
    for value in stale:
        graph.value_info.remove(value)
    nodes = [concat]
    for node in graph.node:
        nodes += [node, cut] if node.output[0] == head.output[0] else [node]
    _replace_nodes(graph, nodes)


def _norms_in_float32(graph: onnx.GraphProto) -> int:
    """Say with casts what ONNX says with stash_type=1, which TensorRT's parser does not pass on: LayerNorm in float32.

    fp16 LayerNorm overflows (TensorRT#2466, #3657).
    """
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    nodes = []
    count = 0
    for node in graph.node:
        dtype = types.get(node.input[1]) if node.op_type == "LayerNormalization" else None
        if dtype not in SIXTEEN_BITS or len(node.output) > 1:
            nodes.append(node)
            continue
        count += 1
        result = node.output[0]
        for index, name in enumerate(node.input):
            wide = f"{result}.in{index}.float32"
            nodes.append(helper.make_node("Cast", [name], [wide], name=wide, to=onnx.TensorProto.FLOAT))
            node.input[index] = wide
        node.output[0] = f"{result}.float32"
        nodes += [node, helper.make_node("Cast", [node.output[0]], [result], name=f"{result}.narrow", to=dtype)]
    _replace_nodes(graph, nodes)
    return count


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del graph.node[:]
    graph.node.extend(copies)
