"""A GELU, and the sum with a bias before it, as one of ONNX Runtime's fused operators."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from gptexport.export.irtools import MICROSOFT, insert_before, replace, unbiased
from gptexport.export.rewrites import Audit, Rewrite, counted
from gptexport.recipe import Limits

TANH, ERF_BIAS, ERF = "FastGelu", "BiasGelu", "Gelu"


def fuse_gelus(graph: ir.Graph, _limits: Limits) -> Audit:
    """Before: ONNX's Gelu. After: com.microsoft's FastGelu, BiasGelu or Gelu."""
    gelus = [node for node in graph if node.op_type == "Gelu" and node.domain == ""]
    expected = Counter(_fused_operator(node) for node in gelus)
    for node in gelus:
        op = _fused_operator(node)
        value = node.inputs[0]
        assert value is not None
        projected, bias = unbiased(value)
        fused = insert_before(node, op, [projected] if bias is None else [projected, bias], {})
        replace(node.outputs[0], fused.outputs[0])
    graph_counts = Counter(node.op_type for node in graph if node.domain == MICROSOFT)
    audit: Audit = {}
    for op, count in expected.items():
        audit |= counted(op, count, graph_counts[op])
    return audit


def _fused_operator(gelu: ir.Node) -> str:
    if gelu.attributes.get_string("approximate", "none") == "tanh":
        return TANH
    value = gelu.inputs[0]
    return ERF_BIAS if value is not None and unbiased(value)[1] is not None else ERF


FUSE_GELUS = Rewrite("fused GELU", fuse_gelus)
