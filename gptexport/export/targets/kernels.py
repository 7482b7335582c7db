"""Which kernels ONNX Runtime's CUDA provider has, by operator and type, and which nodes of a graph have none.

The table is ONNX Runtime's own registry, read from the wheel by `python -m scripts.gpu.pretend --registry`. A node of
floats without a kernel would run on the CPU, with copies to and fro, or the graph would not open at all. Nodes of
integers and booleans alone are left out: they are shapes and positions, which ONNX Runtime keeps on the CPU by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, defs

FLOATS = {"bfloat16", "double", "float", "float16"}
TYPE_NAMES = {
    TensorProto.FLOAT: "float",
    TensorProto.DOUBLE: "double",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
}
OTHER = "other"  # any type that is no float
TABLE = Path(__file__).with_name("kernels.json")


@dataclass(frozen=True)
class Kernel:
    """One registered kernel: for which versions of its operator, and of each type variable which floats it takes."""

    since: int
    until: int
    types: dict[str, list[str]]


@cache
def registered() -> tuple[str, dict[str, list[Kernel]]]:
    """The version of ONNX Runtime, and its CUDA kernels of floats by "domain:operator"."""
    data = json.loads(TABLE.read_text())
    kernels = {name: [Kernel(*row) for row in rows] for name, rows in data["kernels"].items()}
    return data["onnxruntime"], kernels


def without_kernel(path: Path) -> list[str]:
    """The nodes of the graph in `path` that compute with floats and have no CUDA kernel for them, each described."""
    model = onnx.load(str(path), load_external_data=False)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    types: dict[str, str] = {}
    return list(_missing(model.graph, opsets, types))


def _missing(graph: GraphProto, opsets: dict[str, int], types: dict[str, str]) -> Iterator[str]:
    """Follows the types through the graph: shape inference does not, as it does not know ONNX Runtime's operators."""
    for tensor in graph.initializer:
        types[tensor.name] = TYPE_NAMES.get(tensor.data_type, OTHER)
    for value in (*graph.input, *graph.output):
        types[value.name] = TYPE_NAMES.get(value.type.tensor_type.elem_type, OTHER)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _missing(attribute.g, opsets, types)
                types |= {  # Loop and If give what their bodies do; Loop's first is its condition
                    name: types[value.name]
                    for name, value in zip(reversed(node.output), reversed(attribute.g.output), strict=False)
                }
        bound = _bind(node, opsets[node.domain], types)
        used = {name for name in bound.values() if name in FLOATS}
        if used and not fits(f"{node.domain}:{node.op_type}", opsets[node.domain], bound):
            yield f"{node.op_type} of {', '.join(sorted(used))} ({node.name or node.output[0]})"


def fits(operator: str, version: int, bound: dict[str, str]) -> bool:
    """Whether "domain:operator", at a version of its domain, has a CUDA kernel for what its type variables are."""
    return any(
        kernel.since <= version <= kernel.until
        and all(name not in FLOATS or name in kernel.types.get(variable, [name]) for variable, name in bound.items())
        for kernel in registered()[1].get(operator, [])
    )


def _bind(node: NodeProto, version: int, types: dict[str, str]) -> dict[str, str]:
    """The node's type variables, and what each stands for; notes the types of its outputs on the way."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if node.domain:  # of ONNX Runtime's own, those used here take and give one float type
        floats = [types[name] for name in node.input if types.get(name) in FLOATS]
        bound = {"T": floats[0] if floats else OTHER}
        types |= {name: bound["T"] for name in node.output if name}
        return bound
    schema = defs.get_schema(node.op_type, version, node.domain)
    bound = {}
    for index, name in enumerate(node.input):
        if name:
            bound.setdefault(schema.inputs[min(index, len(schema.inputs) - 1)].type_str, types.get(name, OTHER))
    for index, name in enumerate(node.output):
        variable = schema.outputs[min(index, len(schema.outputs) - 1)].type_str
        if node.op_type == "Cast":
            bound[variable] = TYPE_NAMES.get(attributes["to"].i, OTHER)
        elif node.op_type in ("Constant", "ConstantOfShape"):
            value = attributes.get("value")
            kind = TYPE_NAMES.get(value.t.data_type, OTHER) if value is not None else OTHER
            bound[variable] = kind if node.op_type == "ConstantOfShape" else OTHER  # a Constant is no node to run
            types[name] = kind
            continue
        types.setdefault(name, bound.get(variable, OTHER))
    return bound


def has_kernel(operator: str, dtype: str) -> bool:
    """Whether "domain:operator" has a CUDA kernel that computes in `dtype`, as ONNX spells it ("float", "float16")."""
    return any(dtype in kernel.types.get("T", ()) for kernel in registered()[1].get(operator, []))
