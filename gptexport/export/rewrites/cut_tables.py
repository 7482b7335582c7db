"""A table that is read at 0 ... T-1 is cut to its first T rows, with T as the host knows it, a shape.

ONNX Runtime 1.31 makes a Slice of the Range itself, but of numbers that it copies back from the GPU, three a call: each
waits for the GPU, and any of them rules out CUDA graphs.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.tape import Tape

from gptexport.export.irtools import constant, replace, size_of
from gptexport.export.rewrites import Audit, Rewrite
from gptexport.export.rewrites.positions import counts_up
from gptexport.recipe import Limits


def cut_tables(graph: ir.Graph, _limits: Limits) -> Audit:
    """Before: Gather of a table by a Range from 0. After: Slice. Nothing is expected of it."""
    for node in list(graph):
        table, rows = node.inputs[0] if node.inputs else None, node.outputs[0]
        if node.op_type != "Gather" or table is None or not table.is_initializer() or not counts_up(node.inputs[1]):
            continue
        if node.attributes.get_int("axis", 0) != 0 or rows.shape is None or rows.shape[:-2] not in ((), (1,)):
            continue
        tape = Tape()
        zero = constant(tape, [0])
        cut = tape.op("Slice", [table, zero, size_of(tape, graph.inputs[0], 1), zero])
        if len(rows.shape) == 3:
            cut = tape.op("Unsqueeze", [cut, zero])
        graph.insert_before(node, tape.nodes)
        replace(rows, cut)
    return {}


CUT_TABLES = Rewrite("cut tables", cut_tables)
