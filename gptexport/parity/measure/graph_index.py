"""Producer and readers of each value of an ONNX graph, and which initializer is which parameter."""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx
import torch
import torch.nn as nn

LAYOUT = {
    "Cast", "Concat", "Constant", "ConstantOfShape", "Expand", "Gather", "Identity", "Range", "Reshape", "Shape",
    "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip


class GraphIndex:
    """Producers and readers of values, and which values come from weights alone."""

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


def stored_names(index: GraphIndex, model: nn.Module, parameter: torch.Tensor) -> set[str]:
    """The graph's initializers of a parameter: a tied one has one of several names, a packed one a suffix."""
    names = [name for name, value in model.named_parameters(remove_duplicate=False) if value is parameter]
    pattern = re.compile("(" + "|".join(map(re.escape, names)) + r")([._].*)?")
    return {name for name in index.initializers if pattern.fullmatch(name)}
