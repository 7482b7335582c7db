"""What a bundle or a graph is, read from its files without running it. Torch-free."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from gptexport_runtime.bundle import check_file, read_manifest
from gptexport_runtime.contract.certificate import why_stale
from gptexport_runtime.contract.manifest import FileEntry, Manifest
from gptexport_runtime.contract.names import META_BLOCK_SIZE, META_VOCAB_SIZE
from gptexport_runtime.errors import ArtifactError

Axes = dict[str, list[str | int]]


@dataclass(frozen=True, kw_only=True)
class GraphInfo:
    """An .onnx file. Axes: a name is dynamic, a number is fixed."""

    file: str
    bytes: int  # of the graph, without external data
    opset: dict[str, int]  # version by domain; "" is ONNX's own
    producer: str
    inputs: Axes
    outputs: Axes
    nodes: dict[str, int]  # how many of each operator
    parameters: int
    external_data: list[str]  # files it reads its weights from
    block_size: int | None
    vocab_size: int | None


@dataclass(frozen=True, kw_only=True)
class BundleInfo:
    """A bundle: its manifest, its graphs, and what is wrong with its files."""

    manifest: Manifest
    graphs: dict[str, GraphInfo]
    bytes: int
    problems: list[str]


def inspect_graph(path: Path) -> GraphInfo:
    """Read an .onnx file's structure, not its weights.

    Raises:
        ArtifactError: it is not ONNX.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, OSError) as error:
        raise ArtifactError(f"{path} is not an ONNX file, or is damaged ({error}). Export again.") from error
    if not model.graph.node:
        raise ArtifactError(f"{path} is not an ONNX file: it holds no graph. Export again.")
    weights = [
        t for t in model.graph.initializer if t.data_type not in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    ]
    meta = {entry.key: entry.value for entry in model.metadata_props}
    return GraphInfo(
        file=path.name,
        bytes=path.stat().st_size,
        opset={entry.domain: entry.version for entry in model.opset_import},
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        inputs=_axes(model.graph.input),
        outputs=_axes(model.graph.output),
        nodes=dict(Counter(node.op_type for node in model.graph.node).most_common()),
        parameters=sum(_elements(t) for t in weights),
        external_data=sorted({e.value for t in weights for e in t.external_data if e.key == "location"}),
        block_size=int(meta[META_BLOCK_SIZE]) if META_BLOCK_SIZE in meta else None,
        vocab_size=int(meta[META_VOCAB_SIZE]) if META_VOCAB_SIZE in meta else None,
    )


def inspect_bundle(folder: Path, *, verify: bool) -> BundleInfo:
    """Read a bundle's manifest and graphs, and check that its files are the ones that were written.

    Args:
        verify: check the sha256 of the weights too, which reads all of them; always done where there is a verdict of
            parity, which is of these very weights or of none.

    Raises:
        ArtifactError: the manifest is damaged.
    """
    manifest = read_manifest(folder)
    entries = [*manifest.graphs.values(), *([manifest.weights] if manifest.weights else [])]
    problems: list[str] = []
    graphs = {}
    for kind, entry in manifest.graphs.items():
        if problem := _problem(folder, entry, check_hash=True):
            problems.append(problem)
        else:
            graphs[kind] = inspect_graph(folder / entry.file)
    if manifest.weights and (
        problem := _problem(folder, manifest.weights, check_hash=verify or manifest.parity is not None)
    ):
        problems.append(problem)
    words = manifest.tokenizer.file if manifest.tokenizer else None
    if words and (problem := _problem(folder, words, check_hash=True)):
        problems.append(problem)
    if stale := why_stale(manifest):
        problems.append(stale)
    return BundleInfo(
        manifest=manifest,
        graphs=graphs,
        bytes=sum(entry.bytes for entry in entries),
        problems=problems,
    )


def _problem(folder: Path, entry: FileEntry, *, check_hash: bool) -> str | None:
    try:
        check_file(folder, entry, check_hash=check_hash)
    except ArtifactError as error:
        return str(error)
    return None


def _axes(values: object) -> Axes:
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in values  # type: ignore[attr-defined]
    }


def _elements(tensor: onnx.TensorProto) -> int:
    count = 1
    for dim in tensor.dims:
        count *= dim
    return count
