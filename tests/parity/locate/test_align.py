"""Where a module is in a graph, and when that cannot be said; and every weight where it is stored."""

from __future__ import annotations

import numpy as np
import torch.nn as nn
from onnx import TensorProto, helper, numpy_helper

from gptexport.parity.locate.align import Boundary, find_boundaries
from gptexport.parity.measure.graph_index import GraphIndex


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)


def boundaries(
    *nodes: tuple[str, list[str], str], weights: tuple[str, ...] = ("fc.weight", "fc.bias")
) -> dict[str, Boundary]:
    graph = helper.make_graph(
        [helper.make_node(op, inputs, [output]) for op, inputs, output in nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 4])],
        [numpy_helper.from_array(np.zeros((4, 4), np.float32), name) for name in weights],
    )
    return find_boundaries(GraphIndex(graph), Linear())


def test_a_linear_ends_after_its_bias() -> None:
    found = boundaries(("MatMul", ["x", "fc.weight"], "a"), ("Add", ["a", "fc.bias"], "y"))
    assert found == {"fc": Boundary("x", "y")}
    assert boundaries(("Gemm", ["x", "fc.weight", "fc.bias"], "y")) == {"fc": Boundary("x", "y")}


def test_a_weight_may_be_prepared_on_the_way() -> None:
    found = boundaries(("Transpose", ["fc.weight"], "w"), ("MatMul", ["x", "w"], "a"), ("Add", ["fc.bias", "a"], "y"))
    assert found == {"fc": Boundary("x", "y")}


def test_a_quantized_linear_is_one_site() -> None:
    """Its input is what was quantized, and its weights have names of their own."""
    found = boundaries(
        ("DynamicQuantizeLinear", ["x"], "q"),
        ("MatMulInteger", ["q", "fc.weight_quantized"], "i"),
        ("Cast", ["i"], "f"),
        ("Mul", ["f", "fc.weight_scale"], "a"),
        ("Add", ["a", "fc.bias"], "y"),
        weights=("fc.weight_quantized", "fc.weight_scale", "fc.bias"),
    )
    assert found == {"fc": Boundary("x", "y")}


def test_behind_an_operator_that_does_more_there_is_no_output() -> None:
    found = boundaries(("MatMul", ["x", "fc.weight"], "a"), ("BiasGelu", ["a", "fc.bias"], "y"))
    assert found == {"fc": Boundary("x", None)}


def test_a_weight_that_is_read_in_two_places_has_no_site() -> None:
    assert (
        boundaries(("MatMul", ["x", "fc.weight"], "a"), ("MatMul", ["x", "fc.weight"], "b"), ("Add", ["a", "b"], "y"))
        == {}
    )


def test_a_weight_of_another_name_has_none() -> None:
    assert boundaries(("MatMul", ["x", "fc2.weight"], "y"), weights=("fc2.weight",)) == {}
    assert boundaries(("MatMul", ["x", "fc.weights"], "y"), weights=("fc.weights",)) == {}
