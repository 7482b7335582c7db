"""A tiny bundle and the logits PyTorch computed for it in float64: scripts/fixtures/runtime_bundle.py wrote both."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gptexport_runtime
from gptexport_runtime.backends.ort.providers import import_onnxruntime, why_not_cuda
from gptexport_runtime.backends.tensorrt import engine as trt
from tests.support.fake_engine import LARGE, SMALL, Fake, write_engine
from tests.support.fake_tensorrt import FakeCuda, FakeEngine

DATA = Path(__file__).parent / "data"


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
    return Path(shutil.copytree(DATA / "tiny", tmp_path / "tiny"))


@pytest.fixture(scope="session")
def session() -> Iterator[gptexport_runtime.Session]:
    with gptexport_runtime.load(DATA / "tiny", device="cpu") as session:
        yield session


@pytest.fixture(scope="session")
def cuda() -> None:
    """Skips where CUDA does not run."""
    if reason := why_not_cuda(import_onnxruntime()):
        pytest.skip(reason)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    cuda = FakeCuda()
    engine = FakeEngine(cuda, [(p.min, p.opt, p.max) for p in (SMALL, LARGE)])
    fake = Fake(write_engine(tmp_path), cuda, engine, monkeypatch)
    fake.gpu("8.9")
    fake.library(engine)
    monkeypatch.setattr(trt, "import_cudart", lambda: cuda)
    return fake
