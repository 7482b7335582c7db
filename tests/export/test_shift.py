"""What a token takes of the one before is kept in the cache; what it takes of others is not known to be."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

import gptexport_runtime
from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from tests.export.test_decode import BLOCK, MODULE, V
from tests.support.greedy import agreement, fixed_prompts

FORWARD = """
class Smeared(Mine):
    def forward(self, idx):
        B, T = idx.shape
        x = self.wte(idx) + self.positions(idx)
        for _ in range(2):
            x = x + 0.5 * F.pad(x, PADS)
            x = F.rms_norm(x, (C,), eps=1e-6)
            q, k, v = (t.view(B, T, H, C // H).transpose(1, 2) for t in self.c_attn(x).split(C, dim=2))
            x = x + self.attend(q, k, v).transpose(1, 2).reshape(B, T, C)
        return 15 * torch.tanh(self.head(F.rms_norm(x, (C,), eps=1e-6)) / 15)
"""


def write(folder: Path, pads: str) -> str:
    file = folder / "mine.py"
    file.write_text(f"{MODULE}\nPADS = {pads}\n{FORWARD}")
    return f"{file}:Smeared"


@pytest.mark.parametrize("target", ["portable", "cpu"])
def test_the_token_before_comes_from_the_cache(tmp_path: Path, target: str) -> None:
    """Twice, of values that attention made; in rows of every length, forked and continued."""
    source = write(tmp_path, "(0, 0, 1, -1)")
    manifest = export_onnx(load_checkpoint(source), tmp_path / "gpt", target=target).manifest
    assert list(manifest.graphs) == ["logits", "last", "score", "decode"], manifest.left_out
    prompts = fixed_prompts(12, block_size=BLOCK, vocab_size=V)
    with gptexport_runtime.load(tmp_path / "gpt", "cpu") as gpt:
        found = agreement(load_checkpoint(source).model, prompts, gpt.generate(prompts, temperature=0))
        assert found.wrong == 0 and found.tokens > 30
        np.testing.assert_allclose(
            gpt.last_logits(prompts), gpt.logits(prompts)[range(12), [len(p) - 1 for p in prompts]], atol=1e-5
        )


@pytest.mark.parametrize("pads", ["(1, -1)", "(0, 0, -1, 1)"])
def test_another_pad_is_not_taken_for_it(tmp_path: Path, pads: str) -> None:
    """A channel aside, or the token after."""
    manifest = export_onnx(load_checkpoint(write(tmp_path, pads)), tmp_path / "gpt").manifest
    assert "looks across positions" in manifest.left_out["decode"]


def test_norms_without_a_gain_share_one_scale(tmp_path: Path) -> None:
    export_onnx(load_checkpoint(write(tmp_path, "(0, 0, 1, -1)")), tmp_path / "gpt", graphs=["logits"])
    graph = onnx.load(tmp_path / "gpt" / "logits.onnx", load_external_data=False).graph
    count = Counter(node.op_type for node in graph.node)
    assert (count["RMSNormalization"], count["ConstantOfShape"]) == (3, 0)
    assert {node.input[1] for node in graph.node if node.op_type == "RMSNormalization"} == {"scale_1_32"}
