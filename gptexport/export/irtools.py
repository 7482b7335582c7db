"""Reading and changing a graph of onnx_ir: the few things that every pass needs. Nothing in here knows of a model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

MICROSOFT = "com.microsoft"  # the domain of ONNX Runtime's own operators: docs/ContribOperators.md in its repository


def constant(tape: Tape, value: int | list[int], dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
    """A Constant node: a scalar, or a vector."""
    tensor = ir.tensor(np.array(value, dtype.numpy()))
    made = tape.op("Constant", [], {"value": tensor})
    made.const_value, made.type, made.shape = tensor, ir.TensorType(tensor.dtype), ir.Shape(np.shape(value))
    return made


def number_like(tape: Tape, value: float, dtype: ir.DataType) -> ir.Value:
    """A Constant node: a scalar of a type of floats."""
    return tape.op("Constant", [], {"value": ir.tensor(np.array(value, dtype.numpy()))})


def size_of(tape: Tape, value: ir.Value, axis: int) -> ir.Value:
    """(1) int64: how long `value` is along an axis, which ONNX Runtime knows on the host."""
    return tape.op("Shape", [value], {"start": axis, "end": axis + 1})


def producer(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None else None


def input_of(value: ir.Value | None, op_type: str) -> ir.Value | None:
    """What went into the operation that made `value`, if it is an `op_type`."""
    node = producer(value)
    return node.inputs[0] if node is not None and node.op_type == op_type else None


def only_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads `value`; None where there are several, or it leaves the graph."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def number(value: ir.Value | None) -> int | None:
    """The integer that a value is, if the graph says so."""
    tensor = value.const_value if value is not None else None
    return int(tensor.numpy().item()) if tensor is not None and tensor.size == 1 else None


def is_number(value: ir.Value) -> bool:
    """One number that the graph itself holds."""
    return value.const_value is not None and value.const_value.size == 1


def is_vector(value: ir.Value | None) -> bool:
    """A weight of one axis, such as a bias."""
    return value is not None and value.is_initializer() and value.shape is not None and len(value.shape) == 1


def unbiased(value: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """x and b of x + b, where b is a vector of weights and nothing else reads x + b; else the value itself."""
    add = value.producer()
    if add is not None and add.op_type == "Add" and len(value.uses()) == 1:
        for x, b in (add.inputs, add.inputs[::-1]):
            if x is not None and b is not None and is_vector(b):
                return x, b
    return value, None


def weight_behind(value: ir.Value | None) -> ir.Value | None:
    """The initializer that a value is, or is the Transpose of."""
    if value is None or value.is_initializer():
        return value
    return weight_behind(input_of(value, "Transpose"))


def insert_before(
    node: ir.Node,
    op_type: str,
    inputs: list[ir.Value | None],
    attributes: Mapping[str, int | float],
    domain: str = MICROSOFT,
) -> ir.Node:
    """A new node in front of `node`, in the same graph."""
    made = ir.node(op_type, inputs, attributes, domain=domain)
    assert node.graph is not None
    node.graph.insert_before(node, made)
    return made


def replace(old: ir.Value, new: ir.Value) -> None:
    """Every reader of `old` reads `new`, which inherits its type and shape."""
    new.shape, new.type = old.shape, old.type
    old.replace_all_uses_with(new)


def take_place(new: ir.Value, old: ir.Value) -> None:
    """Like `replace`, and `new` takes the name of `old`, also as an output of the graph."""
    new.shape, new.type = old.shape, old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name, old.name = old.name, None
