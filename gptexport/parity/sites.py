"""Where a model's modules are in its graph: found by the names of their weights, whatever operators a target uses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import onnx
import torch
import torch.nn as nn

# What computes a module and nothing else. Behind any other operator that reads its weights (BiasGelu, a packed
# attention) the module's own output does not exist in the graph.
PLAIN = {
    "Add", "Cast", "Gather", "GatherBlockQuantized", "Gemm", "LayerNormalization", "MatMul", "MatMulInteger",
    "MatMulIntegerToFloat", "MatMulNBits", "Mul", "FusedMatMul", "RMSNormalization", "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
}  # fmt: skip
REWRAPS = {"Cast", "DequantizeLinear", "DynamicQuantizeLinear", "Identity", "QuantizeLinear"}
LAYOUT = {
    "Cast", "Concat", "Constant", "ConstantOfShape", "Expand", "Gather", "Identity", "Range", "Reshape", "Shape",
    "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip


@dataclass(frozen=True)
class Site:
    """The values that go into and come out of one module; None where the graph has no such value."""

    input: str | None
    output: str | None


class GraphIndex:
    """Who makes and who reads each value of a graph, and which values come from weights alone."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.inputs = {value.name for value in graph.input}
        self.nodes = list(graph.node)
        self.producer = {name: node for node in graph.node for name in node.output if name}
        self.initializers = [tensor.name for tensor in graph.initializer]
        self.origins: dict[str, set[str]] = {name: {name} for name in self.initializers}  # of values of weights alone
        for node in graph.node:
            reads = [name for name in node.input if name]
            if reads and all(name in self.origins for name in reads):
                made = set().union(*(self.origins[name] for name in reads))
                self.origins.update({name: made for name in node.output if name})

    def readers(self, weights: set[str]) -> Iterator[onnx.NodeProto]:
        """The nodes at which these weights meet data, in order of execution."""
        for node in self.nodes:
            data = [name for name in node.input if name and name not in self.origins]
            if data and any(self.origins.get(name, set()) & weights for name in node.input):
                yield node

    def operators_between(self, known: set[str], value: str) -> list[str]:
        """The operators that lead to `value` from known values, but for those that only move data about."""
        found: list[str] = []
        seen: set[str] = set()
        stack = [value]
        while stack:
            name = stack.pop()
            node = self.producer.get(name)
            if name in seen or node is None or name in self.origins or (name in known and name != value):
                continue
            seen.add(name)
            if node.op_type not in LAYOUT and node.op_type not in found:
                found.append(node.op_type)
            stack += node.input
        return found


def find_sites(index: GraphIndex, model: nn.Module) -> dict[str, Site]:
    """The site of each module of `model` that has weights of its own."""
    sites = {}
    for name, module in model.named_modules(remove_duplicate=False):
        owned = [parameter for parameter in module._parameters.values() if parameter is not None]
        weights = {stored for parameter in owned for stored in stored_names(index, model, parameter)}
        is_embedding = isinstance(module, nn.Embedding)  # a tied weight is read by the embedding and by the head
        nodes = [node for node in index.readers(weights) if node.op_type.startswith("Gather") == is_embedding]
        if site := _site(index, nodes):
            sites[name] = site
    return sites


def stored_names(index: GraphIndex, model: nn.Module, parameter: torch.Tensor) -> set[str]:
    """The graph's initializers of a parameter: a tied one has one of several names, a packed one a suffix."""
    names = [name for name, value in model.named_parameters(remove_duplicate=False) if value is parameter]
    pattern = re.compile("(" + "|".join(map(re.escape, names)) + r")([._].*)?")
    return {name for name in index.initializers if pattern.fullmatch(name)}


def _site(index: GraphIndex, nodes: list[onnx.NodeProto]) -> Site | None:
    if not nodes:
        return None
    first, last = nodes[0], nodes[0]
    for node in nodes[1:]:  # the bias of a linear, the scales of a quantized one: a chain, each from the one before
        if _leads_to(index, last, node):
            last = node
        elif not _leads_to(index, first, node):
            return None  # read in two places: no one site
    if first.op_type == "SkipLayerNormalization":  # adds, then normalizes; its last output is the sum
        total = first.output[3] if len(first.output) > 3 else None
        return Site(total or None, first.output[0])
    data = [name for name in first.input if name and name not in index.origins]
    plain = all(node.op_type in PLAIN for node in nodes)
    return Site(_unwrapped(index, data[0]), last.output[0] if plain else None)


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
