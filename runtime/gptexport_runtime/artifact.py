"""What a path is: a bundle, a single graph or an engine. Its files are found and checked before a backend opens them.

This is the one place that looks at the suffix of a file.
"""

from __future__ import annotations

import hashlib
import mmap
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
from gptexport_runtime.files import (
    DESCRIPTION_BYTES,
    Identity,
    as_path,
    identity,
    is_file,
    is_folder,
    leads_outside,
    open_regular,
    read_text,
    status,
)

GRAPH_SUFFIX = ".onnx"
ENGINE_SUFFIX = ".engine"
DATA_SUFFIX = ".data"  # after a single graph's name: its weights, where they are too large to go inside


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
    files: Mapping[Path, Identity] = field(default_factory=dict)  # the graphs and weights, as they were when checked

    @property
    def description(self) -> Description | None:
        """What the artifact says of itself; None: a single graph says nothing."""
        return self.manifest or self.engine

    @property
    def runs_on(self) -> tuple[str, ...]:
        """The devices that it is for, the usual one first; empty: it does not say, so any may be tried."""
        return self.description.runs_on if self.description else ()

    @property
    def weights(self) -> Path | None:
        """The file that its graphs take weights from, as far as that is known."""
        return next((path for path in self.files if path not in self.graphs.values()), None)

    def check_unchanged(self) -> None:
        """See that every file is still the one that was checked: a session opens some of them late, and is one model.

        Raises:
            ArtifactError: one is not.
        """
        for path, before in self.files.items():
            found = status(path)
            if found is None or identity(found) != before:
                what = "is gone" if found is None else "was replaced or changed"
                raise ArtifactError(
                    f"{path} {what} since the session was opened, which is of the files that were there then. Open "
                    "another with load()."
                )


def open_artifact(path: str | os.PathLike[str], *, verify: bool = False) -> Artifact:
    """Find and check the files of a bundle or of a single graph; find an engine, which is checked as it is opened.

    Of a bundle's files the sizes are always checked, and the sha256 of the graphs, which are small.

    Args:
        path: a bundle's folder, its `gptexport.json`, an `.onnx` or an `.engine` file.
        verify: check the sha256 of the weights too, which reads all of them.

    Raises:
        ArtifactError: a file is missing, truncated or changed, or `path` is none of these.
    """
    path = as_path(path).absolute()  # the process may go elsewhere before the last graph is opened
    if status(path) is None:
        raise ArtifactError(f"{path} does not exist. Expected a bundle folder or an {GRAPH_SUFFIX} file.")
    if is_folder(path):
        if not is_file(path / MANIFEST_FILE):
            raise ArtifactError(
                f"{path} is not a bundle: it has no {MANIFEST_FILE}. "
                f"Write one with `gptexport onnx`, or pass an {GRAPH_SUFFIX} file itself."
            )
        return _open_bundle(path, verify)
    if path.name == MANIFEST_FILE:
        return _open_bundle(path.parent, verify)
    if not is_file(path):
        raise ArtifactError(f"{path} is neither a folder nor a regular file.")
    if is_graph(path):
        files = {file: identity(found) for file in (path, *_data_of(path)) if (found := status(file)) is not None}
        return Artifact(path, path, {heads.LOGITS.name: path}, files=files)
    if is_engine(path):
        return Artifact(path, path, engine=read_sidecar(path))
    raise ArtifactError(
        f"{path} is not a bundle folder, its {MANIFEST_FILE}, an {GRAPH_SUFFIX} file or an {ENGINE_SUFFIX}."
    )


def _data_of(graph: Path) -> list[Path]:
    """The file that a single graph reads its weights from: for a moment, while it is replaced, one of another name."""
    usual = graph.with_name(graph.name + DATA_SUFFIX)
    if not is_file(usual) or reads_from(graph, usual.name):
        return [usual]
    try:
        names = [path.name for path in graph.parent.iterdir()]
    except OSError:
        return []
    others = [name for name in names if name.startswith(f"{graph.name}.") and name.endswith(DATA_SUFFIX)]
    return [graph.with_name(name) for name in others if reads_from(graph, name)]


def reads_from(graph: Path, name: str) -> bool:
    """Does the graph name that file? As protobuf writes a string: its length, then its bytes."""
    text = name.encode("utf-8", "surrogateescape")
    length = bytes([len(text)]) if len(text) < 128 else bytes([len(text) & 127 | 128, len(text) >> 7])
    try:
        with open_regular(graph) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(length + text) >= 0
    except (OSError, ValueError):  # not there, or empty
        return False


def read_manifest(folder: Path) -> Manifest:
    """Read and validate a bundle's manifest; the files it lists are not looked at.

    Raises:
        ArtifactError: it is missing, damaged, or of another format version.
    """
    _check_inside(folder / MANIFEST_FILE)
    text = read_text(folder / MANIFEST_FILE, DESCRIPTION_BYTES)
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
    graphs = {head: folder / entry.file for head, entry in manifest.graphs.items()}
    files = {folder / entry.file: check_file(folder, entry, check_hash=True) for entry in manifest.graphs.values()}
    if (weights := manifest.weights) is not None:
        files[folder / weights.file] = check_file(folder, weights, check_hash=verify)
    return Artifact(folder, graphs[heads.LOGITS.name], graphs, manifest=manifest, files=files)


def _check_inside(path: Path) -> None:
    if leads_outside(path):
        raise ArtifactError(
            f"{path} is a link to something outside of the bundle, which opens nothing but its own files. Copy what it "
            "leads to in its place: cp -rL BUNDLE COPY."
        )


def check_file(folder: Path, entry: FileEntry, *, check_hash: bool) -> Identity:
    """Check that a file of a bundle is the one that was written: its size, and its sha256 if asked.

    Returns: which file it was, to know it again.

    Raises:
        ArtifactError: it is missing, truncated or changed.
    """
    path = folder / entry.file
    _check_inside(path)
    try:
        with open_regular(path) as file:
            found = os.fstat(file.fileno())
            same_size = found.st_size == entry.bytes
            sha256 = hashlib.file_digest(file, "sha256").hexdigest() if check_hash and same_size else entry.sha256
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{path} is missing; {MANIFEST_FILE} lists it. Copy the whole folder, or export again."
        ) from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not same_size:
        raise ArtifactError(
            f"{path} has {found.st_size} bytes; {MANIFEST_FILE} says {entry.bytes}. "
            "It is truncated or was replaced: copy the bundle again, or export again."
        )
    if sha256 != entry.sha256:
        raise ArtifactError(
            f"{path} has sha256 {sha256}; {MANIFEST_FILE} says {entry.sha256}. "
            "It was damaged or replaced: copy the bundle again, or export again."
        )
    return identity(found)
