"""Exports are seconds each: those that only read one share it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptexport.checkpoints import Checkpoint, load_checkpoint
from gptexport.export import export_onnx
from tests.support.builders import tiny_nanogpt


@pytest.fixture(scope="session")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_nanogpt(tmp_path_factory.mktemp("nanogpt") / "ckpt.pt")


@pytest.fixture(scope="session")
def bundle(ckpt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "gpt"
    export_onnx(load_checkpoint(str(ckpt)), out)
    return out


@pytest.fixture
def checkpoint(ckpt: Path) -> Checkpoint:
    return load_checkpoint(str(ckpt))
