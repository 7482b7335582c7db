"""`--quantize int8`: what is quantized, what it costs, and that outliers do not ruin it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import gptexport_runtime
from gptexport.architectures import llama
from gptexport.architectures.gpt2 import ARCHITECTURE
from gptexport.architectures.llama import Llama, LlamaConfig
from gptexport.checkpoints import Checkpoint, load_checkpoint
from gptexport.errors import ExportError
from gptexport.export import export_onnx
from gptexport.export.rewrites import smoothing
from gptexport.export.rewrites.smoothing import calibration_ids, smooth
from gptexport.export.targets import CPU, PORTABLE
from gptexport.recipe import Recipe
from tests.support.builders import SIZES, own, random_weights, tiny_nanogpt
from tests.support.cli import Cli
from tests.support.few import few
from tests.support.llama_builders import randomize

LLAMA: dict[str, Any] = {
    "n_layer": 2,
    "n_head": 4,
    "n_kv_head": 2,
    "n_embd": 32,
    "head_size": 8,
    "block_size": 17,
    "vocab_size": SIZES["vocab_size"],
    "n_inner": 44,
    "tied": True,
}
L, C, V = SIZES["n_layer"], 48, SIZES["vocab_size"]


def make(path: Path, *, outliers: bool = False, bias: bool = True, tied: bool = True, channels: int = C) -> Path:
    """`outliers`: three channels behind every layer norm are 50 to 100 times the others; the function is the same."""
    weights = random_weights(**{**SIZES, "n_embd": channels}, bias=bias, tied=tied)
    if outliers:
        for layer in range(L):
            for norm, linear in (("ln_1", "attn.c_attn"), ("ln_2", "mlp.c_fc")):
                for channel, factor in ((3, 60.0), (17, 100.0), (40, 50.0)):
                    weights[f"transformer.h.{layer}.{norm}.weight"][channel] *= factor
                    if bias:
                        weights[f"transformer.h.{layer}.{norm}.bias"][channel] *= factor
                    weights[f"transformer.h.{layer}.{linear}.weight"][:, channel] /= factor
    return tiny_nanogpt(path, weights=weights, n_embd=channels, bias=bias)


def relative_rms(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2)))


@pytest.mark.parametrize(
    "options",
    few([{"outliers": True}, {"tied": False}, {"bias": False}, {}], 2),
    ids=["outliers", "untied", "no bias", "plain"],
)
def test_int8_is_close_and_small(tmp_path: Path, options: dict[str, bool]) -> None:
    checkpoint = load_checkpoint(str(make(tmp_path / "ckpt.pt", **options)))
    eager = copy.deepcopy(checkpoint.model)
    done = export_onnx(checkpoint, tmp_path / "gpt", target="cpu", quantize="int8")
    assert done.manifest.quantize == "int8"
    assert done.manifest.audit["DynamicQuantizeMatMul"] == {"expected": 4 * L + 1, "achieved": 4 * L + 1}
    graph = onnx.load(tmp_path / "gpt" / "logits.onnx", load_external_data=False).graph
    assert sum(node.op_type == "Add" for node in graph.node) == 2 * L + 1, "residuals and embeddings: biases are inside"
    matrices = {
        t.name: t.data_type for t in graph.initializer if len(t.dims) == 2 and t.name != "transformer.wpe.weight"
    }
    assert set(matrices.values()) == {onnx.TensorProto.INT8}, "the embedding too, whether a head shares it or not"
    assert done.manifest.weights is not None
    assert done.manifest.weights.bytes < 1.6 * done.manifest.parameters + 4096 * 50
    ids = np.random.default_rng(0).integers(0, V, (3, 17))
    with torch.no_grad():
        expected = eager(torch.from_numpy(ids)).numpy()
    with gptexport_runtime.load(tmp_path / "gpt", "cpu") as gpt:
        assert relative_rms(gpt.logits(ids), expected) < 0.06
        assert relative_rms(gpt.last_logits(ids), expected[:, -1]) < 0.06
        assert gpt.score(ids).logprobs.shape == (3, 16)


def test_smoothing_changes_nothing_but_the_ranges(tmp_path: Path) -> None:
    """Exact in real arithmetic, and what makes outliers harmless: their layer norm's output is even afterwards."""
    model = load_checkpoint(str(make(tmp_path / "ckpt.pt", outliers=True))).model
    smoothed = copy.deepcopy(model).double()
    ids = calibration_ids(block_size=17, vocab_size=V)
    assert ARCHITECTURE.smoothing is not None
    smooth(smoothed, ARCHITECTURE.smoothing(smoothed), ids)
    with torch.no_grad():
        torch.testing.assert_close(smoothed(ids), copy.deepcopy(model).double()(ids), rtol=0, atol=1e-10)

    def spread(net: torch.nn.Module) -> float:
        seen = []
        linear = net.get_submodule("transformer.h.1.attn.c_attn")
        hook = linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].abs().amax(dim=(0, 1))))
        with torch.no_grad():
            net(ids)
        hook.remove()
        return float(seen[0].max() / seen[0].median())

    assert spread(model) > 20
    assert spread(smoothed) < 10


