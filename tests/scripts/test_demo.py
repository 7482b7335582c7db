"""What the demo saves is read back to the model that was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gptexport.checkpoints import load_checkpoint
from scripts.demo.models import BLOCK_SIZE, DEMOS, VOCAB_SIZE


@torch.no_grad()
@pytest.mark.parametrize("name", DEMOS)
def test_each_architecture_is_saved_in_its_own_format(name: str, tmp_path: Path) -> None:
    model = DEMOS[name].make()
    for weight in model.parameters():  # some begin as zeros
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)), alpha=0.02)
    checkpoint = load_checkpoint(str(DEMOS[name].save(model, tmp_path, 7, 2.5)))
    ids = torch.arange(BLOCK_SIZE)[None] * 5 % VOCAB_SIZE
    assert torch.equal(checkpoint.model(ids), model(ids))
