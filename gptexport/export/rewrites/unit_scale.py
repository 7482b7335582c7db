"""RMSNorm without a gain: ONNX's wants one, and PyTorch's exporter makes one as large as what is normed, every time."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from gptexport.export.irtools import producer
from gptexport.export.trace import Trace


def shrink_scales(trace: Trace) -> None:
    """Before: RMSNormalization(x, ones shaped like x). After: the same with ones (C), one constant for each width."""
    graph = trace.graph
    for node in list(graph):
        if node.op_type != "RMSNormalization" or node.attributes.get_int("axis", -1) != -1:
            continue
        x, scale = node.inputs[:2]
        made = producer(scale)
        width = x.shape[-1] if x is not None and x.shape is not None else None
        if made is None or made.op_type != "ConstantOfShape" or x is None or x.dtype is None:
            continue
        if not isinstance(width, int) or "value" not in made.attributes:
            continue
        fill = made.attributes["value"].as_tensor().numpy().item()
        name = f"scale_{fill:g}_{width}"
        if name not in graph.initializers:
            tensor = ir.tensor(np.full(width, fill, x.dtype.numpy()), dtype=x.dtype, name=name)
            graph.initializers[name] = ir.Value(name=name, type=x.type, shape=ir.Shape([width]), const_value=tensor)
        node.replace_input_with(1, graph.initializers[name])
    RemoveUnusedNodesPass()(trace.model)
