"""A tiny model of bytes, and its session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport.tokenizers import tokenizer_to_bundle
from gptexport_runtime import Session, load
from tests.support.builders import tiny_nanogpt


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of block_size 16, whose tokenizer is one byte an id."""
    folder = tmp_path_factory.mktemp("scored")
    checkpoint = load_checkpoint(str(tiny_nanogpt(folder / "ckpt.pt", vocab_size=256, block_size=16)))
    return export_onnx(checkpoint, folder / "gpt", tokenizer=tokenizer_to_bundle("bytes")).path


@pytest.fixture(scope="session")
def session(bundle: Path) -> Iterator[Session]:
    with load(bundle) as opened:
        yield opened
