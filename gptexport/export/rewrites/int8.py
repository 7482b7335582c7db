"""`--quantize int8`: linear layers in 8 bits, for ONNX Runtime's CPU provider.

Weights are int8, symmetric, one scale per output channel. Activations are quantized as they come, one scale per tensor
(com.microsoft.DynamicQuantizeMatMul), so outliers cost precision for the whole tensor: `smooth` moves them into the
weights first. A tied embedding is stored once: a row of it is an output channel of the head, and has the same scale.
"""

from __future__ import annotations

import onnx_ir as ir
import torch
import torch.nn as nn
from onnx_ir.tape import Tape

from gptexport.architectures import Architecture
from gptexport.architectures.base import Smoothing
from gptexport.export.irtools import MICROSOFT, constant, is_vector, only_reader, take_place, weight_behind
from gptexport.export.rewrites import Audit, counted
from gptexport.export.trace import Trace
from gptexport.recipe import Limits

QUANTIZED_MATMUL = "DynamicQuantizeMatMul"
SMOOTHING = 0.5  # alpha of SmoothQuant (arXiv 2211.10438): how much of an outlier moves from activation to weight


class Int8:
    """The quantizer of the precision int8: see gptexport.precision.Quantizer."""

    def prepare(self, model: nn.Module, architecture: Architecture, limits: Limits) -> str | None:
        """Smooth the activations, where the architecture says which linears read a norm and nothing else."""
        if architecture.smoothing is None:
            return (
                f"activations were not smoothed: which linears read a norm is not known of {architecture.title}, so "
                "outliers in its activations cost int8 more precision"
            )
        ids = calibration_ids(block_size=limits.block_size, vocab_size=limits.vocab_size)
        smooth(model, architecture.smoothing(model), ids)
        return None

    def quantize(self, trace: Trace) -> Audit:
        split_gemms(trace)
        return quantize_weights(trace)


def calibration_ids(*, block_size: int, vocab_size: int) -> torch.Tensor:
    """(B,T) ids to see activations on. Random ones do: outliers sit in channels, whatever the text is."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocab_size, (4, min(block_size, 256)), generator=generator)


@torch.no_grad()
def smooth(model: nn.Module, pairs: Smoothing, ids: torch.Tensor) -> None:
    """Even out the inputs of the linears behind norms, in place; the function stays what it was (SmoothQuant).

    Args:
        pairs: each norm, and all the linears that read it.
        ids: (B,T) to see the activations' range on.
    """
    peaks: dict[nn.Module, torch.Tensor] = {}

    def see(linear: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        peaks[linear] = inputs[0].abs().amax(dim=(0, 1))

    hooks = [linears[0].register_forward_pre_hook(see) for _, linears in pairs]
    try:
        model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    for norm, linears in pairs:
        weight_peak = torch.stack([linear.weight.abs().amax(dim=0) for linear in linears]).amax(dim=0).clamp(min=1e-5)
        scale = peaks[linears[0]].clamp(min=1e-5) ** SMOOTHING / weight_peak ** (1 - SMOOTHING)
        for name in ("weight", "bias"):
            value = getattr(norm, name, None)
            if value is not None:
                value.data = value / scale
        for linear in linears:
            linear.weight.data = linear.weight * scale


def split_gemms(trace: Trace) -> None:
    """Before: Gemm with a weight, as a linear over (N,C) is traced. After: MatMul, and Add where there is a bias."""
    graph = trace.graph
    for node in [node for node in graph if node.op_type == "Gemm"]:
        weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
        if weight is None or weight.name not in trace.weights or not plain or node.attributes.get_int("transA", 0) == 1:
            continue
        tape = Tape()
        turned = node.attributes.get_int("transB", 0) == 1
        read = _turn(trace, weight) if turned and only_reader(weight) is node else None
        right = read or (tape.op("Transpose", [weight], {"perm": [1, 0]}) if turned else weight)
        made = tape.op("MatMul", [node.inputs[0], right])
        made.type, made.shape = node.outputs[0].type, node.outputs[0].shape
        if bias is not None:
            made = tape.op("Add", [made, bias])
        graph.insert_before(node, tape.nodes)
        take_place(made, node.outputs[0])
        graph.remove(node, safe=True)


def _turn(trace: Trace, weight: ir.Value) -> ir.Value:
    """The weight (out,in), which nothing else reads, stored as (in,out)."""
    assert weight.name is not None
    name, tensor = f"{weight.name}.T", trace.weights.pop(weight.name)
    trace.weights[name] = tensor.t()
    stored = ir.Value(name=name, type=weight.type, shape=ir.Shape(tensor.t().shape))
    trace.graph.initializers[name] = stored
    return stored


def quantize_weights(trace: Trace) -> Audit:
    """Quantize every MatMul with a weight, and the embedding that shares its weight, in place.

    Returns: the audit: how many matmuls there were, and how many are in 8 bits.
    """
    graph = trace.graph
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
    return counted(QUANTIZED_MATMUL, len(matmuls), done)


def _add_of_bias(projected: ir.Value) -> tuple[ir.Node, ir.Value] | None:
    """The Add that alone reads what a matmul made, and the vector of weights that it adds."""
    add = only_reader(projected)
    if add is None or add.op_type != "Add":
        return None
    bias = next(value for value in add.inputs if value is not projected)
    return (add, bias) if bias is not None and is_vector(bias) else None


def _weight_name(trace: Trace, value: ir.Value | None) -> str | None:
    """The weight behind a matmul's right side: itself, or what is transposed into it."""
    weight = weight_behind(value)
    return weight.name if weight is not None and weight.name in trace.weights else None


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
