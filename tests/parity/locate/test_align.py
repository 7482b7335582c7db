"""Where a module is in a graph, and when that cannot be said; and every weight where it is stored."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn as nn
from onnx import TensorProto, helper, numpy_helper

from gptexport.architectures.module import ARCHITECTURE, ModuleConfig
from gptexport.casting import Cast
from gptexport.checkpoints import Checkpoint
from gptexport.export import export_onnx
from gptexport.parity.locate.align import Boundary, find_boundaries
from gptexport.parity.locate.observe import HookCall
from gptexport.parity.locate.proof import prove_boundaries
from gptexport.parity.locate.search import find_wrong_step
from gptexport.parity.measure.graph_index import GraphIndex
from gptexport.precision import FLOAT32

IDS = np.random.default_rng(0).integers(0, 11, (3, 8))


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
    assert found == {"fc": Boundary("x", "y", certain=True)}
    assert boundaries(("Gemm", ["x", "fc.weight", "fc.bias"], "y")) == {"fc": Boundary("x", "y", certain=True)}


def test_a_weight_may_be_prepared_on_the_way() -> None:
    found = boundaries(("Transpose", ["fc.weight"], "w"), ("MatMul", ["x", "w"], "a"), ("Add", ["fc.bias", "a"], "y"))
    assert found == {"fc": Boundary("x", "y", certain=True)}


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
    assert found == {"fc": Boundary("x", "y", certain=True)}


def test_behind_an_operator_that_does_more_there_is_no_output() -> None:
    found = boundaries(("MatMul", ["x", "fc.weight"], "a"), ("BiasGelu", ["a", "fc.bias"], "y"))
    assert found == {"fc": Boundary("x", None, certain=True)}


def test_a_weight_that_is_read_in_two_places_has_no_site() -> None:
    assert (
        boundaries(("MatMul", ["x", "fc.weight"], "a"), ("MatMul", ["x", "fc.weight"], "b"), ("Add", ["a", "b"], "y"))
        == {}
    )


def test_a_weight_of_another_name_has_none() -> None:
    assert boundaries(("MatMul", ["x", "fc2.weight"], "y"), weights=("fc2.weight",)) == {}
    assert boundaries(("MatMul", ["x", "fc.weights"], "y"), weights=("fc.weights",)) == {}


def test_a_module_that_is_run_twice_has_no_boundary() -> None:
    """One after the other, they would be taken for one long chain."""
    nodes = [("MatMul", ["x", "fc.weight"], "a"), ("Add", ["a", "fc.bias"], "b")]
    assert boundaries(*nodes, ("MatMul", ["b", "fc.weight"], "c"), ("Add", ["c", "fc.bias"], "y")) == {}


class Norm(nn.Module):
    """Reads its weight last: what goes into that operator is not what went into the module."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class Scaled(nn.Embedding):
    """Does something more to what it looks up."""

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        return super().forward(idx) * 3.0


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.norm, self.head = Scaled(11, 4), Norm(), nn.Linear(4, 11)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.emb(idx)))


@pytest.fixture
def own(tmp_path: Path) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    model = Own().eval().requires_grad_(False)
    checkpoint = Checkpoint(
        model=copy.deepcopy(model),
        architecture=ARCHITECTURE,
        config=ModuleConfig(block_size=8, vocab_size=11),
        format="module",
        block_size=8,
        vocab_size=11,
        sha256="",
    )
    return model, export_onnx(checkpoint, tmp_path / "own").path / "logits.onnx"


def test_what_a_module_of_ones_own_holds_is_proved_on_a_right_graph(own: tuple[nn.Module, Path]) -> None:
    model, graph = own
    index = GraphIndex(onnx.load(str(graph), load_external_data=False).graph)
    certain = {name: boundary.certain for name, boundary in find_boundaries(index, model).items()}
    assert certain == {"emb": False, "norm": False, "head": True}
    proven = prove_boundaries(model, graph, IDS, FLOAT32, eager=Cast(model, torch.float32))
    assert proven == {HookCall("norm", "out")}


def test_without_a_proof_no_step_is_accused(own: tuple[nn.Module, Path]) -> None:
    model, graph = own
    for right in (None, graph):
        steps, wrong = find_wrong_step(model, graph, IDS, precision=FLOAT32, right=right)
        assert wrong is None and "head" in [step.name for step in steps]
