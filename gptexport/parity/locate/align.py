"""Where a model's modules are in its graph: found by the names of their weights, whatever operators a target uses."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import onnx
import torch.nn as nn

from gptexport.parity.measure.graph_index import GraphIndex, stored_names

# What computes a module and nothing else. Behind any other operator that reads its weights (BiasGelu, a packed
# attention) the module's own output does not exist in the graph.
PLAIN = {
    "Add", "Cast", "Gather", "GatherBlockQuantized", "Gemm", "LayerNormalization", "MatMul", "MatMulInteger",
    "MatMulIntegerToFloat", "MatMulNBits", "Mul", "FusedMatMul", "RMSNormalization", "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
}  # fmt: skip
REWRAPS = {"Cast", "DequantizeLinear", "DynamicQuantizeLinear", "Identity", "QuantizeLinear"}


# By a module of PyTorch's own, the operators that are that module and nothing else: what goes into the operator is what
# goes into the module. A norm of somebody's own has read its input before it comes to its weight.
STANDARD: dict[type[nn.Module], set[str]] = {
    nn.Linear: {"MatMul", "Gemm", "FusedMatMul", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits"},
    nn.Embedding: {"Gather", "GatherBlockQuantized"},
    nn.LayerNorm: {"LayerNormalization", "SkipLayerNormalization"},
    nn.RMSNorm: {"RMSNormalization", "SimplifiedLayerNormalization"},
}


@dataclass(frozen=True)
class Boundary:
    """The values that go into and come out of one module; None where the graph has no such value.

    `certain`: the operators say so by themselves. Else it is a guess, to be proved on a graph that is right.
    """

    input: str | None
    output: str | None
    certain: bool = False


def find_boundaries(index: GraphIndex, model: nn.Module) -> dict[str, Boundary]:
    """The boundary of each module of `model` that has weights of its own."""
    boundaries = {}
    for name, module in model.named_modules(remove_duplicate=False):
        owned = [parameter for parameter in module._parameters.values() if parameter is not None]
        weights = {stored for parameter in owned for stored in stored_names(index, model, parameter)}
        is_embedding = isinstance(module, nn.Embedding)  # a tied weight is read by the embedding and by the head
        nodes = [node for node in index.readers(weights) if node.op_type.startswith("Gather") == is_embedding]
        if boundary := _boundary(index, nodes, weights):
            hooked = bool(module._forward_hooks)  # noqa: SLF001 - which may change the output; it is said nowhere else
            standard = nodes[0].op_type in STANDARD.get(type(module), ()) and not hooked
            boundaries[name] = replace(boundary, certain=standard)
    return boundaries


def _boundary(index: GraphIndex, nodes: list[onnx.NodeProto], weights: set[str]) -> Boundary | None:
    if not nodes or any(count > 1 for count in _reads(index, nodes, weights).values()):
        return None  # the module is run twice: there is no one boundary
    first, last = nodes[0], nodes[0]
    for node in nodes[1:]:  # the bias of a linear, the scales of a quantized one: a chain, each from the one before
        if _leads_to(index, last, node):
            last = node
        elif not _leads_to(index, first, node):
            return None  # read in two places: there is no one boundary
    if first.op_type == "SkipLayerNormalization":  # adds, then normalizes; its last output is the sum
        total = first.output[3] if len(first.output) > 3 else None
        return Boundary(total or None, first.output[0])
    data = [name for name in first.input if name and name not in index.origins]
    plain = all(node.op_type in PLAIN for node in nodes)
    return Boundary(_unwrapped(index, data[0]), last.output[0] if plain else None)


def _reads(index: GraphIndex, nodes: list[onnx.NodeProto], weights: set[str]) -> Counter[str]:
    """At how many nodes each weight meets data."""
    return Counter(w for node in nodes for w in weights & set().union(*(index.origins.get(i, ()) for i in node.input)))


def _leads_to(index: GraphIndex, early: onnx.NodeProto, late: onnx.NodeProto, depth: int = 4) -> bool:
    if early is late:
        return True
    makers = [index.producer[name] for name in late.input if name in index.producer and name not in index.origins]
    return depth > 0 and any(_leads_to(index, early, maker, depth - 1) for maker in makers)


def _unwrapped(index: GraphIndex, value: str) -> str:
    """The value before it was quantized or cast for the operator that reads it."""
    node = index.producer.get(value)
    while node is not None and node.op_type in REWRAPS and node.input[0] not in index.origins:
        value = node.input[0]
        node = index.producer.get(value)
    return value
