"""RMSNorm written out, for a backend that does not know ONNX's RMSNormalization, as OpenVINO's provider does not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from gptexport.export.irtools import constant, take_place
from gptexport.export.rewrites import Audit, Rewrite, counted
from gptexport.recipe import Limits

WRITTEN_OUT = "RMSNorm written out"


def write_out_rms_norms(graph: ir.Graph, _limits: Limits) -> Audit:
    """Before: ONNX's RMSNormalization over the last axis, in float32. After: x / sqrt(mean(x * x) + eps) * weight."""
    found = [node for node in graph if node.op_type == "RMSNormalization"]
    done = 0
    for node in found:
        x, weight = node.inputs
        last = x.shape is not None and node.attributes.get_int("axis", -1) in (-1, len(x.shape) - 1) if x else False
        if not last or x is None or x.dtype != ir.DataType.FLOAT:
            continue
        tape = Tape()
        eps = np.array(node.attributes.get_float("epsilon", 1e-5), np.float32)
        mean = tape.op("ReduceMean", [tape.op("Mul", [x, x]), constant(tape, [-1])])
        shifted = tape.op("Add", [mean, tape.op("Constant", [], {"value": ir.tensor(eps)})])
        result = tape.op("Mul", [tape.op("Div", [x, tape.op("Sqrt", [shifted])]), weight])
        graph.insert_before(node, tape.nodes)
        take_place(result, node.outputs[0])
        graph.remove(node, safe=True)
        done += 1
    return counted(WRITTEN_OUT, len(found), done)


WRITE_OUT_RMS_NORMS = Rewrite(WRITTEN_OUT, write_out_rms_norms)
