"""TensorRT and TensorRT for RTX as a backend: check an engine, open it, and run it from several threads."""

from __future__ import annotations

import importlib
import threading
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.backends.gpu.device import Gpu, find_gpu, why_no_gpu
from gptexport_runtime.backends.gpu.dlpack import CUDA, Borrowed
from gptexport_runtime.backends.tensorrt.context import Lane
from gptexport_runtime.backends.tensorrt.cuda import Buffer, import_cudart
from gptexport_runtime.backends.tensorrt.log import errors_of, open_log
from gptexport_runtime.contract.manifest import ModelInfo
from gptexport_runtime.contract.names import INPUT_IDS, LOGITS
from gptexport_runtime.engine_file import TENSORRT, TENSORRT_RTX, EngineInfo, choose_profile, read_engine
from gptexport_runtime.errors import ArtifactError, BackendUnavailableError, InputError

MODULES = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx"}
INSTALL = {TENSORRT: "pip install gptexport-runtime[tensorrt]", TENSORRT_RTX: "pip install gptexport-runtime[rtx]"}
AMPERE = "8.0"  # since when a hardware-compatible engine runs
CAPTURED_SHAPES = 8  # CUDA graphs that a thread keeps


class TrtGraph:
    """An engine that is open. May be run by several threads at once: each has an execution context of its own."""

    device = "cuda"
    dlpack_device = (CUDA, 0)
    threads = 1  # of the CPU

    def __init__(self, library: types.ModuleType, engine: Any, info: EngineInfo, path: Path) -> None:
        self.backend = info.flavour
        self.engine_info = info
        self.info: ModelInfo = info.info
        self._trt = library
        self._engine = engine
        self._path = path
        self._cudart = import_cudart()
        self._lanes = threading.local()
        self._opening = threading.Lock()

    def run(self, ids: NDArray[np.int64], out: NDArray[np.float32], lengths: NDArray[np.int64] | None = None) -> None:
        """Compute logits (B,T,V) of ids (B,T), both C-contiguous, into `out`.

        Raises:
            InputError: no profile of the engine takes (B,T).
            ExecutionError: CUDA or TensorRT failed.
        """
        assert lengths is None, "an engine has the logits graph alone"
        B, T = ids.shape
        profile = choose_profile(self.engine_info.profiles, B, T)
        self._lane().run(ids, out, profile)

    def run_on_device(self, ids: NDArray[np.int64] | Borrowed) -> Buffer:
        """As `run`, with the logits left in memory of their own on the GPU. `Borrowed` ids are read where they are."""
        B, T = ids.shape
        profile = choose_profile(self.engine_info.profiles, B, T)
        return self._lane().run_on_device(ids, (B, T, self.info.vocab_size), profile)

    def read_ids(self, ids: Borrowed) -> NDArray[np.int64]:
        """Ids that are on the GPU, copied to the host to be checked there."""
        return self._lane().read_ids(ids)

    @property
    def stream(self) -> int:
        """The CUDA stream that this thread's work goes to."""
        return self._lane().stream.handle

    def _lane(self) -> Lane:
        lane: Lane | None = getattr(self._lanes, "lane", None)
        if lane is None:
            with self._opening:
                lane = Lane(self._trt, self._engine, self._cudart, self._path, CAPTURED_SHAPES)
            self._lanes.lane = lane
        return lane


def open_engine(path: Path, device: str) -> TrtGraph:
    """Open an engine, after everything has been checked that can be: header, sidecar, library, GPU, then the engine.

    Raises:
        ArtifactError: the file is damaged, its sidecar is missing or another engine's.
        BackendUnavailableError: this machine lacks the library, its version or the GPU.
        InputError: `device` is "cpu".
    """
    if device == "cpu":
        raise InputError(f'{path} is a TensorRT engine, which runs on CUDA only; got device="cpu". Load the bundle.')
    info, data = read_engine(path)  # header, then hash
    library = _import_library(info, path)
    if reason := why_no_gpu():  # before any call into the library: without a GPU it ends the process
        raise BackendUnavailableError(
            f"{path} is a TensorRT engine, which needs a GPU, and {reason} "
            "The bundle it was built from runs on the CPU."
        )
    _check_gpu(info, find_gpu(), path)
    import_cudart()
    logger = open_log(library)
    engine = library.Runtime(logger).deserialize_cuda_engine(data)
    if engine is None:
        raise ArtifactError(
            f"{path} does not deserialize: {errors_of(logger.lines)} Build it again: {info.rebuild_command}"
        )
    _check_interface(library, engine, info, path)
    return TrtGraph(library, engine, info, path)


def _import_library(info: EngineInfo, path: Path) -> types.ModuleType:
    module = MODULES[info.flavour]
    try:
        library = importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise BackendUnavailableError(
            f"{path} needs {info.flavour} {info.version}, and {module} does not import ({error}): "
            f"`{INSTALL[info.flavour]}`."
        ) from error
    version = str(library.__version__)
    if version != info.version and not (info.options.get("version_compatible") and _at_least(version, info.version)):
        raise BackendUnavailableError(
            f"{path} was built by {info.flavour} {info.version}; {version} is installed, and an engine runs with the "
            f"version that built it. Install that one, or build it again: {info.rebuild_command}"
        )
    return library


def _at_least(version: str, other: str) -> bool:
    return [int(part) for part in version.split(".")] >= [int(part) for part in other.split(".")]


def _check_gpu(info: EngineInfo, gpu: Gpu, path: Path) -> None:
    if gpu.compute_capability in info.compute_capabilities:
        return
    if info.options.get("hardware_compatible") and _at_least(gpu.compute_capability, AMPERE):
        return
    advice = f"Build it there: {info.rebuild_command}"
    if info.flavour == TENSORRT_RTX:
        advice = f"Build it again with --compute-capability {gpu.compute_capability}: {info.rebuild_command}"
    raise BackendUnavailableError(
        f"{path} was compiled for GPUs of compute capability {', '.join(info.compute_capabilities)}; this one is "
        f"{gpu.name}, {gpu.compute_capability}. {advice}"
    )


def _check_interface(library: types.ModuleType, engine: Any, info: EngineInfo, path: Path) -> None:
    """Hold the engine against its sidecar: a wrong name is silent in TensorRT, a wrong dtype reads wrong memory."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    dtypes = {INPUT_IDS: library.DataType.INT64, LOGITS: library.DataType.FLOAT}
    got: list[Any] = [sorted(names)]
    expected: list[Any] = [sorted(dtypes)]
    if got == expected:
        got += [engine.get_tensor_dtype(name) for name in dtypes]
        expected += list(dtypes.values())
        got += [tuple(engine.get_tensor_shape(LOGITS))[2], engine.num_optimization_profiles]
        expected += [info.info.vocab_size, len(info.profiles)]
    if got == expected:
        for index, profile in enumerate(info.profiles):
            got += [tuple(shape) for shape in engine.get_tensor_profile_shape(INPUT_IDS, index)]
            expected += [profile.min, profile.opt, profile.max]
    if got != expected:
        raise ArtifactError(
            f"{path} is not what its sidecar says: it has {_text(got)}; expected {_text(expected)}. "
            f"Build it again: {info.rebuild_command}"
        )


def _text(values: Sequence[Any]) -> str:
    return ", ".join(str(getattr(value, "name", value)) for value in values)
