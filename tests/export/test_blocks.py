"""`--quantize int4` and `int8w`: what is quantized, how it is rounded, what it costs, and that rows stay apart."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn as nn

import gptexport_runtime
from gptexport.artifacts import describe_artifact
from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport.export.rewrites import blocks
from gptexport.export.rewrites.own_text import divergence, mean_kl
from gptexport.export.rewrites.rounding import Rounded, round_weight
from gptexport.export.targets import CPU
from gptexport.parity import check_parity
from gptexport.precision import INT4, INT8, INT8W
from gptexport.recipe import Recipe
from tests.export.test_int8 import L, V, make, relative_rms
from tests.support.few import few


def widened(rounded: Rounded) -> torch.Tensor:
    """(N,K) float32: the weight that a `Rounded` stands for, K filled up."""
    N, blocks = rounded.scales.shape

    def codes(packed: torch.Tensor) -> torch.Tensor:
        return torch.stack([packed & 15, packed >> 4], -1).flatten(1) if rounded.bits == 4 else packed

    steps = codes(rounded.codes.flatten(1)).reshape(N, blocks, -1).float()
    return ((steps - codes(rounded.zeros)[:, :blocks, None].float()) * rounded.scales[..., None].float()).flatten(1)


@pytest.mark.parametrize(("bits", "expected"), [(4, 0.09), (8, 0.006)])
def test_a_weight_is_near_what_it_is_rounded_to(bits: int, expected: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(7, 80) * 0.02
    weight[3] = 0
    found = widened(round_weight(weight, bits=bits))
    assert relative_rms(found[:, :80].numpy(), weight.numpy()) < expected
    assert not found[3].any()


def test_scales_that_float16_cannot_hold_stay_wide() -> None:
    torch.manual_seed(0)
    for size in (1e-7, 1e7):
        weight = torch.randn(4, 32) * size
        rounded = round_weight(weight)
        assert rounded.scales.dtype == torch.float32
        assert relative_rms(widened(rounded).numpy(), weight.numpy()) < 0.09


def test_rounding_by_inputs_errs_less_on_them() -> None:
    """Inputs that go together: what one weight's rounding takes away, another can give back."""
    torch.manual_seed(0)
    weight, inputs = torch.randn(24, 96) * 0.02, torch.randn(512, 12) @ torch.randn(12, 96) + 0.1 * torch.randn(512, 96)
    errors = [(inputs @ (widened(round_weight(weight, seen)) - weight).t()).norm() for seen in (inputs, None)]
    assert errors[0] < 0.5 * errors[1]


def test_inputs_that_are_all_zero_or_not_finite_do_no_harm() -> None:
    weight = torch.randn(4, 32)
    plain = round_weight(weight)
    for inputs in (torch.zeros(8, 32), torch.full((8, 32), torch.nan)):
        assert torch.equal(round_weight(weight, inputs).codes, plain.codes)


@pytest.mark.parametrize(
    "options",
    few([{"outliers": True}, {"tied": False}, {"bias": False}, {}], 2),
    ids=["outliers", "untied", "no bias", "plain"],
)
def test_int4_is_close_and_small(tmp_path: Path, options: dict[str, bool]) -> None:
    """With 48 channels, which fill no whole number of blocks."""
    checkpoint = load_checkpoint(str(make(tmp_path / "ckpt.pt", **options)))
    eager = copy.deepcopy(checkpoint.model)
    done = export_onnx(checkpoint, tmp_path / "gpt", quantize="int4")
    assert done.manifest.audit["MatMulNBits"] == {"expected": 4 * L + 1, "achieved": 4 * L + 1}
    assert done.manifest.audit["GatherBlockQuantized"] == {"expected": 1, "achieved": 1}
    assert done.manifest.left_out == {}
    assert done.manifest.weights is not None
    assert done.manifest.weights.bytes < 1.0 * done.manifest.parameters + 4096 * 80
    ids = np.random.default_rng(0).integers(0, V, (3, 17))
    with torch.no_grad():
        expected = eager(torch.from_numpy(ids)).numpy()
    with gptexport_runtime.load(tmp_path / "gpt", "cpu") as gpt:
        logits = gpt.logits(ids)
        assert relative_rms(logits, expected) < 0.25
        assert relative_rms(gpt.last_logits(ids), logits[:, -1]) < 1e-5
        assert gpt.score(ids).logprobs.shape == (3, 16)
        assert relative_rms(gpt.logits(ids[1:2]), logits[1:2]) < 1e-6  # its kernel takes rows by two
        assert len(gpt.generate([[1, 2]], max_new_tokens=3, temperature=0)[0]) == 3


