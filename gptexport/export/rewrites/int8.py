"""`--quantize int8`: linear layers and embeddings in 8 bits, for ONNX Runtime's CPU provider.

Weights are int8, symmetric, one scale per output channel. Activations are quantized as they come, one scale per tensor
(com.microsoft.DynamicQuantizeMatMul), so outliers cost precision for the whole tensor: smoothing moves them into the
weights first. An embedding has one scale per row. A tied one is stored once: a row of it is a channel of the head's.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import torch
import torch.nn as nn
from onnx_ir.tape import Tape

from gptexport.architectures import Architecture
from gptexport.errors import ExportError
from gptexport.export.irtools import MICROSOFT, constant, take_place
from gptexport.export.rewrites import Audit, counted
from gptexport.export.rewrites.embeddings import embeddings
from gptexport.export.rewrites.linears import add_of_bias, linear_weight, split_gemms
from gptexport.export.rewrites.rounding import BLOCKS
from gptexport.export.rewrites.smoothing import smooth_norms
from gptexport.export.trace import Trace
from gptexport.recipe import Limits
from gptexport_runtime.contract.names import META_ACTIVATION_BLOCK

QUANTIZED_MATMUL = "DynamicQuantizeMatMul"


class Int8:
    """The quantizer of the precision int8: see gptexport.precision.Quantizer."""

    def prepare(
        self, model: nn.Module, architecture: Architecture, limits: Limits, progress: Callable[[str], None]
    ) -> list[str]:
        progress("moving the activations' outliers into the weights")
        return smooth_norms(model, architecture, limits)

    def quantize(self, trace: Trace) -> Audit:
        split_gemms(trace)
        trace.model.metadata_props[META_ACTIVATION_BLOCK] = str(BLOCKS[0])  # OpenVINO: shorter ones are slower
        return quantize_weights(trace)


def quantize_weights(trace: Trace) -> Audit:
    """Quantize every MatMul with a weight, and every table that tokens read rows of, in place.

    Returns: the audit: how many matmuls there were, and how many are in 8 bits.
    """
    graph = trace.graph
    lookups = embeddings(trace)
    matmuls = [node for node in graph if node.op_type == "MatMul" and linear_weight(trace, node.inputs[1]) is not None]
    stored: dict[str, tuple[int, ir.Value]] = {}  # by weight, which several may read: the axis of its channels, scales
    done = 0
    for node in matmuls:
        name, right = linear_weight(trace, node.inputs[1]), node.inputs[1]
        assert name is not None and right is not None
        axis = 1 if right.is_initializer() else 0  # 0 of the tied head: Transpose of (V,C)
        if name not in stored:
            stored[name] = axis, _quantize_weight(trace, name, channel_axis=axis)
            if axis == 0:
                _dequantize_rows(graph, graph.initializers[name], stored[name][1])
        of_axis, scales = stored[name]
        if axis != of_axis:
            raise ExportError(f"{name} is multiplied both as it is and transposed, which int8 has no scales for.")
        right.type = ir.TensorType(ir.DataType.INT8)
        inputs, replaced = [node.inputs[0], right, scales], [node]
        if (found := add_of_bias(node.outputs[0])) is not None:
            add, bias = found
            inputs, replaced = [*inputs, None, bias], [node, add]
        fused = ir.node(QUANTIZED_MATMUL, inputs, domain=MICROSOFT)
        graph.insert_before(node, fused)
        take_place(fused.outputs[0], replaced[-1].outputs[0])
        graph.remove(replaced, safe=True)
        done += 1
    for table in dict.fromkeys(node.inputs[0] for node in lookups):
        assert table is not None and table.name is not None
        if trace.weights[table.name].is_floating_point() and all(use.node in lookups for use in table.uses()):
            _dequantize_rows(graph, table, _quantize_weight(trace, table.name, channel_axis=0))
    graph.opset_imports[MICROSOFT] = 1
    return counted(QUANTIZED_MATMUL, len(matmuls), done)


def _quantize_weight(trace: Trace, name: str, *, channel_axis: int) -> ir.Value:
    """Replace a weight by its int8 values; returns the scales, a new weight of one float32 per channel."""
    weight = trace.weights[name]
    peak = weight.abs().amax(dim=1 - channel_axis, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    scales = peak / 127
    trace.weights[name] = torch.round(weight / scales).to(torch.int8)
    stored = trace.graph.initializers[name]
    stored.type = ir.TensorType(ir.DataType.INT8)
    scales_name = f"{name}.scale"
    trace.weights[scales_name] = scales.flatten()
    value = ir.Value(name=scales_name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([scales.numel()]))
    trace.graph.initializers[scales_name] = value
    return value


def _dequantize_rows(graph: ir.Graph, table: ir.Value, scales: ir.Value) -> None:
    """The embedding that reads rows of a quantized table: each times its scale."""
    for use in list(table.uses()):
        gather = use.node
        if gather.op_type != "Gather":
            continue
        tape = Tape()
        ids = gather.inputs[1]
        wide = tape.op("Cast", [gather.outputs[0]], {"to": ir.DataType.FLOAT})
        row_scales = tape.op("Gather", [scales, ids])
        rows = tape.op("Mul", [wide, tape.op("Unsqueeze", [row_scales, constant(tape, [-1])])])
        rows.shape, rows.type = gather.outputs[0].shape, ir.TensorType(ir.DataType.FLOAT)
        gather.outputs[0].replace_all_uses_with(rows)
        wide.producer().replace_input_with(0, gather.outputs[0])  # type: ignore[union-attr]
        gather.outputs[0].type = ir.TensorType(ir.DataType.INT8)
        graph.insert_after(gather, tape.nodes)
