"""What an engine is built from: a bundle or a single graph, held against the contract, identified by hash."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from gptexport.engine.graph_file import data_files, limits_of, read_graph
from gptexport.errors import EngineError
from gptexport.precision import most_common
from gptexport_runtime.artifact import is_engine, open_artifact
from gptexport_runtime.contract.manifest import Manifest
from gptexport_runtime.contract.names import INPUT_IDS, LOGITS
from gptexport_runtime.errors import ArtifactError
from gptexport_runtime.files import open_regular

CONTRACT = f"{INPUT_IDS} int64 (B,T) -> {LOGITS} float32 (B,T,V)"


@dataclass(frozen=True)
class Source:
    """A logits graph. `graph` holds its structure; the weights stay in their file, beside `path`."""

    path: Path
    graph: onnx.ModelProto
    manifest: Manifest | None  # None: a single graph
    dtype: str  # of the weights
    model: Mapping[str, Any]
    block_size: int | None
    vocab_size: int
    hashes: Mapping[str, str]  # sha256 of the graph, and of each file that it takes weights from


def open_source(path: Path) -> Source:
    """Read a bundle or an .onnx file.

    Raises:
        ArtifactError: it is neither, or is damaged.
        EngineError: it is not a logits graph.
    """
    if is_engine(path):
        raise ArtifactError(f"{path} is an engine already. Build from the bundle or the .onnx it came from.")
    artifact = open_artifact(path)
    graph_file = artifact.logits
    graph = read_graph(graph_file)
    _check_contract(graph, graph_file)
    V = graph.graph.output[0].type.tensor_type.shape.dim[2].dim_value
    block_size, vocab_size = limits_of(graph, graph_file)
    vocab_size = vocab_size or V
    manifest = artifact.manifest
    single = {"architecture": "unknown", "vocab_size": vocab_size, "block_size": block_size}
    return Source(
        path=graph_file,
        graph=graph,
        manifest=manifest,
        dtype=manifest.dtype if manifest else most_common(_weights(graph)).dtype,
        model=dict(manifest.model) if manifest else single,
        block_size=block_size,
        vocab_size=vocab_size,
        hashes=_hashes(graph, graph_file, manifest),
    )


def _check_contract(graph: onnx.ModelProto, path: Path) -> None:
    weights = {tensor.name for tensor in graph.graph.initializer}
    inputs = [value for value in graph.graph.input if value.name not in weights]
    got = [
        (v.name, v.type.tensor_type.elem_type, [d.dim_value for d in v.type.tensor_type.shape.dim])
        for v in (*inputs, *graph.graph.output)
    ]
    match got:
        case [(name, onnx.TensorProto.INT64, [0, 0]), (output, onnx.TensorProto.FLOAT, [0, 0, V])] if V > 0:
            if (name, output) == (INPUT_IDS, LOGITS):
                return
    shown = ", ".join(
        f"{name} {_type_name(kind)} ({','.join(str(dim or '?') for dim in dims)})" for name, kind, dims in got
    )
    raise EngineError(f"{path} has {shown}; expected {CONTRACT} with B and T free. Export it with `gptexport onnx`.")


def _type_name(kind: int) -> str:
    known = onnx.TensorProto.DataType.values()
    return onnx.TensorProto.DataType.Name(kind).lower() if kind in known else f"type {kind}"


def _weights(graph: onnx.ModelProto) -> list[tuple[int, int]]:
    """Type and number of elements of each."""
    return [(tensor.data_type, math.prod(tensor.dims)) for tensor in graph.graph.initializer]


def _hashes(graph: onnx.ModelProto, path: Path, manifest: Manifest | None) -> dict[str, str]:
    """The hashes of its files; a bundle's are the manifest's, which `open_artifact` has compared with the files."""
    names = [path.name, *data_files(graph, path)]
    known = {}
    if manifest is not None:
        entries = [*manifest.graphs.values(), *([manifest.weights] if manifest.weights else [])]
        known = {entry.file: entry.sha256 for entry in entries}
    return {name: known.get(name) or _sha256(path.with_name(name)) for name in dict.fromkeys(names)}


def _sha256(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read: {error.strerror}. External data must lie beside its graph."
        ) from error
