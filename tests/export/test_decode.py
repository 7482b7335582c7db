"""Which forwards of a user's own get the graph `decode`, and what is said of the others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import gptexport_runtime
from gptexport.checkpoints import load_checkpoint
from gptexport.errors import ExportError
from gptexport.export import export_onnx
from tests.support.cli import Cli
from tests.support.few import few
from tests.support.greedy import agreement, fixed_prompts

V, BLOCK = 31, 12
MODULE = """
import torch, torch.nn as nn, torch.nn.functional as F
V, C, H, BLOCK = 31, 32, 2, 12

class Mine(nn.Module):
    block_size = BLOCK

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.wte, self.wpe = nn.Embedding(V, C), nn.Embedding(BLOCK, C)
        self.table = nn.Parameter(torch.randn(1, BLOCK, C))
        self.register_buffer("ids", torch.arange(BLOCK))
        self.register_buffer("tril", torch.tril(torch.ones(BLOCK, BLOCK, dtype=torch.bool)))
        self.c_attn, self.head = nn.Linear(C, 3 * C), nn.Linear(C, V)

    def positions(self, idx):
        return self.wpe(torch.arange(idx.shape[1]))

    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def forward(self, idx):
        B, T = idx.shape
        x = self.wte(idx) + self.positions(idx)
        for _ in range(2):
            q, k, v = (t.view(B, T, H, C // H).transpose(1, 2) for t in self.c_attn(x).split(C, dim=2))
            x = x + self.attend(q, k, v).transpose(1, 2).reshape(B, T, C)
        return self.head(x)
"""
POSITIONS = {
    "arange": "self.wpe(torch.arange(idx.shape[1]))",
    "a row of its own": "self.wpe(torch.arange(idx.shape[1]).unsqueeze(0))",
    "every row": "self.wpe(torch.arange(idx.shape[1])[None].expand_as(idx))",
    "a parameter that is cut": "self.table[:, :idx.shape[1]]",
    "a weight that is cut": "self.wpe.weight[:idx.shape[1]]",
    "a buffer of numbers": "self.wpe(self.ids[:idx.shape[1]])",
    "a table, scaled": "3 * self.wpe(torch.arange(idx.shape[1])) + self.wpe.weight[0]",
    "none": "0",
}


def write(folder: Path, method: str, body: str) -> str:
    """A subclass of the model in which one method returns something else."""
    file = folder / "mine.py"
    file.write_text(f"{MODULE}\nclass Other(Mine):\n    def {method}:\n        return {body}\n")
    return f"{file}:Other"


@pytest.mark.parametrize("body", few(POSITIONS.values(), 4), ids=POSITIONS)
def test_positions_come_from_the_cache_however_the_forward_writes_them(tmp_path: Path, body: str) -> None:
    """And a head with a bias is a head."""
    source = write(tmp_path, "positions(self, idx)", body)
    manifest = export_onnx(load_checkpoint(source), tmp_path / "gpt").manifest
    assert list(manifest.graphs) == ["logits", "last", "score", "decode"] and not manifest.left_out
    prompts = fixed_prompts(12, block_size=BLOCK, vocab_size=V)
    eager = load_checkpoint(source).model
    with gptexport_runtime.load(tmp_path / "gpt", "cpu") as gpt:
        found = agreement(eager, prompts, gpt.generate(prompts, temperature=0))
        assert found.wrong == 0 and found.tokens > 30
        logits = gpt.logits(prompts)[np.arange(12), [len(prompt) - 1 for prompt in prompts]]
        np.testing.assert_allclose(gpt.last_logits(prompts), logits, atol=1e-5)


SEES = "attn_mask=self.tril[: q.shape[2], : q.shape[2]]"
ATTENTION = {
    "mean": (
        "F.scaled_dot_product_attention(q, k, v, is_causal=True) + v.cumsum(2)",
        "CumSum (cumsum) looks across positions",
    ),
    "later tokens": ("F.scaled_dot_product_attention(q, k, v)", "attention sees later tokens"),
    "tokens that hide others": (
        f"F.scaled_dot_product_attention(q, k, v, {SEES} & (k.sum((1, 3)) > -9)[:, None, None])",
        "a mask that depends on the tokens",
    ),
}


@pytest.mark.parametrize(("body", "reason"), few(ATTENTION.values(), 2), ids=ATTENTION)
def test_another_forward_is_left_out_with_the_reason(tmp_path: Path, body: str, reason: str) -> None:
    source = write(tmp_path, "attend(self, q, k, v)", body)
    manifest = export_onnx(load_checkpoint(source), tmp_path / "gpt").manifest
    assert list(manifest.graphs) == ["logits", "last", "score"] and reason in manifest.left_out["decode"]
    eager, texts = load_checkpoint(source).model, [[1, 2, 30], [5]]
    with gptexport_runtime.load(tmp_path / "gpt", "cpu") as gpt, torch.no_grad():
        assert reason in str(gpt.why_slow)
        for text in texts:  # one by one: what sees later tokens sees a neighbour's padding
            for token in gpt.generate([text], temperature=0, max_new_tokens=6)[0].tolist():
                assert int(eager(torch.tensor([text]))[0, -1].argmax()) == token, "without a cache, and right"
                text.append(token)
    with pytest.raises(ExportError, match=r"decode cannot be made: .* Leave decode out of graphs"):
        export_onnx(load_checkpoint(source), tmp_path / "other", graphs=["logits", "decode"])


def test_a_graph_that_turns_out_to_be_another_function_is_left_out(tmp_path: Path) -> None:
    """It looks at how many tokens there are: nothing in the graph's operations says so, running it does."""
    body = "F.scaled_dot_product_attention(q, k, v, is_causal=True) * q.shape[2]"
    source = write(tmp_path, "attend(self, q, k, v)", body)
    manifest = export_onnx(load_checkpoint(source), tmp_path / "gpt").manifest
    assert "decode" not in manifest.graphs and not (tmp_path / "gpt" / "decode.onnx").exists()
    assert "differs from the eager model" in manifest.left_out["decode"]
    with pytest.raises(ExportError, match="graph decode differs from the eager model"):
        export_onnx(load_checkpoint(source), tmp_path / "other", graphs=["logits", "decode"])
    assert not (tmp_path / "other").exists()


def test_the_commands_say_what_is_left_out(cli: Cli, tmp_path: Path) -> None:
    source = write(tmp_path, "attend(self, q, k, v)", "v + v.cumsum(2)")
    ran = cli("onnx", source, "-o", tmp_path / "gpt", "--json")
    data = json.loads(ran.out)
    assert ran.code == 0 and data["graphs"] == ["logits", "last", "score"] and "decode" in data["left_out"]
    assert "without decode.onnx: CumSum (cumsum) looks across" in ran.err
    assert "no decode.onnx" in cli("inspect", tmp_path / "gpt").out
    ran = cli("generate", tmp_path / "gpt", "--prompt-ids", "1,2")
    assert ran.code == 0 and "slow: the whole text is computed again" in ran.err and "looks across positions" in ran.err
