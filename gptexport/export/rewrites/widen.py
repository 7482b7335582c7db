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

from gptexport.export.irtools import is_number, is_vector, only_reader, producer
from gptexport.export.rewrites import Audit, counted
from gptexport.export.trace import Trace

SETS_BYTES = 4096  # of an L1 cache of 64 sets with lines of 64 bytes: x86's, for as long as its pages are 4 KiB
LINE = 16  # floats
ACTIVATIONS = {"Gelu", "Relu", "Sigmoid", "Tanh", "Softplus", "LeakyRelu", "Elu", "Swish"}
COMBINED = {"Mul", "Pow"}  # of activations: a gate, a square, SiLU
WIDENED = "hidden layers off one cache set"


@dataclass(frozen=True)
class _Hidden:
    """What lies between matmuls, elementwise and read by nothing else: f(x @ into + bias, ...) @ out."""

    into: list[ir.Value]  # the weights, (C,width): one, or a gate's and what it gates
    biases: list[ir.Value]  # (width)
    out: ir.Value  # the weight, (width,C)
    values: list[ir.Value]  # of (B,T,width)


def widen_hidden(trace: Trace) -> Audit:
    """Widen the float32 hidden layers of `trace`, in place, whose width is a multiple of a cache's sets.

    Returns: the audit: how many matmuls read an activation of such a width, and how many hidden layers were widened.
    """
    readers = [node for node in trace.graph if node.op_type == "MatMul" and _is_hidden(node.inputs[0])]
    found = [hidden for node in readers if (hidden := _hidden(node)) is not None]
    for hidden in found:
        for weight in (*hidden.into, *hidden.biases):
            pad_weight(trace, weight, (0, LINE))
        pad_weight(trace, hidden.out, (0, 0, 0, LINE))
        for value in hidden.values:
            assert value.shape is not None and isinstance(value.shape[-1], int)
            value.shape = ir.Shape([*value.shape[:-1], value.shape[-1] + LINE])
    return counted(WIDENED, len(readers), len(found))


def _is_hidden(value: ir.Value | None) -> bool:
    """Of such a width, and an activation's, or made of one."""
    return value is not None and _aliased(value) and _is_activated(value)


def _is_activated(value: ir.Value | None) -> bool:
    node = producer(value)
    if node is None:
        return False
    return node.op_type in ACTIVATIONS or (node.op_type in COMBINED and any(map(_is_activated, node.inputs)))


def _aliased(value: ir.Value) -> bool:
    width = value.shape[-1] if value.shape is not None and len(value.shape) == 3 else None
    return value.dtype == ir.DataType.FLOAT and isinstance(width, int) and width * 4 % SETS_BYTES == 0


def _hidden(reader: ir.Node) -> _Hidden | None:
    """What lies before the matmul that reads it; None where any of it is read elsewhere, or is no such layer."""
    end, out = reader.inputs
    assert end is not None
    into: list[ir.Value] = []
    biases: list[ir.Value] = []
    values: list[ir.Value] = []
    nodes, waiting = {reader}, [end]
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if value in values:
            continue
        if node is None:
            return None
        values.append(value)
        nodes.add(node)
        if node.op_type == "MatMul" and (weight := node.inputs[1]) is not None:
            into.append(weight)
        elif node.op_type == "Add" and (vectors := [v for v in node.inputs if v is not None and is_vector(v)]):
            biases.append(vectors[0])
            waiting += [v for v in node.inputs if v is not None and v is not vectors[0]]
        elif node.op_type in (*ACTIVATIONS, *COMBINED):
            parts = [v for v in node.inputs if v is not None and not is_number(v)]
            if any(part.shape != value.shape for part in parts) or not _tame(node):
                return None
            waiting += parts
        else:
            return None
    weights = [*into, *biases, out]
    if not all(weight is not None and weight.is_initializer() and only_reader(weight) for weight in weights):
        return None
    if any(value.is_graph_output() or any(use.node not in nodes for use in value.uses()) for value in values):
        return None
    assert out is not None
    return _Hidden(into, biases, out, values)


def _tame(node: ir.Node) -> bool:
    """Finite at zero, as what is added to a layer must be: a negative power is not."""
    exponent = node.inputs[1].const_value if node.op_type == "Pow" and node.inputs[1] is not None else None
    return node.op_type != "Pow" or (exponent is not None and exponent.numpy().item() > 0)


def pad_weight(trace: Trace, weight: ir.Value, padding: tuple[int, ...]) -> None:
    """Zeros around a weight, in place; `padding` as of torch's F.pad."""
    assert weight.name is not None
    trace.weights[weight.name] = F.pad(trace.weights[weight.name], padding)
    weight.shape = ir.Shape(trace.weights[weight.name].shape)
