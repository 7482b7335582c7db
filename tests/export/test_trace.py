"""Users' own forwards: what can be traced is; what fixes B or T is refused with the reason."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn

import gptexport_runtime
from gptexport.checkpoints import load_checkpoint
from gptexport.errors import ExportError
from gptexport.export import export_onnx
from gptexport.export.trace import trace_logits
from gptexport.export.verify import take_samples
from gptexport.recipe import Limits, Recipe


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(11, 8)


class FixesB(Body):
    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        return self.emb(idx).view(2, -1, 8)


class FixesT(Body):
    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        return self.emb(idx) + torch.zeros(7, 8)


class LoopsOverT(Body):
    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.emb(idx[:, t]) for t in range(idx.shape[1])], 1)


class BranchesOnT(Body):
    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        return self.emb(idx) if idx.shape[1] > 5 else self.emb(idx) * 2


class BranchesOnValues(Body):
    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        return self.emb(idx) if idx.sum() > 5 else self.emb(idx) * 2


class Dynamic(Body):
    """An assertion on the length, as nanoGPT has, and a mask cut to T, as the lecture has."""

    def __init__(self) -> None:
        super().__init__()
        self.mask: torch.Tensor
        self.register_buffer("mask", torch.ones(16, 16).tril().view(1, 16, 16))

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        _, T = idx.shape
        assert T <= 16
        x = self.emb(idx)
        scores = (x @ x.transpose(1, 2)).masked_fill(self.mask[:, :T, :T] == 0, float("-inf"))
        return scores.softmax(-1) @ x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (FixesB, "fixes B to 2"),
        (FixesT, "fixes T to 7"),
        (LoopsOverT, "fixes T to 7.*nor loop over it"),
        (BranchesOnT, "cannot be traced with dynamic B and T"),
        (BranchesOnValues, "cannot be traced with dynamic B and T"),
    ],
)
def test_what_is_not_dynamic_is_refused(model: type[Body], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        trace_logits(model().eval(), block_size=16)


def test_handwritten_attention_traces() -> None:
    trace = trace_logits(Dynamic().eval(), block_size=16)
    assert [str(value.shape) for value in (trace.graph.inputs[0], trace.graph.outputs[0])] == [
        "[B,T]",
        "[B,T,8]",
    ]
    assert set(trace.weights) == {"model.emb.weight", "model.mask"}
    assert trace.longest == 15  # at 16 the mask's cut cuts nothing, which PyTorch takes for a case of its own


def test_a_length_the_tracer_does_not_vouch_for_is_run(tmp_path: Path) -> None:
    """Handwritten attention with a mask cut to T is exported whole, and checked at T = block_size."""
    model = Dynamic().eval()
    samples = take_samples(model, Limits(block_size=16, vocab_size=8), longest=15)
    assert [sample.ids.shape for sample in samples] == [(1, 1), (3, 11), (1, 16), (5, 7)]
    source = tmp_path / "mine.py"
    source.write_text(
        "import torch, torch.nn as nn\n\n"
        + inspect.getsource(Body)
        + inspect.getsource(Dynamic)
        + "\nmodel = Dynamic()\nmodel.block_size = 16\n"
    )
    export_onnx(load_checkpoint(f"{source}:model"), tmp_path / "gpt")
    ids = np.arange(16)[None] % 8
    with gptexport_runtime.load(tmp_path / "gpt") as gpt:
        assert gpt.logits(ids).shape == (1, 16, 8)


@pytest.mark.parametrize("opset", [17, 25])
def test_opset_out_of_range(opset: int) -> None:
    with pytest.raises(ExportError, match=f"opset is {opset}; expected 18 to 24"):
        Recipe.of(opset=opset)
