"""From a path to a session: what it is, whether it is whole, and which backend runs it where."""

from __future__ import annotations

import os
from dataclasses import replace

from gptexport_runtime.artifact import Artifact, open_artifact
from gptexport_runtime.backends.base import Backend
from gptexport_runtime.backends.ort.backend import OrtBackend
from gptexport_runtime.backends.ort.options import CudaOptions, OpenOptions
from gptexport_runtime.backends.ort.providers import AUTO, devices, find_provider, why_not
from gptexport_runtime.backends.tensorrt.backend import open_engine
from gptexport_runtime.contract.certificate import require_certificate
from gptexport_runtime.contract.model import ModelInfo
from gptexport_runtime.errors import ArtifactError, BackendUnavailableError, InputError, shown
from gptexport_runtime.inputs import is_count
from gptexport_runtime.session import Session

MOST_THREADS = 1024


def load(
    path: str | os.PathLike[str],
    device: str = "auto",
    *,
    threads: int | None = None,
    prepack: bool = True,
    spin: bool = True,
    verify: bool = False,
    require_parity: bool = False,
    cuda: CudaOptions | None = None,
) -> Session:
    """Open a bundle, a single logits graph, or a TensorRT engine.

    On the CPU each graph of a bundle is opened when it is first used, and takes its memory then.

    Args:
        path: a bundle's folder, its `gptexport.json`, an `.onnx` or an `.engine` file.
        device: "cpu", "cuda", "openvino" or "auto", which is the first of those that the bundle is for and that works
            here. Only "auto" falls back to another. "openvino" is the CPU by OpenVINO, for bundles of that target.
        threads: of the CPU for one call, 1 to 1024; None: as many as this process may use, so that `taskset` or a
            container's limits choose both how many and which; on a GPU one.
        prepack: keep the weights a second time in memory, laid out as the CPU's kernels read them. False: use them
            as they are in the file, mapped; half the memory, and slower for short inputs.
        spin: threads wait for work without sleeping, for some milliseconds after a call too, which is fastest where the
            cores are this process's alone. False where others want them.
        verify: check the weights' sha256 too, which reads all of them. Always checked are the graphs, the weights'
            size, and that they are of the same export as the graphs, which say so.
        require_parity: open only a bundle or an engine that `gptexport parity` passed, with these very graphs and
            weights; implies `verify`.
        cuda: how ONNX Runtime works on a GPU: CUDA graphs, TF32, memory. None: as `CudaOptions()` says.

    Raises:
        ArtifactError: a file is missing, damaged, or not what was expected; or there is no verdict as asked for.
        BackendUnavailableError: ONNX Runtime or TensorRT is missing or cannot run on the device, or the bundle is not
            for it; the message says why.
        InputError: `device` or `threads` is not one of the above.
    """
    if device not in devices():
        raise InputError(f"device is {shown(device)}; expected one of {', '.join(devices())}.")
    if threads is not None and (not is_count(threads) or threads > MOST_THREADS):
        raise InputError(
            f"threads is {shown(threads)}; expected an integer from 1 to {MOST_THREADS}, or None for every usable core."
        )
    if cuda is not None and not isinstance(cuda, CudaOptions):
        raise InputError(f"cuda is {shown(cuda)}; expected CudaOptions, or None.")
    artifact = open_artifact(path, verify=verify or require_parity)
    if require_parity:
        require_certificate(artifact.path, artifact.description)
    options = OpenOptions(threads=threads, prepack=prepack, spin=spin, cuda=cuda or CudaOptions())
    backend = open_backend(artifact, device, options)
    return Session(backend, _agreed(artifact, backend.info()), artifact)


def open_backend(artifact: Artifact, device: str, options: OpenOptions) -> Backend:
    """What runs the artifact on the device.

    Raises:
        BackendUnavailableError: nothing does; the message says why.
        ArtifactError, InputError: of an engine, see `open_engine`.
    """
    if artifact.engine is not None:
        return open_engine(artifact.path, artifact.engine, device)
    provider = find_provider(device, artifact.runs_on)
    if provider is None:
        raise _not_for_this_device(artifact, device)
    manifest = artifact.manifest
    return OrtBackend(
        provider,
        artifact.graphs,
        replace(options, dtype=manifest.dtype) if manifest is not None else options,
        weights=artifact.weights,
        on_cpu=manifest.on_cpu if manifest is not None else (),
        check_unchanged=artifact.check_unchanged,
    )


_SPELLED = {"openvino": "OpenVINO"}


def _not_for_this_device(artifact: Artifact, device: str) -> BackendUnavailableError:
    """Fused nodes may have kernels on one device alone, and ONNX Runtime would say it by a node's name."""
    manifest = artifact.manifest
    assert manifest is not None, "a single graph does not say where it runs"
    reasons = filter(None, map(why_not, manifest.runs_on))
    reason = f'device="{device}" was asked for.' if device != AUTO else " ".join(reasons)
    where = " or ".join(_SPELLED.get(name, name.upper()) for name in manifest.runs_on)
    there = next((name for name in manifest.runs_on if why_not(name) is None), None)
    here = f'It runs here with device="{there}" (--device {there}). ' if there is not None else ""
    return BackendUnavailableError(
        f"{artifact.path} was exported with --target {manifest.target} in {manifest.dtype}, which runs on {where} "
        f"alone, and {reason} {here}To run it elsewhere, export it again: gptexport onnx CHECKPOINT -o FOLDER --target "
        f"{device if device != AUTO else 'cpu'}."
    )


def _agreed(artifact: Artifact, graph: ModelInfo) -> ModelInfo:
    """What the artifact says of its limits, and what its graph says where that is silent.

    Raises:
        ArtifactError: they contradict one another.
    """
    if artifact.description is None:
        return graph
    said = artifact.description.info
    for name in ("vocab_size", "block_size"):
        expected, got = getattr(said, name), getattr(graph, name)
        if None not in (expected, got) and expected != got:
            raise ArtifactError(f"{artifact.logits} has {name} {got}; its manifest says {expected}. Export again.")
    return replace(said, block_size=said.block_size or graph.block_size)
