"""A graph in 16 bits as the same graph in float32: the one way to run it where no kernel takes its dtype.

ONNX Runtime's CPU provider has no bfloat16, and fused operators in float32 alone. The float32 graph has every node of
the original, at the same places, over the same stored weights, each widened as it is read. It says whether the graph is
the right function; of the 16-bit kernels' own rounding it says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, TensorProto, helper, numpy_helper

HALF = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
TYPE_ATTRIBUTES = ("to", "dtype", "softmax_precision", "output_dtype")  # which hold a TensorProto type
WIDE = ".float32"


def to_float32(model: onnx.ModelProto) -> None:
    """Make `model` compute in float32, in place, in its subgraphs too. Its weights stay where and as they are."""
    graph = model.graph
    half = {tensor.name for nested in _graphs(graph) for tensor in nested.initializer if tensor.data_type in HALF}
    for nested in _graphs(graph):
        del nested.value_info[:]
        for value in (*nested.input, *nested.output):
            if value.type.tensor_type.elem_type in HALF:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        for node in nested.node:
            node.input[:] = [name + WIDE if name in half else name for name in node.input]
            for attribute in node.attribute:
                _widen(attribute)
        own = [tensor.name for tensor in nested.initializer if tensor.name in half]
        casts = [helper.make_node("Cast", [name], [name + WIDE], to=TensorProto.FLOAT) for name in own]
        nodes = list(nested.node)
        del nested.node[:]
        nested.node.extend([*casts, *nodes])


def write_float32(path: Path, out: Path) -> None:
    """Write the graph in `path` as a float32 graph to `out`, beside it: they share the file of weights."""
    model = onnx.load(str(path), load_external_data=False)
    to_float32(model)
    out.write_bytes(model.SerializeToString(deterministic=True))


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph, and those within its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _widen(attribute: AttributeProto) -> None:
    """A type of 16 bits becomes float32; a constant in 16 bits is one in float32."""
    if attribute.name in TYPE_ATTRIBUTES and attribute.i in HALF:
        attribute.i = TensorProto.FLOAT
    elif attribute.t.data_type in HALF:
        wide = numpy_helper.to_array(attribute.t).astype(np.float32)
        attribute.t.CopyFrom(numpy_helper.from_array(wide, attribute.t.name))
