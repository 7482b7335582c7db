"""Hidden layers made a cache line wider, where their rows would otherwise all begin on the same sets of the cache.

A row of 3072 floats, GPT-2's hidden layer, is 12 KiB: element k of every row then falls into the same set of an L1
cache with 64 sets of 64 bytes, which has 8 or 12 ways. A matrix product reads that many rows side by side, and they
evict each other: docs/measurements/steps.md has what that costs on an AMD EPYC. The columns added are zeros on both
sides, so the function is exactly what it was.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
import torch.nn.functional as F

from gptexport.export.irtools import only_reader, unbiased
from gptexport.export.rewrites import Audit, counted
from gptexport.export.trace import Trace

SETS_BYTES = 4096  # of an L1 cache of 64 sets with lines of 64 bytes: x86's, for as long as its pages are 4 KiB
LINE = 16  # floats
ACTIVATIONS = {"Gelu", "Relu", "Sigmoid", "Tanh", "Softplus", "LeakyRelu", "Elu", "Swish"}
WIDENED = "hidden layers off one cache set"


@dataclass(frozen=True)
class _Hidden:
    """A layer between two matmuls, f(x @ into + bias) @ out with f elementwise, that nothing else reads."""

    into: ir.Value  # the weight, (C,width)
    bias: ir.Value | None  # (width)
    out: ir.Value  # the weight, (width,C)
    values: list[ir.Value]  # of (B,T,width)


def widen_hidden(trace: Trace) -> Audit:
    """Widen the float32 hidden layers of `trace`, in place, whose width is a multiple of a cache's sets.

    Returns: the audit: how many activations have such a width, and how many hidden layers were widened.
    """
    aliased = [node for node in trace.graph if node.op_type in ACTIVATIONS and _aliased(node.outputs[0])]
    found = [hidden for node in aliased if (hidden := _hidden(node)) is not None]
    for hidden in found:
        _pad(trace, hidden.into, (0, LINE))
        if hidden.bias is not None:
            _pad(trace, hidden.bias, (0, LINE))
        _pad(trace, hidden.out, (0, 0, 0, LINE))
        for value in hidden.values:
            assert value.shape is not None and isinstance(value.shape[-1], int)
            value.shape = ir.Shape([*value.shape[:-1], value.shape[-1] + LINE])
    return counted(WIDENED, len(aliased), len(found))


def _aliased(value: ir.Value) -> bool:
    width = value.shape[-1] if value.shape is not None and len(value.shape) == 3 else None
    return value.dtype == ir.DataType.FLOAT and isinstance(width, int) and width * 4 % SETS_BYTES == 0


def _hidden(activation: ir.Node) -> _Hidden | None:
    before, after = activation.inputs[0], activation.outputs[0]
    assert before is not None
    projected, bias = unbiased(before)
    values = [after, before, projected] if bias is not None else [after, before]
    into, out = projected.producer(), only_reader(after)
    if into is None or out is None or out.inputs[0] is not after:
        return None
    weights = [node.inputs[1] for node in (into, out) if node.op_type == "MatMul"]
    read_once = [weight for weight in weights if weight is not None and weight.is_initializer() and only_reader(weight)]
    if (
        len(read_once) < 2
        or not all(only_reader(value) for value in values)
        or (bias is not None and not only_reader(bias))
    ):
        return None
    return _Hidden(read_once[0], bias, read_once[1], values)


def _pad(trace: Trace, weight: ir.Value, padding: tuple[int, ...]) -> None:
    assert weight.name is not None
    trace.weights[weight.name] = F.pad(trace.weights[weight.name], padding)
    weight.shape = ir.Shape(trace.weights[weight.name].shape)
