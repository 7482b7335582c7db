"""The questions that every kind of artifact answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from gptexport.precision import Precision
from gptexport_runtime.contract.heads import Head

Device = str  # one that the runtime has a provider for: "cpu", "cuda"
Shape = tuple[int, int]  # (B,T)


class Stage(Enum):
    """A step on the way from a checkpoint to what a session runs, in the order of that way."""

    EAGER = "eager PyTorch"
    EXPORT = "portable export"
    GRAPH = "this graph, as it is written"
    ONNX_RUNTIME = "this graph, as the session runs it"
    SOURCE_GRAPH = "the engine's graph, as it is written"
    PREPARED_GRAPH = "that graph, as it is given to TensorRT"
    ENGINE = "the engine, as TensorRT runs it"


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What the files of an artifact hold: `data` as --json prints it, and what is wrong with them."""

    data: Mapping[str, Any]
    problems: tuple[str, ...]


class Artifact(Protocol):
    """What was exported, and what it says of itself."""

    @property
    def path(self) -> Path:
        """The path that a session opens: the bundle's folder, the .onnx or the .engine."""

    @property
    def kind(self) -> str:
        """ "bundle", "graph" or "engine"."""

    @property
    def graph(self) -> Path | None:
        """The .onnx of the logits that a session runs, or that an engine was built from; None: it is not here."""

    @property
    def heads(self) -> Sequence[Head]:
        """What a session of it has a graph for, the logits among them."""

    @property
    def precision(self) -> Precision:
        """What its weights are stored and computed in."""

    @property
    def device(self) -> Device:
        """The device that a session of it uses by default."""

    @property
    def stages(self) -> Sequence[Stage]:
        """What happened to the model after the export, in order; the last is the session."""

    @property
    def model(self) -> Mapping[str, object]:
        """What it says of the model: vocab_size, block_size, and its config where that is known."""

    @property
    def source(self) -> Mapping[str, object]:
        """What it says of the checkpoint: its sha256 and the options that it was loaded with. Empty: nothing."""

    @property
    def changes(self) -> Mapping[Stage, Sequence[str]]:
        """What was asked for at which step after the portable export, as a person would name it."""

    @property
    def limits(self) -> str | None:
        """Which (B,T) it takes, in words; None where any up to block_size."""

    def accepts(self, B: int, T: int) -> bool:
        """Whether it runs at (B,T), T being at most block_size."""

    def fit(self, shapes: Sequence[Shape]) -> list[Shape]:
        """These shapes moved to where it runs, each profile of an engine covered."""

    def built_from(self, given: Path) -> Artifact | None:
        """The same engine, as built from the graph that is given; None of what is not built from another file.

        Raises:
            InputError: it was built from another.
        """

    def facts(self) -> Mapping[str, object]:
        """What to print above a report on it: how it was made, and the hashes of its files."""

    def certify(self, verdict: Mapping[str, object]) -> Path | None:
        """Record a verdict of parity, bound to the hashes of the files; where to, or None where it has no place for it.

        Raises:
            ArtifactError: the files are damaged.
            OutputError: it cannot be written there, or what is there now is not what was described.
        """

    def inspect(self, *, verify: bool = False) -> Inspection:
        """Read the files. `verify`: hash those too that are large.

        Raises:
            ArtifactError: they are damaged beyond description.
        """
