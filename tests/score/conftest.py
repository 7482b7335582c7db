"""A tiny model of bytes, its session, and a corpus for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport.score import Asked
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


def documents(lengths: list[int]) -> list[list[int]]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, length).tolist() for length in lengths]


@pytest.fixture
def asked(bundle: Path, tmp_path: Path) -> Asked:
    path = tmp_path / "corpus.jsonl"
    rows = documents([0, 1, 2, 5, 16, 17, 40, 300, 3, 3, 31, 7])
    path.write_text("".join(json.dumps({"ids": row}) + "\n" for row in rows))
    return Asked(artifact=bundle, files=[path], out=tmp_path / "out", shard_tokens=60, batch_tokens=64, threads=1)
