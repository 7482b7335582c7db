"""TensorRT and TensorRT for RTX as a backend: open an engine, after everything has been checked that can be."""

from __future__ import annotations

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from gptexport_runtime.backends.base import Ids
from gptexport_runtime.backends.gpu.device import Gpu, find_gpu, why_no_gpu
from gptexport_runtime.backends.gpu.dlpack import Borrowed
from gptexport_runtime.backends.gpu.driver import load_driver
from gptexport_runtime.backends.gpu.memory import DeviceMemory
from gptexport_runtime.backends.tensorrt.graph import TrtGraph
from gptexport_runtime.backends.tensorrt.library import import_library
from gptexport_runtime.backends.tensorrt.log import errors_of, open_log
from gptexport_runtime.contract import heads
from gptexport_runtime.contract.engine import EngineInfo
from gptexport_runtime.contract.heads import Head
from gptexport_runtime.contract.model import ModelInfo
from gptexport_runtime.contract.names import INPUT_IDS, LOGITS
from gptexport_runtime.engine_file import read_engine
from gptexport_runtime.errors import ArtifactError, BackendUnavailableError, InputError

AMPERE = "8.0"  # since when a hardware-compatible engine runs


class TrtBackend:
    """See base.Backend. An engine has the logits graph alone."""

    device = "cuda"
    threads = 1  # of the CPU

    def __init__(self, info: EngineInfo, graph: TrtGraph, memory: DeviceMemory) -> None:
        self.name = info.edition.name
        self.tokens_at_once = max(B * T for B, T in (profile.max for profile in info.profiles))
        self._info, self._graph, self._memory = info.info, graph, memory

    @property
    def captured_graphs(self) -> int:
        return self._graph.captured_graphs

    def info(self) -> ModelInfo:
        return self._info

    def has(self, head: Head) -> bool:
        return head is heads.LOGITS

    def open(self, head: Head) -> TrtGraph:
        assert self.has(head), "asked first"
        return self._graph

    def open_decoder(self, head: Head) -> NoReturn:
        raise NotImplementedError("an engine has no cache")

    def borrow(self, ids: object) -> Borrowed | None:
        return self._memory.borrow(ids)

    def read(self, ids: Borrowed) -> Ids:
        return self._memory.read(ids)


def open_engine(path: Path, info: EngineInfo, device: str) -> TrtBackend:
    """Open an engine: its file, the library, the GPU, then the engine itself.

    Args:
        info: of its sidecar.
        device: as `load` was asked.

    Raises:
        ArtifactError: the file is damaged, or another engine than the sidecar's.
        BackendUnavailableError: this machine lacks the library, its version or the GPU.
        InputError: `device` is one that no engine runs on.
    """
    if device not in ("auto", *info.runs_on):
        raise InputError(
            f'{path} is a TensorRT engine, which runs on CUDA only; got device="{device}". Load the bundle.'
        )
    data = read_engine(path, info)  # header, then hash
    library = _import(info, path)
    if reason := why_no_gpu():  # before any call into the library: without a GPU it ends the process
        raise BackendUnavailableError(
            f"{path} is a TensorRT engine, which needs a GPU, and {reason} "
            "The bundle it was built from runs on the CPU."
        )
    _check_gpu(info, find_gpu(), path)
    memory = DeviceMemory(load_driver())
    logger = open_log(library)
    opened = library.Runtime(logger).deserialize_cuda_engine(data)
    if opened is None:
        raise ArtifactError(
            f"{path} does not deserialize: {errors_of(logger.lines)} Build it again: {info.rebuild_command}"
        )
    _check_interface(library, opened, info, path)
    return TrtBackend(info, TrtGraph(library, opened, info, memory, path), memory)


def _import(info: EngineInfo, path: Path) -> types.ModuleType:
    try:
        library = import_library(info.edition, "gptexport-runtime")
    except BackendUnavailableError as error:
        raise BackendUnavailableError(f"{path} needs {info.edition} {info.version}, and {error}") from error
    version = str(library.__version__)
    if version != info.version and not (info.options.get("version_compatible") and _at_least(version, info.version)):
        raise BackendUnavailableError(
            f"{path} was built by {info.edition} {info.version}; {version} is installed, and an engine runs with the "
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
    if info.edition.names_targets:
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
