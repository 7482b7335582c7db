"""Where an export goes: a bundle, which is a folder, or a single .onnx file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gptexport.errors import ExportError
from gptexport.export.write import InlineWeights, Weights, WeightsFile
from gptexport.recipe import Recipe
from gptexport.staging import data_file, write_file
from gptexport_runtime.contract.heads import LOGITS, Head
from gptexport_runtime.contract.manifest import Manifest
from gptexport_runtime.contract.names import MANIFEST_FILE, WEIGHTS_FILE

GRAPH_SUFFIX = ".onnx"
INLINE_BYTES = 100 << 20  # a single file keeps weights up to this inside; protobuf itself ends at 2 GiB


class Layout(Protocol):
    """What an export needs to know of where it goes."""

    @property
    def out(self) -> Path: ...
    def check(self, recipe: Recipe) -> None:
        """Raise ExportError for what this layout cannot hold."""
        ...

    def holds(self, head: Head) -> bool: ...
    def graph_name(self, head: Head) -> str: ...
    def weights(self, folder: Path, size: int) -> Weights:
        """Where weights of `size` bytes go."""
        ...

    def finish(self, folder: Path, manifest: Manifest) -> None:
        """Write what belongs beside the graphs."""
        ...


def layout_for(out: Path) -> Layout:
    """A single file where `out` ends in .onnx, else a bundle."""
    return SingleFile(out) if out.suffix == GRAPH_SUFFIX else Bundle(out)


@dataclass(frozen=True)
class Bundle:
    """A folder: a graph for each head, the weights of all in one file, and the manifest."""

    out: Path

    def check(self, recipe: Recipe) -> None:
        return None

    def holds(self, head: Head) -> bool:
        return True

    def graph_name(self, head: Head) -> str:
        return head.file

    def weights(self, folder: Path, size: int) -> Weights:
        return WeightsFile(folder / WEIGHTS_FILE)

    def finish(self, folder: Path, manifest: Manifest) -> None:
        write_file(folder / MANIFEST_FILE, manifest.to_json().encode())


@dataclass(frozen=True)
class SingleFile:
    """The logits graph alone, for other tools; large weights go into one file beside it."""

    out: Path

    def check(self, recipe: Recipe) -> None:
        if recipe.tokenizer is not None:
            raise ExportError("a single .onnx carries no tokenizer. Leave tokenizer out, or name a folder.")
        if recipe.heads is not None and recipe.heads != (LOGITS,):
            asked = ", ".join(head.name for head in recipe.heads)
            raise ExportError(
                f"graphs is {asked}; a single .onnx holds the logits alone. Name a folder to have others."
            )

    def holds(self, head: Head) -> bool:
        return head is LOGITS

    def graph_name(self, head: Head) -> str:
        return self.out.name

    def weights(self, folder: Path, size: int) -> Weights:
        return InlineWeights() if size <= INLINE_BYTES else WeightsFile(folder / data_file(self.out).name)

    def finish(self, folder: Path, manifest: Manifest) -> None:
        return None
