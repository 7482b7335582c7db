"""Sessions that generate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import gptexport_runtime
from gptexport_runtime import Session
from tests.support.builders import tiny_huggingface


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
