"""An engine file that nobody could run, its sidecar, and a machine with a GPU that there is not."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gptexport_runtime
from gptexport_runtime import Session
from gptexport_runtime.backends.gpu.device import Gpu
from gptexport_runtime.backends.gpu.driver import Driver
from gptexport_runtime.backends.tensorrt import backend as trt
from gptexport_runtime.contract.engine import EngineInfo, Profile, TensorInfo, sidecar_path
from gptexport_runtime.contract.model import FileEntry
from tests.support.fake_driver import FakeLibrary
from tests.support.fake_tensorrt import VOCAB, FakeEngine, fake_library

VERSION = "1.7.1.116"
SMALL, LARGE = Profile(min=(1, 1), opt=(1, 4), max=(2, 8)), Profile(min=(1, 1), opt=(4, 16), max=(4, 32))


def write_engine(folder: Path, *, header: bytes = b"vtrt", version: str = VERSION, body: bytes = b"plan") -> Path:
    """An engine file that nobody could run, and its right sidecar."""
    path = folder / "gpt.engine"
    data = header + bytes(20) + bytes(int(part) for part in version.split(".")) + body
    path.write_bytes(data)
    write_sidecar(path, version=version)
    return path


def write_sidecar(path: Path, **changes: Any) -> None:
    data = path.read_bytes()
    info = EngineInfo(
        engine=FileEntry(file=path.name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()),
        flavour="tensorrt-rtx",
        version=VERSION,
        compute_capabilities=("8.9", "12.0"),
        built_on=None,
        options={"tf32": True, "workspace": 64, "refit": False},
        onnx={"logits.onnx": "0" * 64},
        model={"vocab_size": VOCAB, "block_size": 32},
        dtype="float32",
        inputs=(TensorInfo(name="input_ids", dtype="int64", shape=("B", "T")),),
        outputs=(TensorInfo(name="logits", dtype="float32", shape=("B", "T", VOCAB)),),
        profiles=(SMALL, LARGE),
        activation_bytes=(1000, 2000),
        weight_bytes=4,
    )
    sidecar_path(path).write_text(replace(info, **changes).to_json())


@dataclass
class Fake:
    """A machine with a GPU that there is not."""

    path: Path
    cuda: FakeLibrary
    engine: FakeEngine
    monkeypatch: pytest.MonkeyPatch

    def gpu(self, compute_capability: str) -> None:
        gpu = Gpu(name="Fake 4090", compute_capability=compute_capability, driver_cuda="13.0")
        self.monkeypatch.setattr(trt, "find_gpu", lambda: gpu)
        self.monkeypatch.setattr(trt, "why_no_gpu", lambda: None)
        self.monkeypatch.setattr(trt, "load_driver", lambda: Driver(self.cuda))

    def library(self, engine: FakeEngine | None, version: str = VERSION) -> None:
        self.monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_library(engine, version))

    def open(self) -> Session:
        return gptexport_runtime.load(self.path)


def ids_of(B: int, T: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, VOCAB, (B, T))
