"""Where an export goes: a bundle, which is a folder, also one that other programs open; or a single .onnx file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gptexport.errors import ExportError
from gptexport.recipe import Recipe
from gptexport.staging import data_file, write_file
from gptexport_runtime.contract.heads import DECODE, LOGITS, Head
from gptexport_runtime.contract.manifest import Manifest
from gptexport_runtime.contract.names import MANIFEST_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from gptexport.export.write import Weights

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

    def finish(self, folder: Path, manifest: Manifest, recipe: Recipe) -> tuple[str, ...]:
        """Write what belongs beside the graphs. Returns: what a person should be told."""
        ...


def layout_for(out: Path, name: str | None = None) -> Layout:
    """The folder of LAYOUTS that is named, else a single file where `out` ends in .onnx, else a bundle.

    Raises:
        ExportError: a folder that is named like a file, or a name that is not known.
    """
    if name is None:
        return SingleFile(out) if out.suffix == GRAPH_SUFFIX else Bundle(out)
    if name not in LAYOUTS:
        raise ExportError(f"layout is {name!r}; expected one of {', '.join(LAYOUTS)}.")
    if out.suffix == GRAPH_SUFFIX:
        raise ExportError(f"layout {name} is a folder, and {out} is the name of a single graph. Name a folder.")
    return LAYOUTS[name](out)


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
        from gptexport.export.write import WeightsFile

        return WeightsFile(folder / WEIGHTS_FILE)

    def finish(self, folder: Path, manifest: Manifest, recipe: Recipe) -> tuple[str, ...]:
        write_file(folder / MANIFEST_FILE, manifest.to_json().encode())
        return ()


@dataclass(frozen=True)
class GenAI(Bundle):
    """A bundle that onnxruntime-genai opens too: a graph and a config for it, and the tokenizer as it reads one."""

    def check(self, recipe: Recipe) -> None:
        if not recipe.wants(DECODE):
            raise ExportError(f"layout genai without the graph {DECODE}: it is what generates. Put it into graphs.")
        if recipe.quantize_cache:
            raise ExportError("layout genai with quantize_cache, which was not tried there. Leave one of them out.")
        if not recipe.target.runs_on_cpu(recipe.precision):
            raise ExportError(
                f"layout genai with target {recipe.target} in {recipe.precision.name}, which no CPU runs: it is for "
                "onnxruntime-genai on a CPU, the one place where it was tried. Leave them out, or pass target cpu."
            )

    def finish(self, folder: Path, manifest: Manifest, recipe: Recipe) -> tuple[str, ...]:
        from gptexport.export.genai import write_genai
        from gptexport.tokenizers.as_json import tokenizer_files

        if (reason := manifest.left_out.get(DECODE.name)) is not None:
            raise ExportError(f"layout genai needs the graph {DECODE}, which this model does not allow: {reason}.")
        write_genai(folder, manifest, recipe.precision)
        longest = manifest.info.block_size
        assert longest is not None  # an export's manifest says it
        files, notes = tokenizer_files(recipe.tokenizer, longest)
        for name, data in files.items():
            if not (folder / name).exists():  # which the bundle has then, with the same bytes
                write_file(folder / name, data)
        return (*notes, *super().finish(folder, manifest, recipe))


@dataclass(frozen=True)
class SingleFile:
    """The logits graph alone, for other tools; large weights go into one file beside it."""

    out: Path

    def check(self, recipe: Recipe) -> None:
        if recipe.tokenizer is not None:
            raise ExportError("a single .onnx carries no tokenizer. Leave tokenizer out, or name a folder.")
        if recipe.quantize_cache:
            raise ExportError("a single .onnx holds the logits alone, which have no cache: leave quantize_cache out.")
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
        from gptexport.export.write import InlineWeights, WeightsFile

        return InlineWeights() if size <= INLINE_BYTES else WeightsFile(folder / data_file(self.out).name)

    def finish(self, folder: Path, manifest: Manifest, recipe: Recipe) -> tuple[str, ...]:
        return ()


LAYOUTS: dict[str, Callable[[Path], Layout]] = {"bundle": Bundle, "genai": GenAI}  # folders
