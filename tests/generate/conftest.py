"""Small models exported once, in the forms that generate differently."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.nn as nn

import gptexport_runtime
from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport_runtime import Session
from tests.support.builders import tiny_huggingface, tiny_nanogpt

FORMS: dict[str, dict[str, Any]] = {
    "portable": {},
    "cpu": {"target": "cpu"},
    "int8": {"target": "cpu", "quantize": "int8"},
}


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Heads of 16, which GroupQueryAttention takes; no biases."""
    return str(tiny_nanogpt(tmp_path_factory.mktemp("nanogpt") / "ckpt.pt", n_embd=48, bias=False))


@pytest.fixture(scope="session")
def eager(source: str) -> nn.Module:
    return load_checkpoint(source).model


@pytest.fixture(scope="session")
def bundles(source: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    for form, options in FORMS.items():
        export_onnx(load_checkpoint(source), folder / form, **options)
    return {form: folder / form for form in FORMS}


@pytest.fixture(params=["portable", "cpu"])
def session(bundles: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Session]:
    with gptexport_runtime.load(bundles[request.param], "cpu") as session:
        yield session


@pytest.fixture
def cpu(bundles: dict[str, Path]) -> Iterator[Session]:
    with gptexport_runtime.load(bundles["cpu"], "cpu") as session:
        yield session


@pytest.fixture(scope="session")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Mistral's attention scale, and biases."""
    return str(tiny_huggingface(tmp_path_factory.mktemp("hf") / "hf", n_embd=48, scale_attn_by_inverse_layer_idx=True))
