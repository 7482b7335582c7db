"""ONNX Runtime as a backend: a session of it, and one graph on the CPU that runs straight into the caller's memory."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.backends.gpu.memory import Block, HostPlace
from gptexport_runtime.backends.ort.cuda_options import SESSION_ENTRIES, CudaOptions
from gptexport_runtime.backends.ort.providers import CPU, CUDA, SILENT, first_line, import_onnxruntime, why_not_cuda
from gptexport_runtime.backends.ort.signature import read_contract
from gptexport_runtime.contract import heads
from gptexport_runtime.contract.manifest import ModelInfo
from gptexport_runtime.contract.names import INPUT_IDS, LENGTHS
from gptexport_runtime.errors import ArtifactError, BackendUnavailableError, ExecutionError

# of a call on the CPU: the activations of more fall out of its caches, and take memory for nothing
TOKENS_AT_ONCE = 1024
DEFAULT_CUDA = CudaOptions()


@dataclass(frozen=True)
class Pending:
    """Where graphs will run that are not open yet."""

    device: str
    threads: int
    backend = "onnxruntime"


class OrtGraph:
    """A graph that is open on the CPU, of a kind in SIGNATURES. May be run by several threads at once."""

    backend = "onnxruntime"
    device = "cpu"
    dlpack_device = HostPlace.dlpack_device

    def __init__(self, session: Any, path: Path, kind: str, threads: int) -> None:
        self.threads = threads
        self.info = read_contract(session, path, kind)
        self._output = heads.HEADS[kind].signature.output
        self._session = session
        self._path = path

    def run(self, ids: NDArray[np.int64], out: NDArray[np.float32], lengths: NDArray[np.int64] | None = None) -> None:
        """Compute the graph's output of ids (B,T), and of lengths (B) where it takes them, straight into `out`.

        All are C-contiguous; `out` has the output's shape. A large batch runs a few rows at a time.

        Raises:
            ExecutionError: ONNX Runtime failed.
        """
        B, T = ids.shape
        rows = max(1, TOKENS_AT_ONCE // T)
        for start in range(0, B, rows):
            part = slice(start, start + rows)
            self._run(ids[part], out[part], None if lengths is None else lengths[part])

    def run_on_device(self, ids: NDArray[np.int64]) -> Block:
        """As `run`, into memory of its own, which here is the host's."""
        B, T = ids.shape
        shape = (B, T, self.info.vocab_size)
        block = HostPlace().allocate(4 * math.prod(shape))
        self.run(ids, block.as_array(shape, np.float32))
        return block

    def _run(self, ids: NDArray[np.int64], out: NDArray[np.float32], lengths: NDArray[np.int64] | None) -> None:
        binding = self._session.io_binding()
        binding.bind_cpu_input(INPUT_IDS, ids)
        if lengths is not None:
            binding.bind_cpu_input(LENGTHS, lengths)
        # bound even when the caller passed no buffer: ONNX Runtime else copies its result into a numpy array
        binding.bind_output(self._output, "cpu", 0, np.float32, out.shape, out.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
            unknown = "" if self.info.block_size else " The graph does not tell its block_size: T may be past it."
            B, T = ids.shape
            raise ExecutionError(
                f"{self._path} failed on {self.device} at B={B}, T={T}: {first_line(error)}.{unknown}"
            ) from error


def open_graph(
    path: Path,
    device: Literal["cpu"],
    kind: str = heads.LOGITS.name,
    *,
    threads: int | None = None,
    prepack: bool = True,
    spin: bool = True,
) -> OrtGraph:
    """Open the graph in `path` on the CPU; ort_cuda.py opens it on a GPU.

    Args:
        kind: which of SIGNATURES the graph must have; `decode` has an opener of its own (ort_decode.py).
        threads: of the CPU for one call; None: as many as this process may use.
        prepack: let the CPU's kernels keep a copy of the weights in the layout that they read.
        spin: let threads wait for the next operation without sleeping.

    Raises:
        BackendUnavailableError: ONNX Runtime is missing, or cannot run this graph on the CPU.
        ArtifactError: the file is damaged, its external data is missing, or it is not a graph of that kind.
    """
    threads = threads or usable_cores()
    return OrtGraph(open_session(path, device, threads, prepack, spin, plan=worth_a_plan(kind)), path, kind, threads)


def worth_a_plan(kind: str) -> bool:
    """Of the graph's memory: one block, kept while `score` loops over the head, which needs as much again."""
    return kind != heads.SCORE.name


def choose_device(device: str) -> str:
    """ "cpu" or "cuda" for "cpu", "cuda", or "auto", which is CUDA where CUDA works.

    Raises:
        BackendUnavailableError: ONNX Runtime is missing, or "cuda" does not run here.
    """
    ort = import_onnxruntime()
    if device == "cpu":
        return device
    reason = why_not_cuda(ort)
    if reason is None:
        return "cuda"
    if device == "auto":
        return "cpu"
    raise BackendUnavailableError(f'device="cuda" is not available: {reason}')


def usable_cores() -> int:
    """Cores that this process may run on, which in a container or under taskset are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_graph(path: Path, device: str) -> ModelInfo:
    """The limits of a logits graph, opened as cheaply as can be, to see that this ONNX Runtime runs it.

    Raises:
        as `open_graph`.
    """
    return read_contract(open_session(path, device, 1, prepack=False, spin=False, optimize=False), path)


def open_session(
    path: Path,
    device: str,
    threads: int,
    prepack: bool = True,
    spin: bool = True,
    *,
    optimize: bool = True,
    plan: bool = True,
    cuda: CudaOptions = DEFAULT_CUDA,
    graphs: bool = False,
) -> Any:
    """An `onnxruntime.InferenceSession` that runs on `device`, "cpu" or "cuda", and nowhere else.

    Raises:
        BackendUnavailableError: it cannot run there.
        ArtifactError: the file is damaged, or its external data is missing.
    """
    ort = import_onnxruntime()
    provider, provider_options = (CUDA, cuda.of_provider(graphs=graphs)) if device == "cuda" else (CPU, {})
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    options.intra_op_num_threads = threads
    if device == "cuda":
        for key, value in SESSION_ENTRIES.items():
            options.add_session_config_entry(key, value)
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_pattern = plan
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if not spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        # by path, not by bytes: the weights are then mapped into memory, not copied
        session = ort.InferenceSession(str(path), options, providers=[(provider, provider_options)], enable_fallback=0)
    except Exception as error:
        raise _load_error(ort, path, device, error) from error
    session.disable_fallback()  # a run that fails on CUDA would be repeated on the CPU
    if provider not in session.get_providers():
        raise BackendUnavailableError(
            f"{path} did not open on {device}: ONNX Runtime took {', '.join(session.get_providers())} instead."
        )
    return session


def _load_error(ort: Any, path: Path, device: str, error: Exception) -> ArtifactError | BackendUnavailableError:
    """Our error for what `InferenceSession` raised, told apart by its name and text: it has nothing better."""
    text = first_line(error)
    if type(error).__name__ == "NotImplemented":
        return BackendUnavailableError(f"onnxruntime {ort.__version__} cannot run {path} on {device}: {text}")
    if "graph capture" in text:
        return BackendUnavailableError(f"{path} cannot be captured as CUDA graphs, which were asked for: {text}")
    if "allocate memory" in text or "out of memory" in text.lower():
        return BackendUnavailableError(f"{path} does not fit into the memory of {device}: {text}")
    if "External data path" in text:
        advice = "Its external data must lie beside it, under the name it was exported with."
    elif "opset" in text.lower() or "IR version" in text:
        advice = f"onnxruntime {ort.__version__} may be too old for it: upgrade, or export with a lower --opset."
    else:
        advice = "It is damaged or not an ONNX graph: copy it again, or export again."
    return ArtifactError(f"{path} does not load: {text}. {advice}")
