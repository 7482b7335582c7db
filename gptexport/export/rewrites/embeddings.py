"""Embeddings of a traced graph as quantizers take them: rows of a table of weights, by token."""

from __future__ import annotations

import onnx_ir as ir

from gptexport.export.sizes import Sizes
from gptexport.export.trace import Trace


def embeddings(trace: Trace) -> list[ir.Node]:
    """The Gathers of rows of a weight (V,C) by token. Positions are no tokens: their tables are small."""
    on_tokens = Sizes(trace.graph, trace.weights).on_tokens
    return [node for node in trace.graph if _reads_rows(trace, node, on_tokens)]


def _reads_rows(trace: Trace, node: ir.Node, on_tokens: set[ir.Value]) -> bool:
    if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0 or node.inputs[1] not in on_tokens:
        return False
    table = node.inputs[0]
    return table is not None and table.name in trace.weights and trace.weights[table.name].dim() == 2
