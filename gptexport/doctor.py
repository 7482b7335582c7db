"""What this machine can run. It tries rather than trusts lists; torch-free, so that a broken torch is no obstacle."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gptexport.engine.edition import PACKAGE, Library
from gptexport_runtime.backends.gpu.device import find_gpu, why_no_gpu
from gptexport_runtime.backends.ort.probe import probe_providers
from gptexport_runtime.backends.ort.providers.cpu import usable_cores
from gptexport_runtime.backends.tensorrt.library import import_library
from gptexport_runtime.contract.edition import EDITIONS, Edition
from gptexport_runtime.errors import BackendUnavailableError

PACKAGES = (
    "gptexport",
    "gptexport-runtime",
    "torch",
    "onnx",
    "onnxscript",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "onnxruntime-ep-openvino",
    "tensorrt",
    "tensorrt-rtx",
    "huggingface_hub",
)
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16", "asimddp", "i8mm")


@dataclass(frozen=True)
class Provider:
    """A device as ONNX Runtime serves it."""

    name: str
    loads: bool
    reason: str | None  # why not
    about: str | None = None  # the provider's version, and what the device can do


@dataclass(frozen=True)
class EngineLibrary:
    """TensorRT, or TensorRT for RTX: what it could do here."""

    name: str
    version: str | None  # None: not installed
    builds: str  # which engines
    runs: bool
    reason: str | None  # why it does not run them


@dataclass(frozen=True)
class Health:
    """What `gptexport doctor` found. `problems` are things to mend, each with the command that mends it."""

    python: str
    cores: int  # that this process may use, so the threads a session takes
    memory: str
    instructions: list[str]
    versions: dict[str, str | None]
    providers: list[Provider]
    engines: list[EngineLibrary]
    problems: list[str]
    export_with: str | None = None  # the options of `gptexport onnx` for what is fastest here

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine() -> Health:
    """Look at packages and hardware, and load each provider once."""
    probe = probe_providers()
    problems = [problem for problem in (probe.conflict, *(p.lacks for p in probe.providers)) if problem]
    return Health(
        python=platform.python_version(),
        cores=usable_cores(),
        memory=_memory(),
        instructions=cpu_instructions(),
        versions={name: _version(name) for name in PACKAGES},
        providers=[Provider(p.device, p.loads, p.reason, p.about) for p in probe.providers],
        engines=[_engine_library(edition) for edition in EDITIONS.values()],
        problems=problems,
        export_with=probe.export_with,
    )


def _engine_library(edition: Edition) -> EngineLibrary:
    """Only imported: without a GPU any call into its runtime would end the process."""
    try:
        trt = import_library(edition, PACKAGE)
    except BackendUnavailableError as error:
        return EngineLibrary(edition.name, None, "none", False, str(error))
    reason = why_no_gpu()
    library = Library(edition, trt, str(trt.__version__), None if reason else find_gpu())
    here = [library.gpu.compute_capability] if library.gpu else []
    builds = ", ".join(library.targets or here) or "none"
    if library.targets and here and here[0] not in library.targets:
        reason = f"it has no target {here[0]}, which this GPU is."
    return EngineLibrary(edition.name, library.version, builds, reason is None, reason)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (ValueError, OSError, AttributeError):
        return "unknown"


def cpu_instructions() -> list[str]:
    """The vector instructions that decide speed, where the system says."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return []
    flags = set(cpuinfo.read_text().split())
    return [name for name in INSTRUCTIONS if name in flags]
