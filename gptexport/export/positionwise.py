"""Does an operation treat every position alike? What does not would see the new tokens of a cached step alone."""

from __future__ import annotations

import re
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
    "ArgMax": 0,
    "ArgMin": 0,
    "Concat": 0,
    "CumSum": 0,
    "Gather": 0,
    "GatherBlockQuantized": 0,
    "GatherElements": 0,
    "LogSoftmax": -1,
    "ScatterElements": 0,
    "Softmax": -1,
    "Split": 0,
    "TopK": -1,
}
FROM_AXIS = {"LayerNormalization": -1, "RMSNormalization": -1}  # normalizes this axis and all after it
REDUCTIONS = {"ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare"}
BY_INDEX = {"Gather", "GatherND", "ScatterND"}
PRODUCTS = {
    "MatMul": -1,
    "DynamicQuantizeMatMul": -1,
    "MatMulNBits": -1,
    "Gemm": 1,
}  # over this axis of the first input

_ADVICE = {  # what the user could do about an operation
    OP_TYPE: "There would be a cache without it",
    "Conv": "A convolution over tokens has no cache here; without it there would be one",
    "CumSum": "A running sum is a state of its own, for which there is no cache here; attention has one",
    "Pad": "Tokens that are shifted have no cache here; without the shift there would be one",
}


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
    for node in graph:
        if not any(value in on_tokens for value in node.inputs) or any(value in but for value in node.inputs):
            continue
        if node in known:
            continue
        if _looks_across(node) and not all(map(_is_shape, node.outputs)):
            raise ExportError(
                f"{node.op_type} ({node.outputs[0].name}) looks across positions, of which a step with a cache has "
                f"the new ones alone. {_ADVICE.get(node.op_type, _ADVICE[OP_TYPE])}"
            )


def _looks_across(node: ir.Node) -> bool:
    op, first = node.op_type, node.inputs[0]
    if op in ELEMENTWISE:
        return len(node.inputs) > 1 and any(map(_is_choice, node.inputs))
    if op in LAYOUT or op in (OP_TYPE, "NonZero"):
        return False
    if op in BY_INDEX and _is_choice(node.inputs[1]):
        return False
    if first is None or first.shape is None:
        return True
    dims = list(first.shape)
    if op in ALONG_AXIS:
        axis = _constant(node, 1) if op == "CumSum" else node.attributes.get_int("axis", ALONG_AXIS[op])
        return axis is None or _is_of_positions(dims[axis])
    if op in FROM_AXIS:
        return any(_is_of_positions(dim) for dim in dims[node.attributes.get_int("axis", FROM_AXIS[op]) :])
    if op in PRODUCTS:
        return _is_of_positions(dims[PRODUCTS[op]])
    if op in REDUCTIONS or op == "Slice":
        axes = _axes(node, 3 if op == "Slice" else 1)
        return axes is None or any(_is_of_positions(dims[axis]) for axis in axes)
    if op == "GatherND":
        indices = node.inputs[1].shape if node.inputs[1] is not None else None
        return indices is None or any(_is_of_positions(dim) for dim in dims[: _last(indices)])
    return op != "BatchNormalization" or node.attributes.get_int("training_mode", 0) == 1


def _is_of_positions(dim: object) -> bool:
    """Whether an axis is of positions, or of some that a condition chooses: u0, or of a size that is not known."""
    return has_length(dim) or re.fullmatch(r"u\d+|None", str(dim)) is not None


def _is_choice(value: ir.Value | None) -> bool:
    """The places of what a condition chooses, as NonZero gives them, and nothing computed from them.

    Experts take their tokens by them and put them back: whatever is read and written by them alone stays apart.
    """
    node = value.producer() if value is not None else None
    if node is None:
        return False
    if node.op_type == "Concat":
        return all(map(_is_choice, node.inputs))
    layout = node.op_type in LAYOUT or node.op_type in ("Cast", "Identity", "Slice")
    alone = node.op_type == "Max" and len(node.inputs) == 1
    return node.op_type == "NonZero" or ((layout or alone) and _is_choice(node.inputs[0]))


def _is_shape(value: ir.Value) -> bool:
    """It tells how large something is, and nothing else of the graph."""
    uses = list(value.uses())
    return not value.is_graph_output() and all(
        (use.node.op_type in ("Expand", "Reshape") and use.idx == 1)
        or (use.node.op_type == "Concat" and _is_shape(use.node.outputs[0]))
        for use in uses
    )


def _last(shape: ir.Shape) -> int | None:
    """How many axes the indices of a GatherND tell; None: any."""
    return shape[-1] if isinstance(shape[-1], int) else None


def _axes(node: ir.Node, index: int) -> list[int] | None:
    """Constant axes, of an input or an attribute; None: not known, or all."""
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    value = node.inputs[index] if len(node.inputs) > index else None
    tensor = value.const_value if value is not None else None
    return [int(axis) for axis in tensor.numpy().reshape(-1)] if tensor is not None else None


def _constant(node: ir.Node, index: int) -> int | None:
    return number(node.inputs[index]) if len(node.inputs) > index else None
