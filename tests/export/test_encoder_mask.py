"""nn.TransformerEncoder with a mask and no hint, which looks at the mask's values while it runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport_runtime import load
from tests.support.few import few

SOURCE = """
import torch, torch.nn as nn
class Encoder(nn.Module):
    block_size = 16
    def __init__(self, first=True):
        super().__init__()
        torch.manual_seed(0)
        self.first = first
        self.wte, self.wpe, self.head = nn.Embedding(31, 16), nn.Embedding(16, 16), nn.Linear(16, 31)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def mask(self, T):
        return nn.Transformer.generate_square_subsequent_mask(T)

    def forward(self, idx):
        T = idx.shape[1]
        x = self.wte(idx) + self.wpe(torch.arange(T))
        x = x if self.first else x.transpose(0, 1)
        x = self.encoder(x, mask=self.mask(T))
        return self.head(x if self.first else x.transpose(0, 1))

class Banded(Encoder):  # causal up to T = 9, and not past it
    def mask(self, T):
        apart = torch.arange(T)[:, None] - torch.arange(T)
        return torch.zeros(T, T).masked_fill((apart < 0) | (apart > 8), float("-inf"))

causal = Encoder
banded = Banded
sequence_first = lambda: Encoder(first=False)
"""


@pytest.mark.parametrize("name", few(["banded", "causal", "sequence_first"], 1))
def test_the_mask_is_used_as_it_is_given(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine.py").write_text(SOURCE)
    checkpoint = load_checkpoint(f"{tmp_path / 'mine.py'}:{name}")
    ids = torch.randint(0, 31, (2, 16), generator=torch.Generator().manual_seed(1))
    expected = checkpoint.model(ids).numpy()
    export_onnx(checkpoint, tmp_path / "out")
    with load(tmp_path / "out", "cpu") as session:
        np.testing.assert_allclose(session.logits(ids.numpy()), expected, rtol=1e-4, atol=1e-5)
