"""What cannot be computed in 16 bits, in float32 between two casts: exact on the way in, rounded on the way out."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnx import defs

from gptexport.export.rewrites import Audit, Rewrite, counted
from gptexport.export.targets.kernels import fits
from gptexport.recipe import Limits

HALF = {ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16"}
NAMES = {**HALF, ir.DataType.FLOAT: "float", ir.DataType.DOUBLE: "double"}
IN_FLOAT32 = "operations without a 16-bit kernel, in float32"

# Whether an operator (its name, version, what each of its type variables stands for) can be computed in these types.
Takes = Callable[[str, int, dict[str, str]], bool]


def widen_what_onnx_lacks(graph: ir.Graph) -> None:
    """Before: an operation that ONNX does not define in 16 bits, as TopK in bfloat16. After: it, in float32.

    So is a sum over indices that may repeat: it would be rounded at each, and ONNX Runtime's CPU provider has none.
    """
    _widen(graph, _defined)


def widen_without_kernel(graph: ir.Graph, _limits: Limits) -> Audit:
    """Before: an operation of ONNX's that CUDA runs in float32 but not in 16 bits. After: it, in float32."""
    done = _widen(graph, lambda operator, version, bound: fits(f":{operator}", version, bound))
    return counted(IN_FLOAT32, done, done)


def _widen(graph: ir.Graph, takes: Takes) -> int:
    """Returns: how many operations were."""
    version = graph.opset_imports[""]
    found = [node for node in ir.traversal.RecursiveGraphIterator(graph) if _only_wide(node, version, takes)]
    for node in found:
        _in_float32(node)
    return len(found)


def _only_wide(node: ir.Node, version: int, takes: Takes) -> bool:
    if _sums(node):
        return node.inputs[0] is not None and node.inputs[0].dtype in HALF
    if node.domain or node.op_type in ("Cast", "Constant", "Loop", "If"):
        return False
    bound = _bound(node, version)
    wide = {variable: "float" if name in HALF.values() else name for variable, name in bound.items()}
    return bound != wide and not takes(node.op_type, version, bound) and takes(node.op_type, version, wide)


def _sums(node: ir.Node) -> bool:
    return node.op_type in ("ScatterND", "ScatterElements") and node.attributes.get_string("reduction", "none") == "add"


def _bound(node: ir.Node, version: int) -> dict[str, str]:
    """What each of the operator's type variables that is a float stands for."""
    schema = defs.get_schema(node.op_type, version, node.domain)
    bound: dict[str, str] = {}
    for values, formal in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        for index, value in enumerate(values):
            if value is not None and value.dtype in NAMES:
                bound.setdefault(formal[min(index, len(formal) - 1)].type_str, NAMES[value.dtype])
    return bound


def _defined(operator: str, version: int, bound: dict[str, str]) -> bool:
    constraints = defs.get_schema(operator, version, "").type_constraints
    allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in constraints}
    return all(f"tensor({name})" in allowed.get(variable, (f"tensor({name})",)) for variable, name in bound.items())


def _in_float32(node: ir.Node) -> None:
    graph = node.graph
    assert graph is not None
    for index, value in enumerate(node.inputs):
        if value is not None and value.dtype in HALF:
            cast = _cast(value, ir.DataType.FLOAT)
            graph.insert_before(node, cast)
            node.replace_input_with(index, cast.outputs[0])
    for value in node.outputs:
        if value.dtype in HALF:
            half = value.dtype
            value.type = ir.TensorType(ir.DataType.FLOAT)
            cast = _cast(value, half)
            graph.insert_after(node, cast)
            value.replace_all_uses_with(cast.outputs[0], replace_graph_outputs=True)
            cast.replace_input_with(0, value)


def _cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    cast = ir.node("Cast", [value], {"to": dtype})
    cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(dtype), value.shape
    return cast


WIDEN_WITHOUT_KERNEL = Rewrite("float32 where there is no 16-bit kernel", widen_without_kernel)
