"""A graph in 16 bits as the same graph in float32, so that a machine without a GPU can run it.

ONNX Runtime's CPU provider has no bfloat16, and fused operators in float32 alone. The twin has every node of the
original, at the same places, over the same stored weights, each widened as it is read. It says whether the graph is
the right function; of the 16-bit kernels' own rounding it says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, TensorProto, helper, numpy_helper

HALF = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
WIDE = ".float32"


def write_twin(path: Path, twin: Path) -> None:
    """Write the float32 twin of the graph in `path` to `twin`, beside it: they share the file of weights."""
    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    half = [tensor.name for tensor in graph.initializer if tensor.data_type in HALF]
    for nested in _graphs(graph):
        del nested.value_info[:]
        for value in (*nested.input, *nested.output):
            if value.type.tensor_type.elem_type in HALF:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        for node in nested.node:
            node.input[:] = [name + WIDE if name in half else name for name in node.input]
            for attribute in node.attribute:
                _widen(attribute)
    casts = [helper.make_node("Cast", [name], [name + WIDE], to=TensorProto.FLOAT) for name in half]
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
    twin.write_bytes(model.SerializeToString(deterministic=True))


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph, and those within its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _widen(attribute: AttributeProto) -> None:
    """A Cast to 16 bits casts to float32; a constant in 16 bits is one in float32."""
    if attribute.name == "to" and attribute.i in HALF:
        attribute.i = TensorProto.FLOAT
    elif attribute.t.data_type in HALF:
        wide = numpy_helper.to_array(attribute.t).astype(np.float32)
        attribute.t.CopyFrom(numpy_helper.from_array(wide, attribute.t.name))
