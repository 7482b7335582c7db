"""What ONNX Runtime's CPU and CUDA providers fuse alike, and how a fusion finds its nodes and takes their place.

Each operation named here is ONNX Runtime's own (com.microsoft; docs/ContribOperators.md in its repository).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import onnx_ir as ir

MICROSOFT = "com.microsoft"
HEAD = "FusedMatMul"
GELU_TANH, GELU_ERF_BIAS, GELU_ERF = "FastGelu", "BiasGelu", "Gelu"


def expected_gelus(graph: ir.Graph) -> dict[str, int]:
    """By the operator that it will become, how many GELUs there are."""
    return Counter(
        GELU_TANH if _is_tanh(node) else GELU_ERF_BIAS if _biased(node.inputs[0]) else GELU_ERF
        for node in graph
        if node.op_type == "Gelu"
    )


def fuse_gelus(graph: ir.Graph) -> None:
    """Each GELU and the sum with a bias before it become one node."""
    for node in [node for node in graph if node.op_type == "Gelu" and node.domain == ""]:
        value = node.inputs[0]
        assert value is not None
        projected, bias = unbiased(value)
        op = GELU_TANH if _is_tanh(node) else GELU_ERF_BIAS if bias is not None else GELU_ERF
        fused = _insert_before(node, op, [projected] if bias is None else [projected, bias], {})
        replace(node.outputs[0], fused.outputs[0])


def fuse_tied_heads(graph: ir.Graph) -> None:
    """x @ Transpose(wte) with the transposition inside, so that ONNX Runtime packs what the embedding reads, as it is.

    It else folds the Transpose when it loads, and holds a second (C,V) for as long as that takes, or for ever where
    weights are not packed. Since ONNX Runtime 1.31 FusedMatMul packs a transposed weight; before, T = 1 cost twice.
    """
    for node in tied_heads(graph):
        assert node.inputs[1] is not None
        (weight,) = node.inputs[1].producer().inputs  # type: ignore[union-attr]
        fused = _insert_before(node, HEAD, [node.inputs[0], weight], {"transB": 1})
        take_place(fused.outputs[0], node.outputs[0])
        node.graph.remove(node, safe=True)  # type: ignore[union-attr]


def tied_heads(graph: ir.Graph) -> list[ir.Node]:
    """The MatMuls, in the loop of the score graph too, with a weight that is turned for them alone."""
    return [
        node
        for node in graph.all_nodes()
        if node.op_type == "MatMul"
        and (weight := input_of(node.inputs[1], "Transpose")) is not None
        and weight.is_initializer()
        and weight.dtype is not None
        and weight.dtype.is_floating_point()
    ]


def _is_tanh(gelu: ir.Node) -> bool:
    return gelu.attributes.get_string("approximate", "none") == "tanh"


def _biased(value: ir.Value | None) -> bool:
    return value is not None and unbiased(value)[1] is not None


def unbiased(value: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """x and b of x + b, where b is a vector of weights that nobody else's sum needs; else the value itself."""
    add = value.producer()
    if add is not None and add.op_type == "Add" and len(value.uses()) == 1:
        for x, b in (add.inputs, add.inputs[::-1]):
            if x is not None and b is not None and b.is_initializer() and b.shape is not None and len(b.shape) == 1:
                return x, b
    return value, None


def heads_merged(attention: ir.Node) -> ir.Value | None:
    """The (B,T,C) that the heads' outputs become."""
    transposed = _only_user(attention.outputs[0], "Transpose")
    merged = _only_user(transposed.outputs[0], "Reshape") if transposed is not None else None
    return merged.outputs[0] if merged is not None else None


def input_of(value: ir.Value | None, op_type: str) -> ir.Value | None:
    """What went into the operation that made `value`, if it is an `op_type`."""
    node = value.producer() if value is not None else None
    return node.inputs[0] if node is not None and node.op_type == op_type else None


def _only_user(value: ir.Value, op_type: str) -> ir.Node | None:
    nodes = [use.node for use in value.uses()]
    return nodes[0] if len(nodes) == 1 and nodes[0].op_type == op_type else None


def _insert_before(
    node: ir.Node, op: str, inputs: list[ir.Value | None], attributes: Mapping[str, int | float]
) -> ir.Node:
    fused = ir.node(op, inputs, attributes, domain=MICROSOFT)
    assert node.graph is not None
    node.graph.insert_before(node, fused)
    return fused


def replace(old: ir.Value, new: ir.Value) -> None:
    """Everybody who read `old` reads `new`, which inherits what is known of it."""
    new.shape, new.type = old.shape, old.type
    old.replace_all_uses_with(new)


def take_place(new: ir.Value, old: ir.Value) -> None:
    """As `replace`, and `new` is called as `old` was, also where it leaves the graph."""
    new.shape, new.type = old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name, old.name = old.name, None
