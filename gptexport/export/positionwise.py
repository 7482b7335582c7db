"""Does an operation treat every position alike? What does not would see the new tokens of a cached step alone."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from gptexport.errors import ExportError
from gptexport.export.attention import OP_TYPE
from gptexport.export.irtools import number
from gptexport.export.sizes import has_length

_ELEMENTWISE = """
Abs Add And Cast Ceil Clip Cos Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity
LeakyRelu Less LessOrEqual Log Max Min Mish Mod Mul Neg Not Or Pow Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus
Softsign Sqrt Sub Swish Tanh Where Xor
"""
ELEMENTWISE = frozenset(_ELEMENTWISE.split())
LAYOUT = {"Constant", "Expand", "Flatten", "Reshape", "Shape", "Size", "Squeeze", "Transpose", "Unsqueeze"}
ALONG_AXIS = {  # and the axis where no attribute says it
    "Concat": 0,
    "CumSum": 0,
    "Gather": 0,
    "GatherElements": 0,
    "LogSoftmax": -1,
    "Softmax": -1,
    "Split": 0,
    "TopK": -1,
}
FROM_AXIS = {"LayerNormalization": -1, "RMSNormalization": -1}  # normalizes this axis and all after it
REDUCTIONS = {"ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare"}
PRODUCTS = {"MatMul": -1, "DynamicQuantizeMatMul": -1, "Gemm": 1}  # over this axis of the first input


def check_positionwise(
    graph: ir.Graph, on_tokens: set[ir.Value], *, but: set[ir.Value], known: Collection[ir.Node] = ()
) -> None:
    """Every operation on tokens treats positions alike, attention aside.

    Args:
        but: values whose readers are ours.
        known: nodes that are dealt with otherwise.

    Raises:
        ExportError: one looks across positions, or may.
    """
    found = sorted(
        {
            node.op_type
            for node in graph
            if any(value in on_tokens for value in node.inputs)
            and not any(value in but for value in node.inputs)
            and node not in known
            and _looks_across(node)
        }
    )
    if found:
        raise ExportError(
            f"the forward has {', '.join(found)} across positions; expected attention, and nothing else that looks "
            "across them"
        )


def _looks_across(node: ir.Node) -> bool:
    op, first = node.op_type, node.inputs[0]
    if op in ELEMENTWISE or op in LAYOUT or op == OP_TYPE:
        return False
    if first is None or first.shape is None:
        return True
    dims = list(first.shape)
    if op in ALONG_AXIS:
        axis = _constant(node, 1) if op == "CumSum" else node.attributes.get_int("axis", ALONG_AXIS[op])
        return axis is None or has_length(dims[axis])
    if op in FROM_AXIS:
        return any(has_length(dim) for dim in dims[node.attributes.get_int("axis", FROM_AXIS[op]) :])
    if op in PRODUCTS:
        return has_length(dims[PRODUCTS[op]])
    if op in REDUCTIONS or op == "Slice":
        axes = _axes(node, 3 if op == "Slice" else 1)
        return axes is None or any(has_length(dims[axis]) for axis in axes)
    return True


def _axes(node: ir.Node, index: int) -> list[int] | None:
    """Constant axes, of an input or an attribute; None: not known, or all."""
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    value = node.inputs[index] if len(node.inputs) > index else None
    tensor = value.const_value if value is not None else None
    return [int(axis) for axis in tensor.numpy().reshape(-1)] if tensor is not None else None


def _constant(node: ir.Node, index: int) -> int | None:
    return number(node.inputs[index]) if len(node.inputs) > index else None
