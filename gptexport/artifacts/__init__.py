"""What an artifact is: a bundle, a single graph or an engine, each described in a file of its own. Torch-free.

All descriptions answer the same questions (`Artifact`), so that code that checks, inspects or times an artifact never
asks which kind it is. To add a kind, write its description and add its suffix to `describe_artifact`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gptexport.artifacts.artifact import Artifact, Device, Inspection, Stage
from gptexport.artifacts.bundle import Bundle, open_bundle
from gptexport.artifacts.engine import Engine, open_engine
from gptexport.artifacts.graph import SingleGraph, open_graph
from gptexport_runtime.artifact import ENGINE_SUFFIX, GRAPH_SUFFIX
from gptexport_runtime.contract.names import MANIFEST_FILE
from gptexport_runtime.errors import ArtifactError
from gptexport_runtime.files import is_file, status

__all__ = ["Artifact", "Bundle", "Device", "Engine", "Inspection", "SingleGraph", "Stage", "describe_artifact", "find"]

OPENERS: dict[str, Callable[[Path], Artifact]] = {
    GRAPH_SUFFIX: open_graph,
    ENGINE_SUFFIX: open_engine,
}  # by the suffix of the file; a folder is a bundle


def find(path: Path) -> Artifact | None:
    """The artifact that is at `path`, by its name alone where it is a file; None where there is none.

    Raises:
        ArtifactError: there is one, and it is damaged.
    """
    folder = path.parent if path.name == MANIFEST_FILE else path
    if is_file(folder / MANIFEST_FILE):
        return open_bundle(folder)
    opener = OPENERS.get(path.suffix)
    return opener(path) if opener is not None and is_file(path) else None


def describe_artifact(path: Path) -> Artifact:
    """The artifact at `path`: a bundle's folder or its manifest, an .onnx or an .engine.

    Raises:
        ArtifactError: it is none of these, or is damaged.
    """
    found = find(path)
    if found is None:
        kinds = ", ".join(OPENERS)
        what = "does not exist" if status(path) is None else f"is not a bundle (it has no {MANIFEST_FILE}) nor {kinds}"
        raise ArtifactError(f"{path} {what}. Expected the folder of a bundle, or a file that ends in {kinds}.")
    return found
