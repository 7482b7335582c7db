"""A rotation that is written out becomes RotaryEmbedding; what only looks like one stays as it is."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from gptexport.export.rewrites.rotary import fuse_rotary
from gptexport.recipe import Limits

LIMITS = Limits(block_size=8, vocab_size=5)
ROTATION = """<ir_version: 10, opset_import: ["" : 23]>
g (int64[B,T] ids, float[B,T,8] p, float[1,H,T,2] cos, float[1,1,T,2] sin) => (float[B,2,T,4] y) {
    shape = Constant<value_ints = [0, 0, 2, 4]>()
    apart = Reshape(p, shape)
    x = Transpose<perm = [0, 2, 1, 3]>(apart)
    x1, x2 = Split<axis = -1, num_outputs = 2>(x)
    a = Mul(x1, cos)
    b = Mul(x2, sin)
    c = Mul(x2, cos)
    d = Mul(x1, sin)
    first = Sub(a, b)
    second = Add(c, d)
    turned = Concat<axis = -1>(first, second)
    y = Identity(turned)
}"""


def fused(text: str, heads: int = 1) -> tuple[dict[str, dict[str, int]], list[str]]:
    """The audit, and the operators that are left."""
    proto = onnx.parser.parse_model(text.replace("H,", f"{heads},"))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    audit = fuse_rotary(model.graph, LIMITS)
    RemoveUnusedNodesPass()(model)
    return audit, [node.op_type for node in model.graph]


@pytest.mark.parametrize("second", ["Add(c, d)", "Add(d, c)"])
def test_a_rotation_is_one_node_over_what_the_projection_made(second: str) -> None:
    audit, ops = fused(ROTATION.replace("Add(c, d)", second))
    assert audit == {"RotaryEmbedding": {"expected": 1, "achieved": 1}}
    assert ops.count("RotaryEmbedding") == 1 and not {"Split", "Mul", "Sub", "Add"} & set(ops)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Sub(a, b)", "Sub(b, a)"),
        ("Sub(a, b)", "Add(a, b)"),
        ("Add(c, d)", "Sub(c, d)"),
        ("c = Mul(x2, cos)", "c = Mul(x2, sin)"),
        ("b = Mul(x2, sin)", "b = Mul(x1, sin)"),
        ("(first, second)", "(second, first)"),
        ("axis = -1, num_outputs", "axis = 2, num_outputs"),
    ],
)
def test_what_looks_alike_stays(old: str, new: str) -> None:
    assert old in ROTATION
    audit, ops = fused(ROTATION.replace(old, new))
    assert audit == {} and "RotaryEmbedding" not in ops


def test_a_table_of_each_head_is_counted_and_stays() -> None:
    audit, ops = fused(ROTATION, heads=2)
    assert audit == {"RotaryEmbedding": {"expected": 1, "achieved": 0}} and "RotaryEmbedding" not in ops
