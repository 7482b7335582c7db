"""One tiny checkpoint and its export, made once; faults are edits of the exported graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gptexport.checkpoints import Checkpoint, load_checkpoint
from gptexport.export import export_onnx
from gptexport.parity.locate import cause
from gptexport.precision import Precision
from tests.support.builders import tiny_nanogpt


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 layers, 3 heads, C = 30, V = 97, block_size 17; GELU erf, tied."""
    return tiny_nanogpt(tmp_path_factory.mktemp("checkpoint") / "ckpt.pt")


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The right export of `checkpoint`. Never written to: copy it first."""
    return export_onnx(load_checkpoint(str(checkpoint)), tmp_path_factory.mktemp("bundle") / "gpt").path


@pytest.fixture(autouse=True)
def one_fresh_export(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The search for the cause needs a fresh export of the checkpoint on each failure: here one for all of them."""
    export = cause.fresh_export

    def cached(checkpoint: Checkpoint, folder: Path, precision: Precision) -> Path:
        key = (checkpoint.sha256, precision.name, tuple(sorted(checkpoint.options.items())))
        if key not in FRESH:
            FRESH[key] = export(checkpoint, tmp_path_factory.mktemp("fresh"), precision)
        return FRESH[key]

    monkeypatch.setattr(cause, "fresh_export", cached)


FRESH: dict[Any, Path] = {}
