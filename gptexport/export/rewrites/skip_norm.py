"""A residual sum, the bias of the projection that is added, and the norm that reads the sum, as one node.

SkipLayerNormalization's last result is the sum itself, which the next residual needs. It adds up in float32
(onnxruntime#28682).
"""

from __future__ import annotations

import onnx_ir as ir

from gptexport.export.irtools import MICROSOFT, replace, unbiased
from gptexport.export.rewrites import Audit, Rewrite, counted
from gptexport.recipe import Limits

OP_TYPE = "SkipLayerNormalization"


def fuse_norms(graph: ir.Graph, _limits: Limits) -> Audit:
    """Before: LayerNormalization of a sum of two activations. After: com.microsoft's SkipLayerNormalization."""
    found = [node for node in graph if _is_norm_of_sum(node)]
    expected = len({node.inputs[0] for node in found})  # the two norms of a parallel block read one sum
    done = 0
    for node in found:
        sum_ = node.inputs[0]
        assert sum_ is not None
        if not _is_norm_of_sum(node):  # another norm has taken the sum's place
            continue
        added, skip = _projection_first(sum_)
        added, bias = unbiased(added)
        is_read = len(sum_.uses()) > 1 or sum_.is_graph_output()
        scale, shift = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        epsilon = ir.AttrFloat32("epsilon", node.attributes.get_float("epsilon", 1e-5))
        outputs = 4 if is_read else 1
        fused = ir.Node(MICROSOFT, OP_TYPE, [added, skip, scale, shift, bias], [epsilon], num_outputs=outputs)
        add = sum_.producer()
        assert add is not None
        graph.insert_after(add, fused)  # other readers of the sum may come before the norm
        replace(node.outputs[0], fused.outputs[0])
        if is_read:
            for unused in fused.outputs[1:3]:
                unused.name = ""
            replace(sum_, fused.outputs[3])
        done += 1
    return counted(OP_TYPE, expected, done)


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


FUSE_NORMS = Rewrite("skip norms", fuse_norms)
