"""What a graph computes from sizes alone - positions, rotary tables, masks - and what that is for a given B and T."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from gptexport.errors import ExportError
from gptexport.export.rewrites.float32 import to_float32
from gptexport_runtime.contract.names import AXIS_B, AXIS_T


def has_length(dim: object) -> bool:
    """Whether a dimension depends on T."""
    return re.search(rf"\b{AXIS_T}\b", str(dim)) is not None


def length_axes(value: ir.Value) -> list[int]:
    """The axes of a value that are T long, or that depend on T."""
    return [axis for axis, dim in enumerate(value.shape or ()) if has_length(dim)]


@dataclass(frozen=True, eq=False)
class Sizes:
    """Which values of a graph depend on token ids, and the others evaluated.

    weights: by initializer.
    positions: (B,T), where a graph counts them from a cache: they differ from row to row, as tokens do.
    """

    graph: ir.Graph
    weights: Mapping[str, torch.Tensor]
    positions: ir.Value | None = None

    @property
    def on_tokens(self) -> set[ir.Value]:
        """The values that depend on what the inputs hold, not merely on how large they are."""
        found = {*self.graph.inputs, *([self.positions] if self.positions is not None else [])}
        for node in self.graph:
            if node.op_type not in ("Shape", "Size") and any(value in found for value in node.inputs):
                found.update(node.outputs)
        return found

    def evaluate(self, value: ir.Value, *, T: int) -> NDArray[Any]:
        """A value that depends on no token, for B = 1 and T tokens; in float32 where the graph has 16 bits.

        Raises:
            ExportError: it cannot be evaluated.
        """
        if value.is_initializer():
            return onnx.numpy_helper.to_array(self._tensor(value))
        nodes = list(self._behind(value, set()))
        stored = {v.name: v for node in nodes for v in node.inputs if v is not None and v.is_initializer()}
        protos = [_shape_of(node, T) if node.op_type == "Shape" else ir.to_proto(node) for node in nodes]
        output = onnx.ValueInfoProto(name=value.name)
        graph = onnx.helper.make_graph(protos, "sizes", [], [output], [self._tensor(v) for v in stored.values()])
        opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in self.graph.opset_imports.items()]
        model = onnx.helper.make_model(graph, opset_imports=opsets)
        to_float32(model)
        try:
            (result,) = ReferenceEvaluator(model).run([value.name], {})
        except Exception as error:  # the reference evaluator's own errors share no base
            raise ExportError(f"{value.name}, which depends on sizes alone, cannot be evaluated: {error}") from error
        return np.asarray(result)

    def _behind(self, value: ir.Value, seen: set[ir.Node]) -> Iterator[ir.Node]:
        """The nodes that compute a value, in order, as far as Shapes of what depends on tokens."""
        node = value.producer()
        if node is None or node in seen:
            return
        seen.add(node)
        if node.op_type != "Shape":
            for source in node.inputs:
                if source is not None:
                    yield from self._behind(source, seen)
        yield node

    def _tensor(self, value: ir.Value) -> onnx.TensorProto:
        assert value.name is not None
        if value.name in self.weights:
            tensor = self.weights[value.name]
            tensor = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
            return onnx.numpy_helper.from_array(tensor.contiguous().numpy(), value.name)
        if value.const_value is None:
            raise ExportError(f"{value.name} is a weight that is not in memory any more")
        return ir.to_proto(ir.Tensor(value.const_value.numpy(), name=value.name))


def _shape_of(node: ir.Node, T: int) -> onnx.NodeProto:
    """A Shape node as the Constant that it is for B = 1 and T tokens."""
    value = node.inputs[0]
    if value is None or value.shape is None:
        raise ExportError("a shape is not known, so what depends on it cannot be evaluated")
    dims = [_number(dim, T) for dim in value.shape]
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(dims))
    name = node.outputs[0].name
    assert name is not None
    return onnx.helper.make_node(
        "Constant", [], [name], value=onnx.numpy_helper.from_array(np.array(dims[start:end], np.int64))
    )


def _number(dim: int | ir.SymbolicDim, T: int) -> int:
    value = dim if isinstance(dim, int) else dim.evaluate({AXIS_B: 1, AXIS_T: T})
    if not isinstance(value, int):
        raise ExportError(f"the size {dim} is not made of B and T")
    return value
