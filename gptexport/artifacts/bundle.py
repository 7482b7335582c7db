"""A bundle: a folder of graphs over shared weights, with a manifest that lists them by hash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from gptexport.artifacts.artifact import Device, Inspection, Shape, Stage
from gptexport.artifacts.graph import inspect_graph
from gptexport.errors import OutputError
from gptexport.precision import Precision, precision_of
from gptexport.staging import update_file
from gptexport_runtime.artifact import check_file, read_manifest
from gptexport_runtime.contract.heads import HEADS, LOGITS, Head
from gptexport_runtime.contract.manifest import Manifest
from gptexport_runtime.contract.model import FileEntry
from gptexport_runtime.contract.names import MANIFEST_FILE
from gptexport_runtime.errors import ArtifactError

REWRITTEN_FOR: Mapping[str, tuple[str, ...]] = {"portable": ()}  # what a target changes, where that is not its name


@dataclass(frozen=True)
class Bundle:
    """A bundle as its manifest says it."""

    path: Path
    manifest: Manifest
    precision: Precision
    kind = "bundle"
    device: Device = "cpu"
    stages = (Stage.GRAPH, Stage.ONNX_RUNTIME)
    limits = None

    @property
    def graph(self) -> Path:
        return self.path / self.manifest.graphs[LOGITS.name].file

    @property
    def heads(self) -> list[Head]:
        return [HEADS[name] for name in self.manifest.graphs if name in HEADS]

    @property
    def model(self) -> Mapping[str, Any]:
        return self.manifest.model

    @property
    def source(self) -> Mapping[str, Any]:
        return self.manifest.source

    @property
    def changes(self) -> dict[Stage, list[str]]:
        target = self.manifest.target
        quantized = [f"--quantize {self.manifest.quantize}"] if self.manifest.quantize else []
        return {Stage.GRAPH: [*quantized, *REWRITTEN_FOR.get(target, (f"target {target!r}",))]}

    def accepts(self, B: int, T: int) -> bool:
        return True

    def fit(self, shapes: Sequence[Shape]) -> list[Shape]:
        return list(shapes)

    def built_from(self, given: Path) -> None:
        """A graph is what was exported."""

    def facts(self) -> dict[str, Any]:
        manifest = self.manifest
        found: dict[str, Any] = {"target": manifest.target, "opset": manifest.opset, "dtype": manifest.dtype}
        found |= {f"{kind} graph sha256": entry.sha256 for kind, entry in manifest.graphs.items()}
        return {**found, "weights sha256": manifest.weights.sha256 if manifest.weights else "in the graphs"}

    def certify(self, verdict: Mapping[str, Any]) -> Path:
        """Into the manifest, with the hashes of the graphs and the weights."""
        record = {
            **verdict,
            "graphs_sha256": {kind: entry.sha256 for kind, entry in self.manifest.graphs.items()},
            "weights_sha256": self.manifest.weights.sha256 if self.manifest.weights else None,
        }
        file = self.path / MANIFEST_FILE
        update_file(file, partial(self._with_record, record))
        return file

    def _with_record(self, record: Mapping[str, Any], old: bytes) -> bytes:
        """The manifest that is there now, with the verdict.

        Raises:
            OutputError: the bundle is not the one that was measured.
        """
        now = Manifest.from_json(old.decode("utf-8", "replace"))
        if (now.graphs, now.weights) != (self.manifest.graphs, self.manifest.weights):
            raise OutputError("the bundle was replaced while it was measured: the verdict is not of the new one.")
        return replace(now, parity=record).to_json().encode()

    def inspect(self, *, verify: bool = False) -> Inspection:
        """Check that the files are those that were written.

        Args:
            verify: hash the weights too; always done where there is a verdict, which is of these weights or of none.
        """
        manifest, problems, graphs = self.manifest, [], {}
        for kind, entry in manifest.graphs.items():
            problem = _problem(self.path, entry, check_hash=True)
            problems.append(problem)
            if problem is None:
                graphs[kind] = asdict(inspect_graph(self.path / entry.file))
        if manifest.weights:
            certified = manifest.parity is not None
            problems.append(_problem(self.path, manifest.weights, check_hash=verify or certified))
        if manifest.tokenizer and manifest.tokenizer.file:
            problems.append(_problem(self.path, manifest.tokenizer.file, check_hash=True))
        problems.append(manifest.why_stale())
        entries = [*manifest.graphs.values(), *([manifest.weights] if manifest.weights else [])]
        data = {"manifest": asdict(manifest), "graphs": graphs, "bytes": sum(entry.bytes for entry in entries)}
        return Inspection(data=data, problems=tuple(problem for problem in problems if problem))


def open_bundle(folder: Path) -> Bundle:
    """Read a bundle's manifest; the files that it lists are looked at when they are needed.

    Raises:
        ArtifactError: it is damaged, or of a precision that this version does not know.
    """
    manifest = read_manifest(folder)
    try:
        return Bundle(folder, manifest, precision_of(manifest.dtype, manifest.quantize))
    except KeyError as error:
        raise ArtifactError(
            f"{folder}: its precision {error} is not one of this gptexport's. Export again, or upgrade gptexport."
        ) from error


def _problem(folder: Path, entry: FileEntry, *, check_hash: bool) -> str | None:
    try:
        check_file(folder, entry, check_hash=check_hash)
    except ArtifactError as error:
        return str(error)
    return None
