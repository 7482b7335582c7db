"""A TensorRT engine, whose sidecar names the ONNX graph that it was built from by its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gptexport.artifacts.artifact import Device, Inspection, Shape, Stage
from gptexport.engine import record_parity
from gptexport.precision import Precision, precision_of
from gptexport_runtime.artifact import GRAPH_SUFFIX, open_artifact
from gptexport_runtime.contract.engine import EngineInfo, sidecar_path
from gptexport_runtime.contract.heads import LOGITS, Head
from gptexport_runtime.engine_file import read_engine_info
from gptexport_runtime.errors import ArtifactError, InputError
from gptexport_runtime.files import open_regular


@dataclass(frozen=True)
class Engine:
    """An engine as its sidecar says it."""

    path: Path
    info: EngineInfo
    precision: Precision
    given_graph: Path | None = None  # else it is looked for beside the engine
    kind = "engine"
    device: Device = "cuda"
    stages = (Stage.SOURCE_GRAPH, Stage.PREPARED_GRAPH, Stage.ENGINE)
    heads: tuple[Head, ...] = (LOGITS,)

    @cached_property
    def graph(self) -> Path | None:
        """What it was built from, known by its hash; None where it is not here."""
        return self.given_graph or next(_sources_beside(self.path, self.info), None)

    @property
    def changes(self) -> dict[Stage, list[str]]:
        return {Stage.ENGINE: ["--tf32"]} if self.info.options.get("tf32") else {}

    @property
    def model(self) -> Mapping[str, Any]:
        return self.info.model

    @property
    def source(self) -> Mapping[str, Any]:
        return self.info.source

    @property
    def limits(self) -> str:
        return "; or ".join(map(str, self.info.profiles))

    def accepts(self, B: int, T: int) -> bool:
        """An engine computes nothing outside its profiles."""
        return any(profile.takes(B, T) for profile in self.info.profiles)

    def fit(self, shapes: Sequence[Shape]) -> list[Shape]:
        """Moved into each profile: each computes in its own way."""
        profiles = self.info.profiles
        moved = [
            (min(max(B, p.min[0]), p.max[0]), min(max(T, p.min[1]), p.max[1])) for p in profiles for B, T in shapes
        ]
        return list(dict.fromkeys(moved))

    def built_from(self, given: Path) -> Engine:
        """The same engine, as built from the graph of the bundle or .onnx `given`.

        Raises:
            InputError: it was not.
            ArtifactError: `given` is neither a bundle nor a graph.
        """
        graph = open_artifact(given).logits
        if graph.suffix != GRAPH_SUFFIX or not _is_source(graph.parent, graph.name, self.info):
            named = ", ".join(f"{name} {sha256[:16]}…" for name, sha256 in self.info.onnx.items())
            raise InputError(
                f"{self.path} was not built from {given}: its sidecar names {named}, other files by their hashes."
            )
        return replace(self, given_graph=graph)

    def facts(self) -> dict[str, Any]:
        info = self.info
        return {
            "built by": f"{info.flavour} {info.version}",
            "dtype": info.dtype,
            "profiles": "; ".join(map(str, info.profiles)),
            "compiled for": ", ".join(info.compute_capabilities),
            "built with": ", ".join(name for name, value in info.options.items() if value) or "no options",
            **{f"{name} sha256": sha256 for name, sha256 in info.onnx.items()},
            "engine sha256": info.engine.sha256,
        }

    def certify(self, verdict: Mapping[str, Any]) -> Path:
        """Into the sidecar, with the hash of the engine."""
        sha256 = self.info.engine.sha256
        record_parity(self.path, {**verdict, "engine_sha256": sha256}, measured=sha256)
        return sidecar_path(self.path)

    def inspect(self, *, verify: bool = False) -> Inspection:
        """The sidecar; that it belongs to the engine was checked as it was read."""
        stale = self.info.why_stale()
        return Inspection(data=asdict(self.info), problems=(stale,) if stale else ())


def open_engine(path: Path) -> Engine:
    """Read an engine's sidecar, and check that it is this engine's.

    Raises:
        ArtifactError: the engine or its sidecar is missing or damaged, or they do not belong together.
    """
    info = read_engine_info(path)
    try:
        return Engine(path, info, precision_of(info.dtype, None))
    except KeyError as error:
        raise ArtifactError(f"{path}: its precision {error} is not one of this gptexport's. Build it again.") from error


def _sources_beside(engine: Path, info: EngineInfo) -> Iterator[Path]:
    """The graph, in the engine's folder or in one of the folders there."""
    folder = engine.resolve().parent
    name = _graph_name(info)
    for home in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        if name is not None and _is_source(home, name, info):
            yield home / name


def _graph_name(info: EngineInfo) -> str | None:
    return next((name for name in info.onnx if name.endswith(GRAPH_SUFFIX)), None)


def _is_source(folder: Path, name: str, info: EngineInfo) -> bool:
    """Are the graph and all files that it takes weights from there, with their hashes? A renamed graph is itself."""
    files = {file: sha256 for file, sha256 in info.onnx.items() if not file.endswith(GRAPH_SUFFIX)}
    files[name] = info.onnx.get(_graph_name(info) or "", "")
    return all(
        _sha256(folder / file) == sha256 for file, sha256 in sorted(files.items(), key=lambda item: item[0] != name)
    )


def _sha256(path: Path) -> str | None:
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