@pytest.mark.parametrize("target", few(["cpu", "openvino"], 1))
def test_int8w_errs_less_than_int8(target: str, tmp_path: Path) -> None:
    """With outliers, in the session that users run."""
    if target == "openvino":
        pytest.importorskip("openvino")
    checkpoint = load_checkpoint(str(make(tmp_path / "ckpt.pt", outliers=True, channels=192)))
    ids = np.random.default_rng(0).integers(0, V, (3, 17))
    with torch.no_grad():
        expected = checkpoint.model(torch.from_numpy(ids)).numpy()
    errors = {}
    for quantize, on in (("int8w", target), ("int8", "cpu")):
        done = export_onnx(checkpoint, tmp_path / quantize, target=on, quantize=quantize)
        assert done.manifest.quantize == quantize and not done.manifest.left_out
        with gptexport_runtime.load(tmp_path / quantize, on) as gpt:
            errors[quantize] = relative_rms(gpt.logits(ids), expected)
            assert len(gpt.generate([[1, 2]], max_new_tokens=3, temperature=0)[0]) == 3
    assert errors["int8w"] < 0.7 * errors["int8"]
    assert check_parity(tmp_path / "int8w", checkpoint, device=target).verdict


@pytest.mark.slow
def test_a_lone_graph_is_known_by_the_bits_that_its_nodes_read(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(str(make(tmp_path / "ckpt.pt")))
    for precision in (INT4, INT8W, INT8):
        export_onnx(checkpoint, tmp_path / f"{precision.name}.onnx", quantize=precision.name)
        assert describe_artifact(tmp_path / f"{precision.name}.onnx").precision is precision


def test_a_small_head_keeps_8_bits_and_shares_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = load_checkpoint(str(make(tmp_path / "ckpt.pt")))
    for share, bits in ((0.1, 8), (0.0, 4)):
        monkeypatch.setattr(blocks, "SMALL_HEAD", share)
        export_onnx(checkpoint, tmp_path / "gpt", quantize="int4", force=True)
        graph = onnx.load(tmp_path / "gpt" / "logits.onnx", load_external_data=False).graph
        read = [
            attribute.i
            for node in graph.node
            if node.output[0] == "logits" or node.op_type == "GatherBlockQuantized"
            for attribute in node.attribute
            if attribute.name == "bits"
        ]
        assert read == [bits, bits]
        places = {
            tuple(entry.value for entry in tensor.external_data if entry.key in ("offset", "length"))
            for tensor in graph.initializer
            if ".codes" in tensor.name and "wte" in tensor.name
        }
        assert len(places) == 1


def test_int4_implies_the_cpu_target() -> None:
    assert Recipe.of(quantize="int4").target is CPU


@pytest.mark.parametrize("longest", [32, 64, 128])
def test_a_block_divides_the_inputs_or_is_the_shortest(longest: int) -> None:
    torch.manual_seed(0)
    for columns, block in ((256, 128), (192, 64), (96, 32), (80, 32)):
        weight = torch.randn(5, columns)
        rounded = round_weight(weight, longest=longest)
        assert rounded.block == min(block, longest)
        assert torch.equal(rounded.widened(), widened(rounded))
        assert relative_rms(widened(rounded)[:, :columns].numpy(), weight.numpy()) < 0.11


def bits_and_blocks(path: Path) -> set[tuple[int, int]]:
    nodes = onnx.load(path / "logits.onnx", load_external_data=False).graph.node
    found = [{each.name: each.i for each in node.attribute} for node in nodes if node.op_type == "MatMulNBits"]
    return {(each["bits"], each["block_size"]) for each in found}


def test_blocks_are_as_long_as_the_model_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that loses more than is allowed is told so, and so is one that always does."""
    torch.manual_seed(0)
    checkpoint = load_checkpoint(str(make(tmp_path / "ckpt.pt", channels=384)))
    said: list[str] = []
    lost = {128: 0.009}
    monkeypatch.setattr(blocks, "divergence", lambda _model, rounded, _ids: lost[next(iter(rounded.values())).block])
    done = export_onnx(checkpoint, tmp_path / "gpt", quantize="int4", progress=said.append)
    assert {block for _, block in bits_and_blocks(tmp_path / "gpt")} == {128}
    assert any("blocks of 128 lose a mean KL divergence of 9.0e-03" in line for line in said)
    assert not any("blocks" in note for note in done.notes)
    lost |= {128: 0.011, 32: 0.009}
    done = export_onnx(checkpoint, tmp_path / "gpt", quantize="int4", force=True)
    assert {block for _, block in bits_and_blocks(tmp_path / "gpt")} == {32}
    assert any("blocks of 32: in blocks of up to 128" in note and "1.1e-02" in note for note in done.notes)
    assert not any("--quantize int8w" in note for note in done.notes)
    lost[32] = float("nan")
    done = export_onnx(checkpoint, tmp_path / "gpt", quantize="int4", force=True)
    assert any("--quantize int8w loses less" in note for note in done.notes)


def test_a_model_that_no_long_block_divides_is_rounded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = load_checkpoint(str(make(tmp_path / "ckpt.pt", channels=33)))
    said: list[str] = []
    monkeypatch.setattr(blocks, "divergence", lambda *_: 0.011)
    done = export_onnx(checkpoint, tmp_path / "gpt", quantize="int4", progress=said.append)
    assert {block for _, block in bits_and_blocks(tmp_path / "gpt")} == {32}
    assert sum(line.startswith("rounding weights") for line in said) == 1
    assert not any("blocks" in note for note in done.notes), "there were no others"


def test_what_rounding_loses_is_what_the_rounded_model_loses() -> None:
    """Beside the same model with its weights replaced, tied ones too; and it stays as it was."""
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.up = nn.Embedding(V, 64), nn.Linear(64, 64, bias=True)
            self.head = nn.Linear(64, V, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(torch.tanh(self.up(self.table(ids))))
            return logits

    model, ids = Model(), torch.arange(12).reshape(2, 6)
    rounded = {weight.data_ptr(): round_weight(weight) for weight in (model.table.weight, model.up.weight)}
    with torch.no_grad():
        expected = torch.log_softmax(model(ids), -1)
        lost = divergence(model, rounded, ids)
        assert torch.equal(torch.log_softmax(model(ids), -1), expected)
        for weight in (model.table.weight, model.up.weight):
            weight.copy_(rounded[weight.data_ptr()].widened())
        found = torch.log_softmax(model(ids), -1)
    assert lost == pytest.approx(float((expected.exp() * (expected - found)).sum(-1).mean()), rel=1e-3)
    assert lost > 1e-4


def test_a_divergence_of_tokens_that_cannot_come_is_a_number_and_one_of_nan_is_none() -> None:
    """Halves, beside a quarter and three quarters."""
    expected, found = torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([[0.0, float(np.log(3)), -torch.inf]])
    assert mean_kl(expected, found) == pytest.approx(0.5 * np.log(4 / 3))
    assert mean_kl(expected, expected) == 0
    assert np.isnan(mean_kl(expected, found * torch.nan))
