"""Every fault of the catalogue is found in the right block, and named where it has a name; a right graph has none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from gptexport.checkpoints import Checkpoint, load_checkpoint
from gptexport.export import export_onnx
from gptexport.parity.locate.intermediate import add_outputs
from gptexport.parity.locate.search import WrongStep, find_wrong_step
from gptexport.parity.measure.stored import StoredWeights
from gptexport.parity.measure.weights import compare_weights
from gptexport.precision import FLOAT16, FLOAT32, Precision
from tests.support.builders import tiny_nanogpt
from tests.support.fault_catalogue import catalogue, rounded_to
from tests.support.faults import edit_weight, insert_after, nodes, scale_weight, tampered

HEADS = 4
FAULTS = {known.what: (known.fault, known.block, known.claim) for known in catalogue(HEADS)}
del FAULTS["one element of a bias by 1e-5"]  # in this model that is what rounding does there


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many blocks as the catalogue wants."""
    return tiny_nanogpt(tmp_path_factory.mktemp("deep") / "ckpt.pt", n_layer=4, n_head=HEADS, n_embd=48)


@pytest.fixture(scope="module")
def deep(path: Path) -> Checkpoint:
    return load_checkpoint(str(path))


@pytest.fixture(scope="module")
def deep_bundle(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(load_checkpoint(str(path)), tmp_path_factory.mktemp("deep") / "gpt").path


@pytest.fixture(scope="module")
def fused_bundle(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With ONNX Runtime's own operators: some of the model's values are not in this graph."""
    return export_onnx(load_checkpoint(str(path)), tmp_path_factory.mktemp("fused") / "gpt", target="cpu").path


IDS = np.random.default_rng(0).integers(0, 97, (3, 17))
IDS[1, 4] = 42  # the token whose embedding a fault changes


def found(model: torch.nn.Module, bundle: Path, precision: Precision = FLOAT32) -> WrongStep | None:
    steps, divergence = find_wrong_step(model, bundle / "logits.onnx", IDS, precision=precision)
    assert len(steps) > 30
    return divergence


@pytest.mark.parametrize("what", FAULTS)
def test_the_catalogue(what: str, deep: Checkpoint, deep_bundle: Path, tmp_path: Path) -> None:
    fault, where, words = FAULTS[what]
    divergence = found(deep.model, tampered(deep_bundle, tmp_path / "b", fault))
    assert divergence is not None
    name = divergence.error.name
    assert name == where or name.startswith((f"{where}.", f"{where} ")), divergence.sentence()
    assert words in (divergence.claim or ""), divergence.sentence()
    if divergence.claim and np.isfinite(divergence.error.ratio):
        assert divergence.left is not None and divergence.left <= 4 < divergence.error.ratio


def test_a_right_graph_has_no_wrong_step(deep: Checkpoint, deep_bundle: Path, fused_bundle: Path) -> None:
    assert found(deep.model, deep_bundle) is None
    assert found(deep.model, fused_bundle) is None


def test_a_right_float16_graph_has_no_wrong_step(path: Path, deep: Checkpoint, tmp_path: Path) -> None:
    bundle = export_onnx(load_checkpoint(str(path)), tmp_path / "half", dtype="float16").path
    assert found(deep.model, bundle, FLOAT16) is None
    made = tampered(bundle, tmp_path / "b", scale_weight("h.2.mlp.c_fc.weight", 1.1))
    divergence = found(deep.model, made, FLOAT16)
    assert divergence is not None and divergence.error.name == "h.2.mlp.c_fc"


@pytest.mark.parametrize(
    ("name", "where"), [("h.1.attn.c_proj.weight", "h.1.attn.c_proj"), ("h.2.mlp.c_fc.weight", "h.2.mlp.gelu")]
)
def test_a_fault_in_a_fused_graph(deep: Checkpoint, fused_bundle: Path, tmp_path: Path, name: str, where: str) -> None:
    """Where bias and GELU are one operator the step is the three of them."""
    divergence = found(deep.model, tampered(fused_bundle, tmp_path / "b", scale_weight(name, 1.001)))
    assert divergence is not None and divergence.error.name == where
    assert divergence.claim == "weights multiplied by 1.001"


def test_what_nothing_explains_is_not_named(deep: Checkpoint, deep_bundle: Path, tmp_path: Path) -> None:
    """A claim needs an experiment that takes the error away: noise on a GELU's output has none."""

    def noisy(model: onnx.ModelProto) -> None:
        noise = np.random.default_rng(0).normal(size=4 * 48).astype(np.float32) * 1e-3
        model.graph.initializer.append(numpy_helper.from_array(noise, "noise"))
        value = nodes(model, "Gelu")[1].output[0]
        insert_after(model, value, lambda old, new: [helper.make_node("Add", [old, "noise"], [new])])

    divergence = found(deep.model, tampered(deep_bundle, tmp_path / "b", noisy))
    assert divergence is not None and divergence.error.name == "h.1.mlp.gelu"
    assert divergence.claim is None and divergence.left is None


def test_the_first_of_two_faults_is_named_and_the_other_listed(
    deep: Checkpoint, deep_bundle: Path, tmp_path: Path
) -> None:
    late, early = scale_weight("h.3.ln_2.bias", 0), edit_weight("h.1.mlp.c_fc.weight", rounded_to(np.float16))
    divergence = found(deep.model, tampered(deep_bundle, tmp_path / "b", late, early))
    assert divergence is not None
    assert (divergence.error.name, divergence.also) == ("h.1.mlp.c_fc", ("h.3.ln_2",))


def test_the_model_is_left_as_it_was(deep: Checkpoint, deep_bundle: Path, tmp_path: Path) -> None:
    before = {name: weight.clone() for name, weight in deep.model.state_dict().items()}
    found(deep.model, tampered(deep_bundle, tmp_path / "b", scale_weight("h.0.attn.c_attn.weight", 2)))
    for name, weight in deep.model.state_dict().items():
        assert torch.equal(weight, before[name]) and weight.dtype == torch.float32
    assert deep.model.get_parameter("lm_head.weight") is deep.model.get_parameter("transformer.wte.weight")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in deep.model.modules())


def test_hidden_states_that_do_not_fit_are_judged_in_groups(
    deep: Checkpoint, deep_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptexport.parity.locate import search

    made = tampered(deep_bundle, tmp_path / "b", scale_weight("h.2.mlp.c_fc.weight", 1.001))
    whole = find_wrong_step(deep.model, made / "logits.onnx", IDS, precision=FLOAT32)
    monkeypatch.setattr(search, "GROUP_BYTES", 1 << 10)
    told: list[str] = []
    steps, divergence = find_wrong_step(deep.model, made / "logits.onnx", IDS, precision=FLOAT32, progress=told.append)
    assert sum("hidden states" in text for text in told) == 5
    assert [s.name for s in steps] == [s.name for s in whole[0]]
    assert divergence is not None and divergence.error.name == "h.2.mlp.c_fc"
    assert [s.ratio for s in steps] == pytest.approx([s.ratio for s in whole[0]], rel=0.2)


def test_hidden_layers_that_a_target_widened_are_looked_into(tmp_path: Path) -> None:
    """1024 floats wide, they are made a cache line wider for the CPU, with zeros."""
    path = tiny_nanogpt(tmp_path / "ckpt.pt", n_layer=1, n_head=4, n_embd=256)
    made = export_onnx(load_checkpoint(str(path)), tmp_path / "gpt", target="cpu").path
    model = load_checkpoint(str(path)).model
    c_fc = model.get_parameter("transformer.h.0.mlp.c_fc.weight")
    held = StoredWeights(model, made / "logits.onnx")
    assert {tuple(tensor.shape) for _, tensor in held.of(c_fc)} == {(1024, 256)}
    steps, divergence = find_wrong_step(model, made / "logits.onnx", IDS, precision=FLOAT32)
    assert "h.0.mlp.gelu" in [step.name for step in steps] and divergence is None
    wrong = tampered(made, tmp_path / "wrong", scale_weight("h.0.mlp.c_fc.bias", 0)) / "logits.onnx"
    _, divergence = find_wrong_step(model, wrong, IDS, precision=FLOAT32)
    assert divergence is not None and divergence.error.name == "h.0.mlp.gelu" and divergence.claim == "bias missing"
    assert not compare_weights(model, wrong, FLOAT32)[-1].passed


@pytest.mark.parametrize(("kind", "name"), [(TensorProto.BFLOAT16, "y.float32"), (TensorProto.FLOAT, "y")])
def test_intermediate_outputs_of_bfloat16_are_in_float32(kind: int, name: str) -> None:
    """ONNX Runtime hands over no bfloat16: a failure on a GPU would end in another error than its own."""
    weight = helper.make_tensor("w", kind, [1], [1.0])
    node = helper.make_node("Mul", ["x", "w"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", [], [], [weight]))
    assert add_outputs(model, ["y"]) == [name] and [value.name for value in model.graph.output] == [name]
    assert [node.op_type for node in model.graph.node] == ["Mul"] + ["Cast"] * (kind == TensorProto.BFLOAT16)
