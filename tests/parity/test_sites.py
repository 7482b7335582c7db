"""Where a module is in a graph, and when that cannot be said; and every weight where it is stored."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn as nn
from onnx import TensorProto, helper, numpy_helper

from gptexport.checkpoints import load_checkpoint
from gptexport.config import DType
from gptexport.export import export_onnx
from gptexport.parity.sites import GraphIndex, Site, find_sites
from gptexport.parity.stored import compare_stored, worst_rows
from tests.support.fault_catalogue import row_by
from tests.support.faults import edit_weight, scale_weight, tampered


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
    wte, wpe, others = compare_stored(model, made, "float32")
    assert (wte.name, wte.passed, wpe.name, wpe.passed) == ("rows of wte", False, "rows of wpe", True)
    assert (others.name, others.passed, others.max_change) == ("other weights", True, 0.0)
    assert worst_rows(model, made, "float32")["transformer.wte"].worst == 42
    assert all(i.passed for i in compare_stored(model, bundle / "logits.onnx", "float32"))
    assert all(i.passed for i in compare_stored(model, made, "float16")), "half a rounding of float16 is 5e-4"
    broken = tampered(bundle, tmp_path / "n", edit_weight("wpe.weight", row_by(3, np.nan))) / "logits.onnx"
    assert not compare_stored(model, broken, "float32")[1].passed


def test_every_weight_where_it_is_stored(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    """A bias that is off by less than the noise of the model shows here; and only the one that is off is named."""
    model = load_checkpoint(str(checkpoint)).model
    off = edit_weight("h.1.mlp.c_proj.bias", lambda b: b + 1e-6 * (np.arange(len(b)) == 7))
    made = tampered(bundle, tmp_path / "b", off) / "logits.onnx"
    *_, others = compare_stored(model, made, "float32")
    assert (others.name, others.passed) == ("other weights (h.1.mlp.c_proj.bias)", False)
    assert compare_stored(model, made, "bfloat16")[-1].passed


def test_weights_of_another_export_may_be_turned_without_a_word(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    """(in, out) under the plain name, as in graphs made of Hugging Face's Conv1D."""

    def turned(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name.endswith(".T"):
                for node in model.graph.node:
                    node.input[:] = [tensor.name.removesuffix(".T") if i == tensor.name else i for i in node.input]
                tensor.name = tensor.name.removesuffix(".T")

    model = load_checkpoint(str(checkpoint)).model
    names = ("h.0.attn.c_proj.weight", "h.1.attn.c_attn.weight")  # square and not
    right = tampered(bundle, tmp_path / "right", turned) / "logits.onnx"
    assert compare_stored(model, right, "float32")[-1].max_change == 0
    for name in names:
        made = tampered(bundle, tmp_path / name, scale_weight(name, 1.001), turned) / "logits.onnx"
        assert compare_stored(model, made, "float32")[-1].name == f"other weights ({name})"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_are_right_in_the_dtype_of_the_export(checkpoint: Path, tmp_path: Path, dtype: DType) -> None:
    """Also those that are so small that float16 keeps few bits of them: rounding is no fault."""
    loaded = load_checkpoint(str(checkpoint))
    with torch.no_grad():
        loaded.model.get_parameter("transformer.h.0.attn.c_attn.bias").mul_(1e-6)
    made = export_onnx(replace(loaded, model=copy.deepcopy(loaded.model)), tmp_path / "gpt", dtype=dtype)
    found = compare_stored(loaded.model, made.path / "logits.onnx", dtype)
    assert [(i.name, i.passed) for i in found] == [
        ("rows of wte", True),
        ("rows of wpe", True),
        ("other weights", True),
    ]
    assert max(i.max_change for i in found) == 0
