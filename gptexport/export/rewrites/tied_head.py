"""x @ Transpose(weight) with the transposition inside the product, so that a tied weight is packed as it is stored.

ONNX Runtime else folds the Transpose when it loads, and holds a second (C,V) for as long as that takes, or for ever
where weights are not packed. Since ONNX Runtime 1.31 FusedMatMul packs a transposed weight; before, T = 1 cost twice.
"""

from __future__ import annotations

import onnx_ir as ir

from gptexport.export.irtools import MICROSOFT, input_of, insert_before, take_place
from gptexport.export.rewrites import Audit, Rewrite, counted
from gptexport.recipe import Limits

FUSED = "FusedMatMul"


def fuse_tied_heads(graph: ir.Graph, _limits: Limits) -> Audit:
    """Before: MatMul of a Transpose of a weight, in subgraphs too. After: com.microsoft's FusedMatMul with transB."""
    found = tied_heads(graph)
    for node in found:
        weight = input_of(node.inputs[1], "Transpose")
        fused = insert_before(node, FUSED, [node.inputs[0], weight], {"transB": 1})
        take_place(fused.outputs[0], node.outputs[0])
        assert node.graph is not None
        node.graph.remove(node, safe=True)
    achieved = sum(node.op_type == FUSED and node.domain == MICROSOFT for node in graph.all_nodes())
    return counted(FUSED, len(found), achieved)


def tied_heads(graph: ir.Graph) -> list[ir.Node]:
    """The MatMuls, in the loop of the score graph too, with a weight (V,C) that is turned for them alone."""
    return [
        node
        for node in graph.all_nodes()
        if node.op_type == "MatMul"
        and (weight := input_of(node.inputs[1], "Transpose")) is not None
        and weight.is_initializer()
        and weight.shape is not None
        and len(weight.shape) == 2
        and weight.dtype is not None
        and weight.dtype.is_floating_point()
    ]


FUSE_TIED_HEADS = Rewrite("tied head", fuse_tied_heads)
