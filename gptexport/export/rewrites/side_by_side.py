"""Attention over q, k and v (B,T,width) as their projections made them, heads side by side, and so its result.

The flash kernel of ONNX Runtime's CUDA provider reads this layout; from (B,n_head,T,head_size) it turns q, and the
result back.
"""

from __future__ import annotations

import onnx_ir as ir

from gptexport.export.attention import OP_TYPE, attentions
from gptexport.export.irtools import replace
from gptexport.export.rewrites import Audit, Rewrite, counted
from gptexport.recipe import Limits


def put_heads_side_by_side(graph: ir.Graph, _limits: Limits) -> Audit:
    """Before: ONNX's Attention of (B,n_head,T,head_size). After: the same of (B,T,width), with q_num_heads."""
    expected = sum(node.op_type == OP_TYPE and not any(node.inputs[3:]) for node in graph)
    achieved = 0
    for attention in attentions(graph):
        sides, out = attention.sides, attention.merged
        if attention.masked or sides is None or out is None:
            continue
        attributes = [*attention.node.attributes.values()]
        attributes += [
            ir.AttrInt64("q_num_heads", attention.n_head),
            ir.AttrInt64("kv_num_heads", attention.n_kv_head),
        ]
        fused = ir.Node("", OP_TYPE, sides, attributes, num_outputs=1)
        graph.insert_before(attention.node, fused)
        replace(out, fused.outputs[0])
        achieved += 1
    return counted(OP_TYPE, expected, achieved)


HEADS_SIDE_BY_SIDE = Rewrite("attention with heads side by side", put_heads_side_by_side)
