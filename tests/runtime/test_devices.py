"""A device that was asked for runs or is refused with the reason; nothing falls back in silence."""

import ctypes
import importlib.metadata
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gptexport_runtime
from gptexport_runtime import ArtifactError, BackendUnavailableError
from gptexport_runtime.backends.ort import graph as ort
from gptexport_runtime.backends.ort import providers

TINY = Path(__file__).parent / "data" / "tiny"
ALL = ["CUDAExecutionProvider", "CPUExecutionProvider"]
CUBLAS = "libcublasLt.so.13: cannot open shared object file"


@pytest.fixture
def no_cuda() -> None:
    if providers.why_not_cuda(providers.import_onnxruntime()) is None:
        pytest.skip("CUDA runs here")


def test_cuda_without_cuda_is_refused(no_cuda: None, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BackendUnavailableError, match=r'device="cuda" is not available: .+') as caught:
        gptexport_runtime.load(TINY, "cuda")
    if "CUDAExecutionProvider" not in providers.import_onnxruntime().get_available_providers():
        assert "pip install gptexport-runtime[gpu]" in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_auto_without_cuda_is_the_cpu(no_cuda: None) -> None:
    with gptexport_runtime.load(TINY) as session:
        assert session.device == "cpu"


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_session_that_took_the_cpu_for_cuda_is_refused(no_cuda: None) -> None:
    """Even when every look beforehand found nothing wrong."""
    with pytest.raises(BackendUnavailableError, match="ONNX Runtime took CPUExecutionProvider instead"):
        ort.open_session(TINY / "logits.onnx", "cuda", 1)


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_bundle_for_cuda_is_refused_on_the_cpu(no_cuda: None, device: Any, bundle: Path) -> None:
    """Before ONNX Runtime says it by the name of a node; and "auto" tells why it is not CUDA here."""
    manifest = bundle / "gptexport.json"
    data = {**json.loads(manifest.read_text()), "target": "cuda", "dtype": "float16"}
    del data["runs_on"]  # as version 0.1 wrote it: target and dtype say where it runs
    manifest.write_text(json.dumps(data))
    with pytest.raises(
        BackendUnavailableError, match=r"tiny was exported with --target cuda in float16, .*--target cpu\."
    ) as caught:
        gptexport_runtime.load(bundle, device)
    asked = 'device="cpu" was asked for.'
    reason = asked if device == "cpu" else providers.why_not_cuda(providers.import_onnxruntime())
    assert str(reason) in str(caught.value)


def test_bundle_for_cuda_in_float32_runs_on_the_cpu(no_cuda: None, bundle: Path) -> None:
    manifest = bundle / "gptexport.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "target": "cuda"}))
    with gptexport_runtime.load(bundle, "cpu") as session:
        assert session.device == "cpu"


def test_without_onnxruntime_both_extras_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailableError, match=r"runtime\[cpu\]` or `.*runtime\[gpu\]`, never both"):
        gptexport_runtime.load(TINY, "cpu")
    probe = providers.probe_providers()
    assert probe.version is None and [p.loads for p in probe.providers] == [False, False]


def test_damaged_onnxruntime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `pip uninstall onnxruntime-gpu` beside onnxruntime: the package is there, its files are not."""
    monkeypatch.setitem(sys.modules, "onnxruntime.capi", None)
    for name in [name for name in sys.modules if name == "onnxruntime" or name.startswith("onnxruntime.")]:
        if name != "onnxruntime.capi":
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(BackendUnavailableError, match=r"onnxruntime does not import: .*capi"):
        gptexport_runtime.load(TINY, "cpu")


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
    def version(name: str) -> str:
        if name in fake.get("installed", ["onnxruntime-gpu"]):
            return "1.31.1"
        raise importlib.metadata.PackageNotFoundError(name)

    def library(name: str) -> Any:
        found = fake.get("driver", FakeDriver()) if "libcuda.so" in name else fake.get("library")
        if isinstance(found, OSError):
            raise found
        return found

    def session(*args: Any, **options: Any) -> Any:
        assert options == {"providers": ["CUDAExecutionProvider"], "enable_fallback": 0}
        found = fake.get("session", FakeSession(ALL))
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(ctypes, "CDLL", library)
    module: Any = SimpleNamespace(
        __file__=str(tmp_path / "__init__.py"),
        __version__="1.31.1",
        cuda_version="13.0",
        get_available_providers=lambda: fake.get("available", ALL),
        preload_dlls=lambda: print("noise"),
        SessionOptions=SimpleNamespace,
        InferenceSession=session,
    )
    reason = providers.why_not_cuda(module)
    assert reason == message if message is None else message in str(reason)


def test_nvidia_wheels_are_loaded_before_giving_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Their libraries are on no search path; and what ONNX Runtime prints as it tries is not the caller's to read."""
    loaded: list[str] = []

    def library(name: str) -> None:
        if not loaded:
            raise OSError(CUBLAS)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", library)
    module: Any = SimpleNamespace(
        __file__=str(tmp_path / "x"), __version__="1", preload_dlls=lambda: loaded.append("all")
    )
    assert providers._why_no_library(module) is None


def test_probe_tells_what_runs(no_cuda: None) -> None:
    probe = providers.probe_providers()
    cpu, cuda = probe.providers
    assert (cpu.device, cpu.loads, cpu.reason) == ("cpu", True, None)
    assert (cuda.device, cuda.loads) == ("cuda", False) and cuda.reason
    assert probe.version == providers.import_onnxruntime().__version__ and "CPUExecutionProvider" in probe.available
    assert len(probe.distributions) >= 1 and (probe.conflict is None) == (len(probe.distributions) == 1)


class NotImplemented(Exception):  # as ONNX Runtime names its own
    pass


LOADING = {
    "no kernel": (NotImplemented("no kernel for X(1)"), BackendUnavailableError, "cannot run m.onnx on cpu: no kernel"),
    "memory": (
        RuntimeError("Failed to allocate memory"),
        BackendUnavailableError,
        "does not fit into the memory of cpu",
    ),
    "opset": (RuntimeError("Opset 99 is under development"), ArtifactError, "upgrade, or export with a lower --opset"),
}


@pytest.mark.parametrize(("error", "kind", "message"), LOADING.values(), ids=LOADING)
def test_what_stops_a_load_is_told_apart(error: Exception, kind: type[Exception], message: str) -> None:
    ours = ort._load_error(SimpleNamespace(__version__="1"), Path("m.onnx"), "cpu", error)
    assert type(ours) is kind and message in str(ours)


def test_usable_cores_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    assert ort.usable_cores() == 3


def test_tiny_model_runs() -> None:
    onnxruntime = providers.import_onnxruntime()
    session = onnxruntime.InferenceSession(providers.TINY_MODEL, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.array([2], np.float32)})[0].tolist() == [-2]
