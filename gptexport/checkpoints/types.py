"""What the parts of this package hand to each other and to the rest of gptexport."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn as nn

from gptexport.architectures import Architecture, Config
from gptexport_runtime.contract.manifest import TextEntry

AssumptionSource = Literal["checkpoint", "format", "option"]  # the file says it, the format's convention, an option


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model ready for export: eval mode, no gradients, float32 parameters, on the CPU."""

    model: nn.Module  # forward(idx (B,T) int64) -> logits (B,T,V), always
    architecture: Architecture
    config: Config
    format: str  # "nanogpt" | "build-nanogpt" | "huggingface" | "module"
    block_size: int
    vocab_size: int  # V of the logits, after --vocab-size
    input_vocab_size: int | None = None  # how many ids forward takes, where it is not as many as there are logits
    sha256: str  # of the checkpoint's file; of the sorted (name, sha256) lines where there are several
    tokenizer: Path | None = None  # where the format keeps it, if it is there; not validated yet
    assumed: Mapping[str, AssumptionSource] = field(default_factory=dict)  # by name, how each assumption was decided
    notes: tuple[str, ...] = ()  # what a person should be told
    text: TextEntry = field(default_factory=TextEntry)  # the ids that begin, end and pad a text, where it says them
    options: Mapping[str, int | float | str] = field(default_factory=dict)  # what load_checkpoint was asked for

    @property
    def predicted_ids(self) -> int:
        """How many ids both go in and come out, as ModelInfo has it."""
        return min(self.vocab_size, self.input_vocab_size or self.vocab_size)


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What `gptexport inspect` tells about a checkpoint."""

    source: str
    format: str  # as in Checkpoint, or the name of a format that is only recognised
    description: str
    readable: bool  # load_checkpoint would read it
    config: Config | None = None
    assumed: Mapping[str, AssumptionSource] = field(default_factory=dict)  # as in Checkpoint
    tied: bool | None = None
    parameters: int | None = None  # tied ones once
    dtypes: Mapping[str, int] = field(default_factory=dict)  # stored dtype -> number of tensors
    unsafe_globals: tuple[str, ...] = ()  # code that loading the file unsafely would run
    training: Mapping[str, int | float] = field(default_factory=dict)  # step, loss, where the file says
    files: tuple[str, ...] = ()
    file_size: int = 0  # bytes, of all the files
    problems: tuple[str, ...] = ()  # why load_checkpoint would refuse it
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A checkpoint as it was opened: its config, and its weights still mapped from the file."""

    format: str
    path: Path
    architecture: Architecture
    config: Any  # the architecture's; tied by what is stored, assumptions by the file or the format
    weights: Mapping[str, torch.Tensor]  # under the model's names, linears (out,in); not yet compared with the config
    files: tuple[Path, ...]
    assumed: Mapping[str, AssumptionSource] = field(default_factory=dict)  # as in Checkpoint
    tokenizer: Path | None = None  # as in Checkpoint
    text: TextEntry = field(default_factory=TextEntry)  # as in Checkpoint
    training: Mapping[str, int | float] = field(default_factory=dict)
    problems: tuple[str, ...] = ()  # found while the names were mapped: not a tensor, the same name twice
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """Something with a name that gptexport does not read."""

    format: str
    what: str  # "a llm.c model, 12 layers of width 768"
    advice: str = ""
