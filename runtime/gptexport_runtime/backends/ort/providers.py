"""Which of ONNX Runtime's execution providers really work here, and why one does not.

ONNX Runtime itself answers a provider that cannot load with a warning and the CPU. So look before asking it: the
package, then the driver, the device, the provider's libraries, and last a model of one node that must run there.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import io
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptexport_runtime.backends.gpu.device import find_gpu, why_no_gpu
from gptexport_runtime.errors import BackendUnavailableError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
CPU_PACKAGE = "onnxruntime"
GPU_PACKAGE = "onnxruntime-gpu"
INSTALL_CPU = "pip install gptexport-runtime[cpu]"
INSTALL_GPU = "pip install gptexport-runtime[gpu]"

SILENT = 4  # ONNX Runtime's severity "fatal": what goes wrong is in our exception, so nothing need be printed

# `Neg` from x to y, both float32 of shape (1,): what protobuf makes of the ONNX ModelProto that the comments spell out.
# Written by hand because the runtime has no onnx to write it with.
TINY_MODEL = (
    b"\x08\x08"  # ir_version: 8
    b"\x3a\x2e"  # graph, 46 bytes:
    b"\x0a\x0b\x0a\x01x\x12\x01y\x22\x03Neg"  # node: input "x", output "y", op_type "Neg"
    b"\x12\x01g"  # name: "g"
    b"\x5a\x0d\x0a\x01x\x12\x08\x0a\x06\x08\x01\x12\x02\x0a\x00"  # input: "x", tensor of float, one unnamed dim
    b"\x62\x0d\x0a\x01y\x12\x08\x0a\x06\x08\x01\x12\x02\x0a\x00"  # output: "y", likewise
    b"\x42\x02\x10\x0d"  # opset_import: version 13
)


def import_onnxruntime() -> types.ModuleType:
    """The `onnxruntime` module.

    Raises:
        BackendUnavailableError: it is not installed, or does not import.
    """
    try:
        return importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise BackendUnavailableError(f"onnxruntime does not import: {error}. Install it again.") from error
        raise BackendUnavailableError(
            f"onnxruntime is not installed. One of: `{INSTALL_CPU}` or `{INSTALL_GPU}`, never both."
        ) from error
    except ImportError as error:  # a damaged install, as when one of two packages was uninstalled
        advice = conflict(installed_distributions()) or "Install it again."
        raise BackendUnavailableError(f"onnxruntime does not import: {error}. {advice}") from error


def installed_distributions() -> tuple[tuple[str, str], ...]:
    """(name, version) of the installed packages that bring `onnxruntime`."""
    found = []
    for name in (CPU_PACKAGE, GPU_PACKAGE):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append((name, importlib.metadata.version(name)))
    return tuple(found)


def conflict(found: tuple[tuple[str, str], ...]) -> str | None:
    """Both packages write the same folder (onnxruntime#26996), so which files are there is a matter of chance."""
    if len(found) < 2:
        return None
    names = " and ".join(f"{name} {version}" for name, version in found)
    return (
        f"{names} are both installed and overwrite one another: "
        f"`pip uninstall -y {CPU_PACKAGE} {GPU_PACKAGE}`, then `{INSTALL_CPU}` or `{INSTALL_GPU}`."
    )


@dataclass(frozen=True)
class ProviderProbe:
    """Whether a device really runs a graph; where not, why, and what to do."""

    device: str  # "cpu" or "cuda"
    loads: bool
    reason: str | None


@dataclass(frozen=True)
class RuntimeProbe:
    """What there is of ONNX Runtime on this machine."""

    version: str | None  # None: not importable
    distributions: tuple[tuple[str, str], ...]  # (name, version) of each that is installed
    conflict: str | None  # why what is installed cannot be relied on
    available: tuple[str, ...]  # the execution providers that the package was built with
    providers: tuple[ProviderProbe, ...]  # of the CPU and of CUDA, as tried


def probe_providers() -> RuntimeProbe:
    """Try each device in earnest. Raises nothing: what is wrong is in the result."""
    found = installed_distributions()
    try:
        ort = import_onnxruntime()
    except BackendUnavailableError as error:
        nothing = tuple(ProviderProbe(device, False, str(error)) for device in ("cpu", "cuda"))
        return RuntimeProbe(None, found, conflict(found), (), nothing)
    why_not = {"cpu": why_not_cpu(ort), "cuda": why_not_cuda(ort)}
    return RuntimeProbe(
        version=ort.__version__,
        distributions=found,
        conflict=conflict(found),
        available=tuple(ort.get_available_providers()),
        providers=tuple(ProviderProbe(device, reason is None, reason) for device, reason in why_not.items()),
    )


def why_not_cpu(ort: types.ModuleType) -> str | None:
    """None when the CPU provider runs; else why it does not."""
    return _why_not_running(ort, CPU)


def why_not_cuda(ort: types.ModuleType) -> str | None:
    """None when the CUDA provider runs; else the first thing in its way, and what to do about it."""
    if CUDA not in ort.get_available_providers():
        found = installed_distributions()
        if reason := conflict(found):
            return reason
        names = ", ".join(f"{name} {version}" for name, version in found) or f"onnxruntime {ort.__version__}"
        return (
            f"{names} has no CUDA; its providers are {', '.join(ort.get_available_providers())}. "
            f"`pip uninstall -y {CPU_PACKAGE}`, then `{INSTALL_GPU}`."
        )
    return why_no_gpu() or _why_old_driver(ort) or _why_no_library(ort) or _why_not_running(ort, CUDA)


def _why_old_driver(ort: types.ModuleType) -> str | None:
    """A driver runs every CUDA of its own major version and of those before."""
    built = str(getattr(ort, "cuda_version", None) or "")  # "13.0"; onnxruntime/__init__.py
    try:
        gpu = find_gpu()
    except BackendUnavailableError as error:
        return str(error)
    major = gpu.driver_cuda.split(".")[0]
    if not built or int(built.split(".")[0]) <= int(major):
        return None
    return (
        f"the NVIDIA driver runs CUDA up to {gpu.driver_cuda}, and {GPU_PACKAGE} {ort.__version__} was built for "
        f"{built}. Update the driver, or install an {GPU_PACKAGE} that was built for CUDA {major}."
    )


def _why_no_library(ort: types.ModuleType) -> str | None:
    if sys.platform == "win32":  # where a failed load does not name the library that was missing
        return None
    library = Path(ort.__file__ or "").parent / "capi" / "libonnxruntime_providers_cuda.so"
    error = _load(library)
    if error is not None and hasattr(ort, "preload_dlls"):
        # the libraries of nvidia-* wheels are on no search path until ONNX Runtime loads them; it prints as it tries
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
        error = _load(library)
    if error is None:
        return None
    return (
        f"a library that CUDA needs does not load: {error}. Install the CUDA and cuDNN that onnxruntime-gpu "
        f"{ort.__version__} was built for: `pip install onnxruntime-gpu[cuda,cudnn]=={ort.__version__}`."
    )


def _load(library: Path) -> str | None:
    """None when it loads; else the loader's message, which names the library that is missing."""
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return None


def _why_not_running(ort: types.ModuleType, provider: str) -> str | None:
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    try:
        session = ort.InferenceSession(TINY_MODEL, options, providers=[provider], enable_fallback=0)
        if provider not in session.get_providers():
            return f"{provider} did not load; ONNX Runtime took {', '.join(session.get_providers())} instead."
        (y,) = session.run(["y"], {"x": np.array([1.5], dtype=np.float32)})
    except Exception as error:  # whatever stops it is the answer
        if "no kernel image" in str(error):  # cudaErrorNoKernelImageForDevice
            gpu = find_gpu()
            return (
                f"{GPU_PACKAGE} {ort.__version__} has no kernels for this GPU, {gpu.name} of compute capability "
                f"{gpu.compute_capability}, which is too old for it or too new. Install a version that names it."
            )
        return f"{provider} does not run: {first_line(error)}"
    return None if y.tolist() == [-1.5] else f"{provider} computes wrongly: -(1.5) gave {y.tolist()}."


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
