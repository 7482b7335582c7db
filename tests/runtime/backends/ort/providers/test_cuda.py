"""Why CUDA does not run is said before ONNX Runtime is asked, which would take the CPU in silence."""

from __future__ import annotations

import ctypes
import importlib.metadata
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptexport_runtime import CudaOptions, InputError
from gptexport_runtime.backends.ort.options import OpenOptions
from gptexport_runtime.backends.ort.providers.cuda import CUDA

ALL = ["CUDAExecutionProvider", "CPUExecutionProvider"]
CUBLAS = "libcublasLt.so.13: cannot open shared object file"


class FakeDriver:
    def __init__(self, *, init: int = 0, count: int = 1, cuda: int = 13000) -> None:
        self.init, self.count, self.cuda = init, count, cuda

    def cuInit(self, flags: int) -> int:
        return self.init

    def cuDeviceGetCount(self, pointer: Any) -> int:
        pointer._obj.value = self.count
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: int) -> int:
        name.value = b"Fake 1080"
        return 0

    def cuDriverGetVersion(self, pointer: Any) -> int:
        pointer._obj.value = self.cuda
        return 0

    def cuDeviceGetAttribute(self, pointer: Any, attribute: int, device: int) -> int:
        pointer._obj.value = {75: 6, 76: 1}[attribute]
        return 0


class FakeSession:
    """Runs `providers`, and computes y = scale * x."""

    def __init__(self, providers: list[str], scale: float = -1.0) -> None:
        self.get_providers = lambda: providers
        self.scale = scale

    def run(self, names: Any, feed: dict[str, Any]) -> list[Any]:
        return [self.scale * feed["x"]]


CPU_ONLY = (
    "has no CUDA; its providers are CPUExecutionProvider. `pip uninstall -y onnxruntime`, then `pip install gptex"
)
BOTH = "onnxruntime 1.31.1 and onnxruntime-gpu 1.31.1 are both installed and overwrite one another: `pip uninstall -y"
NO_GPU = "the NVIDIA driver finds no GPU"
FAKES: dict[str, tuple[dict[str, Any], str | None]] = {
    "works": ({}, None),
    "package without CUDA": ({"available": ["CPUExecutionProvider"], "installed": ["onnxruntime"]}, CPU_ONLY),
    "both packages": ({"available": ["CPUExecutionProvider"], "installed": ["onnxruntime", "onnxruntime-gpu"]}, BOTH),
    "no driver": ({"driver": OSError("libcuda.so.1: cannot open")}, "there is no NVIDIA driver: libcuda.so.1"),
    "driver without GPU": ({"driver": FakeDriver(init=100)}, f"{NO_GPU}: CUDA error 100 (CUDA_VISIBLE_DEVICES is '')"),
    "no device": ({"driver": FakeDriver(count=0)}, f"{NO_GPU} (CUDA_VISIBLE_DEVICES is '')"),
    "library missing": ({"library": OSError(CUBLAS)}, f"a library that CUDA needs does not load: {CUBLAS}. Install"),
    "driver of the CUDA before": (
        {"driver": FakeDriver(cuda=12040)},
        "the NVIDIA driver runs CUDA up to 12.4, and onnxruntime-gpu 1.31.1 was built for 13.0. Update the driver, or "
        "install an onnxruntime-gpu that was built for CUDA 12.",
    ),
    "driver newer than the CUDA": ({"driver": FakeDriver(cuda=14000)}, None),
    "GPU without kernels": (
        {"session": RuntimeError("CUDA failure 209: no kernel image is available for execution on the device")},
        "onnxruntime-gpu 1.31.1 has no kernels for this GPU, Fake 1080 of compute capability 6.1",
    ),
    "took the CPU": ({"session": FakeSession(["CPUExecutionProvider"])}, "CUDAExecutionProvider did not load; ONNX R"),
    "does not open": (
        {"session": RuntimeError("out of luck\nmore")},
        "CUDAExecutionProvider does not run: out of luck",
    ),
    "computes wrongly": (
        {"session": FakeSession(ALL, 2.0)},
        "CUDAExecutionProvider computes wrongly: -(1.5) gave [3.0]",
    ),
}


@pytest.mark.parametrize(("fake", "message"), FAKES.values(), ids=FAKES)
def test_reason_why_cuda_does_not_run(
    fake: dict[str, Any], message: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def distribution(name: str) -> Any:
        if name in fake.get("installed", ["onnxruntime-gpu"]):
            return SimpleNamespace(version="1.31.1", locate_file=lambda file: tmp_path / file)
        raise importlib.metadata.PackageNotFoundError(name)

    def library(name: str) -> Any:
        found = fake.get("driver", FakeDriver()) if "libcuda.so" in name else fake.get("library")
        if isinstance(found, OSError):
            raise found
        return found

    def session(*args: Any, **options: Any) -> Any:
        assert options == {"providers": [("CUDAExecutionProvider", {})], "enable_fallback": 0}
        found = fake.get("session", FakeSession(ALL))
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    monkeypatch.setattr(ctypes, "CDLL", library)
    module: Any = SimpleNamespace(
        __file__=str(tmp_path / "__init__.py"),
        __version__="1.31.1",
        cuda_version="13.0",
        get_available_providers=lambda: fake.get("available", ALL),
        SessionOptions=SimpleNamespace,
        InferenceSession=session,
    )
    reason = CUDA.why_not(module)
    assert reason == message if message is None else message in str(reason)


def test_options_are_checked_and_told_to_the_provider() -> None:
    """The arena grows as ONNX Runtime has it grow: by what is asked it never uses memory again for longer shapes."""
    assert CUDA.options(OpenOptions(), False) == {"use_tf32": "0", "enable_cuda_graph": "0", "sdpa_kernel": "19"}
    told = CUDA.options(OpenOptions(cuda=CudaOptions(tf32=True, memory_limit=1 << 30)), True)
    assert (told["use_tf32"], told["gpu_mem_limit"], told["enable_cuda_graph"]) == ("1", str(1 << 30), "1")
    assert CUDA.threads() == 1  # each graph has a session, and each session would have a pool of all cores
    assert "ep.cuda.enable_gemm_auto_tune" not in CUDA.entries(OpenOptions())
    tuned = CUDA.entries(OpenOptions(cuda=CudaOptions(tune_gemms=True)))
    assert tuned == {**CUDA.entries(OpenOptions()), "ep.cuda.enable_gemm_auto_tune": "1"}
    wrongs: tuple[Any, ...] = (0, True, 1.5)
    for wrong in wrongs:
        with pytest.raises(InputError, match=r"memory_limit is .*; expected an integer of 1 or more, or None"):
            CudaOptions(memory_limit=wrong)
        with pytest.raises(InputError, match=r"captured_tokens is .*; expected an integer of 1 or more"):
            CudaOptions(captured_tokens=wrong)
