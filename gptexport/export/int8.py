"""`--quantize int8`: linear layers in 8 bits, for ONNX Runtime's CPU provider.

Weights are int8, symmetric, one scale per output channel. Activations are quantized as they come, one scale per tensor
(com.microsoft.DynamicQuantizeMatMul), so their outliers cost everybody precision: `smooth` moves them into the weights
first. A tied embedding is stored once: a row of it is an output channel of the head, and has the same scale.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
import torch.nn as nn
from onnx_ir.tape import Tape

from gptexport.export.check import Audit
from gptexport.export.fusions import MICROSOFT, take_place
from gptexport.export.trace import Trace
from gptexport.models.gpt2 import GPT

QUANTIZED_MATMUL = "DynamicQuantizeMatMul"
SMOOTHING = 0.5  # alpha of SmoothQuant (arXiv 2211.10438): how much of an outlier moves from activation to weight


def calibration_ids(*, block_size: int, vocab_size: int) -> torch.Tensor:
    """(B,T) ids to see activations on. Random ones do: outliers sit in channels, whatever the text is."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocab_size, (4, min(block_size, 256)), generator=generator)


@torch.no_grad()
def smooth(model: GPT, ids: torch.Tensor) -> None:
    """Even out the inputs of the linears behind layer norms, in place; the function stays what it was (SmoothQuant).

    Args:
        ids: (B,T) to see the activations' range on.
    """
    pairs: list[tuple[nn.LayerNorm, nn.Linear]] = []
    for block in model.transformer.h:  # type: ignore[union-attr]
        pairs += [(block.ln_1, block.attn.c_attn), (block.ln_2, block.mlp.c_fc)]
    peaks: dict[nn.Module, torch.Tensor] = {}

    def see(linear: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        peaks[linear] = inputs[0].abs().amax(dim=(0, 1))

    hooks = [linear.register_forward_pre_hook(see) for _, linear in pairs]
    try:
        model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    for norm, linear in pairs:
        weight_peak = linear.weight.abs().amax(dim=0).clamp(min=1e-5)
        scale = peaks[linear].clamp(min=1e-5) ** SMOOTHING / weight_peak ** (1 - SMOOTHING)
        norm.weight = nn.Parameter(norm.weight / scale, requires_grad=False)
        if norm.bias is not None:
            norm.bias = nn.Parameter(norm.bias / scale, requires_grad=False)
        linear.weight = nn.Parameter(linear.weight * scale, requires_grad=False)


def quantize_weights(trace: Trace) -> Audit:
    """Quantize every MatMul with a weight, and the embedding that shares its weight, in place.

    Returns: the audit: how many matmuls there were, and how many are in 8 bits.
    """
    graph = trace.graph.graph
    matmuls = [node for node in graph if node.op_type == "MatMul" and _weight_name(trace, node.inputs[1]) is not None]
    done = 0
    for node in matmuls:
        name = _weight_name(trace, node.inputs[1])
        assert name is not None and node.inputs[1] is not None
        transposed = not node.inputs[1].is_initializer()  # the tied head: Transpose of (V,C)
        scales = _quantize_weight(trace, name, channel_axis=0 if transposed else 1)
        if transposed:
            _dequantize_rows(graph, graph.initializers[name], scales)
            node.inputs[1].type = ir.TensorType(ir.DataType.INT8)
        inputs, replaced = [node.inputs[0], node.inputs[1], scales], [node]
        if (found := _add_of_bias(node.outputs[0])) is not None:
            add, bias = found
            inputs, replaced = [*inputs, None, bias], [node, add]
        fused = ir.node(QUANTIZED_MATMUL, inputs, domain=MICROSOFT)
        graph.insert_before(node, fused)
        take_place(fused.outputs[0], replaced[-1].outputs[0])
        graph.remove(replaced, safe=True)
        done += 1
    graph.opset_imports[MICROSOFT] = 1
    return {QUANTIZED_MATMUL: {"expected": len(matmuls), "achieved": done}}


def _add_of_bias(projected: ir.Value) -> tuple[ir.Node, ir.Value] | None:
    """The Add that alone reads what a matmul made, and the vector of weights that it adds."""
    users = [use.node for use in projected.uses()]
    if len(users) != 1 or users[0].op_type != "Add":
        return None
    bias = next(value for value in users[0].inputs if value is not projected)
    assert bias is not None
    return (users[0], bias) if bias.is_initializer() and bias.shape is not None and len(bias.shape) == 1 else None


def _weight_name(trace: Trace, value: ir.Value | None) -> str | None:
    """The weight behind a matmul's right side: itself, or what is transposed into it."""
    if value is None:
        return None
    if value.is_initializer():
        return value.name if value.name in trace.weights else None
    producer = value.producer()
    return _weight_name(trace, producer.inputs[0]) if producer is not None and producer.op_type == "Transpose" else None


def _quantize_weight(trace: Trace, name: str, *, channel_axis: int) -> ir.Value:
    """Replace a weight by its int8 values; returns the scales, a new weight of one float32 per channel."""
    weight = trace.weights[name]
    peak = weight.abs().amax(dim=1 - channel_axis, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    scales = peak / 127
    trace.weights[name] = torch.round(weight / scales).to(torch.int8)
    stored = trace.graph.graph.initializers[name]
    stored.type = ir.TensorType(ir.DataType.INT8)
    scales_name = f"{name}.scale"
    trace.weights[scales_name] = scales.flatten()
    value = ir.Value(name=scales_name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([scales.numel()]))
    trace.graph.graph.initializers[scales_name] = value
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
        last = tape.op("Constant", [], {"value": ir.tensor(np.array([-1], np.int64))})
        rows = tape.op("Mul", [wide, tape.op("Unsqueeze", [row_scales, last])])
        rows.shape, rows.type = gather.outputs[0].shape, ir.TensorType(ir.DataType.FLOAT)
        gather.outputs[0].replace_all_uses_with(rows)
        wide.producer().replace_input_with(0, gather.outputs[0])  # type: ignore[union-attr]
        gather.outputs[0].type = ir.TensorType(ir.DataType.INT8)
        graph.insert_after(gather, tape.nodes)
