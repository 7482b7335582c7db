"""The ONNX graph that an engine was built from: the step between the checkpoint and TensorRT, known by its hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

from gptexport_runtime.bundle import GRAPH_SUFFIX, open_artifact
from gptexport_runtime.engine_file import EngineInfo
from gptexport_runtime.errors import InputError


def find_origin(engine: Path, info: EngineInfo, given: Path | None = None) -> Path | None:
    """The graph whose sha256, and whose weights', the engine's sidecar names.

    Args:
        given: the bundle or .onnx to take; else it is looked for beside the engine and in the folders beside it.

    Returns: None where nothing is given and none is found.

    Raises:
        InputError: `given` is not what the engine was built from.
        ArtifactError: `given` is no bundle and no graph.
    """
    if given is not None:
        graph = open_artifact(given).logits
        if graph.suffix != GRAPH_SUFFIX or not _is_origin(graph.parent, graph.name, info):
            raise InputError(
                f"{engine} was not built from {given}: its sidecar names {_named(info)}, other files by their hashes."
            )
        return graph
    folder = engine.resolve().parent
    name = _graph_name(info)
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        if name is not None and _is_origin(place, name, info):
            return place / name
    return None


def _graph_name(info: EngineInfo) -> str | None:
    return next((name for name in info.onnx if name.endswith(GRAPH_SUFFIX)), None)


def _is_origin(folder: Path, name: str, info: EngineInfo) -> bool:
    """Are the graph and all files that it takes weights from there, with their hashes? A renamed graph is itself."""
    files = {file: sha256 for file, sha256 in info.onnx.items() if not file.endswith(GRAPH_SUFFIX)}
    files[name] = info.onnx.get(_graph_name(info) or "", "")
    return all(
        _sha256(folder / file) == sha256 for file, sha256 in sorted(files.items(), key=lambda item: item[0] != name)
    )


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _named(info: EngineInfo) -> str:
    return ", ".join(f"{name} {sha256[:16]}…" for name, sha256 in info.onnx.items())
