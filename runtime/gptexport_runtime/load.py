"""From a path to a session: what it is, whether it is whole, and which backend runs it where."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from gptexport_runtime.backends.gpu.driver import load_driver
from gptexport_runtime.backends.gpu.memory import CudaPlace
from gptexport_runtime.backends.ort import graph as ort
from gptexport_runtime.backends.ort.bound_graph import open_bound_graph
from gptexport_runtime.backends.ort.cuda_options import CudaOptions
from gptexport_runtime.backends.ort.decode import open_bound_decoder, open_decoder
from gptexport_runtime.backends.ort.providers import import_onnxruntime, why_not_cuda
from gptexport_runtime.backends.tensorrt import engine as trt
from gptexport_runtime.bundle import open_artifact
from gptexport_runtime.contract import heads
from gptexport_runtime.contract.certificate import require_proof
from gptexport_runtime.contract.manifest import Manifest, ModelInfo
from gptexport_runtime.engine_file import ENGINE_SUFFIX, read_engine_info
from gptexport_runtime.errors import ArtifactError, BackendUnavailableError, InputError
from gptexport_runtime.session import Session

Device = Literal["auto", "cpu", "cuda"]


def load(
    path: str | os.PathLike[str],
    device: Device = "auto",
    *,
    threads: int | None = None,
    prepack: bool = True,
    spin: bool = True,
    verify: bool = False,
    require_parity: bool = False,
    cuda: CudaOptions | None = None,
) -> Session:
    """Open a bundle, a bare logits graph, or a TensorRT engine.

    On the CPU each graph of a bundle is opened when it is first used, and takes its memory then.

    Args:
        path: a bundle's folder, its `gptexport.json`, an `.onnx` or an `.engine` file.
        device: "cuda" never falls back to the CPU; "auto" is CUDA where CUDA works, else the CPU.
        threads: of the CPU for one call, 1 or more; None: as many as this process may use, so that `taskset` or a
            container's limits choose both how many and which.
        prepack: keep the weights a second time in memory, laid out as the CPU's kernels read them. False: use them
            as they are in the file, mapped; half the memory, and slower for short inputs.
        spin: threads wait for work without sleeping, for some milliseconds after a call too, which is fastest where the
            cores are this process's alone. False where others want them.
        verify: check the weights' sha256 too, which reads all of them. Sizes and graphs are always checked.
        require_parity: open only a bundle or an engine that `gptexport parity` passed, with these very graphs and
            weights; implies `verify`.
        cuda: how ONNX Runtime works on a GPU: CUDA graphs, TF32, memory. None: as `CudaOptions()` says.

    Raises:
        ArtifactError: a file is missing, damaged, or not what was expected; or there is no verdict as asked for.
        BackendUnavailableError: ONNX Runtime or TensorRT is missing or cannot run on the device, or the bundle is not
            for it; the message says why.
        InputError: `device` or `threads` is not one of the above.
    """
    if device not in get_args(Device):
        raise InputError(f"device is {device!r}; expected one of {', '.join(get_args(Device))}.")
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise InputError(f"threads is {threads!r}; expected an integer of 1 or more, or None for every usable core.")
    artifact = open_artifact(path, verify=verify or require_parity)
    is_engine = artifact.logits.suffix == ENGINE_SUFFIX
    if require_parity:
        require_proof(artifact.logits, read_engine_info(artifact.logits) if is_engine else artifact.manifest)
    if is_engine:
        engine = trt.open_engine(artifact.logits, device)
        return Session(engine, engine.info, None)
    manifest, chosen = artifact.manifest, ort.choose_device(device)
    _check_device(artifact.logits, manifest, device, chosen)
    opener = _open_on_cpu(threads, prepack, spin) if chosen == "cpu" else _open_on_gpu(threads, cuda or CudaOptions())
    if manifest is None:
        graph = opener(artifact.logits, heads.LOGITS.name)
        return Session(graph, graph.info, None)

    def open_another(kind: str) -> Any:
        return opener(artifact.logits.with_name(manifest.graphs[kind].file), kind)

    if chosen == "cpu":
        info = _agreed(manifest.info, ort.check_graph(artifact.logits, chosen), artifact.logits)
        return Session(ort.Pending(chosen, threads or ort.usable_cores()), info, manifest, open_another)
    graph = opener(artifact.logits, heads.LOGITS.name)
    return Session(graph, _agreed(manifest.info, graph.info, artifact.logits), manifest, open_another)


def _open_on_cpu(threads: int | None, prepack: bool, spin: bool) -> Callable[[Path, str], Any]:
    """What opens a graph of a kind."""

    def open_one(path: Path, kind: str) -> Any:
        if kind == heads.DECODE.name:
            return open_decoder(path, "cpu", threads=threads, prepack=prepack, spin=spin)
        return ort.open_graph(path, "cpu", kind, threads=threads, prepack=prepack, spin=spin)

    return open_one


def _open_on_gpu(threads: int | None, cuda: CudaOptions) -> Callable[[Path, str], Any]:
    place = CudaPlace(load_driver())

    def open_one(path: Path, kind: str) -> Any:
        if kind == heads.DECODE.name:
            return open_bound_decoder(path, place, threads=threads, cuda=cuda)
        return open_bound_graph(path, place, kind, threads=threads, cuda=cuda)

    return open_one


def _check_device(path: Path, manifest: Manifest | None, device: str, chosen: str) -> None:
    """Fused nodes may have kernels on one device alone, and ONNX Runtime would say it by a node's name.

    Raises:
        BackendUnavailableError: the bundle does not run on the device.
    """
    if manifest is None or chosen in manifest.runs_on:
        return
    reason = why_not_cuda(import_onnxruntime()) if device == "auto" else f'device="{device}" was asked for.'
    devices = " or ".join(name.upper() for name in manifest.runs_on)
    raise BackendUnavailableError(
        f"{path.parent} was exported with --target {manifest.target} in {manifest.dtype}, which runs on {devices} "
        f"alone, and {reason} To run it elsewhere, export it again: gptexport onnx CHECKPOINT -o FOLDER --target cpu."
    )


def _agreed(manifest: ModelInfo, graph: ModelInfo, path: Path) -> ModelInfo:
    """The manifest's limits, and the graph's where the manifest is silent.

    Raises:
        ArtifactError: they contradict one another.
    """
    for name in ("vocab_size", "block_size"):
        expected, got = getattr(manifest, name), getattr(graph, name)
        if None not in (expected, got) and expected != got:
            raise ArtifactError(f"{path} has {name} {got}; its manifest says {expected}. Export again.")
    return replace(manifest, block_size=manifest.block_size or graph.block_size)
