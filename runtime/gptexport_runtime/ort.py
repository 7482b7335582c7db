"""ONNX Runtime as a backend: what of it works here, and one graph opened with it and run into the caller's memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.contract import (
    GRAPH_DECODE,
    GRAPH_LOGITS,
    GRAPH_SCORE,
    INPUT_IDS,
    LENGTHS,
    LOGITS,
    META_BLOCK_SIZE,
    META_VOCAB_SIZE,
    SIGNATURES,
    ModelInfo,
)
from gptexport_runtime.errors import ArtifactError, BackendUnavailableError, ExecutionError
from gptexport_runtime.providers import (
    CPU,
    CUDA,
    SILENT,
    conflict,
    first_line,
    import_onnxruntime,
    installed_distributions,
    why_not_cpu,
    why_not_cuda,
)

# of a call on the CPU: the activations of more fall out of its caches, and take memory for nothing
TOKENS_AT_ONCE = 1024
# CUDA would else round fp32 operands to TF32's 10 bits: other numbers than those of the model
CUDA_OPTIONS = {"use_tf32": "0"}


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


@dataclass(frozen=True)
class Place:
    """Where graphs will run that are not open yet."""

    device: str
    threads: int
    backend = "onnxruntime"


class OrtGraph:
    """A graph that is open, of a kind in SIGNATURES. May be run by several threads at once."""

    backend = "onnxruntime"

    def __init__(self, session: Any, path: Path, kind: str, device: str, threads: int) -> None:
        self.device = device
        self.threads = threads
        self.info = read_contract(session, path, kind)
        self._output = SIGNATURES[kind].output
        self._session = session
        self._path = path

    def run(self, ids: NDArray[np.int64], out: NDArray[np.float32], lengths: NDArray[np.int64] | None = None) -> None:
        """Compute the graph's output of ids (B,T), and of lengths (B) where it takes them, straight into `out`.

        All are C-contiguous; `out` has the output's shape. On the CPU a large batch runs a few rows at a time.

        Raises:
            ExecutionError: ONNX Runtime failed.
        """
        B, T = ids.shape
        rows = max(1, TOKENS_AT_ONCE // T) if self.device == "cpu" else B
        for start in range(0, B, rows):
            part = slice(start, start + rows)
            self._run(ids[part], out[part], None if lengths is None else lengths[part])

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
    device: str,
    kind: str = GRAPH_LOGITS,
    *,
    threads: int | None = None,
    prepack: bool = True,
    spin: bool = True,
) -> OrtGraph:
    """Open the graph in `path` on `device`: "cpu", "cuda", or "auto", which is CUDA where CUDA works.

    Args:
        kind: which of SIGNATURES the graph must have; `decode` has an opener of its own (ort_decode.py).
        threads: of the CPU for one call; None: as many as this process may use.
        prepack: let the CPU's kernels keep a copy of the weights in the layout that they read.
        spin: let threads wait for the next operation without sleeping.

    Raises:
        BackendUnavailableError: ONNX Runtime is missing, or cannot run this graph on the device asked for.
        ArtifactError: the file is damaged, its external data is missing, or it is not a graph of that kind.
    """
    device, threads = choose_device(device), threads or usable_cores()
    # a plan of the graph's memory would be one block, kept while `score` loops over the head, which needs as much again
    plan = kind != GRAPH_SCORE
    return OrtGraph(open_session(path, device, threads, prepack, spin, plan=plan), path, kind, device, threads)


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
    path: Path, device: str, threads: int, prepack: bool, spin: bool, *, optimize: bool = True, plan: bool = True
) -> Any:
    """An `onnxruntime.InferenceSession` that runs on `device`, "cpu" or "cuda", and nowhere else.

    Raises:
        BackendUnavailableError: it cannot run there.
        ArtifactError: the file is damaged, or its external data is missing.
    """
    ort = import_onnxruntime()
    provider, provider_options = (CUDA, CUDA_OPTIONS) if device == "cuda" else (CPU, {})
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    options.intra_op_num_threads = threads
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
    if "allocate memory" in text or "out of memory" in text.lower():
        return BackendUnavailableError(f"{path} does not fit into the memory of {device}: {text}")
    if "External data path" in text:
        advice = "Its external data must lie beside it, under the name it was exported with."
    elif "opset" in text.lower() or "IR version" in text:
        advice = f"onnxruntime {ort.__version__} may be too old for it: upgrade, or export with a lower --opset."
    else:
        advice = "It is damaged or not an ONNX graph: copy it again, or export again."
    return ArtifactError(f"{path} does not load: {text}. {advice}")


def read_contract(session: Any, path: Path, kind: str = GRAPH_LOGITS) -> ModelInfo:
    """The limits of a graph of this kind.

    Raises:
        ArtifactError: inputs or outputs are not the contract's, or the graph does not tell its vocabulary.
    """
    expected = SIGNATURES[kind]
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if kind == GRAPH_DECODE:  # the cache comes last, and is checked by the one who allocates it
        inputs, outputs = inputs[: len(expected.inputs)], outputs[:1]
    free = all(not isinstance(dim, int) for value in (*inputs, *outputs) for dim in _batch_axes(value))
    if (
        [(value.name, len(value.shape)) for value in inputs] != [(n, len(axes)) for n, axes in expected.inputs.items()]
        or [(value.name, len(value.shape)) for value in outputs] != [(expected.output, len(expected.output_axes))]
        or {value.type for value in inputs} != {"tensor(int64)"}
        or {value.type for value in outputs} != {"tensor(float)"}
        or not free
    ):
        raise ArtifactError(
            f"{path} is not a {kind} graph: it has {_signature(inputs)} -> {_signature(outputs)}; "
            f"expected {expected} with B and T free. Export it with `gptexport onnx`."
        )
    meta = session.get_modelmeta().custom_metadata_map
    V = outputs[0].shape[-1] if expected.output == LOGITS else None
    block_size, vocab_size = _limit(meta, META_BLOCK_SIZE, path), _limit(meta, META_VOCAB_SIZE, path)
    if isinstance(V, int) and vocab_size not in (None, V):
        raise ArtifactError(
            f"{path} contradicts itself: {META_VOCAB_SIZE} is {vocab_size}, but its {LOGITS} have V={V}. Export again."
        )
    vocab_size = vocab_size or (V if isinstance(V, int) else None)
    if vocab_size is None:
        raise ArtifactError(
            f"{path} does not tell its vocab_size: V is free and {META_VOCAB_SIZE} missing. Export again."
        )
    return ModelInfo(vocab_size=vocab_size, block_size=block_size)


def _batch_axes(value: Any) -> list[Any]:
    """B, and T where the value has it: all axes but the logits' vocabulary."""
    return list(value.shape[:-1] if value.name == LOGITS else value.shape)


def _limit(meta: dict[str, str], key: str, path: Path) -> int | None:
    text = meta.get(key)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise ArtifactError(f"{path}: {key} is {text!r}; expected a positive integer. Export again.")
    return int(text)


def _signature(values: Any) -> str:
    return ", ".join(
        f"{value.name} {value.type} [{','.join('?' if dim is None else str(dim) for dim in value.shape)}]"
        for value in values
    )