@torch.no_grad()
@pytest.mark.parametrize("biases", [False, True])
def test_a_llamas_products_of_gate_and_up_are_evened_out(biases: bool) -> None:
    model = Llama(LlamaConfig(**LLAMA, qkv_bias=biases, out_bias=biases, mlp_bias=biases)).double()
    randomize(model)
    mlp: Any = model.get_submodule("model.layers.1.mlp")
    for channel, factor in ((3, 60.0), (17, 100.0)):
        mlp.up_proj.weight[channel] *= factor
        if biases:
            mlp.up_proj.bias[channel] *= factor
        mlp.down_proj.weight[:, channel] /= factor
    ids = calibration_ids(block_size=17, vocab_size=V)
    expected, seen = model(ids), []
    mlp.down_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].abs().amax(dim=(0, 1))))
    model(ids)
    assert llama.ARCHITECTURE.smoothing is not None
    smooth(model, llama.ARCHITECTURE.smoothing(model), ids)
    torch.testing.assert_close(model(ids), expected, rtol=0, atol=1e-10)
    before, after = (float(peaks.max() / peaks.median()) for peaks in (seen[0], seen[-1]))
    assert before > 40 and after < 10


def test_without_smoothing_outliers_are_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the smoothing is for, and that an export which lost the model's function is not written."""
    checkpoint = load_checkpoint(str(make(tmp_path / "ckpt.pt", outliers=True)))
    monkeypatch.setattr(smoothing, "smooth", lambda *_: None)
    with pytest.raises(ExportError, match=r"differs from the eager model by .* expected at most 2e-01 for int8"):
        export_onnx(checkpoint, tmp_path / "gpt", target="cpu", quantize="int8")
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt.pt"]


@torch.no_grad()
def test_a_weight_that_several_matmuls_read_is_quantized_once(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "from tests.support.own.catalogue import CATALOGUE\nmake = CATALOGUE['block: one block three times'].make\n"
    )
    checkpoint = load_checkpoint(f"{tmp_path / 'model.py'}:make")
    ids = np.random.default_rng(0).integers(0, checkpoint.vocab_size, (2, 11))
    expected = checkpoint.model(torch.from_numpy(ids)).numpy()
    done = export_onnx(checkpoint, tmp_path / "gpt", target="cpu", quantize="int8")
    assert done.manifest.audit["DynamicQuantizeMatMul"] == {"expected": 13, "achieved": 13}
    with gptexport_runtime.load(tmp_path / "gpt", "cpu") as gpt:
        assert relative_rms(gpt.logits(ids), expected) < 0.06


def test_a_tied_table_is_stored_once(tmp_path: Path) -> None:
    export_onnx(load_checkpoint(str(make(tmp_path / "ckpt.pt"))), tmp_path / "gpt", target="cpu", quantize="int8")
    graph = onnx.load(tmp_path / "gpt" / "logits.onnx", load_external_data=False).graph
    kinds = {t.name: t.data_type for t in graph.initializer if t.external_data}
    assert kinds["transformer.wte.weight"] == onnx.TensorProto.INT8
    assert kinds["transformer.wpe.weight"] == onnx.TensorProto.FLOAT
    assert not [name for name in kinds if "lm_head" in name]


def test_the_checkpoint_on_disk_stays_as_it_was(tmp_path: Path) -> None:
    """Weights are mapped from the file; smoothing must not write through."""
    file = make(tmp_path / "ckpt.pt", outliers=True)
    before = file.read_bytes()
    export_onnx(load_checkpoint(str(file)), tmp_path / "gpt", target="cpu", quantize="int8")
    assert file.read_bytes() == before


def test_int8_is_for_the_cpu_target_and_implies_it(checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert Recipe.of(quantize="int8").target is CPU and Recipe.of().target is PORTABLE
    with pytest.raises(ExportError, match=r"quantize int8 with target portable: .* Pass target cpu"):
        export_onnx(checkpoint, tmp_path / "gpt", target="portable", quantize="int8")
    assert list(tmp_path.iterdir()) == []


def test_parity_judges_it_by_statistics(cli: Cli, tmp_path: Path) -> None:
    ckpt = make(tmp_path / "ckpt.pt", outliers=True)
    ran = cli("onnx", ckpt, "-o", tmp_path / "gpt", "--target", "cpu", "--quantize", "int8", "-q")
    assert ran.code == 0, ran.err
    ran = cli("parity", tmp_path / "gpt", "--against", ckpt, "-q", "--gate", "top1_agreement=0.9")
    assert ran.code == 0, ran.out
    assert "statistics" in ran.out
    other = tiny_nanogpt(tmp_path / "other.pt", n_embd=C, seed=5)
    assert cli("parity", tmp_path / "gpt", "--against", other, "-q", "--quick").code == 3


class Own(torch.nn.Module):
    """A module of whose norms nothing is known."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.norm, self.head = torch.nn.Embedding(31, 16), torch.nn.LayerNorm(16), torch.nn.Linear(16, 31)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(self.emb(idx)))
        return logits


def test_a_module_that_is_not_smoothed_is_said_not_to_be(tmp_path: Path) -> None:
    checkpoint = own(Own(), block_size=8, vocab_size=31)
    done = export_onnx(checkpoint, tmp_path / "gpt", target="cpu", quantize="int8")
    assert any("activations were not smoothed" in note for note in done.notes)


class Flat(Own):
    """Its linears read (B * T, C), which is traced as Gemm."""

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.emb(idx)).reshape(-1, 16)
        logits: torch.Tensor = self.head(x)
        return logits.reshape(*idx.shape, 31)


def test_a_linear_over_flat_rows_is_quantized_too(tmp_path: Path) -> None:
    model = Flat()
    done = export_onnx(own(model, block_size=8, vocab_size=31), tmp_path / "gpt", target="cpu", quantize="int8")
    assert done.manifest.audit["DynamicQuantizeMatMul"] == {"expected": 1, "achieved": 1}
    graph = onnx.load(tmp_path / "gpt" / "logits.onnx", load_external_data=False).graph
    assert "Gemm" not in {node.op_type for node in graph.node}
