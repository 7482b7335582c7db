"""A PyTorch program on its way to the exporter, which would round its numbers and refuse a shared key head.

PyTorch computes `x * 0.797884` of 16-bit x in float32 and rounds the product once; ONNX's Mul takes operands of one
type, so the exporter rounds the number first: 0.797884 becomes 0.796875 in bfloat16.
"""

from __future__ import annotations

import torch
from torch.fx import Node
from torch.fx.node import map_arg

HALF = (torch.float16, torch.bfloat16)
# These choose or bound, and round what they choose: the number may as well be rounded before.
CHOOSING = {"masked_fill", "where", "clamp", "clamp_min", "clamp_max", "maximum", "minimum"}


def say_grouped_queries(program: torch.export.ExportedProgram) -> None:
    """One key head for all queries, which scaled_dot_product_attention broadcasts (Falcon), is said to be grouped."""
    for node in program.graph_module.graph.nodes:
        if node.target is torch.ops.aten.scaled_dot_product_attention.default:
            query, key, value = (argument.meta["val"] for argument in node.args[:3])
            if query.dim() == 4 and query.shape[1] != 1 and key.shape[1] == value.shape[1] == 1:
                node.kwargs = {**node.kwargs, "enable_gqa": True}


def keep_float32_numbers(program: torch.export.ExportedProgram) -> None:
    """Let elementwise operations of `program` that a number in 16 bits would change compute in float32, in place.

    Those are operations with a 16-bit result and a Python number, or a float32 tensor without axes, which PyTorch
    treats alike. Their result is rounded to 16 bits, as eager rounds it.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if _rounds_a_number(node):
            _in_float32(graph, node)
    graph.lint()


def _rounds_a_number(node: Node) -> bool:
    target, result = node.target, node.meta.get("val")
    if torch.Tag.pointwise not in getattr(target, "tags", ()):
        return False
    if not isinstance(result, torch.Tensor) or result.dtype not in HALF:
        return False
    if str(target).split(".")[1] in CHOOSING:
        return False
    return any(_changes(operand, result.dtype) for operand in (*node.args, *node.kwargs.values()))


def _changes(operand: object, dtype: torch.dtype) -> bool:
    """Whether rounding to `dtype` makes another number of it."""
    if isinstance(operand, Node):
        value = operand.meta.get("val")
        return isinstance(value, torch.Tensor) and value.dim() == 0 and value.dtype in (torch.float32, torch.float64)
    return isinstance(operand, float) and torch.tensor(operand, dtype=dtype).double().item() != operand


def _in_float32(graph: torch.fx.Graph, node: Node) -> None:
    half = node.meta["val"].dtype

    def widened(operand: Node) -> Node:
        value = operand.meta.get("val")
        is_half = isinstance(value, torch.Tensor) and value.dtype in HALF
        return _cast(graph, operand, torch.float32) if is_half else operand

    with graph.inserting_before(node):
        node.args, node.kwargs = map_arg(node.args, widened), map_arg(node.kwargs, widened)
    node.meta["val"] = node.meta["val"].to(torch.float32)
    with graph.inserting_after(node):
        rounded = _cast(graph, node, half)
    node.replace_all_uses_with(rounded, delete_user_cb=lambda user: user is not rounded)


def _cast(graph: torch.fx.Graph, value: Node, dtype: torch.dtype) -> Node:
    made = graph.call_function(torch.ops.aten.to.dtype, (value, dtype))
    made.meta["val"] = value.meta["val"].to(dtype)
    return made
