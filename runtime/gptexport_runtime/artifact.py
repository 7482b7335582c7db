"""What a path is: a bundle, a single graph or an engine. Its files are found and checked before a backend opens them.

This is the one place that looks at the suffix of a file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gptexport_runtime.contract import heads
from gptexport_runtime.contract.engine import EngineInfo
from gptexport_runtime.contract.manifest import Manifest
from gptexport_runtime.contract.model import Description, FileEntry
from gptexport_runtime.contract.names import MANIFEST_FILE
from gptexport_runtime.engine_file import read_sidecar
from gptexport_runtime.errors import ArtifactError

GRAPH_SUFFIX = ".onnx"
ENGINE_SUFFIX = ".engine"


def is_graph(path: Path) -> bool:
    """Whether the name is that of a single graph."""
    return path.suffix == GRAPH_SUFFIX


def is_engine(path: Path) -> bool:
    """Whether the name is that of an engine."""
    return path.suffix == ENGINE_SUFFIX


@dataclass(frozen=True)
class Artifact:
    """A bundle (it has a manifest), an engine (it has a sidecar), or a single graph (it has neither)."""

    path: Path  # the bundle's folder, the graph, or the engine
    logits: Path  # the logits graph, or the engine
    graphs: Mapping[str, Path] = field(default_factory=dict)  # ONNX graphs, by the name of their head
    manifest: Manifest | None = None
    engine: EngineInfo | None = None

    @property
    def description(self) -> Description | None:
        """What the artifact says of itself; None: a single graph says nothing."""
        return self.manifest or self.engine

    @property
    def runs_on(self) -> tuple[str, ...]:
        """The devices that it is for, the usual one first; empty: it does not say, so any may be tried."""
        return self.description.runs_on if self.description else ()


def open_artifact(path: str | os.PathLike[str], *, verify: bool = False) -> Artifact:
    """Find and check the files of a bundle or of a single graph; find an engine, which is checked as it is opened.

    Of a bundle's files the sizes are always checked, and the sha256 of the graphs, which are small.

    Args:
        path: a bundle's folder, its `gptexport.json`, an `.onnx` or an `.engine` file.
        verify: check the sha256 of the weights too, which reads all of them.

    Raises:
        ArtifactError: a file is missing, truncated or changed, or `path` is none of these.
    """
    path = Path(path)
    if not path.exists():
        raise ArtifactError(f"{path} does not exist. Expected a bundle folder or an {GRAPH_SUFFIX} file.")
    if path.is_dir():
        if not (path / MANIFEST_FILE).is_file():
            raise ArtifactError(
                f"{path} is not a bundle: it has no {MANIFEST_FILE}. "
                f"Write one with `gptexport onnx`, or pass an {GRAPH_SUFFIX} file itself."
            )
        return _open_bundle(path, verify)
    if path.name == MANIFEST_FILE:
        return _open_bundle(path.parent, verify)
    if is_graph(path):
        return Artifact(path, path, {heads.LOGITS.name: path})
    if is_engine(path):
        return Artifact(path, path, engine=read_sidecar(path))
    raise ArtifactError(
        f"{path} is not a bundle folder, its {MANIFEST_FILE}, an {GRAPH_SUFFIX} file or an {ENGINE_SUFFIX}."
    )


def read_manifest(folder: Path) -> Manifest:
    """Read and validate a bundle's manifest; the files it lists are not looked at.

    Raises:
        ArtifactError: it is missing, damaged, or of another format version.
    """
    try:
        text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{folder / MANIFEST_FILE} cannot be read: {error}") from error
    try:
        return Manifest.from_json(text)
    except ArtifactError as error:
        raise ArtifactError(f"{folder}: {error}") from error


def _open_bundle(folder: Path, verify: bool) -> Artifact:
    manifest = read_manifest(folder)
    if heads.LOGITS.name not in manifest.graphs:
        raise ArtifactError(
            f"{folder} has no {heads.LOGITS.name} graph, only {', '.join(manifest.graphs)}. "
            f"Export again with --graphs {heads.LOGITS.name}."
        )
    for graph in manifest.graphs.values():
        check_file(folder, graph, check_hash=True)
    if manifest.weights is not None:
        check_file(folder, manifest.weights, check_hash=verify)
    graphs = {head: folder / entry.file for head, entry in manifest.graphs.items()}
    return Artifact(folder, graphs[heads.LOGITS.name], graphs, manifest=manifest)


def check_file(folder: Path, entry: FileEntry, *, check_hash: bool) -> None:
    """Check that a file of a bundle is the one that was written: its size, and its sha256 if asked.

    Raises:
        ArtifactError: it is missing, truncated or changed.
    """
    path = folder / entry.file
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; {MANIFEST_FILE} lists it. Copy the whole folder, or export again.")
    size = path.stat().st_size
    if size != entry.bytes:
        raise ArtifactError(
            f"{path} has {size} bytes; {MANIFEST_FILE} says {entry.bytes}. "
            "It is truncated or was replaced: copy the bundle again, or export again."
        )
    if check_hash:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 != entry.sha256:
            raise ArtifactError(
                f"{path} has sha256 {sha256}; {MANIFEST_FILE} says {entry.sha256}. "
                "It was damaged or replaced: copy the bundle again, or export again."
            )
