"""Arithmetic in float32 over weights that are stored in 16 bits.

For a backend that chooses by itself in which precision it computes, and is told so when the graph is opened. Weights
take half the disk, and what the graph returns is not rounded to 16 bits on the way.
"""

from __future__ import annotations

import onnx_ir as ir

from gptexport.export.rewrites import Audit, Rewrite, counted
from gptexport.recipe import Limits

HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
WIDE = ir.DataType.FLOAT
STORED = "weights widened as they are read"


def widen_arithmetic(graph: ir.Graph, _limits: Limits) -> Audit:
    """Before: everything in 16 bits. After: everything in float32, behind a Cast of each weight."""
    stored = [value for value in graph.initializers.values() if value.dtype in HALF]
    nodes = list(ir.traversal.RecursiveGraphIterator(graph))
    for value in graph.inputs:
        _widen_type(value)
    for node in nodes:
        for value in (*node.outputs, *(each for inner in _graphs(node) for each in inner.inputs)):
            _widen_type(value)
        _widen_attributes(node)
    for node in nodes:
        _drop_cast(node)
    for weight in stored:
        cast = ir.node("Cast", [weight], {"to": WIDE})
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(WIDE), weight.shape
        weight.replace_all_uses_with(cast.outputs[0])
        cast.replace_input_with(0, weight)
        graph.insert_before(graph[0], cast)
    return counted(STORED, len(stored), len(stored))


def _graphs(node: ir.Node) -> list[ir.Graph]:
    """Those within a Loop or an If."""
    return [attribute.as_graph() for attribute in node.attributes.values() if attribute.type == ir.AttributeType.GRAPH]


def _widen_type(value: ir.Value) -> None:
    if value.dtype in HALF:
        value.type = ir.TensorType(WIDE)


def _widen_attributes(node: ir.Node) -> None:
    """A type of 16 bits becomes float32; a constant in 16 bits is one in float32."""
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.INT and name in ("to", "dtype") and attribute.as_int() in HALF:
            node.attributes[name] = ir.AttrInt64(name, WIDE)
        elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in HALF:
            wide = ir.tensor(attribute.as_tensor().numpy().astype(WIDE.numpy()))
            node.attributes[name] = ir.AttrTensor(name, wide)
            node.outputs[0].const_value = wide


def _drop_cast(node: ir.Node) -> None:
    """What is cast to float32 and is float32 already need not be."""
    if node.op_type != "Cast" or node.inputs[0] is None or node.graph is None:
        return
    before, after = node.inputs[0], node.outputs[0]
    if before.dtype == WIDE == after.dtype and not before.is_initializer() and not after.is_graph_output():
        after.replace_all_uses_with(before)
        node.graph.remove(node, safe=True)


WIDEN_ARITHMETIC = Rewrite(STORED, widen_arithmetic)
