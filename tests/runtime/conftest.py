"""The tiny bundle of tests/support/tiny.py, an engine on a GPU that there is not, and small models exported once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import gptexport_runtime
from gptexport_runtime.backends.ort.providers import why_not
from tests.support.fake_driver import FakeLibrary
from tests.support.fake_engine import LARGE, SMALL, Fake, write_engine
from tests.support.fake_tensorrt import FakeEngine
from tests.support.tiny import DATA, TINY

if TYPE_CHECKING:
    import torch.nn as nn


@dataclass(frozen=True)
class Expected:
    ids: np.ndarray[Any, Any]  # (B,T)
    logits: np.ndarray[Any, Any]  # (B,T,V) float64


@pytest.fixture(scope="session")
def expected() -> Expected:
    with np.load(DATA / "expected.npz") as data:
        return Expected(data["ids"], data["logits"])


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy, to damage."""
    return Path(shutil.copytree(TINY, tmp_path / "tiny"))


@pytest.fixture(scope="session")
def session() -> Iterator[gptexport_runtime.Session]:
    with gptexport_runtime.load(TINY, device="cpu") as session:
        yield session


@pytest.fixture(scope="session")
def cuda() -> None:
    """Skips where CUDA does not run."""
    if reason := why_not("cuda"):
        pytest.skip(reason)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """An engine, TensorRT for RTX and a GPU, none of which is real."""
    library = FakeLibrary()
    engine = FakeEngine(library, [(p.min, p.opt, p.max) for p in (SMALL, LARGE)])
    fake = Fake(write_engine(tmp_path), library, engine, monkeypatch)
    fake.gpu("8.9")
    fake.library(engine)
    return fake


FORMS: dict[str, dict[str, Any]] = {
    "portable": {},
    "cpu": {"target": "cpu"},
    "int8": {"target": "cpu", "quantize": "int8"},
}


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint with heads of 16, which GroupQueryAttention takes; no biases."""
    from tests.support.builders import tiny_nanogpt

    return str(tiny_nanogpt(tmp_path_factory.mktemp("nanogpt") / "ckpt.pt", n_embd=48, bias=False))


@pytest.fixture(scope="session")
def eager(source: str) -> nn.Module:
    """The model of `source`."""
    from gptexport.checkpoints import load_checkpoint

    return load_checkpoint(source).model


@pytest.fixture(scope="session")
def bundles(source: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of `source`, in the forms that generate differently."""
    from gptexport.checkpoints import load_checkpoint
    from gptexport.export import export_onnx

    folder = tmp_path_factory.mktemp("bundles")
    for form, options in FORMS.items():
        export_onnx(load_checkpoint(source), folder / form, **options)
    return {form: folder / form for form in FORMS}
