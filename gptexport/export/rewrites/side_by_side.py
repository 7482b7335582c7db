"""Attention over q, k and v (B,T,width), heads side by side as their projections made them, and so its result.

The flash kernel of ONNX Runtime's CUDA provider reads this layout; from (B,n_head,T,head_size) it turns q, and the
result back. Queries and keys that rotary positions have turned are put side by side again.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.tape import Tape

from gptexport.export.attention import OP_TYPE, attentions, flatten
from gptexport.export.rewrites import Audit, Rewrite, counted
from gptexport.export.rewrites.group_query_attention import take_result
from gptexport.recipe import Limits


def put_heads_side_by_side(graph: ir.Graph, _limits: Limits) -> Audit:
    """Before: ONNX's Attention of (B,n_head,T,head_size). After: the same of (B,T,width), with q_num_heads."""
    expected = sum(node.op_type == OP_TYPE and not any(node.inputs[3:]) for node in graph)
    achieved = 0
    for attention in attentions(graph):
        if attention.masked:
            continue
        tape, merged = Tape(), attention.merged
        sides = [flatten(tape, heads) for heads in (attention.query, attention.key, attention.value)]
        attributes = [*attention.node.attributes.values()]
        attributes += [
            ir.AttrInt64("q_num_heads", attention.n_head),
            ir.AttrInt64("kv_num_heads", attention.n_kv_head),
        ]
        fused = ir.Node("", OP_TYPE, sides, attributes, num_outputs=1)
        graph.insert_before(attention.node, [*tape.nodes, fused])
        take_result(attention, fused.outputs[0], merged if merged is not None else attention.node.outputs[0])
        achieved += 1
    return counted(OP_TYPE, expected, achieved)


HEADS_SIDE_BY_SIDE = Rewrite("attention with heads side by side", put_heads_side_by_side)
