"""One tiny checkpoint and its export, made once; faults are edits of the exported graph."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import tiny_nanogpt

from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 layers, 3 heads, C = 30, V = 97, block_size 17; GELU erf, tied."""
    return tiny_nanogpt(tmp_path_factory.mktemp("checkpoint") / "ckpt.pt")


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The right export of `checkpoint`. Never written to: copy it first."""
    return export_onnx(load_checkpoint(str(checkpoint)), tmp_path_factory.mktemp("bundle") / "gpt").path
