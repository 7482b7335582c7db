"""Linear layers of a traced graph as quantizers take them: MatMul with a weight, and the Add of a bias."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.tape import Tape

from gptexport.export.irtools import is_vector, only_reader, take_place, weight_behind
from gptexport.export.trace import Trace


def split_gemms(trace: Trace) -> None:
    """Before: Gemm with a weight, as a linear over (N,C) is traced. After: MatMul, and Add where there is a bias."""
    graph = trace.graph
    for node in [node for node in graph if node.op_type == "Gemm"]:
        weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
        if weight is None or weight.name not in trace.weights or not plain or node.attributes.get_int("transA", 0) == 1:
            continue
        tape = Tape()
        turned = node.attributes.get_int("transB", 0) == 1
        read = _turn(trace, weight) if turned and only_reader(weight) is node else None
        right = read or (tape.op("Transpose", [weight], {"perm": [1, 0]}) if turned else weight)
        made = tape.op("MatMul", [node.inputs[0], right])
        made.type, made.shape = node.outputs[0].type, node.outputs[0].shape
        if bias is not None:
            made = tape.op("Add", [made, bias])
        graph.insert_before(node, tape.nodes)
        take_place(made, node.outputs[0])
        graph.remove(node, safe=True)


def _turn(trace: Trace, weight: ir.Value) -> ir.Value:
    """The weight (out,in), which nothing else reads, stored as (in,out)."""
    assert weight.name is not None
    name, tensor = f"{weight.name}.T", trace.weights.pop(weight.name)
    trace.weights[name] = tensor.t()
    stored = ir.Value(name=name, type=weight.type, shape=ir.Shape(tensor.t().shape))
    trace.graph.initializers[name] = stored
    return stored


def add_of_bias(projected: ir.Value) -> tuple[ir.Node, ir.Value] | None:
    """The Add that alone reads what a matmul made, and the vector of weights that it adds."""
    add = only_reader(projected)
    if add is None or add.op_type != "Add":
        return None
    bias = next(value for value in add.inputs if value is not projected)
    return (add, bias) if bias is not None and is_vector(bias) else None


def linear_weight(trace: Trace, value: ir.Value | None) -> str | None:
    """The weight behind a matmul's right side: itself, or what is transposed into it."""
    weight = weight_behind(value)
    return weight.name if weight is not None and weight.name in trace.weights else None
