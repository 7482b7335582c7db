"""Where a module is in a graph, and when that cannot be said; and every row of the embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch.nn as nn
from fault_catalogue import row_by
from faults import edit_weight, tampered
from onnx import TensorProto, helper, numpy_helper

from gptexport.checkpoints import load_checkpoint
from gptexport.parity.sites import GraphIndex, Site, find_sites
from gptexport.parity.tables import compare_tables, worst_rows


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)


def sites(*nodes: tuple[str, list[str], str], weights: tuple[str, ...] = ("fc.weight", "fc.bias")) -> dict[str, Site]:
    graph = helper.make_graph(
        [helper.make_node(op, inputs, [output]) for op, inputs, output in nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 4])],
        [numpy_helper.from_array(np.zeros((4, 4), np.float32), name) for name in weights],
    )
    return find_sites(GraphIndex(graph), Linear())


def test_a_linear_ends_after_its_bias() -> None:
    found = sites(("MatMul", ["x", "fc.weight"], "a"), ("Add", ["a", "fc.bias"], "y"))
    assert found == {"fc": Site("x", "y")}
    assert sites(("Gemm", ["x", "fc.weight", "fc.bias"], "y")) == {"fc": Site("x", "y")}


def test_a_weight_may_be_prepared_on_the_way() -> None:
    found = sites(("Transpose", ["fc.weight"], "w"), ("MatMul", ["x", "w"], "a"), ("Add", ["fc.bias", "a"], "y"))
    assert found == {"fc": Site("x", "y")}


def test_a_quantized_linear_is_one_site() -> None:
    """Its input is what was quantized, and its weights have names of their own."""
    found = sites(
        ("DynamicQuantizeLinear", ["x"], "q"),
        ("MatMulInteger", ["q", "fc.weight_quantized"], "i"),
        ("Cast", ["i"], "f"),
        ("Mul", ["f", "fc.weight_scale"], "a"),
        ("Add", ["a", "fc.bias"], "y"),
        weights=("fc.weight_quantized", "fc.weight_scale", "fc.bias"),
    )
    assert found == {"fc": Site("x", "y")}


def test_behind_an_operator_that_does_more_there_is_no_output() -> None:
    found = sites(("MatMul", ["x", "fc.weight"], "a"), ("BiasGelu", ["a", "fc.bias"], "y"))
    assert found == {"fc": Site("x", None)}


def test_a_weight_that_is_read_in_two_places_has_no_site() -> None:
    assert (
        sites(("MatMul", ["x", "fc.weight"], "a"), ("MatMul", ["x", "fc.weight"], "b"), ("Add", ["a", "b"], "y")) == {}
    )


def test_a_weight_of_another_name_has_none() -> None:
    assert sites(("MatMul", ["x", "fc2.weight"], "y"), weights=("fc2.weight",)) == {}
    assert sites(("MatMul", ["x", "fc.weights"], "y"), weights=("fc.weights",)) == {}


def test_every_row_of_the_embeddings(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Also the rows that no ids of the grid touch."""
    model = load_checkpoint(str(checkpoint)).model
    made = tampered(bundle, tmp_path / "b", edit_weight("wte.weight", row_by(42, 1.0001))) / "logits.onnx"
    wte, wpe = compare_tables(model, made, "float32")
    assert (wte.name, wte.passed, wpe.name, wpe.passed) == ("rows of wte", False, "rows of wpe", True)
    assert worst_rows(model, made)["transformer.wte"].worst == 42
    assert all(i.passed for i in compare_tables(model, bundle / "logits.onnx", "float32"))
    assert all(i.passed for i in compare_tables(model, made, "float16")), "half a rounding of float16 is 5e-4"
    broken = tampered(bundle, tmp_path / "n", edit_weight("wpe.weight", row_by(3, np.nan))) / "logits.onnx"
    assert not compare_tables(model, broken, "float32")[1].passed
